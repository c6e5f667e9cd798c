"""Both UNets of Imagen's plan, one after the other, by the same `train`. Notebook 15.

The base reads the text encoder of a latent system, and its inner layers, which know what words look
like, are that system's too: both stay as they are. What learns is the way from pixels to these
layers and back. `up` begins with random weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.images import from_uint8, to_uint8
from ..datasets.painted import painted_digits
from ..diffusion import Cond
from ..files.load import load
from ..networks.unet import UNetConfig
from ..paths import beside
from ..systems.cascade import Cascade, CascadeConfig, embed_noise
from ..systems.editing import enlarged, with_noise
from .latents import distinct, in_pieces
from .recipes import DENOISE, start_at_zero
from .train import TrainConfig, train
from .whole_system import last_step

# x_0 is the question that a small network of pixels answers soonest (notebook 04).
QUICK = dict(DENOISE, predict="x_0")
ENDS = ("conv_in", "conv_out")  # of a latent's channels, not of pixels

# ---------------------------------------------------------------- recipes


@dataclass(frozen=True)
class CascadeRecipe:
    """The system that the base begins with, what of it learns, the other UNet, and one run each."""

    name: str
    source: str  # a system, a source of `load`
    dataset: Callable  # () -> dataset[index] -> (x_0, captions)
    learns: tuple[str, ...]  # parts of the base; the others stay as they are in the source
    up: UNetConfig
    train_base: TrainConfig
    train_up: TrainConfig
    patch: int = 2
    up_patch: int = 2
    most_noise: float = 0.4  # in the small pictures `up` learns from; most of them have little
    n: int = 30000  # pictures


PAINTED_IMAGEN = CascadeRecipe(
    "painted-imagen",
    "painted",
    painted_digits,
    # As in editing.py, but that the base also learns what t means in pixels.
    ("time", "conv_in", "down.0", "up.2", "up.3", "norm_out", "conv_out"),
    UNetConfig(
        in_channels=2 * 3 * 4,  # squares of 2 x 2 pixels: of x_t, and of what is behind it
        out_channels=3 * 4,
        channels=24,
        mult=(1, 2),
        depth=(0, 0),
        middle=1,
        heads=(4, 4),
        context=64,
        vector=16,
        blocks=1,
        groups=8,
    ),
    TrainConfig(steps=800, batch_size=32, ema=0.995, t_mean=0.5, **{**QUICK, "lr": 7e-3}),
    TrainConfig(steps=900, batch_size=32, ema=0.99, **QUICK),
)
CASCADE_RECIPES = {PAINTED_IMAGEN.name: PAINTED_IMAGEN}


def begin(recipe: CascadeRecipe) -> Cascade:
    """The source's text encoder and inner layers; both UNets answer 0 to anything."""
    sd = load(recipe.source)
    unet = replace(sd.config.unet, in_channels=3 * recipe.patch**2, out_channels=0)
    config = CascadeConfig(
        recipe.name, sd.config.text, unet, recipe.up, patch=recipe.patch, up_patch=recipe.up_patch
    )
    torch.manual_seed(recipe.train_base.seed)
    cascade = Cascade(config, sd.schedule, sd.tokenizer)
    cascade.text, cascade.meta = sd.text, {"words": sd.meta["words"]}
    state = {k: w for k, w in sd.unet.state_dict().items() if k.partition(".")[0] not in ENDS}
    cascade.base.model.load_state_dict(state, strict=False)
    for net in (cascade.base.model, cascade.up.model.model):
        start_at_zero(net)
    return cascade.eval().requires_grad_(False)


# ---------------------------------------------------------------- the data


@dataclass(frozen=True, eq=False)
class Pixels:
    """pixels[index] -> (x_0, Cond(context)) of the base."""

    pictures: Tensor  # (N, 3, H, W) bytes
    contexts: Tensor  # (M, L, D): a caption that several pictures share is encoded once
    row: Tensor  # (N,): which of the contexts is a picture's
    uncond: Cond  # the encoding of "", which takes the place of a dropped text

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        return from_uint8(self.pictures[index]), Cond(self.contexts[self.row[index]])


@dataclass(frozen=True, eq=False)
class Enlarged:
    """enlarged[index] -> (x_0, Cond(context, vector, picture)) of `up`.

    The picture is made half as large, enlarged and noised: `level` of each, which is in the vector,
    and noise anew in every batch, from its numbers, so that a run can be repeated.
    """

    pixels: Pixels
    level: Tensor  # (N,)
    number_dim: int

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        (x_0, cond), level = self.pixels[index], self.level[index]
        gen = torch.Generator().manual_seed(int(index.sum()))
        eps = torch.randn(x_0.shape, generator=gen)
        picture = with_noise(enlarged(F.avg_pool2d(x_0, 2)), level, eps)
        return x_0, Cond(cond.context, embed_noise(level, self.number_dim), picture)

    def uncond(self, index) -> Cond:
        vector = embed_noise(self.level[index], self.number_dim)
        return Cond(self.pixels.uncond.context, vector)


@torch.no_grad()
def pixels(cascade: Cascade, dataset, n: int) -> Pixels:
    """The first n large pictures of the dataset, and what the UNets read of their captions."""
    captions, pictures = [], []
    for part in torch.arange(min(n, len(dataset))).split(1000):
        x_0, own = dataset[part]
        pictures.append(to_uint8(x_0))
        captions += own
    texts, row = distinct(captions)
    read = lambda piece: cascade.text.encode(piece).map(lambda part: part.cpu())
    return Pixels(torch.cat(pictures), in_pieces(read, texts).context, row, read([""]))


def halved(data: Pixels) -> Pixels:
    """The same pictures half as large, means of 2 x 2."""
    parts = (F.avg_pool2d(from_uint8(x), 2) for x in data.pictures.split(1000))
    return replace(data, pictures=to_uint8(torch.cat(list(parts))))


def noised_ones(data: Pixels, most: float, number_dim: int) -> Enlarged:
    """level = most u^2, u uniform: most pictures have little noise."""
    u = torch.rand(len(data), generator=torch.Generator().manual_seed(0))
    return Enlarged(data, most * u**2, number_dim)


# ---------------------------------------------------------------- the run


def train_cascade(
    recipe: CascadeRecipe, checkpoint=None, log: Callable | None = None, device="cpu"
) -> Cascade:
    """Algorithm 1 for the base, then for `up`, which sees real small pictures, not the base's.

    checkpoint: the base's file; that of `up` is FILE_up.  log(part): what runs the generator of
    steps of "base" and of "up", such as `progress`.
    """
    cascade, log = begin(recipe).to(device), log or (lambda part: iter)
    large = pixels(cascade, recipe.dataset(), recipe.n)
    for part in ("base", "up"):
        file = checkpoint if part == "base" else checkpoint and beside(checkpoint, "_up")
        train_part(cascade, part, recipe, large, file, log(part))
    return cascade.cpu().eval().requires_grad_(False)


def train_part(
    cascade: Cascade, part: str, recipe: CascadeRecipe, large: Pixels, checkpoint=None, log=iter
) -> None:
    """One of both UNets, which then holds the averaged weights; large: see `pixels`."""
    config, dim = getattr(recipe, f"train_{part}"), cascade.config.number_dim
    data = halved(large) if part == "base" else noised_ones(large, recipe.most_noise, dim)
    unet = getattr(cascade, part)
    for name in recipe.learns if part == "base" else ("",):
        (unet.model if name else unet).get_submodule(name).requires_grad_(True)
    step = last_step(log(train(unet, cascade.schedule, data, config, checkpoint=checkpoint)))
    unet.load_state_dict(step.ema.state_dict())
    unet.requires_grad_(False)
