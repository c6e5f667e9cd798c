"""Vector quantization: latents as codes of a learned codebook, as in DALL-E. Notebook 06."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError, ShapeError, fits, parts, sizes, whole
from .vae import VAE, VAEConfig


class Quantized(NamedTuple):
    """What VectorQuantizer makes of z."""

    z: Tensor  # (B, dim, h, w) the codes in its place
    indices: Tensor  # (B, h, w) their numbers
    codebook: Tensor  # two scalar losses
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """Each vector of z (B, dim, h, w), one a pixel, becomes the nearest of `codes` learned ones e.

        codebook = mean |sg(z) - e|^2        commitment = beta mean |z - sg(e)|^2

    van den Oord et al. 2017, eq. 3; sg: no gradient. The picture's own gradient passes straight
    through, from e to z. While it trains with a generator, a code that was nearest to nothing for
    `patience` batches is dead, and a random vector of the batch replaces it (Dhariwal et al. 2020,
    section 3.1). All codes start dead: N(0, I) is far from an untrained encoder's z, and nearly
    all of z would fall to one code. Watch `perplexity`.
    """

    def __init__(self, codes: int, dim: int, beta: float = 0.25, patience: int = 20):
        super().__init__()
        whole("codes", codes, 1, 2**20)
        whole("dim", dim, 1)
        self.beta, self.patience = beta, whole("patience", patience, 1, 2**31)
        self.codes = nn.Parameter(torch.randn(codes, dim))
        idle = torch.full((codes,), patience)  # batches since each code was last used
        self.register_buffer("idle", idle)

    def forward(self, z: Tensor, generator=None) -> Quantized:
        fits("z", z, ("B", self.codes.shape[1], "h", "w"), "this codebook takes")
        with torch.no_grad():
            rows = z.movedim(1, -1).flatten(0, 2)  # (B*h*w, dim)
            revive = self.training and generator is not None
            if revive:
                self._revive(rows, generator)
            distance = self.codes.square().sum(1) - 2 * rows @ self.codes.T  # |z - e|^2 - |z|^2
            indices = distance.argmin(1).view(len(z), *z.shape[2:])
            if revive:
                self.idle.add_(1)[indices.unique()] = 0
        e = self.lookup(indices)
        codebook, commitment = F.mse_loss(e, z.detach()), self.beta * F.mse_loss(z, e.detach())
        return Quantized(z + (e - z).detach(), indices, codebook, commitment)

    def _revive(self, rows, generator):
        dead = (self.idle >= self.patience).nonzero().flatten()
        chosen = torch.randint(len(rows), (len(dead),), generator=generator)
        self.codes[dead] = rows[chosen.to(rows.device)].to(self.codes.dtype)
        self.idle[dead] = 0

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes of these numbers: (B, h, w) -> (B, dim, h, w)."""
        fits("indices", indices, ("B", "h", "w"), "this codebook takes whole numbers")
        if indices.is_floating_point():
            raise ShapeError(f"indices are {indices.dtype}: this codebook takes whole numbers")
        low, high = indices.aminmax()
        if low < 0 or high >= len(self.codes):
            raise OptionError(
                f"indices run from {low} to {high}: the codes are 0 to {len(self.codes) - 1}"
            )
        return F.embedding(indices, self.codes).movedim(-1, 1)

    def perplexity(self, indices: Tensor) -> float:
        """exp(entropy) of the codes' use: 1 for a single one, len(codes) for all equally often."""
        counts = torch.bincount(indices.flatten().cpu(), minlength=len(self.codes))
        p = counts.double() / indices.numel()
        return torch.special.entr(p).sum().exp().item()


@dataclass(frozen=True)
class VQConfig:
    """Sizes of a VQVAE."""

    vae: VAEConfig = VAEConfig(scale=1.0)  # its logvar is not used
    codes: int = 512  # in the book

    def __post_init__(self):
        parts(self, vae=VAEConfig)
        sizes(self, codes=(1, 2**20))


class VQVAE(nn.Module):
    """Pictures as codes and back: a VAE's encoder and decoder with a book between them.

    x (B, C, H, W) in [-1, 1] <-> codes (B, H/f, W/f), whole numbers of 0..codes-1. `training/
    autoencoder.py` trains both parts. Raises ShapeError, OptionError for codes outside the book.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.vae = VAE(config.vae)
        self.codebook = VectorQuantizer(config.codes, config.vae.latent)

    def encode(self, x: Tensor) -> Tensor:
        """The number of the code that is nearest to each latent."""
        return self.codebook(self.vae.encode(x)[0]).indices

    def decode(self, codes: Tensor) -> Tensor:
        """Near [-1, 1] and not clamped."""
        return self.vae.decode(self.codebook.lookup(codes))
