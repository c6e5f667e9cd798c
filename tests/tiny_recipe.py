"""A tiny Stable Diffusion of three short trainings, on 8x8 pictures of one dot.

For test_latents.py and test_whole_system.py; the process that trains the CLIP imports it."""

import dataclasses

import torch

from ddpm_edu.networks.text import TextConfig
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.training.recipes import Recipe
from ddpm_edu.training.train import TrainConfig

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
TINY = Recipe(
    "tiny",
    Dots,
    UNetConfig(
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
    TrainConfig(steps=8, predict="v", t_distribution="logit_normal", **MUON),
    guidance=2.0,
    steps=4,
    size=8,
    vae=VAEConfig(channels=8, mult=(1, 2), blocks=1, latent=2, groups=4),
    train_vae=TrainConfig(steps=6, **MUON),
    captions=captions,
    vocab=540,
    text=TextConfig(width=16, layers=1, heads=2, hidden=32, projection=12, length=12),
    vision=dict(patch=4, width=16, layers=1, heads=2, hidden=32),
    train_clip=TrainConfig(steps=5, **MUON),
)
# And one whose VAE starts linear on patches, and whose decoder goes on at the end.
LINEAR = dataclasses.replace(
    TINY,
    name="linear",
    vae=VAEConfig(channels=8, mult=(1,), blocks=1, latent=2, groups=4, patch=2, linear=True),
    train_decoder=TrainConfig(steps=7, **MUON),
)
