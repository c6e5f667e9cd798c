// Draw points in a plane; a small network learns, in the page, to find them in noise. The upper half is the mathematics, which
// tests/browser/test_playground.py holds against torch; the lower half is the page.

// ---------------------------------------------------------------- schedule and noise

export const T = 100; // steps; t counts from 1 on the screen and from 0 here
const f = i => Math.cos((i / T + 0.008) / 1.008 * Math.PI / 2) ** 2; // the cosine schedule, iDDPM eq. 17
export const alpha_bar = [];
for (let t = 0; t < T; t++) alpha_bar.push((alpha_bar[t - 1] ?? 1) * (1 - Math.min(1 - f(t + 1) / f(t), 0.999)));
/** [s, n]: x_t = s x_0 + n eps; t = -1 is the clean point. */
export const signal_noise = t => t < 0 ? [1, 0] : [Math.sqrt(alpha_bar[t]), Math.sqrt(1 - alpha_bar[t])];

/** Uniform and normal numbers of a seed (mulberry32; Box and Muller 1958). */
export function random(seed) {
  const uniform = () => {
    seed = seed + 0x6d2b79f5 | 0;
    let z = Math.imul(seed ^ seed >>> 15, 1 | seed);
    z = z + Math.imul(z ^ z >>> 7, 61 | z) ^ z;
    return ((z ^ z >>> 14) >>> 0) / 2 ** 32;
  };
  return { uniform, normal: () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()) };
}

// ---------------------------------------------------------------- the network

/** C (n, m) = A (n, k) B^T, B (m, k): the one loop where all the time goes, four rows by two columns at once. */
export function multiply(n, m, k, A, B, C) {
  const dot = (s, o) => { let c = 0; for (let i = 0; i < k; i++) c += A[s * k + i] * B[o * k + i]; C[s * m + o] = c; };
  const rows = n - n % 4, columns = m - m % 2;
  for (let s = 0; s < rows; s += 4) for (let o = 0; o < columns; o += 2) {
    const a = s * k, b = a + k, c = b + k, d = c + k, p = o * k, q = p + k;
    let ap = 0, aq = 0, bp = 0, bq = 0, cp = 0, cq = 0, dp = 0, dq = 0;
    for (let i = 0; i < k; i++) {
      const P = B[p + i], Q = B[q + i], w = A[a + i], x = A[b + i], y = A[c + i], z = A[d + i];
      ap += w * P; aq += w * Q; bp += x * P; bq += x * Q; cp += y * P; cq += y * Q; dp += z * P; dq += z * Q;
    }
    let r = s * m + o;
    C[r] = ap; C[r + 1] = aq; r += m; C[r] = bp; C[r + 1] = bq; r += m; C[r] = cp; C[r + 1] = cq; r += m; C[r] = dp; C[r + 1] = dq;
  }
  for (let s = 0; s < n; s++) for (let o = s < rows ? columns : 0; o < m; o++) dot(s, o);
}

function transposed(rows, columns, A) {
  const B = new Float32Array(rows * columns);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) B[c * rows + r] = A[r * columns + c];
  return B;
}

const WAVES = 10, CLOCK = 6; // pairs of cosine and sine of x, and of t
export const WIDTHS = [2 + 2 * WAVES + 2 * CLOCK, 64, 64, 2];

/** v predicted from x_t and t by a multilayer perceptron: features, two hidden layers with SiLU, a linear one.
 *
 * v = s eps - n x_0. The features are x_t, cosines and sines of fixed random projections of it, and of the angle of t.
 */
export class Network {
  constructor(seed = 0) {
    const { normal } = random(seed);
    this.waves = Float32Array.from({ length: 2 * WAVES }, () => 2 * normal());
    this.W = []; this.b = [];
    for (let l = 0; l + 1 < WIDTHS.length; l++) {
      const [k, m] = WIDTHS.slice(l), scale = (l + 2 < WIDTHS.length ? 1.4 : 0.1) / Math.sqrt(k);
      this.W.push(Float32Array.from({ length: m * k }, () => scale * normal()));
      this.b.push(new Float32Array(m));
    }
    this.updates = 0;
    this.moments = this.parameters().map(p => [new Float32Array(p.length), new Float32Array(p.length)]);
  }

  parameters() { return [...this.W, ...this.b]; }

  /** (n, WIDTHS[0]) of points x (n, 2) at times t (n,). */
  features(x, t) {
    const n = t.length, F = WIDTHS[0], out = new Float32Array(n * F);
    for (let i = 0; i < n; i++) {
      let at = i * F;
      const [s, noise] = signal_noise(t[i]), angle = Math.atan2(noise, s), X = x[2 * i], Y = x[2 * i + 1];
      out[at++] = X; out[at++] = Y;
      for (let k = 0; k < WAVES; k++) { const a = this.waves[2 * k] * X + this.waves[2 * k + 1] * Y; out[at++] = Math.cos(a); out[at++] = Math.sin(a); }
      for (let k = 0; k < CLOCK; k++) { out[at++] = Math.cos(2 ** k * angle); out[at++] = Math.sin(2 ** k * angle); }
    }
    return out;
  }

  /** v (n, 2); with `keep`, also what `gradient` needs. */
  forward(x, t, keep) {
    const n = t.length, layers = this.W.length;
    let h = this.features(x, t);
    for (let l = 0; l < layers; l++) {
      const [k, m] = WIDTHS.slice(l), z = new Float32Array(n * m), b = this.b[l];
      multiply(n, m, k, h, this.W[l], z);
      const next = l + 1 < layers ? new Float32Array(n * m) : z;
      const slope = keep && new Float32Array(n * m); // of SiLU: sigmoid(z) (1 + z (1 - sigmoid(z)))
      for (let i = 0; i < n * m; i++) {
        z[i] += b[i % m];
        if (next === z) continue;
        const gate = 1 / (1 + Math.exp(-z[i]));
        next[i] = z[i] * gate;
        if (keep) slope[i] = gate * (1 + z[i] * (1 - gate));
      }
      keep?.push({ h, slope });
      h = next;
    }
    return h;
  }

  /** {loss, gradient: one array a parameter} of the mean of (v_hat - v)^2, worked out backwards layer by layer. */
  gradient(x, t, v) {
    const n = t.length, kept = [], v_hat = this.forward(x, t, kept), gW = [], gb = [];
    let loss = 0, dz = new Float32Array(2 * n);
    for (let i = 0; i < 2 * n; i++) { const d = v_hat[i] - v[i]; loss += d * d / (2 * n); dz[i] = d / n; }
    for (let l = this.W.length - 1; l >= 0; l--) {
      const [k, m] = WIDTHS.slice(l), { h } = kept[l];
      gW[l] = new Float32Array(m * k); gb[l] = new Float32Array(m); // dL/dW = dz^T h, dL/db = the sum of dz
      multiply(m, k, n, transposed(n, m, dz), transposed(n, k, h), gW[l]);
      for (let i = 0; i < n * m; i++) gb[l][i % m] += dz[i];
      if (!l) break;
      const dh = new Float32Array(n * k), { slope } = kept[l - 1]; // dL/dh = dz W, dL/dz = dL/dh SiLU'(z)
      multiply(n, k, m, dz, transposed(m, k, this.W[l]), dh);
      for (let i = 0; i < n * k; i++) dh[i] *= slope[i];
      dz = dh;
    }
    return { loss, gradient: [...gW, ...gb] };
  }

  /** One step of Adam (Kingma and Ba 2014). */
  descend(gradient, rate, beta1 = 0.9, beta2 = 0.98) {
    const k = ++this.updates, c1 = 1 - beta1 ** k, c2 = 1 - beta2 ** k;
    this.parameters().forEach((p, j) => {
      const [m, v] = this.moments[j], g = gradient[j];
      for (let i = 0; i < p.length; i++) {
        m[i] += (1 - beta1) * (g[i] - m[i]);
        v[i] += (1 - beta2) * (g[i] * g[i] - v[i]);
        p[i] -= rate * (m[i] / c1) / (Math.sqrt(v[i] / c2) + 1e-8);
      }
    });
  }
}

// ---------------------------------------------------------------- training and sampling

export const UPDATES = 700, BATCH = 192, RATE = 0.012;

/** x_t, t and v of a batch of the data x_0 (N, 2): Algorithm 1 of DDPM, the times spread evenly. */
export function batch(x_0, { uniform, normal }, size = BATCH) {
  const x_t = new Float32Array(2 * size), v = new Float32Array(2 * size), t = new Int32Array(size), N = x_0.length / 2;
  for (let i = 0; i < size; i++) {
    const k = Math.floor(uniform() * N);
    t[i] = Math.floor((i + uniform()) / size * T);
    const [s, n] = signal_noise(t[i]);
    for (let c = 0; c < 2; c++) {
      const eps = normal(), x = x_0[2 * k + c];
      x_t[2 * i + c] = s * x + n * eps;
      v[2 * i + c] = s * eps - n * x;
    }
  }
  return { x_t, t, v };
}

/** One update; its loss. The rate rises for 30 updates and falls like a cosine to the end. */
export function update(network, x_0, source) {
  const { x_t, t, v } = batch(x_0, source), { loss, gradient } = network.gradient(x_t, t, v), k = network.updates / UPDATES;
  network.descend(gradient, RATE * Math.min(1, (network.updates + 1) / 30) * (0.02 + 0.49 * (1 + Math.cos(Math.PI * Math.min(k, 1)))));
  return loss;
}

/** [{t, x}, ...] from noise x (n, 2) to points, t = T-1, T-3, ..., -1: DDIM with eta = 0. */
export function sample(network, x, every = 2) {
  const frames = [];
  for (let t = T - 1; t >= 0; t -= every) {
    frames.push({ t, x });
    const [s, n] = signal_noise(t), [s_prev, n_prev] = signal_noise(Math.max(t - every, -1)), v = network.forward(x, new Int32Array(x.length / 2).fill(t));
    x = x.map((x_t, i) => s_prev * (s * x_t - n * v[i]) + n_prev * (n * x_t + s * v[i])); // s_prev x0_hat + n_prev eps_hat
  }
  return [...frames, { t: -1, x }];
}

/** The score at points x (n, 2): -eps_hat / n = -x_t - s / n v. */
export function score(network, x, t) {
  const [s, n] = signal_noise(t), v = network.forward(x, new Int32Array(x.length / 2).fill(t));
  return x.map((x_t, i) => -x_t - s / n * v[i]);
}

/** The density of q(x_t), up to a factor, on a grid of side x side cells of the plane: the mean of N(x; s x_0, n^2 + width^2) over the data. */
export function density(x_0, t, side, limit, width = 0.07) {
  const [s, n] = signal_noise(t), variance = n * n + width * width, N = x_0.length / 2, every = Math.ceil(N / 400), out = new Float32Array(side * side);
  const at = i => ((i + 0.5) / side * 2 - 1) * limit, bell = d => Math.exp(-d * d / (2 * variance));
  for (let k = 0; k < N; k += every) { // a bell in the plane is the product of two on the axes
    const across = Float32Array.from({ length: side }, (_, i) => bell(at(i) - s * x_0[2 * k]));
    for (let j = 0; j < side; j++) {
      const high = bell(at(side - 1 - j) - s * x_0[2 * k + 1]);
      if (high > 1e-4) for (let i = 0; i < side; i++) out[j * side + i] += high * across[i];
    }
  }
  return out;
}

// ---------------------------------------------------------------- shapes to begin with

export const SHAPES = {
  spiral: ({ uniform }) => { const r = 1.5 * Math.PI * (1 + 2 * uniform()); return [r * Math.cos(r) / 6, r * Math.sin(r) / 6]; },
  ring: ({ uniform }) => { const a = 2 * Math.PI * uniform(); return [1.7 * Math.cos(a), 1.7 * Math.sin(a)]; },
  "two moons": ({ uniform }) => { const a = Math.PI * uniform(), up = uniform() < 0.5; return up ? [1.3 * Math.cos(a) - 0.6, 1.3 * Math.sin(a) - 0.3] : [0.6 - 1.3 * Math.cos(a), 0.3 - 1.3 * Math.sin(a)]; },
  "eight dots": ({ uniform }) => { const a = Math.PI / 4 * Math.floor(8 * uniform()); return [1.8 * Math.cos(a), 1.8 * Math.sin(a)]; },
  heart: ({ uniform }) => { const a = 2 * Math.PI * uniform(); return [1.9 * Math.sin(a) ** 3, (13 * Math.cos(a) - 5 * Math.cos(2 * a) - 2 * Math.cos(3 * a) - Math.cos(4 * a)) / 8.5]; },
};

// ---------------------------------------------------------------- the page

const SIDE = 400, LIMIT = 3, CELLS = 50, SHOWN = 500; // screen pixels; the plane is [-3, 3]^2; of the density; points sampled
const LAYERS = { // what can be shown: at first, colour
  "density of the noisy data": [true, "#56B4E9"], "points from noise": [true, "#1A1A1A"], paths: [false, "#9A5B7F"], "score arrows": [false, "#B34700"],
};

function render({ model, el }) {
  const source = random(Math.floor(1e6 * Math.random())), x_T = Float32Array.from({ length: 2 * SHOWN }, random(7).normal);
  let x_0 = Float32Array.from(model.get("points")), past = [], network = null, frames = [{ t: T - 1, x: x_T }], at = 0;
  let cursor = [0, 0], last = null, timer = 0, soon = 0, playing = 0, loss = 0, begun = 0, preview = 0;

  const id = `ddpm-keys-${Math.random().toString(36).slice(2, 9)}`, sharp = window.devicePixelRatio || 1;
  const square = attributes => make("canvas", { width: SIDE * sharp, height: SIDE * sharp, class: "ddpm-field", ...attributes });
  const pad = square({ tabindex: 0, role: "application", "aria-roledescription": "drawing plane", "aria-describedby": id, "aria-label": "Draw here: where the points shall be" });
  const view = square({ role: "img", "aria-label": "Nothing is trained yet: points of pure noise" });
  const said = make("output", { class: "ddpm-said", "aria-live": "polite" }), counted = make("div", { class: "ddpm-said" });
  const button = (text, act, more = {}) => make("button", { type: "button", text, onclick: act, ...more });
  const shapes = make("div", { class: "ddpm-palette", role: "group", "aria-label": "shapes to begin with" },
    ...Object.keys(SHAPES).map(name => button(name, () => { shape(name); train(); })));
  const tools = make("div", { class: "ddpm-palette" }, button("Undo", undo), button("Clear", clear), button("Train", () => train(), { class: "ddpm-go" }));
  const keys = make("div", { id, class: "ddpm-keys", text: "Draw with mouse or finger. Keys: arrows move (Shift: further), Space adds points, U undoes, C clears, T trains." });
  const slider = make("input", { type: "range", min: 0, max: 0, value: 0, step: 1, "aria-label": "time, from noise to points", oninput: () => { stop(); show(+slider.value); } });
  const time = make("output", { text: `t = ${T}` }), play = button("▶ Play", () => playing ? stop() : run(), { class: "ddpm-play" });
  const layers = Object.entries(LAYERS).map(([name, [on]]) => {
    const box = make("input", { type: "checkbox", onchange: draw, name });
    box.checked = on;
    return [name, box];
  });
  const choice = make("div", { class: "ddpm-palette", role: "group", "aria-label": "what is shown" }, ...layers.map(([name, box]) =>
    make("label", {}, box, make("span", { class: "ddpm-swatch", style: `background:${LAYERS[name][1]}` }), name)));
  const on = name => layers.find(([own]) => own.startsWith(name))[1].checked;
  const head = text => make("div", { class: "ddpm-head", text });
  const root = frame(model, el, "playground", shapes, make("div", { class: "ddpm-board" },
    make("div", {}, head("Draw here"), pad, tools, keys),
    make("div", {}, head("What the network makes of noise"), view,
      make("div", { class: "ddpm-transport" }, play, slider, time), choice, counted, said)));

  // ---------------------------------------------------------------- drawing by hand
  function add([x, y], n) {
    const more = Array.from({ length: n }, () => [x + 0.05 * source.normal(), y + 0.05 * source.normal()]).flat();
    x_0 = Float32Array.from([...x_0, ...more].slice(-6000)); // 3,000 points at most: the oldest go
    drawPad();
  }
  function remember() { past = [...past.slice(-49), x_0]; halt(); }
  function shape(name) {
    remember();
    x_0 = Float32Array.from(Array.from({ length: 600 }, () => SHAPES[name](source).map(v => v + 0.04 * source.normal())).flat());
    drawPad();
  }
  function undo() { if (past.length) { halt(); x_0 = past.pop(); drawPad(); say("taken back"); later(); } else say("nothing to take back"); }
  function clear() { remember(); x_0 = new Float32Array(0); drawPad(); say("cleared"); }
  function later() { clearTimeout(soon); soon = setTimeout(train, 400); } // several strokes in a row are one training
  function place(event) {
    const box = pad.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width * 2 - 1) * LIMIT, (1 - (event.clientY - box.top) / box.height * 2) * LIMIT];
  }
  pad.addEventListener("pointerdown", event => {
    if (!event.isPrimary || event.button) return;
    pad.setPointerCapture(event.pointerId); pad.focus({ preventScroll: true }); event.preventDefault();
    clearTimeout(soon); remember();
    last = place(event); add(last, 6);
  });
  pad.addEventListener("pointermove", event => {
    if (!last || !event.isPrimary) return;
    const next = place(event), far = Math.hypot(next[0] - last[0], next[1] - last[1]), n = Math.floor(far / 0.02);
    if (!n) return;
    for (let k = 1; k <= n; k++) add([last[0] + (next[0] - last[0]) * k / n, last[1] + (next[1] - last[1]) * k / n], 1);
    last = next;
  });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, event => { if (last && event.isPrimary) { last = null; later(); } });
  pad.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key], far = event.shiftKey ? 0.6 : 0.12;
    const act = { " ": () => { remember(); add(cursor, 12); say(`12 points more, ${x_0.length / 2} in all`); later(); }, u: undo, c: clear, t: train }[event.key.toLowerCase()];
    if (way) {
      cursor = cursor.map((c, axis) => Math.max(-LIMIT, Math.min(LIMIT, c + way[axis] * far)));
      drawPad(); say(`at ${cursor.map(c => c.toFixed(2)).join(", ")}`);
    } else if (act) act();
    else return;
    event.preventDefault();
  });
  for (const name of ["focus", "blur"]) pad.addEventListener(name, drawPad);

  // ---------------------------------------------------------------- training, in slices of 24 ms, so that the page stays alive
  function halt() { clearTimeout(timer); clearTimeout(soon); timer = 0; root.removeAttribute("aria-busy"); }
  function train() {
    halt(); stop();
    if (x_0.length < 40) return say("Draw at least 20 points first.");
    network = new Network(Math.floor(1e6 * source.uniform())); loss = 2; begun = performance.now(); preview = begun;
    root.setAttribute("aria-busy", "true");
    say(`Training on ${x_0.length / 2} points …`);
    tell(); timer = setTimeout(slice);
  }
  function slice() {
    const end = performance.now() + 24;
    do loss += 0.03 * (update(network, x_0, source) - loss); while (network.updates < UPDATES && performance.now() < end);
    if (network.updates >= UPDATES) return finish();
    if (performance.now() > preview + 800) { resample(); preview = performance.now(); }
    count();
    timer = setTimeout(slice);
  }
  function finish() {
    halt(); resample(); count();
    say(`Trained in ${((performance.now() - begun) / 1000).toFixed(1)} s. Move the time, or press Play.`);
    root.drawn();
  }
  function resample() {
    const end = at === frames.length - 1 || frames.length === 1;
    frames = sample(network, x_T);
    slider.max = frames.length - 1;
    show(end ? frames.length - 1 : at);
  }
  function count() { counted.textContent = `update ${network.updates} of ${UPDATES}, loss ${loss.toFixed(2)}`; }
  function tell() { model.set("points", [...x_0].map(v => Math.round(v * 1000) / 1000)); model.save_changes(); }

  // ---------------------------------------------------------------- the time
  function show(k) {
    at = Math.max(0, Math.min(frames.length - 1, k));
    const t = frames[at].t + 1; // as papers count
    slider.value = at; time.textContent = `t = ${t}`;
    slider.setAttribute("aria-valuetext", t ? `t = ${t} of ${T}` : "t = 0: the finished points");
    view.setAttribute("aria-label", `${SHOWN} points at t = ${t}: ${t === T ? "pure noise" : t ? "on the way from noise to what was drawn" : "what the network makes of noise"}`);
    root.dataset.index = at;
    draw();
  }
  function run() { // about four seconds for the whole way
    if (at === frames.length - 1) show(0);
    playing = setInterval(() => at < frames.length - 1 ? show(at + 1) : stop(), 80);
    play.textContent = "❚❚ Pause";
  }
  function stop() { clearInterval(playing); playing = 0; play.textContent = "▶ Play"; }
  function say(text) { said.textContent = text; }

  // ---------------------------------------------------------------- what is seen
  const px = x => (x / LIMIT + 1) / 2 * SIDE, py = y => (1 - y / LIMIT) / 2 * SIDE;
  function fresh(canvas) {
    const pen = canvas.getContext("2d");
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    pen.fillStyle = "white"; pen.fillRect(0, 0, SIDE, SIDE);
    return pen;
  }
  function dots(pen, x, color, r) {
    pen.fillStyle = color; pen.beginPath();
    for (let i = 0; i < x.length; i += 2) { const u = px(x[i]), v = py(x[i + 1]); pen.moveTo(u + r, v); pen.arc(u, v, r, 0, 7); }
    pen.fill();
  }
  function drawPad() {
    const pen = fresh(pad);
    if (!x_0.length) { pen.fillStyle = "#6B6B6B"; pen.font = "16px system-ui, sans-serif"; pen.textAlign = "center"; pen.fillText("draw here", SIDE / 2, SIDE / 2); }
    dots(pen, x_0, "#0072B2", 1.7);
    if (!pad.matches(":focus-visible")) return;
    for (const [color, width] of [["white", 5], ["black", 2]]) {
      pen.strokeStyle = color; pen.lineWidth = width; pen.beginPath(); pen.arc(px(cursor[0]), py(cursor[1]), 8, 0, 7); pen.stroke();
    }
  }
  function draw() {
    const pen = fresh(view), { t, x } = frames[at];
    if (on("density") && x_0.length) heat(pen, t);
    if (on("paths") && at) paths(pen);
    if (on("points")) dots(pen, x, "#1A1A1A", 1.7);
    if (on("score arrows") && network) arrows(pen, Math.max(t, 1));
  }
  const tile = make("canvas", { width: CELLS, height: CELLS });
  function heat(pen, t) { // white to blue
    const q = density(x_0, t, CELLS, LIMIT), most = Math.max(...q), brush = tile.getContext("2d"), image = brush.createImageData(CELLS, CELLS);
    q.forEach((value, i) => image.data.set([86, 180, 233, 215 * Math.sqrt(value / most)], 4 * i));
    brush.putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = true; pen.drawImage(tile, 0, 0, SIDE, SIDE);
  }
  function paths(pen) {
    pen.strokeStyle = "#9A5B7F"; pen.lineWidth = 0.8; pen.globalAlpha = 0.8; pen.beginPath();
    for (let i = 0; i < 2 * SHOWN; i += 10) for (let k = 0; k <= at; k++) pen[k ? "lineTo" : "moveTo"](px(frames[k].x[i]), py(frames[k].x[i + 1]));
    pen.stroke(); pen.globalAlpha = 1;
  }
  function arrows(pen, t) { // as long as the step to where the network believes the clean point, at most one cell
    const n = 15, cell = 2 * LIMIT / n, x = new Float32Array(2 * n * n);
    for (let i = 0; i < n * n; i++) { x[2 * i] = (i % n + 0.5) * cell - LIMIT; x[2 * i + 1] = (Math.floor(i / n) + 0.5) * cell - LIMIT; }
    const slope = score(network, x, t);
    pen.strokeStyle = "#B34700"; pen.lineWidth = 1.5; pen.beginPath();
    for (let i = 0; i < x.length; i += 2) {
      const size = Math.hypot(slope[i], slope[i + 1]), long = 0.9 * cell * Math.tanh(size / 2), dx = slope[i] / size * long, dy = slope[i + 1] / size * long;
      const [u, v, a, b] = [px(x[i]), py(x[i + 1]), px(x[i] + dx), py(x[i + 1] + dy)], turn = Math.atan2(b - v, a - u);
      pen.moveTo(u, v); pen.lineTo(a, b);
      for (const side of [-2.6, 2.6]) { pen.moveTo(a, b); pen.lineTo(a + 5 * Math.cos(turn + side), b + 5 * Math.sin(turn + side)); }
    }
    pen.stroke();
  }

  if (!x_0.length) { shape("spiral"); past = []; }
  drawPad(); show(0);
  say("Draw, choose a shape, or press Train.");
  return () => { halt(); stop(); root.undo(); };
}

/** On a page without a kernel, in the place of what is there. */
export function alone(el) {
  el.replaceChildren();
  const traits = { points: [], caption: "", error: "", note: "" };
  return render({ el, model: { get: name => traits[name], set: (name, value) => { traits[name] = value; }, on() {}, off() {}, save_changes() {} } });
}

export default { render };
