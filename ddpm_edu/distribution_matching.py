"""Distribution matching: a student's pictures are moved to where a teacher finds more. Notebook 16.

A student draws x; noised to x_t, a teacher and a second network, fake, which always learns what the
student draws now, are both asked what is behind it. Where fake sees another x_0 than the teacher,
the student's pictures are too many or too few there, and x is moved towards the teacher's:

    gradient of KL(student || teacher) by x  ~  x0_hat_fake(x_t) - x0_hat_teacher(x_t)

DMD = Yin et al. 2023 (arXiv 2311.18828), DMD2 = Yin et al. 2024 (arXiv 2405.14867).
"""

import copy

import torch
from torch import Tensor, nn

from .consistency import endpoint
from .diffusion import Cond, Denoiser, loss, randn_like
from .errors import in_range
from .schedule import Schedule

SPAN = (0.02, 0.98)  # of the schedule: times at which student and teacher are compared (DMD)


def matching_gradient(
    teacher: Denoiser,
    fake: Denoiser,
    schedule: Schedule,
    x: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Cond | None = None,
    *,
    predict: str = "v",
) -> Tensor:
    """(x0_hat_fake - x0_hat_teacher) / mean |x - x0_hat_teacher|, (B, ...) (DMD eq. 7 and 8).

    x (B, ...): the student's pictures; t (B,) whole, eps: the noise with which both look at them.
    The mean is each picture's own, so that all times count alike. Takes no gradient.
    """
    with torch.no_grad():
        x_t = schedule.q_sample(x, t, eps)
        seen = [
            schedule.split(x_t, model(x_t, t.to(x.device), cond or Cond()), t, predict)[0]
            for model in (fake, teacher)
        ]
        size = (x - seen[1]).abs().flatten(1).mean(1).clamp(min=1e-4)
        return (seen[0] - seen[1]) / size.view(-1, *[1] * (x.ndim - 1))


def matching_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """The scalar whose gradient by x is `gradient` over the count of numbers in x."""
    return (x * gradient.detach()).mean()


class DistributionMatching(nn.Module):
    """A student and its fake network, one loss for both; what `train.fit` trains on `Paths`.

        L = matching_loss(x) + regression ||x - the path's end||^2 + L_simple(fake, x)

    x = f(x_t, t) of the student at points of a teacher's path: its beginning, and those in between
    where it is to be asked when it draws in several steps. Each term moves only the weights it is
    meant for. teacher: a frozen Denoiser, guidance and all; no submodule, so that it is neither
    trained nor saved.  regression: weight of DMD's second term, which keeps what the student drew
    from each noise before; 0 leaves it out (DMD2).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Denoiser,
        fake: nn.Module,
        schedule: Schedule,
        predict: str = "v",
        *,
        regression: float = 0.25,
        from_noise: float = 0.5,
    ):
        super().__init__()
        in_range("regression", regression, 0, 1e6, "weight of the squares")
        in_range("from_noise", from_noise, 0, 1, "share of the batch")
        self.student, self.fake = student, copy.deepcopy(fake).requires_grad_(True)
        self.teacher = lambda x_t, t, cond: teacher(x_t, t, cond)
        self.schedule, self.predict = schedule, predict
        self.regression, self.from_noise = regression, from_noise

    def forward(self, x: Tensor, times: Tensor, cond: Cond, generator=None) -> Tensor:
        """The loss on paths x (B, K + 1, ...) at points drawn by the generator."""
        n, rows = len(x), torch.arange(len(x))
        i = torch.randint(0, x.shape[1] - 1, (n,), generator=generator) // 2 * 2
        i = torch.where(torch.rand(n, generator=generator) < self.from_noise, 0, i)
        drawn = endpoint(
            self.student, self.schedule, x[rows, i], times[rows, i], cond, self.predict
        )
        low, high = (round(share * (self.schedule.T - 1)) for share in SPAN)
        t = torch.randint(low, high + 1, (2, n), generator=generator)
        e = [randn_like(drawn, generator) for _ in range(2)]
        how = {"predict": self.predict}
        given = (self.teacher, self.fake, self.schedule, drawn.detach(), t[0], e[0], cond)
        value = matching_loss(drawn, matching_gradient(*given, **how))
        value = value + self.regression * (drawn - x[:, -1]).square().mean()
        return value + loss(self.fake, self.schedule, drawn.detach(), cond, t=t[1], eps=e[1], **how)
