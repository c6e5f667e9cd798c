// Sliders, menus, switches and lines of text; the kernel draws the picture (PNG for matplotlib, raw pixels otherwise).

function render({ model, el }) {
  const raw = model.get("raw"), name = model.get("kind");
  const picture = raw ? make("canvas", { role: "img", class: "ddpm-pixels" }) : make("img", { class: "ddpm-picture" });
  const rows = model.get("controls").map(spec => control(model, spec, move));
  const controls = make("div", { class: "ddpm-controls" }, ...rows.map(row => row.node));
  const root = frame(model, el, name, controls, picture);
  let url = null, gone = false;

  function move(key, position) {
    model.set("position", { ...model.get("position"), [key]: position });
    root.setAttribute("aria-busy", "true");
    model.save_changes(); // while the kernel is busy the newest state waits, older ones are dropped
    place();
  }
  function place() { rows.forEach(row => row.show(model.get("position")[row.key])); }
  function rest() { // controls that play no part now are switched off
    const idle = model.get("idle") || [];
    rows.forEach(row => { row.node.classList.toggle("ddpm-idle", idle.includes(row.key)); row.input.disabled = idle.includes(row.key); });
  }
  async function show() {
    const data = bytes(model.get("picture"));
    if (raw) {
      const [h, w, channels] = model.get("shape"), scale = model.get("scale");
      if (picture.width !== w || picture.height !== h) Object.assign(picture, { width: w, height: h });
      picture.style.width = `${w * scale}px`;
      paint(picture, data, 0, channels);
      picture.setAttribute("aria-label", model.get("alt"));
    } else {
      const old = url, next = url = URL.createObjectURL(new Blob([data], { type: "image/png" }));
      const loaded = new Image();
      loaded.src = next;
      await loaded.decode().catch(() => {});
      if (old) URL.revokeObjectURL(old);
      if (gone || next !== url) return; // a newer picture came meanwhile
      picture.src = next;
      picture.alt = model.get("alt");
    }
    controls.style.maxWidth = `${Math.max(400, raw ? picture.width * model.get("scale") : picture.naturalWidth)}px`;
    root.drawn();
  }
  function failed() { root.removeAttribute("aria-busy"); }
  model.on("change:drawn", show);
  model.on("change:position", place);
  model.on("change:idle", rest);
  model.on("change:error", failed);
  place();
  rest();
  show();
  return () => {
    gone = true;
    root.undo();
    model.off("change:drawn", show); model.off("change:position", place); model.off("change:idle", rest); model.off("change:error", failed);
    if (url) URL.revokeObjectURL(url);
  };
}

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

export default { render };
