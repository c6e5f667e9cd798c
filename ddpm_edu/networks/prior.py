"""unCLIP's prior: which picture, as CLIP sees it, a caption asks for. Notebook 15.

unCLIP = Ramesh et al. 2022 (arXiv 2204.06125), DALL-E 2. What is denoised is no picture but a
vector, CLIP's embedding of one. The network is called like the UNet, so `loss`, `train` and every
sampler run it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import ShapeError, fits, multiple, sizes
from .unet import Conditioned, TransformerBlock, timestep_embedding


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of a prior."""

    size: int = 64  # P, numbers of an embedding
    context: int = 64  # width of cond.context, the tokens of the caption
    vector: int = 64  # width of cond.vector, CLIP's embedding of the whole caption
    length: int = 16  # most tokens of a caption
    width: int = 96  # D, numbers a token in here
    depth: int = 3  # transformer blocks
    heads: int = 4  # of attention

    def __post_init__(self):
        sizes(self, size=(1, 8192), context=(1, 8192), vector=(1, 8192), length=(1, 4096))
        sizes(self, width=(1, 8192), depth=(1, 128), heads=(1, 1024))
        multiple("PriorConfig.width", self.width, "heads", self.heads)


class Prior(Conditioned):
    """x_0 predicted from x_t, t and the caption, as tokens of one transformer (section 2.2).

    The tokens: the caption's states (B, L, context), its embedding (B, vector), the time t (B,),
    x_t (B, P), and a learned one, whose last state becomes the answer: (B, P). unCLIP's transformer
    is causal; here every token sees all. Raises ShapeError where these do not fit.

    x_t is a unit vector made to have mean 0 and variance 1 in each number, see `standard`.
    """

    kind = "prior"  # for messages

    def __init__(self, config: PriorConfig):
        super().__init__()
        c = self.config = config
        self.tokens = nn.Linear(c.context, c.width)
        self.text = nn.Linear(c.vector, c.width)
        self.time = nn.Sequential(
            nn.Linear(c.width, c.width), nn.SiLU(), nn.Linear(c.width, c.width)
        )
        self.conv_in = nn.Linear(c.size, c.width)  # the first and last layer are named as a UNet's
        self.places = nn.Parameter(0.02 * torch.randn(c.length + 4, c.width))  # its end: the answer
        self.blocks = nn.ModuleList(TransformerBlock(c.width, 0, c.heads) for _ in range(c.depth))
        self.norm_out = nn.LayerNorm(c.width)
        self.conv_out = nn.Linear(c.width, c.size)
        for part in self.conv_out.parameters():
            nn.init.zeros_(part)
        self.register_buffer("mean", torch.zeros(c.size))  # of the embeddings of real pictures
        self.register_buffer("std", torch.ones(c.size))

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        c = self.config
        fits("x_t", x_t, ("B", c.size), "this prior takes")
        self._check(x_t, t, cond)
        n = cond.context.shape[1]
        if n > c.length:
            raise ShapeError(f"{n} tokens a caption: this prior takes at most {c.length}")
        time = self.time(timestep_embedding(t, c.width).to(x_t.dtype))
        one_each = self.text(cond.vector), time, self.conv_in(x_t), torch.zeros_like(time)
        h = torch.cat([self.tokens(cond.context), torch.stack(one_each, 1)], 1)  # (B, L + 4, D)
        h = h + torch.cat([self.places[:n], self.places[-4:]])
        for block in self.blocks:
            h = block(h, None)
        return self.conv_out(self.norm_out(h[:, -1]))  # (B, P)

    # ------------------------------------------------------------ embeddings

    @torch.no_grad()
    def measure(self, z: Tensor) -> None:
        """Mean and deviation of the embeddings z (N, P) of real pictures."""
        self.mean.copy_(z.mean(0))
        self.std.copy_(z.std(0))

    def standard(self, z: Tensor) -> Tensor:
        """Embeddings (B, P), unit vectors, to x_0: (z - mean) / std."""
        return (z - self.mean) / self.std

    def embedding(self, x_0: Tensor) -> Tensor:
        """And back: unit vectors."""
        return F.normalize(x_0 * self.std + self.mean, dim=-1)
