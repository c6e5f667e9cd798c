"""Exercises: SDXL. Notebook 12."""

import torch

from ..networks.unet import timestep_embedding
from .check import Exercise

# ---------------------------------------------------------------- 12.1  parameters of a transformer
# block


def _block(
    attn1=lambda c: 4 * c**2 + c,
    attn2=lambda c, d: 2 * c**2 + 2 * c * d + c,
    ff=lambda c: 12 * c**2 + 9 * c,
    norms=lambda c: 6 * c,
):
    """An answer whose self-attention, cross-attention, feed-forward or norms may be miscounted."""
    return lambda c, d: attn1(c) + attn2(c, d) + ff(c) + norms(c)


def _no_bias(attn1, attn2, ff):
    return _block(
        lambda c: 4 * c**2 + attn1 * c,
        lambda c, d: 2 * c**2 + 2 * c * d + attn2 * c,
        lambda c: 12 * c**2 + ff * c,
    )


BLOCK_CASES = [(320, 768), (640, 2048), (1280, 2048), (768, 1280)]


# ---------------------------------------------------------------- 12.2  the vector of SDXL


def _embed(number, dim=256):
    return timestep_embedding(torch.tensor([float(number)]), dim)[0]


def _vector(
    order=lambda size, crop, target: [*size, *crop, *target], embed=_embed, pooled_first=True
):
    """An answer that may tell other numbers, embed them otherwise, or put the parts the other way
    round."""

    def answer(pooled, original_size, crop, target_size, dim=256):
        sizes = torch.cat(
            [embed(number, dim) for number in order(original_size, crop, target_size)]
        ).expand(len(pooled), -1)
        return torch.cat([pooled, sizes] if pooled_first else [sizes, pooled], dim=1)

    return answer


def _sines_first(number, dim):
    cos, sin = _embed(number, dim).chunk(2)
    return torch.cat([sin, cos])


def _plain(pooled, original_size, crop, target_size, dim=256):
    sizes = torch.tensor([*original_size, *crop, *target_size], dtype=torch.float32).expand(
        len(pooled), -1
    )
    return torch.cat([pooled, sizes], dim=1)


def _pooled(seed, batch, width=1280):
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))


VECTOR_CASES = [
    (_pooled(1, 2), (1024, 768), (0, 96), (1152, 896)),
    (_pooled(2, 1), (300, 500), (40, 8), (1024, 512)),
    (_pooled(3, 2, 64), (60, 90), (0, 5), (24, 40), 16),
]


# ---------------------------------------------------------------- 12.3  who does which timestep


def _by(belongs_to_base):
    """An answer that gives the base those times t for which the rule says so."""

    def split(times, T, handover):
        base = [t for i, t in enumerate(times) if belongs_to_base(t, T, handover, i, len(times))]
        return base, [t for t in times if t not in base]

    return split


def _right(times, T, handover):
    limit = T - handover * T
    return [t for t in times if t >= limit], [t for t in times if t < limit]


SPLIT_CASES = [
    ([901, 801, 701, 601, 501, 401, 301, 201, 101, 1], 1000, 0.75),
    ([999, 600, 400, 200, 60], 1000, 0.5),
    ([900, 500, 250, 249], 1000, 0.75),
    ([95, 75, 50, 25, 10], 100, 0.25),
    ([800, 600, 400, 200], 1000, 1.0),
]


EXERCISES = {
    "12.1": Exercise(
        reference=_block(),
        cases=BLOCK_CASES,
        tolerance=1e-12,
        mistakes=[
            (
                _block(attn2=lambda c, d: 4 * c**2 + c),
                "Cross-attention takes its K and V from the text, which is D numbers wide: those "
                "two matrices have D x C entries, not C x C.",
            ),
            (
                _block(attn2=lambda c, d: 0, norms=lambda c: 4 * c),
                "Cross-attention is missing, with the norm before it.",
            ),
            (
                _block(attn2=lambda c, d: 0),
                "Cross-attention is missing: Q and the output C x C, K and V from the text.",
            ),
            (
                _block(attn2=lambda c, d: c**2 + 3 * c * d + c),
                "Cross-attention: only K and V come from the text. Q comes from the picture, so "
                "it is C x C.",
            ),
            (
                _block(ff=lambda c: 8 * c**2 + 5 * c),
                "The feed-forward is a GEGLU: its first layer makes 8 C numbers, half of them "
                "gates, so 4 C are left for the second layer.",
            ),
            (
                _block(ff=lambda c: 16 * c**2 + 9 * c),
                "The gate of the GEGLU halves the width: the second layer of the feed-forward "
                "takes 4 C numbers, not 8 C.",
            ),
            (
                _block(norms=lambda c: 0),
                "The three LayerNorms are missing: each has a scale and a shift for every "
                "channel, 2 C.",
            ),
            (
                _block(norms=lambda c: 3 * c),
                "A LayerNorm has a scale and a shift: 2 C, three times.",
            ),
            (
                _no_bias(4, 4, 9),
                "Q, K and V have no bias here; of the four matrices of an attention only the "
                "output has one.",
            ),
            (
                _no_bias(0, 0, 0),
                "The biases are missing: attention's output (C, twice) and both layers of the "
                "feed-forward (8 C and C).",
            ),
            (
                _no_bias(0, 0, 9),
                "The bias of attention's output is missing, C in each of the two attentions.",
            ),
        ],
        right="18 C^2 + 2 C D + 17 C: at 1280 channels one block alone has more than 34 million.",
    ),
    "12.2": Exercise(
        reference=_vector(),
        cases=VECTOR_CASES,
        mistakes=[
            (
                _vector(lambda size, crop, target: [*size[::-1], *crop[::-1], *target[::-1]]),
                "Width and height are swapped: SDXL is told the vertical number first, height "
                "and top.",
            ),
            (
                _vector(lambda size, crop, target: [*size[::-1], *crop, *target[::-1]]),
                "The sizes are told width first: SDXL takes (height, width).",
            ),
            (
                _vector(lambda size, crop, target: [*crop, *size, *target]),
                "Crop comes second: original size, crop, target size.",
            ),
            (
                _vector(lambda size, crop, target: [*target, *crop, *size]),
                "Original and target size have changed places: original size, crop, target size.",
            ),
            (
                _vector(
                    lambda size, crop, target: [
                        *size,
                        *crop,
                        target[0] / target[1],
                        target[0] / target[1],
                    ]
                ),
                "The last two numbers are the target's height and width themselves, not their "
                "ratio.",
            ),
            (
                _vector(lambda size, crop, target: [*size, *crop]),
                "The target size is missing: six numbers, not four.",
            ),
            (_vector(pooled_first=False), "The pooled text comes first, the six numbers after it."),
            (_vector(embed=_sines_first), "Cosines first, then sines, as in the time embedding."),
            (
                _vector(embed=lambda number, dim: _embed(number / 1024, dim)),
                "You divided the pixels by 1024. SDXL embeds the plain number of pixels, as if "
                "it were a timestep.",
            ),
            (
                _vector(embed=lambda number, dim: _embed(number)),
                "Each number becomes `dim` cosines and sines: 256 is SDXL's, the mini has 16.",
            ),
            (
                _plain,
                "Those are the six plain numbers. Each becomes 256 cosines and sines first: "
                "`timestep_embedding(numbers, 256)`.",
            ),
        ],
        right="1280 + 6 * 256 = 2816 numbers, and the UNet knows how large your picture was.",
    ),
    "12.3": Exercise(
        reference=_right,
        cases=SPLIT_CASES,
        mistakes=[
            (
                _by(lambda t, T, h, i, n: i < round(h * n)),
                "You split the number of steps. The hand-over is a place on the scale of noise: "
                "base while t >= T - handover T.",
            ),
            (
                _by(lambda t, T, h, i, n: i < int(h * n)),
                "You split the number of steps. The hand-over is a place on the scale of noise: "
                "base while t >= T - handover T.",
            ),
            (
                _by(lambda t, T, h, i, n: t >= h * T),
                "handover is the base's share, counted from t = T down: it stops at T - handover "
                "T, not at handover T.",
            ),
            (
                _by(lambda t, T, h, i, n: t > T - h * T),
                "A step exactly at T - handover T still belongs to the base.",
            ),
            (
                _by(lambda t, T, h, i, n: t > h * T),
                "handover is the base's share, counted from t = T down: it stops at T - handover "
                "T, not at handover T.",
            ),
            (
                lambda times, T, handover: _right(times, T, handover)[::-1],
                "The other way round: the base has the large t, and its times are returned first.",
            ),
        ],
        right="Whatever sampler and however many steps: the refiner never sees more noise than "
        "it was trained on.",
    ),
}
