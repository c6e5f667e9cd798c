"""Pictures as codes: one after another, or by absorbing diffusion, many at once. Notebook 15.

A picture is N codes of a book, gpt(codes (B, n), text (B, S)) -> logits (B, n, codes) any network
like `networks/gpt.py`'s, with config.codes, config.places and the number `unknown`.

    in order    -log p(c) = sum_i -log p(c_i | c_1 .. c_(i-1))               Ramesh et al. 2021
    absorbing   q(x_t | c): each code is [UNKNOWN] with probability m_t      Austin et al. 2021
                                                    (D3PM, arXiv 2107.03006, appendix A.3)

The second is diffusion whose noise is absence: m_T = 1, and what is known at t is right. Its way
back asks for p(c_i | what is known), so that any order of places can be drawn, several at once.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import OptionError, ShapeError, code_numbers, in_range, whole

MOST_EXACT = 12  # places of which `bound` asks for all 2^N - 1 sets


class CodeStep(NamedTuple):
    """One step of drawing."""

    codes: Tensor  # (B, N) after this step; [UNKNOWN], the number gpt.unknown, where not known
    known: Tensor  # (B, N) bool
    confidence: Tensor  # (B, N) in [0, 1]: p of the code that was drawn there, last time; 0: none


# ---------------------------------------------------------------- training


def next_code_loss(gpt, codes: Tensor, text: Tensor) -> Tensor:
    """Mean over pictures and places of -log p(c_i | text, c_1 .. c_(i-1)), in nats a code.

    codes (B, N), text (B, S). The chain rule: N times it is -log p(c | text) exactly.
    """
    _known(gpt, codes)
    return _cross_entropy(gpt(codes, text), codes).mean()


def masked_loss(
    gpt, codes: Tensor, text: Tensor, *, count: Tensor | None = None, generator=None
) -> Tensor:
    """Mean over the unknown places of -log p(c_i | text, what is known), in nats a code.

    Of each picture `count` (B,) random places are unknown, uniform in 1..N unless given; then its
    expectation is `bound` / N. MaskGIT asks more often for many: see `cosine_counts`.
    """
    _known(gpt, codes)
    n = codes.shape[1]
    count = _uniform_counts(len(codes), n, generator) if count is None else count
    unknown = _random_sets(count, n, generator).to(codes.device)
    value = _cross_entropy(gpt(codes.masked_fill(unknown, gpt.unknown), text), codes)
    return ((value * unknown).sum(1) / unknown.sum(1)).mean()


def cosine_counts(batch: int, places: int, generator=None) -> Tensor:
    """How many codes are unknown, (batch,): ceil(N cos(pi u / 2)), u uniform (MaskGIT, 3.3)."""
    u = torch.rand(batch, generator=generator)
    return (places * (math.pi / 2 * u).cos()).ceil().long().clamp(1, places)


def _uniform_counts(batch, places, generator):
    return torch.randint(1, places + 1, (batch,), generator=generator)


def _random_sets(count, places, generator):
    """(B, N) bool: `count` random places of each row."""
    rank = torch.rand(len(count), places, generator=generator).argsort(1).argsort(1)
    return rank < count[:, None]


def _known(gpt, codes):
    code_numbers(codes, ("B", "n"), gpt.config.codes, gpt.config.places)


def _cross_entropy(logits, codes):
    """-log softmax(logits)[code], (B, n)."""
    return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")


# ---------------------------------------------------------------- the bound


def plan(steps: int) -> Tensor:
    """m, the share of codes that is unknown after step 0, 1 .. steps: cos(pi / 2 s / steps).

    (steps + 1,) from 1 to 0: few at first, while little is known (MaskGIT, 3.3).
    """
    whole("steps", steps, 1, 10**6, "one call of the network each")
    m = (math.pi / 2 * torch.arange(steps + 1, dtype=torch.float64) / steps).cos()
    m[-1] = 0
    return m


@torch.no_grad()
def bound(
    gpt, codes: Tensor, text: Tensor, *, steps: int | None = None, draws: int = 0, generator=None
) -> Tensor:
    """A bound on -log p(codes | text), (B,), in nats: what absorbing diffusion is trained by.

    The ELBO is a sum of KL(q(x_s | x_t, c) || p(x_s | x_t)), s the time before t. An unknown code
    becomes known with r = (m_t - m_s) / m_t, whatever it is, and p differs from q only in which
    code that is, so a KL is r (-log p(c_i | x_t)), summed over the unknown places i. Therefore

        -log p(c) <= sum over sets M of places: w_|M| sum_(i in M) -log p(c_i | c outside M)
        w_k = sum_t r_t m_t^k (1 - m_t)^(N - k)                                in `steps` steps
        w_k = int_0^1 m^(k - 1) (1 - m)^(N - k) dm = 1 / (k C(N, k))         in infinitely many

    whatever the plan m (Sahoo et al. 2024, arXiv 2406.07524, eq. 10). The last w is the mean over
    all N! orders of the chain rule: the bound is -log p(c) itself where gpt knows the exact
    p(c_i | what is known). In fewer steps codes that appear together are drawn as if independent,
    and that is what the bound then costs more.

    steps: of `plan`; None: infinitely many.  draws: random sets a picture; 0: all of them, for at
    most 12 places. The weights sum to N over all (M, i in M): a gpt that knows nothing gets
    N log(codes).
    """
    _known(gpt, codes)
    n = codes.shape[1]
    whole("draws", draws, 0, 10**6, "0 for all sets")
    if not draws and n > MOST_EXACT:
        raise OptionError(f"draws = 0 asks for 2^{n} sets of places: pass draws = 100, say")
    if not draws:
        sets = torch.tensor(list(itertools.product([False, True], repeat=n))[1:])
        weight = _weights(n, steps)[sets.sum(1)]
        terms = [w * _unknown_sum(gpt, codes, text, m) for w, m in zip(weight.tolist(), sets)]
        return torch.stack(terms).sum(0)
    total = torch.zeros(len(codes), dtype=torch.float64)
    # Of k unknown codes: w_k C(N, k) k is how much of the bound's N they carry.
    size = torch.arange(n + 1, dtype=torch.float64)
    choose = torch.tensor([math.comb(n, k) for k in range(n + 1)], dtype=torch.float64)
    share = _weights(n, steps) * choose * size
    for _ in range(draws):
        count = torch.multinomial(share.expand(len(codes), -1), 1, generator=generator)[:, 0]
        value = _unknown_sum(gpt, codes, text, _random_sets(count, n, generator))
        total += share.sum() * value / count
    return total / draws


def _weights(places, steps):
    """w_k, k = 0 .. N, (N + 1,) float64; w_0 counts nothing."""
    if steps is None:
        return torch.tensor([0.0] + [1 / (k * math.comb(places, k)) for k in range(1, places + 1)])
    m, k = plan(steps), torch.arange(places + 1, dtype=torch.float64)
    r = (m[:-1] - m[1:]) / m[:-1]
    m = m[:-1, None]
    return (r[:, None] * m**k * (1 - m) ** (places - k)).sum(0)


def _unknown_sum(gpt, codes, text, unknown):
    """sum_(i in M) -log p(c_i | c outside M), (B,) float64; unknown (N,) or (B, N): M."""
    unknown = unknown.to(codes.device)
    value = _cross_entropy(gpt(codes.masked_fill(unknown, gpt.unknown), text).double(), codes)
    return (value * unknown).sum(1).cpu()


# ---------------------------------------------------------------- drawing


def autoregressive(
    gpt,
    text: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    guidance: float = 1.0,
    empty: Tensor | None = None,
    generator=None,
    cached: bool = True,
) -> Iterator[CodeStep]:
    """One code after another, c_i ~ p(c_i | text, c_1 .. c_(i-1)): N steps for text (B, S).

    temperature: p^(1 / temperature), 0 takes the most likely code.  top_k: only so many of the
    likeliest; 0: all.  guidance: see `guided_logits`, which takes `empty`.  generator: None, a
    torch.Generator, or a list of one a picture.  cached: with the KV cache, which changes nothing
    but the time.
    """
    logits_of = _asked(gpt, text, guidance, empty, gpt.new_cache() if cached else None)
    _check_drawing(gpt, temperature, top_k)
    return _in_order(gpt, logits_of, len(text), (temperature, top_k, generator))


def _in_order(gpt, logits_of, batch, how):
    step = _nothing(gpt, batch)
    for i in range(gpt.config.places):
        code, p = _drawn(logits_of(step.codes[:, : i + 1])[:, -1:], *how)
        here = torch.arange(gpt.config.places) == i
        step = CodeStep(
            torch.where(here, code, step.codes),
            step.known | here,
            torch.where(here, p, step.confidence),
        )
        yield step


def masked(
    gpt,
    text: Tensor,
    steps: int = 8,
    *,
    temperature: float = 1.0,
    guidance: float = 1.0,
    empty: Tensor | None = None,
    shuffle: float = 1.0,
    generator=None,
) -> Iterator[CodeStep]:
    """Parallel decoding (MaskGIT, 3.2): each step draws all unknown codes, keeps the surest.

    As many stay unknown as `unknown_after` says: the codes with the least

        log p(c_i) + shuffle (1 - s / steps) Gumbel noise

    shuffle 0: by confidence alone, which draws the common before the rare. A large one: any order,
    the reverse process of `bound`.  The rest: see `autoregressive`.
    """
    logits_of = _asked(gpt, text, guidance, empty)
    _check_drawing(gpt, temperature, 0)
    whole("steps", steps, 1, gpt.config.places, "at least one code a step")
    in_range("shuffle", shuffle, 0, 10**6)
    left = unknown_after(steps, gpt.config.places)
    return _in_parallel(gpt, logits_of, len(text), left, shuffle, (temperature, 0, generator))


def unknown_after(steps: int, places: int) -> list[int]:
    """Codes that are unknown after step 0, 1 .. steps: N `plan`, but at least one fewer each time.

    `places` steps: one code each.
    """
    left = [places]
    for share in plan(steps).tolist()[1:]:
        left.append(min(math.floor(places * share + 1e-9), left[-1] - 1))
    return left


def _in_parallel(gpt, logits_of, batch, left, shuffle, how):
    step, steps = _nothing(gpt, batch), len(left) - 1
    for s in range(1, steps + 1):
        code, p = _drawn(logits_of(step.codes), *how)
        order = p.log() + shuffle * (1 - s / steps) * _gumbel(p, how[-1])
        order = order.masked_fill(step.known, torch.inf)  # what is known stays
        known = order.argsort(1).argsort(1) >= left[s]
        codes = torch.where(known & ~step.known, code, step.codes)
        step = CodeStep(codes, known, torch.where(step.known, step.confidence, p))
        yield step


def guided_logits(with_text: Tensor, without: Tensor, guidance: float) -> Tensor:
    """without + guidance (with_text - without), as in `guided`, of logits (B, n, codes).

    Up to a factor p(c | text)^guidance p(c)^(1 - guidance): 1 is plain, above it the text counts
    more.
    """
    return without + guidance * (with_text - without)


def _asked(gpt, text, guidance, empty, cache=None) -> Callable:
    """codes (B, n) -> guided logits; both halves in one call, without gradients."""
    in_range("guidance", guidance, 0, 100, "1 is none, 2 to 4 are usual")
    if guidance != 1 and (empty is None or empty.shape != (1, text.shape[1])):
        cause = "is missing" if empty is None else f"has shape {tuple(empty.shape)}"
        raise ShapeError(
            f"empty, the tokens of no caption, {cause}: guidance = {guidance} takes "
            f"(1, {text.shape[1]}), such as tokenizer([''])"
        )
    more = {} if cache is None else {"cache": cache}

    @torch.no_grad()
    def ask(codes):
        if guidance == 1:
            return gpt(codes, text, **more)
        both = torch.cat([text, empty.expand_as(text)])
        return guided_logits(*gpt(torch.cat([codes, codes]), both, **more).chunk(2), guidance)

    return ask


def _check_drawing(gpt, temperature, top_k):
    in_range("temperature", temperature, 0, 100, "1 is the model's own, 0 the likeliest code")
    whole("top_k", top_k, 0, gpt.config.codes, "0 for all")


def _nothing(gpt, batch):
    codes = torch.full((batch, gpt.config.places), gpt.unknown)
    return CodeStep(codes, codes != gpt.unknown, torch.zeros(codes.shape))


def _drawn(logits, temperature, top_k, generator):
    """Codes (B, n) and the probability that each had before temperature and top-k.

    The largest of log p / temperature + Gumbel noise is a draw from p^(1 / temperature).
    """
    log_p = logits.float().log_softmax(-1)
    if top_k:
        least = log_p.topk(top_k, -1).values[..., -1:]
        chosen = log_p.masked_fill(log_p < least, -torch.inf)
    else:
        chosen = log_p
    noise = temperature * _gumbel(log_p, generator) if temperature else 0
    code = (chosen + noise).argmax(-1)
    return code, log_p.gather(-1, code[..., None])[..., 0].exp()


def _gumbel(like, generator):
    """-log(-log u), u uniform, shaped like it: one generator for all, or one a row."""
    if isinstance(generator, (list, tuple)):
        if len(generator) != len(like):
            raise ShapeError(f"{len(generator)} generators for {len(like)} pictures: pass one each")
        u = torch.stack([torch.rand(like.shape[1:], generator=g) for g in generator])
    else:
        u = torch.rand(like.shape, generator=generator)
    return -(-u.clamp(min=1e-30).log()).clamp(min=1e-30).log().to(like)
