// Play, pause, scrub, speed: what every film has. `show(k)` draws frame k.

function transport(model, el, kind, stage, show, n, width) {
  const label = model.get("label"), captions = model.get("captions"), step = 1000 / model.get("fps");
  const speeds = [1, 0.5, 0.25, 2];
  const button = make("button", { type: "button", class: "ddpm-play", onclick: () => playing ? stop() : play() });
  const faster = make("button", { type: "button", class: "ddpm-speed", onclick: () => { speed = (speed + 1) % speeds.length; face(); } });
  const slider = make("input", { type: "range", min: 0, max: n - 1, step: 1, "aria-label": label,
    oninput: () => { stop(); go(+slider.value); later(); } });
  const count = make("output");
  const legend = make("div", { class: "ddpm-legend" });
  const root = frame(model, el, kind, stage,
    make("div", { class: "ddpm-transport", style: `max-width:${Math.max(320, width)}px` }, button, faster, slider, count), legend);
  let playing = false, next = 0, timer = 0, speed = 0;

  function go(index) { model.set("index", index); }
  function later() { clearTimeout(timer); timer = setTimeout(() => model.save_changes(), 150); }
  function redraw() {
    const k = model.get("index"), text = captions[k] || "";
    show(k);
    slider.value = k;
    count.textContent = `${k + 1} / ${n}`;
    legend.textContent = text;
    slider.setAttribute("aria-valuetext", `frame ${k + 1} of ${n}. ${text}`);
    stage.setAttribute("aria-label", `${label}, frame ${k + 1} of ${n}. ${text}`);
    root.dataset.index = k;
    root.drawn();
  }
  function face() {
    button.textContent = playing ? "❚❚ Pause" : "▶ Play";
    button.setAttribute("aria-label", `${playing ? "Pause" : "Play"}: ${label}`);
    faster.textContent = `${speeds[speed]}×`;
    faster.setAttribute("aria-label", `speed ${speeds[speed]} times`);
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
      next = Math.max(next + step / speeds[speed], now); // after a hitch go on from here, do not race
      const k = model.get("index");
      if (k < n - 1) go(k + 1);
      else if (model.get("loop")) go(0);
      else return stop();
    }
    requestAnimationFrame(tick);
  }
  // Once, when it is first seen, it plays by itself, unless the reader came first or wants no motion.
  const seen = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    seen.disconnect();
    go(0); play();
  }, { threshold: 0.6 });
  if (model.get("autoplay") && !matchMedia("(prefers-reduced-motion: reduce)").matches) seen.observe(stage);
  root.addEventListener("focusin", () => seen.disconnect());
  slider.addEventListener("focus", stop);
  model.on("change:index", redraw);
  face();
  redraw();
  return () => { playing = false; seen.disconnect(); clearTimeout(timer); root.undo(); model.off("change:index", redraw); };
}
