"""Wrong answers of notebook 15 as a student would write them: each must be caught, with the hint that names the mistake."""

import torch
import torch.nn.functional as F
from common import answers


def next_code(logits, codes, words, shift=1, reduction="mean"):
    n = codes.shape[1]
    rows = logits[:, words - shift : words - shift + n].reshape(-1, logits.shape[2])
    return F.cross_entropy(rows, codes.reshape(-1), reduction=reduction)


def pick(logits, temperature, top_k):
    values, where = (logits / temperature).topk(top_k, dim=1)
    return torch.zeros_like(logits).scatter(1, where, values.softmax(1))


def term(log_p, unknown, m_prev, m):
    losses = torch.where(unknown, -log_p, torch.zeros_like(log_p))
    return losses.sum(1) * (1 - m_prev / m)


def stay(confidence, known, keep):
    rows = []
    for sure, old in zip(confidence, known):
        order = sorted(range(len(sure)), key=lambda i: (not old[i], -sure[i]))
        rows.append([i in order[:keep] for i in range(len(sure))])
    return torch.tensor(rows)


def threshold(x_0, percentile):
    out = []
    for x in x_0:
        s = max(1.0, x.abs().flatten().quantile(percentile).item())
        out.append(x.clamp(-s, s) / s)
    return torch.stack(out)


RIGHT = {"15.1": next_code, "15.2": pick, "15.3": term, "15.4": stay, "15.5": threshold}


def to_the_end(logits, codes, words):
    """The last n - 1 places: the caption predicts nothing."""
    return F.cross_entropy(logits[:, words:-1].flatten(0, 1), codes[:, 1:].flatten())


def cut(logits, temperature, top_k):
    p = (logits / temperature).softmax(1)
    return torch.where(p >= p.topk(top_k).values[:, -1:], p, torch.zeros_like(p))


def zeros_in_logits(logits, temperature, top_k):
    z = logits / temperature
    return torch.where(z >= z.topk(top_k).values[:, -1:], z, torch.zeros_like(z)).softmax(1)


def surest(confidence, known, keep):
    where = confidence.topk(keep, dim=1).indices
    return torch.zeros_like(known).scatter(1, where, True)


def as_many_new(confidence, known, keep):
    where = confidence.masked_fill(known, -1.0).topk(keep, dim=1).indices
    return known.scatter(1, where, True)


WRONG = [
    ("15.1", lambda x, c, w: next_code(x, c, w, shift=0), "read the code already"),
    ("15.1", to_the_end, "first code is missing"),
    ("15.1", lambda x, c, w: next_code(x, c, w, reduction="sum"), "numbers differ"),
    ("15.1", lambda x, c, w: next_code(x, c, w, reduction="sum") / len(c), "sum over the codes"),
    ("15.1", lambda x, c, w: next_code(x, c, w, reduction="none"), "shape"),
    ("15.2", lambda z, t, k: pick(z, 1 / t, k), "works backwards"),
    ("15.2", cut, "does not sum to 1"),
    ("15.2", zeros_in_logits, "exp(0) = 1"),
    ("15.2", lambda z, t, k: pick(z, 1.0, k), "numbers differ"),
    ("15.2", lambda z, t, k: (z / t).softmax(1), "still have a chance"),
    ("15.3", lambda p, m, a, b: term(p, m | True, a, b), "Known places cost nothing"),
    ("15.3", lambda p, m, a, b: -term(p, m, a, b), "never negative"),
    ("15.3", lambda p, m, a, b: -(p * m).sum(1), "weight is missing"),
    ("15.3", lambda p, m, a, b: -(p * m).sum(1) * (b - a) / (1 - a), "forward chance"),
    ("15.3", lambda p, m, a, b: -(p * m).sum(1) * (b - a), "divide by the chance of that"),
    ("15.4", surest, "get lost again"),
    ("15.4", as_many_new, "counts all known codes"),
    ("15.4", lambda c, k, n: stay(-c, k, n), "least sure"),
    ("15.5", lambda x, p: x.clamp(-1, 1), "static thresholding"),
    ("15.5", lambda x, p: x.clamp(-3, 3), "numbers differ"),
    ("15.5", lambda x, p: x / x.abs().flatten(1).quantile(p, 1).view(-1, 1, 1, 1).clamp(min=1), "numbers differ"),
    ("15.5", lambda x, p: torch.cat([threshold(x.flatten()[None], p)]).view_as(x), "own"),
]  # fmt: skip

TestAnswers = answers(RIGHT, WRONG)
