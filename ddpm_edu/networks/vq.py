"""Vector quantization: latents as words of a learned codebook, the other way to keep them in order (DALL-E's and VQGAN's)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError, ShapeError, whole


class Quantized(NamedTuple):
    """What VectorQuantizer makes of z: the codes in its place, their numbers (B, h, w), and two scalar losses."""

    z: Tensor
    indices: Tensor
    codebook: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """Each vector of z (B, dim, h, w), one a pixel, becomes the nearest of `codes` learned ones e (van den Oord et al. 2017).

        codebook = mean |sg(z) - e|^2,  commitment = beta * mean |z - sg(e)|^2        (eq. 3; sg: no gradient)

    The picture's own gradient passes straight through, from e to z. While it trains with a generator, a code that was
    nearest to nothing for `patience` batches is dead and takes a random vector of the batch as its new start (Dhariwal
    et al. 2020, arXiv 2005.00341, section 3.1). All codes start dead: N(0, I) is far from an untrained encoder's z, and
    nearly all of z would fall to one code. Watch `perplexity`.
    """

    def __init__(self, codes: int, dim: int, beta: float = 0.25, patience: int = 20):
        super().__init__()
        whole("codes", codes, 1, 2**20, "the size of the codebook")
        whole("dim", dim, 1, 2**20, "the channels of z")
        whole("patience", patience, 1, 2**31, "batches after which an unused code starts anew")
        self.beta, self.patience, self.codes = beta, patience, nn.Parameter(torch.randn(codes, dim))
        self.register_buffer(
            "idle", torch.full((codes,), patience)
        )  # batches since each code was last used

    def forward(self, z: Tensor, generator=None) -> Quantized:
        if z.ndim != 4 or z.shape[1] != self.codes.shape[1]:
            raise ShapeError(
                f"z has shape {tuple(z.shape)}: this codebook takes (B, {self.codes.shape[1]}, h, w)"
            )
        with torch.no_grad():
            rows = z.movedim(1, -1).flatten(0, 2)  # (B*h*w, dim)
            revive = self.training and generator is not None
            if revive:
                self._revive(rows, generator)
            distance = (
                self.codes.square().sum(1) - 2 * rows @ self.codes.T
            )  # |z - e|^2 without |z|^2
            indices = distance.argmin(1).view(len(z), *z.shape[2:])
            if revive:
                self.idle.add_(1)[indices.unique()] = 0
        e = self.lookup(indices)
        return Quantized(
            z + (e - z).detach(),
            indices,
            F.mse_loss(e, z.detach()),
            self.beta * F.mse_loss(z, e.detach()),
        )

    def _revive(self, rows, generator):
        dead = (self.idle >= self.patience).nonzero().flatten()
        chosen = torch.randint(len(rows), (len(dead),), generator=generator)
        self.codes[dead] = rows[chosen.to(rows.device)].to(self.codes.dtype)
        self.idle[dead] = 0

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes of these numbers: (B, h, w) -> (B, dim, h, w)."""
        if indices.ndim != 3 or indices.is_floating_point():
            raise ShapeError(
                f"indices are {tuple(indices.shape)} of {indices.dtype}: needed are whole numbers (B, h, w)"
            )
        if indices.numel() and not (0 <= indices.min() and indices.max() < len(self.codes)):
            raise OptionError(
                f"indices run from {indices.min()} to {indices.max()}: this codebook has codes 0 to {len(self.codes) - 1}"
            )
        return F.embedding(indices, self.codes).movedim(-1, 1)

    def perplexity(self, indices: Tensor) -> float:
        """exp(entropy) of how often each code is used: 1 if always the same one, len(codes) if all equally."""
        p = torch.bincount(indices.flatten(), minlength=len(self.codes)).double() / indices.numel()
        return torch.special.entr(p).sum().exp().item()
