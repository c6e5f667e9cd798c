"""The smallest useful denoiser: a multilayer perceptron for points in the plane. Notebook 02."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import fits
from .unet import timestep_embedding


class MLP(nn.Module):
    """eps predicted for points: x_t (B, dim), t (B,), cond.vector (B, vector) -> (B, dim).

    The time enters every layer as in the UNet: a sinusoidal embedding, added before the
    activation. Raises ShapeError where the shapes do not fit.
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
        fits("x_t", x_t, ("B", self.dim), "this MLP takes")
        fits("t", t, (len(x_t),), "pass one time a point,")
        emb = self.time(timestep_embedding(t, self.hidden).to(x_t.dtype))  # (B, hidden)
        if self.vector is not None:
            shape = len(x_t), self.n_vector
            fits("cond.vector", cond.vector, shape, "this MLP takes", "zeros for no condition")
            emb = emb + self.vector(cond.vector)
        h = self.first(x_t)  # (B, hidden)
        for layer in self.middle:
            h = h + layer(F.silu(h + emb))
        return self.last(F.silu(h))  # (B, dim)
