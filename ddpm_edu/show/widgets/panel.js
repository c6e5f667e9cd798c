// Sliders, menus, switches and lines of text; the kernel draws the picture (PNG for matplotlib, raw pixels otherwise).

function render({ model, el }) {
  const raw = model.get("raw"), name = model.get("kind");
  const picture = raw ? make("canvas", { role: "img", class: "ddpm-pixels" }) : make("img", { class: "ddpm-picture" });
  const { rows, place, node: controls } = controlRows(model, ask);
  const root = frame(model, el, name, controls, picture);
  let url = null, gone = false;

  function ask() {
    root.setAttribute("aria-busy", "true");
    model.save_changes(); // while the kernel is busy the newest state waits, older ones are dropped
  }
  async function show() {
    const data = bytes(model.get("image"));
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
  function idle() { rest(model, rows); }
  function failed() { root.removeAttribute("aria-busy"); }
  model.on("change:drawn", show);
  model.on("change:position", place);
  model.on("change:idle", idle);
  model.on("change:error", failed);
  place();
  idle();
  show();
  return () => {
    gone = true;
    root.undo();
    model.off("change:drawn", show); model.off("change:position", place); model.off("change:idle", idle); model.off("change:error", failed);
    if (url) URL.revokeObjectURL(url);
  };
}

export default { render };
