"""The denoising UNet, one class from digits to the SDXL refiner: the config grows. Notebook 03.

Topology and arithmetic of Rombach et al. 2022 (latent diffusion) and Podell et al. 2023 (SDXL).
`down`, `mid` and `up` are lists of small lists of blocks; what `down` puts out are skips for `up`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import ShapeError, fits, multiple, one_a_level, sizes, whole


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet. A tuple holds one entry a level, from the finest."""

    in_channels: int = 4  # of x_t, and of cond.picture where there is one
    out_channels: int = 0  # of the prediction; 0: as many as in_channels
    channels: int = 320  # width of the first level
    mult: tuple[int, ...] = (1, 2, 4, 4)  # width of each level, times channels
    depth: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks after each ResBlock; 0: none
    middle: int = 1  # transformer blocks between the two ResBlocks of the middle
    heads: tuple[int, ...] = (8, 8, 8, 8)  # of attention
    context: int = 0  # width D of cond.context, the tokens of a text; 0: self-attention only
    vector: int = 0  # width V of cond.vector, added to the time; 0: none
    blocks: int = 2  # ResBlocks a level on the way down; on the way up there is one more
    groups: int = 32  # of every GroupNorm

    def __post_init__(self):
        sizes(self, in_channels=(1, 4096), out_channels=(0, 4096), channels=(1, 4096))
        sizes(self, mult=(1, 64), depth=(0, 32), middle=(0, 32), heads=(1, 1024))
        sizes(self, context=(0, 2**15), vector=(0, 2**15), blocks=(1, 8), groups=(1, 1024))
        one_a_level(self, "mult", "depth", "heads")
        total = self.middle + sum(self.depth) * (2 * self.blocks + 1)  # SDXL has 70
        whole("transformer blocks (depth, middle)", total, 0, 512)
        for level, (m, heads) in enumerate(zip(self.mult, self.heads)):
            width = multiple(f"width of level {level}", self.channels * m, "groups", self.groups)
            multiple(f"width of level {level}", width, "heads", heads)

    @property
    def emb(self) -> int:
        """Width E of the time's embedding."""
        return 4 * self.channels

    def levels(self) -> list[tuple[int, int, int]]:
        """Width, heads and transformer blocks of each level, from the finest."""
        return list(zip((self.channels * m for m in self.mult), self.heads, self.depth))

    def skips(self) -> list[int]:
        """Widths of what the way down hands to the way up, in the order of the way down."""
        widths = [self.channels]
        for level, (wide, *_) in enumerate(self.levels()):
            widths += [widths[-1]] * (level > 0) + [wide] * self.blocks
        return widths


SD15 = UNetConfig(context=768)
SD21 = UNetConfig(heads=(5, 10, 20, 20), context=1024)
SDXL_BASE = UNetConfig(
    mult=(1, 2, 4), depth=(0, 2, 10), middle=10, heads=(5, 10, 20), context=2048, vector=2816
)
SDXL_REFINER = UNetConfig(
    channels=384, depth=(0, 4, 4, 0), middle=4, heads=(6, 12, 24, 24), context=1280, vector=2560
)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """[cos(t w_k), sin(t w_k)], w_k = 10000^(-2k / dim), k = 0 .. dim/2 - 1: (B,) -> (B, dim).

    In float32. Vaswani et al. 2017, section 3.5, but all cosines first, as the original
    checkpoints expect. An odd dim ends in a 0.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    w = torch.exp(-math.log(10000) * k / half)
    angle = t.float()[:, None] * w  # (B, dim/2)
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, dim % 2))  # (B, dim)


class ResBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x))) + time))): (B, C_in, H, W) -> (B, C_out, H, W).

    The time embedding (B, E) is added to every pixel.
    """

    def __init__(self, c_in: int, c_out: int, emb: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-5)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(emb, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-5)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, emb, context):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(emb))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V: (B, N, C) -> (B, N, C).

    Q comes from x, K and V from `context` (B, L, D), or from x itself where that is None.
    bias: of Q, K and V; a UNet has none, a DiT has.
    """

    def __init__(self, dim: int, context_dim: int, heads: int, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias)
        self.k = nn.Linear(context_dim, dim, bias)
        self.v = nn.Linear(context_dim, dim, bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = (
            z.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N or L, d)
            for z in (self.q(x), self.k(context), self.v(context))
        )
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2))  # (B, N, C)


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): out(a * GELU(b)), (a, b) = proj(x), each four times as wide as x."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 8 * dim)
        self.out = nn.Linear(4 * dim, dim)

    def forward(self, x):
        a, b = self.proj(x).chunk(2, dim=-1)
        return self.out(a * F.gelu(b))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text if there is one, feed-forward; each is added."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(dim), Attention(dim, dim, heads)
        if context_dim:
            self.norm2, self.attn2 = nn.LayerNorm(dim), Attention(dim, context_dim, heads)
        self.norm3, self.ff = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        if hasattr(self, "attn2"):
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Pixels as tokens through `depth` transformer blocks, added to x: (B, C, H, W) -> the same."""

    def __init__(self, dim: int, context_dim: int, heads: int, depth: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, context_dim, heads) for _ in range(depth))
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x, emb, context):
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, H*W, C)
        for block in self.blocks:
            h = block(h, context)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, H, W)


class Downsample(nn.Module):
    """Half the size by a convolution with stride 2."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x, emb, context):
        return self.conv(x)


class Upsample(nn.Module):
    """Every pixel repeated up to `size` (H, W), then a convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x, size):
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class Conditioned(nn.Module):
    """What every network of x_t, t and Cond does at its call: check all three, join the pictures.

    The config of such a network has in_channels, context and vector.
    """

    kind = "network"  # for messages

    def _input(self, x_t, t, cond):
        """x_t and behind it cond.picture, (B, in_channels, H, W), after a check of all inputs."""
        x = self._with_picture(x_t, cond.picture)
        self._check(x, t, cond)
        return x

    def _with_picture(self, x_t, picture):
        takes, kind = self.config.in_channels, OTHER_KINDS.get(self.config.in_channels, "")
        if picture is None:
            fits("x_t", x_t, ("B", takes, "H", "W"), f"this {self.kind} takes", kind)
            return x_t
        fits("x_t", x_t, ("B", "C", "H", "W"), f"this {self.kind} takes")
        if x_t.shape[1] >= takes:
            raise ShapeError(
                f"cond.picture is given, and x_t has {x_t.shape[1]} channels of the {takes} that "
                f"this {self.kind} takes: pass none"
            )
        beside = len(x_t), takes - x_t.shape[1], *x_t.shape[2:]
        fits("cond.picture", picture, beside, f"beside this x_t the {self.kind} takes", kind)
        return torch.cat([x_t, picture.to(x_t)], dim=1)

    def _check(self, x_t, t, cond):
        """ShapeError, before the first layer, unless the inputs fit this config."""
        c, takes = self.config, f"this {self.kind} takes"
        fits("t", t, (len(x_t),), "pass one time a picture,")
        if c.vector:
            shape = len(x_t), c.vector
            fits("cond.vector", cond.vector, shape, takes, "zeros for no condition")
        if c.context:
            fits("cond.context", cond.context, (len(x_t), "tokens", c.context), takes)
        elif cond.context is not None:
            raise ShapeError(
                f"cond.context has shape {tuple(cond.context.shape)}, but this {self.kind} reads "
                "no text (context = 0): pass none, or build it with context"
            )


class Encoder(Conditioned):
    """The way down and the middle: what a UNet begins with, and what a ControlNet is a copy of."""

    kind = "UNet"  # for messages

    def __init__(self, config: UNetConfig):
        super().__init__()
        c = self.config = config
        self.time = _two_layers(c.channels, c.emb)
        if c.vector:
            self.vector = _two_layers(c.vector, c.emb)
        self.conv_in = nn.Conv2d(c.in_channels, c.channels, 3, padding=1)
        self.down, width = nn.ModuleList(), c.channels
        for level, (wide, heads, depth) in enumerate(c.levels()):
            if level:
                self.down.append(nn.ModuleList([Downsample(width)]))
            for _ in range(c.blocks):
                self.down.append(_blocks(c, width, wide, heads, depth))
                width = wide
        self.mid = _blocks(c, width, width, c.heads[-1], c.middle)
        self.mid.append(ResBlock(width, width, c.emb, c.groups))

    def encode(self, x_t, t, context, vector, more=None):
        """(h (B, C, h, w) after the middle, skips [(B, C, H, W), ...] from the finest, the time's
        embedding (B, E)). more: (B, channels, H, W), added to the first of the skips."""
        emb = self.time(timestep_embedding(t, self.config.channels).to(x_t.dtype))  # (B, E)
        if self.config.vector:
            emb = emb + self.vector(vector.to(x_t.dtype))
        h = self.conv_in(x_t)  # (B, channels, H, W)
        h = h if more is None else h + more
        skips = [h]
        for blocks in self.down:
            h = _run(blocks, h, emb, context)
            skips.append(h)
        return _run(self.mid, h, emb, context), skips, emb


class UNet(Encoder):
    """eps (or v, or x_0) predicted from x_t, t and the condition; `UNetConfig` gives its sizes.

    x_t (B, C, H, W); t (B,), whole or fractional; cond.context (B, L, context); cond.vector
    (B, vector); cond.picture (B, in_channels - C, H, W), which goes in behind x_t
    -> (B, out_channels, H, W). Raises ShapeError where these do not fit.
    residuals: what ControlNets add to the skips, from the finest, and, last, to the middle.
    A model without classes (vector = 0) passes over a dataset's labels; one without text
    (context = 0) refuses a text.
    """

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        c, self.up, skips = config, nn.ModuleList(), config.skips()
        width = skips[-1]
        for level, (wide, heads, depth) in reversed(list(enumerate(c.levels()))):
            for _ in range(c.blocks + 1):
                self.up.append(_blocks(c, width + skips.pop(), wide, heads, depth))
                width = wide
            if level:
                self.up[-1].append(Upsample(width))
        self.norm_out = nn.GroupNorm(c.groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, c.out_channels or c.in_channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond(), residuals=()) -> Tensor:
        x = self._input(x_t, t, cond)
        return self.trunk(x, t, cond.context, cond.vector, *residuals)

    def trunk(self, x_t, t, context, vector, *residuals):
        """The network itself, after `forward` has checked its inputs."""
        h, skips, emb = self.encode(x_t, t, context, vector)
        if residuals:
            *skips, h = [a + b for a, b in zip([*skips, h], residuals, strict=True)]
        for blocks in self.up:
            h = torch.cat([h, skips.pop()], dim=1)
            # An odd size halves and doubles to another one: the next skip says which is right.
            size = skips[-1].shape[2:] if skips else None
            h = _run(blocks, h, emb, context, size)
        return self.conv_out(F.silu(self.norm_out(h)))  # (B, out_channels, H, W)


OTHER_KINDS = {
    9: "9 input channels: an inpainting model, for a mask and the masked picture in cond.picture",
    8: "8 input channels: a model that edits (InstructPix2Pix) or enlarges what cond.picture holds",
}


def _two_layers(width: int, emb: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))


def _blocks(c: UNetConfig, c_in, c_out, heads, depth) -> nn.ModuleList:
    """A ResBlock, then a transformer where the level has one."""
    out = nn.ModuleList([ResBlock(c_in, c_out, c.emb, c.groups)])
    if depth:
        out.append(SpatialTransformer(c_out, c.context, heads, depth, c.groups))
    return out


def _run(blocks, h, emb, context, size=None):
    for block in blocks:
        h = block(h, size) if isinstance(block, Upsample) else block(h, emb, context)
    return h


class SpaceToDepth(nn.Module):
    """Run `model` on factor x factor patches folded into channels: a factor^2 smaller grid.

    (B, C, H, W) -> (B, C f^2, H/f, W/f) -> model -> back (Shi et al. 2016, pixel shuffle). The
    noise is the same numbers in another order, so schedule, loss and samplers do not notice.
    cond.picture is folded likewise.
    """

    def __init__(self, model: nn.Module, factor: int):
        super().__init__()
        self.model, self.factor = model, whole("factor", factor, 1, 64)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        f = self.factor
        shape, whose = ("B", "C", "H", "W"), f"SpaceToDepth({f}) takes"
        fits("x_t", x_t, shape, whose, f"H and W multiples of {f}", of=(1, 1, f, f))
        if cond.picture is not None:
            fits("cond.picture", cond.picture, ("B", "C", *x_t.shape[2:]), whose)
            cond = cond._replace(picture=F.pixel_unshuffle(cond.picture, f))
        return F.pixel_shuffle(self.model(F.pixel_unshuffle(x_t, f), t, cond), f)
