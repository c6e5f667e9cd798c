"""How good are the pictures? Accuracy by a judge, the Frechet distance between two sets of features, PSNR of copies.

A judge is a small classifier trained on the real pictures: its labels say whether a generated 7 is a 7, and the
features of its last layer stand in for the Inception network of the usual FID. Its numbers are therefore not
comparable with published FIDs; the card beside each judge gives real pictures' own distance as the yardstick.
"""

import warnings

import torch
from torch import Tensor, nn

from ..datasets import images as data
from ..errors import DataError, OptionError, ShapeError
from ..files.checkpoint import load_state, load_tensors

# ---------------------------------------------------------------- Frechet distance


def frechet_distance(mu_a: Tensor, cov_a: Tensor, mu_b: Tensor, cov_b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) between N(mu_a, A) and N(mu_b, B), in float64.

    Dowson and Landau 1982, eq. 4; "FID" in Heusel et al. 2017, eq. 6. mu: (D,), cov: (D, D), symmetric.
    The trace of the root of a symmetric matrix is the sum of the roots of its eigenvalues, so no general matrix
    root is needed. Raises ShapeError, or DataError for NaN.
    """
    mu_a, cov_a, mu_b, cov_b = (
        torch.as_tensor(z).detach().to("cpu", torch.float64) for z in (mu_a, cov_a, mu_b, cov_b)
    )
    d = mu_a.numel()
    if not (mu_a.shape == mu_b.shape == (d,) and cov_a.shape == cov_b.shape == (d, d)):
        shapes = [tuple(z.shape) for z in (mu_a, cov_a, mu_b, cov_b)]
        raise ShapeError(
            f"means and covariances have shapes {shapes}: they must be (D,), (D, D), (D,), (D, D)"
        )
    if not all(torch.isfinite(z).all() for z in (mu_a, cov_a, mu_b, cov_b)):
        raise DataError(
            "a mean or covariance holds NaN or infinity: look for NaN in the pictures or features"
        )
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = (mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)  # rounding can leave -1e-15


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), float64, of features (N, D). Needs N > D, or the covariance is singular."""
    if features.ndim != 2:
        raise ShapeError(
            f"features have shape {tuple(features.shape)}: they must be (N, D), one row a picture"
        )
    n, d = features.shape
    if n <= d:
        raise DataError(
            f"{n} pictures are too few for a covariance of {d} features: use at least {d + 1}, better 1,000"
        )
    if not torch.isfinite(features).all():
        raise DataError("the features hold NaN or infinity: look for NaN in the pictures")
    features = features.detach().to("cpu", torch.float64)
    return features.mean(0), features.T.cov()


def frechet(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, (N, D) and (M, D)."""
    return frechet_distance(*moments(features_a), *moments(features_b))


# ---------------------------------------------------------------- one picture against its copy


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """10 log10(4 / mean (x - y)^2) in dB for pictures in [-1, 1], y clamped to it: (B, ...) twice -> (B,).

    The peak signal-to-noise ratio, the peak being the range's length, 2; infinite for equal pictures. Raises ShapeError.
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ShapeError(
            f"pictures have shapes {tuple(x.shape)} and {tuple(y.shape)}: they must be the same (B, ...)"
        )
    return 10 * (4 / (x - y.clamp(-1, 1)).square().flatten(1).mean(1)).log10()


# ---------------------------------------------------------------- the judge


class Judge(nn.Module):
    """A small residual classifier. x: (B, channels, H, W) in [-1, 1].

    `features(x)`: (B, widths[-1]), the average of the last feature map. `judge(x)`: logits (B, classes).
    `reference`: {split: (mean, covariance)} of the real pictures' features, filled by `load_judge`.
    """

    def __init__(
        self, channels: int = 1, widths: tuple[int, ...] = (32, 64, 64), classes: int = 10
    ):
        super().__init__()
        self.channels, self.reference = channels, {}
        self.stem = _conv(channels, widths[0])
        self.blocks = nn.ModuleList(_Residual(a, b) for a, b in zip((widths[0], *widths), widths))
        self.head = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(nn.functional.max_pool2d(h, 2))  # half the size, then look again
        return h.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.body = nn.Sequential(_conv(c_in, c_out), _conv(c_out, c_out))
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


def _conv(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


def load_judge(name: str = "mnist") -> Judge:
    """The shipped judge "mnist" or "cifar10", ready to use; its card is data/weights/<name>_judge.md."""
    if name not in ("mnist", "cifar10"):
        raise OptionError(f"there is no judge {name!r}: choose 'mnist' or 'cifar10'")
    path = data.data_folder() / "weights" / f"{name}_judge.safetensors"
    state, meta = load_tensors(path)
    splits = [(s, f"reference.{s}.mean", f"reference.{s}.cov") for s in ("train", "test")]
    reference = {
        s: (state.pop(mean), state.pop(cov))
        for s, mean, cov in splits
        if mean in state and cov in state
    }
    judge = Judge(**meta)
    load_state(judge, state, path)
    judge.reference = reference
    return judge.eval().requires_grad_(False)


def accuracy(judge: Judge, x: Tensor, labels: Tensor) -> float:
    """The share, 0 to 1, of pictures x (N, C, H, W) in [-1, 1] that the judge takes for their labels (N,)."""
    if len(labels) != len(x):
        raise ShapeError(
            f"{len(x)} pictures came with {len(labels)} labels: pass one label a picture"
        )
    logits = _batched(judge, judge, x)
    return (logits.argmax(1) == labels.to(logits.device)).double().mean().item()


def judge_features(judge: Judge, x: Tensor) -> Tensor:
    """The judge's features (N, D) of pictures x (N, C, H, W) in [-1, 1]."""
    return _batched(judge, judge.features, x)


def frechet_to_real(judge: Judge, x: Tensor, split: str = "train") -> float:
    """Frechet distance of pictures x to all real pictures of a split, whose statistics ship with the judge."""
    if split not in judge.reference:
        raise OptionError(
            f"this judge holds no statistics of split {split!r}, only of {sorted(judge.reference)}: "
            "load a shipped judge with load_judge, or compare features with frechet"
        )
    return frechet_distance(*moments(judge_features(judge, x)), *judge.reference[split])


@torch.no_grad()
def _batched(judge: Judge, function, x: Tensor, size: int = 500) -> Tensor:
    _check(judge, x)
    training = judge.training
    judge.eval()  # batch statistics would make a picture's score depend on its neighbours
    try:
        return torch.cat([function(batch.clamp(-1, 1)) for batch in x.split(size)])
    finally:
        judge.train(training)


def _check(judge: Judge, x: Tensor):
    if x.ndim != 4 or x.shape[1] != judge.channels:
        raise ShapeError(
            f"pictures have shape {tuple(x.shape)}: this judge takes (N, {judge.channels}, H, W)"
        )
    if not x.is_floating_point():
        raise DataError(
            f"pictures have type {x.dtype}: the judge takes floats in [-1, 1]; data.from_uint8 converts bytes"
        )
    if len(x) == 0:
        raise DataError("there are no pictures to judge")
    low, high = x.aminmax()
    if not (
        low >= -2 and high <= 2
    ):  # a sampler may overshoot [-1, 1] a little (clipped, as when shown); NaN fails too
        raise DataError(
            f"pictures run from {low:.4g} to {high:.4g}: the judge takes [-1, 1]; data.from_uint8 converts bytes"
        )
    if low >= 0:
        warnings.warn(
            "no number in these pictures is below 0: are they in [0, 1] instead of [-1, 1]? Then pass 2 * x - 1",
            stacklevel=4,
        )
