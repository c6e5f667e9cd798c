"""Other denoisers for the latents of a system that ships, such as a DiT. Notebook 16.

VAE and text encoder stay; network, prediction, weight and schedule are the recipe's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..datasets.painted import painted_digits
from ..files.load import Pretrained, load
from ..networks.dit import DiT, DiTConfig
from ..networks.precondition import Preconditioned
from ..networks.unet import UNet, UNetConfig
from ..schedule import Schedule
from .latents import Latents, encode
from .recipes import MUON, start_at_zero
from .train import TrainConfig, train
from .whole_system import last_step


@dataclass(frozen=True)
class DenoiserRecipe:
    """A network and its run."""

    name: str
    net: DiTConfig | UNetConfig
    train: TrainConfig
    base: str = "painted"  # the system; a source of `load`
    dataset: Callable = painted_digits  # () -> dataset[index] -> (x_0, captions)
    n: int = 30000  # pictures
    schedule: Callable = Schedule.flow
    edm: bool = False  # the network is preconditioned, which takes predict = "x_0"
    guidance: float = 3.0  # this and the next two suit the result
    steps: int = 10
    sampler: str = "dpmpp_2m"

    def model(self) -> nn.Module:
        """Random weights from the run's seed; its answer to anything is 0."""
        torch.manual_seed(self.train.seed)
        if isinstance(self.net, DiTConfig):
            net = DiT(self.net)
        else:
            net = start_at_zero(UNet(self.net))
        return Preconditioned(net, self.schedule()) if self.edm else net


def train_denoiser(
    recipe: DenoiserRecipe,
    checkpoint=None,
    log: Callable = iter,
    device="cpu",
    latents: Latents | None = None,
) -> Pretrained:
    """Algorithm 1 on latents of the base (worked out unless given): what `load` would return.

    Its meta has the base's name, guidance, steps and sampler, see `with_denoiser`.
    """
    if latents is None:
        latents = encode(load(recipe.base, device=device), recipe.dataset(), recipe.n)
    model, schedule = recipe.model().to(device), recipe.schedule()
    step = last_step(log(train(model, schedule, latents, recipe.train, checkpoint=checkpoint)))
    meta = {k: getattr(recipe, k) for k in ("base", "guidance", "steps", "sampler")}
    model = step.ema.cpu().eval().requires_grad_(False)
    return Pretrained(model, schedule, recipe.train.predict, meta)


PAINTED_DIT = DenoiserRecipe(
    "painted-dit",
    DiTConfig(in_channels=4, patch=1, width=64, depth=4, heads=4, context=64),
    TrainConfig(
        steps=2600,
        batch_size=32,
        ema=0.995,
        predict="flow",
        t_distribution="logit_normal",
        t_mean=0.5,
        **MUON,
    ),
    n=16000,
)
DENOISER_RECIPES = {recipe.name: recipe for recipe in (PAINTED_DIT,)}
