// Films and sliders that move without a kernel. Their frames were recorded (harvest.py); the widgets are the package's own.
(() => {
  "use strict";
  const recorded = {}, waiting = {};
  window.DDPM_ALIVE = (name, entries) => { recorded[name] = entries; (waiting[name] || []).forEach(go => go()); };

  /** The recordings of one notebook: a script, since a page opened from disk may fetch nothing else. */
  function recordings(name) {
    return new Promise(go => {
      if (recorded[name]) return go(recorded[name]);
      if (!waiting[name]) {
        waiting[name] = [];
        const script = document.createElement("script");
        script.src = `_static/alive/${name}.js`;
        document.head.append(script);
      }
      waiting[name].push(() => go(recorded[name]));
    });
  }

  const decoded = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));

  /** All frames of an AVIF film as RGB bytes: { frames, shape: [n, h, w, 3] }. */
  async function film(text) {
    const decoder = new ImageDecoder({ data: decoded(text), type: "image/avif" });
    await decoder.tracks.ready;
    const n = decoder.tracks.selectedTrack.frameCount, canvas = document.createElement("canvas");
    let frames = null, w = 0, h = 0;
    for (let k = 0; k < n; k++) {
      const { image } = await decoder.decode({ frameIndex: k });
      if (!frames) {
        [w, h] = [canvas.width, canvas.height] = [image.displayWidth, image.displayHeight];
        frames = new Uint8Array(n * w * h * 3);
      }
      const pen = canvas.getContext("2d", { willReadFrequently: true });
      pen.drawImage(image, 0, 0);
      image.close();
      const rgba = pen.getImageData(0, 0, w, h).data;
      for (let i = 0, j = k * w * h * 3; i < rgba.length; i += 4) { frames[j++] = rgba[i]; frames[j++] = rgba[i + 1]; frames[j++] = rgba[i + 2]; }
    }
    return { frames, shape: [n, h, w, 3] };
  }

  /** Recorded steps of places in 8 bits, as the places in 16 bits that the widget wants. */
  function places(text, [panels, n, count]) {
    const steps = decoded(text), row = count * 2, out = new Uint16Array(steps.length);
    for (let p = 0; p < panels; p++) for (let k = 0; k < n; k++) for (let i = 0; i < row; i++) {
      const at = (p * n + k) * row + i;
      out[at] = (steps[at] + (k ? out[at - row] >> 8 : 0)) % 256 << 8;
    }
    return new Uint8Array(out.buffer);
  }

  /** What a widget asks of the kernel's model: traits, and listeners that hear of their change. */
  function model(traits, saved) {
    const heard = {};
    const self = {
      get: name => traits[name],
      set: (name, value) => { traits[name] = value; (heard[`change:${name}`] || []).forEach(f => f()); },
      on: (name, f) => { (heard[name] = heard[name] || []).push(f); },
      off: (name, f) => { heard[name] = (heard[name] || []).filter(g => g !== f); },
      save_changes: () => saved && saved(self),
    };
    return self;
  }

  async function enliven(place) {
    const [name, index] = place.dataset.alive.split("-");
    const entry = (await recordings(name))[index], traits = { error: "", note: "", ...entry };
    let saved = null;
    if (entry.kind === "points") traits.frames = places(entry.steps, entry.shape);
    else Object.assign(traits, await film(entry.film));
    if (entry.kind === "panel") {
      const { frames, shape: [, h, w] } = traits, size = h * w * 3;
      const put = self => {
        const at = entry.controls.reduce((sum, { name }, i) => sum * entry.sizes[i] + self.get("position")[name], 0);
        self.set("image", frames.subarray(at * size, (at + 1) * size));
        self.set("alt", entry.alts[at]);
        self.set("caption", entry.captions[at]);
        self.set("drawn", at);
      };
      Object.assign(traits, { raw: true, shape: [h, w, 3], kind: entry.looks, idle: [], drawn: 0 });
      saved = put;
      put(model(traits));
    }
    const box = document.createElement("div");
    window.DDPM_WIDGETS[entry.kind].render({ model: model(traits, saved), el: box });
    box.querySelector(".ddpm-widget").dataset.looks = entry.looks || "";
    place.replaceChildren(box);
  }

  const near = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(({ target }) => {
    near.unobserve(target);
    enliven(target).catch(problem => console.warn("This film stays a picture here:", problem));
  }), { rootMargin: "600px" });
  if ("ImageDecoder" in window) document.querySelectorAll("[data-alive]").forEach(place => near.observe(place));
})();
