// A film of points: coloured dots that trail their paths, one square plane beside another.

function render({ model, el }) {
  const [panels, n, count] = model.get("shape"), titles = model.get("titles"), side = model.get("side"), head = titles.some(t => t) ? 24 : 0;
  const gap = 16, width = panels * side + (panels - 1) * gap, sharp = window.devicePixelRatio || 1;
  const raw = bytes(model.get("frames")), data = new Uint16Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
  const groups = model.get("groups"), colors = model.get("colors"), tail = model.get("trail"), every = model.get("trail_every");
  const canvas = make("canvas", { width: width * sharp, height: (side + head) * sharp, role: "img", class: "ddpm-points", style: `width:${width}px` });
  const pen = canvas.getContext("2d");
  const members = colors.map((_, g) => groups.flatMap((of, i) => of === g ? [i] : []));
  // 0 ... 65535 spans twice the plane: points outside it leave the picture instead of sticking to its edge
  const at = (panel, k, i, axis) => {
    const v = data[((panel * n + k) * count + i) * 2 + axis] / 65535 * 2 - 0.5;
    return axis ? head + (1 - v) * side : panel * (side + gap) + v * side;
  };
  function draw(k) {
    pen.setTransform(sharp, 0, 0, sharp, 0, 0);
    pen.fillStyle = "white"; pen.fillRect(0, 0, width, side + head);
    for (let p = 0; p < panels; p++) {
      const left = p * (side + gap);
      pen.fillStyle = "#1a1a1a"; pen.font = "15px system-ui, sans-serif"; pen.textAlign = "center";
      pen.fillText(titles[p], left + side / 2, 16);
      pen.save();
      pen.beginPath(); pen.rect(left, head, side, side); pen.clip();
      members.forEach((of, g) => {
        pen.strokeStyle = pen.fillStyle = colors[g];
        pen.globalAlpha = 0.55; pen.lineWidth = 1.2; pen.beginPath();
        for (const i of of) {
          if (i % every || !tail) continue;
          for (let j = Math.max(0, k - tail); j <= k; j++)
            pen[j === Math.max(0, k - tail) ? "moveTo" : "lineTo"](at(p, j, i, 0), at(p, j, i, 1));
        }
        pen.stroke();
        pen.globalAlpha = 0.9; pen.beginPath();
        for (const i of of) { const x = at(p, k, i, 0), y = at(p, k, i, 1); pen.moveTo(x + 2.2, y); pen.arc(x, y, 2.2, 0, 7); }
        pen.fill();
      });
      pen.restore();
      pen.globalAlpha = 1; pen.strokeStyle = "#999"; pen.lineWidth = 1; pen.strokeRect(left + 0.5, head + 0.5, side - 1, side - 1);
    }
  }
  return transport(model, el, "film", canvas, draw, n, width);
}

export default { render };
