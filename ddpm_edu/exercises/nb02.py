"""Exercises: the reverse process. Notebook 02."""

import math

import torch

from .check import Exercise


def _points(n, seed):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _mean(x_t, eps, beta, bar):
    return (x_t - beta / (1 - bar) ** 0.5 * eps) / (1 - beta) ** 0.5


def _kl(mean_q, var_q, mean_p, var_p):
    d = len(mean_q)
    return 0.5 * (
        d * math.log(var_p / var_q) + (d * var_q + ((mean_q - mean_p) ** 2).sum()) / var_p - d
    )


def _kl_stds(mean_q, var_q, mean_p, var_p):
    return _kl(mean_q, var_q**2, mean_p, var_p**2)


def _kl_one_d(mean_q, var_q, mean_p, var_p):
    return 0.5 * (math.log(var_p / var_q) + (var_q + ((mean_q - mean_p) ** 2).sum()) / var_p - 1)


def _kl_unsquared(mean_q, var_q, mean_p, var_p):
    d = len(mean_q)
    return 0.5 * (d * math.log(var_p / var_q) + (d * var_q + (mean_q - mean_p).norm()) / var_p - d)


def _step(x_t, eps, z, beta, bar, last):
    return _mean(x_t, eps, beta, bar) + (0 if last else beta**0.5) * z


MEAN_CASES = [(_points(5, 1), _points(5, 2), 0.02, 0.4), (_points(3, 3), _points(3, 4), 0.3, 0.5)]
KL_CASES = [
    (_points(1, 5)[0], 0.5, _points(1, 6)[0], 2.0),
    (_points(1, 7)[0], 1.5, _points(1, 8)[0], 0.3),
    (_points(2, 9).flatten(), 0.7, _points(2, 10).flatten(), 0.9),
]
STEP_CASES = [
    (_points(4, 11), _points(4, 12), _points(4, 13), 0.02, 0.4, False),
    (_points(4, 14), _points(4, 15), _points(4, 16), 0.1, 0.9, True),
]

EXERCISES = {
    "02.1": Exercise(
        reference=_mean,
        cases=MEAN_CASES,
        mistakes=[
            (
                lambda x_t, eps, beta, bar: (x_t - beta / (1 - bar) * eps) / (1 - beta) ** 0.5,
                "Nearly: eps is divided by sqrt(1 - alpha_bar_t), and you left out the root.",
            ),
            (
                lambda x_t, eps, beta, bar: (x_t - (1 - bar) ** 0.5 * eps) / bar**0.5,
                "That is x0_hat, the guess of the very end. One step back removes only beta_t / "
                "sqrt(1 - alpha_bar_t) of eps and undoes one shrinking, sqrt(alpha_t).",
            ),
            (
                lambda x_t, eps, beta, bar: x_t - beta / (1 - bar) ** 0.5 * eps,
                "The noise is removed, but the shrinking of this step is not undone: divide by "
                "sqrt(alpha_t) = sqrt(1 - beta_t).",
            ),
            (
                lambda x_t, eps, beta, bar: (x_t - beta / (1 - bar) ** 0.5 * eps) / bar**0.5,
                "You divided by sqrt(alpha_bar_t), the shrinking of all steps. One step back "
                "undoes one: sqrt(alpha_t) = sqrt(1 - beta_t).",
            ),
            (
                lambda x_t, eps, beta, bar: (x_t - beta**0.5 * eps) / (1 - beta) ** 0.5,
                "sqrt(beta_t) eps would be the noise of the last step alone; eps is the noise of "
                "all steps together, of which this step's share is beta_t / sqrt(1 - "
                "alpha_bar_t).",
            ),
            (
                lambda x_t, eps, beta, bar: (
                    (x_t + beta / (1 - bar) ** 0.5 * eps) / (1 - beta) ** 0.5
                ),
                "The sign: noise is removed on the way back, so subtract it.",
            ),
        ],
        right="This is DDPM's eq. 11, the heart of every sampler.",
    ),
    "02.2": Exercise(
        reference=_kl,
        cases=KL_CASES,
        mistakes=[
            (
                lambda mean_q, var_q, mean_p, var_p: _kl(mean_p, var_p, mean_q, var_q),
                "That is KL(p || q): the other direction. In KL(q || p) the mean is taken under "
                "q, and var_p stands in the denominator.",
            ),
            (
                _kl_one_d,
                "Right for one dimension. Here there are d of them: the logarithm, the variance "
                "ratio and the 1 count once for each direction.",
            ),
            (_kl_stds, "You squared the variances: var_q and var_p are already sigma squared."),
            (
                _kl_unsquared,
                "The distance of the means enters squared: (mean_q - mean_p)^2, summed over the "
                "directions, not its root.",
            ),
            (lambda *case: 2 * _kl(*case), "Exactly twice too large: the factor 1/2 is missing."),
            (
                lambda mean_q, var_q, mean_p, var_p: (
                    _kl(mean_q, var_q, mean_p, var_p) + len(mean_q) / 2
                ),
                "Too large by d/2: the -1 for each direction is missing (the KL of a bell with "
                "itself must be 0).",
            ),
        ],
        right="And it is 0 when both bells are the same: try it.",
    ),
    "02.3": Exercise(
        reference=lambda eps, bar: -eps / (1 - bar) ** 0.5,
        cases=[(_points(5, 17), 0.4), (_points(3, 18), 0.95)],
        mistakes=[
            (
                lambda eps, bar: eps / (1 - bar) ** 0.5,
                "The sign: noise leads away from the data, the score leads towards it.",
            ),
            (
                lambda eps, bar: -eps / (1 - bar),
                "You divided by the variance; divide by the standard deviation of the noise, "
                "sqrt(1 - alpha_bar_t).",
            ),
            (
                lambda eps, bar: -eps * (1 - bar) ** 0.5,
                "Upside down: eps = -sigma * score, so the score is -eps divided by sigma.",
            ),
            (
                lambda eps, bar: -eps / ((1 - bar) / bar) ** 0.5,
                "sqrt((1 - alpha_bar) / alpha_bar) is the sigma of x_t / sqrt(alpha_bar_t). In "
                "x_t itself the noise has the size sqrt(1 - alpha_bar_t).",
            ),
        ],
        right="Where there is little noise the same eps means a steeper slope.",
    ),
    "02.4": Exercise(
        reference=_step,
        cases=STEP_CASES,
        mistakes=[
            (
                lambda x_t, eps, z, beta, bar, last: (
                    _mean(x_t, eps, beta, bar) + (0 if last else beta) * z
                ),
                "beta_t is the variance of the noise put back; multiply z by its square root, "
                "the standard deviation.",
            ),
            (
                lambda x_t, eps, z, beta, bar, last: _mean(x_t, eps, beta, bar) + beta**0.5 * z,
                "Right but for the last step: there no noise is put back, the mean is the answer.",
            ),
            (
                lambda x_t, eps, z, beta, bar, last: _mean(x_t, eps, beta, bar) + beta * z,
                "Two things: multiply z by sqrt(beta_t), not beta_t (a variance), and add no "
                "noise at the last step.",
            ),
            (
                lambda x_t, eps, z, beta, bar, last: _mean(x_t, eps, beta, bar),
                "That is the mean only: a reverse step is a draw, so add noise (not at the last "
                "step).",
            ),
            (
                lambda x_t, eps, z, beta, bar, last: _mean(
                    x_t + (0 if last else beta**0.5) * z, eps, beta, bar
                ),
                "The noise is added after dividing by sqrt(alpha_t), not before: x_{t-1} = mean "
                "+ sqrt(beta_t) z.",
            ),
            (
                lambda x_t, eps, z, beta, bar, last: (
                    _mean(x_t, eps, beta, bar) + (beta**0.5 if last else 0) * z
                ),
                "The wrong way round: noise at every step except the last.",
            ),
        ],
        right="A few hundred of these turn noise into a Swiss roll.",
    ),
}
