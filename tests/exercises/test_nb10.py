"""Wrong answers of notebook 10 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers


def begin(z_0, eps, times, alpha_bar, strength):
    n = math.floor(strength * len(times))
    rest = times[-n:]
    bar = alpha_bar[rest[0]].item()
    return math.sqrt(bar) * z_0 + math.sqrt(1 - bar) * eps, rest


def blend(x, z_0, eps, mask, t, alpha_bar):
    bar = alpha_bar[t].item() if t >= 0 else 1.0
    known = math.sqrt(bar) * z_0 + math.sqrt(1 - bar) * eps
    return torch.where(mask.bool(), x, known)


def added(skip, features, weight, bias, strength):
    conv = torch.nn.functional.conv2d(features, weight[:, :, None, None], bias)
    return skip + strength * conv


def back(x, eps, bar, bar_next):
    x_0 = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
    return math.sqrt(bar_next) * x_0 + math.sqrt(1 - bar_next) * eps


def readings(model, x, cond_a, cond_b, view, back):
    return torch.stack([model(x, cond_a), back(model(view(x), cond_b))]).mean(0)


RIGHT = {"10.1": begin, "10.2": blend, "10.3": added, "10.4": back, "10.5": readings}

WRONG = [
    ("10.1", lambda z, e, t, a, s: begin(z, e, t, a, 1.0), "numbers differ"),
    ("10.1", lambda z, e, t, a, s: (begin(z, e, t, a, s)[0], t), "all of the times"),
    ("10.1", lambda z, e, t, a, s: begin(0 * z, e, t, a, s), "noise alone"),
    ("10.1", lambda z, e, t, a, s: begin(z, e, t, a**2, s), "numbers differ"),
    ("10.2", lambda x, z, e, m, t, a: blend(x, z, e, 1 - m, t, a), "swapped"),
    ("10.2", lambda x, z, e, m, t, a: m * x + (1 - m) * z, "clean latent"),
    ("10.2", lambda x, z, e, m, t, a: blend(x, z, e, m, t % 100, a), "LAST"),
    ("10.3", lambda s, f, w, b, k: added(s, f, w, 0 * b, k), "bias is missing"),
    ("10.3", lambda s, f, w, b, k: added(s, f, w.T.contiguous(), b, k), "(out, in)"),
    ("10.3", lambda s, f, w, b, k: k * added(s, f, w, b, 1), "multiplies the skip"),
    ("10.4", lambda x, e, b, c: back(x, e, c, b), "swapped"),
    ("10.4", lambda x, e, b, c: back(x, e, b, c) / c**0.5, "numbers differ"),
    ("10.4", lambda x, e, b, c: back(x, e, 1.0, c), "as if it were clean"),
    ("10.5", lambda m, x, a, b, v, w: (m(x, a) + m(v(x), b)) / 2, "turn it back"),
    ("10.5", lambda m, x, a, b, v, w: (m(x, a) + v(m(v(x), b))) / 2, "further instead of back"),
    ("10.5", lambda m, x, a, b, v, w: 2 * readings(m, x, a, b, v, w), "not the sum"),
]

TestAnswers = answers(RIGHT, WRONG)
