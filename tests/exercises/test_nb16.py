"""Wrong answers of notebook 16 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers


def velocity(x_t, v, s, n):
    return (n - s) * x_t + (s + n) * v


def shifted(u, shift):
    return shift * u / (1 + (shift - 1) * u)


def gated(x, f, shift, scale, gate):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    h = (x - mean) / (var + 1e-6).sqrt()
    return x + gate.unsqueeze(1) * f(h + h * scale.unsqueeze(1) + shift.unsqueeze(1))


def weight(snr, gamma, predict):
    s, n = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    share = {"x_0": 1, "eps": n / s, "v": n, "flow": n / (s + n)}[predict]
    return snr.clamp(max=gamma) * share**2


def halves(step, x, u, d):
    a = step(x, u, d)
    return (a + step(x - d * a, u - d, d)) / 2


RIGHT = {"16.1": velocity, "16.2": shifted, "16.3": gated, "16.4": weight, "16.5": halves}

WRONG = [
    ("16.1", lambda x, v, s, n: -velocity(x, v, s, n), "x_0 - eps"),
    ("16.1", lambda x, v, s, n: 1 * v, "v is not the velocity"),
    ("16.1", lambda x, v, s, n: n * x + s * v - (s * x + n * v), "sign in x_0"),
    ("16.1", lambda x, v, s, n: velocity(x, v, s**2, n**2), "numbers differ"),
    ("16.2", lambda u, shift: u * shift, "multiplied u itself"),
    ("16.2", lambda u, shift: shifted(u, 1 / shift), "other way"),
    ("16.2", lambda u, shift: shifted(u, math.sqrt(shift)), "without a root"),
    ("16.2", lambda u, shift: shift * u / (1 - u) / (1 + shift * u / (1 - u)), "NaN"),
    ("16.3", lambda x, f, a, b, g: gated(x, f, a, b - 1, g), "1 + scale"),
    ("16.3", lambda x, f, a, b, g: gated(x, f, a, b, g) - x, "residual"),
    ("16.3", lambda x, f, a, b, g: gated(x, f, a, b, torch.ones_like(g)), "gate is missing"),
    ("16.3", lambda x, f, a, b, g: x + g[:, None] * f(x * (1 + b[:, None]) + a[:, None]), "LayerNorm is"),
    ("16.4", lambda z, gamma, p: weight(z, gamma, "x_0"), "x_0 only"),
    ("16.4", lambda z, gamma, p: weight(z, gamma, "eps" if p == "v" else p), "snr + 1"),
    ("16.4", lambda z, gamma, p: weight(z, gamma, p) / z.clamp(max=gamma) * z.clamp(min=gamma), "lid"),
    ("16.5", lambda f, x, u, d: (f(x, u, d) + f(x, u - d, d)) / 2, "where the first one ended"),
    ("16.5", lambda f, x, u, d: 2 * halves(f, x, u, d), "not the sum"),
    ("16.5", lambda f, x, u, d: (f(x, u, d) + f(x - d * f(x, u, d), u, d)) / 2, "at u again"),
    ("16.5", lambda f, x, u, d: f(x, u, 2 * d), "numbers differ"),
]  # fmt: skip

TestAnswers = answers(RIGHT, WRONG)
