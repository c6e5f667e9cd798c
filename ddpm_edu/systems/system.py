"""Whole systems: a UNet, a VAE and one or two text encoders, by one plan. Notebooks 11 and 12.

SD 1.5, SD 2.1, SDXL base and its refiner are four `SystemConfig`s of one class.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import PREDICTIONS, OptionError, choices, numbers, parts, sizes, whole
from ..networks.text import CLIP_L, OPEN_CLIP_G, OPEN_CLIP_H, Text, TextConfig
from ..networks.unet import SD15 as SD15_UNET
from ..networks.unet import SDXL_BASE, SDXL_REFINER, UNet, UNetConfig
from ..networks.vae import SD_VAE, SDXL_VAE, VAE, VAEConfig
from ..samplers import FEW_STEPS, SAMPLERS, WALKS
from ..schedule import Schedule

# How many: sizes, crop, target; sizes, crop, aesthetic score; noise in what is enlarged; length of
# the step
NUMBERS = {"": 0, "sdxl": 6, "refiner": 5, "upscaler": 1, "step": 1}


@dataclass(frozen=True)
class SystemConfig:
    """The plan of a system. The last seven fields say how it is sampled unless told otherwise."""

    name: str
    unet: UNetConfig
    vae: VAEConfig
    text: tuple[TextConfig, ...]  # one an encoder; their widths add up to unet.context
    layer: str = "last"  # whose hidden state is the context: "last" or "penultimate"
    predict: str = "eps"  # what the UNet returns: "eps", "v", "x_0" or "flow"
    size: int = 512  # pixels of a side it was trained on
    vector: str = ""  # what is in cond.vector: "" nothing; "sdxl" pooled text, sizes, crop and
    # target; "refiner" pooled text, sizes, crop and aesthetic score; "upscaler" the noise alone;
    # "step" how far the next step leads, which the sampler "mean_flow" puts there
    number_dim: int = 256  # cosines and sines that each of these numbers becomes
    zero_empty: bool = False  # an empty negative prompt is zeros, not the encoding of ""
    spacing: str = "leading"  # of the times, one of WALKS
    steps: int = 50
    guidance: float = 7.5  # scale of classifier-free guidance; up to 1: none
    interval: tuple[int, ...] | None = None  # lowest and highest t that are guided; None: all
    sampler: str = "dpmpp_2m"  # one of SAMPLERS, or of FEW_STEPS if it was trained so
    offset: int = 1  # "leading" times are moved up by so much
    end: int | None = None  # where the last step leads: -1 the clean picture, 0 the least noisy
    # time; None: 0 for DDIM and PNDM, which stop there in the originals, else -1

    def __post_init__(self):
        parts(self, unet=UNetConfig, vae=VAEConfig, text=TextConfig)
        choices(self, layer=("last", "penultimate"), predict=PREDICTIONS, vector=NUMBERS)
        choices(self, spacing=WALKS, sampler=SAMPLERS | FEW_STEPS)
        sizes(self, size=1, number_dim=1, steps=(1, 10_000), offset=(0, 100), end=(-1, 0))
        sizes(self, interval=(0, 10**6))
        numbers(self, guidance=(0, 100))
        if self.interval is not None:
            if len(self.interval) != 2:
                raise OptionError(f"interval = {self.interval!r}: pass two times t, or None")
            whole("interval", self.interval[1], self.interval[0], 10**6, "the lower t first")
        width = sum(c.width for c in self.text)
        if width != self.unet.context:
            raise OptionError(
                f"{self.name}: text encoders {width} wide, but unet.context = {self.unet.context}"
            )
        pooled = self.text[-1].projection or self.text[-1].width
        pooled = 0 if self.vector in ("", "upscaler", "step") else pooled
        width = NUMBERS[self.vector] * self.number_dim + pooled
        if self.unet.vector != width:
            raise OptionError(
                f"{self.name}: vector = {self.vector!r} is {width} wide, not {self.unet.vector}"
            )
        channels = self.unet.out_channels or self.unet.in_channels
        if channels != self.vae.latent:
            raise OptionError(
                f"{self.name}: the UNet returns {channels} channels, latents have {self.vae.latent}"
            )

    def parts(self) -> dict[str, UNetConfig | VAEConfig | TextConfig]:
        """The plans by the names of their folders; a refiner's encoder counts as the second."""
        names = ("text_encoder", "text_encoder_2")
        texts = zip(names[-len(self.text) :] if self.vector else names, self.text)
        return {"unet": self.unet, "vae": self.vae, **dict(texts)}


SD15 = SystemConfig("SD 1.5", SD15_UNET, SD_VAE, (CLIP_L,), sampler="pndm", end=0)
SD21 = SystemConfig(
    "SD 2.1",
    UNetConfig(heads=(5, 10, 20, 20), context=1024),
    SD_VAE,
    (OPEN_CLIP_H,),
    predict="v",
    size=768,
    sampler="ddim",
    end=0,
)
SD2_BASE = replace(SD21, name="SD 2 base", predict="eps", size=512, sampler="pndm")
SDXL = SystemConfig(
    "SDXL base",
    SDXL_BASE,
    SDXL_VAE,
    (CLIP_L, OPEN_CLIP_G),
    layer="penultimate",
    size=1024,
    vector="sdxl",
    zero_empty=True,
    guidance=5.0,
    sampler="euler",
    end=-1,
)
REFINER = replace(
    SDXL,
    name="SDXL refiner",
    unet=SDXL_REFINER,
    text=(OPEN_CLIP_G,),
    vector="refiner",
    zero_empty=False,
)
# The same in small, trained from nothing on two cores (training/sdxl.py).
SDXL_MINI = SystemConfig(
    "SDXL mini",
    UNetConfig(
        channels=40,
        mult=(1, 2, 2),
        depth=(0, 1, 2),
        middle=2,
        heads=(4, 4, 4),
        context=32 + 64,
        vector=64 + 6 * 16,
        blocks=1,
        groups=8,
    ),
    VAEConfig(channels=8, mult=(1, 2, 4), blocks=1, latent=4, groups=4, scale=1.0),
    (
        TextConfig(32, 2, 4, 64, vocab=572, length=16),
        TextConfig(64, 3, 4, 128, "gelu", 64, "!", vocab=572, length=16),
    ),
    layer="penultimate",
    predict="v",
    size=32,
    vector="sdxl",
    number_dim=16,
    zero_empty=True,
    spacing="trailing",
    steps=30,
    guidance=3.0,
)
SDXL_MINI_REFINER = replace(
    SDXL_MINI,
    name="SDXL mini refiner",
    unet=UNetConfig(
        channels=32,
        mult=(1, 2, 2, 2),
        depth=(0, 1, 1, 0),
        middle=1,
        heads=(4, 4, 4, 4),
        context=64,
        vector=64 + 5 * 16,
        blocks=1,
        groups=8,
    ),
    text=SDXL_MINI.text[1:],
    vector="refiner",
    zero_empty=False,
)


def _inpainting(plan: SystemConfig, name: str, **changes) -> SystemConfig:
    """The same system, whose UNet also takes a mask and the masked picture's latent."""
    unet = replace(plan.unet, in_channels=2 * plan.vae.latent + 1, out_channels=plan.vae.latent)
    return replace(plan, name=name, unet=unet, **changes)


SD15_INPAINT = _inpainting(SD15, "SD 1.5 inpainting")
SDXL_INPAINT = _inpainting(SDXL, "SDXL inpainting", guidance=8.0)
PLANS = {
    "sd15": SD15,
    "sd2-base": SD2_BASE,
    "sd21": SD21,
    "sdxl": SDXL,
    "sdxl-refiner": REFINER,
    "sd15-inpaint": SD15_INPAINT,
    "sdxl-inpaint": SDXL_INPAINT,
}


class StableDiffusion(nn.Module):
    """.unet, .vae and .text of a `config`, and its .schedule, sqrt-linear unless given.

    tokenizer: of the text encoders, CLIP's own unless given; see `Text`.
    """

    def __init__(self, config: SystemConfig, schedule: Schedule | None = None, tokenizer=None):
        super().__init__()
        with torch.device("cpu"):  # a schedule holds numbers even where weights are on meta
            self.config, self.schedule = config, schedule or Schedule.sqrt_linear()
        self.meta: dict = {}  # what its file says beside: figures, known words
        self.unet, self.vae = UNet(config.unet), VAE(config.vae)
        self.text = Text(config.text, config.layer, tokenizer)

    @property
    def tokenizer(self):
        return self.text.tokenizer

    @property
    def predict(self) -> str:
        """What the UNet returns: "eps", "v", "x_0" or "flow"."""
        return self.config.predict

    def parts(self) -> dict[str, nn.Module]:
        """The networks by the names of their folders."""
        return dict(zip(self.config.parts(), (self.unet, self.vae, *self.text.encoders)))


def build(
    config: SystemConfig, schedule: Schedule | None = None, *, device="cpu", dtype=torch.float32
) -> StableDiffusion:
    """A system with random weights (on the meta device: none), ready to sample, not to train.

    dtype: of the weights, but see `part_dtype`.
    """
    with torch.device(device):
        sd = StableDiffusion(config, schedule)
    for name, part in sd.named_children():
        part.to(part_dtype(name, dtype))
    return sd.eval().requires_grad_(False)


def with_denoiser(sd: StableDiffusion, trained) -> StableDiffusion:
    """The same system, its UNet replaced by another denoiser of its latents and texts, as by a DiT.

    trained: (model, schedule, predict, meta), what `load("painted-dit")` returns; meta may say the
    name of the system ("base"), and guidance, sampler and steps. OptionError for another system's.
    """
    model, schedule, predict, meta = trained
    if (base := meta.get("base")) not in (None, sd.config.name):
        raise OptionError(
            f"this denoiser was trained on the latents of {base}, not of {sd.config.name}: "
            f"load({base!r:.40}) and pass that system"
        )
    own = {k: meta[k] for k in ("guidance", "sampler", "steps") if k in meta}
    other = copy.copy(sd)
    other._modules = sd._modules | {"unet": model}  # text and VAE are shared
    other.config = replace(sd.config, predict=predict, **own)
    other.schedule = schedule
    return other


def part_dtype(part: str, dtype) -> torch.dtype:
    """`dtype`, but float32 for a VAE in float16: SDXL's overflows there, to black pictures."""
    return torch.float32 if part == "vae" and dtype == torch.float16 else dtype
