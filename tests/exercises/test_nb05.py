"""Wrong answers of notebook 05 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers


def ddim_step(x0_hat, eps, z, ab_t, ab_s, eta):
    sigma2 = eta**2 * (1 - ab_s) / (1 - ab_t) * (ab_s - ab_t) / ab_s
    return math.sqrt(ab_s) * x0_hat + math.sqrt(1 - ab_s - sigma2) * eps + math.sqrt(sigma2) * z


def heun_step(f, x_bar, a, b):
    h = b - a
    k1 = f(x_bar, a)
    k2 = k1 if b == 0 else f(x_bar + h * k1, b)
    return x_bar + 0.5 * h * k1 + 0.5 * h * k2


RIGHT = {
    "05.1": ddim_step,
    "05.2": heun_step,
    "05.3": lambda denoise, x, c, w: w * denoise(x, c) + (1 - w) * denoise(x, 0 * c),
    "05.4": lambda x, y, a: torch.lerp(x, y, a) / math.sqrt(1 - 2 * a + 2 * a * a),
}


def all_old_and_fresh_too(x0_hat, eps, z, ab_t, ab_s, eta):
    s = eta * math.sqrt((1 - ab_s) / (1 - ab_t)) * math.sqrt(1 - ab_t / ab_s)
    return math.sqrt(ab_s) * x0_hat + math.sqrt(1 - ab_s) * eps + s * z


def never_random(x0_hat, eps, z, ab_t, ab_s, eta):
    return math.sqrt(ab_s) * x0_hat + math.sqrt(1 - ab_s) * eps


def large_variance(x0_hat, eps, z, ab_t, ab_s, eta):
    s = eta * math.sqrt(1 - ab_t / ab_s)
    return math.sqrt(ab_s) * x0_hat + math.sqrt(max(0, 1 - ab_s - s * s)) * eps + s * z


def landed_at_t(x0_hat, eps, z, ab_t, ab_s, eta):
    s2 = eta**2 * (1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)
    return ab_t**0.5 * x0_hat + (1 - ab_s - s2) ** 0.5 * eps + s2**0.5 * z


def took_the_variance(x0_hat, eps, z, ab_t, ab_s, eta):
    s = eta**2 * (1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s)
    return ab_s**0.5 * x0_hat + (1 - ab_s - s**2) ** 0.5 * eps + s * z


def only_euler(f, x_bar, a, b):
    return x_bar - (a - b) * f(x_bar, a)


def no_special_end(f, x_bar, a, b):
    guess = x_bar + (b - a) * f(x_bar, a)
    return x_bar + (b - a) * 0.5 * (f(x_bar, a) + f(guess, b))


def forgot_the_half(f, x_bar, a, b):
    k = f(x_bar, a)
    if b == 0:
        return x_bar + (b - a) * k
    return x_bar + (b - a) * (k + f(x_bar + (b - a) * k, b))


def slope_at_the_old_sigma(f, x_bar, a, b):
    k, h = f(x_bar, a), b - a
    return x_bar + h * k if b == 0 else x_bar + h / 2 * k + h / 2 * f(x_bar + h * k, a)


def midpoint(f, x_bar, a, b):
    if b == 0:
        return x_bar + (b - a) * f(x_bar, a)
    half = x_bar + 0.5 * (b - a) * f(x_bar, a)
    return x_bar + (b - a) * f(half, 0.5 * (a + b))


def paper_w(denoise, x, c, w):
    return (1 + w) * denoise(x, c) - w * denoise(x, 0 * c)


def away(denoise, x, c, w):
    return (1 - w) * denoise(x, c) + w * denoise(x, 0 * c)


def no_difference(denoise, x, c, w):
    return denoise(x, 0 * c) + w * denoise(x, c)


def louder_class(denoise, x, c, w):
    return denoise(x, c * w)


WRONG = [
    ("05.1", all_old_and_fresh_too, "what is left"),
    ("05.1", never_random, "eta = 0"),
    ("05.1", large_variance, "large variance"),
    ("05.1", landed_at_t, "level of s"),
    ("05.1", took_the_variance, "standard deviation"),
    ("05.2", only_euler, "That is Euler"),
    ("05.2", no_special_end, "sigma = 0"),
    ("05.2", forgot_the_half, "twice too far"),
    ("05.2", slope_at_the_old_sigma, "f(guess, b)"),
    ("05.2", midpoint, "midpoint"),
    ("05.3", paper_w, "paper's w"),
    ("05.3", away, "wrong way round"),
    ("05.3", no_difference, "difference is missing"),
    ("05.3", louder_class, "class vector"),
    ("05.4", lambda x, y, a: torch.lerp(x, y, a), "plain lerp"),
    ("05.4", lambda x, y, a: torch.lerp(x, y, a) / (1 - 2 * a + 2 * a * a), "standard deviation"),
    ("05.4", lambda x, y, a: math.sqrt(1 - a) * x + math.sqrt(a) * y, "another road"),
    ("05.4", lambda x, y, a: torch.lerp(y, x, a) / math.sqrt(1 - 2 * a + 2 * a * a), "swapped"),
]

TestAnswers = answers(RIGHT, WRONG)
