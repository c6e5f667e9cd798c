"""Wrong answers of notebook 04 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
import torch.nn.functional as F
from common import answers


def noisy(x_0, t, eps, alpha_bar):
    signal = torch.sqrt(alpha_bar)[t][:, None, None, None]
    return signal * x_0 + torch.sqrt(1 - signal**2) * eps


RIGHT = {
    "04.1": lambda model, x_0, t, eps, ab: F.mse_loss(model(noisy(x_0, t, eps, ab), t), eps),
    "04.3": lambda average, weights, decay, k: torch.lerp(
        weights, average, decay if decay * (10 + k) < 1 + k else (1 + k) / (10 + k)
    ),
    "04.2": lambda k, steps, peak, warmup: (
        peak
        * (1.0 if k + 1 >= warmup else (k + 1) / warmup)
        * math.cos(math.pi * k / steps / 2) ** 2
    ),
    "04.4": {"D": "healthy", "C": "fast", "B": "0 to 1", "A": "mix-up"},
}


def gave_the_clean_picture(model, x_0, t, eps, alpha_bar):
    return F.mse_loss(model(x_0, t), eps)


def forgot_the_roots(model, x_0, t, eps, alpha_bar):
    a = alpha_bar[t].reshape(-1, 1, 1, 1)
    return F.mse_loss(model(a * x_0 + (1 - a) * eps, t), eps)


def compared_with_the_picture(model, x_0, t, eps, alpha_bar):
    return F.mse_loss(model(noisy(x_0, t, eps, alpha_bar), t), x_0)


def summed(model, x_0, t, eps, alpha_bar):
    return torch.sum((model(noisy(x_0, t, eps, alpha_bar), t) - eps) ** 2)


def absolute(model, x_0, t, eps, alpha_bar):
    return F.l1_loss(model(noisy(x_0, t, eps, alpha_bar), t), eps)


def constant_decay(average, weights, decay, k):
    return average + (1 - decay) * (weights - average)


def the_wrong_way_round(average, weights, decay, k):
    d = min(decay, (1 + k) / (10 + k))
    return (1 - d) * average + d * weights


def wrote_into_the_average(average, weights, decay, k):
    return average.lerp_(weights, 1 - min(decay, (1 + k) / (10 + k)))


def no_warm_up(k, steps, peak, warmup):
    return peak / 2 * (1 + math.cos(math.pi * k / steps))


def starts_at_zero(k, steps, peak, warmup):
    rise = k / warmup if k < warmup else 1
    return peak * rise * (1 + math.cos(math.pi * k / steps)) / 2


def whole_turn(k, steps, peak, warmup):
    rise = min((k + 1) / warmup, 1) if warmup else 1
    return peak * rise * 0.5 * (1 + math.cos(2 * math.pi * k / steps))


def never_falls(k, steps, peak, warmup):
    return peak * min((k + 1) / warmup, 1) if warmup else peak


WRONG = [
    ("04.1", gave_the_clean_picture, "must see the noisy"),
    ("04.1", forgot_the_roots, "square roots"),
    ("04.1", compared_with_the_picture, "guesses eps"),
    ("04.1", summed, "mean"),
    ("04.1", absolute, "square it"),
    ("04.3", constant_decay, "starts small"),
    ("04.3", the_wrong_way_round, "wrong way round"),
    ("04.3", wrote_into_the_average, "changes its inputs"),
    ("04.2", no_warm_up, "warm-up is missing"),
    ("04.2", starts_at_zero, "counts from 0"),
    ("04.2", whole_turn, "whole turn"),
    ("04.2", never_falls, "half cosine"),
    ("04.4", {"A": "healthy", "B": "0 to 1", "C": "fast", "D": "mix-up"}, "it draws noise"),
    ("04.4", {"A": "mix-up", "B": "blind", "C": "fast", "D": "healthy"}, "grey"),
    ("04.4", {"A": "mix-up", "B": "0 to 1", "C": "0 to 255", "D": "healthy"}, "leap"),
    ("04.4", {"A": "mix-up", "B": "0 to 1", "C": "slow", "D": "healthy"}, "not in the table"),
    ("04.4", "mix-up", "dict"),
]
STUBS = {"04.4": dict.fromkeys("ABCD", ...)}

TestAnswers = answers(RIGHT, WRONG, STUBS)
