"""Reflow: a model trained on the two ends of another's paths, which straightens. Notebook 16.

Rectified flow = Liu et al. 2022 (arXiv 2209.03003); with texts and guidance Liu et al. 2023
(InstaFlow, arXiv 2309.06380). In training each picture meets every noise, so that paths cross and
the mean velocity bends. Along a model's own paths nothing crosses: trained on their two ends a new
model has straighter ones, and needs fewer steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion import Cond, Denoiser, last, loss
from ..errors import ShapeError, one_of
from ..samplers import SAMPLERS
from ..schedule import Schedule
from .train import TrainConfig, TrainStep, fit


@dataclass(frozen=True, eq=False)
class Pairs:
    """pairs[index] -> (x_0, (eps, Cond)): pictures, and the noise that each came from."""

    x_0: Tensor  # (N, ...)
    eps: Tensor  # (N, ...)
    cond: Cond = Cond()  # of N rows

    def __post_init__(self):
        if self.x_0.shape != self.eps.shape:
            shapes = f"{tuple(self.x_0.shape)} and {tuple(self.eps.shape)}"
            raise ShapeError(f"x_0 and eps have shapes {shapes}: pass as many of the same size")

    def __len__(self) -> int:
        return len(self.x_0)

    def __getitem__(self, index) -> tuple[Tensor, tuple[Tensor, Cond]]:
        return self.x_0[index], (self.eps[index], self.cond.map(lambda part: part[index]))


def make_pairs(
    model: Denoiser,
    schedule: Schedule,
    eps: Tensor,
    timesteps=50,
    cond: Cond | None = None,
    *,
    predict: str = "flow",
    sampler: str = "euler",
    batch: int = 250,
) -> Pairs:
    """x_0 from each noise eps (N, ...), by a sampler without chance; `model` may be guided.

    The cond is kept: a model that learns from pairs of a guided one draws so without guidance.
    """
    one_of("sampler", sampler, ("ddim", "euler", "heun", "dpmpp_2m", "ipndm"))
    cond, x_0 = cond or Cond(), []
    for part in torch.arange(len(eps)).split(batch):
        own = cond.map(lambda rows: rows[part])
        run = SAMPLERS[sampler](model, schedule, eps[part], timesteps, own, predict=predict)
        x_0.append(last(run))
    return Pairs(torch.cat(x_0), eps, cond)


def reflow(
    model: nn.Module, schedule: Schedule, pairs: Pairs, config: TrainConfig, *, checkpoint=None
) -> Iterator[TrainStep]:
    """`train` on pairs: the same loss, but that x_0 keeps its own eps; t uniform, no text dropped.

    Start from the weights of the model that made the pairs: most is known then.
    """

    def objective(model, batch, generator):
        x_0, (eps, cond) = batch
        t = torch.randint(schedule.T, (len(x_0),), generator=generator)
        ask = dict(predict=config.predict, weight=config.weight)
        return loss(model, schedule, x_0, cond, t=t, eps=eps, **ask)

    schedule.can_predict(config.predict, schedule.T - 1)
    return fit(model, pairs, config, objective, checkpoint=checkpoint)
