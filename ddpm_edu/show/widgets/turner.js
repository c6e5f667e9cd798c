// A picture that is turned, flipped or cut up before the reader's eyes. All is sent once, so it works without a kernel.

function render({ model, el }) {
  let h, w, W, H, scale, names, motion, places, degrees;
  const picture = make("canvas"), stage = make("canvas", { class: "ddpm-pixels ddpm-turned", role: "img", onclick: () => turn() });
  const button = make("button", { type: "button", class: "ddpm-play", onclick: () => turn() });
  const slider = make("input", { type: "range", min: 0, max: 100, "aria-label": "from the first reading to the second",
    oninput: () => { stop(); go(slider.value / 100); } });
  const reading = make("output", { class: "ddpm-reading", "aria-live": "polite" });
  const { place, node: controls } = controlRows(model, ask);
  const transport = make("div", { class: "ddpm-transport" }, button, slider);
  const root = frame(model, el, "turner", controls, stage, transport, reading);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let moving = 0, later = 0, goal = model.get("at") < 0.5 ? 0 : 1;

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
    reading.textContent = name ? `This way: ${name}` : "...";
    stage.setAttribute("aria-label", `${model.get("alt")}${name ? `; this way: ${name}` : ""}`);
    button.textContent = goal ? "↺ Turn back" : "↻ Turn";
    root.dataset.at = at;
    root.dataset.drawn = +root.dataset.drawn + 1;
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
  function ask() {
    root.setAttribute("aria-busy", "true");
    model.save_changes(); // while the kernel is busy the newest state waits, older ones are dropped
  }
  function ready() { root.removeAttribute("aria-busy"); }
  function show() { // a new picture: as it is, not turned
    const shape = model.get("shape");
    [h, w] = shape; scale = model.get("scale"); [W, H] = [w * scale, h * scale];
    [names, motion, places] = ["names", "motion", "places"].map(name => model.get(name));
    degrees = (+motion.split(" ")[1] + 180) % 360 - 180; // 270 to the left is 90 to the right
    Object.assign(picture, { width: w, height: h });
    Object.assign(stage, { width: W, height: H });
    stage.style.width = `${W}px`;
    transport.style.maxWidth = `${Math.max(320, W)}px`;
    controls.style.maxWidth = `${Math.max(400, W)}px`;
    paint(picture, bytes(model.get("image")), 0, shape[2]);
    stop();
    goal = model.get("at") < 0.5 ? 0 : 1;
    draw();
    ready();
  }
  const heard = { "change:at": draw, "change:drawn": show, "change:position": place, "change:error": ready };
  for (const [name, act] of Object.entries(heard)) model.on(name, act);
  place(); show();
  return () => {
    stop(); clearTimeout(later); root.undo();
    for (const [name, act] of Object.entries(heard)) model.off(name, act);
  };
}

export default { render };
