"""One class for whole systems: SD 1.5, SD 2.1, SDXL base and refiner are plans of the same three networks and a schedule.

A system is a UNet that denoises latents, a VAE between latents and pictures, and one or two text encoders.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..errors import OptionError, in_range, known_prediction, whole
from ..networks.text import CLIP_L, OPEN_CLIP_G, OPEN_CLIP_H, Text, TextConfig
from ..networks.unet import SD15 as SD15_UNET
from ..networks.unet import SDXL_BASE, SDXL_REFINER, UNet, UNetConfig
from ..networks.vae import SD_VAE, SDXL_VAE, VAE, VAEConfig
from ..schedule import Schedule

SPACINGS = ("leading", "trailing", "linspace")
NUMBERS = {"": 0, "sdxl": 6, "refiner": 5}  # sizes, crop, target; or sizes, crop, aesthetic score


@dataclass(frozen=True)
class SystemConfig:
    """The plan of a system.

    name: what it is called.  unet, vae, text: plans of its parts, one text config an encoder.  layer: which hidden state of
    the encoders is the context, "last" or "penultimate".  predict: what the UNet says, "eps" or "v".  size: the side of a
    picture in pixels it was trained for.  vector: what cond.vector holds, "" nothing, "sdxl" the pooled text and six numbers
    (original size, crop, target size), "refiner" the pooled text and five (original size, crop, aesthetic score).
    number_dim: cosines and sines that each of these numbers becomes.  zero_empty: an empty negative prompt is zeros
    (as in the original SDXL base), not the encoding of "".  spacing, steps, guidance, interval: how it is sampled unless told
    otherwise: which times ("leading", "trailing" or "linspace", see diffusion.spaced_timesteps), how many, the guidance scale, and
    the lowest and highest t that are guided, None for all.
    """

    name: str
    unet: UNetConfig
    vae: VAEConfig
    text: tuple[TextConfig, ...]
    layer: str = "last"
    predict: str = "eps"
    size: int = 512
    vector: str = ""
    number_dim: int = 256
    zero_empty: bool = False
    spacing: str = "leading"
    steps: int = 30
    guidance: float = 7.5
    interval: tuple[int, int] | None = None

    def __post_init__(self):
        known_prediction(self.predict)
        if self.spacing not in SPACINGS:
            raise OptionError(
                f"spacing = {self.spacing!r} is not known: choose one of {', '.join(SPACINGS)}"
            )
        whole("steps", self.steps, 1, 10_000, "as many model evaluations as suit it")
        in_range("guidance", self.guidance, 0, 100, "the scale that suits it, 1 is none")
        if self.interval is not None:
            if not isinstance(self.interval, (tuple, list)) or len(self.interval) != 2:
                raise OptionError(
                    f"interval = {self.interval!r} is not known: pass two times t, the lower first, or None"
                )
            low, high = self.interval
            whole("interval", low, 0, 10**6, "two times t, the lower first")
            whole("interval", high, low, 10**6, "two times t, the lower first")
            object.__setattr__(self, "interval", (low, high))  # JSON knows lists only
        object.__setattr__(self, "text", tuple(self.text))
        if sum(c.width for c in self.text) != self.unet.context:
            raise OptionError(
                f"{self.name}: the text encoders are {' + '.join(str(c.width) for c in self.text)} wide, "
                f"but the UNet takes context = {self.unet.context}"
            )
        if self.vector not in NUMBERS:
            raise OptionError(
                f"vector = {self.vector!r} is not known: choose one of {', '.join(map(repr, NUMBERS))}"
            )
        pooled = self.text[-1].projection or self.text[-1].width
        width = NUMBERS[self.vector] * self.number_dim + (pooled if self.vector else 0)
        if self.unet.vector != width:
            raise OptionError(
                f"{self.name}: vector = {self.vector!r} makes {width} numbers, but the UNet takes vector = {self.unet.vector}"
            )
        if (self.unet.out_channels or self.unet.in_channels) != self.vae.latent:
            raise OptionError(
                f"{self.name}: the UNet returns {self.unet.out_channels or self.unet.in_channels} channels, but the VAE's latents have {self.vae.latent}"
            )


SD15 = SystemConfig("SD 1.5", SD15_UNET, SD_VAE, (CLIP_L,))
SD21 = SystemConfig(
    "SD 2.1",
    UNetConfig(heads=(5, 10, 20, 20), context=1024),
    SD_VAE,
    (OPEN_CLIP_H,),
    "last",
    "v",
    768,
)
SDXL = SystemConfig(
    "SDXL base",
    SDXL_BASE,
    SDXL_VAE,
    (CLIP_L, OPEN_CLIP_G),
    "penultimate",
    "eps",
    1024,
    "sdxl",
    zero_empty=True,
)
REFINER = SystemConfig(
    "SDXL refiner", SDXL_REFINER, SDXL_VAE, (OPEN_CLIP_G,), "penultimate", "eps", 1024, "refiner"
)


class StableDiffusion(nn.Module):
    """.unet, .vae and .text of a `config`, its .schedule (sqrt-linear unless given) and what the UNet predicts, .predict."""

    def __init__(self, config: SystemConfig, schedule: Schedule | None = None):
        super().__init__()
        with torch.device(
            "cpu"
        ):  # a schedule holds numbers even where the weights are on the meta device
            self.config, self.schedule = config, schedule or Schedule.sqrt_linear()
        self.meta: dict = {}  # what its file says beside (files/load.py)
        self.unet, self.vae, self.text = (
            UNet(config.unet),
            VAE(config.vae),
            Text(config.text, config.layer),
        )

    @property
    def predict(self) -> str:
        return self.config.predict

    def parts(self) -> dict[str, nn.Module]:
        """The networks by the names of their folders; a refiner's encoder counts as the second, having no first."""
        names = ("text_encoder", "text_encoder_2")[
            -len(self.text.encoders) if self.config.vector else 0 :
        ]
        return {"unet": self.unet, "vae": self.vae, **dict(zip(names, self.text.encoders))}


def build(
    config: SystemConfig, schedule: Schedule | None = None, *, device="cpu", dtype=torch.float32
) -> StableDiffusion:
    """A system with random weights (on the meta device: none), ready to sample, not to train. See `part_dtype` for the VAE."""
    with torch.device(device):
        sd = StableDiffusion(config, schedule)
    for name, part in sd.named_children():
        part.to(part_dtype(name, dtype))
    return sd.eval().requires_grad_(False)


def part_dtype(part: str, dtype) -> torch.dtype:
    """`dtype`, but float32 for a VAE in float16: SDXL's overflows there, to black pictures."""
    return torch.float32 if part == "vae" and dtype == torch.float16 else dtype
