"""The mini Stable Diffusions: plans of the two that ship, and of the one that trains while you wait.

`ddpm-edu train painted` follows a plan from the shell; notebooks 06 to 09 take it apart.
"""

import dataclasses

import torch

from ..datasets.emoji import Emoji, emoji
from ..datasets.painted import caption, painted_digits, scenes
from ..errors import OptionError
from ..networks.text import TextConfig
from ..networks.unet import UNetConfig
from ..networks.vae import VAEConfig
from .train import TrainConfig
from .whole_system import Mini


class Bilingual:
    """Every emoji twice: picture i with its English name, picture N + i with its Chinese one."""

    def __init__(self, pictures: Emoji):
        self.pictures = pictures

    def __len__(self) -> int:
        return 2 * len(self.pictures)

    def __getitem__(self, index) -> tuple[torch.Tensor, list[str]]:
        index, n = torch.as_tensor(index), len(self.pictures)
        names = self.pictures.names + self.pictures.chinese
        return self.pictures[index % n][0], [names[i] for i in index.tolist()]


def bilingual_emoji() -> Bilingual:
    return Bilingual(emoji())


def emoji_names() -> list[str]:
    pictures = emoji()
    return [*pictures.names, *pictures.chinese]


def painted_captions() -> list[str]:
    """Those of the scenes for training: a held-out combination is known by its words only."""
    return [caption(scene) for scene in scenes(held=False)]


MUON = dict(lr=1e-2, optimizer="muon")
DENOISE = dict(predict="v", t_distribution="logit_normal", **MUON)

PAINTED = Mini(
    "painted",
    painted_digits,
    painted_captions,
    size=32,
    vae=VAEConfig(channels=8, mult=(1, 2, 4), blocks=1, latent=4, groups=4),
    text=TextConfig(width=64, layers=2, heads=4, hidden=128, projection=64, length=16),
    vocab=640,
    clip=dict(patch=8, width=64, layers=2, heads=4, hidden=128),
    unet=UNetConfig(
        in_channels=4,
        channels=48,
        mult=(1, 2),
        depth=(1, 1),
        middle=1,
        heads=(4, 4),
        context=64,
        blocks=1,
        groups=8,
    ),
    train_vae=TrainConfig(steps=6000, batch_size=16, ema=0.99, warmup=20, clip_norm=100.0, **MUON),
    train_clip=TrainConfig(steps=1000, batch_size=128, ema=0.98, **MUON),
    train_unet=TrainConfig(steps=5000, batch_size=48, ema=0.998, t_mean=1.0, **DENOISE),
    latents=30000,
    steps=10,
    guidance=3.0,
)
EMOJI = Mini(
    "emoji",
    bilingual_emoji,
    emoji_names,
    size=64,
    vae=VAEConfig(channels=8, mult=(1, 3, 6, 12), blocks=1, latent=8, groups=4),
    text=TextConfig(width=128, layers=2, heads=4, hidden=256, projection=128, length=24),
    vocab=4096,
    clip=dict(patch=8, width=128, layers=3, heads=4, hidden=256),
    unet=UNetConfig(
        in_channels=8,
        channels=64,
        mult=(1, 2),
        depth=(1, 1),
        middle=1,
        heads=(4, 4),
        context=128,
        blocks=1,
        groups=8,
    ),
    train_vae=TrainConfig(steps=4300, batch_size=16, ema=0.995, **MUON),
    train_clip=TrainConfig(steps=350, batch_size=128, ema=0.98, **MUON),
    train_unet=TrainConfig(steps=20000, batch_size=64, ema=0.999, t_mean=1.2, **DENOISE),
    steps=10,
    guidance=2.0,
)
# The same by the clock (benchmarks/stable_diffusion_from_nothing.py, notebook 09): VAE and CLIP side by side, then a narrow UNet, as many
# cheap updates teach more than few dear ones. It is told the pooled text and sizes too, as in SDXL, and so binds words to colours sooner.
# Its last steps are not guided: so young a UNet drives the ink past its colour there.
FIVE_MINUTES = dataclasses.replace(
    PAINTED,
    unet=dataclasses.replace(
        PAINTED.unet, channels=32, depth=(0, 0), vector=PAINTED.text.projection + 6 * 2
    ),
    train_vae=dataclasses.replace(PAINTED.train_vae, ema=0.98),
    train_unet=dataclasses.replace(PAINTED.train_unet, lr=6e-3, ema=0.995, t_mean=1.2),
    latents=12000,
    shares=(0.42, 0.17),
    interval=(300, 999),
)
MINIS = {mini.name: mini for mini in (PAINTED, EMOJI)}


def mini(name: str) -> Mini:
    """The plan of that name. Raises OptionError if there is none."""
    if name not in MINIS:
        raise OptionError(f"there is no mini system {name!r}: choose one of {', '.join(MINIS)}")
    return MINIS[name]
