"""Models that edit, out of one that draws: inpainting and enlarging. Notebook 10.

The UNet of a system that ships gets more input channels, whose weights begin at 0; its outer parts
learn, by the same `train`, VAE, text encoder and the rest stay. What it sees beside z_t is worked
out once, see `EditLatents`:

    inpainting  mask, latent of the picture without what is masked   Rombach et al. 2022, 4.5
    enlarging   latent of the enlarged picture, with noise           4.4; Ho et al. 2021
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.masks import masks
from ..datasets.painted import painted_digits
from ..diffusion import Cond
from ..files.load import load
from ..networks.unet import UNet
from ..schedule import Schedule
from ..systems.editing import enlarged, hollow, sharpening, with_noise
from ..systems.pictures import grown
from ..systems.pipeline import embed_numbers
from ..systems.system import NUMBERS, StableDiffusion, build
from .latents import Latents, encode
from .recipes import PAINTED
from .train import TrainConfig, train
from .whole_system import last_step


@dataclass(frozen=True, eq=False)
class EditLatents:
    """latents[index] -> (z_0, Cond(context, vector, picture)); a dropped text keeps the rest."""

    latents: Latents
    picture: Tensor  # (N, C, h, w) beside z_t
    noise: Tensor | None = None  # (N, number_dim): how much of it is in `picture`, embedded

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        z_0, cond = self.latents[index]
        return z_0, Cond(cond.context, self._noise(index), self.picture[index])

    def uncond(self, index) -> Cond:
        return Cond(self.latents.uncond.context, self._noise(index))

    def _noise(self, index):
        return None if self.noise is None else self.noise[index]


# ---------------------------------------------------------------- what is beside z_t

MOST_NOISE = 0.7


@torch.no_grad()
def with_holes(sd: StableDiffusion, latents: Latents, dataset) -> EditLatents:
    """Each picture with a mask of its own: (N, 1 + 4, h, w), see `hollow`.

    Every other mask fills the squares of the latents, as those that `edit` makes do.
    """
    mask = masks(len(latents), sd.config.size)
    mask[::2] = grown(mask[::2], sd.vae.factor)
    parts = (
        hollow(lambda x: to_latent(sd, x), dataset[k][0], mask[k])
        for k in torch.arange(len(latents)).split(250)
    )
    return EditLatents(latents, torch.cat(list(parts)))


@torch.no_grad()
def with_small_ones(sd: StableDiffusion, latents: Latents, dataset) -> EditLatents:
    """Each picture made half as large and enlarged again: its latent with some noise, (N, 4, h, w).

    Most have little: noise = MOST_NOISE u^2, u uniform.
    """
    z = enlarged_latents(sd, len(latents), dataset)
    gen = torch.Generator().manual_seed(0)
    noise = MOST_NOISE * torch.rand(len(z), generator=gen) ** 2
    eps = torch.randn(z.shape, generator=gen)
    told = embed_numbers(1000 * noise[:, None], sd.config.number_dim)
    return EditLatents(latents, with_noise(z, noise, eps.to(z)), told)


@torch.no_grad()
def enlarged_latents(sd: StableDiffusion, n: int, dataset) -> Tensor:
    """Of the first n pictures, made half as large and enlarged again: (n, 4, h, w)."""
    small = (F.avg_pool2d(dataset[k][0], 2) for k in torch.arange(n).split(250))
    return torch.cat([to_latent(sd, enlarged(x)) for x in small])


def to_latent(sd: StableDiffusion, x: Tensor) -> Tensor:
    """Without noise, on sd's device."""
    return sd.vae.to_latent(x.to(next(sd.vae.parameters()).device))


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True)
class EditRecipe:
    """A system that draws, what its UNet sees beside z_t, what of it learns, and the run."""

    name: str
    base: str  # the system it starts from, and differs from in what is trained; a source of `load`
    dataset: Callable  # () -> dataset[index] -> (x_0, captions)
    beside: Callable  # (sd, latents, dataset) -> EditLatents
    channels: int  # of what is beside
    trained: tuple[str, ...]  # parts of the UNet; the others stay what they are in the base
    train: TrainConfig
    vector: str = ""  # see SystemConfig
    number_dim: int = 16
    guidance: float = 3.0
    steps: int = 10
    n: int = 30000  # pictures


def begin(recipe: EditRecipe) -> StableDiffusion:
    """The base, whose UNet also takes what is beside z_t and, with weights of 0, does not heed it.

    So Stable Diffusion's own inpainting model began.
    """
    base = load(recipe.base)
    own = base.config.vae.latent
    sizes = dict(in_channels=own + recipe.channels, out_channels=own)
    sizes |= {"vector": NUMBERS[recipe.vector] * recipe.number_dim}
    config = replace(
        base.config,
        name=recipe.name,
        unet=replace(base.config.unet, **sizes),
        vector=recipe.vector,
        number_dim=recipe.number_dim,
        guidance=recipe.guidance,
        steps=recipe.steps,
    )
    torch.manual_seed(recipe.train.seed)
    sd = build(config, base.schedule)
    sd.vae, sd.text, sd.meta = base.vae, base.text, {"words": base.meta["words"]}
    state = base.unet.state_dict()
    if recipe.vector:  # a last layer of 0 adds nothing to the time, and nothing to what is known
        state |= {k: torch.zeros_like(w) for k, w in state.items() if k.startswith("conv_out.")}
        for part in sd.unet.vector[2].parameters():
            part.zero_()
        state |= {f"vector.{k}": v for k, v in sd.unet.vector.state_dict().items()}
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, recipe.channels))
    sd.unet.load_state_dict(state)
    return sd


def train_editing(
    recipe: EditRecipe, checkpoint=None, log: Callable = iter, device="cpu"
) -> StableDiffusion:
    """Algorithm 1 with something beside z_t; only what the recipe names learns."""
    sd, pictures = begin(recipe).to(device), recipe.dataset()
    latents = recipe.beside(sd, encode(sd, pictures, recipe.n), pictures)
    for part in recipe.trained:
        sd.unet.get_submodule(part).requires_grad_(True)
    config = recipe.train
    model = Sharpening(sd.unet, sd.schedule) if recipe.vector else sd.unet
    step = last_step(log(train(model, sd.schedule, latents, config, checkpoint=checkpoint)))
    model.load_state_dict(step.ema.state_dict())
    return sd.cpu().eval().requires_grad_(False)


class Sharpening(nn.Module):
    """`sharpening` as a module, whose UNet learns."""

    def __init__(self, unet: UNet, schedule: Schedule):
        super().__init__()
        self.unet, self.schedule = unet, schedule

    def forward(self, x_t, t, cond):
        return sharpening(self.unet, self.schedule)(x_t, t, cond)


# The levels of 8 x 8 latent pixels; the inner ones, which know how digits look, stay.
OUTER = ("conv_in", "down.0", "up.2", "up.3", "norm_out", "conv_out")
RUN = replace(PAINTED.train_unet, lr=5e-3)
INPAINT = EditRecipe(
    "painted-inpaint", "painted", painted_digits, with_holes, 5, OUTER, replace(RUN, steps=1500)
)
UPSCALE = EditRecipe(
    "painted-upscale",
    "painted",
    painted_digits,
    with_small_ones,
    4,
    ("vector", *OUTER),
    replace(RUN, steps=1500, t_mean=1.5),
    vector="upscaler",
    guidance=1.0,
    steps=2,
)
EDIT_RECIPES = {recipe.name: recipe for recipe in (INPAINT, UPSCALE)}
