// The networks, in a worker, so that the page stays alive while they run. One message in, what
// `text_to_image` yields out.

const FILES = ["ort", "text", "unet", "vae"]; // gzipped; `.bin`, so that no server unpacks them
let ready = null, newest = 0, files = null; // files: from the page, where it was opened from the disk

/** A file of the page. */
async function file(name) {
  const response = files ? new Response(files[name]) : await fetch(`./${name}`);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

/** A module of the page. */
function module(name) {
  const blob = files && new Blob([files[name]], { type: "text/javascript" });
  return import(files ? URL.createObjectURL(blob) : `./${name}`);
}

/** A file's bytes, unpacked; `come` counts what has arrived. */
async function unpacked(name, come) {
  const count = new TransformStream({
    transform(chunk, next) { come(chunk.length); next.enqueue(chunk); },
  });
  const { body } = await file(`${name}.bin`);
  const stream = body.pipeThrough(count).pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  const [ort, sampler] = await Promise.all([module("ort.mjs"), module("sampler.js")]);
  const settings = await (await file("settings.json")).json();
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
    sampler,
    tokenizer: new sampler.Tokenizer(settings),
    schedule: sampler.Schedule.cosine(settings.T),
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
  const { settings, sampler, tokenizer, schedule, networks } = await (ready ??= load());
  const begun = performance.now();
  options = { latent: settings.latent, ...options };
  const steps = sampler.text_to_image(networks, tokenizer, schedule, prompt, options);
  for await (const step of steps) {
    if (step.part === "tokenizer") step.unseen = sampler.unseen(prompt, new Set(settings.words));
    postMessage({ id, ...step, seconds: (performance.now() - begun) / 1000 });
    await turn();
    if (id !== newest) return;
  }
}

onmessage = async ({ data: { id, prompt, options, disk } }) => {
  if (disk) { files = disk; return; }
  newest = id;
  try {
    await draw(id, prompt, options);
  } catch (error) {
    ready = null; // the next try loads again
    postMessage({ id, part: "error", message: String(error?.message ?? error) });
  }
};
