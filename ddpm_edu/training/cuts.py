"""Cuts of originals as SDXL learns them: in buckets, with their sizes and crops. Notebook 13.

A batch comes from one bucket, so all its pictures have one shape. Beside the pooled text the
denoiser gets six numbers: original size, crop, target size (Podell et al. 2023, sections 2.2, 2.3).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.buckets import bucket_order, nearest_bucket, one_bucket
from ..datasets.originals import Cut, Originals, excess
from ..datasets.painted import random_bits
from ..diffusion import Cond
from ..errors import DataError, OptionError, in_range
from ..metrics.cuts import aesthetic
from ..systems.pipeline import embed_numbers
from ..systems.system import StableDiffusion
from .latents import distinct, in_pieces


@dataclass(frozen=True, eq=False)
class Cuts:
    """cuts[index] -> (x_0 (B, 3, h, w) in [-1, 1], captions: B); DataError for several buckets."""

    originals: Originals
    shapes: list[tuple[int, int]]  # (h, w) of each bucket
    bucket: Tensor  # (N,) number of a picture's bucket
    crop: Tensor  # (N, 2) top and left, in pixels of the resized original

    def __post_init__(self):
        pictures = self.bucket.bincount(minlength=len(self.shapes))
        if empty := [self.shapes[k] for k in (pictures == 0).nonzero()[:, 0].tolist()]:
            raise DataError(
                f"no picture of {len(self)} in the bucket {empty[0]} (height, width): leave it "
                "out, or take more originals"
            )

    def __len__(self) -> int:
        return len(self.bucket)

    def __getitem__(self, index) -> tuple[Tensor, list[str]]:
        index = torch.as_tensor(index).reshape(-1)
        one_bucket(self.bucket[index])
        places = ((i, cut.target, cut.crop) for i, cut in zip(index.tolist(), self.where(index)))
        x_0 = torch.stack([self.originals.cut(*place)[0] for place in places])
        return x_0, self.originals.captions(index.tolist())

    @property
    def captions(self) -> list[str]:
        """Of all."""
        return self.originals.captions()

    def where(self, index) -> list[Cut]:
        """Where pictures come from: the numbers that the model learns with them."""
        sizes, crops = self.originals.sizes()[index].tolist(), self.crop[index].tolist()
        rows = zip(sizes, crops, self.bucket[index].tolist())
        return [Cut(tuple(size), tuple(crop), self.shapes[k]) for size, crop, k in rows]

    def order(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """An epoch, see `bucket_order`."""
        return bucket_order(self.bucket, batch_size, generator)


def cuts(
    originals: Originals, shapes: list[tuple[int, int]], seed: int = 0, stray: float = 0.0
) -> Cuts:
    """Each original in the bucket nearest to its aspect, cropped at random where it hangs over.

    stray: this share of them, drawn by lot, goes to any bucket, where more is cropped. DataError
    for a bucket without a picture.
    """
    if not shapes:
        raise OptionError(f"shapes = {shapes!r}: pass at least one (height, width)")
    bucket = nearest_bucket(originals.sizes(), shapes)
    lot, other = (random_bits(np.arange(len(bucket)), seed, stream) for stream in (9, 10))
    strays = torch.from_numpy(lot / 2**63 < in_range("stray", stray, 0, 1))
    bucket = torch.where(strays, torch.from_numpy(other % len(shapes)), bucket)
    targets = torch.tensor(shapes)[bucket].tolist()
    over = [excess(tuple(o), tuple(t)) for o, t in zip(originals.sizes().tolist(), targets)]
    index = np.arange(len(bucket))
    free = np.stack([random_bits(index, seed, stream) for stream in (7, 8)], 1)
    crop = free % (np.array(over) + 1)
    return Cuts(originals, list(shapes), bucket, torch.from_numpy(crop))


def middle_cuts(originals: Originals, shape: tuple[int, int]) -> Cuts:
    """The middle of each, in one shape, as CLIP takes pictures: no digit is cut."""
    over = [excess(tuple(size), shape) for size in originals.sizes().tolist()]
    bucket = torch.zeros(len(originals), dtype=torch.long)
    return Cuts(originals, [shape], bucket, torch.tensor(over) // 2)


@dataclass(frozen=True, eq=False)
class CutLatents:
    """latents[index] -> (z_0 (B, latent, h, w), Cond(context, vector)), pictures of one bucket."""

    z_0: list[Tensor]  # one tensor a bucket
    bucket: Tensor  # (N,)
    row: Tensor  # (N,) of z_0[bucket]
    text: Tensor  # (N,) which caption
    captions: Cond  # context (M, L, D) and pooled vector (M, P) of each, None without one
    empty: Cond  # the same, (1, ...), of a dropped caption
    numbers: Tensor  # (N, 6), a refiner's (N, 5), or zeros for a model that learns no sizes
    number_dim: int  # cosines and sines of each

    def __len__(self) -> int:
        return len(self.bucket)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        z_0 = self.z_0[one_bucket(self.bucket[index])][self.row[index]]
        return z_0, self._with_numbers(self.captions.map(lambda c: c[self.text[index]]), index)

    def uncond(self, index) -> Cond:
        """What replaces a dropped condition: no text, but the same numbers."""
        return self._with_numbers(
            self.empty.map(lambda c: c.expand(len(index), *c.shape[1:])), index
        )

    def order(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """An epoch, see `bucket_order`."""
        return bucket_order(self.bucket, batch_size, generator)

    def _with_numbers(self, text: Cond, index) -> Cond:
        if text.vector is None:
            return text
        numbers = embed_numbers(self.numbers[index], self.number_dim)
        return Cond(text.context, torch.cat([text.vector, numbers], 1))


@torch.no_grad()
def encode_cuts(sd: StableDiffusion, data, sizes: bool = True, batch: int = 250) -> CutLatents:
    """All of `data` (Cuts, or your `Own`) through sd's VAE and text encoders, once, to the CPU.

    A refiner learns each picture's aesthetic score in place of the target size; SD 1 and 2 learn
    neither sizes nor pooled text.
    sizes: whether the model learns where each picture comes from; if not, it gets zeros.
    """
    z_0, row = [], torch.zeros(len(data), dtype=torch.long)
    numbers = torch.tensor([[*o, *c, *t] for o, c, t in data.where(torch.arange(len(data)))])
    score, like = torch.zeros(len(data)), next(sd.vae.parameters())
    for k in range(len(data.shapes)):
        own, latents = (data.bucket == k).nonzero()[:, 0], []
        row[own] = torch.arange(len(own))
        for part in own.split(batch):
            x_0 = data[part][0]
            latents.append(sd.vae.to_latent(x_0.to(like)).float().cpu())
            score[part] = aesthetic(x_0) if sd.config.vector == "refiner" else 0
        z_0.append(torch.cat(latents))
    if sd.config.vector == "refiner":
        numbers = torch.cat([numbers[:, :4], score[:, None]], 1)
    captions, text = distinct(data.captions)
    return CutLatents(
        z_0,
        data.bucket,
        row,
        text,
        _read(sd, captions),
        _read(sd, [""]).map(torch.zeros_like if sd.config.zero_empty else lambda c: c),
        numbers if sizes else torch.zeros_like(numbers),
        sd.config.number_dim,
    )


def _read(sd: StableDiffusion, captions: list[str]) -> Cond:
    """Context and pooled text, (M, ...) on the CPU, as far as sd's UNet takes them."""
    cond = in_pieces(sd.text.encode, captions)
    return Cond(cond.context, cond.vector if sd.config.vector else None).map(Tensor.cpu)


# ---------------------------------------------------------------- text encoders that learn, too


class WithText(nn.Module):
    """A base's UNet and text encoders as one model: the encoders learn along with the UNet.

    cond.context holds ids (B, encoders, L), -1 for a dropped text, whose condition is zeros; and
    cond.vector the numbers alone. SDXL kept its encoders frozen.
    """

    def __init__(self, sd: StableDiffusion):
        super().__init__()
        self.unet, self.text = sd.unet, sd.text

    def forward(self, x_t, t, cond):
        kept = (cond.context[:, 0, 0] >= 0).to(x_t)
        text = self.text.read(list(cond.context.clamp(min=0).unbind(1)))
        context, pooled = text.context * kept[:, None, None], text.vector * kept[:, None]
        return self.unet(x_t, t, Cond(context, torch.cat([pooled, cond.vector], 1)))


def with_ids(sd: StableDiffusion, data: Cuts, latents: CutLatents) -> CutLatents:
    """The same latents with token ids instead of encoded texts, for `WithText`."""
    ids = torch.stack(sd.text.ids(list(dict.fromkeys(data.originals.captions()))), 1)
    nothing = torch.zeros(len(ids), 0)
    return replace(
        latents, captions=Cond(ids, nothing), empty=Cond(-torch.ones_like(ids[:1]), nothing[:1])
    )
