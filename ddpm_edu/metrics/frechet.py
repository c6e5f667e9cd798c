"""How good are the pictures? Frechet distance, precision and recall, accuracy, PSNR. Notebook 00.

Features are those of a small classifier of ours, in place of the Inception network of the usual
FID, so the distances are not comparable with published FIDs. The card beside each classifier's
weights gives the distance of real pictures from each other as the yardstick.
"""

import torch
from torch import Tensor

from ..errors import DataError, OptionError, ShapeError, fits, one_of, pixels, whole
from ..networks.classifier import Classifier

# ---------------------------------------------------------------- sets of features


def frechet_distance(mu_a: Tensor, cov_a: Tensor, mu_b: Tensor, cov_b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) between N(mu_a, A) and N(mu_b, B).

    Dowson and Landau 1982, eq. 4; "FID" in Heusel et al. 2017, eq. 6. mu: (D,), cov: (D, D),
    symmetric; in float64. The trace of a symmetric root is the sum of the roots of the eigenvalues,
    so no general matrix root is needed. Raises ShapeError, or DataError for NaN.
    """
    mu_a, cov_a, mu_b, cov_b = (
        torch.as_tensor(z).detach().to("cpu", torch.float64) for z in (mu_a, cov_a, mu_b, cov_b)
    )
    d = mu_a.numel()
    if not (mu_a.shape == mu_b.shape == (d,) and cov_a.shape == cov_b.shape == (d, d)):
        shapes = [tuple(z.shape) for z in (mu_a, cov_a, mu_b, cov_b)]
        raise ShapeError(
            f"mu_a, cov_a, mu_b, cov_b have shapes {shapes}: pass (D,), (D, D), (D,), (D, D)"
        )
    if not all(torch.isfinite(z).all() for z in (mu_a, cov_a, mu_b, cov_b)):
        raise DataError("a mean or covariance holds NaN or infinity: look for it in the pictures")
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)  # rounding can leave -1e-15


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), float64, of features (N, D); N > D, or it is singular."""
    features = _checked(features, more_than=features.shape[-1] if features.ndim else 0)
    return features.mean(0), features.T.cov()


def frechet(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, (N, D) and (M, D)."""
    return frechet_distance(*moments(features_a), *moments(features_b))


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """The share of generated points that lie among the real ones, and of real among generated.

    A point lies among a set of points if it is no farther from one of them than that one's k-th
    nearest neighbour in the set (Kynkaanniemi et al. 2019, eq. 1, 2). (N, D), (M, D); N, M > k.
    """
    whole("k", k, 1, hint="neighbours")
    real, generated = _checked(real, k), _checked(generated, k)
    if real.shape[1] != generated.shape[1]:
        raise ShapeError(
            f"real has {real.shape[1]} features, generated {generated.shape[1]}: they must be equal"
        )
    return _covered(generated, real, k), _covered(real, generated, k)


def _covered(points: Tensor, among: Tensor, k: int) -> float:
    """Distances as differences, a thousand rows at a time: 0 between equal points, exactly."""
    to = lambda rows: torch.cdist(rows, among, compute_mode="donot_use_mm_for_euclid_dist")
    radius = torch.cat([to(rows).kthvalue(k + 1).values for rows in among.split(1000)])  # + itself
    inside = [(to(rows) <= radius).any(1) for rows in points.split(1000)]
    return torch.cat(inside).double().mean().item()


def _checked(features: Tensor, more_than: int) -> Tensor:
    if features.ndim != 2:
        raise ShapeError(
            f"features have shape {tuple(features.shape)}: pass a row a picture, (N, D)"
        )
    if len(features) <= more_than:
        raise DataError(
            f"features of {len(features)} pictures are too few: use at least {more_than + 1}"
        )
    if not torch.isfinite(features).all():
        raise DataError("features hold NaN or infinity: look for it in the pictures")
    return features.detach().to("cpu", torch.float64)


# ---------------------------------------------------------------- pictures


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """10 log10(4 / mean (x - y)^2) in dB for x, y in [-1, 1], y clamped to it: (B, ...) -> (B,).

    The peak signal-to-noise ratio of a copy; the peak is the range's length, 2. Infinite for equal
    pictures. Raises ShapeError.
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}: pass the same (B, ...) twice"
        )
    return 10 * (4 / (x - y.clamp(-1, 1)).square().flatten(1).mean(1)).log10()


def accuracy(classifier: Classifier, x: Tensor, labels: Tensor) -> float:
    """The share of pictures x (N, C, H, W) in [-1, 1] that the classifier gives labels (N,)."""
    if len(labels) != len(x):
        raise ShapeError(f"{len(x)} pictures came with {len(labels)} labels: pass one a picture")
    logits = _batched(classifier, classifier, x)
    return (logits.argmax(1).cpu() == labels.cpu()).double().mean().item()


def features(classifier: Classifier, x: Tensor) -> Tensor:
    """The classifier's features (N, D) of pictures x (N, C, H, W) in [-1, 1]."""
    return _batched(classifier, classifier.features, x)


def frechet_to_real(classifier: Classifier, x: Tensor, split: str = "train") -> float:
    """Frechet distance of x to all real pictures of a split; the classifier has their moments.

    Raises OptionError for another split, or a classifier without them.
    """
    real = getattr(classifier, f"real_{one_of('split', split, ('train', 'test'))}")
    if not real.cov.any():
        raise OptionError(
            f"classifier holds no moments of {split} pictures: load one that ships, or use frechet"
        )
    return frechet_distance(*moments(features(classifier, x)), real.mean, real.cov)


@torch.no_grad()
def _batched(classifier: Classifier, function, x: Tensor, size: int = 500) -> Tensor:
    pixels("pictures", x, beyond=1)  # a sampler overshoots a little; clipped, as when shown
    shape = "N", classifier.config.channels, "H", "W"
    fits("pictures", x, shape, "this classifier takes")
    training = classifier.training
    classifier.eval()  # batch statistics would make a picture's score depend on its neighbours
    try:
        return torch.cat([function(batch.clamp(-1, 1)) for batch in x.split(size)])
    finally:
        classifier.train(training)
