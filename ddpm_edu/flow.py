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
from .errors import OptionError, ShapeError, fits, floats, in_range, one_of, whole
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


def path(field: Callable, x_1: Tensor, steps: int = 100, start: float = 1.0) -> Tensor:
    """Where the noise x_1 goes, (steps + 1, B, ...): Euler's steps from u = `start` to u = 0.

    start: 1, or the share of noise where the schedule ends.
    """
    whole("steps", steps, 1, 10**6)
    in_range("start", start, 1e-6, 1, "the share of noise in x_1")
    x = [x_1]
    with torch.no_grad():
        for i in range(steps):
            x.append(x[-1] - start / steps * field(x[-1], start * (1 - i / steps)))
    return torch.stack(x)


def straightness(x: Tensor) -> Tensor:
    """How far each path x (steps + 1, B, ...) is from straight at constant speed, (B,); 0: it is.

    mean over steps and numbers of (velocity - (x_1 - x_0))^2: S(Z) of Liu et al. 2022 (arXiv
    2209.03003, section 2.2) a number, whose mean over many paths is the flow's. Data and noise of
    unit variance are 2 apart in this measure. One step of Euler is exact where it is 0.
    """
    if x.ndim < 3 or len(x) < 2:
        raise ShapeError(f"x has shape {tuple(x.shape)}: pass paths (steps + 1, B, ...) of `path`")
    velocities = (x[:-1] - x[1:]) * (len(x) - 1)
    return (velocities - (x[0] - x[-1])).square().flatten(2).mean((0, 2))


def shifted_timesteps(schedule: Schedule, steps: int, shift: float = 1.0) -> Tensor:
    """Times of any schedule with shares u = i / steps moved to noise, (steps,) float64, falling.

    u becomes shift u / (1 + (shift - 1) u), as in `Schedule.flow`, but the schedule, which the
    model knows its times by, stays as it is: so SD 3 is sampled.
    """
    whole("steps", steps, 1, schedule.T, "one model call each, no more than the schedule has")
    in_range("shift", shift, 1e-3, 1e3, "1 is the plain path, SD 3 samples with 3")
    u = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    u = shift * u / (1 + (shift - 1) * u)
    return schedule.time_at(u / (1 - u)).clamp(max=schedule.T - 1)


def shift_of(numbers: int, trained: int) -> float:
    """sqrt(numbers / trained): the shift for pictures of more numbers than a model was trained on.

    So many copies of a number under noise tell it as well as one under less noise (Esser et al.
    2024, eq. 23): 1024 x 1024 pixels after 256 x 256 would be 4; SD 3 takes 3, which looks best.
    """
    whole("numbers", numbers, 1, 2**40, "of a picture")
    whole("trained", trained, 1, 2**40, "of a picture in training")
    return math.sqrt(numbers / trained)


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
