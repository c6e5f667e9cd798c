"""What a training run carries from step to step, and its checkpoints: bit for bit. Notebook 04."""

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import (
    CheckpointError,
    DataError,
    DdpmEduError,
    OptionError,
    ResourceError,
    TrainingError,
    memory_ended,
)
from ..files.load import check_finite, check_state, describe, unwrapped
from ..files.tensors import load_tensors, save_tensors
from .optim import EMA, lr_at, new_optimizer

FORMAT = 1  # of a checkpoint; one of another format is refused
ENTRIES = {"kind", "format", "step", "elapsed", "model", "config", "tensors"}  # of its metadata


class Run:
    """All that a run carries from one step to the next, which is all that a checkpoint holds.

    All chance comes from one seed, and what is drawn is drawn for the whole batch: of several
    processes each draws the same and keeps its share, so that they give the losses of one.
    """

    def __init__(self, model, dataset, config, checkpoint=None, accelerator=None, constants=None):
        if len(dataset) == 0:
            raise DataError("the dataset is empty: training needs at least one picture")
        if config.batch_size > len(dataset):
            raise OptionError(
                f"TrainConfig.batch_size = {config.batch_size} is larger than the dataset: pass at "
                f"most {len(dataset)}, or a dataset that gives its pictures more than once"
            )
        rank, world = 0, 1
        if accelerator:
            rank, world = accelerator.process_index, accelerator.num_processes
        if config.batch_size % world:
            raise OptionError(
                f"TrainConfig.batch_size = {config.batch_size} cannot be shared by {world} "
                "processes: choose a multiple"
            )
        self.dataset, self.config, self.accelerator = dataset, config, accelerator
        self.rank, self.world = rank, world
        self.checkpoint = None if checkpoint is None or rank else Path(checkpoint)
        self.constants = constants or {}  # tensors that must be the same when a run goes on
        self.share = slice(
            config.batch_size * rank // world, config.batch_size * (rank + 1) // world
        )
        self.step, self.elapsed, self.loss, self.lr = 0, 0.0, math.nan, 0.0
        self.given, self.weights = model, unwrapped(model)
        self.average = EMA(self.weights, config.ema)
        self.arrange(torch.channels_last)  # the order of numbers that convolutions are quickest in
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch, self.order = 0, self._order(0)
        self.optimizer, self.model = new_optimizer(self.weights, config), model
        self.trained = [p for p in self.weights.parameters() if p.requires_grad]
        if accelerator:
            self.model, self.optimizer = accelerator.prepare(model, self.optimizer)
            self.average.model.to(accelerator.device)
            self.average.model.load_state_dict(self.weights.state_dict())  # rank 0's for all
        self.device = next(self.weights.parameters()).device
        if checkpoint is not None and Path(checkpoint).exists():
            self.load(Path(checkpoint))
        self.started = time.perf_counter() - self.elapsed

    @property
    def ema(self) -> nn.Module:
        return self.average.model

    def progress(self) -> float:
        """Share of the run that is done, by the clock or by the steps."""
        if self.config.seconds:
            return self.elapsed / self.config.seconds
        return self.step / self.config.steps

    # ------------------------------------------------------------ what is drawn

    def batch(self, kind=object):
        """The next pictures, each with a `kind`, on the model's device; epoch after epoch."""
        size, n = self.config.batch_size, len(self.order)
        first = self.step * size
        epochs = range(first // n, (first + size - 1) // n + 1)
        index = torch.cat(
            [self._epoch(e)[max(first - e * n, 0) : first + size - e * n] for e in epochs]
        )
        index = self.index = index[self.share]
        batch = _taken(self.dataset, index, kind)
        self._no_nan(batch[0] if isinstance(batch, tuple) else batch, index)
        return to(self.device, batch)

    def _no_nan(self, x_0: Tensor, index: Tensor) -> None:
        bad = ~x_0.isfinite().flatten(1).all(1)
        if bad.any():
            raise TrainingError(
                f"picture {index[bad.cpu()][0]} of the dataset holds NaN or infinity, so the loss "
                f"is nan at step {self.step + 1}: stopped before the update, the last checkpoint "
                "is kept; mend or leave out the picture"
            )

    def _epoch(self, epoch: int) -> Tensor:
        if self.epoch != epoch:
            self.epoch, self.order = epoch, self._order(epoch)
        return self.order

    def _order(self, epoch: int) -> Tensor:
        """Of an epoch's pictures: the dataset's own, such as one bucket a batch, or any."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        if hasattr(self.dataset, "order"):
            return self.dataset.order(self.config.batch_size, generator)
        return torch.randperm(len(self.dataset), generator=generator)

    def times(self, T: int) -> Tensor:
        """t, (B,) on the CPU, see `times`."""
        return times(self.config, T, self.config.batch_size, self.generator)[self.share]

    def noise(self, x_0: Tensor) -> Tensor:
        """eps ~ N(0, I), shaped like x_0; with offset noise a channel's pixels share a part."""
        shape, c = (self.config.batch_size, *x_0.shape[1:]), self.config
        eps = torch.randn(shape, generator=self.generator)
        if c.offset_noise:
            shared = torch.randn(*shape[:2], *[1] * (x_0.ndim - 2), generator=self.generator)
            eps = eps + c.offset_noise * shared
        return eps[self.share].to(self.device)

    def drop(self, cond: Cond | None, uncond: Cond | Callable | None) -> Cond:
        """In p_uncond of the cases `uncond` (1, ...) or uncond(index), or zeros, replace cond.

        Its picture stays: a dropped text is still about the same picture.
        """
        uncond = uncond(self.index) if callable(uncond) else uncond
        drawn = torch.rand(self.config.batch_size, generator=self.generator)[self.share]
        keep = (drawn >= self.config.p_uncond).to(self.device)
        return dropped(cond or Cond(), uncond or Cond(), keep)

    # ------------------------------------------------------------ one update

    def precision(self):
        """The network's products in config.dtype; weights, loss and update stay in float32."""
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def descend(self, value: Tensor) -> None:
        """One step down the gradient of this loss, clipped, at the learning rate of now."""
        self.loss = self._finite("loss", self._mean(value.detach()))
        c = self.config
        self.lr = lr_at(self.step, self.progress(), c.lr, c.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad(set_to_none=True)
        if self.accelerator:
            self.accelerator.backward(value)
            norm = self.accelerator.clip_grad_norm_(self.trained, c.clip_norm)
        else:
            value.backward()
            norm = nn.utils.clip_grad_norm_(self.trained, c.clip_norm)
        if not getattr(self.accelerator, "scaler", None):  # it skips steps whose float16 overflows
            self._finite("gradient", norm)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.weights, self.step)
        self.elapsed = self._clock()
        if self.progress() >= 1:
            self.arrange(torch.contiguous_format)  # as a file has them: the same to the last bit

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.accelerator:
            value = self.accelerator.reduce(value.to(self.accelerator.device), "mean")
        return value

    def _clock(self) -> float:
        """Seconds of training, by the first process's clock in all of them: they stop together."""
        own = torch.tensor(0.0 if self.rank else time.perf_counter() - self.started)
        return self._mean(own).item() * self.world

    def _finite(self, name: str, value: Tensor) -> float:
        if not math.isfinite(value := value.item()):
            raise TrainingError(
                f"the {name} is {value} at step {self.step + 1}: stopped before the update, the "
                f"last checkpoint is kept. Try a lower lr than {self.config.lr:g}, or look for "
                "numbers far outside [-1, 1] in the data"
            )
        return value

    def arrange(self, memory_format) -> None:
        for model in (self.weights, self.ema):
            model.to(memory_format=memory_format)

    @contextmanager
    def update(self) -> Iterator[None]:
        """One update: Ctrl-C waits for its end and saves; memory that ends is one error."""
        with _held_back(signal.SIGINT) if self.checkpoint else nullcontext() as asked:
            try:
                self.model.train()
                yield
            except (MemoryError, RuntimeError) as e:  # torch.OutOfMemoryError is one
                if not memory_ended(e):
                    raise
                raise ResourceError(
                    f"out of memory at step {self.step + 1} ({e!s:.200}): pass a smaller "
                    f"batch_size than {self.config.batch_size}, a smaller model, or "
                    "dtype='bfloat16'; the last checkpoint is kept"
                ) from e
        if asked:
            self.write()
            raise KeyboardInterrupt(f"saved after step {self.step} to {self.checkpoint}")

    # ------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Every config.save_every steps, and at the end."""
        if self.progress() >= 1 or self.step % self.config.save_every == 0:
            self.write()

    def write(self) -> None:
        if self.checkpoint is None:
            return
        tensors = {
            **self.constants,
            "random.generator": self.generator.get_state(),
            "random.torch": torch.get_rng_state(),
            **{f"model.{k}": v for k, v in self.weights.state_dict().items()},
            **{f"ema.{k}": v for k, v in self.ema.state_dict().items()},
        }
        for i, kept in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in kept.items()}
        progress = {"step": self.step, "elapsed": self.elapsed, "tensors": sorted(tensors)}
        save_tensors(
            self.checkpoint,
            tensors,
            {"kind": "training", "format": FORMAT, **progress, **self._settings()},
        )

    def _settings(self) -> dict:
        """What must be the same when a run goes on."""
        config = {k: v for k, v in dataclasses.asdict(self.config).items() if k != "save_every"}
        return {"model": json.dumps(describe(self.weights)), "config": config}

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; it is checked first, a refused one leaves the run as it was."""
        tensors, meta = load_tensors(path)
        if cause := self._another(tensors, meta):
            raise CheckpointError(f"{path}: {cause}, or give another file name to start a new run")
        model, ema, state = (
            {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
            for part in ("model.", "ema.", "optimizer.")
        )
        check_state(self.weights, model, str(path))
        check_state(self.weights, ema, str(path))
        check_finite(tensors, path)
        try:
            optimizer, step, elapsed = self._optimizer_state(state), meta["step"], meta["elapsed"]
            if sorted(tensors) != meta["tensors"]:
                lost = sorted(set(meta["tensors"]) ^ tensors.keys())
                raise ValueError(f"{len(lost)} tensors missing or new: {', '.join(lost[:3])}")
            most = math.inf if self.config.seconds else self.config.steps
            if not (isinstance(step, int) and 0 <= step <= most and 0 <= elapsed < math.inf):
                raise ValueError(f"step = {step} of {most}, elapsed = {elapsed}")
            generator, everywhere = (
                torch.Generator().set_state(tensors[f"random.{name}"]).get_state()
                for name in ("generator", "torch")
            )
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as e:
            raise CheckpointError(
                f"{path}: a training checkpoint with parts missing or damaged ({e!r:.200}): "
                "use an earlier one, or give another file name to start a new run"
            ) from e
        self.weights.load_state_dict(model)
        self.ema.load_state_dict(ema)
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(generator)
        torch.set_rng_state(everywhere)
        self.step, self.elapsed = step, float(elapsed)

    def _another(self, tensors, meta) -> str:
        """What else the file is, and the remedy; "" for a checkpoint of this run."""
        if meta.get("kind") != "training":
            return "weights, but not a training checkpoint: give one"
        new = ", ".join(sorted(meta.keys() - ENTRIES))
        if new or meta.get("format") != FORMAT:
            cause = f"with {new}" if new else f"{meta.get('format')}, not {FORMAT}"
            return f"of another format ({cause}): go on with the version that wrote it"
        settings, before = self._settings(), meta.get("config")
        now = settings["config"] | {"model": settings["model"]}
        before = {**(before if isinstance(before, dict) else {}), "model": meta.get("model")}
        changed = [
            f"{k} was {before.get(k)}, now {v}" for k, v in now.items() if before.get(k) != v
        ]
        for name, value in self.constants.items():
            if not torch.equal(tensors.get(name, torch.empty(0)), value):
                changed.append("another noise schedule")
        if changed:
            changed = "; ".join(changed)
            return f"this checkpoint is of another run ({changed}): go on with the same settings"
        return ""

    def _optimizer_state(self, tensors) -> dict:
        """The optimizer's own state dict, filled from "<number>.<name>" tensors."""
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {}
        for key, value in tensors.items():
            i, name = key.split(".", 1)
            if name != "step" and value.shape != weights[int(i)].shape:
                raise ValueError(f"optimizer.{key} has shape {tuple(value.shape)}")
            state.setdefault(int(i), {})[name] = value
        return {**self.optimizer.state_dict(), "state": state}


@contextmanager
def _held_back(number: int) -> Iterator[list]:
    """The signal, if Python's handler is there for it, only fills the list; a second one acts."""
    asked, usual = [], signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(number) is not usual:
        yield asked
        return

    def ask(*_):
        asked.append(number)
        signal.signal(number, usual)

    signal.signal(number, ask)
    try:
        yield asked
    finally:
        signal.signal(number, usual)


def times(config, T: int, n: int, generator: torch.Generator) -> Tensor:
    """t, (n,): uniform, or most often in the middle; the first t_share of T only."""
    T = max(1, round(config.t_share * T))
    if config.t_distribution == "uniform":
        return torch.randint(T, (n,), generator=generator)
    normal = config.t_mean + torch.randn(n, generator=generator)
    return (T * normal.sigmoid()).long().clamp(max=T - 1)


def dropped(cond: Cond, uncond: Cond, keep: Tensor) -> Cond:
    """cond where `keep` (B,) says so, else `uncond`, of 1 or B, or zeros; its picture stays."""

    def part(own, other):
        if own is None:
            return None
        kept = keep.view(-1, *[1] * (own.ndim - 1))
        return own * kept if other is None else torch.where(kept, own, other.to(own))

    return Cond(*map(part, cond[:2], uncond[:2]), cond.picture)


def to(device, batch):
    """A batch on the device: its tensors and Conds; captions stay as they are."""
    if isinstance(batch, Cond):
        return batch.map(lambda part: part.to(device))
    if isinstance(batch, tuple):
        return tuple(to(device, part) for part in batch)
    return batch.to(device) if isinstance(batch, Tensor) else batch


def _taken(dataset, index: Tensor, kind):
    """dataset[index], if that is floats, or codes (int64) where any `kind` will do, each with one;
    DataError names what it is."""
    try:
        batch = dataset[index]
        x_0, other = batch if kind is not object or isinstance(batch, tuple) else (batch, None)
        codes = kind is object and x_0.dtype == torch.int64
        if (x_0.is_floating_point() or codes) and isinstance(other, kind):
            return batch
        cause = f"{x_0.dtype} with {type(other).__name__}"
    except (DdpmEduError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as e:
        cause = e
    raise DataError(
        f"the dataset, a {type(dataset).__name__}, gives no batch (x_0, Cond) for a tensor of "
        f"indices ({cause!s:.200}): ImageDataset(images, labels) takes arrays, "
        "ImageDataset.of(dataset) takes (picture, label) pairs"
    )
