// What happens between a prompt and the networks, in plain JavaScript: the noise of a seed, the
// tokenizer, the schedule, guidance and DPM-Solver++(2M). The names are those of the Python:
// ddpm_edu/networks/tokenizer.py, schedule.py, samplers.py, diffusion.py. Numbers are float32 in
// arrays and float64 between them; tests/browser/test_live.py holds both against each other.

// ---------------------------------------------------------------- noise, as torch draws it

/** The 32-bit whole numbers of a seed: MT19937 of Matsumoto and Nishimura 1998. */
export function mt19937(seed) {
  const N = 624, M = 397, state = new Uint32Array(N);
  state[0] = seed;
  for (let i = 1; i < N; i++) {
    const before = state[i - 1] ^ (state[i - 1] >>> 30);
    state[i] = Math.imul(1812433253, before) + i;
  }
  let at = N;
  return () => {
    if (at === N) {
      for (let i = 0; i < N; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % N] & 0x7fffffff);
        state[i] = state[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

/** torch.randn(size) of a seed, for sizes that are multiples of 16: Box and Muller 1958.
 *
 * In blocks of 16 uniform numbers u, 24 bits each: with r = sqrt(-2 log(1 - u[j])) and
 * theta = 2 pi u[j + 8], j = 0 ... 7, the normal ones are r cos(theta) and r sin(theta).
 */
export function randn(size, seed) {
  const next = mt19937(seed), x = new Float32Array(size);
  for (let i = 0; i < size; i++) x[i] = (next() & 0xffffff) / 2 ** 24;
  for (let i = 0; i < size; i += 16) {
    for (let j = i; j < i + 8; j++) {
      const r = Math.sqrt(-2 * Math.log(1 - x[j])), theta = 2 * Math.PI * x[j + 8];
      [x[j], x[j + 8]] = [r * Math.cos(theta), r * Math.sin(theta)];
    }
  }
  return x;
}

// ---------------------------------------------------------------- tokenizer

const SPECIAL = ["<|startoftext|>", "<|endoftext|>"];
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/gu; // a digit is a word
const STRAIGHT = { "'": /[ʼ‘’‚‛]/g, '"': /[“”„‟]/g };
const LIGATURES = /[ĲĳŉǄ-ǌǱ-ǳﬀ-ﬄﬆ\u3000\uff01-\uffee]/g; // and wide and half-wide forms
const CONTROL = /[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;

/** Plain characters, single spaces, lower case: what CLIP does first. */
export function clean(text) {
  text = text.replace(LIGATURES, sign => sign.normalize("NFKC"));
  for (const [plain, curly] of Object.entries(STRAIGHT)) text = text.replace(curly, plain);
  return text.replace(CONTROL, "").normalize("NFC").split(/[\s\x85]+/).filter(Boolean).join(" ").toLowerCase();
}

/** The cleaned text's runs of letters, single digits, runs of other signs, Chinese signs. */
export function split_words(text) {
  const words = /\p{Script=Han}|(?:(?!\p{Script=Han})\p{L})+|\p{N}|[^\s\p{L}\p{N}]+/gu;
  return clean(text).match(words) || [];
}

/** The words of a prompt that are not in `words`, a Set, each once: the system never saw them. */
export function unseen(prompt, words) {
  return [...new Set(split_words(prompt))].filter(word => !words.has(word));
}

/** The 256 bytes as visible signs: Latin-1 where it can be seen, else one beyond 255. */
function signs() {
  const shown = [[33, 127], [161, 173], [174, 256]], sign = [];
  for (let b = 0, more = 256; b < 256; b++) {
    const visible = shown.some(([first, end]) => first <= b && b < end);
    sign.push(String.fromCodePoint(visible ? b : more++));
  }
  return sign;
}

/** Byte pair encoding (Sennrich et al. 2016): text to ids, start and end around, then padding. */
export class Tokenizer {
  /** tokens: by id; merges: pairs "a b", the earliest learned first; length: of a row of ids. */
  constructor({ tokens, merges, length }) {
    this.tokens = tokens;
    this.length = length;
    this.id = new Map(tokens.map((token, i) => [token, i]));
    this.rank = new Map(merges.map((pair, i) => [pair, i]));
    this.sign = signs();
    [this.start, this.end] = SPECIAL.map(token => this.id.get(token));
  }

  /** Prompt -> {ids: `length` of them, pieces: the tokens between start and end, left: how many
   * did not fit}. */
  encode(prompt) {
    const ids = this.pieces(clean(prompt)), room = this.length - 2, kept = ids.slice(0, room);
    const fill = Array(room - kept.length).fill(this.end);
    return {
      ids: [this.start, ...kept, this.end, ...fill],
      pieces: kept.map(i => this.spelt(this.tokens[i])),
      left: ids.length - kept.length,
    };
  }

  /** The ids of a cleaned text; the names of the special tokens in it are these tokens. */
  pieces(text) {
    return text.split(/(<\|startoftext\|>|<\|endoftext\|>)/).flatMap(part =>
      SPECIAL.includes(part)
        ? [this.id.get(part)]
        : (part.match(WORDS) || []).flatMap(word => this.word(word)));
  }

  /** The ids of a word: join the neighbours that were learned first, until no pair is known. */
  word(word) {
    let symbols = [...new TextEncoder().encode(word)].map(byte => this.sign[byte]);
    symbols[symbols.length - 1] += "</w>";
    for (;;) {
      const pairs = symbols.slice(1).map((b, i) => this.rank.get(`${symbols[i]} ${b}`) ?? Infinity);
      const best = Math.min(...pairs);
      if (best === Infinity) return symbols.map(symbol => this.id.get(symbol));
      symbols = joined(symbols, pairs, best);
    }
  }

  /** A token as it is read: its bytes as text, without the mark of a word's end. */
  spelt(token) {
    if (SPECIAL.includes(token)) return token;
    const bytes = [...token.replace("</w>", "")].map(sign => this.sign.indexOf(sign));
    return new TextDecoder().decode(new Uint8Array(bytes));
  }
}

/** The symbols with every pair of this rank, from the left, made one. */
function joined(symbols, pairs, rank) {
  const out = [];
  for (let i = 0; i < symbols.length; i++) {
    const join = pairs[i] === rank;
    out.push(join ? symbols[i] + symbols[i + 1] : symbols[i]);
    i += join;
  }
  return out;
}

// ---------------------------------------------------------------- schedule

/** alpha_bar of each t, and the signal and noise left in x_t = s x_0 + n eps. */
export class Schedule {
  constructor(beta) {
    this.T = beta.length;
    this.alpha_bar = new Float64Array(this.T);
    let product = 1;
    for (let t = 0; t < this.T; t++) this.alpha_bar[t] = product *= 1 - beta[t];
  }

  /** alpha_bar falls like a squared cosine (Nichol and Dhariwal 2021, eq. 17). */
  static cosine(T = 1000, s = 0.008, max_beta = 0.999) {
    const f = i => Math.cos(((i / T + s) / (1 + s)) * Math.PI / 2) ** 2;
    return new Schedule(Array.from({ length: T }, (_, t) => Math.min(1 - f(t + 1) / f(t), max_beta)));
  }

  /** [s, n] = [sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)]; t = -1 is the clean picture. */
  signal_noise(t) {
    const alpha_bar = t < 0 ? 1 : this.alpha_bar[t];
    return [Math.sqrt(alpha_bar), Math.sqrt(1 - alpha_bar)];
  }

  /** [x0_hat, eps_hat] of a prediction of v = s eps - n x_0: x0_hat = s x_t - n v,
   * eps_hat = n x_t + s v. */
  split(x_t, v, t) {
    const [s, n] = this.signal_noise(t);
    return [combine([s, x_t], [-n, v]), combine([n, x_t], [s, v])];
  }
}

/** The sum of numbers times arrays. */
export function combine(...terms) {
  const out = new Float32Array(terms[0][1].length);
  for (const [weight, x] of terms) for (let i = 0; i < out.length; i++) out[i] += weight * x[i];
  return out;
}

/** `steps` whole times of 0 ... T-1 that fall evenly from T-1 ("trailing"). */
export function spaced_timesteps(T, steps) {
  return Array.from({ length: steps }, (_, i) => half_to_even((steps - i) * T / steps) - 1);
}

/** Rounded; a half goes to the even neighbour, as in torch. */
function half_to_even(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

// ---------------------------------------------------------------- guidance and sampler

/** uncond + scale (cond - uncond): Ho and Salimans 2022, eq. 6 with scale = 1 + w. */
export function guided(cond, uncond, scale) {
  return combine([scale, cond], [1 - scale, uncond]);
}

/** DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): a straight line through the last two x0_hat.
 *
 * With lambda = log(s / n), h the step in lambda, h_before the one before it:
 * x_prev = s_prev x0_hat + n_prev eps + (s_prev - s n_prev / n) h / (2 h_before) (x0_hat - x0_before).
 * First and last step are first order. look(x_t, t) -> v, a promise. Yields {k, t, x_t, x0_hat, x_prev}.
 */
export async function* dpmpp_2m(look, schedule, x_T, timesteps) {
  const lambda = (s, n) => Math.log(s / n);
  let x = x_T, x0_before = null, lambda_before = 0;
  for (let k = 0; k < timesteps.length; k++) {
    const t = timesteps[k], t_prev = timesteps[k + 1] ?? -1;
    const [x0_hat, eps] = schedule.split(x, await look(x, t), t);
    const [s, n] = schedule.signal_noise(t), [s_prev, n_prev] = schedule.signal_noise(t_prev);
    const terms = [[s_prev, x0_hat], [n_prev, eps]];
    if (x0_before && n_prev > 0) {
      const r = (lambda(s_prev, n_prev) - lambda(s, n)) / (lambda(s, n) - lambda_before);
      const half = (s_prev - s * n_prev / n) * r / 2;
      terms.push([half, x0_hat], [-half, x0_before]);
    }
    const x_prev = combine(...terms);
    [x0_before, lambda_before] = [x0_hat, lambda(s, n)];
    yield { k, t, x_t: x, x0_hat, x_prev };
    x = x_prev;
  }
}

/** A prompt to a picture: yields {part, ...} as each part begins or is done, at last the picture.
 *
 * networks: {text(ids) -> context, unet(x_t, t, context) -> v, vae(z) -> x}, promises of arrays;
 * text and unet take two rows at once, the prompt's and that of the empty text.
 */
export async function* text_to_image(networks, tokenizer, schedule, prompt, options) {
  const { seed, steps, guidance, latent, film = true } = options;
  const text = tokenizer.encode(prompt);
  yield { part: "tokenizer", ...text };
  yield { part: "text" };
  const context = await networks.text([...text.ids, ...tokenizer.encode("").ids]);

  const size = latent[0] * latent[1] * latent[2];
  const look = async (x_t, t) => {
    const v = await networks.unet(new Float32Array([...x_t, ...x_t]), t, context);
    return guided(v.subarray(0, size), v.subarray(size), guidance);
  };
  const timesteps = spaced_timesteps(schedule.T, steps);
  let z = randn(size, seed);
  yield { part: "unet", k: 0, steps, t: timesteps[0] };
  for await (const step of dpmpp_2m(look, schedule, z, timesteps)) {
    z = step.x_prev;
    const k = step.k + 1;
    if (k === steps) break; // the last x0_hat is z itself
    if (film) yield { part: "frame", k, t: step.t, picture: await networks.vae(step.x0_hat) };
    yield { part: "unet", k, steps, t: timesteps[k] };
  }
  yield { part: "vae" };
  yield { part: "picture", z, picture: await networks.vae(z) };
}
