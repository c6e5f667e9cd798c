"""A ControlNet trained beside a frozen system that draws: Algorithm 1, a hint more. Notebook 10.

Zhang et al. 2023 (arXiv 2302.05543), section 3.3: the loss is the UNet's own, and only the copy of
its encoder learns. For a while (here 60 updates, there thousands) the hint is not followed, then
all at once it is: benchmarks/sudden_convergence.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..datasets.hints import edges
from ..datasets.images import from_uint8, to_uint8
from ..datasets.painted import painted_digits
from ..diffusion import Cond
from ..files.load import load
from ..networks.controlnet import ControlNet, control_net
from ..networks.unet import UNet
from ..systems.system import StableDiffusion
from .latents import Latents, encode
from .recipes import DENOISE
from .train import TrainConfig, train
from .whole_system import last_step


@dataclass(frozen=True)
class ControlRecipe:
    """The system that stays as it is, what the hints show, the ControlNet and its run."""

    name: str
    base: str  # a source of `load`
    dataset: Callable  # () -> dataset[index] -> (x_0, captions)
    hint: Callable  # pictures -> hints
    train: TrainConfig
    n: int  # pictures
    net: dict = field(default_factory=dict)  # what of its config is not the UNet's


# Half the texts are dropped, as in section 3.4: then the hint alone must tell. The ControlNet has
# no transformers, like the small ones for SDXL.
PAINTED_EDGES = ControlRecipe(
    "painted-edges",
    "painted",
    painted_digits,
    edges,
    TrainConfig(
        steps=2000, batch_size=32, ema=0.99, p_uncond=0.5, t_mean=1.0, **{**DENOISE, "lr": 5e-3}
    ),
    n=30000,
    net=dict(depth=(0, 0), middle=0, widths=(16, 32, 96)),
)
CONTROL_RECIPES = {PAINTED_EDGES.name: PAINTED_EDGES}


# ---------------------------------------------------------------- the data


@dataclass(frozen=True, eq=False)
class Hinted:
    """hinted[index] -> (z_0, Cond(context, vector, picture: the hint)); a dropped text keeps it."""

    latents: Latents
    hints: Tensor  # (N, hint, H, W) bytes

    @property
    def uncond(self) -> Cond:
        return self.latents.uncond

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        z_0, cond = self.latents[index]
        return z_0, cond._replace(picture=from_uint8(self.hints[index]))


def hinted(sd: StableDiffusion, dataset, hint: Callable, n: int) -> Hinted:
    """The first n of the dataset through VAE and text encoder, and their hints."""
    parts = torch.arange(n).split(1000)
    return Hinted(encode(sd, dataset, n), torch.cat([to_uint8(hint(dataset[p][0])) for p in parts]))


# ---------------------------------------------------------------- the run


class Steered(nn.Module):
    """A UNet that stays as it is, with a ControlNet that learns; the hint is cond.picture."""

    def __init__(self, unet: UNet, net: ControlNet):
        super().__init__()
        self.net = net
        self.frozen = [unet]  # in a list: its weights are none of those that learn, or are saved

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        plain = cond._replace(picture=None)
        return self.frozen[0](x_t, t, plain, self.net(x_t, t, plain, cond.picture))


def train_control(
    recipe: ControlRecipe,
    checkpoint=None,
    log: Callable = iter,
    device: str = "cpu",
    change: Callable = lambda net: net,
) -> ControlNet:
    """The averaged ControlNet; resumable like every run. change: what its start goes through."""
    sd = load(recipe.base, device=device)
    torch.manual_seed(recipe.train.seed)
    model = Steered(sd.unet, change(control_net(sd.unet, **recipe.net)))
    data = hinted(sd, recipe.dataset(), recipe.hint, recipe.n)
    step = last_step(log(train(model, sd.schedule, data, recipe.train, checkpoint=checkpoint)))
    net = step.ema.net.cpu().eval().requires_grad_(False)
    net.meta = {"base": recipe.base, "hint": recipe.hint.__name__}
    return net
