"""Exercises: text to image. Notebook 09."""

import math

import torch
import torch.nn.functional as F

from .check import Exercise


def _random(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- 09.1  cross-attention


def _attention(queries="z", keys="c", values="c", scale=math.sqrt, over=1):
    """Attention with its ingredients exchanged; `scale` of d divides the products, the softmax runs
    along `over`."""

    def answer(z, c, W_Q, W_K, W_V):
        rows = {"z": z, "c": c}
        q, k, v = rows[queries] @ W_Q, rows[keys] @ W_K, rows[values] @ W_V
        return (q @ k.T / scale(W_Q.shape[1])).softmax(over) @ v

    return answer


def _keys_as_values(z, c, W_Q, W_K, W_V):
    return (z @ W_Q @ (c @ W_K).T / math.sqrt(W_Q.shape[1])).softmax(1) @ (c @ W_K)


def _no_softmax(z, c, W_Q, W_K, W_V):
    return z @ W_Q @ (c @ W_K).T / math.sqrt(W_Q.shape[1]) @ (c @ W_V)


def _weights_only(z, c, W_Q, W_K, W_V):
    return (z @ W_Q @ (c @ W_K).T / math.sqrt(W_Q.shape[1])).softmax(1)


# ---------------------------------------------------------------- 09.2  GEGLU


def _geglu(gate=F.gelu, swap=False, join=torch.mul):
    def answer(x, W, bias):
        a, b = (x @ W + bias).chunk(2, 1)
        return join(b, gate(a)) if swap else join(a, gate(b))

    return answer


def _geglu_no_bias(x, W, bias):
    return _geglu()(x, W, 0 * bias)


def _geglu_by_turns(x, W, bias):
    h = x @ W + bias
    return h[:, ::2] * F.gelu(h[:, 1::2])


# ---------------------------------------------------------------- 09.3  text dropout


def _drop(context, empty, u, p):
    return torch.where((u < p)[:, None, None], empty, context)


def _drop_to_zeros(context, empty, u, p):
    return context * (u >= p)[:, None, None]


def _keep_instead(context, empty, u, p):
    return torch.where((u < p)[:, None, None], context, empty)


def _drop_tokens(context, empty, u, p):
    return torch.where(
        (u < p).any() & (torch.arange(context.shape[1]) < 1)[None, :, None], empty, context
    )


def _drop_all_together(context, empty, u, p):
    return torch.where(u[0] < p, empty.expand_as(context), context)


# ---------------------------------------------------------------- 09.4  the map of a word


def _map(A, places, h, w):
    return A[:, :, places].mean(0).sum(1).reshape(h, w)


def _map_columns(A, places, h, w):
    return A[:, :, places].mean(0).sum(1).reshape(w, h).T


def _map_of(heads, tokens):
    return lambda A, places, h, w: tokens(heads(A[:, :, places])).reshape(h, w)


EMPTY, CONTEXT = _random(1, 1, 3, 4), _random(2, 5, 3, 4)
ATTENTION_CASES = [
    (_random(3, 6, 5), _random(4, 6, 5), *(_random(k, 5, 8) for k in (5, 6, 7))),
    (_random(8, 4, 3), _random(9, 7, 3), *(_random(k, 3, 2) for k in (10, 11, 12))),
]
MAPS = _random(13, 2, 12, 7).softmax(-1)

EXERCISES = {
    "09.1": Exercise(
        reference=_attention(),
        cases=ATTENTION_CASES,
        mistakes=[
            (
                _attention(scale=lambda d: 1),
                "Almost: divide the products by the root of d before the softmax.",
            ),
            (_attention(scale=lambda d: d), "Divide by the ROOT of d, not by d itself."),
            (
                _attention(over=0),
                "The softmax runs along the wrong side: each PLACE divides its attention among "
                "the tokens, so the rows of A sum to 1 (dim=1).",
            ),
            (
                _attention("c", "z", "z"),
                "The wrong way round: the places ask (Q from z), the text answers (K and V from "
                "c).",
            ),
            (_attention("z", "z", "z"), "That is self-attention: K and V come from the text c."),
            (_keys_as_values, "You handed over the keys. The message is V = c W_V."),
            (
                _no_softmax,
                "The softmax is missing: attention is a division into shares that sum to 1.",
            ),
            (_weights_only, "That is A, who looks at whom. Return what they hear: A V."),
        ],
        right="Q from the picture, K and V from the text. These lines are all that connects "
        "words and pixels.",
    ),
    "09.2": Exercise(
        reference=_geglu(),
        cases=[
            (_random(20, 5, 4), _random(21, 4, 6), _random(22, 6)),
            (_random(23, 2, 3), _random(24, 3, 2), _random(25, 2)),
        ],
        mistakes=[
            (
                _geglu(swap=True),
                "The halves are swapped: the first, a, is the value; GELU goes over the second, b.",
            ),
            (_geglu(torch.sigmoid), "A sigmoid gate is plain GLU. Here the gate is GELU(b)."),
            (_geglu(F.relu), "A ReLU gate is ReGLU. Here the gate is GELU(b)."),
            (_geglu(lambda b: b), "Without the GELU there is no gate: a times GELU(b)."),
            (_geglu(join=torch.add), "The gate multiplies: a times GELU(b), not plus."),
            (_geglu_no_bias, "The bias is missing: x W + bias, then the two halves."),
            (
                _geglu_by_turns,
                "You took every other column. The first M columns are a, the last M are b.",
            ),
        ],
        right="One half speaks, the other half decides how loud.",
    ),
    "09.3": Exercise(
        reference=_drop,
        cases=[
            (CONTEXT, EMPTY, torch.tensor([0.05, 0.5, 0.95, 0.02, 0.3]), 0.1),
            (CONTEXT, EMPTY, torch.tensor([0.6, 0.1, 0.8, 0.4, 0.9]), 0.5),
        ],
        mistakes=[
            (
                _drop_to_zeros,
                "A dropped text is the encoding of the empty prompt, not zeros: at sampling time "
                "the network will be asked with that encoding.",
            ),
            (
                _keep_instead,
                "The wrong way round: the text is dropped where u < p, kept elsewhere.",
            ),
            (
                _drop_all_together,
                "You decide once for the whole batch. Every picture has its own u: shape the "
                "mask (B, 1, 1).",
            ),
            (
                _drop_tokens,
                "Whole texts are dropped, all their tokens, and only those of the pictures with "
                "u < p: shape the mask (B, 1, 1).",
            ),
        ],
        right="One network, two models: with text and without.",
    ),
    "09.4": Exercise(
        reference=_map,
        cases=[(MAPS, [2, 3], 3, 4), (MAPS, [5], 4, 3), (MAPS, [0, 1, 6], 2, 6)],
        mistakes=[
            (_map_columns, "The places are numbered row by row: reshape to (h, w) directly."),
            (
                _map_of(lambda m: m.sum(0), lambda m: m.sum(1)),
                "Take the mean over the heads, not their sum.",
            ),
            (
                _map_of(lambda m: m.mean(0), lambda m: m.mean(1)),
                "The tokens of one word add up: sum over its places.",
            ),
            (
                _map_of(lambda m: m[0], lambda m: m.sum(1)),
                "That is the first head alone: take the mean over all heads.",
            ),
            (
                lambda A, places, h, w: A[:, :, places[0]].mean(0).reshape(h, w),
                "A word may have several tokens: add up all of its places.",
            ),
        ],
        right="Read it with care: looking is not using.",
    ),
}
