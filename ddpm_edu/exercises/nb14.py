"""Exercises: how fast SDXL can be sampled. Notebook 14."""

import torch

from .check import Exercise


def _points(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- 14.1  the roofline

KERNELS = [[(13.5e12, 5e9), (0.0, 2e9), (2e12, 40e9)], [(1e9, 1e12), (8e12, 1e6)], [(3e12, 1e9)]]
ROOF_CASES = [(kernels, 989e12, 3.35e12) for kernels in KERNELS] + [(KERNELS[0], 100e12, 1e12)]


def _max_of_sums(kernels, peak, bandwidth):
    return max(sum(F for F, _ in kernels) / peak, sum(M for _, M in kernels) / bandwidth)


# ---------------------------------------------------------------- 14.2  fused QKV

QKV_CASES = [
    (_points(2, 5, 12, seed=1), _points(36, 12, seed=2), 3),
    (_points(1, 4, 8, seed=3), _points(24, 8, seed=4), 2),
]


def _qkv(shape, order):
    """An answer that splits the last axis of the product by `shape` and puts the axes in
    `order`."""

    def split(x, W, heads):
        q, k, v = (
            (x @ W.T)
            .unflatten(-1, tuple(heads if s == "heads" else s for s in shape))
            .permute(order)
        )
        return q, k, v

    return split


def _heads_inside(x, W, heads):
    q, k, v = (x @ W.T).chunk(3, -1)
    return tuple(z.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2) for z in (q, k, v))


def _reshaped(x, W, heads):
    B, N, C = x.shape
    return tuple(z.reshape(B, heads, N, C // heads) for z in (x @ W.T).chunk(3, -1))


def _no_heads(x, W, heads):
    return (x @ W.T).chunk(3, -1)


def _heads_kept_behind(x, W, heads):
    return tuple(z.unflatten(-1, (heads, -1)) for z in (x @ W.T).chunk(3, -1))


def _not_transposed(x, W, heads):
    C = x.shape[-1]
    return tuple((x @ part).unflatten(-1, (heads, -1)).transpose(1, 2) for part in W.split(C))


# ---------------------------------------------------------------- 14.3  8-bit floats

EIGHT_CASES = [
    (torch.tensor([[0.01, -0.2, 1.0], [10.0, 333.0, -1000.0]]),),
    (
        torch.randn(4, 16, generator=torch.Generator().manual_seed(5))
        * torch.tensor([[1e-3], [1.0], [30.0], [2e4]]),
    ),
]


def _round(x):
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def _eight(scale, back=True):
    """An answer with its own scale; back=False forgets to multiply by it."""

    def there_and_back(x):
        s = scale(x)
        return _round(x / s) * (s if back else 1)

    return there_and_back


def _rows(x):
    return x.abs().amax(-1, keepdim=True) / 448


# ---------------------------------------------------------------- 14.4  the price of a run

TIMES = [float(t) for t in range(967, 0, -33)]
PRICE_CASES = [
    ([961.0, 701.0, 301.0, 200.0, 101.0, 1.0], 200, 800, 200),
    (TIMES, 0, 999, 200),
    (TIMES, 208, 802, 208),
    (TIMES, 400, 600, 0),
]


def _price(
    base=lambda t, before: t >= before,
    inside=lambda t, low, high: low <= t <= high,
    costs=(6.76, 7.29),
    passes=(2, 1),
):
    def price(times, low, high, before):
        return sum(costs[not base(t, before)] * passes[not inside(t, low, high)] for t in times)

    return price


EXERCISES = {
    "14.1": Exercise(
        reference=lambda kernels, peak, bandwidth: sum(
            max(F / peak, M / bandwidth) for F, M in kernels
        ),
        cases=ROOF_CASES,
        tolerance=1e-9,
        mistakes=[
            (
                _max_of_sums,
                "You take the maximum of the sums. But each kernel has its own limit, and they "
                "run one after the other: the maximum first, for each kernel, then the sum.",
            ),
            (
                lambda kernels, peak, bandwidth: sum(F / peak + M / bandwidth for F, M in kernels),
                "Arithmetic and memory work at the same time inside a kernel: the slower of the "
                "two counts, not their sum.",
            ),
            (
                lambda kernels, peak, bandwidth: sum(F / peak for F, _ in kernels),
                "That is the arithmetic alone. A kernel also has to move M bytes.",
            ),
            (
                lambda kernels, peak, bandwidth: sum(M / bandwidth for _, M in kernels),
                "That is the memory alone. A kernel also has F operations to do.",
            ),
            (
                lambda kernels, peak, bandwidth: sum(
                    min(F / peak, M / bandwidth) for F, M in kernels
                ),
                "The smaller of two lower bounds is the weaker one: a kernel must satisfy both, "
                "so take the larger.",
            ),
            (
                lambda kernels, peak, bandwidth: sum(
                    max(F / bandwidth, M / peak) for F, M in kernels
                ),
                "Peak and bandwidth are swapped: F belongs to the peak, M to the bandwidth.",
            ),
            (
                lambda kernels, peak, bandwidth: max(
                    max(F / peak, M / bandwidth) for F, M in kernels
                ),
                "That is the slowest kernel only: add them all up, they run one after the other.",
            ),
        ],
        right="The roofline in one line. A graph or a fused kernel changes the list, not the rule.",
    ),
    "14.2": Exercise(
        reference=_qkv((3, "heads", -1), (2, 0, 3, 1, 4)),
        cases=QKV_CASES,
        mistakes=[
            (
                _qkv(("heads", 3, -1), (3, 0, 2, 1, 4)),
                "You split into heads first and into Q, K, V inside each head. W is stacked the "
                "other way: all of Q, then all of K, then all of V.",
            ),
            (
                _heads_inside,
                "The numbers of a head lie side by side: split C into (heads, C / heads), not "
                "into (C / heads, heads).",
            ),
            (
                _reshaped,
                "reshape reads the numbers in their order and mixes pixels with heads. First "
                "unflatten the last axis into (heads, C / heads), then transpose.",
            ),
            (
                _no_heads,
                "Q, K and V are right, but each must still be split into heads: (B, heads, N, C "
                "/ heads).",
            ),
            (
                _heads_kept_behind,
                "The axes are (B, N, heads, C / heads): transpose N and heads, SDPA wants the "
                "heads first.",
            ),
            (
                _qkv((3, "heads", -1), (2, 0, 1, 3, 4)),
                "The axes are (B, N, heads, C / heads): transpose N and heads, SDPA wants the "
                "heads first.",
            ),
            (_not_transposed, "A linear layer computes x @ W.T: the transpose is missing."),
        ],
        right="One product, one read of x; the rest only renames axes and moves nothing.",
    ),
    "14.3": Exercise(
        reference=_eight(_rows),
        cases=EIGHT_CASES,
        mistakes=[
            (
                _eight(lambda x: x.abs().max() / 448),
                "One scale for the whole matrix: rows of small numbers fall into the coarse end "
                "or to zero. Scale each row by its own largest number.",
            ),
            (
                _eight(lambda x: x.abs().amax(0, keepdim=True) / 448),
                "You scaled the columns. A row is one token's input (or one output of a weight), "
                "and shares one scale: amax over the last axis.",
            ),
            (
                _eight(lambda x: torch.ones(1)),
                "Without a scale everything above 448 is cut off, and small numbers lose their "
                "bits.",
            ),
            (
                _eight(_rows, back=False),
                "The numbers are still scaled: multiply by the scale after rounding.",
            ),
            (
                _eight(lambda x: x.abs().amax(-1, keepdim=True)),
                "You scaled the largest number to 1. e4m3 goes up to 448: divide by max / 448, "
                "so that small numbers keep their bits, too.",
            ),
            (
                _eight(lambda x: x.amax(-1, keepdim=True) / 448),
                "A large negative number counts as well: take the absolute value before the "
                "maximum.",
            ),
            (lambda x: x, "Nothing was rounded: pass through torch.float8_e4m3fn on the way."),
        ],
        tolerance=1e-6,
        right="Three bits of mantissa and one scale a row: that is all of fp8.",
    ),
    "14.4": Exercise(
        reference=_price(),
        cases=PRICE_CASES,
        tolerance=1e-6,
        mistakes=[
            (
                _price(base=lambda t, before: t < before),
                "Base and refiner are swapped: the base walks first, at high noise, t >= before.",
            ),
            (
                _price(base=lambda t, before: t > before),
                "A step exactly at the hand-over time is still the base's: t >= before.",
            ),
            (
                _price(inside=lambda t, low, high: not low <= t <= high),
                "The wrong way round: two passes INSIDE the interval, one outside.",
            ),
            (
                _price(inside=lambda t, low, high: low < t < high),
                "The ends of the interval belong to it: low <= t <= high.",
            ),
            (
                _price(inside=lambda t, low, high: low <= t < high),
                "The ends of the interval belong to it: low <= t <= high.",
            ),
            (
                _price(inside=lambda t, low, high: low < t <= high),
                "The ends of the interval belong to it: low <= t <= high.",
            ),
            (_price(passes=(1, 1)), "A guided step needs two passes, with and without the prompt."),
            (
                _price(passes=(2, 2)),
                "Outside the interval one pass is enough: that is what it saves.",
            ),
            (
                _price(passes=(2, 0)),
                "Outside the interval the network is still asked once: one pass, not none.",
            ),
            (
                _price(base=lambda t, before: True),
                "The last steps are the refiner's, and a pass of it costs 7.29.",
            ),
            (
                lambda times, low, high, before: sum(2 if low <= t <= high else 1 for t in times),
                "Those are passes. Multiply each by what a pass of its network costs.",
            ),
        ],
        right="Two lines of accounting, and nobody has to guess what a setting costs.",
    ),
}
