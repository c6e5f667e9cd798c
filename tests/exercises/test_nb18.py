"""Wrong answers of notebook 18 as a student would write them: each must be caught, with the hint that names the mistake."""

import torch
from common import answers

from ddpm_edu import class_cond


def count(sampler, steps, guidance):
    n = 2 * steps - 1 if sampler == "heun" else steps
    return n * (2 if guidance > 1 else 1)


def walk(net, levels, x_T, labels, evaluations):
    x, cond = x_T, class_cond(labels)
    for i in range(evaluations):
        t, s, n = levels(evaluations, i)
        v = net(x, torch.full((len(x),), t), cond)
        t, s_next, n_next = levels(evaluations, i + 1)
        x = s_next * (s * x - n * v) + n_next * (n * x + s * v)
    return x


def backwards(net, levels, x_T, labels, k):
    """Noise added anew at each level: another sampler, not DDIM."""
    x = x_T
    for i in range(k):
        t, s, n = levels(k, i)
        x_0 = s * x - n * net(x, torch.full((len(x),), t), class_cond(labels))
        _, s, n = levels(k, i + 1)
        x = s * x_0 + n * x_T
    return x


def points(accuracy, frechet):
    return sum(100 * a / (1 + f) for a, f in zip(accuracy, frechet)) / 4


RIGHT = {"18.1": count, "18.2": walk, "18.3": points}

WRONG = [
    ("18.1", lambda sampler, steps, guidance: count(sampler, steps, 1), "twice"),
    ("18.1", lambda sampler, steps, g: 2 * steps if sampler == "heun" and g == 1 else count(sampler, steps, g) + 2 * (sampler == "heun"), "last step"),
    ("18.1", lambda sampler, steps, guidance: count("ddim", steps, guidance), "both ends"),
    ("18.2", lambda net, levels, x, labels, k: walk(net, levels, x, labels, k - 1) if k > 1 else x, "numbers differ"),
    ("18.2", lambda net, levels, x, labels, k: walk(lambda a, t, c: -net(a, t, c), levels, x, labels, k), "numbers differ"),
    ("18.2", lambda net, levels, x, labels, k: walk(lambda a, t, c: net(a, t, class_cond(-torch.ones(len(a), dtype=torch.long))), levels, x, labels, k), "which digit"),
    ("18.2", backwards, "numbers differ"),
    ("18.3", lambda a, f: 4 * points(a, f), "mean"),
    ("18.3", lambda a, f: points(a, f) / 100, "100 points"),
    ("18.3", lambda a, f: sum(100 * x / y for x, y in zip(a, f)) / 4, "1 + the Fr"),
]  # fmt: skip

TestAnswers = answers(RIGHT, WRONG)
