"""Flow matching: the velocity of the straight path, and the likelihood it gives. Notebook 16.

`Schedule.flow` and predict = "flow" make flow matching a member of the family: the same loss, the
same samplers. Here is the path in its own coordinates, x_u = (1 - u) x_0 + u eps, 0 <= u <= 1. With
x_t = s x_0 + n eps at the time t where n / s = u / (1 - u): x_u = x_t / (s + n).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .diffusion import Cond, Denoiser
from .errors import OptionError, fits, floats, in_range, one_of, whole
from .schedule import Schedule


def velocity(
    model: Denoiser, schedule: Schedule, predict: str = "flow", cond: Cond | None = None
) -> Callable:
    """field(x_u, u) = E[eps - x_0 | x_u] of any denoiser: d x_u / d u, (B, ...) -> (B, ...).

    The model is asked at the time t of the schedule with that share of noise. predict: "flow", "v"
    or "eps"; with "x_0" the clean end, u = 0, would be 0 / 0. Raises OptionError for u outside
    0 to 1, or noisier than the schedule's end.
    """
    one_of("predict", predict, ("flow", "v", "eps"))
    latest = share(schedule, schedule.T - 1)

    def field(x_u: Tensor, u: float) -> Tensor:
        in_range("u", u, 0, latest, "this schedule's share of noise")
        t = schedule.time_at(u / (1 - u) if u < 1 else math.inf).item()
        x_t = x_u * sum(schedule.signal_noise(t))
        times = torch.full((len(x_u),), t, dtype=torch.float64, device=x_u.device)
        x0_hat, eps = schedule.split(x_t, model(x_t, times, cond or Cond()), t, predict)
        return eps - x0_hat

    return field


def share(schedule: Schedule, t: float) -> float:
    """u = n / (s + n), the share of noise at time t: 0 at t = -1, 1 in pure noise."""
    s, n = schedule.signal_noise(t)
    return n / (s + n)


def log_likelihood(field: Callable, x_0: Tensor, steps: int = 100) -> Tensor:
    """log p(x_0), (B,), in nats: where the flow takes x_0, and how much it spreads on the way.

    d x / d u = field(x, u) and d log p / d u = -div field (Chen et al. 2018, arXiv 1806.07366) from
    u = 0 to 1, where p is N(0, I): log p(x_0) = log N(x_1; 0, I) + integral of div field, by
    `steps` steps of Runge and Kutta's fourth order. x_0: (B, D), D <= 1024: the divergence is exact
    and costs D derivatives. The field must not mix the rows of a batch, and reach u = 1.
    """
    whole("steps", steps, 1, 10**6)
    fits("x_0", x_0, ("B", "D"), "the likelihood takes")
    floats("x_0", x_0)
    if x_0.shape[1] > 1024:
        raise OptionError(f"x_0 has D = {x_0.shape[1]} numbers a row: pass at most 1024")
    x, spread, h = x_0, torch.zeros_like(x_0[:, 0]), 1 / steps
    for i in range(steps):
        k1, d1 = with_divergence(field, x, i * h)
        k2, d2 = with_divergence(field, x + h / 2 * k1, (i + 0.5) * h)
        k3, d3 = with_divergence(field, x + h / 2 * k2, (i + 0.5) * h)
        k4, d4 = with_divergence(field, x + h * k3, min((i + 1) * h, 1.0))
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        spread = spread + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return spread - (x**2 + math.log(2 * math.pi)).sum(1) / 2


def with_divergence(field: Callable, x: Tensor, u: float) -> tuple[Tensor, Tensor]:
    """field(x, u), (B, D), and sum_i d field_i / d x_i, (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = field(x, u)
        rows = [
            torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0][:, i]
            for i in range(x.shape[1])
        ]
    return y.detach(), sum(rows)
