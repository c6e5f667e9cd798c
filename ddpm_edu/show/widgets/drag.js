// A plane with a point to drag; the kernel answers every move with one path a name.

function render({ model, el }) {
  const size = model.get("size"), [low, high] = model.get("limits"), span = high - low, styles = model.get("styles");
  const X = x => (x - low) / span * size, Y = y => size - (y - low) / span * size;
  const dots = (points, r) => points.map(([x, y]) => `M${X(x).toFixed(1)},${Y(y).toFixed(1)}h0`).join("");
  const grid = make("svg:g", { class: "ddpm-axis" }), paths = make("svg:g");
  for (let tick = Math.ceil(low); tick <= high; tick++) {
    grid.append(make("svg:path", { d: `M${X(tick)},0V${size}M0,${Y(tick)}H${size}` }));
    if (tick > low && tick < high) grid.append(make("svg:text", { x: X(tick) + 3, y: size - 4, text: tick }), make("svg:text", { x: 3, y: Y(tick) - 3, text: tick }));
  }
  const dot = make("svg:circle", { r: 9, class: "ddpm-dot", tabindex: 0, role: "slider", "aria-label": model.get("label"),
    "aria-valuemin": low, "aria-valuemax": high });
  const svg = make("svg:svg", { viewBox: `0 0 ${size} ${size}`, width: size, height: size, class: "ddpm-plane", role: "group", "aria-label": model.get("alt") },
    grid, make("svg:path", { d: dots(model.get("points")), class: "ddpm-cloud" }), paths, dot);
  const legend = make("div", { class: "ddpm-names" }), live = make("output", { class: "ddpm-legend", "aria-live": "polite" });
  const root = frame(model, el, "drag-point", make("div", { class: "ddpm-side" }, svg, make("div", {}, legend, live)));
  const hidden = new Set();
  let down = false, waiting = 0, speak = 0;

  Object.entries(styles).forEach(([name, { color, dash }]) => {
    const box = make("input", { type: "checkbox", checked: "", "data-name": name,
      onchange: () => { box.checked ? hidden.delete(name) : hidden.add(name); show(); } });
    const line = make("svg:svg", { width: 34, height: 12, "aria-hidden": "true" },
      make("svg:path", { d: "M1,6H33", stroke: color, "stroke-width": 3, "stroke-dasharray": dash }));
    legend.append(make("label", {}, box, line, make("span", { text: name })));
  });
  function show() {
    paths.replaceChildren();
    for (const [name, points] of Object.entries(model.get("paths"))) {
      if (hidden.has(name) || !points.length) continue;
      const { color, dash } = styles[name], [x, y] = points[points.length - 1];
      const d = points.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join("");
      paths.append(make("svg:path", { d, class: "ddpm-halo" }),
        make("svg:path", { d, class: "ddpm-path", stroke: color, "stroke-dasharray": dash, "data-name": name }));
      if (points.length <= 31) paths.append(make("svg:path", { d: dots(points), class: "ddpm-steps", stroke: color }));
      paths.append(make("svg:circle", { cx: X(x), cy: Y(y), r: 5.5, fill: color, class: "ddpm-end" }));
    }
    clearTimeout(speak); // a screen reader hears where the point came to rest, not every move
    speak = setTimeout(() => { live.textContent = model.get("summary"); }, 250);
    root.drawn();
  }
  function place() {
    const [x, y] = model.get("xy");
    dot.setAttribute("cx", X(x)); dot.setAttribute("cy", Y(y));
    dot.setAttribute("aria-valuenow", x.toFixed(2));
    dot.setAttribute("aria-valuetext", `x ${x.toFixed(2)}, y ${y.toFixed(2)}`);
  }
  function move(x, y) {
    const inside = v => Math.min(high, Math.max(low, v));
    model.set("xy", [inside(x), inside(y)]);
    if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; model.save_changes(); });
  }
  function follow(event) {
    const box = svg.getBoundingClientRect();
    move(low + (event.clientX - box.left) / box.width * span, high - (event.clientY - box.top) / box.height * span);
  }
  svg.addEventListener("pointerdown", event => { down = true; svg.setPointerCapture(event.pointerId); dot.focus({ preventScroll: true }); follow(event); event.preventDefault(); });
  svg.addEventListener("pointermove", event => { if (down) follow(event); });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { down = false; });
  dot.addEventListener("keydown", event => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const [x, y] = model.get("xy"), far = span / (event.shiftKey ? 15 : 60);
    move(x + way[0] * far, y + way[1] * far);
  });
  model.on("change:xy", place);
  model.on("change:drawn", show);
  place(); show();
  return () => { clearTimeout(speak); root.undo(); model.off("change:xy", place); model.off("change:drawn", show); };
}

export default { render };
