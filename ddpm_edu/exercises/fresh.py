"""Fresh inputs for every exercise, from a teacher's secret seed. All notebooks.

    cases("01.1", seed) -> the cases that everybody knows, then FRESH_CASES that nobody does

An answer that was written for the known cases, or looks them up, fails on these. Each line of
FRESH makes one case; `known` is the exercise's first known case, for functions among its arguments.
"""

import hashlib
import math

import torch
import torch.nn.functional as F

from .check import find

FRESH_CASES = 4


class Draw:
    """Random numbers of one case."""

    def __init__(self, seed: str):
        whole = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
        self.generator = torch.Generator().manual_seed(whole % 2**63)

    def normal(self, *shape):
        """float64 (*shape) of N(0, I)."""
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def floats(self, *shape):
        """The same in float32."""
        return self.normal(*shape).float()

    def number(self, low: float, high: float) -> float:
        """Uniform in [low, high], with 4 digits behind the point."""
        u = torch.rand((), dtype=torch.float64, generator=self.generator).item()
        return round(low + (high - low) * u, 4)

    def whole(self, low: int, high: int) -> int:
        """low, ..., or high."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def wholes(self, n: int, low: int, high: int) -> list[int]:
        return [self.whole(low, high) for _ in range(n)]

    def pick(self, *choices):
        return choices[self.whole(0, len(choices) - 1)]

    def falling(self, n: int):
        """float64 (n,): an alpha_bar, from below 1 to above 0."""
        alpha = 1 - 0.04 - 0.5 * torch.rand(n, dtype=torch.float64, generator=self.generator)
        return torch.cumprod(alpha, 0)

    def times(self, n: int, top: int):
        """n times from 0 to top, no two alike, falling."""
        return sorted(torch.randperm(top + 1, generator=self.generator)[:n].tolist())[::-1]


def cases(name: str, seed: int) -> list[tuple]:
    """The known cases of an exercise and, where FRESH has a line for it, fresh ones of this seed.

    [] for an exercise without cases: its answer is one fixed value.
    """
    known = list(find(name).cases or ())
    if known and name in FRESH:
        draws = (Draw(f"{seed} {name} {i}") for i in range(FRESH_CASES))
        return known + [FRESH[name](draw, known[0]) for draw in draws]
    return known


def _clumps(d, known):
    """Points around some of 8 centres on a ring, few around some others; strays beyond those."""
    angle = 2 * torch.pi * (torch.arange(8) + d.number(0, 1)) / 8
    centres = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    counts = torch.tensor([d.pick(0, 4, 30, 60) for _ in range(7)] + [90])
    near = centres.repeat_interleave(counts, 0)
    far = 3 * centres.repeat_interleave(d.pick(0, 20), 0)
    return torch.cat([near + 0.04 * d.floats(*near.shape), far]), centres


def _block(d, known):
    """Channels in and out, often as many."""
    channels = d.whole(1, 40)
    return channels, d.pick(channels, d.whole(1, 40)), d.whole(1, 60)


def _jump(d, known):
    t = torch.tensor(d.wholes(4, 1, 6))
    return d.normal(4, 1, 4, 4), t, d.normal(4, 1, 4, 4), 1 - d.falling(8).diff().abs() * 0.5


def _step_back(d, known):
    bar = d.number(0.05, 0.9)
    return bar, d.number(bar + 0.02, 0.98)


def _low_rank(d):
    """x (5, in), W (out, in), A (r, in), B (out, r), alpha, slider."""
    out, width, rank = d.whole(3, 6), d.whole(3, 6), d.whole(2, 3)
    shapes = (5, width), (out, width), (rank, width), (out, rank)
    return *(d.normal(*shape) for shape in shapes), d.number(4, 9), d.number(0.2, 0.9)


def _circle(angle):
    return math.cos(angle), math.sin(angle)


def _pair(d, known):
    n = d.whole(2, 3)
    return (known[0], d.number(0.2, 2), d.normal(n, 3, 8, 8), torch.tensor(d.wholes(n, 0, 9)),
            d.normal(n, 4, 2, 2), d.falling(10))  # fmt: skip


def _maps(d, known):
    maps = d.normal(2, 12, 7).softmax(-1)
    tokens = torch.randperm(7, generator=d.generator)[: d.whole(1, 3)].tolist()
    return maps, tokens, *d.pick((3, 4), (4, 3), (2, 6), (6, 2))


def _blend(d, known):
    x, z_0, eps = d.floats(3, 2, 4, 4, 5)
    mask = (d.floats(2, 1, 4, 5) > 0).float()
    return x, z_0, eps, mask, d.pick(-1, d.whole(0, 99)), known[5]


def _sizes(d, known):
    six = [(d.whole(20, 2000), d.whole(20, 2000)) for _ in range(3)]
    return (d.floats(d.whole(1, 3), 32), *six, d.pick(16, 32))


def _kernels(d, known):
    n = d.whole(2, 5)
    kernels = [(d.number(0.1, 20) * 1e12, d.number(0.1, 60) * 1e9) for _ in range(n)]
    return kernels, d.number(100, 900) * 1e12, d.number(1, 4) * 1e12


def _rows(d, known):
    return (d.floats(4, 16) * torch.tensor([[2e-3], [1.0], [40.0], [1e4]]) * d.number(0.5, 2),)


def _stay(d, known):
    confidence = torch.rand(3, 9, generator=d.generator)
    n = d.whole(0, 3)
    unsure = confidence.argsort(1)[:, :n]
    return (
        confidence,
        torch.zeros(3, 9, dtype=torch.bool).scatter(1, unsure, True),
        n + d.whole(1, 4),
    )


def _bound(d, known):
    before, log_p = d.number(0.1, 0.8), (2 * d.floats(3, 6)).sigmoid().log()
    return log_p, d.floats(3, 6) > -0.3, before, d.number(before + 0.05, 1)


def _split(d, known):
    T, handover = d.pick(1000, 100), d.pick(0.25, 0.5, 0.75)
    between = {round(T - handover * T), *d.times(d.whole(6, 12), T - 2)}
    return sorted(between, reverse=True), T, handover


def _price(d, known):
    """Some times lie on the very edges."""
    low, before = d.whole(50, 300), d.whole(100, 600)
    high = low + d.whole(200, 500)
    times = {low, high, before, *d.times(d.whole(8, 20), 997)}
    return sorted(map(float, times), reverse=True), low, high, before


FRESH = {
    "00.1": _clumps,
    "00.2": lambda d, _: (d.normal(1).item(), d.number(0.1, 3), d.number(-3, 3), d.number(0.1, 3)),
    "00.3": lambda d, _: (1 + 3 * d.floats(d.whole(2, 4), 5).abs(), d.floats(d.whole(2, 5), 5)),
    "01.1": _jump,
    "01.2": lambda d, _: (d.falling(12), d.whole(0, 4), d.whole(5, 11)),
    "01.3": lambda d, _: (d.falling(d.whole(3, 12)),),
    "01.4": lambda d, _: (d.falling(d.whole(3, 8)),),
    "02.1": lambda d, _: (*d.normal(2, 4, 2), d.number(0.02, 0.4), d.number(0.1, 0.6)),
    "02.2": lambda d, _: (d.normal(3), d.number(0.2, 3), d.normal(3), d.number(0.2, 3)),
    "02.3": lambda d, _: (d.normal(4, 2), d.number(0.05, 0.9)),
    "02.4": lambda d, _: (*d.normal(3, 4, 2), d.number(0.02, 0.4), d.number(0.1, 0.6),
                          d.pick(True, False)),
    "03.1": lambda d, _: (d.whole(1, 400), 2 * d.whole(2, 32)),
    "03.2": _block,
    "03.3": lambda d, _: (d.whole(1, 9), tuple(d.wholes(d.whole(2, 3), 1, 4)), d.whole(1, 2)),
    "03.4": lambda d, _: tuple(d.floats(3, 2, 3, 6, 4)),
    "04.1": lambda d, known: (known[0], d.normal(3, 1, 4, 4), torch.tensor(d.wholes(3, 0, 9)),
                              d.normal(3, 1, 4, 4), d.falling(10)),
    "04.2": lambda d, _: (d.whole(0, 99), 100, d.number(1e-3, 1), d.whole(2, 30)),
    "04.3": lambda d, _: (*d.floats(2, 4), d.number(0.5, 0.999), d.whole(0, 60)),
    "05.1": lambda d, _: (*d.normal(3, 4, 2), *_step_back(d, _), d.number(0.2, 1)),
    "05.2": lambda d, known: (known[0], d.normal(4, 2), d.number(1.5, 3), d.number(0.2, 1.2)),
    "05.3": lambda d, known: (known[0], d.normal(3, 2),
                              torch.eye(3, dtype=torch.float64)[d.wholes(3, 0, 2)], d.number(2, 8)),
    "05.4": lambda d, _: (*d.normal(2, 4, 2), d.number(0.1, 0.9)),
    "06.1": lambda d, _: (64 * d.whole(1, 16), 64 * d.whole(1, 16), d.pick(4, 8, 16),
                          d.whole(1, 32), d.whole(1, 3)),
    "06.2": lambda d, _: (d.normal(3, 2, 2, 2), d.normal(3, 2, 2, 2) - 1),
    "06.3": lambda d, _: (d.normal(2, 3, 4, 5), 1.5 * d.normal(d.whole(4, 9), 3)),
    "07.1": lambda d, _: (8 * d.whole(2, 64), d.pick(2, 4, 8), 32 * d.whole(1, 12)),
    "07.2": lambda d, _: (d.number(0.2, 4) * d.normal(5, 4, 3, 3) + d.normal(4, 1, 1),),
    "07.3": _pair,
    "07.4": lambda d, known: (*d.normal(2, 2, 4, 3, 3), d.number(0.1, 0.9), known[3],
                              d.number(0.1, 1)),
    "08.1": lambda d, known: (d.pick("green", "reddened", "seegreen", "oooo", "rened", "sevengre")
                              + d.pick("", "e", "red", "en", "o"), known[1]),
    "08.2": lambda d, _: (*F.normalize(d.normal(2, d.whole(3, 6), 5), dim=-1), d.number(2, 20)),
    "08.3": lambda d, _: (F.normalize(d.normal(4, 6), dim=-1),
                          F.normalize(d.normal(3, 5, 6), dim=-1)),
    "08.4": lambda d, _: tuple(d.normal(2, d.whole(3, 6), 5)),
    "09.1": lambda d, _: (d.normal(4, 3), d.normal(6, 3), *d.normal(3, 3, 5)),
    "09.2": lambda d, _: (d.normal(4, 3), d.normal(3, 6), d.normal(6)),
    "09.3": lambda d, _: (d.normal(6, 3, 4), d.normal(1, 3, 4),
                          torch.rand(6, generator=d.generator), d.number(0.2, 0.8)),
    "09.4": _maps,
    "10.1": lambda d, known: (*d.floats(2, 1, 2, 3, 3), known[2], known[3], d.number(0.15, 0.95)),
    "10.2": _blend,
    "10.3": lambda d, _: (*d.floats(2, 2, 3, 4, 4), d.floats(3, 3), d.floats(3), d.number(0.2, 2)),
    "10.4": lambda d, _: (*d.floats(2, 2, 4, 3, 3), *_step_back(d, _)[::-1]),
    "10.5": lambda d, known: (known[0], d.floats(2, 1, 3, 3), d.number(-2, 2), d.number(-2, 2),
                              known[4], known[5]),
    "11.1": lambda d, _: (8 * d.whole(1, 160), 8 * d.whole(1, 160)),
    "11.2": lambda d, _: (d.number(0.2, 6) * d.normal(6, 4, 8, 8) + d.number(-1, 1),),
    "11.3": lambda d, _: (d.pick(1000, 500, 100), d.whole(3, 60), d.whole(0, 1)),
    "12.1": lambda d, _: (8 * d.whole(1, 160), 8 * d.whole(1, 160)),
    "12.2": _sizes,
    "12.3": _split,
    "13.1": lambda d, _: (tuple(d.wholes(2, 10, 900)), tuple(8 * n for n in d.wholes(2, 2, 100))),
    "13.2": lambda d, _: (8 * d.whole(4, 8), d.pick(4, 8), d.number(1.5, 4)),
    "13.3": lambda d, _: (d.wholes(d.whole(8, 24), 0, 3), d.whole(2, 3)),
    "13.4": lambda d, _: (d.floats(3, 4, 6, 5), d.floats(3, 4), d.number(0.05, 0.5)),
    "13.5": lambda d, _: (d.falling(d.whole(4, 9)),),
    "14.1": _kernels,
    "14.2": lambda d, _: (d.normal(2, 5, 12), d.normal(36, 12), d.pick(2, 3, 4)),
    "14.3": _rows,
    "14.4": _price,
    "15.1": lambda d, _: (d.floats(3, 9, 7), torch.tensor([d.wholes(5, 0, 6) for _ in "abc"]), 4),
    "15.2": lambda d, _: (2 * d.floats(3, 8), d.number(0.4, 2), d.whole(2, 5)),
    "15.3": _bound,
    "15.4": _stay,
    "15.5": lambda d, _: (d.pick(0.2, 1, 3) * d.floats(2, 3, 6, 6), d.number(0.85, 0.97)),
    "16.1": lambda d, _: (*d.normal(2, 4, 3), *_circle(d.number(0.1, 1.4))),
    "16.2": lambda d, _: (torch.rand(7, dtype=torch.float64, generator=d.generator),
                          d.number(1.5, 6)),
    "16.3": lambda d, known: (3 * d.normal(2, 3, 4) + 1, known[1], *d.normal(3, 2, 4)),
    "16.4": lambda d, _: ((2 * d.normal(6)).exp(), d.number(2, 8),
                          d.pick("x_0", "eps", "v", "flow")),
    "16.5": lambda d, known: (known[0], d.normal(5), d.number(0.4, 1), d.number(0.05, 0.3)),
    "17.1": lambda d, _: _low_rank(d),
    "17.2": lambda d, _: _low_rank(d)[1:],
    "17.3": lambda d, _: (d.normal(2, 3, 4), 2 * d.normal(d.whole(3, 7), 3, 4), d.number(0.1, 0.8)),
    "17.4": lambda d, _: (d.normal(3, 2, 3, 3), d.normal(d.whole(3, 8), 2, 3, 3)),
    "18.1": lambda d, _: (d.pick("ddim", "heun", "dpmpp_2m"), d.whole(2, 12), d.pick(1.0, 2.5)),
    "18.2": lambda d, known: (*known[:2], d.normal(2, 1, 4, 4), torch.tensor(d.wholes(2, 0, 9)),
                              d.whole(2, 6)),
    "18.3": lambda d, _: ([d.number(0, 1) for _ in "four"], [d.number(0, 40) for _ in "four"]),
}  # fmt: skip
