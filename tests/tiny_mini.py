"""A mini Stable Diffusion of three short trainings, on 8x8 pictures of one dot: for test_latents.py and test_mini.py.

A file of its own, since the process that trains the CLIP imports it."""

import torch

from ddpm_edu.networks.text import TextConfig
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.training.train import TrainConfig
from ddpm_edu.training.whole_system import Mini

COLOURS = {
    "red": (1.0, -1.0, -1.0),
    "green": (-1.0, 1.0, -1.0),
    "blue": (-1.0, -1.0, 1.0),
    "white": (1.0, 1.0, 1.0),
}
PLACES = {"top": 1, "bottom": 5}
CAPTIONS = [f"a {colour} dot at the {place}" for colour in COLOURS for place in PLACES]


class Dots:
    """48 pictures (3, 8, 8) of 8 captions; where the dot lies to the left or right no caption says."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        index = torch.as_tensor(index).tolist()
        x = torch.zeros(len(index), 3, 8, 8)
        for picture, i in zip(x, index):
            top, left = list(PLACES.values())[i % 8 % 2], i // 8
            picture[:, top : top + 2, left : left + 2] = torch.tensor(
                list(COLOURS.values())[i % 8 // 2]
            )[:, None, None]
        return x, [CAPTIONS[i % 8] for i in index]


def captions():
    return CAPTIONS


MUON = dict(batch_size=8, lr=1e-2, optimizer="muon", warmup=2, save_every=2)
TINY = Mini(
    "tiny",
    Dots,
    captions,
    size=8,
    vocab=540,
    vae=VAEConfig(channels=8, mult=(1, 2), blocks=1, latent=2, groups=4),
    text=TextConfig(width=16, layers=1, heads=2, hidden=32, projection=12, length=12),
    clip=dict(patch=4, width=16, layers=1, heads=2, hidden=32),
    unet=UNetConfig(
        in_channels=2,
        channels=8,
        mult=(1, 2),
        depth=(0, 1),
        middle=1,
        heads=(1, 2),
        context=16,
        blocks=1,
        groups=4,
    ),
    train_vae=TrainConfig(steps=6, **MUON),
    train_clip=TrainConfig(steps=5, **MUON),
    train_unet=TrainConfig(steps=8, predict="v", t_distribution="logit_normal", **MUON),
    steps=4,
    guidance=2.0,
)
