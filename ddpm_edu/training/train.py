"""Algorithm 1 of DDPM with what every real run needs, written as a generator. Notebook 04.

    for step in progress(train(model, schedule, dataset, TrainConfig(steps=1000)), 1000):
        ...                                    # step.loss, step.lr; sample from step.ema

Every random number of a run comes from one seed: on the CPU a run can be repeated and resumed bit
for bit, and gives the same losses whether one process or several share the batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..diffusion import Cond, loss
from ..errors import PREDICTIONS, WEIGHTS, choices, numbers, sizes
from ..schedule import Schedule
from .resume import Run


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    steps: int = 1000  # updates
    batch_size: int = 128  # pictures an update, over all processes together
    lr: float = 2e-3  # the peak of the learning rate, which then falls along half a cosine
    warmup: int = 50  # updates in which it rises to the peak
    weight_decay: float = 0.0
    ema: float = 0.995  # decay of the averaged weights
    clip_norm: float = 1.0  # longest gradient allowed, inf for any
    p_uncond: float = 0.1  # share of conditions dropped, for guidance
    predict: str = "eps"  # what the model outputs: "eps", "x_0", "v" or "flow"
    weight: str = "none"  # of each t in the loss, see Schedule.weight: "min_snr", "snr" and others
    optimizer: str = "adamw"  # or "muon", see optim.py
    # "uniform", or "logit_normal": t = T sigmoid(t_mean + normal), most often in the middle, later
    # if t_mean > 0 (Esser et al. 2024, arXiv 2403.03206, eq. 19)
    t_distribution: str = "uniform"
    t_mean: float = 0.0
    t_share: float = 1.0  # of all times, from the least noisy; SDXL's refiner learns 0.2 of them
    # Part of the noise that all pixels of a channel share, for very dark and very bright pictures
    # (Guttenberg 2023; SDXL: 0.05)
    offset_noise: float = 0.0
    dtype: str = "float32"  # of the network's products; "bfloat16" is quicker on a GPU
    seed: int = 0
    seconds: float = 0.0  # above 0: stop by the clock instead, lr follows it; not repeatable
    save_every: int = 500  # updates between two checkpoints; changes nothing else

    def __post_init__(self):
        sizes(self, steps=(1, 10**9), batch_size=(1, 10**6), warmup=(0, 10**9), seed=(0, 2**40))
        sizes(self, save_every=(1, 10**9))
        numbers(self, lr=(0, 10), weight_decay=(0, 10), ema=(0, 1), clip_norm=(1e-9, math.inf))
        numbers(self, p_uncond=(0, 1), t_mean=(-10, 10), t_share=(1e-3, 1), offset_noise=(0, 10))
        numbers(self, seconds=(0, 10**9))
        choices(self, predict=PREDICTIONS, weight=WEIGHTS, optimizer=("adamw", "muon"))
        choices(self, t_distribution=("uniform", "logit_normal"), dtype=("float32", "bfloat16"))


class TrainStep(NamedTuple):
    """What a run yields after each update."""

    step: int  # from 1
    loss: float  # of the batch
    lr: float
    model: nn.Module
    ema: nn.Module  # its averaged copy, the one to sample from


def train(
    model: nn.Module,
    schedule: Schedule,
    dataset,
    config: TrainConfig,
    *,
    checkpoint=None,
    accelerator=None,
) -> Iterator[TrainStep]:
    """Algorithm 1: minimise L_simple over `dataset`, one TrainStep an update.

    dataset: len() and dataset[indices] -> (x_0, Cond), such as `ImageDataset`; a dropped condition
    becomes dataset.uncond or dataset.uncond(indices), zeros where there is none. An epoch follows
    dataset.order(batch_size, generator) where there is one. Batches go to the device of `model`.
    checkpoint: a file. If it is there, the run goes on from it; it is written every
    config.save_every steps, at the end, and on Ctrl-C. A run that was over already yields its last
    step once more, with a loss of NaN.
    accelerator: an `accelerate.Accelerator` that shares each batch among its processes, started by
    `accelerate launch --multi_gpu --num_processes 2`; on the CPU with Accelerator(cpu=True), or by
    `shared` (share.py).
    Raises, at the first step, DataError for an empty dataset, OptionError for a batch larger than
    it, CheckpointError for the checkpoint of another run; and TrainingError for NaN in the data,
    the loss or its gradient, before the update: weights and checkpoint stay as they were.
    """
    constants = {"schedule.beta": schedule.beta}
    run = Run(model, dataset, config, checkpoint, accelerator, constants)
    if run.progress() >= 1:
        yield report(run)
    while run.progress() < 1:
        with run.update():
            x_0, cond = run.batch(Cond | None)
            t, eps = run.times(schedule.T), run.noise(x_0)
            cond = run.drop(cond, getattr(dataset, "uncond", None))
            ask = dict(predict=config.predict, weight=config.weight)
            with run.precision():
                value = loss(run.model, schedule, x_0, cond, t=t, eps=eps, **ask)
            run.descend(value)
            run.save()
        yield report(run)


def fit(
    model: nn.Module,
    dataset,
    config: TrainConfig,
    objective: Callable,
    *,
    checkpoint=None,
    accelerator=None,
) -> Iterator[TrainStep]:
    """The same loop for any other loss: objective(model, batch, generator) -> scalar.

    dataset: len() and dataset[indices] -> a batch of any kind, pictures or codes first. All chance
    belongs to `generator`; of several processes each draws the same for its part. p_uncond,
    predict, t_distribution and t_mean are for `train`.
    """
    run = Run(model, dataset, config, checkpoint, accelerator)
    if run.progress() >= 1:
        yield report(run)
    while run.progress() < 1:
        with run.update():
            with run.precision():
                value = objective(run.model, run.batch(), run.generator)
            run.descend(value)
            run.save()
        yield report(run)


def report(run: Run) -> TrainStep:
    return TrainStep(run.step, run.loss, run.lr, run.given, run.ema)


def progress(
    steps: Iterable[TrainStep], total: int | None = None, every: int = 10, desc: str = "training"
) -> Iterator[TrainStep]:
    """The same steps behind a progress bar that shows a smoothed loss."""
    from tqdm.auto import tqdm

    smooth = None
    with tqdm(total=total, unit="step", desc=desc) as bar:
        for step in steps:
            smooth = step.loss if smooth is None else 0.95 * smooth + 0.05 * step.loss
            bar.update()
            if step.step % every == 0:
                bar.set_postfix_str(f"loss {smooth:.4f}", refresh=False)
            yield step
