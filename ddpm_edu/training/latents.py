"""Latents and texts, worked out once: what the UNet of a latent diffusion learns from. Notebook 07.

VAE and text encoder are frozen while the UNet learns (Rombach et al. 2022, section 3), so each
picture has to go through them once, not once an epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion import Cond
from ..errors import MOST_PROMPTS, DataError, ShapeError
from ..systems.pipeline import condition
from ..systems.system import StableDiffusion


@dataclass(frozen=True, eq=False)
class Latents:
    """latents[index] -> (z_0 (B, latent, h, w), Cond(context (B, L, D), vector (B, V)))."""

    z_0: Tensor  # (N, latent, h, w) = vae.to_latent(x_0), scale * mean
    contexts: Tensor  # (M, L, D): a caption that several pictures share is encoded once
    row: Tensor  # (N,): which of the contexts is a picture's
    uncond: Cond  # the encoding of "", which takes the place of a dropped text
    vectors: Tensor | None = None  # (M, V)

    def __len__(self) -> int:
        return len(self.z_0)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        row = self.row[index]
        vector = None if self.vectors is None else self.vectors[row]
        return self.z_0[index], Cond(self.contexts[row], vector)


@torch.no_grad()
def encode(sd: StableDiffusion, dataset, n: int | None = None, batch: int = 250) -> Latents:
    """The first n of `dataset` (None: all) through sd's VAE and text encoder, on sd's device.

    See `through_vae` for the dataset and errors.
    """
    z_0, captions = through_vae(sd, dataset, n, batch)
    texts, row = distinct(captions)
    read = conditions(sd, texts)
    return Latents(z_0, read.context, row, conditions(sd, [""]), read.vector)


@torch.no_grad()
def through_vae(
    sd: StableDiffusion, dataset, n: int | None = None, batch: int = 250
) -> tuple[Tensor, list[str]]:
    """(z_0 (N, latent, h, w), captions) of the first n of `dataset` (None: all), on sd's device.

    dataset[index] -> (x_0, captions). DataError for no pictures, ShapeError unless each has a text.
    """
    n = len(dataset) if n is None else min(n, len(dataset))
    if n < 1:
        raise DataError("there are no pictures to encode: the dataset is empty, or n is below 1")
    device = next(sd.vae.parameters()).device
    z, texts = [], []
    for part in torch.arange(n).split(batch):
        x_0, captions = dataset[part]
        if not isinstance(captions, (list, tuple)) or len(captions) != len(x_0):
            raise ShapeError(
                f"{len(x_0)} pictures with {captions!r:.60} as captions: pass one text a picture"
            )
        z.append(sd.vae.to_latent(x_0.to(device)))
        texts += captions
    return torch.cat(z), texts


def distinct(captions: list[str]) -> tuple[list[str], Tensor]:
    """The different captions, in the order in which they come, and which of them each one is."""
    known = {}
    row = [known.setdefault(caption, len(known)) for caption in captions]
    return list(known), torch.tensor(row)


def in_pieces(read: Callable, texts: list[str]) -> Cond:
    """read(texts) -> Cond, for more texts than it takes at once."""
    pieces = [texts[k : k + MOST_PROMPTS] for k in range(0, len(texts), MOST_PROMPTS)]
    parts = zip(*map(read, pieces))
    return Cond(*(None if part[0] is None else torch.cat(part) for part in parts))


def conditions(sd: StableDiffusion, texts: list[str]) -> Cond:
    """What sd's UNet gets of any number of texts, for pictures as large as it draws."""
    side = (sd.config.size, sd.config.size)
    sizes = dict(original_size=side, crop=(0, 0), target_size=side)
    return in_pieces(lambda piece: condition(sd, piece, **sizes), texts)
