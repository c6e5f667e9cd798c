"""Wrong answers of notebook 17 as a student would write them: each must be caught, with the hint that names the mistake."""

import torch
from common import answers


def layer(x, W, A, B, alpha, s):
    change = torch.einsum("or,ri,bi->bo", B, A, x) * s * alpha / A.shape[0]
    return torch.einsum("oi,bi->bo", W, x) + change


def merged(W, A, B, alpha, s):
    return W + s * (alpha / B.shape[1]) * torch.einsum("or,ri->oi", B, A)


def kept(own, prior, weight):
    return own.pow(2).mean() + weight * prior.pow(2).mean()


def ratio(drawn, known):
    difference = drawn.flatten(1)[:, None] - known.flatten(1)[None]
    two = difference.norm(dim=-1).topk(2, largest=False).values
    return two[:, 0] / two[:, 1]


RIGHT = {"17.1": layer, "17.2": merged, "17.3": kept, "17.4": ratio}

WRONG = [
    ("17.1", lambda x, W, A, B, a, s: x @ W.T + s * x @ A.T @ B.T, "alpha / r is missing"),
    ("17.1", lambda x, W, A, B, a, s: x @ W.T + s * a * x @ A.T @ B.T, "alpha alone"),
    ("17.1", lambda x, W, A, B, a, s: s * a / len(A) * x @ A.T @ B.T, "layer itself is missing"),
    ("17.1", lambda x, W, A, B, a, s: layer(x, W, A, B, a, 1), "slider s is missing"),
    ("17.1", lambda x, W, A, B, a, s: s * layer(x, W, A, B, a, 1), "multiplies W x too"),
    ("17.1", lambda x, W, A, B, a, s: x @ (W + A.T @ B.T), ""),
    ("17.2", lambda W, A, B, a, s: s * a / len(A) * B @ A, "change alone"),
    ("17.2", lambda W, A, B, a, s: merged(W, A, B, a, 1), "slider s is missing"),
    ("17.2", lambda W, A, B, a, s: 2 * W - merged(W, A, B, a, s), "took the change away"),
    ("17.3", lambda own, prior, w: torch.cat([own, prior]).square().mean(), "numbers differ"),
    ("17.3", lambda own, prior, w: w * own.square().mean() + prior.square().mean(), "belongs to"),
    ("17.3", lambda own, prior, w: own.square().mean() + prior.square().mean(), "weight of the"),
    ("17.3", lambda own, prior, w: own.square().sum() + w * prior.square().sum(), "take means"),
    ("17.4", lambda drawn, known: 1 / ratio(drawn, known), "Upside down"),
    ("17.4", lambda drawn, known: ratio(drawn, known) ** 2, "Squared distances"),
    ("17.4", lambda drawn, known: torch.cdist(drawn.flatten(1), known.flatten(1)).amin(1), "itself"),
    ("17.4", lambda drawn, known: ratio(drawn, known).mean(), "do not take the mean"),
]  # fmt: skip

TestAnswers = answers(RIGHT, WRONG)
