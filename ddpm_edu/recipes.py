"""How the models that ship were trained: one recipe each, and the function that follows it.

`ddpm-edu train mnist` follows a recipe from the shell; notebook 04 takes one apart.
"""
import dataclasses
import datetime
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from . import data
from .checkpoint import save_pretrained
from .errors import OptionError
from .schedule import Schedule
from .train import TrainConfig, progress, train
from .unet import CIFAR10, MNIST, SpaceToDepth, UNet, UNetConfig


@dataclass(frozen=True)
class Recipe:
    """A network, its data and one training run; `guidance` is the scale that suits the result."""
    name: str
    unet: UNetConfig
    space_to_depth: int
    dataset: Callable
    config: TrainConfig
    guidance: float

    def model(self) -> nn.Module:
        """The network with random weights from the recipe's seed."""
        torch.manual_seed(self.config.seed)
        unet = UNet(self.unet)
        return SpaceToDepth(unet, self.space_to_depth) if self.space_to_depth > 1 else unet

    def schedule(self) -> Schedule:
        return Schedule.cosine()


RECIPES = {r.name: r for r in (
    Recipe("mnist", MNIST, 2, data.mnist, TrainConfig(steps=12000, batch_size=128, predict="v", ema=0.999), guidance=2.0),
    Recipe("cifar10", CIFAR10, 2, data.cifar10, TrainConfig(steps=20000, batch_size=128, lr=1e-3, predict="v", ema=0.999), guidance=2.0),
)}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises OptionError if there is none."""
    if name not in RECIPES:
        raise OptionError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def run(recipe: Recipe, out, *, checkpoint=None, steps: int | None = None, seconds: float | None = None, device: str = "cpu") -> dict:
    """Train and write the averaged weights to `out` (see `checkpoint.load_pretrained`). Returns what it wrote beside them."""
    if device != "cpu" and not torch.cuda.is_available():
        raise OptionError(f"device {device!r} is not here: this PyTorch sees no GPU; use cpu")
    changes = {k: v for k, v in (("steps", steps), ("seconds", seconds)) if v is not None}
    config = dataclasses.replace(recipe.config, **changes)
    model, schedule = recipe.model().to(device), recipe.schedule()
    dataset = recipe.dataset("train")
    started, losses = time.perf_counter(), []
    run = train(model, schedule, dataset, config, checkpoint=checkpoint, save_every=500 if checkpoint else 0)
    for step in progress(run, None if config.seconds else config.steps):
        losses.append(step.loss)
    meta = {"recipe": recipe.name, "shape": list(dataset[torch.zeros(1, dtype=torch.long)][0].shape[1:]), "guidance": recipe.guidance,
            "train": dataclasses.asdict(config), "updates": step.step, "seconds": round(time.perf_counter() - started),
            "device": torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
            "torch": torch.__version__, "date": datetime.date.today().isoformat(), "loss": thin(losses)}
    save_pretrained(out, step.ema.cpu(), schedule, config.predict, meta, dtype=torch.float16)
    return meta


def thin(losses: list[float], points: int = 200) -> list[float]:
    """The loss curve as at most `points` means of equal stretches, rounded: small enough to travel with the weights."""
    width = max(1, -(-len(losses) // points))
    return [round(sum(part) / len(part), 5) for part in (losses[i:i + width] for i in range(0, len(losses), width))]
