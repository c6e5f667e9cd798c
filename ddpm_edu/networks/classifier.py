"""A small residual classifier, in place of FID's Inception network. Notebooks 00 and 04."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import sizes


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a classifier."""

    channels: int = 1  # of the pictures
    widths: tuple[int, ...] = (32, 64, 64)  # of the levels, each half the size of the one before
    classes: int = 10

    def __post_init__(self):
        sizes(self, channels=(1, 4096), widths=(1, 4096), classes=1)


class Classifier(nn.Module):
    """classifier(x) -> logits (B, classes) of pictures x (B, channels, H, W) in [-1, 1].

    `features(x)`: (B, D), D = widths[-1], the average of the last feature map.
    `real_train` and `real_test`: `mean` (D,) and `cov` (D, D), float64, of the features of all real
    pictures of a split; zero until they are measured.
    """

    def __init__(self, config: ClassifierConfig = ClassifierConfig()):
        super().__init__()
        widths = config.widths
        self.config = config
        self.stem = _conv(config.channels, widths[0])
        self.blocks = nn.ModuleList(_Residual(a, b) for a, b in zip((widths[0], *widths), widths))
        self.head = nn.Linear(widths[-1], config.classes)
        self.real_train, self.real_test = _Moments(widths[-1]), _Moments(widths[-1])

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps after the stem and after each block, each half the size."""
        maps = [self.stem(x)]
        for block in self.blocks:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        return maps

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1].mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.body = nn.Sequential(_conv(c_in, c_out), _conv(c_out, c_out))
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)


class _Moments(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d, dtype=torch.float64))
        self.register_buffer("cov", torch.zeros(d, d, dtype=torch.float64))


def _conv(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )
