"""The autoencoder of latent diffusion: pictures to a small latent and back, so that diffusion runs on 1/48 of the numbers.

Original arithmetic of Rombach et al. 2022 (section 3.1 and appendix G): a convolutional encoder that halves the
size at every level but the last, one attention in the middle, and a decoder that mirrors it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import randn_like
from ..errors import OptionError, ShapeError


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a VAE; `mult` holds one entry a level, from the finest.

    in_channels: of the picture.  channels: width of the first level.  mult: width of each level, times channels.
    blocks: ResBlocks a level (the decoder has one more).  latent: channels of z.  groups: of every GroupNorm.
    scale: what z is multiplied by to have a standard deviation near 1, as diffusion wants it: it belongs to the
    weights, and SDXL's differs from SD's.
    """

    in_channels: int = 3
    channels: int = 128
    mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent: int = 4
    groups: int = 32
    scale: float = 0.18215

    def __post_init__(self):
        object.__setattr__(self, "mult", tuple(self.mult))  # lists come out of JSON
        for size in (
            self.in_channels,
            self.channels,
            *self.mult,
            self.blocks,
            self.latent,
            self.groups,
        ):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise OptionError(
                    f"{size!r} in {self}: every size and every mult is a whole number of at least 1"
                )
        if not self.mult:
            raise OptionError("mult = () needs at least one level, for example (1, 2, 4, 4)")
        for level, m in enumerate(self.mult):
            if self.channels * m % self.groups:
                raise OptionError(
                    f"level {level} has {self.channels * m} channels, not a multiple of groups = {self.groups}: change one of them"
                )
        if (
            isinstance(self.scale, bool)
            or not isinstance(self.scale, (int, float))
            or not 0 < self.scale < math.inf
        ):
            raise OptionError(
                f"scale = {self.scale!r} must be a positive number, 1 / (standard deviation of z); SD has 0.18215, SDXL 0.13025"
            )


SD_VAE = VAEConfig(scale=0.18215)
SDXL_VAE = VAEConfig(scale=0.13025)


class ResBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), a UNet's ResBlock without time: (B, C_in, H, W) -> (B, C_out, H, W)."""

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
    """x + out(softmax(Q K^T / sqrt(C)) V) over all pixels, a single head: (B, C, H, W) -> the same."""

    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x):
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        q, k, v = (z.unsqueeze(1) for z in (self.q(h), self.k(h), self.v(h)))  # (B, 1, H*W, C)
        h = self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """Half the size by a convolution with stride 2; the original pads at the right and below only, unlike the UNet."""

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
    return nn.Sequential(
        ResBlock(dim, dim, groups), Attention(dim, groups), ResBlock(dim, dim, groups)
    )


class Encoder(nn.Module):
    """Picture -> the numbers of a Gaussian, before `quant`: (B, in_channels, H, W) -> (B, 2 latent, H/f, W/f)."""

    def __init__(self, c: VAEConfig):
        super().__init__()
        width = c.channels
        self.conv_in = nn.Conv2d(c.in_channels, width, 3, padding=1)
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
        h = self.mid(self.down(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent, after `post_quant` -> picture: (B, latent, h, w) -> (B, in_channels, f h, f w)."""

    def __init__(self, c: VAEConfig):
        super().__init__()
        width = c.channels * c.mult[-1]
        self.conv_in = nn.Conv2d(c.latent, width, 3, padding=1)
        self.mid = _middle(width, c.groups)
        self.up = nn.Sequential()  # the coarsest level first
        for i, m in enumerate(reversed(c.mult)):
            self.up.append(_level(width, c.channels * m, c.blocks + 1, c.groups))
            width = c.channels * m
            if i < len(c.mult) - 1:
                self.up[-1].add_module("upsample", Upsample(width))
        self.norm_out = nn.GroupNorm(c.groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, c.in_channels, 3, padding=1)

    def forward(self, z):
        h = self.up(self.mid(self.conv_in(z)))
        return self.conv_out(F.silu(self.norm_out(h)))


class VAE(nn.Module):
    """Variational autoencoder (Kingma and Welling 2013) with q(z | x) = N(mean, exp(logvar)); see `VAEConfig`.

    Pictures x: (B, in_channels, H, W) in [-1, 1], H and W multiples of `factor`. Latents z: (B, latent, H/factor,
    W/factor), any size. `encode` and `decode` speak of z as it was trained; diffusion runs on scale * z, which
    `to_latent` gives and `from_latent` takes. Raises ShapeError where a shape does not fit.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        c = self.config = config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant = nn.Conv2d(2 * c.latent, 2 * c.latent, 1)
        self.post_quant = nn.Conv2d(c.latent, c.latent, 1)

    @property
    def factor(self) -> int:
        """Pixels a latent pixel, along one side: 8 for Stable Diffusion."""
        return 2 ** (len(self.config.mult) - 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> (mean, logvar) of q(z | x), both (B, latent, H/factor, W/factor); logvar clamped to [-30, 20]."""
        c, f = self.config.in_channels, self.factor
        if x.ndim != 4 or x.shape[1] != c or 0 in x.shape or x.shape[2] % f or x.shape[3] % f:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}: this VAE encodes (B, {c}, H, W), H and W multiples of {f}; resize, crop or pad the picture"
            )
        mean, logvar = self.quant(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """z, not scaled -> x (B, in_channels, factor h, factor w), near [-1, 1] and not clamped."""
        c = self.config.latent
        if z.ndim != 4 or z.shape[1] != c or 0 in z.shape:
            raise ShapeError(f"z has shape {tuple(z.shape)}: this VAE decodes (B, {c}, h, w)")
        return self.decoder(self.post_quant(z))

    def to_latent(self, x: Tensor, generator=None) -> Tensor:
        """x -> scale * (mean + std * noise), what diffusion runs on; without a generator scale * mean.

        generator: a torch.Generator, a list of one a picture, or a function of mean that returns the noise.
        """
        mean, logvar = self.encode(x)
        if generator is not None:
            mean = mean + (0.5 * logvar).exp() * randn_like(mean, generator)
        return self.config.scale * mean

    def from_latent(self, z: Tensor) -> Tensor:
        """decode(z / scale): the picture of what diffusion made."""
        return self.decode(z / self.config.scale)


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, I)) = 1/2 sum(mean^2 + exp(logvar) - 1 - logvar), in nats: (B, ...) -> (B,).

    Kingma and Welling 2013, appendix B. Raises ShapeError if the two shapes differ.
    """
    if mean.shape != logvar.shape or mean.ndim < 1:
        raise ShapeError(
            f"mean has shape {tuple(mean.shape)} and logvar {tuple(logvar.shape)}: they must be the same (B, ...)"
        )
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def decode_tiled(vae: VAE, z: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
    """`from_latent` by tiles of tile x tile latent pixels, blended linearly where they overlap: (B, latent, h, w) -> x.

    Memory is that of one tile and of the finished picture. It is approximate: GroupNorm and the attention of the
    middle see one tile instead of the whole picture, so tiles differ a little in tone, and blending spreads that
    difference over `overlap` latent pixels. Where a single tile covers z it is exact. Raises OptionError unless
    0 <= overlap < tile.
    """
    for name, size in (("tile", tile), ("overlap", overlap)):
        if isinstance(size, bool) or not isinstance(size, int):
            raise OptionError(
                f"{name} = {size!r} must be a whole number of latent pixels, {vae.factor} pixels each"
            )
    if not 0 <= overlap < tile:
        raise OptionError(f"tile = {tile} and overlap = {overlap}: needed is 0 <= overlap < tile")
    if z.ndim != 4 or 0 in z.shape:
        raise ShapeError(
            f"z has shape {tuple(z.shape)}: this VAE decodes (B, {vae.config.latent}, h, w)"
        )
    f, (h, w) = vae.factor, z.shape[2:]
    x = torch.zeros(
        len(z),
        vae.config.in_channels,
        f * h,
        f * w,
        device=z.device,
        dtype=torch.promote_types(z.dtype, torch.float32),
    )
    for top, weight_y in _tiles(h, tile, overlap, f, x):
        for left, weight_x in _tiles(w, tile, overlap, f, x):
            part = vae.from_latent(z[:, :, top : top + tile, left : left + tile])
            x[:, :, f * top : f * top + part.shape[2], f * left : f * left + part.shape[3]] += (
                part * weight_y[:, None] * weight_x
            )
    return x.to(z.dtype)


def _tiles(size, tile, overlap, f, like):
    """[(start, weight of each of its f * tile pixels)] along one side; at every pixel the weights add up to 1."""
    tile = min(tile, size)
    starts = [
        *range(0, size - tile, max(tile - overlap, 1)),
        size - tile,
    ]  # the last one ends flush
    away = torch.arange(f * tile, device=like.device, dtype=like.dtype) + 0.5
    ramp = (torch.minimum(away, f * tile - away) / max(f * overlap, 0.5)).clamp(max=1)
    total = torch.zeros(f * size, device=like.device, dtype=like.dtype)
    for start in starts:
        total[f * start : f * (start + tile)] += ramp
    return [(start, ramp / total[f * start : f * (start + tile)]) for start in starts]
