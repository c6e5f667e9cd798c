"""Both UNets of Imagen's plan, one after the other, by the same `train`. Notebook 15.

The text encoder is another system's, frozen: each caption goes through it once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.images import from_uint8, to_uint8
from ..datasets.painted import painted_digits
from ..diffusion import Cond
from ..errors import MOST_PROMPTS
from ..files.load import load
from ..networks.unet import UNetConfig
from ..systems.cascade import Cascade, CascadeConfig, beside
from ..systems.editing import enlarged, with_noise
from .recipes import DENOISE, start_at_zero
from .train import TrainConfig, train
from .whole_system import last_step

# ---------------------------------------------------------------- recipes


@dataclass(frozen=True)
class CascadeRecipe:
    """The system whose text encoder is read, sizes of both UNets, and one run each."""

    name: str
    text: str  # a source of `load`
    dataset: Callable  # () -> dataset[index] -> (x_0, captions)
    base: UNetConfig
    up: UNetConfig
    train_base: TrainConfig
    train_up: TrainConfig
    patch: int = 2
    up_patch: int = 2
    most_noise: float = 0.6  # in the small pictures `up` learns from; most of them have little
    n: int = 30000  # pictures


def _unet(channels: int, mult: tuple, depth: tuple, patch: int, pictures: int, vector: int):
    """Of patch x patch squares of 3 colours; pictures: how many go in, x_t and what is behind."""
    return UNetConfig(
        in_channels=3 * patch**2 * pictures,
        out_channels=3 * patch**2,
        channels=channels,
        mult=mult,
        depth=depth,
        middle=1,
        heads=(4,) * len(mult),
        context=64,
        vector=vector,
        blocks=1,
        groups=8,
    )


PAINTED_IMAGEN = CascadeRecipe(
    "painted-imagen",
    "painted",
    painted_digits,
    _unet(32, (1, 2), (0, 1), 2, 1, vector=64),
    _unet(24, (1, 2), (0, 0), 2, 2, vector=64 + 16),
    TrainConfig(steps=2500, batch_size=48, ema=0.995, t_mean=1.0, **DENOISE),
    TrainConfig(steps=1000, batch_size=32, ema=0.99, t_mean=0.5, **DENOISE),
)
CASCADE_RECIPES = {PAINTED_IMAGEN.name: PAINTED_IMAGEN}


def begin(recipe: CascadeRecipe) -> Cascade:
    """The text encoder of the system, and two UNets that answer 0 to anything."""
    sd = load(recipe.text)
    config = CascadeConfig(
        recipe.name,
        sd.config.text,
        recipe.base,
        recipe.up,
        patch=recipe.patch,
        up_patch=recipe.up_patch,
        predict=recipe.train_base.predict,
    )
    torch.manual_seed(recipe.train_base.seed)
    cascade = Cascade(config, sd.schedule, sd.tokenizer)
    cascade.text, cascade.meta = sd.text, {"words": sd.meta["words"]}
    for unet in (cascade.base.model, cascade.up.model):
        start_at_zero(unet)
    return cascade.eval().requires_grad_(False)


# ---------------------------------------------------------------- the data


@dataclass(frozen=True, eq=False)
class Pixels:
    """pixels[index] -> (x_0, Cond(context, vector)) of the base."""

    pictures: Tensor  # (N, 3, H, W) bytes
    texts: Cond  # of M captions: one that several pictures share is encoded once
    row: Tensor  # (N,): which of them is a picture's
    uncond: Cond  # the encoding of "", which takes the place of a dropped text

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        return from_uint8(self.pictures[index]), self.texts.map(lambda x: x[self.row[index]])


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
        return x_0, beside(cond, level, self.number_dim)._replace(picture=picture)

    def uncond(self, index) -> Cond:
        empty, level = self.pixels.uncond, self.level[index]
        empty = empty._replace(vector=empty.vector.expand(len(level), -1))
        return beside(empty, level, self.number_dim)


@torch.no_grad()
def pixels(cascade: Cascade, dataset, n: int) -> Pixels:
    """The first n large pictures of the dataset, and what the UNets read of their captions."""
    known, row, pictures = {}, [], []
    for part in torch.arange(min(n, len(dataset))).split(1000):
        x_0, captions = dataset[part]
        pictures.append(to_uint8(x_0))
        row += [known.setdefault(caption, len(known)) for caption in captions]
    texts = list(known)
    some = [texts[k : k + MOST_PROMPTS] for k in range(0, len(texts), MOST_PROMPTS)]
    parts = zip(*(cascade.cond(piece)[:2] for piece in some))
    texts, empty = Cond(*map(torch.cat, parts)), cascade.cond([""])
    texts, empty = (cond.map(lambda part: part.cpu()) for cond in (texts, empty))
    return Pixels(torch.cat(pictures), texts, torch.tensor(row), empty)


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
        file = checkpoint and _file(checkpoint, part)
        train_part(cascade, part, recipe, large, file, log(part))
    return cascade.cpu().eval().requires_grad_(False)


def train_part(
    cascade: Cascade, part: str, recipe: CascadeRecipe, large: Pixels, checkpoint=None, log=iter
) -> None:
    """One of both UNets, which then holds the averaged weights; large: see `pixels`."""
    config, dim = getattr(recipe, f"train_{part}"), cascade.config.number_dim
    data = halved(large) if part == "base" else noised_ones(large, recipe.most_noise, dim)
    unet = getattr(cascade, part).requires_grad_(True)
    step = last_step(log(train(unet, cascade.schedule, data, config, checkpoint=checkpoint)))
    unet.load_state_dict(step.ema.state_dict())
    unet.requires_grad_(False)


def _file(checkpoint, part) -> Path:
    path = Path(checkpoint)
    return path if part == "base" else path.with_stem(f"{path.stem}_{part}")
