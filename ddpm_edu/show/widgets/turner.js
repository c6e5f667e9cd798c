// A picture that is turned, flipped or cut up before the reader's eyes. All is sent once, so it works without a kernel.

function render({ model, el }) {
  const [h, w, channels] = model.get("shape"), scale = model.get("scale"), [W, H] = [w * scale, h * scale];
  const names = model.get("names"), motion = model.get("motion"), places = model.get("places");
  const picture = make("canvas", { width: w, height: h });
  paint(picture, bytes(model.get("picture")), 0, channels);
  const stage = make("canvas", { class: "ddpm-pixels ddpm-turned", width: W, height: H, style: `width:${W}px`, role: "img", onclick: () => turn() });
  const button = make("button", { type: "button", class: "ddpm-play", onclick: () => turn() });
  const slider = make("input", { type: "range", min: 0, max: 100, "aria-label": "from the first reading to the second",
    oninput: () => { stop(); go(slider.value / 100); } });
  const reading = make("output", { class: "ddpm-reading", "aria-live": "polite" });
  const root = frame(model, el, "turner", stage,
    make("div", { class: "ddpm-transport", style: `max-width:${Math.max(320, W)}px` }, button, slider), reading);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let moving = 0, later = 0, goal = model.get("at") < 0.5 ? 0 : 1;

  const degrees = (+motion.split(" ")[1] + 180) % 360 - 180; // 270 to the left is 90 to the right
  const context = stage.getContext("2d");
  const draws = {
    turn: at => { // made smaller on the way, so that the corners stay in sight
      const angle = -at * degrees * Math.PI / 180, fit = 1 / (Math.abs(Math.cos(angle)) + Math.abs(Math.sin(angle)));
      context.rotate(angle); context.scale(fit, fit); whole();
    },
    flip: at => { context.scale(1, Math.cos(at * Math.PI)); whole(); },
    mirror: at => { context.scale(Math.cos(at * Math.PI), 1); whole(); },
    permute: at => places.forEach((from, to) => {
      const x = (1 - at) * (from % w) + at * (to % w), y = (1 - at) * Math.floor(from / w) + at * Math.floor(to / w);
      context.drawImage(picture, from % w, Math.floor(from / w), 1, 1, x * scale - W / 2, y * scale - H / 2, scale, scale);
    }),
  };
  function whole() { context.drawImage(picture, -W / 2, -H / 2, W, H); }
  function draw() {
    const at = model.get("at"), name = at === 0 ? names[0] : at === 1 ? names[1] : "";
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, W, H);
    context.translate(W / 2, H / 2);
    context.imageSmoothingEnabled = at > 0 && at < 1 && motion !== "permute";
    draws[motion.split(" ")[0]](at);
    slider.value = Math.round(100 * at);
    slider.setAttribute("aria-valuetext", name || `${Math.round(100 * at)} % of the way`);
    reading.textContent = name ? `This way it reads: ${name}` : "...";
    stage.setAttribute("aria-label", `${model.get("alt")}${name ? `, turned so that it reads: ${name}` : ""}`);
    button.textContent = goal ? "↺ Turn back" : "↻ Turn";
    root.dataset.at = at;
    root.drawn();
  }
  function go(at) {
    goal = at < 0.5 ? 0 : 1;
    model.set("at", at);
    clearTimeout(later); later = setTimeout(() => model.save_changes(), 150);
  }
  function stop() { cancelAnimationFrame(moving); moving = 0; }
  function turn() {
    const from = model.get("at"), to = 1 - goal, start = performance.now();
    stop();
    goal = to;
    if (still.matches) return go(to);
    const tick = now => {
      const share = Math.min(1, (now - start) / 900), eased = share * share * (3 - 2 * share);
      model.set("at", from + (to - from) * Math.max(0, eased));
      if (share < 1) moving = requestAnimationFrame(tick); else go(to);
    };
    moving = requestAnimationFrame(tick);
  }
  model.on("change:at", draw);
  draw();
  return () => { stop(); clearTimeout(later); root.undo(); model.off("change:at", draw); };
}

export default { render };
