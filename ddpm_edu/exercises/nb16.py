"""Exercises: velocity, time shift, adaLN-zero, min-SNR, two half steps. Notebook 16."""

import torch
import torch.nn.functional as F

from .check import Exercise


def _numbers(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- 16.1  from v to the velocity


def _velocity(x_0=lambda x, v, s, n: s * x - n * v, eps=lambda x, v, s, n: n * x + s * v, sign=1):
    """An answer whose picture or noise may be wrong, or that walks towards the picture."""
    return lambda x_t, v, s, n: sign * (eps(x_t, v, s, n) - x_0(x_t, v, s, n))


VELOCITY_CASES = [
    (_numbers(1, 2, 3, 4), _numbers(2, 2, 3, 4), 0.8, 0.6),
    (_numbers(3, 5, 2), _numbers(4, 5, 2), 0.28, 0.96),
]

# ---------------------------------------------------------------- 16.2  the shift of the times


def _shifted(factor):
    """An answer that multiplies sigma = u / (1 - u) by some factor of the shift."""
    return lambda u, shift: factor(shift) * u / (1 + (factor(shift) - 1) * u)


SHIFT_CASES = [
    (torch.linspace(0.05, 0.95, 7, dtype=torch.float64), 3.0),
    (torch.linspace(0, 1, 5, dtype=torch.float64), 0.5),
]

# ---------------------------------------------------------------- 16.3  adaLN-zero


def _wide(row):
    return row[:, None]


def _ada(one=1, skip=lambda x, gate: x, norm=True, axes=1, inner=lambda h, gate: h, outer=True):
    """An answer that may forget the 1, the norm or the gate, or put them elsewhere."""

    def answer(x, f, shift, scale, gate):
        shift, scale, gate = map(_wide, (shift, scale, gate))
        h = F.layer_norm(x, x.shape[-axes:], eps=1e-6) if norm else x
        h = f(inner(h * (one + scale) + shift, gate))
        return skip(x, gate) + (gate * h if outer else h)

    return answer


def _mixing(x):
    """Stands for attention: tokens see each other, and it is not linear."""
    return (x + x.mean(1, keepdim=True)).tanh() * 2 + x.roll(1, -1)


def _ada_case(seed, batch, tokens, width, gate=1.0):
    rows = (_numbers(seed + k, batch, width) for k in range(3))
    shift, scale, gates = rows
    return 3 * _numbers(seed + 5, batch, tokens, width) + 1, _mixing, shift, scale, gate * gates


ADA_CASES = [
    _ada_case(10, 2, 3, 4),
    _ada_case(20, 3, 5, 6),
    _ada_case(30, 2, 4, 8, gate=0.0),  # as training begins
]

# ---------------------------------------------------------------- 16.4  one weight, four names


def _root(snr):
    return snr**0.5


def _weight(best=torch.minimum, per=None):
    """An answer that may cut the weight otherwise, or take another factor for a prediction."""
    per = {"eps": lambda z: z, "v": lambda z: z + 1, "flow": lambda z: (1 + _root(z)) ** 2} | (
        per or {}
    )

    def answer(snr, gamma, predict):
        cut = best(snr, torch.full_like(snr, gamma))
        return cut / per.get(predict, torch.ones_like)(snr)

    return answer


SNR = torch.tensor([0.01, 0.3, 1.0, 4.0, 20.0, 500.0], dtype=torch.float64)
WEIGHT_CASES = [(SNR, 5.0, predict) for predict in ("x_0", "eps", "v", "flow")]

# ---------------------------------------------------------------- 16.5  two half steps


def _halves(moved=lambda x, first, d: x - d * first, later=lambda u, d: u - d, mean=0.5):
    """An answer that may ask the second half at another place or time, or add up the two."""

    def answer(step, x, u, d):
        first = step(x, u, d)
        return mean * (first + step(moved(x, first, d), later(u, d), d))

    return answer


def _toy(x, u, d):
    """A step that is not linear in anything."""
    return (x * (1 + u)).sin() + u**2 * x + d * x.cos()


HALVES_CASES = [(_toy, _numbers(40, 6), 1.0, 0.25), (_toy, _numbers(41, 3, 2), 0.5, 0.125)]

EXERCISES = {
    "16.1": Exercise(
        reference=_velocity(),
        cases=VELOCITY_CASES,
        mistakes=[
            (
                _velocity(sign=-1),
                "That is x_0 - eps, the way from noise to picture. u grows towards the noise, so "
                "the velocity is eps - x_0.",
            ),
            (
                _velocity(x_0=lambda x, v, s, n: s * x + n * v),
                "A sign in x_0 is wrong: s x_t = s^2 x_0 + s n eps and n v = n s eps - n^2 x_0, so "
                "their difference is x_0.",
            ),
            (
                _velocity(eps=lambda x, v, s, n: n * x - s * v),
                "A sign in eps is wrong: n x_t = n s x_0 + n^2 eps and s v = s^2 eps - s n x_0, so "
                "their sum is eps.",
            ),
            (
                lambda x_t, v, s, n: v,
                "v is not the velocity: v = s eps - n x_0. The two agree up to a factor only where "
                "s = n.",
            ),
            (
                _velocity(x_0=lambda x, v, s, n: 0),
                "That is eps alone: the picture is missing. The velocity is eps - x_0.",
            ),
        ],
        right="Any network that was trained on v, eps or x_0 is a velocity as well.",
    ),
    "16.2": Exercise(
        reference=_shifted(lambda shift: shift),
        cases=SHIFT_CASES,
        mistakes=[
            (
                lambda u, shift: shift * u,
                "You multiplied u itself, and u may not pass 1. What is multiplied is "
                "sigma = u / (1 - u).",
            ),
            (
                _shifted(lambda shift: 1 / shift),
                "That shifts the other way: a shift above 1 must move u towards 1, to more noise.",
            ),
            (
                _shifted(lambda shift: shift**0.5),
                "The shift is the factor of sigma itself, without a root: the root of the pixels "
                "is in the shift already.",
            ),
            (
                lambda u, shift: shift * u / (1 + shift * u),
                "That is sigma / (1 + sigma) with u for sigma: put sigma = shift u / (1 - u) in.",
            ),
        ],
        right="One factor on sigma; 0 and 1 stay where they are.",
    ),
    "16.3": Exercise(
        reference=_ada(),
        cases=ADA_CASES,
        mistakes=[
            (
                _ada(one=0),
                "The scale is 1 + scale: with scale = 0, as training begins, the norm's result "
                "must pass unchanged.",
            ),
            (
                _ada(skip=lambda x, gate: gate * x),
                "The gate multiplies x too. It belongs to the new part alone: with gate = 0 the "
                "block must return x.",
            ),
            (_ada(norm=False), "LayerNorm is missing: scale and shift act on the normalised x."),
            (
                _ada(axes=2),
                "LayerNorm runs over the numbers of one token, the last axis, not over all tokens "
                "together.",
            ),
            (
                _ada(inner=lambda h, gate: gate * h, outer=False),
                "The gate stands before f. It must multiply what f returns, or a gate of 0 does "
                "not shut the block.",
            ),
            (_ada(skip=lambda x, gate: 0), "The residual is missing: the block returns x + ... ."),
            (_ada(outer=False), "The gate is missing: multiply what f returns by it."),
        ],
        right="With a gate of 0 the block is the identity: that is the zero in adaLN-zero.",
    ),
    "16.4": Exercise(
        reference=_weight(),
        cases=WEIGHT_CASES,
        mistakes=[
            (
                _weight(per=dict.fromkeys(("eps", "v", "flow"), torch.ones_like)),
                "That is right for x_0 only. The same mistake has another size in eps, v or "
                "velocity: divide by the ratio of the squared errors.",
            ),
            (
                _weight(best=torch.maximum),
                "min-SNR takes the smaller of the two: gamma is a lid on clean pictures.",
            ),
            (
                _weight(per={"v": lambda z: z}),
                "v's error is 1 / n times that of x_0: its square has the factor "
                "1 / n^2 = snr + 1, not snr.",
            ),
            (
                _weight(per={"flow": lambda z: z + 1}),
                "The velocity's error is (s + n) / n times that of x_0: its square has the factor "
                "(1 + sqrt(snr))^2.",
            ),
            (
                _weight(per={"flow": lambda z: 1 + _root(z)}),
                "The loss is squared: the factor (s + n) / n = 1 + sqrt(snr) must be squared too.",
            ),
        ],
        right="One weighting, four names: which one you predict is a choice of weight.",
    ),
    "16.5": Exercise(
        reference=_halves(),
        cases=HALVES_CASES,
        mistakes=[
            (
                _halves(moved=lambda x, first, d: x),
                "The second half begins where the first one ended: at x - d step(x, u, d), not at "
                "x.",
            ),
            (
                _halves(moved=lambda x, first, d: x + d * first),
                "You moved the wrong way: from u to u - d the point goes to x - d times the "
                "velocity.",
            ),
            (
                _halves(later=lambda u, d: u),
                "The second half begins at the time u - d: you asked at u again.",
            ),
            (
                _halves(later=lambda u, d: u + d),
                "Time falls on the way to the picture: the second half begins at u - d.",
            ),
            (
                _halves(mean=1.0),
                "These are velocities, so take the mean of the two, not the sum: twice the time "
                "at their mean.",
            ),
            (
                _halves(moved=lambda x, first, d: x - 2 * d * first),
                "The first half is d long: you moved by 2 d.",
            ),
        ],
        right="A step of 2 d is two steps of d: that is the whole training signal.",
    ),
}
