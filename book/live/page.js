// The page around engine.js: asks it for pictures, shows what it says.

import { unseen } from "./sampler.js";

const $ = id => document.getElementById(id);
const EXAMPLES = ["red apple", "rocket", "fox", "smiling cat with heart-eyes", "火箭", "蓝色的心"];
const address = new URLSearchParams(location.search), embedded = address.has("embed");
const BYTES = 9.5e6; // about what is loaded, for the bar
const still = matchMedia("(prefers-reduced-motion: reduce)");
const worker = new Worker(new URL("./engine.js", import.meta.url), { type: "module" });
let asked = 0, settings = null, frames = [];

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
  try { await known(); } catch (error) { return heard.error(error); }
  worker.postMessage({ id, prompt: text, options });
  const strange = unseen(text, settings.known);
  note(strange.length ? `It never saw: ${strange.join(", ")}. It can only guess what that is.` : "");
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

const heard = {
  loading({ come }) {
    Object.assign($("loading"), { value: come / BYTES, hidden: come >= BYTES });
  },
  ready() { say("Ready."); },
  tokenizer({ pieces, left }) {
    $("loading").hidden = true;
    say(`Drawing “${$("prompt").value}” …`);
    $("picture").dataset.prompt = $("prompt").value;
    light("tokenizer", pieces.join(" · ") || "nothing but start and end");
    if (left) note(`The prompt is ${left} tokens too long: its end is left out.`);
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
    say(`That did not work: ${message}`);
    document.body.dataset.state = "error";
  },
};

worker.onmessage = ({ data }) => { if (data.id === undefined || data.id === asked) heard[data.part](data); };
worker.onerror = event => heard.error({ message: event.message || "the worker could not be started" });

// ---------------------------------------------------------------- the controls

let asking = null;
function known() {
  return (asking ??= fetch("./settings.json").then(answer => answer.json()).then(read => {
    settings = { ...read, known: new Set(read.words) };
    const options = read.names.flatMap(([sign, en, zh]) => [[en, sign], [zh, sign]]);
    $("names").replaceChildren(...options.map(([name, sign]) => new Option(sign, name)));
  }));
}

$("form").addEventListener("submit", event => { event.preventDefault(); draw(); });
$("form").addEventListener("input", retell);
$("next").addEventListener("click", () => { $("seed").value = chosen().seed + 1; retell(); draw(); });
$("frame").addEventListener("input", () => show(+$("frame").value - 1));
for (const name of EXAMPLES) {
  const chip = Object.assign(document.createElement("button"), { type: "button", textContent: name });
  chip.addEventListener("click", () => { $("prompt").value = name; retell(); draw(); });
  if (/\p{Script=Han}/u.test(name)) chip.lang = "zh";
  document.querySelector(".chips").append(chip);
}
function dress() { // light or dark as the book around it
  const theme = localStorage.getItem("theme");
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
