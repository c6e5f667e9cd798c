// A film of pictures: all frames are sent once, then everything happens in the page (it works without a kernel too).

function render({ model, el }) {
  const [n, h, w, channels] = model.get("shape"), size = h * w * channels, width = w * model.get("scale");
  const data = bytes(model.get("frames"));
  const canvas = make("canvas", { width: w, height: h, role: "img", class: "ddpm-pixels", style: `width:${width}px` });
  return transport(model, el, "film", canvas, k => paint(canvas, data, k * size, channels), n, width);
}

export default { render };
