// The page around engine.js: asks it for pictures, shows what it says. A plain script: browsers
// load no modules from the disk, see `started`.

const $ = id => document.getElementById(id);
const EXAMPLES = ["red apple", "rocket", "fox", "smiling cat with heart-eyes", "火箭", "蓝色的心"];
const address = new URLSearchParams(location.search), embedded = address.has("embed");
const BYTES = 9.5e6; // about what is loaded, for the bar
const still = matchMedia("(prefers-reduced-motion: reduce)");
let asked = 0, settings = null, frames = [], worker = null;

// ---------------------------------------------------------------- what is asked

/** "&amp;" is "&", twice, as Python's html.unescape does; tags stay as they are. */
function unescaped(text) {
  const box = document.createElement("textarea");
  for (let i = 0; i < 2; i++) { box.innerHTML = text.replaceAll("<", "&lt;"); text = box.value; }
  return text;
}

function chosen() {
  const seed = Math.min(Math.max(Math.trunc(+$("seed").value) || 0, 0), 2 ** 32 - 1);
  return { prompt: $("prompt").value, seed, steps: +$("steps").value, guidance: +$("guidance").value };
}

async function draw() {
  const { prompt, ...options } = chosen(), id = ++asked, text = unescaped(prompt);
  document.body.dataset.state = "drawing";
  frames = [];
  $("film").replaceChildren();
  Object.assign($("frame"), { max: options.steps, value: 1, disabled: true });
  say(settings ? `Drawing “${prompt}” …` : "Loading the networks …");
  try {
    (await (worker ??= started())).postMessage({ id, prompt: text, options });
  } catch (error) { answers.error(error); }
}

/** The worker, and the settings read. From the disk, where a page may fetch nothing, all of it comes
 * in one script, disk.js: the files in base 64. */
async function started() {
  const disk = location.protocol === "file:" && await script("disk.js", () => window.DISK);
  const bytes = text => Uint8Array.from(atob(text), sign => sign.charCodeAt(0));
  const files = disk && Object.fromEntries(Object.entries(disk).map(([name, text]) => [name, bytes(text)]));
  const engine = disk ? URL.createObjectURL(new Blob([files["engine.js"]])) : "engine.js";
  const text = disk ? new TextDecoder().decode(files["settings.json"]) : await (await fetch("settings.json")).text();
  known(JSON.parse(text));
  const started = new Worker(engine);
  started.onmessage = ({ data }) => { if (data.id === undefined || data.id === asked) answers[data.part](data); };
  started.onerror = event => answers.error({ message: event.message || "the worker could not be started" });
  if (disk) started.postMessage({ disk: files });
  return started;
}

function script(src, result) {
  return new Promise((resolve, reject) => {
    const onerror = () => reject(new Error(`${src} is missing`));
    const node = Object.assign(document.createElement("script"), { src, onload: () => resolve(result()), onerror });
    document.head.append(node);
  });
}

function retell() {
  for (const name of ["steps", "guidance"]) document.querySelector(`output[for=${name}]`).value = $(name).value;
  const { prompt, seed, steps, guidance } = chosen();
  const call = `draw(sd, ${JSON.stringify(prompt)}, seeds=${seed}, steps=${steps}, guidance=${guidance})`;
  $("python").textContent = `from ddpm_edu import load\nfrom ddpm_edu.systems import draw\n\nsd = load("emoji")\nx = ${call}`;
}

// ---------------------------------------------------------------- what is shown

const say = text => { $("status").textContent = text; };
const note = text => { $("note").textContent = text; $("note").hidden = !text; };

/** x (3, H, W) in [-1, 1] on a canvas. */
function paint(canvas, x) {
  const side = Math.sqrt(x.length / 3), n = side * side, image = new ImageData(side, side);
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(x[c * n + i] * 127.5 + 127.5);
    image.data[4 * i + 3] = 255;
  }
  Object.assign(canvas, { width: side, height: side }).getContext("2d").putImageData(image, 0, 0);
}

function light(part, text) {
  for (const li of document.querySelectorAll("#parts li")) {
    if (li.dataset.part === part) li.setAttribute("aria-current", "step");
    else li.removeAttribute("aria-current");
    if (li.dataset.part === part && text) li.querySelector("output").value = text;
  }
}

function show(k) {
  const { picture, label } = frames[k];
  paint($("picture"), picture);
  $("picture").setAttribute("aria-label", `“${$("picture").dataset.prompt}”, ${label}`);
  $("shown").textContent = label;
  $("frame").value = k + 1;
  $("frame").setAttribute("aria-valuetext", label);
  [...$("film").children].forEach((canvas, i) => canvas.classList.toggle("now", i === k));
}

function keep(picture, label) {
  const canvas = document.createElement("canvas");
  paint(canvas, picture);
  $("film").append(canvas);
  frames.push({ picture, label });
}

const answers = {
  loading({ come }) {
    Object.assign($("loading"), { value: come / BYTES, hidden: come >= BYTES });
  },
  tokenizer({ pieces, left, unseen }) {
    $("loading").hidden = true;
    say(`Drawing “${$("prompt").value}” …`);
    $("picture").dataset.prompt = $("prompt").value;
    light("tokenizer", pieces.join(" · ") || "nothing but start and end");
    const notes = [
      unseen.length && `It never saw: ${unseen.join(", ")}. It can only guess what that is.`,
      left && `The prompt is ${left} tokens too long: its end is left out.`,
    ];
    note(notes.filter(Boolean).join(" "));
  },
  text() { light("text", `${settings.length} tokens, ${settings.width} numbers each`); },
  unet({ k, steps, t }) { light("unet", `step ${k + 1} of ${steps}, t = ${t + 1}`); },
  frame({ k, picture }) {
    keep(picture, `x̂₀ after step ${k} of ${$("frame").max}`);
    if (!still.matches) show(frames.length - 1);
  },
  vae() { light("vae", `${settings.size} × ${settings.size} pixels`); },
  picture({ picture, seconds }) {
    keep(picture, "the finished picture");
    $("frame").disabled = false;
    show(frames.length - 1);
    light(null);
    say(`Drawn in ${seconds.toFixed(1)} s.`);
    Object.assign(document.body.dataset, { state: "drawn", seconds, drawn: asked });
  },
  error({ message }) {
    light(null);
    worker = null; // the next try begins anew
    say(`That did not work: ${message}`);
    document.body.dataset.state = "error";
  },
};

// ---------------------------------------------------------------- the controls

function known(read) {
  settings = read;
  const options = read.names.flatMap(([sign, en, zh]) => [[en, sign], [zh, sign]]);
  $("names").replaceChildren(...options.map(([name, sign]) => new Option(sign, name)));
}

$("form").addEventListener("submit", event => { event.preventDefault(); draw(); });
$("form").addEventListener("input", retell);
$("prompt").addEventListener("focus", () => { // for the suggestions
  worker ??= started();
  worker.catch(answers.error);
}, { once: true });
$("next").addEventListener("click", () => { $("seed").value = chosen().seed + 1; retell(); draw(); });
$("frame").addEventListener("input", () => show(+$("frame").value - 1));
for (const name of EXAMPLES) {
  const chip = Object.assign(document.createElement("button"), { type: "button", textContent: name });
  chip.addEventListener("click", () => { $("prompt").value = name; retell(); draw(); });
  if (/\p{Script=Han}/u.test(name)) chip.lang = "zh";
  document.querySelector(".chips").append(chip);
}
function dress() { // light or dark as the book around it
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* none is kept: as the system has it */ }
  if (["light", "dark"].includes(theme)) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
addEventListener("storage", dress);
dress();
if (embedded) {
  document.documentElement.classList.add("embed", address.get("embed") || "whole");
  const grow = () => parent.postMessage({ height: document.body.offsetHeight }, "*");
  new ResizeObserver(grow).observe(document.body);
}
if (address.has("prompt")) $("prompt").value = address.get("prompt");
retell();
if (embedded || navigator.connection?.saveData) say("Press Draw. The first time it loads 10 MB.");
else draw(); // the first picture comes by itself
