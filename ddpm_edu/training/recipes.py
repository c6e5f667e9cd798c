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

from ..datasets import images as data
from ..errors import OptionError, in_range
from ..files.load import save
from ..networks.gaussian import GaussianPrior
from ..networks.unet import SpaceToDepth, UNet, UNetConfig
from ..schedule import Schedule
from .train import TrainConfig, progress, train


@dataclass(frozen=True)
class Recipe:
    """A denoiser, its data and one training run.

    The denoiser is a UNet behind SpaceToDepth(2), learning what is left over by `parts` Gaussians a class, each of `rank`
    directions (`gaussian.py`). guidance: the scale that suits the result, with `clip` on x0_hat.
    """

    name: str
    dataset: Callable
    unet: UNetConfig
    parts: int
    rank: int
    config: TrainConfig
    guidance: float
    sampler: str = "dpmpp_2m"
    clip: float = 1.0

    def schedule(self) -> Schedule:
        return Schedule.cosine()

    def model(self, dataset) -> nn.Module:
        """Random weights from the recipe's seed, and the Gaussians fitted to the data."""
        torch.manual_seed(self.config.seed)
        unet = UNet(self.unet)
        nn.init.zeros_(unet.conv_out.weight)  # start as the Gaussian's own answer
        nn.init.zeros_(unet.conv_out.bias)
        return GaussianPrior.fit(
            SpaceToDepth(unet, 2),
            self.schedule(),
            dataset,
            classes=10,
            parts=self.parts,
            rank=self.rank,
        )


def _unet(channels: int, mult: tuple[int, ...], depth: tuple[int, ...], colours: int) -> UNetConfig:
    """In: x_t and the Gaussian's x0_hat, 2 x 2 patches as channels. Out: v."""
    return UNetConfig(
        in_channels=8 * colours,
        out_channels=4 * colours,
        channels=channels,
        mult=mult,
        depth=depth,
        middle=0,
        heads=(4,) * len(mult),
        vector=10,
        blocks=1,
        groups=8,
    )


FAST = dict(lr=1e-2, predict="v", optimizer="muon", t_distribution="logit_normal")

MINUTE = Recipe(
    "minute",
    data.mnist,
    _unet(24, (1, 1), (0, 0), 1),
    30,
    16,
    guidance=1.2,
    sampler="ddpm",
    config=TrainConfig(seconds=60, batch_size=64, ema=0.99, **FAST),
)
MNIST = Recipe(
    "mnist",
    data.mnist,
    _unet(32, (1, 2), (0, 0), 1),
    30,
    16,
    guidance=1.3,
    config=TrainConfig(steps=7000, batch_size=64, ema=0.998, t_mean=0.5, **FAST),
)
CIFAR10 = Recipe(
    "cifar10",
    data.cifar10,
    _unet(32, (1, 2, 2), (0, 0, 1), 3),
    4,
    16,
    guidance=1.5,
    config=TrainConfig(steps=6000, batch_size=32, ema=0.998, t_mean=0.5, **FAST),
)
RECIPES = {r.name: r for r in (MINUTE, MNIST, CIFAR10)}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises OptionError if there is none."""
    if name not in RECIPES:
        raise OptionError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def run(
    recipe: Recipe,
    out,
    *,
    checkpoint=None,
    steps: int | None = None,
    seconds: float | None = None,
    device: str = "cpu",
) -> dict:
    """Train and write the averaged weights to `out` (see `load`). Returns what it wrote beside them."""
    if device != "cpu" and not torch.cuda.is_available():
        raise OptionError(f"device {device!r} is not here: this PyTorch sees no GPU; use cpu")
    if seconds is not None:
        in_range("seconds", seconds, 0.1, 10**7, "of training")
    changes = {k: v for k, v in (("steps", steps), ("seconds", seconds)) if v is not None}
    config = dataclasses.replace(recipe.config, **changes)
    dataset = recipe.dataset("train")
    started, losses = time.perf_counter(), []
    model, schedule = recipe.model(dataset).to(device), recipe.schedule()
    run = train(model, schedule, dataset, config, checkpoint=checkpoint)
    for step in progress(run, None if config.seconds else config.steps):
        losses.append(step.loss)
    meta = {
        "recipe": recipe.name,
        "shape": list(dataset[torch.zeros(1, dtype=torch.long)][0].shape[1:]),
        "guidance": recipe.guidance,
        "sampler": recipe.sampler,
        "clip": recipe.clip,
        "train": dataclasses.asdict(config),
        "updates": step.step,
        "seconds": round(time.perf_counter() - started),
        "device": torch.cuda.get_device_name()
        if device != "cpu"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "loss": thin(losses),
    }
    model = step.ema.cpu()
    save(out, model, meta, schedule=schedule, predict=config.predict, dtype=torch.int8)
    return meta


def thin(losses: list[float], points: int = 200) -> list[float]:
    """The loss curve as at most `points` means of equal stretches, rounded: small enough to travel with the weights."""
    width = max(1, -(-len(losses) // points))
    return [
        round(sum(part) / len(part), 5)
        for part in (losses[i : i + width] for i in range(0, len(losses), width))
    ]
