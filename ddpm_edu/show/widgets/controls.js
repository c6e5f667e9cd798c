// The rows of controls, for every widget that has some.

/** One row: label, control, value. `texts[i]` is what position i means; the position of a line of text is the text. */
function control(model, { name, label, kind, texts, limit, other }, move) {
  const key = name, id = `ddpm-${model.model_id || "static"}-${name}-${Math.random().toString(36).slice(2, 7)}`;
  const caption = make("label", { for: id, text: label });
  if (kind === "slider") {
    const value = make("output", { for: id });
    const input = make("input", { id, type: "range", min: 0, max: texts.length - 1, step: 1, "data-name": name,
      oninput: () => move(key, +input.value) });
    const show = at => { input.value = at; value.textContent = texts[at]; input.setAttribute("aria-valuetext", texts[at]); };
    return { key, show, input, node: make("div", { class: "ddpm-row" }, caption, input, value) };
  }
  if (kind === "choice") {
    const input = make("select", { id, "data-name": name, onchange: () => move(key, input.selectedIndex) },
      ...texts.map(text => make("option", { text })));
    return { key, input, show: at => { input.selectedIndex = at; }, node: make("div", { class: "ddpm-row" }, caption, input) };
  }
  if (kind === "text") { // "change": on Enter or when the field is left, not at every key
    const input = make("input", { id, type: "text", maxlength: limit, placeholder: other || undefined, autocomplete: "off", spellcheck: "false", "data-name": name,
      onchange: () => move(key, input.value) });
    const busy = make("span", { class: "ddpm-busy", "aria-hidden": "true", text: "drawing ..." });
    let shown = null; // words being typed stay when another control moves
    return { key, input, show: at => { if (at !== shown) input.value = shown = at; }, node: make("div", { class: "ddpm-row ddpm-wide" }, caption, input, busy) };
  }
  const input = make("input", { id, type: "checkbox", "data-name": name, onchange: () => move(key, +input.checked) });
  return { key, input, show: at => { input.checked = !!at; }, node: make("div", { class: "ddpm-row" }, caption, input) };
}

/** All rows of a widget: their node, and `place`, which shows the model's position. `ask` is called when one was moved. */
function controlRows(model, ask) {
  const rows = model.get("controls").map(spec => control(model, spec, move));
  const place = () => rows.forEach(row => row.show(model.get("position")[row.key]));
  function move(key, position) {
    model.set("position", { ...model.get("position"), [key]: position });
    ask();
    place();
  }
  return { rows, place, node: make("div", { class: "ddpm-controls" }, ...rows.map(row => row.node)) };
}

/** Switch off the controls that play no part now. */
function rest(model, rows) {
  const idle = model.get("idle") || [];
  rows.forEach(row => { row.node.classList.toggle("ddpm-idle", idle.includes(row.key)); row.input.disabled = idle.includes(row.key); });
}
