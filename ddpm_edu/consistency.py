"""Consistency models: any point of a path leads to its end in one call. Notebook 16.

f(x_t, t) = x0_hat of a network that says where the path through x_t ends, not what the mean of all
pictures behind x_t is. It is asked once, or a few times with fresh noise in between: sampler
"consistency". CM = Song et al. 2023 (arXiv 2303.01469), guidance built in = latent consistency
models, Luo et al. 2023 (arXiv 2310.04378).
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .diffusion import Cond, Denoiser
from .errors import DataError, OptionError, ShapeError, fits, in_range, whole
from .schedule import Schedule


def endpoint(
    model: Denoiser, schedule: Schedule, x_t: Tensor, t: Tensor, cond: Cond, predict: str = "v"
) -> Tensor:
    """f(x_t, t) = x0_hat, (B, ...); t (B,) whole, and -1 for the end itself, where f(x, -1) = x.

    CM's boundary condition, eq. 5, with c_skip x_t + c_out F(x_t, t): for predict = "v" they are
    s and -n, which are 1 and 0 at the end. The network is not asked there.
    """
    at = t.clamp(min=0)
    x0_hat = schedule.split(x_t, model(x_t, at.to(x_t.device), cond), at, predict)[0]
    ended = (t < 0).to(x_t.device).view(-1, *[1] * (x_t.ndim - 1))
    return torch.where(ended, x_t, x0_hat)


def consistency_loss(
    student: Denoiser,
    target: Denoiser,
    schedule: Schedule,
    x_t: Tensor,
    t: Tensor,
    x_s: Tensor,
    s: Tensor,
    cond: Cond | None = None,
    *,
    predict: str = "v",
) -> Tensor:
    """E ||f(x_t, t) - f_target(x_s, s)||^2: two points of one path have one end (CM eq. 7).

    x_t, x_s (B, ...): points of the same path at times t > s, (B,) whole; s may be -1, the end.
    target: a slow copy of the student, CM's theta^-; no gradient goes through it. Where s = -1
    everywhere, this is regression on the paths' ends (Luhman & Luhman 2021, arXiv 2101.02388).
    Raises OptionError unless every t is later than its s, ShapeError where shapes differ.
    """
    t, s = torch.as_tensor(t), torch.as_tensor(s)
    if not bool((t > s).all()):
        raise OptionError("s must be less noisy than t: pass two points of a path, t > s")
    if x_t.shape != x_s.shape:
        raise ShapeError(
            f"x_t has shape {tuple(x_t.shape)}, x_s {tuple(x_s.shape)}: pass points of one path"
        )
    cond = cond or Cond()
    with torch.no_grad():
        wanted = x_s if (s < 0).all() else endpoint(target, schedule, x_s, s, cond, predict)
    return (endpoint(student, schedule, x_t, t, cond, predict) - wanted).square().mean()


@dataclass(frozen=True, eq=False)
class Paths:
    """Paths that a teacher solved: paths[index] -> (x (B, K + 1, ...), (times (B, K + 1), Cond)).

    The last of the points is the end, at time -1. A path that begins later than others repeats its
    first point in front.
    """

    x: Tensor  # (N, K + 1, ...)
    times: Tensor  # (N, K + 1) whole, never rising, the last -1
    contexts: Tensor  # (M, L, D)
    row: Tensor  # (N,): which of the contexts is a path's

    def __post_init__(self):
        if len(self.x) == 0:
            raise DataError("there are no paths: pass at least one")
        fits("times", self.times, self.x.shape[:2], "one for each point of the paths,")
        fall = (self.times[:, :-1] >= self.times[:, 1:]).all() and (self.times[:, -2] > -1).all()
        if not fall or (self.times[:, -1] != -1).any():
            raise DataError("times: they must fall along each path, down to -1, the end")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index) -> tuple[Tensor, tuple[Tensor, Cond]]:
        return self.x[index], (self.times[index], Cond(self.contexts[self.row[index]]))

    def __add__(self, other: "Paths") -> "Paths":
        """Both."""
        pair = ((a, b) for a, b in zip(vars(self).values(), vars(other).values()))
        x, times, contexts, row = (torch.cat(both) for both in pair)
        row[len(self) :] += len(self.contexts)
        return Paths(x, times, contexts, row)


class Consistency(nn.Module):
    """A student and, for targets on the way, its slow copy; what `train.fit` trains on `Paths`.

    skip: how many points of a path lie between x_t and x_s (LCM's k); 0: x_s is the end, and no
    copy is needed.  decay: of the copy, theta^- <- decay theta^- + (1 - decay) theta.
    from_noise: share of the batch whose x_t is the path's beginning, where the way is longest.
    """

    def __init__(
        self,
        student: nn.Module,
        schedule: Schedule,
        predict: str = "v",
        *,
        skip: int = 0,
        decay: float = 0.95,
        from_noise: float = 0.3,
    ):
        super().__init__()
        whole("skip", skip, 0, 1000, "points of a path, 0 for its end")
        in_range("decay", decay, 0, 1, "0: the copy is the student itself")
        in_range("from_noise", from_noise, 0, 1, "share of the batch")
        self.student, self.schedule, self.predict = student, schedule, predict
        self.skip, self.decay, self.from_noise = skip, decay, from_noise
        self.target = copy.deepcopy(student).requires_grad_(False) if skip else None

    @torch.no_grad()
    def follow(self) -> None:
        """The copy goes a little of the way to the student."""
        if self.target is not None:
            pair = list(self.target.parameters()), list(self.student.parameters())
            torch._foreach_lerp_(*pair, 1 - self.decay)

    def forward(self, x: Tensor, times: Tensor, cond: Cond, generator=None) -> Tensor:
        """The loss on paths x (B, K + 1, ...) at points drawn by the generator."""
        self.follow()
        n, last = len(x), x.shape[1] - 1
        i = torch.randint(last, (n,), generator=generator)
        i = torch.where(torch.rand(n, generator=generator) < self.from_noise, 0, i)
        j = (i + self.skip).clamp(max=last) if self.skip else torch.full_like(i, last)
        (x_t, t), (x_s, s) = ((x[torch.arange(n), k], times[torch.arange(n), k]) for k in (i, j))
        nets, how = (self.student, self.target), {"predict": self.predict}
        return consistency_loss(*nets, self.schedule, x_t, t, x_s, s, cond, **how)


def objective(model: nn.Module, batch: tuple, generator=None) -> Tensor:
    """The loss of a `Consistency`, or a `DistributionMatching`, for `train.fit` on `Paths`."""
    x, (times, cond) = batch
    return model(x, times, cond, generator)
