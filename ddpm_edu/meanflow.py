"""MeanFlow: a network that knows the mean velocity of a whole step. Notebook 16.

    U(z_u, r, u) = 1 / (u - r) integral from r to u of v(z_q, q) dq,   so z_r = z_u - (u - r) U

with v the velocity of flow matching on its straight path z_u = (1 - u) x_0 + u eps (flow.py). One
step from u = 1 to r = 0 draws a picture; nothing is distilled, no teacher is needed. Geng et al.
2025 (arXiv 2505.13447). Sampler "mean_flow".
"""

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from .diffusion import Cond, Denoiser
from .errors import OptionError, in_range
from .schedule import Schedule


def mean_velocity(
    model: Denoiser, schedule: Schedule, z: Tensor, u: Tensor, r: Tensor, cond: Cond
) -> Tensor:
    """U(z, r, u), (B, ...), of a model that reads x_t, t and cond.vector = u - r, (B, 1).

    x_t = z / sqrt((1 - u)^2 + u^2), as all networks here see it, at t = T u - 1 of `Schedule.flow`.
    u, r (B,), 0 <= r <= u <= 1.
    """
    x_t = z / ((1 - u) ** 2 + u**2).sqrt().view(-1, *[1] * (z.ndim - 1))
    return model(x_t, schedule.T * u - 1, cond._replace(vector=(u - r)[:, None]))


def mean_flow_loss(
    model: Denoiser,
    schedule: Schedule,
    x_0: Tensor,
    eps: Tensor,
    u: Tensor,
    r: Tensor,
    cond: Cond | None = None,
    *,
    velocity: Tensor | None = None,
    power: float = 1.0,
) -> Tensor:
    """E w ||U(z_u, r, u) - U_target||^2 with U_target = v - (u - r) dU/du (eq. 9 and 10).

    d(u - r) U / du = v gives the target; dU/du = v dU/dz + dU/du is the total derivative along the
    path, by one Jacobian-vector product, and takes no gradient. Where r = u this is flow matching.
    x_0, eps (B, ...); u, r (B,), 0 <= r <= u <= 1. velocity: eps - x_0 unless given, such as one
    with guidance built in. w = 1 / (||.||^2 + 1e-3)^power, without a gradient (eq. 22); power 0: 1.
    Raises OptionError unless r <= u.
    """
    if not bool((r <= u).all() and (r >= 0).all() and (u <= 1).all()):
        raise OptionError("u and r are shares of noise with 0 <= r <= u <= 1: r is the later point")
    in_range("power", power, 0, 2, "0: plain squares, 1: the paper's")
    wide = lambda a: a.view(-1, *[1] * (x_0.ndim - 1))
    cond, v = cond or Cond(), eps - x_0 if velocity is None else velocity
    z = (1 - wide(u)) * x_0 + wide(u) * eps
    target = v - wide(u - r) * total_derivative(model, schedule, z, u, r, v, cond)
    squared = (mean_velocity(model, schedule, z, u, r, cond) - target).square().flatten(1).mean(1)
    return (squared / (squared.detach() + 1e-3) ** power).mean()


@torch.no_grad()
def total_derivative(
    model: Denoiser, schedule: Schedule, z: Tensor, u: Tensor, r: Tensor, v: Tensor, cond: Cond
) -> Tensor:
    """dU/du along the path, (B, ...): the tangent of U(z, r, u) in the direction (v, 0, 1).

    Only of pictures with r < u, the others get 0. Attention's quick kernels know no forward
    derivative: the plain one does.
    """
    out, some = torch.zeros_like(z), r < u
    if not some.any():
        return out
    part = cond.map(lambda x: x[some])
    f = lambda z, u: mean_velocity(model, schedule, z, u, r[some], part)
    with sdpa_kernel(SDPBackend.MATH):
        tangent = jvp(f, (z[some], u[some]), (v[some], torch.ones_like(u[some])))[1]
    out[some] = tangent
    return out
