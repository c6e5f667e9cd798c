"""Points in a plane, mean 0 and unit scale, for small models. Notebooks 00 to 02."""

import math

import torch
from torch import Tensor

from ..errors import OptionError


def swiss_roll(n: int = 1000, seed: int = 0, noise: float = 0.05) -> Tensor:
    """(n, 2) points r (cos r, sin r), r uniform in [1.5 pi, 4.5 pi], normalised, plus noise."""
    r = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=_generator(n, seed)))
    points = torch.stack([r * r.cos(), r * r.sin()], 1)
    mean = torch.tensor([2, 2 / (3 * math.pi)])  # of the whole law, so that n changes nothing
    scale = math.sqrt((9.75 * math.pi**2 - mean.square().sum().item()) / 2)
    return _jitter((points - mean) / scale, noise, seed)


def gaussian_mixture(n: int = 1000, seed: int = 0, modes: int = 8, std: float = 0.1) -> Tensor:
    """(n, 2) points of `modes` equally likely N(mean_k, std^2 I), the means on a circle."""
    angle = 2 * math.pi / modes * torch.randint(modes, (n,), generator=_generator(n, seed))
    radius = math.sqrt(2 * (1 - std**2))  # makes the variance of each coordinate 1
    return _jitter(radius * torch.stack([angle.cos(), angle.sin()], 1), std, seed)


class Points:
    """What `train` takes of points x (N, 2): points[index] -> (x_0 (B, 2), None)."""

    def __init__(self, x: Tensor):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index) -> tuple[Tensor, None]:
        return self.x[index], None


def _generator(n: int, seed: int) -> torch.Generator:
    if n < 1:
        raise OptionError(f"n = {n} points were asked for: choose 1 or more")
    return torch.Generator().manual_seed(seed)


def _jitter(points: Tensor, std: float, seed: int) -> Tensor:
    own = torch.Generator().manual_seed(seed + 1_000_003)
    return points + std * torch.randn(points.shape, generator=own)
