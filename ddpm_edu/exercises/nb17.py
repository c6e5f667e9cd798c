"""Exercises: a low-rank change, merging it, prior preservation, who is remembered. Notebook 17."""

import torch

from .check import Exercise


def _numbers(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- 17.1  the layer with a LoRA


def _low_rank(size=lambda alpha, r: alpha / r, rows=lambda B, A: len(A), own=1, scale=True):
    """An answer that may take another factor, count r wrongly, or lose the layer or the slider."""

    def answer(x, W, A, B, alpha, s):
        factor = size(alpha, rows(B, A)) * (s if scale else 1)
        return own * x @ W.T + factor * x @ A.T @ B.T

    return answer


def _layer_case(seed, out, width, rank, alpha, s):
    """x (5, in), W (out, in), A (r, in), B (out, r), alpha, slider s."""
    x, W = _numbers(seed, 5, width), _numbers(seed + 1, out, width)
    return x, W, _numbers(seed + 2, rank, width), _numbers(seed + 3, out, rank), alpha, s


LAYER_CASES = [_layer_case(1, 6, 4, 2, 8.0, 0.5), _layer_case(10, 3, 7, 4, 1.0, 1.5)]

# ---------------------------------------------------------------- 17.2  merge


def _merged(product=lambda B, A: B @ A, size=lambda alpha, r: alpha / r, own=1, scale=True):
    """An answer that may multiply otherwise, or forget the layer, alpha / r or the slider."""

    def answer(W, A, B, alpha, s):
        return own * W + size(alpha, len(A)) * (s if scale else 1) * product(B, A)

    return answer


MERGE_CASES = [case[1:] for case in (_layer_case(20, 4, 4, 2, 6.0, 0.7), LAYER_CASES[0])]

# ---------------------------------------------------------------- 17.3  prior preservation


def _kept(own=lambda z: z.square().mean(), prior=lambda z: z.square().mean(), at=None):
    """An answer that may take other means, or put the weight elsewhere."""
    at = at or (lambda a, b, weight: a + weight * b)

    def answer(error_own, error_prior, weight):
        return at(own(error_own), prior(error_prior), weight)

    return answer


def _all_in_one(error_own, error_prior, weight):
    return torch.cat([error_own.flatten(), weight * error_prior.flatten()]).square().mean()


PRIOR_CASES = [
    (_numbers(30, 2, 3, 4), 2 * _numbers(31, 6, 3, 4), 1.0),
    (_numbers(32, 4, 2, 2), 0.5 * _numbers(33, 3, 2, 2), 0.3),
]

# ---------------------------------------------------------------- 17.4  remembered?


def _ratio(power=1.0, over=lambda near: near[:, 0] / near[:, 1], sort=True, flat=True):
    """An answer that may forget the root, divide the other way, or take other neighbours."""

    def answer(drawn, known):
        a, b = (drawn.flatten(1), known.flatten(1)) if flat else (drawn, known)
        distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") ** power
        near = distance.sort(dim=1).values if sort else distance
        return over(near)

    return answer


def _among_drawn(drawn, known):
    a = drawn.flatten(1)
    near = torch.cdist(a, a, compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1).values
    return near[:, 1] / near[:, 2]


RATIO_CASES = [
    (_numbers(40, 4, 3, 2, 2), _numbers(41, 6, 3, 2, 2)),
    (_numbers(42, 3, 8) + 0.5, _numbers(43, 5, 8)),
]

EXERCISES = {
    "17.1": Exercise(
        reference=_low_rank(),
        cases=LAYER_CASES,
        mistakes=[
            (_low_rank(size=lambda alpha, r: 1), "The factor alpha / r is missing."),
            (
                _low_rank(size=lambda alpha, r: alpha),
                "You multiplied by alpha alone: divide by r, so that the change stays as large "
                "when another r is tried.",
            ),
            (_low_rank(size=lambda alpha, r: r / alpha), "It is alpha / r, not r / alpha."),
            (
                _low_rank(own=0),
                "The layer itself is missing: W x stays, and the change is added to it.",
            ),
            (_low_rank(scale=False), "The slider s is missing: it multiplies the change."),
            (
                _low_rank(rows=lambda B, A: A.shape[1]),
                "r is the number of rows of A, not of its columns: A is (r, in).",
            ),
            (
                lambda x, W, A, B, alpha, s: s * _low_rank()(x, W, A, B, alpha, 1.0),
                "The slider multiplies W x too. It belongs to the change alone: s = 0 is the "
                "model as it was.",
            ),
        ],
        right="Two thin products beside one thick one; W is never touched.",
    ),
    "17.2": Exercise(
        reference=_merged(),
        cases=MERGE_CASES,
        mistakes=[
            (
                _merged(product=lambda B, A: (B @ A).T if B.shape[0] == A.shape[1] else B @ A),
                "The product is transposed: B A is (out, in) as W is.",
            ),
            (_merged(size=lambda alpha, r: 1), "The factor alpha / r is missing."),
            (_merged(size=lambda alpha, r: alpha), "Divide alpha by r, the number of rows of A."),
            (_merged(own=0), "That is the change alone: add it to W."),
            (
                _merged(scale=False),
                "The slider s is missing: what is merged is the change as it is set now.",
            ),
            (
                lambda W, A, B, alpha, s: W - s * alpha / len(A) * B @ A,
                "You took the change away; that is how to undo a merge.",
            ),
        ],
        right="The same layer up to rounding, and no product more.",
    ),
    "17.3": Exercise(
        reference=_kept(),
        cases=PRIOR_CASES,
        mistakes=[
            (
                _all_in_one,
                "One mean over all errors: then the kind with more pictures counts more, and the "
                "weight is squared. Take a mean of each kind, then add.",
            ),
            (
                _kept(at=lambda a, b, weight: weight * a + b),
                "The weight belongs to the prior pictures' loss, not to your own pictures'.",
            ),
            (_kept(at=lambda a, b, weight: a + b), "The weight of the prior loss is missing."),
            (_kept(at=lambda a, b, weight: a), "The prior pictures' loss is missing."),
            (
                _kept(at=lambda a, b, weight: a + weight**2 * b),
                "The weight multiplies the loss, not the error: it stands outside the square.",
            ),
            (
                _kept(own=lambda z: z.square().sum(), prior=lambda z: z.square().sum()),
                "Sums grow with the number of pictures: take means.",
            ),
            (
                _kept(own=lambda z: z.abs().mean(), prior=lambda z: z.abs().mean()),
                "The loss is the mean of the squared errors.",
            ),
            (
                _kept(at=lambda a, b, weight: (1 - weight) * a + weight * b),
                "Your own pictures keep their whole weight: L = L_own + weight L_prior.",
            ),
        ],
        right="One term pulls to the new thing, the other holds everything else where it was.",
    ),
    "17.4": Exercise(
        reference=_ratio(),
        cases=RATIO_CASES,
        mistakes=[
            (
                _ratio(over=lambda near: near[:, 1] / near[:, 0]),
                "Upside down: the nearest by the second nearest, so that a copy gives 0.",
            ),
            (
                _ratio(power=2.0),
                "Squared distances: take the root first (torch.cdist has taken it).",
            ),
            (
                _ratio(over=lambda near: near[:, 0]),
                "That is the distance itself. It says little alone: plain pictures are near to "
                "everything. Divide by the distance of the second nearest.",
            ),
            (
                _ratio(over=lambda near: near[:, 0] / near.mean(1)),
                "Divide by the second nearest, not by the mean of all.",
            ),
            (
                _ratio(sort=False),
                "You took the first two known pictures, not the two nearest: sort the distances.",
            ),
            (
                _ratio(over=lambda near: near[:, 0] / near[:, -1]),
                "That divides by the farthest; take the second nearest.",
            ),
            (
                _ratio(over=lambda near: (near[:, 0] / near[:, 1]).mean()),
                "One number a drawn picture, please: do not take the mean.",
            ),
            (_among_drawn, "Those are neighbours among the drawn pictures: look among the known."),
        ],
        right="Near 0: a copy of one known picture. Near 1: as near to one as to the next.",
    ),
}
