"""Latents and texts, worked out once: what the denoiser of a latent diffusion is trained on.

VAE and text encoder are frozen while the denoiser learns (Rombach et al. 2022, section 3), so each picture has to go
through them once, not once an epoch.
"""

import torch
from torch import Tensor

from ..diffusion import Cond
from ..errors import MOST_PROMPTS, DataError, ShapeError
from ..systems.pipeline import condition
from ..systems.system import StableDiffusion


class Latents:
    """`dataset[index]` -> (z_0 (B, latent, h, w), Cond(context (B, L, D), vector (B, V))), for `train`.

    z_0 is vae.to_latent(x_0), scale * mean; a caption that several pictures share is encoded once. `uncond`: the encoding
    of "", which takes the place of a dropped text, as in Stable Diffusion.
    """

    def __init__(
        self,
        z_0: Tensor,
        contexts: Tensor,
        row: Tensor,
        uncond: Cond,
        vectors: Tensor | None = None,
    ):
        self.z_0, self.contexts, self.vectors, self.row, self.uncond = (
            z_0,
            contexts,
            vectors,
            row,
            uncond,
        )

    def __len__(self) -> int:
        return len(self.z_0)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        row = self.row[index]
        return self.z_0[index], Cond(
            self.contexts[row], None if self.vectors is None else self.vectors[row]
        )


@torch.no_grad()
def encode(sd: StableDiffusion, dataset, n: int | None = None, batch: int = 250) -> Latents:
    """The first n of `dataset` (None: all) through sd's VAE and text encoder. dataset[index] -> (x_0, captions)."""
    n = len(dataset) if n is None else min(n, len(dataset))
    if n < 1:
        raise DataError("there are no pictures to encode: the dataset is empty, or n is below 1")
    z, rows, known = [], [], {}
    for part in torch.arange(n).split(batch):
        x_0, captions = dataset[part]
        if not isinstance(captions, (list, tuple)) or len(captions) != len(x_0):
            raise ShapeError(
                f"the dataset gave {len(x_0)} pictures with {captions!r:.60} as captions: one text a picture is needed"
            )
        z.append(sd.vae.to_latent(x_0))
        rows += [known.setdefault(caption, len(known)) for caption in captions]
    texts = conditions(sd, list(known))
    return Latents(
        torch.cat(z), texts.context, torch.tensor(rows), conditions(sd, [""]), texts.vector
    )


def conditions(sd: StableDiffusion, texts: list[str]) -> Cond:
    """What sd's UNet is told of any number of texts, of pictures as large as it draws; the vector is None where it takes none."""
    side = (sd.config.size, sd.config.size)
    parts = [
        condition(
            sd, texts[k : k + MOST_PROMPTS], original_size=side, crop=(0, 0), target_size=side
        )
        for k in range(0, len(texts), MOST_PROMPTS)
    ]
    return Cond(*(None if part[0] is None else torch.cat(part) for part in zip(*parts)))


def encode_texts(sd: StableDiffusion, texts: list[str]) -> Tensor:
    """Contexts (N, L, D) of any number of texts."""
    return conditions(sd, texts).context
