"""Imagen's plan: pixels of a small picture, then of one twice as large. Notebook 15.

Imagen = Saharia et al. 2022 (arXiv 2205.11487), cascades = Ho et al. 2021 (arXiv 2106.15282). There
is no VAE: a base UNet draws 16 x 16 pixels from the text, a second one draws 32 x 32 beside the
enlarged small picture. Both read one frozen text encoder.

    cascade = load("painted-imagen")
    x = cascade.draw(["a large red seven on a blue ground, top left"])      # (1, 3, 32, 32)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion import Cond, Dynamic, Step, generators, guided, last, randn_like
from ..errors import OptionError, fits, in_range, numbers, one_of, parts, sizes, whole
from ..networks.text import Text, TextConfig
from ..networks.unet import SpaceToDepth, UNet, UNetConfig
from ..samplers import SAMPLERS
from ..schedule import Schedule
from .arguments import one_each, spelt_out
from .editing import enlarged, with_noise
from .pipeline import embed_numbers

RGB = 3


@dataclass(frozen=True)
class CascadeConfig:
    """The plan of a cascade. The fields from `steps` on say how it is sampled unless told."""

    name: str
    text: tuple[TextConfig, ...]  # the frozen encoder; its width is the context of both UNets
    base: UNetConfig  # of the small picture, whose squares of `patch` pixels are channels
    up: UNetConfig  # of the large one, and behind it the enlarged small one
    size: int = 32  # pixels of a side of the large picture; the small one has half
    patch: int = 2  # pixels of a side of such a square, of the base
    up_patch: int = 2  # the same for `up`
    number_dim: int = 16  # cosines and sines that the noise level becomes
    steps: int = 8  # of the base
    up_steps: int = 4
    guidance: float = 3.0  # of the base
    up_guidance: float = 1.0
    noise: float = 0.1  # put into the small picture before `up` sees it, see `with_noise`

    def __post_init__(self):
        parts(self, text=TextConfig, base=UNetConfig, up=UNetConfig)
        sizes(self, size=(2, 1024), patch=(1, 64), up_patch=(1, 64), number_dim=(1, 1024))
        sizes(self, steps=(1, 10_000), up_steps=(1, 10_000))
        numbers(self, guidance=(0, 100), up_guidance=(0, 100), noise=(0, 1))
        width = sum(c.width for c in self.text)
        small, large = RGB * self.patch**2, RGB * self.up_patch**2
        for name, wanted in {
            "base": (small, small, width, 0),
            "up": (2 * large, large, width, self.number_dim),
        }.items():
            c = getattr(self, name)
            own = c.in_channels, c.out_channels or c.in_channels, c.context, c.vector
            if own != wanted:
                raise OptionError(
                    f"{self.name}: in_channels, out_channels, context, vector of {name} are {own}: "
                    f"make them {wanted}"
                )


class OnTop(nn.Module):
    """cond.picture + model(x_t, t, cond): x_0 of a model that adds what the picture lacks."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return cond.picture + self.model(x_t, t, cond)


class Cascade(nn.Module):
    """.text, .base and .up of a `config`, and its .schedule, cosine unless given.

    tokenizer: of the text encoder, CLIP's own unless given.
    """

    def __init__(self, config: CascadeConfig, schedule: Schedule | None = None, tokenizer=None):
        super().__init__()
        with torch.device("cpu"):  # a schedule holds numbers even where weights are on meta
            self.config, self.schedule = config, schedule or Schedule.cosine()
        self.meta: dict = {}  # what its file says beside: figures, known words
        self.text = Text(config.text, tokenizer=tokenizer)
        self.base = SpaceToDepth(UNet(config.base), config.patch)
        self.up = OnTop(SpaceToDepth(UNet(config.up), config.up_patch))

    @property
    def tokenizer(self):
        return self.text.tokenizer

    # ------------------------------------------------------------ drawing

    def small(
        self,
        prompts,
        *,
        seeds=0,
        steps: int | None = None,
        guidance: float | None = None,
        clip: float | Dynamic | None = 1.0,
        sampler: str = "dpmpp_2m",
    ) -> Iterator[Step]:
        """The Steps of the small pictures, (B, 3, 16, 16), from noise.

        prompts: a text, or a list of one a picture.  seeds: the first picture's, the others count
        up; or a list.  steps, guidance: the config's unless given.  clip: see `sample`, a Dynamic()
        for Imagen's dynamic thresholding. OptionError, at the call.
        """
        c, (texts, _, seeds) = self.config, one_each(prompts, "", seeds)
        texts = [spelt_out(self, text) for text in texts]
        side = c.size // 2
        model = self._guided(self.base, c.guidance if guidance is None else guidance)
        return self._walk(
            model,
            side,
            self.text.encode(texts),
            generators(seeds),
            c.steps if steps is None else steps,
            clip,
            sampler,
        )

    def large(
        self,
        prompts,
        small: Tensor,
        *,
        noise: float | None = None,
        seeds=0,
        steps: int | None = None,
        guidance: float | None = None,
        clip: float | Dynamic | None = 1.0,
        sampler: str = "dpmpp_2m",
    ) -> Iterator[Step]:
        """The Steps of the large pictures, (B, 3, 32, 32), beside the enlarged small ones.

        noise: how much of it goes into the enlarged small pictures, 0 to 1; `up` knows the level,
        as in training (noise conditioning augmentation, Ho et al. 2021, section 4.2): more of it
        trusts the small pictures less.  The rest: see `small`. ShapeError for small pictures of
        another size.
        """
        c, (texts, _, seeds) = self.config, one_each(prompts, "", seeds)
        noise = in_range("noise", c.noise if noise is None else noise, 0, 1, "0.1 is usual")
        fits("small", small, (len(texts), RGB, c.size // 2, c.size // 2), "these prompts take")
        gens = generators(seed ^ 2**31 for seed in seeds)  # other noise than the base's
        x = enlarged(small.to(next(self.up.parameters())))
        level = embed_noise(torch.full((len(x),), noise), c.number_dim).to(x)
        behind = with_noise(x, noise, randn_like(x, gens))
        cond = Cond(self.text.encode(texts).context, level, behind)
        guidance = c.up_guidance if guidance is None else guidance
        model = self._guided(self.up, guidance, vector=level[:1])
        return self._walk(
            model, c.size, cond, gens, c.up_steps if steps is None else steps, clip, sampler
        )

    def draw(self, prompts, *, noise=None, seeds=0, **options) -> Tensor:
        """Both stages: pictures (B, 3, 32, 32) in [-1, 1]. options: of the base, see `small`."""
        small = last(self.small(prompts, seeds=seeds, **options)).clamp(-1, 1)
        return last(self.large(prompts, small, noise=noise, seeds=seeds)).clamp(-1, 1)

    def _guided(self, unet, guidance, vector=None):
        in_range("guidance", guidance, 0, 100)
        empty = self.text.encode([""])._replace(vector=vector)
        return guided(unet, guidance, empty) if guidance > 1 else unet

    def _walk(self, model, side, cond, gens, steps, clip, sampler):
        one_of("sampler", sampler, SAMPLERS)
        whole("steps", steps, 1, self.schedule.T, "one evaluation each")
        x_T = torch.empty(len(gens), RGB, side, side, device=cond.context.device)
        return SAMPLERS[sampler](
            model,
            self.schedule,
            randn_like(x_T, gens),
            steps,
            cond,
            predict="x_0",
            clip=clip,
            generator=gens,
        )


def embed_noise(noise: Tensor, dim: int) -> Tensor:
    """The noise levels (B,) of the pictures behind x_t, as the vector of `up`: (B, dim)."""
    return embed_numbers(1000 * noise[:, None], dim)
