"""How the models that ship were trained: data, sizes and one run a network. Notebooks 04 and 09.

A recipe is a UNet of pixels, or a whole Stable Diffusion: then it has a VAE and a CLIP as well.
`ddpm-edu train mnist` follows one from the shell (whole_system.py).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..datasets.emoji import Emoji, emoji
from ..datasets.images import cifar10, mnist
from ..datasets.painted import caption, painted_digits, scenes
from ..networks.gaussian import GaussianPrior
from ..networks.text import TextConfig
from ..networks.unet import SpaceToDepth, UNet, UNetConfig
from ..networks.vae import VAEConfig
from ..schedule import Schedule
from .autoencoder import LossWeights
from .train import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Data, sizes and runs."""

    name: str
    dataset: Callable  # () -> dataset; dataset[index] -> (x_0, Cond), or (x_0, captions)
    unet: UNetConfig
    train_unet: TrainConfig
    guidance: float  # this and the next two suit the result
    steps: int = 20
    sampler: str = "dpmpp_2m"
    # Of pixels:
    patch: int = 1  # the UNet works behind SpaceToDepth(patch)
    parts: int = 0  # Gaussians a class; above 0 the UNet learns what they leave over (gaussian.py)
    rank: int = 0  # directions of each
    # A whole system: the UNet denoises the latents of a VAE, and reads the text encoder of a CLIP.
    size: int = 0  # side of a picture
    vae: VAEConfig | None = None
    train_vae: TrainConfig | None = None
    train_decoder: TrainConfig | None = None  # goes on at the end, the encoder is frozen
    losses: LossWeights = LossWeights()
    captions: Callable | None = None  # () -> all texts that the tokenizer learns its words from
    vocab: int = 1024  # most tokens
    text: TextConfig | None = None  # its vocab becomes what the captions need
    vision: dict = field(default_factory=dict)  # the other side of the CLIP, see CLIPConfig
    train_clip: TrainConfig | None = None
    latents: int = 0  # how many pictures the UNet sees, 0 for all
    interval: tuple[int, int] | None = None  # of the times that are guided
    # Of the time: for VAE and CLIP side by side, and for the decoder's last run
    shares: tuple[float, float, float] = (0.25, 0.25, 0.1)

    def schedule(self) -> Schedule:
        return Schedule.cosine()

    def model(self, dataset) -> nn.Module:
        """Of pixels: random weights from the run's seed, and Gaussians (if any) fitted to data."""
        torch.manual_seed(self.train_unet.seed)
        model = SpaceToDepth(start_at_zero(UNet(self.unet)), self.patch)
        if not self.parts:
            return model
        size = {"classes": 10, "parts": self.parts, "rank": self.rank}
        return GaussianPrior.fit(model, self.schedule(), dataset, **size)


def start_at_zero(unet: UNet) -> UNet:
    """Its answer to anything is 0."""
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


MUON = dict(lr=1e-2, optimizer="muon")
DENOISE = dict(predict="v", t_distribution="logit_normal", **MUON)


# ---------------------------------------------------------------- pixels


def _pixels(channels: int, mult: tuple, depth: tuple, colours: int, prior: bool = False, patch=2):
    """Of patches as channels. In: x_t, and with a prior the Gaussians' x0_hat. Out: v, or x_0."""
    return UNetConfig(
        in_channels=patch**2 * colours * (1 + prior),
        out_channels=patch**2 * colours,
        channels=channels,
        mult=mult,
        depth=depth,
        middle=0,
        heads=(4,) * len(mult),
        vector=10,
        blocks=1,
        groups=8,
    )


# Few weights and cheap updates, to look at while it trains (notebook 04) and to play with (18).
SMALL = Recipe(
    "small",
    mnist,
    _pixels(16, (1, 1), (0, 0), 1),
    TrainConfig(
        seconds=60,
        batch_size=32,
        lr=2e-2,
        ema=0.99,
        predict="x_0",  # the quickest question (notebook 04)
        optimizer="muon",
        t_distribution="logit_normal",
    ),
    guidance=2.0,
    sampler="ddpm",
    patch=2,
)
# The best digits that a minute gives: its maps hold as many numbers as SMALL's finest, but as 7 x 7
# places with 32 channels each. That is twice as many digits a second, for four times the weights a
# product. Noisier times are drawn more often: there the digit is decided.
MINUTE = dataclasses.replace(
    SMALL,
    name="minute",
    unet=dataclasses.replace(_pixels(32, (1,), (0,), 1, patch=4), groups=4),
    train_unet=dataclasses.replace(SMALL.train_unet, batch_size=128, lr=3e-2, t_mean=0.4),
    guidance=2.2,
    sampler="dpmpp_2m",
    patch=4,
)
MNIST = Recipe(
    "mnist",
    mnist,
    _pixels(32, (1, 2), (0, 0), 1),
    TrainConfig(steps=6000, batch_size=64, ema=0.998, t_mean=0.5, **DENOISE),
    guidance=1.3,
    sampler="ddpm",
    patch=2,
)
CIFAR10 = Recipe(
    "cifar10",
    cifar10,
    _pixels(32, (1, 2, 2), (0, 0, 1), 3, prior=True),
    TrainConfig(steps=6000, batch_size=32, ema=0.998, t_mean=0.5, **DENOISE),
    guidance=1.5,
    patch=2,
    parts=4,
    rank=16,
)


# ---------------------------------------------------------------- whole systems


def painted_captions() -> list[str]:
    """Of the scenes for training: a held-out combination is known by its words only."""
    return [caption(scene) for scene in scenes(held=False)]


class Bilingual:
    """Every emoji twice: picture i with its English name, picture N + i with its Chinese one."""

    def __init__(self, pictures: Emoji):
        self.pictures, self.names = pictures, [*pictures.names, *pictures.chinese]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index) -> tuple[torch.Tensor, list[str]]:
        index = torch.as_tensor(index)
        names = [self.names[i] for i in index.tolist()]
        return self.pictures[index % len(self.pictures)][0], names


def bilingual_emoji() -> Bilingual:
    return Bilingual(emoji())


def emoji_names() -> list[str]:
    return bilingual_emoji().names


def _latents(channels: int, latent: int, context: int) -> UNetConfig:
    return UNetConfig(
        in_channels=latent,
        channels=channels,
        mult=(1, 2),
        depth=(1, 1),
        middle=1,
        heads=(4, 4),
        context=context,
        blocks=1,
        groups=8,
    )


PAINTED = Recipe(
    "painted",
    painted_digits,
    _latents(48, 4, context=64),
    TrainConfig(steps=5000, batch_size=48, ema=0.998, t_mean=1.0, **DENOISE),
    guidance=3.0,
    steps=10,
    size=32,
    vae=VAEConfig(channels=8, mult=(1, 2, 4), blocks=1, latent=4, groups=4),
    train_vae=TrainConfig(steps=6000, batch_size=16, ema=0.99, warmup=20, clip_norm=100.0, **MUON),
    captions=painted_captions,
    vocab=640,
    text=TextConfig(width=64, layers=2, heads=4, hidden=128, projection=64, length=16),
    vision=dict(patch=8, width=64, layers=2, heads=4, hidden=128),
    train_clip=TrainConfig(steps=1000, batch_size=128, ema=0.98, **MUON),
    latents=30000,
)
EMOJI = Recipe(
    "emoji",
    bilingual_emoji,
    _latents(64, 8, context=128),
    TrainConfig(steps=20000, batch_size=64, ema=0.999, t_mean=1.2, **DENOISE),
    guidance=2.0,
    steps=10,
    size=64,
    vae=VAEConfig(channels=8, mult=(1, 3, 6, 12), blocks=1, latent=8, groups=4),
    train_vae=TrainConfig(steps=4300, batch_size=16, ema=0.995, **MUON),
    captions=emoji_names,
    vocab=4096,
    text=TextConfig(width=128, layers=2, heads=4, hidden=256, projection=128, length=24),
    vision=dict(patch=8, width=128, layers=3, heads=4, hidden=256),
    train_clip=TrainConfig(steps=350, batch_size=128, ema=0.98, **MUON),
)
# From nothing, on two cores of a laptop (benchmarks/stable_diffusion_from_nothing.py, notebook 09).
# Its VAE folds 2 x 2 pixels into channels, for layers on single pixels are the dearest: after 40
# processor seconds 77 % of its copies are read right, 32 % of those of PAINTED's VAE. The better
# VAE and CLIP are, the sooner the UNet learns: after 500 updates it draws 43 % of the digits right
# with a CLIP of 1,000 updates, 18 % with one of 350. The UNet is narrow: many cheap updates teach
# more than few dear ones. It gets pooled text and sizes too, as in SDXL, and so binds words to
# colours sooner. Its last steps are not guided: so young a UNet drives the ink past its colour
# there. (A VAE that starts linear, `VAEConfig.linear`, has sharper copies sooner, but keeps the
# strokes in a corner of its latents, and the UNet learns them later: notebook 09.)
FIVE_MINUTES = dataclasses.replace(
    PAINTED,
    name="five_minutes",
    unet=dataclasses.replace(PAINTED.unet, channels=32, depth=(0, 0), vector=64 + 6 * 2),
    vae=VAEConfig(channels=16, mult=(1, 2), blocks=1, latent=4, groups=4, patch=2),
    train_vae=dataclasses.replace(PAINTED.train_vae, steps=1900, ema=0.98),
    train_clip=dataclasses.replace(PAINTED.train_clip, steps=1200),
    train_unet=dataclasses.replace(
        PAINTED.train_unet, steps=1900, batch_size=96, lr=1.4e-2, ema=0.995, t_mean=1.2
    ),
    train_decoder=dataclasses.replace(
        PAINTED.train_vae, steps=500, batch_size=32, lr=5e-3, ema=0.98
    ),
    guidance=4.0,
    latents=12000,
    interval=(300, 999),
    shares=(0.28, 0.27, 0.07),
)
RECIPES = {r.name: r for r in (MINUTE, MNIST, CIFAR10, PAINTED, EMOJI, FIVE_MINUTES)}
