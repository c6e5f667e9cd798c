"""EDM's preconditioning: any network, asked for what has unit variance at each noise. Notebook 16.

EDM = Karras et al. 2022 (arXiv 2206.00364), section 5 and table 1.
"""

import math

import torch
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import in_range
from ..schedule import Schedule


def preconditioning(s: float, n: float, sigma_data: float = 1.0) -> tuple[float, float, float]:
    """(c_skip, c_out, c_in) for x_t = s x_0 + n eps, where x_0 has standard deviation sigma_data.

    EDM writes them for x = x_t / s, with sigma = n / s and d = sigma_data:
        c_skip = d^2 / (sigma^2 + d^2), c_out = sigma d / sqrt(sigma^2 + d^2),
        c_in = 1 / sqrt(sigma^2 + d^2)
    Times 1 / s where they multiply x, they are these with r = sqrt(n^2 + s^2 d^2), the standard
    deviation of x_t: c_skip = s d^2 / r^2, c_out = n d / r, c_in = 1 / r, which hold at s = 0 too.
    """
    r = math.hypot(n, s * sigma_data)
    return s * sigma_data**2 / r**2, n * sigma_data / r, 1 / r


class Preconditioned(nn.Module):
    """x0_hat = c_skip x_t + c_out model(c_in x_t, c_noise, cond): for predict = "x_0".

    model's input and its target F = (x_0 - c_skip x_t) / c_out have unit variance, and c_skip is
    what makes c_out, so the model's own errors in x0_hat, smallest. With `weight` in the loss all
    noises count alike at the start: w |x0_hat - x_0|^2 = |model - F|^2.
    With sigma_data = 1, F is -v: EDM and v-prediction are one. c_noise = 250 log(sigma), the
    paper's log(sigma) / 4 in thousands, as the networks here expect times.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, sigma_data: float = 1.0):
        super().__init__()
        in_range("sigma_data", sigma_data, 1e-4, 1e4, "the standard deviation of the data")
        self.model, self.schedule, self.sigma_data = model, schedule, sigma_data

    @property
    def weight(self) -> Tensor:
        """1 / c_out^2 = 1 / sigma_data^2 + SNR, (T,), for `loss(..., weight=)`."""
        return self.sigma_data**-2 + self.schedule.snr

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        times, where = t.to("cpu", torch.float64).unique(return_inverse=True)
        levels = [self.schedule.signal_noise(time) for time in times.tolist()]
        c = [(*preconditioning(*level, self.sigma_data), c_noise(*level)) for level in levels]
        c = torch.tensor(c, dtype=torch.float64)[where].to(x_t)  # (B, 4)
        c_skip, c_out, c_in = (c[:, i].view(-1, *[1] * (x_t.ndim - 1)) for i in range(3))
        return c_skip * x_t + c_out * self.model(c_in * x_t, c[:, 3], cond)


def c_noise(s: float, n: float) -> float:
    """250 log(n / s), held within those of sigma = 1e-4 and 1e4: pure noise has a name too."""
    return 250 * math.log(min(max(n / s if s else math.inf, 1e-4), 1e4))
