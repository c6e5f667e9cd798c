"""Wrong answers of notebook 01 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import numpy as np
import torch
from common import answers

from ddpm_edu import Schedule


def right_batch(x_0, t, eps, beta):
    rows = []
    for picture, when, dice in zip(x_0, t.tolist(), eps):
        kept = math.prod(1 - b for b in beta[: when + 1].tolist())
        rows.append(math.sqrt(kept) * picture + math.sqrt(1 - kept) * dice)
    return torch.stack(rows)


def right_jump(alpha_bar, s, t):
    mean, variance = 1.0, 0.0  # step by step, as in notebook 01
    for k in range(s + 1, t + 1):
        alpha = (alpha_bar[k] / alpha_bar[k - 1]).item()
        mean, variance = math.sqrt(alpha) * mean, alpha * variance + 1 - alpha
    return mean, variance


def right_mend(alpha_bar):
    first, last = math.sqrt(alpha_bar[0]), math.sqrt(alpha_bar[-1])
    return [((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in alpha_bar.tolist()]


RIGHT = {
    "01.1": right_batch,
    "01.2": right_jump,
    "01.3": lambda alpha_bar: Schedule.from_alpha_bar(alpha_bar).beta,
    "01.4": right_mend,
}


def no_reshape(x_0, t, eps, beta):
    ab = (1 - beta).cumprod(0)[t]
    return ab**0.5 * x_0 + (1 - ab) ** 0.5 * eps


def variance_as_scale(x_0, t, eps, beta):
    ab = (1 - beta).cumprod(0)[t].view(-1, 1, 1, 1)
    return torch.sqrt(ab) * x_0 + (1 - ab) * eps


def one_step_only(x_0, t, eps, beta):
    b = beta[t][:, None, None, None]
    return torch.sqrt(1 - b) * x_0 + torch.sqrt(b) * eps


def product_to_the_end(x_0, t, eps, beta):
    ab = torch.prod(1 - beta)
    return ab.sqrt() * x_0 + (1 - ab).sqrt() * eps


def counts_from_one(x_0, t, eps, beta):
    ab = torch.cumprod(1 - beta, 0)[t - 1].view(-1, 1, 1, 1)
    return ab.sqrt() * x_0 + (1 - ab).sqrt() * eps


def swapped(x_0, t, eps, beta):
    return RIGHT["01.1"](eps, t, x_0, beta)


def writes_into_x_0(x_0, t, eps, beta):
    ab = torch.cumprod(1 - beta, 0)[t].view(-1, 1, 1, 1)
    x_0 *= ab.sqrt()
    return x_0 + (1 - ab).sqrt() * eps


def from_the_start(alpha_bar, s, t):
    return math.sqrt(alpha_bar[t]), 1 - alpha_bar[t]


def difference_of_signals(alpha_bar, s, t):
    return math.sqrt(alpha_bar[t] / alpha_bar[s]), alpha_bar[s] - alpha_bar[t]


def standard_deviation(alpha_bar, s, t):
    c = math.sqrt(alpha_bar[t] / alpha_bar[s])
    return c, math.sqrt(1 - c**2)


def upside_down(alpha_bar, s, t):
    ratio = alpha_bar[s] / alpha_bar[t]
    return ratio.sqrt(), 1 - ratio


def forgets_the_first(alpha_bar):
    return torch.tensor([1 - alpha_bar[i] / alpha_bar[i - 1] for i in range(1, len(alpha_bar))])


def first_is_zero(alpha_bar):
    return torch.tensor(
        [0.0] + [1 - alpha_bar[i] / alpha_bar[i - 1] for i in range(1, len(alpha_bar))]
    )


def subtracts(alpha_bar):
    return -np.diff(alpha_bar.numpy(), prepend=1.0)


def alpha_itself(alpha_bar):
    return 1 - Schedule.from_alpha_bar(alpha_bar).beta


def no_root(alpha_bar):
    return (alpha_bar - alpha_bar[-1]) / (alpha_bar[0] - alpha_bar[-1]) * alpha_bar[0]


def no_stretch(alpha_bar):
    return (torch.sqrt(alpha_bar) - torch.sqrt(alpha_bar[-1])).square()


def not_squared(alpha_bar):
    return [math.sqrt(a) for a in right_mend(alpha_bar)]


def only_the_last(alpha_bar):
    out = alpha_bar.clone()
    out[-1] = 0
    return out


WRONG = [
    ("01.1", no_reshape, "column"),
    ("01.1", variance_as_scale, "square root"),
    ("01.1", one_step_only, "single step"),
    ("01.1", product_to_the_end, "up to T"),
    ("01.1", counts_from_one, "Off by one"),
    ("01.1", swapped, "swapped"),
    ("01.1", writes_into_x_0, "changes its inputs"),
    ("01.2", from_the_start, "jump from x_0"),
    ("01.2", difference_of_signals, "not the difference"),
    ("01.2", standard_deviation, "standard deviation"),
    ("01.2", upside_down, "upside down"),
    ("01.3", forgets_the_first, "the first"),
    ("01.3", first_is_zero, "not 0"),
    ("01.3", subtracts, "not a sum"),
    ("01.3", alpha_itself, "alpha_t"),
    ("01.4", no_root, "alpha_bar itself"),
    ("01.4", no_stretch, "Stretch"),
    ("01.4", not_squared, "Square it"),
    ("01.4", only_the_last, "giant step"),
]

TestAnswers = answers(RIGHT, WRONG)
