"""Exercises: samplers and guidance. Notebook 05."""

import math

import torch

from .check import Exercise


def _points(n, seed):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- 05.1  the DDIM step


def _ddim(new, old=lambda ab_t, ab_s, new: 1 - ab_s - new**2, at=lambda ab_t, ab_s: ab_s):
    """An answer whose share of fresh noise, variance of old noise and signal level may be wrong."""

    def step(x0_hat, eps, z, ab_t, ab_s, eta):
        fresh = new(ab_t, ab_s, eta)
        return at(ab_t, ab_s) ** 0.5 * x0_hat + old(ab_t, ab_s, fresh) ** 0.5 * eps + fresh * z

    return step


def _std(ab_t, ab_s, eta):
    return eta * ((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)) ** 0.5


def _root_forgotten(x0_hat, eps, z, ab_t, ab_s, eta):
    new = _std(ab_t, ab_s, eta)
    return ab_s * x0_hat + (1 - ab_s - new**2) ** 0.5 * eps + new * z


STEP_CASES = [
    (_points(4, 1), _points(4, 2), _points(4, 3), 0.3, 0.7, 0.6),
    (_points(3, 4), _points(3, 5), _points(3, 6), 0.05, 0.2, 1.0),
]


# ---------------------------------------------------------------- 05.2  a Heun step


def _curve(x_bar, sigma):
    """A slope that is not defined at sigma = 0, as a network's is not."""
    if sigma <= 0:
        raise ValueError(
            "f was asked for its slope at sigma = 0, where no noise is left: the last step "
            "must be plain Euler"
        )
    return (sigma * x_bar).sin() + x_bar / (1 + sigma)


def _heun(f, x_bar, a, b):
    slope = f(x_bar, a)
    guess = x_bar + (b - a) * slope
    return guess if b == 0 else x_bar + (b - a) * (slope + f(guess, b)) / 2


def _heun_with(mean):
    """A wrong answer: the step goes along mean(f, x_bar, guess, a, b)."""

    def step(f, x_bar, a, b):
        guess = x_bar + (b - a) * f(x_bar, a)
        return guess if b == 0 else x_bar + (b - a) * mean(f, x_bar, guess, a, b)

    return step


def _both_halves(f, x_bar, a, b):
    guess = x_bar + (b - a) * f(x_bar, a)
    return guess if b == 0 else guess + (b - a) * (f(x_bar, a) + f(guess, b)) / 2


def _upwards(f, x_bar, a, b):
    slope = f(x_bar, a)
    guess = x_bar + (a - b) * slope
    return guess if b == 0 else x_bar + (a - b) * (slope + f(guess, b)) / 2


HEUN_CASES = [
    (_curve, _points(4, 7), 2.0, 1.2),
    (_curve, _points(3, 8), 0.8, 0.3),
    (_curve, _points(3, 9), 0.3, 0),
]


# ---------------------------------------------------------------- 05.3  guidance


def _toy(x, c):
    """A denoiser that is not linear in the class."""
    return (
        torch.tanh(x + 1.0)
        + c.sum(1, keepdim=True) * x**2
        + (c @ torch.arange(1.0, 4.0, dtype=c.dtype))[:, None].sin()
    )


def _one_hot(rows):
    return torch.eye(3, dtype=torch.float64)[rows]


def _zeros(c):
    return torch.zeros_like(c)


GUIDE_CASES = [
    (_toy, _points(4, 10), _one_hot([0, 2, 1, 2]), 3.0),
    (_toy, _points(2, 11), _one_hot([1, 0]), 0.0),
    (_toy, _points(3, 12), _one_hot([2, 1, 0]), 1.0),
]


# ------------------------------------------------------ 05.4  lerp with its length repaired


def _lerp(length):
    return lambda x, y, a: ((1 - a) * x + a * y) * length(a)


def _rescaled_to_x(x, y, a):
    mixed = (1 - a) * x + a * y
    return mixed * (x.norm() / mixed.norm())


def _standardized(x, y, a):
    mixed = (1 - a) * x + a * y
    return mixed / mixed.std()


LERP_CASES = [
    (_points(5, 13), _points(5, 14), 0.5),
    (_points(4, 15), _points(4, 16), 0.2),
    (_points(3, 17), _points(3, 18), 1.0),
]


EXERCISES = {
    "05.1": Exercise(
        reference=_ddim(_std),
        cases=STEP_CASES,
        mistakes=[
            (
                _ddim(_std, old=lambda ab_t, ab_s, new: 1 - ab_s),
                "The old noise keeps its full variance 1 - alpha_bar_s and fresh noise comes on "
                "top: too much in all. The old noise gets what is left, 1 - alpha_bar_s - "
                "varsigma^2.",
            ),
            (
                _ddim(lambda ab_t, ab_s, eta: 0.0),
                "That is DDIM for eta = 0. Where eta is above 0, some of the noise must be "
                "fresh: add varsigma z.",
            ),
            (
                _ddim(lambda ab_t, ab_s, eta: _std(ab_t, ab_s, eta) ** 2),
                "varsigma is a standard deviation: you took its square, the variance (a root is "
                "missing).",
            ),
            (
                _ddim(
                    lambda ab_t, ab_s, eta: (
                        eta * ((1 - ab_t) / (1 - ab_s) * (1 - ab_t / ab_s)) ** 0.5
                    ),
                    old=lambda ab_t, ab_s, new: max(1 - ab_s - new**2, 0),
                ),
                "The first quotient is upside down: (1 - alpha_bar_s) / (1 - alpha_bar_t), below "
                "1, as there is less noise at s.",
            ),
            (
                _ddim(_std, at=lambda ab_t, ab_s: ab_t),
                "x0_hat must come in at the level of s, where the step lands: sqrt(alpha_bar_s), "
                "not sqrt(alpha_bar_t).",
            ),
            (
                _ddim(_std, old=lambda ab_t, ab_s, new: 1 - ab_t - new**2),
                "The noise left after the step belongs to s: 1 - alpha_bar_s - varsigma^2, not 1 "
                "- alpha_bar_t - varsigma^2.",
            ),
            (
                _ddim(_std, old=lambda ab_t, ab_s, new: (1 - ab_s - new**2) ** 2),
                "eps is multiplied by a variance: its square root is missing.",
            ),
            (
                _root_forgotten,
                "The coefficient of x0_hat is sqrt(alpha_bar_s): the root is missing.",
            ),
            (
                _ddim(_std, old=lambda ab_t, ab_s, new: ((1 - ab_s) ** 0.5 - new) ** 2),
                "Standard deviations do not add, variances do: the coefficient of eps is sqrt(1 "
                "- alpha_bar_s - varsigma^2).",
            ),
            (
                _ddim(
                    lambda ab_t, ab_s, eta: eta * (1 - ab_t / ab_s) ** 0.5,
                    old=lambda ab_t, ab_s, new: max(1 - ab_s - new**2, 0),
                ),
                "That is the large variance, beta = 1 - alpha_bar_t / alpha_bar_s. The factor "
                "sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t)) is missing.",
            ),
        ],
        right="One line for a whole family: eta = 0 is DDIM, eta = 1 is DDPM.",
    ),
    "05.2": Exercise(
        reference=_heun,
        cases=HEUN_CASES,
        mistakes=[
            (
                lambda f, x_bar, a, b: x_bar + (b - a) * f(x_bar, a),
                "That is Euler: one slope only. Look at the slope at the guess, too, and go back "
                "and use the mean of both.",
            ),
            (
                _heun_with(lambda f, x, guess, a, b: f(guess, b)),
                "You go along the second slope alone. Heun takes the mean of both.",
            ),
            (
                _heun_with(lambda f, x, guess, a, b: f(x, a) + f(guess, b)),
                "You go along the sum of the slopes, twice too far: take their mean.",
            ),
            (
                _heun_with(lambda f, x, guess, a, b: (f(x, a) + f(guess, a)) / 2),
                "The second slope belongs to the place of the guess, so to its sigma, b: "
                "f(guess, b).",
            ),
            (
                _heun_with(lambda f, x, guess, a, b: (f(x, a) + f(x, b)) / 2),
                "The second slope is taken at the old place: look at the guess, f(guess, b).",
            ),
            (
                _heun_with(lambda f, x, guess, a, b: f((x + guess) / 2, (a + b) / 2)),
                "That is the midpoint method, of order two as well, but not Heun's: use the "
                "slopes at both ends.",
            ),
            (
                _both_halves,
                "You start the second half from the guess, so most of the way is gone twice. Go "
                "back to x_bar and use the mean slope from there.",
            ),
            (_upwards, "The sign: sigma falls, so the step is b - a, which is negative."),
        ],
        right="Two looks, one step, order two.",
    ),
    "05.3": Exercise(
        reference=lambda denoise, x, c, w: (
            denoise(x, _zeros(c)) + w * (denoise(x, c) - denoise(x, _zeros(c)))
        ),
        cases=GUIDE_CASES,
        mistakes=[
            (
                lambda denoise, x, c, w: (
                    denoise(x, c) + w * (denoise(x, c) - denoise(x, _zeros(c)))
                ),
                "You start from the answer with the class, so w = 0 already gives full "
                "conditioning: that is the paper's w, ours minus 1. Start from the answer "
                "without the class.",
            ),
            (
                lambda denoise, x, c, w: (
                    denoise(x, c) + w * (denoise(x, _zeros(c)) - denoise(x, c))
                ),
                "The wrong way round: this leads away from the class. It is without + w (with - "
                "without).",
            ),
            (
                lambda denoise, x, c, w: denoise(x, _zeros(c)) + w * denoise(x, c),
                "The difference is missing: w multiplies (with - without), not the answer with "
                "the class alone.",
            ),
            (
                lambda denoise, x, c, w: w * (denoise(x, c) - denoise(x, _zeros(c))),
                "The difference alone is only the classifier's part. Add it to the answer "
                "without the class.",
            ),
            (
                lambda denoise, x, c, w: denoise(x, w * c),
                "Scaling the class vector is not guidance: the network has never seen such a "
                "class. Mix its two answers.",
            ),
            (
                lambda denoise, x, c, w: denoise(x, c),
                "That ignores w: ask for both answers, with and without the class, and "
                "exaggerate the difference.",
            ),
        ],
        right="Three lines, and the reason why text-to-image models listen.",
    ),
    "05.4": Exercise(
        reference=_lerp(lambda a: 1 / math.hypot(1 - a, a)),
        cases=LERP_CASES,
        mistakes=[
            (
                _lerp(lambda a: 1.0),
                "That is plain lerp: its variance is (1 - a)^2 + a^2, below 1 in between. Divide "
                "by the root of that.",
            ),
            (
                _lerp(lambda a: 1 / ((1 - a) ** 2 + a**2)),
                "You divided by the variance. Divide by the standard deviation, its root.",
            ),
            (
                _lerp(lambda a: math.hypot(1 - a, a)),
                "That makes the noise shorter still: divide by the root, do not multiply.",
            ),
            (
                _rescaled_to_x,
                "Close, but now the length is that of x, for every a. The variances of x and y "
                "are known to be 1: use the number that follows from a alone.",
            ),
            (
                _standardized,
                "Dividing by the measured spread also removes what is special about this noise. "
                "Use the number that follows from a alone.",
            ),
            (
                _lerp(lambda a: 2**0.5),
                "sqrt(2) is right halfway only. For other a the variance is (1 - a)^2 + a^2.",
            ),
            (
                lambda x, y, a: (1 - a) ** 0.5 * x + a**0.5 * y,
                "That has variance 1 as well, but it is another road: keep the mixture (1 - a) x "
                "+ a y and multiply it by one number.",
            ),
            (
                lambda x, y, a: (a * x + (1 - a) * y) / math.hypot(1 - a, a),
                "x and y are swapped: a = 0 must give x.",
            ),
        ],
        right="For independent noise this is slerp in all but name: the two differ only by the "
        "chance angle between x and y.",
    ),
}
