"""Wrong answers of notebook 13 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers


def excess(original, target):
    (h, w), (th, tw) = original, target
    k = max(th / h, tw / w)
    return round(h * k) - th, round(w * k) - tw


def shapes(side, step, widest):
    found = set()
    for k in range(1, side // step + 1):
        w, h = k * step, math.floor(side**2 / (k * step * step)) * step
        if h / w <= widest:
            found |= {(h, w), (w, h)}
    return sorted(found)[::-1]


def batches(bucket, batch_size):
    out, waiting = {}, {}
    for i, k in enumerate(bucket):
        waiting.setdefault(k, []).append(i)
        if len(waiting[k]) == batch_size:
            out.setdefault(k, []).append(waiting.pop(k))
    return [batch for k in sorted(out) for batch in out[k]]


def zero_terminal(alpha_bar):
    first, last = alpha_bar[0] ** 0.5, alpha_bar[-1] ** 0.5
    return (first * (alpha_bar**0.5 - last) / (first - last)).square()


def offset(eps, shared, strength):
    return torch.stack([e + (strength * s).view(-1, 1, 1) for e, s in zip(eps, shared)])


RIGHT = {"13.1": excess, "13.2": shapes, "13.3": batches, "13.5": zero_terminal, "13.4": offset}

WRONG = [
    ("13.1", lambda o, t: excess(o, t)[::-1], "swapped"),
    ("13.1", lambda o, t: (o[0] - t[0], o[1] - t[1]), "without resizing"),
    ("13.1", lambda o, t: (0, 0), "stretched"),
    ("13.2", lambda s, k, a: [p for p in shapes(s, k, a) if p[0] >= p[1]], "wide ones"),
    ("13.2", lambda s, k, a: shapes(s, k, 10**9), "narrower"),
    ("13.2", lambda s, k, a: [(s, s)], "Expected"),
    ("13.3", lambda b, n: [list(range(n))], "Expected"),
    (
        "13.3",
        lambda b, n: [list(range(i, i + n)) for i in range(0, len(b) - n + 1, n)],
        "mix buckets",
    ),
    ("13.3", lambda b, n: [[b[i] for i in row] for row in batches(b, n)], "not of their buckets"),
    ("13.5", lambda a: zero_terminal(a).sqrt(), "roots"),
    ("13.5", lambda a: a * (torch.arange(len(a)) < len(a) - 1), "Only the last"),
    ("13.4", lambda e, s, k: offset(e, s, k * k), "squared"),
    ("13.4", lambda e, s, k: e + k, "same offset"),
    ("13.4", lambda e, s, k: offset(e, s, k) / math.sqrt(1 + k * k), "variance 1"),
]

TestAnswers = answers(RIGHT, WRONG)
