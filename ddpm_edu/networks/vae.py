"""The autoencoder of latent diffusion: pictures to a small latent and back. Notebook 06.

With it, diffusion runs on 1/48 of the numbers. Arithmetic of Rombach et al. 2022 (section 3.1,
appendix G): an encoder that halves the size at every level but the last, one attention in the
middle, and a decoder that mirrors it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import randn_like
from ..errors import OptionError, ShapeError, fits, floats, multiple, numbers, sizes, whole

QUIET = -4.0  # the first logvar of a VAE that starts linear: noise of 0.14 in latents of 1


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a VAE. `mult` holds one entry a level, from the finest."""

    in_channels: int = 3  # of the picture
    channels: int = 128  # width of the first level
    mult: tuple[int, ...] = (1, 2, 4, 4)  # width of each level, times channels
    blocks: int = 2  # ResBlocks a level; the decoder has one more
    latent: int = 4  # channels of z
    groups: int = 32  # of every GroupNorm
    scale: float = 0.18215  # scale * z has a standard deviation near 1, as diffusion wants it
    patch: int = 1  # side of the squares of pixels that are folded into channels at both ends
    linear: bool = False  # a linear autoencoder runs beside the network, see `start_linear`

    def __post_init__(self):
        sizes(self, in_channels=(1, 4096), channels=(1, 4096), mult=(1, 64), blocks=(1, 8))
        sizes(self, latent=(1, 4096), groups=(1, 1024), patch=(1, 64))
        numbers(self, scale=(1e-6, 1e6))
        for level, m in enumerate(self.mult):
            multiple(f"width of level {level}", self.channels * m, "groups", self.groups)

    @property
    def factor(self) -> int:
        """Pixels a latent pixel, along one side: 8 for Stable Diffusion."""
        return self.patch * 2 ** (len(self.mult) - 1)


SD_VAE = VAEConfig(scale=0.18215)
SDXL_VAE = VAEConfig(scale=0.13025)  # the scale belongs to the weights


class ResBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))): (B, C_in, H, W) -> (B, C_out, H, W).

    A UNet's ResBlock without time.
    """

    def __init__(self, c_in: int, c_out: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """x + out(softmax(Q K^T / sqrt(C)) V) over all pixels, one head: (B, C, H, W) -> the same."""

    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x):
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        q, k, v = (z.unsqueeze(1) for z in (self.q(h), self.k(h), self.v(h)))  # (B, 1, H*W, C)
        h = self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))  # (B, H*W, C)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)


class Downsample(nn.Module):
    """Half the size by a convolution with stride 2, padded at the right and below only."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: every pixel repeated, then a convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def _level(c_in, c_out, blocks, groups):
    return nn.Sequential(*(ResBlock(c_out if i else c_in, c_out, groups) for i in range(blocks)))


def _middle(dim, groups):
    first, second = ResBlock(dim, dim, groups), Attention(dim, groups)
    return nn.Sequential(first, second, ResBlock(dim, dim, groups))


class Encoder(nn.Module):
    """Picture -> the numbers of a Gaussian: (B, in_channels, H, W) -> (B, 2 latent, H/f, W/f)."""

    def __init__(self, c: VAEConfig):
        super().__init__()
        width = c.channels
        self.patch = c.patch
        self.conv_in = nn.Conv2d(c.in_channels * c.patch**2, width, 3, padding=1)
        self.down = nn.Sequential()  # the finest level first
        for i, m in enumerate(c.mult):
            self.down.append(_level(width, c.channels * m, c.blocks, c.groups))
            width = c.channels * m
            if i < len(c.mult) - 1:
                self.down[-1].add_module("downsample", Downsample(width))
        self.mid = _middle(width, c.groups)
        self.norm_out = nn.GroupNorm(c.groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 2 * c.latent, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))  # (B, channels, H/patch, W/patch)
        h = self.mid(self.down(h))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent -> picture: (B, latent, h, w) -> (B, in_channels, f h, f w)."""

    def __init__(self, c: VAEConfig):
        super().__init__()
        self.patch, width = c.patch, c.channels * c.mult[-1]
        self.conv_in = nn.Conv2d(c.latent, width, 3, padding=1)
        self.mid = _middle(width, c.groups)
        self.up = nn.Sequential()  # the coarsest level first
        for i, m in enumerate(reversed(c.mult)):
            self.up.append(_level(width, c.channels * m, c.blocks + 1, c.groups))
            width = c.channels * m
            if i < len(c.mult) - 1:
                self.up[-1].add_module("upsample", Upsample(width))
        self.norm_out = nn.GroupNorm(c.groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, c.in_channels * c.patch**2, 3, padding=1)

    def forward(self, z):
        h = self.up(self.mid(self.conv_in(z)))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch)


class VAE(nn.Module):
    """Variational autoencoder (Kingma and Welling 2013), q(z | x) = N(mean, exp(logvar)).

    Pictures x: (B, in_channels, H, W) in [-1, 1], H and W multiples of `factor`. Latents z:
    (B, latent, H/factor, W/factor). `encode` and `decode` have z as it was trained; diffusion
    runs on scale * z, which `to_latent` gives and `from_latent` takes. Raises ShapeError.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        c = self.config = config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant = nn.Conv2d(2 * c.latent, 2 * c.latent, 1)
        self.post_quant = nn.Conv2d(c.latent, c.latent, 1)
        if c.linear:
            f = self.factor
            self.linear_in = nn.Conv2d(c.in_channels, c.latent, f, stride=f)
            self.linear_out = nn.ConvTranspose2d(c.latent, c.in_channels, f, stride=f)

    @property
    def factor(self) -> int:
        return self.config.factor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> (mean, logvar), both (B, latent, H/factor, W/factor); logvar within [-30, 20]."""
        hint = f"H and W multiples of {self.factor}; resize, crop or pad the picture"
        shape = "B", self.config.in_channels, "H", "W"
        fits("x", x, shape, "this VAE encodes", hint, of=(1, 1, self.factor, self.factor))
        floats("x", x)
        mean, logvar = self.quant(self.encoder(x)).chunk(2, dim=1)
        mean = mean + self.linear_in(x) if self.config.linear else mean
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """z -> x (B, in_channels, factor h, factor w), near [-1, 1] and not clamped."""
        fits("z", z, ("B", self.config.latent, "h", "w"), "this VAE decodes")
        x = self.decoder(self.post_quant(z))
        return x + self.linear_out(z) if self.config.linear else x

    def to_latent(self, x: Tensor, generator=None) -> Tensor:
        """x -> scale * (mean + std * noise), what diffusion runs on; the mean without a generator.

        generator: a torch.Generator, a list of one a picture, or a function of mean.
        """
        mean, logvar = self.encode(x)
        if generator is not None:
            mean = mean + (0.5 * logvar).exp() * randn_like(mean, generator)
        return self.config.scale * mean

    def from_latent(self, z: Tensor) -> Tensor:
        """decode(z / scale): the picture of what diffusion made."""
        return self.decode(z / self.config.scale)


@torch.no_grad()
def start_linear(vae: VAE, x: Tensor) -> VAE:
    """The same VAE, whose linear paths are the best that there are, and whose network adds nothing.

    Of all linear maps of patches p, f x f pixels, to k numbers and back, none has a smaller mean
    square error than the projection on the k leading eigenvectors w_i of their covariance (Eckart
    and Young 1936; principal components):

        z_i = w_i . (p - m) / sqrt(lambda_i)          p' = m + sum_i sqrt(lambda_i) z_i w_i

    It needs no training: these weights are fixed, and the network learns what lines cannot. x:
    pictures (B, in_channels, H, W), a thousand will do. OptionError without config.linear.
    """
    c, f = vae.config, vae.factor
    if not c.linear:
        raise OptionError(f"config.linear = False: {c} has no linear path, build it with one")
    p = F.pixel_unshuffle(x, f).transpose(0, 1).flatten(1)  # (in_channels f^2, patches)
    mean, value, w = p.mean(1), *torch.linalg.eigh(torch.cov(p))
    std, w = value[-c.latent :].flip(0).clamp(min=1e-8).sqrt(), w[:, -c.latent :].flip(1)
    down, up = (w / std).T, (w * std).T
    for layer, weight in ((vae.linear_in, down), (vae.linear_out, up)):
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        layer.requires_grad_(False)
    vae.linear_in.bias.copy_(-down @ mean)
    # One bias a channel cannot hold the mean of every pixel of a patch: their mean over it.
    vae.linear_out.bias.copy_(mean.view(c.in_channels, -1).mean(1))
    vae.quant.weight.mul_(0.1)
    vae.quant.bias.copy_(torch.tensor([0.0, QUIET]).repeat_interleave(c.latent))
    nn.init.zeros_(vae.decoder.conv_out.weight)
    nn.init.zeros_(vae.decoder.conv_out.bias)
    return vae


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) = 1/2 sum(mean^2 + exp(logvar) - 1 - logvar), in nats.

    (B, ...) -> (B,). Kingma and Welling 2013, appendix B.
    """
    if mean.shape != logvar.shape or mean.ndim < 1:
        raise ShapeError(
            f"mean has shape {tuple(mean.shape)} and logvar {tuple(logvar.shape)}: they must be "
            "the same (B, ...)"
        )
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def decode_tiled(vae: VAE, z: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
    """`from_latent` by tiles of tile x tile latent pixels, blended where they overlap.

    Memory is that of one tile and of the finished picture. It is approximate: GroupNorm and the
    attention see one tile instead of the whole picture, so tiles differ a little in tone, and
    blending spreads the difference over `overlap` latent pixels. One tile is exact.
    """
    whole("tile", tile, 1, hint="latent pixels")
    whole("overlap", overlap, 0, tile - 1, hint="latent pixels, fewer than a tile")
    fits("z", z, ("B", vae.config.latent, "h", "w"), "this VAE decodes")
    f, (h, w) = vae.factor, z.shape[2:]
    if max(h, w) <= tile:
        return vae.from_latent(z)
    x, total = 0, torch.zeros(f * h, f * w, device=z.device)
    for top in _starts(h, tile, overlap):
        for left in _starts(w, tile, overlap):
            part = vae.from_latent(z[:, :, top : top + tile, left : left + tile]).float()
            if isinstance(x, int):
                x = part.new_zeros(*part.shape[:2], f * h, f * w)
            rise, run = (_ramp(side, f * overlap, part) for side in part.shape[2:])
            weight = rise[:, None] * run
            here = (
                slice(f * top, f * top + part.shape[2]),
                slice(f * left, f * left + part.shape[3]),
            )
            x[:, :, *here] += part * weight
            total[here] += weight
    return (x / total).to(z.dtype)


def _starts(size, tile, overlap):
    """Where tiles begin along one side; the last one ends flush."""
    last = max(size - tile, 0)
    return [*range(0, last, tile - overlap), last]


def _ramp(size, overlap, like):
    """The weight of each of a tile's pixels: from near 0 at both ends up to 1 after `overlap`."""
    away = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    return (torch.minimum(away, size - away) / max(overlap, 0.5)).clamp(max=1)
