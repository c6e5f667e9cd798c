// Codes that appear pass by pass: a board of numbers beside the picture so far, one plan beside another.

function render({ model, el }) {
  const [plans, n, rows, columns, h, w] = model.get("shape"), titles = model.get("titles"), cell = model.get("cell");
  const raw = bytes(model.get("numbers")), codes = new Int16Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
  const sure = bytes(model.get("sure")), films = bytes(model.get("frames")), places = rows * columns, sharp = window.devicePixelRatio || 1;
  const head = 26, gap = 8, wide = columns * cell, high = rows * cell, side = Math.round(high * w / h), panel = wide + gap + side, between = 28;
  const beside = plans * panel + (plans - 1) * between <= 880;
  const width = beside ? plans * panel + (plans - 1) * between : panel, height = beside ? head + high : plans * (head + high + 12);
  const corner = p => beside ? [p * (panel + between), head] : [0, p * (head + high + 12) + head];
  const canvas = make("canvas", { width: width * sharp, height: height * sharp, class: "ddpm-points ddpm-codes", style: `width:${width}px` });
  const reading = make("output", { class: "ddpm-reading" });
  const stage = make("div", { role: "group", tabindex: 0 }, canvas, reading);
  const small = make("canvas", { width: w, height: h }), pen = canvas.getContext("2d");
  let place = -1, shown = 0;

  const at = (p, k, i) => codes[(p * n + k) * places + i];
  const since = (p, i, k) => { while (k > 0 && at(p, k - 1, i) === at(p, k, i)) k--; return k; };
  // the colour of a place: the mean of its pixels in the picture so far
  function colour(p, k, i) {
    const y0 = Math.floor(i / columns) * h / rows, x0 = i % columns * w / columns, sum = [0, 0, 0];
    let count = 0;
    for (let y = Math.floor(y0); y < y0 + h / rows; y++) for (let x = Math.floor(x0); x < x0 + w / columns; x++, count++)
      for (let c = 0; c < 3; c++) sum[c] += films[(((p * n + k) * h + y) * w + x) * 3 + c];
    return sum.map(v => Math.round(v / count));
  }
  function board(p, k, left, top) {
    pen.font = "11px system-ui, sans-serif"; pen.textAlign = "center"; pen.textBaseline = "middle";
    for (let i = 0; i < places; i++) {
      const x = left + i % columns * cell, y = top + Math.floor(i / columns) * cell, code = at(p, k, i);
      const rgb = code < 0 ? [232, 232, 232] : colour(p, k, i), light = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 140;
      pen.fillStyle = `rgb(${rgb})`; pen.fillRect(x, y, cell - 1, cell - 1);
      if (code >= 0) { pen.fillStyle = light ? "#000" : "#fff"; pen.fillText(code, x + cell / 2 - 0.5, y + cell / 2); }
      const fresh = code >= 0 && k > 0 && at(p, k - 1, i) !== code;
      const ring = (color, wide) => { pen.strokeStyle = color; pen.lineWidth = wide; pen.strokeRect(x + 1.5, y + 1.5, cell - 4, cell - 4); };
      if (fresh) ring("#E69F00", 3);
      if (i === place) { ring("#fff", 5); ring("#000", 2); }
    }
  }
  function draw(k) {
    shown = k;
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = "white"; pen.fillRect(0, 0, width, height);
    for (let p = 0; p < plans; p++) {
      const [left, top] = corner(p);
      pen.fillStyle = "#1a1a1a"; pen.font = "600 15px system-ui, sans-serif"; pen.textAlign = "left"; pen.textBaseline = "alphabetic";
      pen.fillText(titles[p], left, top - 9);
      board(p, k, left, top);
      paint(small, films, (p * n + k) * h * w * 3, 3);
      pen.drawImage(small, left + wide + gap, top, side, high);
      for (let i = 0; i < places; i++) if (at(p, k, i) < 0) {
        pen.fillStyle = "#E8E8E8";
        pen.fillRect(left + wide + gap + i % columns * side / columns, top + Math.floor(i / columns) * high / rows, side / columns + 0.5, high / rows + 0.5);
      }
    }
    reading.textContent = place < 0 ? "" : `row ${Math.floor(place / columns) + 1}, column ${place % columns + 1}: `
      + titles.map((title, p) => at(p, k, place) < 0 ? `${title}: not yet`
        : `${title}: code ${at(p, k, place)}, chosen in pass ${since(p, place, k)}, probability ${(sure[(p * n + k) * places + place] / 255).toFixed(2)}`).join("; ");
  }
  function touch(next) {
    if (next === place) return;
    place = next;
    draw(shown);
    canvas.closest("figure").drawn();
  }
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect(), x = (event.clientX - box.left) * width / box.width, y = (event.clientY - box.top) * width / box.width;
    for (let p = 0; p < plans; p++) {
      const [left, top] = corner(p), row = Math.floor((y - top) / cell), column = Math.floor((x - left) / cell);
      if (row >= 0 && row < rows && column >= 0 && column < columns) return touch(row * columns + column);
    }
  });
  canvas.addEventListener("pointerleave", () => touch(-1));
  stage.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    touch(Math.min(places - 1, Math.max(0, place < 0 ? 0 : place + step)));
  });
  stage.addEventListener("blur", () => touch(-1));
  return transport(model, el, "film", stage, draw, n, width);
}

export default { render };
