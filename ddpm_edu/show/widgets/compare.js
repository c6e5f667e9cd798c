// Two pictures, one over the other, and a handle between them. All is sent once, so it works without a kernel.

function render({ model, el }) {
  const [w, h] = [model.get("width"), model.get("height")], names = model.get("names");
  const [left, right] = ["before", "after"].map((name, k) => {
    const [rows, columns, channels] = model.get("shapes")[k], canvas = make("canvas", { width: columns, height: rows });
    paint(canvas, bytes(model.get(name)), 0, channels);
    return canvas;
  });
  const stage = make("canvas", { class: "ddpm-pixels", width: w, height: h, style: `width:${w}px`, role: "img", "aria-label": model.get("alt") });
  const handle = make("div", { class: "ddpm-handle", role: "slider", tabindex: 0, "aria-label": `share of ${names[0]}`,
    "aria-valuemin": 0, "aria-valuemax": 100 }, make("span", { text: "◂ ▸", "aria-hidden": "true" }));
  const heads = names.map((text, k) => make("span", { text: k ? `${text} ▸` : `◂ ${text}` }));
  const box = make("div", { class: "ddpm-compare" }, stage, handle);
  const root = frame(model, el, "compare", make("div", { style: `width:${w}px;max-width:100%` }, make("div", { class: "ddpm-ends" }, ...heads), box));
  let down = false, later = 0;

  function draw() {
    const at = Math.round(model.get("at") * w), context = stage.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(right, 0, 0, w, h);
    context.save();
    context.beginPath(); context.rect(0, 0, at, h); context.clip();
    context.drawImage(left, 0, 0, w, h);
    context.restore();
    handle.style.left = `${100 * model.get("at")}%`;
    const percent = Math.round(100 * model.get("at"));
    handle.setAttribute("aria-valuenow", percent);
    handle.setAttribute("aria-valuetext", `${percent} % ${names[0]}, ${100 - percent} % ${names[1]}`);
    root.drawn();
  }
  function go(at) {
    model.set("at", Math.max(0, Math.min(1, at)));
    clearTimeout(later); later = setTimeout(() => model.save_changes(), 150);
  }
  function follow(event) { const { left, width } = stage.getBoundingClientRect(); go((event.clientX - left) / width); }
  box.addEventListener("pointerdown", event => {
    if (!event.isPrimary || event.button) return;
    down = true; box.setPointerCapture(event.pointerId); handle.focus({ preventScroll: true }); follow(event); event.preventDefault();
  });
  box.addEventListener("pointermove", event => { if (down) follow(event); });
  for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, () => { down = false; });
  handle.addEventListener("keydown", event => {
    const step = event.shiftKey ? 0.2 : 0.05, at = model.get("at");
    const to = { ArrowLeft: at - step, ArrowDown: at - step, ArrowRight: at + step, ArrowUp: at + step, Home: 0, End: 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault(); go(to);
  });
  model.on("change:at", draw);
  draw();
  return () => { clearTimeout(later); root.undo(); model.off("change:at", draw); };
}

export default { render };
