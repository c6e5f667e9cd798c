// UNets to touch: a box a tensor, an arc a skip connection, a bar for the parameters.

function render({ model, el }) {
  const networks = model.get("networks"), colors = model.get("colors"), width = 860, high = 250, low = 70;
  const menu = make("select", { "aria-label": "network", "data-name": "network", onchange: () => choose(menu.selectedIndex, 0) },
    ...networks.map(({ name }) => make("option", { text: name })));
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${high + low}`, width, height: high + low, class: "ddpm-plane ddpm-unet", tabindex: 0,
    role: "slider", "aria-label": "block", "aria-valuemin": 1 });
  const text = make("output", { class: "ddpm-legend", "aria-live": "polite" });
  const root = frame(model, el, "unet", make("div", { class: "ddpm-controls" }, make("div", { class: "ddpm-row" }, make("label", { text: "network" }), menu)),
    svg, text);
  let blocks = [], arcs = [];

  function build() {
    const net = networks[model.get("shown")], points = net.boxes.flat(2).concat(net.arcs.flat());
    const right = Math.max(...points.map(p => p[0])), top = Math.max(...points.map(p => p[1])), bottom = Math.min(...points.map(p => p[1]));
    const sx = (width - 20) / right, sy = Math.min((high - 20) / (top - bottom), 3 * sx);
    const d = (line, end) => line.map(([x, y], i) => `${i ? "L" : "M"}${(10 + x * sx).toFixed(1)},${(10 + (top - y) * sy).toFixed(1)}`).join("") + end;
    const most = Math.max(...net.bars.map(bar => bar[2]));
    svg.replaceChildren(make("svg:text", { x: 10, y: high + 14, class: "ddpm-small", text: "parameters" }));
    arcs = net.arcs.map(line => make("svg:path", { d: d(line, ""), fill: "none", stroke: colors.arc }));
    svg.append(...arcs);
    blocks = net.boxes.map((faces, k) => {
      const [x, w, count] = net.bars[k], tall = Math.max(1, count / most * (low - 22));
      const bar = make("svg:rect", { x: 10 + x * sx, width: Math.max(2, w * sx), y: high + low - 2 - tall, height: tall });
      const group = make("svg:g", { "data-block": k, onpointerenter: () => choose(model.get("shown"), k), onclick: () => choose(model.get("shown"), k) },
        ...faces.map(face => make("svg:path", { d: d(face, "Z"), stroke: "#444", "stroke-width": 0.7 })), bar);
      svg.append(group);
      return group;
    });
    svg.setAttribute("aria-valuemax", blocks.length);
    menu.selectedIndex = model.get("shown");
  }
  function show() {
    const net = networks[model.get("shown")], chosen = model.get("block");
    blocks.forEach((group, k) => {
      const shades = k === chosen ? colors.chosen : colors.plain;
      [...group.children].forEach((node, i) => node.setAttribute("fill", shades[Math.min(i, 2)]));
    });
    arcs.forEach((line, i) => line.setAttribute("stroke-width", net.pairs[i].includes(chosen) ? 3.5 : 1));
    text.textContent = net.words[chosen];
    svg.setAttribute("aria-valuenow", chosen + 1);
    svg.setAttribute("aria-valuetext", net.words[chosen]);
    root.drawn();
  }
  function choose(shown, block) {
    const other = shown !== model.get("shown");
    if (!other && block === model.get("block")) return;
    model.set("shown", shown);
    model.set("block", block);
    model.save_changes();
    if (other) build();
    show();
  }
  svg.addEventListener("keydown", event => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key], last = blocks.length - 1;
    const to = { Home: 0, End: last }[event.key] ?? (way && Math.min(last, Math.max(0, model.get("block") + way)));
    if (to === undefined) return;
    event.preventDefault();
    choose(model.get("shown"), to);
  });
  build(); show();
  return () => root.undo();
}

export default { render };
