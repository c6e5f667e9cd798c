// A question with buttons. The answer is shown after the first click (with several items: when each has one).

function render({ model, el }) {
  const [options, items, answer] = ["options", "items", "answer"].map(name => model.get(name));
  const button = (i, k) => make("button", { type: "button", text: options[k], "aria-pressed": "false", onclick: () => choose(i, k) });
  const rows = items.map((name, i) => make("div", { class: "ddpm-row", role: "group", "aria-label": name || model.get("question") },
    ...(name ? [make("span", { class: "ddpm-item", text: name })] : []), ...options.map((_, k) => button(i, k))));
  const verdict = make("div", { class: "ddpm-verdict", role: "status" }), truth = make("div", { class: "ddpm-truth" });
  const root = frame(model, el, "predict", make("div", { class: "ddpm-question", text: model.get("question") }),
    make("div", { class: items.length > 1 ? "ddpm-items" : "" }, ...rows), verdict, truth);

  function choose(i, k) {
    model.set("chosen", model.get("chosen").map((old, j) => j === i ? k : old));
    model.save_changes();
  }
  function show() {
    const chosen = model.get("chosen"), done = chosen.every(k => k >= 0), right = chosen.filter((k, i) => k === answer[i]).length;
    rows.forEach((row, i) => row.querySelectorAll("button").forEach((node, k) => {
      node.setAttribute("aria-pressed", chosen[i] === k);
      node.disabled = done;
      node.dataset.truth = done && k === answer[i];
    }));
    root.querySelector(".ddpm-caption").hidden = done;
    root.dataset.done = done;
    if (done && !truth.hasChildNodes()) {
      const words = items.length > 1 ? `${right} of ${items.length} right.` : right ? "Right." : `It is: ${options[answer[0]]}.`;
      verdict.replaceChildren(make("b", { text: words }), ` ${model.get("why")}`);
      truth.innerHTML = model.get("picture") || "<!-- no picture -->";
    }
    root.drawn();
  }
  show();
  model.on("change:chosen", show);
  return () => { root.undo(); model.off("change:chosen", show); };
}

export default { render };
