"""The training loop: Algorithm 1 of DDPM with the things every real run needs, written as a generator.

    for step in progress(train(model, schedule, dataset, TrainConfig(steps=1000)), 1000):
        ...                                    # step.loss, step.lr; step.ema is the model to sample from

`train` teaches a denoiser; `fit` is the same loop for any other objective (autoencoder, CLIP).

Every random number of a run comes from one seed, so a run is repeatable on the CPU, can be resumed bit for bit,
and gives the same losses whether one process or several share the batch (`accelerate launch`).
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..diffusion import Cond, loss
from ..errors import (
    CheckpointError,
    DataError,
    OptionError,
    TrainingError,
    in_range,
    known_prediction,
    whole,
)
from ..files.checkpoint import (
    check_finite,
    check_state,
    describe,
    load_state,
    load_tensors,
    save_tensors,
)
from ..schedule import Schedule
from .ema import EMA
from .muon import Muon


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    steps: updates.  batch_size: pictures an update, over all processes together.  lr: peak learning rate of AdamW,
    reached after `warmup` updates, then falling to 0 along half a cosine.  ema: decay of the averaged weights.
    clip_norm: longest gradient allowed, inf for any.  p_uncond: share of conditions dropped, for guidance.  predict: "eps", "x_0"
    or "v".  optimizer: "adamw" or "muon" (see `muon.py`).  t_distribution: "uniform", or "logit_normal": t =
    T sigmoid(t_mean + normal), most often in the middle, later if t_mean > 0 (Esser et al. 2024, arXiv 2403.03206, eq. 19).
    seconds: if above 0, stop after that much wall time instead and let lr follow the clock (not repeatable).
    """

    steps: int = 1000
    batch_size: int = 128
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.0
    ema: float = 0.995
    clip_norm: float = 1.0
    p_uncond: float = 0.1
    predict: str = "eps"
    optimizer: str = "adamw"
    t_distribution: str = "uniform"
    t_mean: float = 0.0
    seed: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        for check, name, low, high in (
            (whole, "steps", 1, 10**9),
            (whole, "batch_size", 1, 10**6),
            (in_range, "lr", 0, 10),
            (whole, "warmup", 0, 10**9),
            (in_range, "ema", 0, 1),
            (in_range, "weight_decay", 0, 10),
            (in_range, "p_uncond", 0, 1),
            (in_range, "seconds", 0, 10**9),
            (in_range, "t_mean", -10, 10),
            (whole, "seed", 0, 2**40),
        ):
            check(f"TrainConfig.{name}", getattr(self, name), low, high, "see its docstring")
        if (
            isinstance(self.clip_norm, bool)
            or not isinstance(self.clip_norm, (int, float))
            or not self.clip_norm > 0
        ):  # 0 would train nothing
            raise OptionError(
                f"TrainConfig.clip_norm = {self.clip_norm!r} is out of range: pass a number above 0, math.inf for no clipping"
            )
        known_prediction(self.predict)
        for name, known in (
            ("optimizer", ("adamw", "muon")),
            ("t_distribution", ("uniform", "logit_normal")),
        ):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"TrainConfig.{name} = {getattr(self, name)!r} is not known: choose one of {', '.join(known)}"
                )

    def lr_at(self, step: int, progress: float) -> float:
        """lr: a straight rise over `warmup` steps, then lr (1 + cos(pi progress)) / 2 down to 0 at progress = 1."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        return self.lr * rise * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


class TrainStep(NamedTuple):
    """What `train` yields after each update: its number (from 1), the batch's loss, the rate used, both models."""

    step: int
    loss: float
    lr: float
    model: nn.Module
    ema: nn.Module


def train(
    model: nn.Module,
    schedule: Schedule,
    dataset,
    config: TrainConfig,
    *,
    checkpoint=None,
    save_every: int = 0,
    accelerator=None,
) -> Iterator[TrainStep]:
    """Minimise L_simple over `dataset`, one TrainStep an update.

    dataset: len() and dataset[indices] -> (x_0, Cond), such as `data.ImageDataset`.
    checkpoint: a file. If it is there, the run goes on from it; it is written every `save_every` steps and at the end. A run
    that was over already yields its last step once more, with a loss of NaN.
    accelerator: an `accelerate.Accelerator` to share each batch among its processes. On several CPU processes: start with
    `accelerate launch --multi_gpu --num_processes 2` and Accelerator(cpu=True); with --cpu, accelerate 1.15 starts only one.
    Raises DataError for an empty dataset, CheckpointError if the checkpoint is of another run, TrainingError if the loss
    or its gradient is not a number (raised before the update: weights and checkpoint stay as they were).
    """
    objective = denoising(schedule, config, getattr(dataset, "uncond", None))
    return _steps(
        _Run(model, dataset, config, objective, {"schedule.beta": schedule.beta}, accelerator),
        checkpoint,
        save_every,
    )


def fit(
    model: nn.Module,
    dataset,
    config: TrainConfig,
    objective: Callable,
    *,
    checkpoint=None,
    save_every: int = 0,
) -> Iterator[TrainStep]:
    """Minimise objective(model, batch, generator) -> scalar over `dataset`, one TrainStep an update; the rest is as in `train`.

    dataset: len() and dataset[indices] -> a batch of any kind. All chance belongs to `generator`, so that the run can be repeated.
    Of the config, p_uncond, predict, t_distribution and t_mean are for `train` alone.
    """
    return _steps(
        _Run(
            model,
            dataset,
            config,
            lambda model, batch, generator, _: objective(model, batch, generator),
        ),
        checkpoint,
        save_every,
    )


def denoising(schedule: Schedule, config: TrainConfig, uncond: Cond | None = None) -> Callable:
    """Algorithm 1 as an objective: a condition is replaced by `uncond` (1, ...) in p_uncond of the cases, by zeros where that is None.

    The whole batch is drawn in every process, from the same seed, and each keeps its share.
    """
    uncond = uncond or Cond()

    def objective(model, batch, generator, share):
        x_0, cond = batch
        device, n = next(model.parameters()).device, len(x_0)
        t, eps = (
            _times(schedule.T, n, config, generator),
            torch.randn(x_0.shape, generator=generator),
        )
        keep = torch.rand(n, generator=generator) >= config.p_uncond
        cond = Cond(
            *(
                None if part is None else _dropped(part, other, keep)[share].to(device)
                for part, other in zip(cond or Cond(), uncond)
            )
        )
        return loss(
            model,
            schedule,
            x_0[share].to(device),
            cond,
            t=t[share],
            eps=eps[share].to(device),
            predict=config.predict,
        )

    return objective


def _times(T, n, config, generator):
    if config.t_distribution == "uniform":
        return torch.randint(T, (n,), generator=generator)
    draw = config.t_mean + torch.randn(n, generator=generator)
    return (T * draw.sigmoid()).long().clamp(max=T - 1)


def _dropped(part, other, keep):
    keep = keep.view(-1, *[1] * (part.ndim - 1))
    return part * keep if other is None else torch.where(keep, part, other)


def _steps(run, checkpoint, save_every):
    if checkpoint is not None and Path(checkpoint).exists():
        run.load(checkpoint)
    return _updates(run, checkpoint, save_every)


def _updates(run, checkpoint, save_every):
    if run.progress() >= 1:
        yield TrainStep(run.step, math.nan, 0.0, run.model, run.ema.model)
    started = time.perf_counter() - run.elapsed
    while (done := run.progress()) < 1:
        value, lr = run.update(done)
        run.elapsed = run.mean(
            torch.tensor(time.perf_counter() - started)
        ).item()  # one clock for all processes
        done = run.progress()
        if done >= 1:
            run.arrange(
                torch.contiguous_format
            )  # as a model that is loaded: the same pictures, to the last bit
        if checkpoint is not None and (done >= 1 or (save_every and run.step % save_every == 0)):
            run.save(checkpoint)
        yield TrainStep(run.step, value, lr, run.model, run.ema.model)


KEPT = (
    {"step", "exp_avg", "exp_avg_sq"},
    {"momentum"},
    {"step", "mean", "square"},
)  # what AdamW and Muon keep of a weight


class _Run:
    """All that a run carries from one step to the next, which is also all that a checkpoint holds."""

    def __init__(self, model, dataset, config, objective, constants=None, accelerator=None):
        if len(dataset) == 0:
            raise DataError("the dataset is empty: training needs at least one picture")
        self.dataset, self.config, self.objective, self.accelerator = (
            dataset,
            config,
            objective,
            accelerator,
        )
        self.constants = constants or {}  # tensors that a run must not change on its way
        self.rank, self.world = (
            (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        )
        if config.batch_size % self.world:
            raise OptionError(
                f"batch_size = {config.batch_size} cannot be shared by {self.world} processes: choose a multiple"
            )
        self.step, self.elapsed = 0, 0.0
        self.model, self.ema = model, EMA(model, config.ema)
        self.arrange(torch.channels_last)  # the order of numbers that convolutions are quickest in
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = new_optimizer(model, config)
        self.wrapped = model
        if accelerator:
            self.wrapped, self.optimizer = accelerator.prepare(model, self.optimizer)
            self.ema.model.to(accelerator.device).load_state_dict(
                model.state_dict()
            )  # rank 0's weights are everybody's now
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.share = slice(
            self.rank * config.batch_size // self.world,
            (self.rank + 1) * config.batch_size // self.world,
        )

    def arrange(self, memory_format):
        for model in (self.model, self.ema.model):
            model.to(memory_format=memory_format)

    def progress(self):
        """Share of the run that is done, by the clock or by the steps."""
        return (
            self.elapsed / self.config.seconds
            if self.config.seconds
            else self.step / self.config.steps
        )

    def update(self, progress):
        batch = self.dataset[self.indices()]
        self.model.train()
        value = self.objective(self.wrapped, batch, self.generator, self.share)
        mean = self.mean(value.detach()).item()
        self.finite("loss", mean)
        lr = self.config.lr_at(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(value) if self.accelerator else value.backward()
        clip = self.accelerator.clip_grad_norm_ if self.accelerator else nn.utils.clip_grad_norm_
        norm = clip(self.parameters, self.config.clip_norm)
        if not getattr(
            self.accelerator, "scaler", None
        ):  # in float16 an overflow is usual, and its step is skipped
            self.finite("gradient", norm.item())
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.model, self.step)
        return mean, lr

    def mean(self, value):
        """Mean over the processes."""
        return (
            self.accelerator.reduce(value.to(self.accelerator.device), "mean")
            if self.accelerator
            else value
        )

    def finite(self, name, value):
        if not math.isfinite(value):
            raise TrainingError(
                f"the {name} is {value} at step {self.step + 1}: stopped before the update, the last checkpoint is kept. "
                f"Try a lower lr than {self.config.lr:g}, or look for NaN in the data"
            )

    def indices(self):
        """Which pictures the next batch holds: epoch after epoch, each in its own order."""
        size = self.config.batch_size
        first = self.step * size
        return torch.cat([self.order(epoch, first, size) for epoch in self.epochs(first, size)])

    def epochs(self, first, size):
        return range(first // len(self.dataset), (first + size - 1) // len(self.dataset) + 1)

    def order(self, epoch, first, size):
        """The part of this epoch's shuffled order that falls into pictures first..first+size-1 of the run."""
        n = len(self.dataset)
        if getattr(self, "_epoch", None) != epoch:
            seed = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(n, generator=seed)
        return self._order[max(first - epoch * n, 0) : first + size - epoch * n]

    # ------------------------------------------------------------ checkpoints

    def save(self, path):
        if self.rank:
            return
        tensors = {
            **self.constants,
            "random.generator": self.generator.get_state(),
            "random.torch": torch.get_rng_state(),
        }
        tensors |= {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        save_tensors(
            path,
            tensors,
            {
                "kind": "training",
                "step": self.step,
                "elapsed": self.elapsed,
                "model": json.dumps(describe(self.model)),
                "config": dataclasses.asdict(self.config),
            },
        )

    def load(self, path):
        """Go on from a checkpoint: everything is checked first, so that a refused one leaves the run as it was."""
        tensors, meta = load_tensors(path)
        if meta.get("kind") != "training":
            raise CheckpointError(
                f"{path}: weights, but not a training checkpoint: give another file name to start a new run"
            )
        part = lambda prefix: {
            k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
        }
        config = meta.get("config")
        now = dataclasses.asdict(self.config) | {"model": json.dumps(describe(self.model))}
        before = {**(config if isinstance(config, dict) else {}), "model": meta.get("model")}
        changed = [
            f"{k} was {before.get(k)}, now {v}" for k, v in now.items() if before.get(k) != v
        ]
        if not all(
            torch.equal(tensors.get(name, torch.empty(0)), value)
            for name, value in self.constants.items()
        ):
            changed.append("another noise schedule")
        if changed:
            raise CheckpointError(
                f"{path}: this checkpoint is of another run ({'; '.join(changed)}): "
                "go on with the same settings, or give another file name to start a new run"
            )
        for name in ("model.", "ema."):
            check_state(self.model, part(name), str(path))
        check_finite(
            {k: v for k, v in tensors.items() if k.startswith(("model.", "ema.", "optimizer."))},
            path,
        )
        try:
            optimizer, step, elapsed = (
                self.optimizer_state(part("optimizer.")),
                int(meta["step"]),
                float(meta["elapsed"]),
            )
            random = [
                torch.Generator().set_state(tensors[f"random.{k}"]).get_state()
                for k in ("generator", "torch")
            ]
            if step < 0 or not 0 <= elapsed < math.inf:
                raise ValueError(f"step = {step}, elapsed = {elapsed}")
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as e:
            raise CheckpointError(
                f"{path}: a training checkpoint with parts missing or damaged ({e!r}): "
                "use an earlier one, or give another file name to start a new run"
            ) from e
        load_state(self.model, part("model."), str(path))
        load_state(self.ema.model, part("ema."), str(path))
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(random[0])
        torch.set_rng_state(random[1])
        self.step, self.elapsed = step, elapsed

    def optimizer_state(self, tensors):
        """The optimizer's own state dict, filled from "<number>.<name>" tensors."""
        state, parameters = (
            {},
            [p for group in self.optimizer.param_groups for p in group["params"]],
        )
        for key, value in tensors.items():
            i, name = key.split(".", 1)
            if name != "step" and value.shape != parameters[int(i)].shape:
                raise ValueError(f"optimizer.{key} has shape {tuple(value.shape)}")
            state.setdefault(int(i), {})[name] = value
        for i, kept in state.items():
            if set(kept) not in KEPT:
                raise KeyError(f"optimizer.{i} with {', '.join(sorted(kept))}")
        return {**self.optimizer.state_dict(), "state": state}


def new_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer a config asks for."""
    if config.optimizer == "muon":
        return Muon(model, config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )


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
