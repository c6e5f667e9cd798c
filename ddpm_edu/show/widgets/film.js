// A film: all frames are sent once, then everything happens in the page (it works without a kernel too).

function render({ model, el }) {
  const [n, h, w, channels] = model.get("shape"), label = model.get("label"), captions = model.get("captions");
  const data = bytes(model.get("frames")), size = h * w * channels, step = 1000 / model.get("fps");
  const canvas = make("canvas", { width: w, height: h, role: "img", class: "ddpm-pixels", style: `width:${w * model.get("scale")}px` });
  const button = make("button", { type: "button", class: "ddpm-play", onclick: () => playing ? stop() : play() });
  const slider = make("input", { type: "range", min: 0, max: n - 1, step: 1, "aria-label": label,
    oninput: () => { stop(); go(+slider.value); later(); } });
  const count = make("output");
  const legend = make("div", { class: "ddpm-legend" });
  const root = frame(model, el, "film", canvas,
    make("div", { class: "ddpm-transport", style: `max-width:${Math.max(260, w * model.get("scale"))}px` }, button, slider, count), legend);
  let playing = false, next = 0, timer = 0;

  function go(index) { model.set("index", index); }
  function later() { clearTimeout(timer); timer = setTimeout(() => model.save_changes(), 150); }
  function show() {
    const k = model.get("index"), text = captions[k] || "";
    paint(canvas, data, k * size, channels);
    slider.value = k;
    count.textContent = `${k + 1} / ${n}`;
    legend.textContent = text;
    slider.setAttribute("aria-valuetext", `frame ${k + 1} of ${n}. ${text}`);
    canvas.setAttribute("aria-label", `${label}, frame ${k + 1} of ${n}. ${text}`);
    root.dataset.index = k;
    root.drawn();
  }
  function face() {
    button.textContent = playing ? "❚❚ Pause" : "▶ Play";
    button.setAttribute("aria-label", `${playing ? "Pause" : "Play"}: ${label}`);
  }
  function play() {
    playing = true; face();
    if (model.get("index") === n - 1) go(0);
    next = performance.now() + step;
    requestAnimationFrame(tick);
  }
  function stop() { if (!playing) return; playing = false; face(); later(); }
  function tick(now) {
    if (!playing) return;
    if (now >= next - 1) { // 1 ms of slack: the screen's clock is not exact
      next = Math.max(next + step, now); // after a hitch go on from here, do not race
      const k = model.get("index");
      if (k < n - 1) go(k + 1);
      else if (model.get("loop")) go(0);
      else return stop();
    }
    requestAnimationFrame(tick);
  }
  model.on("change:index", show);
  face();
  show();
  return () => { playing = false; clearTimeout(timer); root.undo(); model.off("change:index", show); };
}

export default { render };
