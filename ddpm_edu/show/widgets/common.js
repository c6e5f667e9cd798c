// Shared by every widget: small DOM helpers. Each widget's file is appended to this one.

/** An element with attributes (`on...` are listeners, `text` is its text) and children. */
function make(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (value !== false && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** The widget's frame: <figure> with a caption, an error line, a note and `data-drawn`, the number of pictures drawn so far. */
function frame(model, el, kind, ...children) {
  const caption = make("figcaption", { class: "ddpm-caption" });
  const error = make("div", { class: "ddpm-error", role: "alert" });
  const note = make("div", { class: "ddpm-note", role: "status" });
  const root = make("figure", { class: "ddpm-widget", "data-kind": kind, "data-drawn": 0, "data-lm-suppress-shortcuts": "true" },
    ...children, error, note, caption);
  const text = () => { caption.textContent = model.get("caption"); error.textContent = model.get("error"); error.hidden = !model.get("error");
    note.textContent = model.get("note"); note.hidden = !model.get("note"); };
  for (const name of ["caption", "error", "note"]) model.on(`change:${name}`, text);
  // JupyterLab moves between cells on these keys and would take them away from the widget.
  root.addEventListener("keydown", event => { if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); });
  text();
  el.append(root);
  root.drawn = () => { root.dataset.drawn = +root.dataset.drawn + 1; root.removeAttribute("aria-busy"); };
  root.undo = () => { for (const name of ["caption", "error", "note"]) model.off(`change:${name}`, text); };
  return root;
}

/** The bytes of a trait: the kernel's DataView, or a plain array in tests. */
function bytes(view) { return new Uint8Array(view.buffer, view.byteOffset, view.byteLength); }

/** Paint one uint8 picture, grey (channels 1) or RGB (3), from `data` at `offset` on a canvas of the same size. */
function paint(canvas, data, offset, channels) {
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const out = new Uint32Array(image.data.buffer), n = out.length;
  if (channels === 1) for (let i = 0; i < n; i++) out[i] = 0xff000000 | data[offset + i] * 0x010101;
  else for (let i = 0, k = offset; i < n; i++, k += 3) out[i] = 0xff000000 | data[k + 2] << 16 | data[k + 1] << 8 | data[k];
  context.putImageData(image, 0, 0);
}
