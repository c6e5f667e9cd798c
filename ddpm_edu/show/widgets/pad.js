// A pad to draw on. The drawing lives in the page; the kernel gets it when the pen is lifted, and draws the result beside it.

function render({ model, el }) {
  const [H, W] = model.get("size"), cell = model.get("cell"), paints = model.get("paints"), names = model.get("names");
  let sheet = bytes(model.get("sheet")).slice(); // four bytes a pixel: red, green, blue, mask
  let past = [], chosen = paints[1]?.color ? 1 : 0, filling = false, last = null, hover = null, later = 0, patience = 0;
  let cursor = [Math.floor(W / 2), Math.floor(H / 2)];

  const id = `ddpm-keys-${Math.random().toString(36).slice(2, 9)}`;
  const pad = make("canvas", { class: "ddpm-pad", width: W * cell, height: H * cell, style: `width:${W * cell}px`, tabindex: 0, role: "application",
    "aria-describedby": id, "aria-roledescription": "drawing pad", "aria-label": `${names[0]}: ${W} by ${H} pixels` });
  const result = make("canvas", { role: "img", class: "ddpm-pixels" });
  const busy = make("span", { class: "ddpm-busy", "aria-hidden": "true" }), said = make("output", { class: "ddpm-said", "aria-live": "polite" });
  const swatch = p => make("span", p.color ? { class: "ddpm-swatch", style: `background:rgb(${p.color})` } : { class: `ddpm-swatch ddpm-mark${p.mask}` });
  const palette = paints.map((p, k) => make("button", { type: "button", title: `key ${(k + 1) % 10}`, "aria-pressed": k === chosen, onclick: () => choose(k) }, swatch(p), p.name));
  const button = (text, act) => make("button", { type: "button", text, title: `key ${text[0]}`, onclick: act });
  const fills = button("Fill", () => { filling = !filling; fills.setAttribute("aria-pressed", filling); });
  const brush = make("input", { type: "range", min: 1, max: Math.max(8, model.get("brush")), value: model.get("brush"), "aria-label": "brush, pixels across",
    oninput: () => { across.textContent = brush.value; } });
  const across = make("output", { text: model.get("brush") });
  const tools = make("div", { class: "ddpm-palette" }, fills, button("Undo", undo), button("Clear", clear), button("Start again", restart));
  const keys = make("div", { id, class: "ddpm-keys", text: "Keys: arrows move (Shift: 4 pixels), Space paints, F fills, U undoes, C clears, S starts again, digits choose." });
  const { rows, place, node: controls } = controlRows(model, ask);
  const head = (...parts) => make("div", { class: "ddpm-head" }, ...parts);
  const root = frame(model, el, "pad", make("div", { class: "ddpm-board" }, make("div", {}, head(names[0]), pad), make("div", {}, head(names[1], busy), result),
    make("div", { style: `width:${Math.max(320, W * cell)}px` }, make("div", { class: "ddpm-palette", role: "group", "aria-label": "paints" }, ...palette),
      make("div", { class: "ddpm-row" }, make("span", { text: "brush" }), brush, across), tools, said, keys), controls));

  // ---------------------------------------------------------------- to the kernel and back
  function ask() { // while the kernel is busy the newest state waits, older ones are dropped
    model.set("asked", model.get("asked") + 1);
    root.setAttribute("aria-busy", "true");
    busy.textContent = "drawing ...";
    clearTimeout(patience);
    patience = setTimeout(() => { busy.textContent = "still waiting: drawing needs a running kernel"; }, 8000);
    model.save_changes();
  }
  function send() { clearTimeout(later); model.set("sheet", new DataView(sheet.slice().buffer)); ask(); }
  function answered() {
    if (model.get("answered") !== model.get("asked")) return; // a newer drawing waits
    clearTimeout(patience);
    root.removeAttribute("aria-busy");
  }
  function show() {
    const [h, w, channels] = model.get("shape");
    Object.assign(result, { width: w, height: h });
    result.style.width = `${w * model.get("scale")}px`;
    paint(result, bytes(model.get("image")), 0, channels);
    result.setAttribute("aria-label", model.get("alt"));
    rest(model, rows);
    root.dataset.drawn = +root.dataset.drawn + 1;
  }

  // ---------------------------------------------------------------- painting
  function put(k) {
    const { color, mask } = paints[chosen];
    if (color) sheet.set(color, 4 * k); else sheet[4 * k + 3] = mask;
  }
  function dab([x, y]) { // a disc, and always the pixel that holds (x, y)
    const r = brush.value / 2;
    for (let j = 0; j < H; j++) for (let i = 0; i < W; i++)
      if ((i + 0.5 - x) ** 2 + (j + 0.5 - y) ** 2 < r * r || i === Math.floor(x) && j === Math.floor(y)) put(j * W + i);
  }
  function line([x, y], [u, v]) {
    const n = Math.max(1, Math.ceil(2 * Math.hypot(u - x, v - y)));
    for (let k = 1; k <= n; k++) dab([x + (u - x) * k / n, y + (v - y) * k / n]);
  }
  function fill([x, y]) { // the pixels of about one colour that hang together
    const seed = Math.floor(y) * W + Math.floor(x), open = [seed], seen = new Set(open), was = sheet.slice();
    const alike = k => [0, 1, 2].every(c => Math.abs(was[4 * k + c] - was[4 * seed + c]) <= 40);
    while (open.length) {
      const k = open.pop(), i = k % W;
      put(k);
      for (const n of [i > 0 && k - 1, i < W - 1 && k + 1, k - W, k + W])
        if (n !== false && n >= 0 && n < H * W && !seen.has(n) && alike(n)) { seen.add(n); open.push(n); }
    }
  }
  function remember() { past = [...past.slice(-49), sheet]; sheet = sheet.slice(); }
  function undo() { if (past.length) { sheet = past.pop(); draw(); send(); say("taken back"); } else say("nothing to take back"); }
  function restart() { remember(); sheet = bytes(model.get("start")).slice(); draw(); send(); say("as at the start"); }
  function clear() {
    const ground = paints[0].color;
    remember();
    for (let k = 0; k < H * W; k++) { if (ground) sheet.set(ground, 4 * k); sheet[4 * k + 3] = 0; }
    draw(); send(); say("cleared");
  }
  function choose(k) {
    chosen = k;
    palette.forEach((node, i) => node.setAttribute("aria-pressed", i === k));
    say(`paint: ${paints[k].name}`);
  }

  // ---------------------------------------------------------------- what is seen and heard
  const small = make("canvas", { width: W, height: H }), context = pad.getContext("2d"), stripes = context.createPattern(striped(), "repeat");
  function draw() {
    const rgb = new Uint8Array(3 * H * W);
    for (let k = 0; k < H * W; k++) rgb.set(sheet.subarray(4 * k, 4 * k + 3), 3 * k);
    paint(small, rgb, 0, 3);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, W * cell, H * cell);
    context.fillStyle = stripes;
    for (let k = 0; k < H * W; k++) if (sheet[4 * k + 3]) context.fillRect(k % W * cell, Math.floor(k / W) * cell, cell, cell);
    if (hover) ring(() => context.arc(hover[0] * cell, hover[1] * cell, Math.max(cell, brush.value * cell) / 2, 0, 7));
    if (pad.matches(":focus-visible")) ring(() => context.rect(cursor[0] * cell, cursor[1] * cell, cell, cell));
  }
  function ring(shape) { // seen on every colour: black inside white
    for (const [color, width] of [["white", 4], ["black", 2]]) {
      context.beginPath(); shape();
      Object.assign(context, { strokeStyle: color, lineWidth: width }); context.stroke();
    }
  }
  function say(text) { said.textContent = text; }
  function here() {
    const k = cursor[1] * W + cursor[0], [r, g, b, mask] = sheet.subarray(4 * k, 4 * k + 4);
    const name = paints.find(p => p.color && p.color[0] === r && p.color[1] === g && p.color[2] === b)?.name || "another colour";
    return `column ${cursor[0] + 1}, row ${cursor[1] + 1}: ${name}${mask ? ", marked" : ""}`;
  }

  // ---------------------------------------------------------------- mouse, finger, pen
  function point(event) {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * W, (event.clientY - box.top) / box.height * H];
  }
  pad.addEventListener("pointerdown", event => {
    if (!event.isPrimary || event.button) return;
    pad.setPointerCapture(event.pointerId);
    pad.focus({ preventScroll: true });
    event.preventDefault();
    remember();
    last = point(event);
    filling ? fill(last) : dab(last);
    draw();
  });
  pad.addEventListener("pointermove", event => {
    hover = event.pointerType === "touch" ? null : point(event);
    if (last && event.isPrimary && !filling)
      for (const one of event.getCoalescedEvents?.().concat(event) || [event]) { const next = point(one); line(last, next); last = next; }
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, event => { if (last && event.isPrimary) { last = null; send(); } });
  pad.addEventListener("pointerleave", () => { hover = null; draw(); });

  // ---------------------------------------------------------------- keys
  const acts = { u: undo, c: clear, s: restart, f: () => byKey(fill), " ": () => byKey(dab) };
  function byKey(act) {
    remember(); act([cursor[0] + 0.5, cursor[1] + 0.5]); draw(); say(here());
    clearTimeout(later);
    later = setTimeout(send, 300); // several dabs in a row are one request
  }
  pad.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const k = "1234567890".indexOf(event.key), act = acts[event.key.toLowerCase()];
    if (way) {
      const far = event.shiftKey ? 4 : 1;
      cursor = cursor.map((at, axis) => Math.max(0, Math.min([W, H][axis] - 1, at + way[axis] * far)));
      draw(); say(here());
    } else if (act) act();
    else if (k >= 0 && k < paints.length) choose(k);
    else return;
    event.preventDefault();
  });
  for (const name of ["focus", "blur"]) pad.addEventListener(name, draw);

  const heard = { "change:drawn": show, "change:position": place, "change:answered": answered };
  for (const [name, act] of Object.entries(heard)) model.on(name, act);
  place(); show(); draw();
  return () => {
    clearTimeout(later); clearTimeout(patience); root.undo();
    for (const [name, act] of Object.entries(heard)) model.off(name, act);
  };
}

/** Black and white stripes that show on every colour, half transparent. */
function striped() {
  const tile = make("canvas", { width: 10, height: 10 }), context = tile.getContext("2d");
  for (let y = 0; y < 10; y++) for (let x = 0; x < 10; x++) {
    context.fillStyle = (x + y) % 10 < 5 ? "rgba(255,255,255,0.65)" : "rgba(0,0,0,0.65)";
    context.fillRect(x, y, 1, 1);
  }
  return tile;
}

export default { render };
