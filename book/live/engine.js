// The networks, in a worker, so that the page stays alive while they run. One message in, what
// `text_to_image` yields out.

import * as ort from "./ort.mjs";
import { Schedule, Tokenizer, text_to_image } from "./sampler.js";

const FILES = ["ort", "text", "unet", "vae"]; // gzipped; `.bin`, so that no server unpacks them
let ready = null, newest = 0;

/** A file's bytes, unpacked; `come` counts what has arrived. */
async function unpacked(name, come) {
  const response = await fetch(`./${name}.bin`);
  if (!response.ok) throw new Error(`${name}.bin: ${response.status} ${response.statusText}`);
  const count = new TransformStream({
    transform(chunk, next) { come(chunk.length); next.enqueue(chunk); },
  });
  const stream = response.body.pipeThrough(count).pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  const settings = await (await fetch("./settings.json")).json();
  let come = 0;
  const more = n => postMessage({ part: "loading", come: come += n });
  const [wasm, ...networks] = await Promise.all(FILES.map(name => unpacked(name, more)));
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const sessions = [];
  for (const network of networks) sessions.push(await ort.InferenceSession.create(network));
  const [text, unet, vae] = sessions, [C, H, W] = settings.latent;
  const run = async (session, inputs) => {
    const out = await session.run(inputs);
    return out[session.outputNames[0]].data;
  };
  const float = (data, ...dims) => new ort.Tensor("float32", data, dims);
  const [B, L, D] = [2, settings.length, settings.width];
  return {
    settings,
    tokenizer: new Tokenizer(settings),
    schedule: Schedule.cosine(settings.T),
    networks: {
      text: ids => run(text, { ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [B, L]) }),
      unet: (x_t, t, context) => run(unet, {
        x_t: float(x_t, B, C, H, W), t: float([t, t], B), context: float(context, B, L, D),
      }),
      vae: z => run(vae, { z: float(z, 1, C, H, W) }),
    },
  };
}

/** A turn for the messages that wait: a newer prompt stops this one. */
const turn = () => new Promise(resolve => setTimeout(resolve));

async function draw(id, prompt, options) {
  const { settings, tokenizer, schedule, networks } = await (ready ??= load());
  const begun = performance.now();
  options = { latent: settings.latent, ...options };
  for await (const step of text_to_image(networks, tokenizer, schedule, prompt, options)) {
    postMessage({ id, ...step, seconds: (performance.now() - begun) / 1000 });
    await turn();
    if (id !== newest) return;
  }
}

onmessage = async ({ data: { id, prompt, options } }) => {
  newest = id ?? newest;
  try {
    if (prompt === undefined) { await (ready ??= load()); postMessage({ part: "ready" }); }
    else await draw(id, prompt, options);
  } catch (error) {
    ready = null; // the next try loads again
    postMessage({ id, part: "error", message: String(error?.message ?? error) });
  }
};
