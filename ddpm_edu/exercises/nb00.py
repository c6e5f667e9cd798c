"""Exercises: modes covered, the Frechet distance, the cosine similarity. Notebook 00."""

import math

import torch

from .check import Exercise


def _near(x, centres, radius=0.4):
    """How many points of x lie within `radius` of the centre that is nearest to them, centre by
    centre."""
    distance, which = torch.cdist(x, centres).min(1)
    return torch.bincount(which[distance < radius], minlength=len(centres))


def _ring(modes, shares, strays, seed):
    """Centres on a circle and points around them: shares[k] of 400 at centre k, and strays far
    outside."""
    angle = 2 * math.pi * torch.arange(modes) / modes
    centres = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([round(400 * share) for share in shares])
    near = centres.repeat_interleave(counts, 0)
    near = near + 0.05 * torch.randn(near.shape, generator=generator)
    far = 3 * centres[torch.arange(strays) % modes]
    return torch.cat([near, far]), centres


MODES = Exercise(
    reference=lambda x, centres: int((_near(x, centres) >= 0.03 * len(x)).sum()),
    cases=[
        _ring(8, [0.3, 0.3, 0.2, 0.2, 0, 0, 0, 0], 0, 0),
        _ring(8, [0.25, 0.25, 0.24, 0.2, 0.02, 0.02, 0.02, 0], 0, 1),
        _ring(8, [0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.04, 0.01], 140, 2),
        _ring(5, [0.2] * 5, 0, 3),
        _ring(4, [0.5, 0.5, 0, 0], 40, 4),
    ],
    mistakes=[
        (
            lambda x, centres: int((_near(x, centres) > 0).sum()),
            "You count a mode as soon as one point falls into it. A mode is covered when at "
            "least 3 % of all points are near it.",
        ),
        (
            lambda x, centres: int((_near(x, centres, 1e9) >= 0.03 * len(x)).sum()),
            "You give every point to its nearest centre, however far away it is. Only points "
            "closer than 0.4 count.",
        ),
        (
            lambda x, centres: int((_near(x, centres) < 0.03 * len(x)).sum()),
            "You count the modes that are missing. Turn the comparison round.",
        ),
        (
            lambda x, centres: int(_near(x, centres).sum()),
            "You count points. Count centres: each one that has enough points near it adds 1.",
        ),
        (
            lambda x, centres: _near(x, centres).double() / len(x),
            "You return the share of points at every centre. One more step: how many of "
            "these shares are at least 0.03?",
        ),
    ],
    right="Exactly the count that tells a good model from one that draws the same thing "
    "again and again.",
)


FRECHET_1D = Exercise(
    reference=lambda mu_a, s_a, mu_b, s_b: (mu_a - mu_b) ** 2 + (s_a - s_b) ** 2,
    cases=[(0.0, 1.0, 0.0, 1.0), (0.0, 1.0, 2.0, 1.0), (1.0, 0.5, 1.0, 2.0), (-0.7, 0.3, 0.9, 1.4)],
    mistakes=[
        (
            lambda mu_a, s_a, mu_b, s_b: (mu_a - mu_b) ** 2 + (s_a**2 - s_b**2) ** 2,
            "You compare the variances. The trace part becomes (s_a - s_b)^2, with the "
            "standard deviations themselves.",
        ),
        (
            lambda mu_a, s_a, mu_b, s_b: (mu_a - mu_b) ** 2,
            "You compare the means only; the widths matter too.",
        ),
        (
            lambda mu_a, s_a, mu_b, s_b: (s_a - s_b) ** 2,
            "You compare the widths only; the means matter too.",
        ),
        (
            lambda mu_a, s_a, mu_b, s_b: math.sqrt((mu_a - mu_b) ** 2 + (s_a - s_b) ** 2),
            "You take the square root at the end. FID is the squared distance: leave the root out.",
        ),
        (
            lambda mu_a, s_a, mu_b, s_b: abs(mu_a - mu_b) + (s_a - s_b) ** 2,
            "The difference of the means must be squared.",
        ),
        (
            lambda mu_a, s_a, mu_b, s_b: (mu_a - mu_b) ** 2 + s_a + s_b - 2 * math.sqrt(s_a * s_b),
            "You put s_a and s_b where the covariances stand. In one dimension the "
            "covariance is the variance, s^2.",
        ),
        (
            lambda mu_a, s_a, mu_b, s_b: (mu_a - mu_b) ** 2 + s_a**2 + s_b**2,
            "The term - 2 s_a s_b is missing: two equal bells must be at distance 0.",
        ),
    ],
    right="Means apart, plus widths apart: that is all FID looks at, in 2,048 dimensions "
    "instead of one.",
)


def _cosine(images, texts):
    images, texts = (e / e.norm(dim=1, keepdim=True) for e in (images, texts))
    return images @ texts.T


def _embeddings(n, m, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return 1 + 3 * torch.rand(n, d, generator=generator), torch.randn(m, d, generator=generator)


COSINE = Exercise(
    reference=_cosine,
    cases=[_embeddings(3, 3, 3, 0), _embeddings(2, 4, 5, 1), _embeddings(4, 1, 6, 2)],
    mistakes=[
        (
            lambda images, texts: images @ texts.T,
            "These are dot products: a long vector wins against every caption. Divide each "
            "vector by its length first.",
        ),
        (
            lambda images, texts: (images / images.norm(dim=1, keepdim=True)) @ texts.T,
            "Only the pictures are divided by their length; the texts need it too.",
        ),
        (
            lambda images, texts: images @ (texts / texts.norm(dim=1, keepdim=True)).T,
            "Only the texts are divided by their length; the pictures need it too.",
        ),
        (
            lambda images, texts: (images / images.norm(dim=0)) @ (texts / texts.norm(dim=0)).T,
            "You divide by the length of the columns. One embedding is one row: use dim=1 "
            "and keepdim=True.",
        ),
        (
            lambda images, texts: (images / images.norm()) @ (texts / texts.norm()).T,
            "You divide by the length of the whole table. Each row has a length of its own: "
            "use dim=1 and keepdim=True.",
        ),
        (
            lambda images, texts: (
                (images @ texts.T) / (images.square().sum(1)[:, None] * texts.square().sum(1))
            ),
            "You divide by the squared lengths; take their square roots.",
        ),
        (
            lambda images, texts: _cosine(images, texts).T,
            "Rows and columns are swapped: row i should be picture i, column j should be text j.",
        ),
        (
            lambda images, texts: 1 - _cosine(images, texts),
            "This is 1 minus the cosine, a distance. The score is the cosine itself: larger "
            "means a better match.",
        ),
        (
            lambda images, texts: torch.cdist(images, texts),
            "This is the distance between the points. The cosine looks only at the angle "
            "between the vectors.",
        ),
    ],
    right="One matrix of cosines is the heart of CLIP: its rows are pictures, its columns "
    "are texts.",
)


EXERCISES = {"00.1": MODES, "00.2": FRECHET_1D, "00.3": COSINE}
