"""ControlNet: a copy of a UNet's encoder reads a hint, and zero convolutions add it. Notebook 10.

Zhang et al. 2023 (arXiv 2302.05543). The copy starts with the UNet's weights, what it adds starts
at zero: before the first update the picture is the UNet's own, whatever the hint shows.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import fits, sizes
from .lora import without_lora
from .unet import SD15, SD21, SDXL_BASE, Encoder, UNet, UNetConfig


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """Sizes of a ControlNet: those of its UNet, whose encoder it copies, and of the hint's encoder.

    ControlNetConfig(**vars(unet.config)) is one for a UNet.
    """

    hint: int = 3  # channels of the hint
    # of the hint's encoder; each after the first halves the picture: together down to the latent
    widths: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self):
        super().__post_init__()
        sizes(self, hint=(1, 256), widths=(1, 4096))

    @property
    def factor(self) -> int:
        """Pixels of the hint for one of the latent, on a side."""
        return 2 ** (len(self.widths) - 1)


SD15_CONTROL = ControlNetConfig(**vars(SD15))
SD21_CONTROL = ControlNetConfig(**vars(SD21))
SDXL_CONTROL = ControlNetConfig(**vars(SDXL_BASE))


def zero(conv: nn.Conv2d) -> nn.Conv2d:
    """A zero convolution: weights and bias start at 0, and learn.

    Its output is w h + b = 0, but dL/dw = dL/dy h is not: only what lies below it waits one update.
    """
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def hint_encoder(c: ControlNetConfig) -> nn.Sequential:
    """Pixels down to the latent's size: (B, hint, f h, f w) -> (B, channels, h, w), 0 at first."""
    layers = [nn.Conv2d(c.hint, c.widths[0], 3, padding=1), nn.SiLU()]
    for wide, wider in pairwise(c.widths):
        layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(wide, wider, 3, stride=2, padding=1), nn.SiLU()]  # half the size
    return nn.Sequential(*layers, zero(nn.Conv2d(c.widths[-1], c.channels, 3, padding=1)))


class ControlNet(Encoder):
    """What a hint adds to a UNet's skips and, last, to its middle: `residuals` of `UNet.forward`.

        y = unet(x_t, t, cond, net(x_t, t, cond, hint))

    x_t, t, cond: as the UNet gets them, but only a ControlNet made for inpainting looks at
    cond.picture; hint (B, hint, f h, f w) in [-1, 1] -> a tuple of (B, C, h, w), each through its
    zero convolution. ShapeError where they do not fit.
    """

    kind = "ControlNet"

    def __init__(self, config: ControlNetConfig):
        super().__init__(config)
        self.hint, skips = hint_encoder(config), config.skips()
        self.zeros = nn.ModuleList(zero(nn.Conv2d(width, width, 1)) for width in skips)
        self.zero_mid = zero(nn.Conv2d(skips[-1], skips[-1], 1))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond, hint: Tensor) -> tuple[Tensor, ...]:
        c = self.config
        alone = x_t.ndim == 4 and x_t.shape[1] == c.in_channels
        x = self._input(x_t, t, cond._replace(picture=None) if alone else cond)
        shape = len(x), c.hint, *(c.factor * side for side in x.shape[2:])
        fits("hint", hint, shape, "beside this x_t the ControlNet takes")
        seen = self.hint((hint + 1) / 2)  # the official ones read [0, 1]
        h, skips, _ = self.encode(x, t, cond.context, cond.vector, seen)
        return *(zero(skip) for zero, skip in zip(self.zeros, skips)), self.zero_mid(h)


def control_net(unet: UNet, **changes) -> ControlNet:
    """A new one for this UNet, its encoder copied; it adds nothing yet.

    changes: to the config, such as hint, widths, or fewer transformers (depth, middle).
    """
    weight = next(without_lora(unet).parameters())
    with torch.device(weight.device):
        net = ControlNet(ControlNetConfig(**{**vars(unet.config), **changes}))
    for name in ("time", "vector", "conv_in"):
        if hasattr(net, name):
            getattr(net, name).load_state_dict(getattr(unet, name).state_dict())
    for blocks, theirs in zip((*net.down, net.mid), (*unet.down, unet.mid), strict=True):
        _copy(blocks, theirs)
    return net.to(weight.dtype)


def _copy(blocks, theirs):
    """Block by block; one that has no transformer passes over theirs."""
    theirs = iter(theirs)
    for block in blocks:
        like = next(other for other in theirs if type(other) is type(block))
        block.load_state_dict(like.state_dict())
