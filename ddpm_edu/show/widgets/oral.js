// One question at a time: think, show the answer, rate yourself; at the end the notebooks to read again.

function render({ model, el }) {
  const [questions, numbers, ratings] = ["questions", "numbers", "ratings"].map(name => model.get(name));
  const progress = make("div", { class: "ddpm-keys", role: "status" }), question = make("div", { class: "ddpm-question" });
  const answer = make("div", { class: "ddpm-verdict" });
  const show = make("button", { type: "button", text: "Show the answer", onclick: reveal });
  const rate = ratings.map((name, k) => make("button", { type: "button", text: name, onclick: () => rated([...model.get("rated"), k]) }));
  const back = make("button", { type: "button", text: "Back", onclick: () => rated(model.get("rated").slice(0, -1)) });
  const buttons = make("div", { class: "ddpm-row", role: "group", "aria-label": "how it went" });
  const root = frame(model, el, "oral", progress, question, answer, buttons);

  function rated(list) {
    model.set("rated", list);
    model.save_changes();
    (done() ? back : show).focus();
  }
  function done() { return model.get("rated").length === questions.length; }
  function reveal() {
    answer.innerHTML = questions[model.get("rated").length][1];
    buttons.replaceChildren(...rate);
    root.dataset.shown = true;
    rate[0].focus();
    root.drawn();
  }
  function draw() {
    const list = model.get("rated"), at = list.length;
    progress.textContent = done() ? "all asked" : `question ${at + 1} of ${questions.length}`;
    answer.replaceChildren();
    root.dataset.shown = done();
    if (done()) finish(list);
    else {
      question.innerHTML = `${numbers[at]}. ${questions[at][0]}`;
      buttons.replaceChildren(show, ...(at ? [back] : []));
    }
    root.drawn();
  }
  function finish(list) {
    const need = new Map();
    questions.forEach(([, , names], i) => names.forEach(name => list[i] && need.set(name, (need.get(name) || 0) + list[i])));
    const again = [...need].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([name]) => name);
    const known = list.filter(k => k === 0).length;
    question.textContent = `You knew ${known} of ${questions.length}.`;
    answer.textContent = again.length ? `Read again, the most needed first: notebook${again.length > 1 ? "s" : ""} ${again.join(", ")}.`
      : "Nothing to read again. Draw with another seed, or explain one to a friend.";
    buttons.replaceChildren(back);
  }
  draw();
  model.on("change:rated", draw);
  return () => { root.undo(); model.off("change:rated", draw); };
}

export default { render };
