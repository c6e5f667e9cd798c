"""The training loop: Algorithm 1 of DDPM with the things every real run needs, written as a generator.

    for step in progress(train(model, schedule, dataset, TrainConfig(steps=1000)), 1000):
        ...                                    # step.loss, step.lr; step.ema is the model to sample from

Every random number of a run comes from one seed, so a run is repeatable on the CPU, can be resumed bit for bit,
and gives the same losses whether one process or several share the batch (`accelerate launch`).
"""
import copy
import dataclasses
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .checkpoint import check_state, describe, load_state, load_tensors, save_tensors
from .diffusion import Cond, in_range, loss, whole
from .errors import CheckpointError, DataError, OptionError, TrainingError
from .muon import Muon
from .schedule import Schedule, known_prediction


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
        for check, name, low, high in ((whole, "steps", 1, 10 ** 9), (whole, "batch_size", 1, 10 ** 6), (in_range, "lr", 0, 10),
                                       (whole, "warmup", 0, 10 ** 9), (in_range, "ema", 0, 1), (in_range, "weight_decay", 0, 10),
                                       (in_range, "p_uncond", 0, 1), (in_range, "seconds", 0, 10 ** 9), (in_range, "t_mean", -10, 10), (whole, "seed", 0, 2 ** 40)):
            check(f"TrainConfig.{name}", getattr(self, name), low, high, "see its docstring")
        if isinstance(self.clip_norm, bool) or not isinstance(self.clip_norm, (int, float)) or not self.clip_norm > 0:  # 0 would train nothing
            raise OptionError(f"TrainConfig.clip_norm = {self.clip_norm!r} is out of range: pass a number above 0, math.inf for no clipping")
        known_prediction(self.predict)
        for name, known in (("optimizer", ("adamw", "muon")), ("t_distribution", ("uniform", "logit_normal"))):
            if getattr(self, name) not in known:
                raise OptionError(f"TrainConfig.{name} = {getattr(self, name)!r} is not known: choose one of {', '.join(known)}")

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


class EMA:
    """Exponential moving average of the weights: avg <- d avg + (1 - d) weights (Polyak averaging; DDPM appendix B).

    d starts small and rises to `decay`, min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    `model` is the averaged copy, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values()))
        own, new = zip(*(p for p in pairs if p[0].is_floating_point()))
        torch._foreach_lerp_(own, new, 1 - d)
        for mine, its in pairs:
            if not mine.is_floating_point():
                mine.copy_(its)  # a counter has no average


def train(model: nn.Module, schedule: Schedule, dataset, config: TrainConfig, *, checkpoint=None, save_every: int = 0,
          accelerator=None) -> Iterator[TrainStep]:
    """Minimise L_simple over `dataset`, one TrainStep an update.

    dataset: len() and dataset[indices] -> (x_0, Cond), such as `data.ImageDataset`.
    checkpoint: a file. If it is there, the run goes on from it; it is written every `save_every` steps and at the end.
    accelerator: an `accelerate.Accelerator` to share each batch among its processes. On several CPU processes: start with
    `accelerate launch --multi_gpu --num_processes 2` and Accelerator(cpu=True); with --cpu, accelerate 1.15 starts only one.
    Raises DataError for an empty dataset, CheckpointError if the checkpoint is of another run, TrainingError if the loss
    or its gradient is not a number (raised before the update: weights and checkpoint stay as they were).
    """
    run = _Run(model, schedule, dataset, config, accelerator)
    if checkpoint is not None and Path(checkpoint).exists():
        run.load(checkpoint)
    return _steps(run, checkpoint, save_every)


def _steps(run, checkpoint, save_every):
    started = time.perf_counter() - run.elapsed
    while (done := run.progress()) < 1:
        value, lr = run.update(done)
        run.elapsed = run.mean(torch.tensor(time.perf_counter() - started)).item()  # one clock for all processes
        done = run.progress()
        if checkpoint is not None and (done >= 1 or (save_every and run.step % save_every == 0)):
            run.save(checkpoint)
        yield TrainStep(run.step, value, lr, run.model, run.ema.model)


class _Run:
    """All that a run carries from one step to the next, which is also all that a checkpoint holds."""

    def __init__(self, model, schedule, dataset, config, accelerator):
        if len(dataset) == 0:
            raise DataError("the dataset is empty: training needs at least one picture")
        self.schedule, self.dataset, self.config, self.accelerator = schedule, dataset, config, accelerator
        self.rank, self.world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        if config.batch_size % self.world:
            raise OptionError(f"batch_size = {config.batch_size} cannot be shared by {self.world} processes: choose a multiple")
        self.step, self.elapsed = 0, 0.0
        self.model, self.ema = model, EMA(model, config.ema)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = new_optimizer(model, config)
        self.wrapped = model
        if accelerator:
            self.wrapped, self.optimizer = accelerator.prepare(model, self.optimizer)
            self.ema.model.to(accelerator.device).load_state_dict(model.state_dict())  # rank 0's weights are everybody's now
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device

    def progress(self):
        """Share of the run that is done, by the clock or by the steps."""
        return self.elapsed / self.config.seconds if self.config.seconds else self.step / self.config.steps

    def update(self, progress):
        x_0, cond, t, eps = self.batch()
        self.model.train()
        value = loss(self.wrapped, self.schedule, x_0, cond, t=t, eps=eps, predict=self.config.predict)
        mean = self.mean(value.detach()).item()
        self.finite("loss", mean)
        lr = self.config.lr_at(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(value) if self.accelerator else value.backward()
        clip = self.accelerator.clip_grad_norm_ if self.accelerator else nn.utils.clip_grad_norm_
        norm = clip(self.parameters, self.config.clip_norm)
        if not getattr(self.accelerator, "scaler", None):  # in float16 an overflow is usual, and its step is skipped
            self.finite("gradient", norm.item())
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.model, self.step)
        return mean, lr

    def mean(self, value):
        """Mean over the processes."""
        return self.accelerator.reduce(value.to(self.device), "mean") if self.accelerator else value

    def finite(self, name, value):
        if not math.isfinite(value):
            raise TrainingError(f"the {name} is {value} at step {self.step + 1}: stopped before the update, the last checkpoint is kept. "
                                f"Try a lower lr than {self.config.lr:g}, or look for NaN in the data")

    def batch(self):
        """The whole batch is drawn in every process, from the same seed, and each keeps its share."""
        size = self.config.batch_size
        first = self.step * size
        x_0, cond = self.dataset[torch.cat([self.order(epoch, first, size) for epoch in self.epochs(first, size)])]
        t = self.times(size)
        eps = torch.randn(x_0.shape, generator=self.generator)
        keep = torch.rand(size, generator=self.generator) >= self.config.p_uncond
        cond = (cond or Cond()).map(lambda c: c * keep.view(-1, *[1] * (c.ndim - 1)))
        share = slice(self.rank * size // self.world, (self.rank + 1) * size // self.world)
        return (x_0[share].to(self.device), cond.map(lambda c: c[share].to(self.device)), t[share], eps[share].to(self.device))

    def times(self, size):
        if self.config.t_distribution == "uniform":
            return torch.randint(self.schedule.T, (size,), generator=self.generator)
        draw = self.config.t_mean + torch.randn(size, generator=self.generator)
        return (self.schedule.T * draw.sigmoid()).long().clamp(max=self.schedule.T - 1)

    def epochs(self, first, size):
        return range(first // len(self.dataset), (first + size - 1) // len(self.dataset) + 1)

    def order(self, epoch, first, size):
        """The part of this epoch's shuffled order that falls into pictures first..first+size-1 of the run."""
        n = len(self.dataset)
        if getattr(self, "_epoch", None) != epoch:
            seed = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(n, generator=seed)
        return self._order[max(first - epoch * n, 0):first + size - epoch * n]

    # ------------------------------------------------------------ checkpoints

    def save(self, path):
        if self.rank:
            return
        tensors = {"schedule.beta": self.schedule.beta, "random.generator": self.generator.get_state(), "random.torch": torch.get_rng_state()}
        tensors |= {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        save_tensors(path, tensors, {"kind": "training", "step": self.step, "elapsed": self.elapsed, "model": json.dumps(describe(self.model)),
                                     "config": dataclasses.asdict(self.config)})

    def load(self, path):
        """Go on from a checkpoint: everything is checked first, so that a refused one leaves the run as it was."""
        tensors, meta = load_tensors(path)
        if meta.get("kind") != "training":
            raise CheckpointError(f"{path}: weights, but not a training checkpoint: give another file name to start a new run")
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        now, before = dataclasses.asdict(self.config) | {"model": json.dumps(describe(self.model))}, {**meta.get("config", {}), "model": meta.get("model")}
        changed = [f"{k} was {before.get(k)}, now {v}" for k, v in now.items() if before.get(k) != v]
        if not torch.equal(tensors.get("schedule.beta", torch.empty(0)), self.schedule.beta):
            changed.append("another noise schedule")
        if changed:
            raise CheckpointError(f"{path}: this checkpoint is of another run ({'; '.join(changed)}): "
                                  "go on with the same settings, or give another file name to start a new run")
        for name in ("model.", "ema."):
            check_state(self.model, part(name), str(path))
        try:
            optimizer, step, elapsed = self.optimizer_state(part("optimizer.")), int(meta["step"]), float(meta["elapsed"])
            random = [torch.Generator().set_state(tensors[f"random.{k}"]).get_state() for k in ("generator", "torch")]
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as e:
            raise CheckpointError(f"{path}: a training checkpoint with parts missing or damaged ({e!r}): "
                                  "use an earlier one, or give another file name to start a new run") from e
        load_state(self.model, part("model."), str(path))
        load_state(self.ema.model, part("ema."), str(path))
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(random[0])
        torch.set_rng_state(random[1])
        self.step, self.elapsed = step, elapsed

    def optimizer_state(self, tensors):
        """The optimizer's own state dict, filled from "<number>.<name>" tensors."""
        state, parameters = {}, [p for group in self.optimizer.param_groups for p in group["params"]]
        for key, value in tensors.items():
            i, name = key.split(".", 1)
            if name != "step" and value.shape != parameters[int(i)].shape:
                raise ValueError(f"optimizer.{key} has shape {tuple(value.shape)}")
            state.setdefault(int(i), {})[name] = value
        return {**self.optimizer.state_dict(), "state": state}


def new_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer a config asks for."""
    if config.optimizer == "muon":
        return Muon(model, config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)


def progress(steps: Iterable[TrainStep], total: int | None = None, every: int = 10) -> Iterator[TrainStep]:
    """The same steps behind a progress bar that shows a smoothed loss."""
    from tqdm.auto import tqdm
    smooth = None
    with tqdm(total=total, unit="step", desc="training") as bar:
        for step in steps:
            smooth = step.loss if smooth is None else 0.95 * smooth + 0.05 * step.loss
            bar.update()
            if step.step % every == 0:
                bar.set_postfix_str(f"loss {smooth:.4f}", refresh=False)
            yield step
