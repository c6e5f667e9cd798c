"""The smallest useful denoiser: a multilayer perceptron for points in the plane."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import ShapeError
from .unet import timestep_embedding


class MLP(nn.Module):
    """eps predicted for points: x_t (B, dim), t (B,), optional cond.vector (B, vector) -> (B, dim).

    The time enters every layer as in the UNet: a sinusoidal embedding, added before the activation.
    Raises ShapeError where the shapes do not fit.
    """

    def __init__(self, dim: int = 2, hidden: int = 128, layers: int = 3, vector: int = 0):
        super().__init__()
        self.dim, self.hidden, self.n_vector = dim, hidden, vector
        self.time = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.vector = nn.Linear(vector, hidden) if vector else None
        self.first = nn.Linear(dim, hidden)
        self.middle = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.last = nn.Linear(hidden, dim)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        if x_t.ndim != 2 or x_t.shape[1] != self.dim or t.shape != (len(x_t),):
            raise ShapeError(
                f"x_t has shape {tuple(x_t.shape)} and t {tuple(t.shape)}: this MLP takes (B, {self.dim}) and (B,)"
            )
        emb = self.time(timestep_embedding(t, self.hidden).to(x_t.dtype))
        if self.vector is not None:
            if cond.vector is None or cond.vector.shape != (len(x_t), self.n_vector):
                raise ShapeError(
                    f"cond.vector must have shape ({len(x_t)}, {self.n_vector}), zeros for no condition"
                )
            emb = emb + self.vector(cond.vector)
        h = self.first(x_t)
        for layer in self.middle:
            h = h + layer(F.silu(h + emb))
        return self.last(F.silu(h))
