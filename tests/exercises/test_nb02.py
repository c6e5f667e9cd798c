"""Wrong answers of notebook 02 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers

RIGHT = {
    "02.1": lambda x_t, eps, b, ab: (
        (x_t - (1 - (1 - b)) * eps / math.sqrt(1 - ab)) / math.sqrt(1 - b)
    ),
    "02.2": lambda mq, vq, mp, vp: sum(
        0.5 * (vq / vp - 1 - math.log(vq / vp) + (a - b) ** 2 / vp) for a, b in zip(mq, mp)
    ),
    "02.3": lambda eps, ab: eps * -((1 - ab) ** -0.5),
    "02.4": lambda x, e, z, b, ab, last: (
        (x - b * e / math.sqrt(1 - ab)) / math.sqrt(1 - b) + (0 if last else math.sqrt(b)) * z
    ),
}


def forgot_root_of_alpha(x_t, eps, beta_t, alpha_bar_t):
    return (x_t - beta_t / math.sqrt(1 - alpha_bar_t) * eps) / (1 - beta_t)


def jumped_to_the_end(x_t, eps, beta_t, alpha_bar_t):
    return x_t / math.sqrt(alpha_bar_t) - math.sqrt(1 / alpha_bar_t - 1) * eps


def never_unshrunk(x_t, eps, beta_t, alpha_bar_t):
    share = beta_t / math.sqrt(1 - alpha_bar_t)
    return x_t - share * eps


def variance_under_eps(x_t, eps, beta_t, alpha_bar_t):
    return (x_t - eps * beta_t / (1 - alpha_bar_t)) / math.sqrt(1 - beta_t)


def other_direction(mean_q, var_q, mean_p, var_p):
    return sum(
        0.5 * math.log(var_q / var_p) + (var_p + (a - b) ** 2) / (2 * var_q) - 0.5
        for a, b in zip(mean_q, mean_p)
    )


def took_stds(mean_q, var_q, mean_p, var_p):
    s, r = var_q, var_p
    return sum(
        math.log(r / s) + (s**2 + (a - b) ** 2) / (2 * r**2) - 0.5 for a, b in zip(mean_q, mean_p)
    )


def only_one_dimension(mean_q, var_q, mean_p, var_p):
    gap = torch.sum((mean_q - mean_p) ** 2)
    return math.log(math.sqrt(var_p / var_q)) + (var_q + gap) / (2 * var_p) - 0.5


def one_number_a_direction(mean_q, var_q, mean_p, var_p):
    return 0.5 * (math.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


def no_minus_one(mean_q, var_q, mean_p, var_p):
    return sum(
        0.5 * (math.log(var_p / var_q) + (var_q + (a - b) ** 2) / var_p)
        for a, b in zip(mean_q, mean_p)
    )


def std_is_variance(x_t, eps, z, beta_t, alpha_bar_t, last):
    mean = RIGHT["02.1"](x_t, eps, beta_t, alpha_bar_t)
    return mean if last else mean + beta_t * z


def always_noise(x_t, eps, z, beta_t, alpha_bar_t, last):
    return RIGHT["02.1"](x_t, eps, beta_t, alpha_bar_t) + math.sqrt(beta_t) * z


def noise_at_the_end_only(x_t, eps, z, beta_t, alpha_bar_t, last):
    return RIGHT["02.1"](x_t, eps, beta_t, alpha_bar_t) + math.sqrt(beta_t) * z * last


def no_draw(x_t, eps, z, beta_t, alpha_bar_t, last):
    return RIGHT["02.1"](x_t, eps, beta_t, alpha_bar_t)


WRONG = [
    ("02.1", forgot_root_of_alpha, "differ"),
    ("02.1", jumped_to_the_end, "x0_hat"),
    ("02.1", never_unshrunk, "shrinking of this step"),
    ("02.1", variance_under_eps, "left out the root"),
    ("02.2", other_direction, "other direction"),
    ("02.2", took_stds, "already sigma squared"),
    ("02.2", only_one_dimension, "one dimension"),
    ("02.2", one_number_a_direction, "shape is (2,), expected ()"),
    ("02.2", no_minus_one, "-1 for each direction"),
    ("02.3", lambda eps, ab: eps / torch.sqrt(torch.tensor(1 - ab)), "sign"),
    ("02.3", lambda eps, ab: eps / (ab - 1), "standard deviation"),
    ("02.3", lambda eps, ab: -math.sqrt(1 - ab) * eps, "Upside down"),
    ("02.3", lambda eps, ab: -eps * math.sqrt(ab / (1 - ab)), "x_t / sqrt(alpha_bar_t)"),
    ("02.4", std_is_variance, "beta_t is the variance"),
    ("02.4", always_noise, "last step"),
    ("02.4", noise_at_the_end_only, "wrong way round"),
    ("02.4", no_draw, "mean only"),
]

TestAnswers = answers(RIGHT, WRONG)
