"""Exercises: the forward process; indices start at 0, as in their texts. Notebook 01."""

import torch

from .check import Exercise

BETA = torch.tensor(
    [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4], dtype=torch.float64
)  # large, so that mistakes show
ALPHA_BAR = torch.cumprod(1 - BETA, 0)


def per_picture(values):
    """(B,) -> (B, 1, 1, 1)."""
    return values.reshape(-1, 1, 1, 1)


def jump(signal, noise):
    """An answer to 01.1 whose two coefficients are functions of (beta, t)."""
    return lambda x_0, t, eps, beta: (
        per_picture(signal(beta, t)) * x_0 + per_picture(noise(beta, t)) * eps
    )


def bar(beta, t):
    return torch.cumprod(1 - beta, 0)[t]


def signal(beta, t):
    return bar(beta, t).sqrt()


def noise(beta, t):
    return (1 - bar(beta, t)).sqrt()


def by_column(x_0, t, eps, beta):
    return signal(beta, t) * x_0 + noise(beta, t) * eps


def batch(seed):
    """Four pictures of 4 x 4 pixels: B equals the width, so forgetting to reshape t gives no error
    of torch."""
    g = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, 4, 1, 4, 4, generator=g, dtype=torch.float64)
    return x_0, torch.randint(1, len(BETA) - 1, (4,), generator=g), eps, BETA


def alpha_bar_before(alpha_bar):
    return torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])


def mend(alpha_bar):
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def without_last(alpha_bar):
    return torch.cat([alpha_bar[:-1], torch.zeros(1, dtype=alpha_bar.dtype)])


EXERCISES = {
    "01.1": Exercise(
        reference=jump(signal, noise),
        cases=[batch(0), batch(1)],
        mistakes=[
            (
                by_column,
                "Each pixel column got its own t, not each picture: the coefficients have shape "
                "(B,), and broadcasting lines them up "
                "with the last axis. Reshape them to (B, 1, 1, 1).",
            ),
            (
                jump(signal, lambda beta, t: 1 - bar(beta, t)),
                "1 - alpha_bar is the variance of the noise. What multiplies eps is its square "
                "root.",
            ),
            (
                jump(bar, noise),
                "The mean coefficient is sqrt(alpha_bar): the square root of x_0's coefficient "
                "is missing.",
            ),
            (
                jump(bar, lambda beta, t: 1 - bar(beta, t)),
                "Both square roots are missing: sqrt(alpha_bar) and sqrt(1 - alpha_bar).",
            ),
            (
                jump(noise, signal),
                "The two coefficients are swapped: sqrt(alpha_bar) belongs to x_0, sqrt(1 - "
                "alpha_bar) to eps.",
            ),
            (
                jump(lambda beta, t: (1 - beta[t]).sqrt(), lambda beta, t: beta[t].sqrt()),
                "That is one single step, with alpha_t. The jump needs alpha_bar_t, the product "
                "of all alphas up to t.",
            ),
            (
                jump(
                    lambda beta, t: (1 - beta).prod().sqrt().repeat(len(t)),
                    lambda beta, t: (1 - (1 - beta).prod()).sqrt().repeat(len(t)),
                ),
                "Your product runs over the whole schedule, up to T. alpha_bar_t multiplies only "
                "up to t: use torch.cumprod and pick entry t.",
            ),
            (
                jump(lambda beta, t: signal(beta, t - 1), lambda beta, t: noise(beta, t - 1)),
                "Off by one: here t indexes the array directly (0 is the first step), so do not "
                "subtract 1.",
            ),
            (
                jump(
                    lambda beta, t: torch.cumprod(beta, 0)[t].sqrt(),
                    lambda beta, t: (1 - torch.cumprod(beta, 0)[t]).sqrt(),
                ),
                "You multiplied the betas. alpha_bar is the running product of alpha = 1 - beta.",
            ),
        ],
        right="Every picture jumps to its own t. This is the line that training calls for "
        "every batch.",
    ),
    "01.2": Exercise(
        reference=lambda a, s, t: ((a[t] / a[s]).sqrt(), 1 - a[t] / a[s]),
        cases=[(ALPHA_BAR, 1, 5), (ALPHA_BAR, 0, 7), (ALPHA_BAR, 3, 4)],
        mistakes=[
            (
                lambda a, s, t: (a[t].sqrt(), 1 - a[t]),
                "That is the jump from x_0. From x_s only the alphas after s are left: "
                "alpha_bar_t / alpha_bar_s.",
            ),
            (
                lambda a, s, t: (a[t] / a[s], 1 - a[t] / a[s]),
                "The mean coefficient is a square root: sqrt(alpha_bar_t / alpha_bar_s).",
            ),
            (
                lambda a, s, t: ((a[t] / a[s]).sqrt(), (1 - a[t] / a[s]).sqrt()),
                "The second number is the standard deviation. The variance is asked for: no "
                "square root.",
            ),
            (
                lambda a, s, t: ((a[t] / a[s]).sqrt(), a[s] - a[t]),
                "The variance is not the difference alpha_bar_s - alpha_bar_t: the noise already "
                "in x_s shrinks, too. Merge the steps after s: 1 - (their product).",
            ),
            (
                lambda a, s, t: ((a[t] / a[s]).sqrt(), 1 - a[t]),
                "The coefficient is right, but 1 - alpha_bar_t counts all the noise since x_0. "
                "Here x_s is given, so only the noise added after s counts.",
            ),
            (
                lambda a, s, t: ((a[s] / a[t]).sqrt(), 1 - a[s] / a[t]),
                "The quotient is upside down: it must be below 1, as pictures shrink on the way "
                "to t > s.",
            ),
        ],
        right="The same formula serves one step (s = t - 1) and the jump from x_0.",
    ),
    "01.3": Exercise(
        reference=lambda a: 1 - a / alpha_bar_before(a),
        cases=[(ALPHA_BAR,), (torch.tensor([0.9, 0.5, 0.2, 0.1], dtype=torch.float64),)],
        mistakes=[
            (
                lambda a: 1 - a,
                "1 - alpha_bar_t is the noise of all steps together. One step's share comes from "
                "the quotient alpha_bar_t / alpha_bar_{t-1}.",
            ),
            (lambda a: a / alpha_bar_before(a), "That quotient is alpha_t. beta_t is 1 - alpha_t."),
            (
                lambda a: alpha_bar_before(a) - a,
                "alpha_bar is a product, not a sum, so its steps are quotients: divide "
                "alpha_bar_t by alpha_bar_{t-1} instead of subtracting.",
            ),
            (
                lambda a: 1 - a[1:] / a[:-1],
                "One beta is missing, the first: before step 1 there is alpha_bar_0 = 1, so "
                "beta_1 = 1 - alpha_bar_1.",
            ),
            (
                lambda a: torch.cat([torch.zeros(1, dtype=a.dtype), 1 - a[1:] / a[:-1]]),
                "The first beta is not 0: before step 1 there is alpha_bar_0 = 1, so beta_1 = 1 "
                "- alpha_bar_1.",
            ),
            (
                lambda a: 1 - alpha_bar_before(a) / a,
                "The quotient is upside down, so beta came out negative: it is alpha_bar_t / "
                "alpha_bar_{t-1}, below 1.",
            ),
        ],
        right="Any falling curve between 1 and 0 is a schedule now. Schedule.from_alpha_bar "
        "does the same.",
    ),
    "01.4": Exercise(
        reference=mend,
        cases=[(ALPHA_BAR,), (torch.tensor([0.95, 0.6, 0.3, 0.09], dtype=torch.float64),)],
        mistakes=[
            (
                lambda a: mend(a).sqrt(),
                "You return sqrt(alpha_bar). Square it at the end: alpha_bar is asked for.",
            ),
            (
                lambda a: (a.sqrt() - a[-1].sqrt()) ** 2,
                "The end is 0 now, but the first value has changed, too. Stretch by "
                "sqrt(alpha_bar_1) / (sqrt(alpha_bar_1) - sqrt(alpha_bar_T)).",
            ),
            (
                lambda a: (a - a[-1]) * a[0] / (a[0] - a[-1]),
                "You shifted alpha_bar itself. The formula shifts its square root, and squares "
                "at the end.",
            ),
            (
                without_last,
                "Setting only the last value to 0 makes one giant step at the end. Shift the "
                "whole curve.",
            ),
        ],
        right="The first value is kept, the last is exactly 0: nothing leaks.",
    ),
}
