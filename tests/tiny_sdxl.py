"""SDXL in miniature for tests: a base and a refiner of random weights, and a recipe of eight short
trainings, which the processes that train its parts import."""

from dataclasses import replace

import torch

from ddpm_edu import Schedule
from ddpm_edu.datasets.originals import captions
from ddpm_edu.networks.text import TextConfig
from ddpm_edu.networks.tokenizer import train_tokenizer
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.systems.system import SDXL_MINI, SDXL_MINI_REFINER, build
from ddpm_edu.training.sdxl import SDXLRecipe, Stage
from ddpm_edu.training.train import TrainConfig


def random_pair():
    """A base and a refiner, whose VAE and second text encoder are the base's."""
    torch.manual_seed(0)
    schedule = Schedule.sqrt_linear().zero_terminal_snr()
    base, refiner = build(SDXL_MINI, schedule), build(SDXL_MINI_REFINER, schedule)
    refiner.vae.load_state_dict(base.vae.state_dict())
    refiner.text.encoders[0].load_state_dict(base.text.encoders[1].state_dict())
    text = SDXL_MINI.text[0]
    tokenizer = train_tokenizer(captions(held=False), text.vocab, text.length)
    base.text.tokenizer = refiner.text.tokenizer = tokenizer
    return {"base": base, "refiner": refiner}


SHORT = dict(layers=2, heads=2, hidden=32, vocab=572, length=16)
MUON = dict(batch_size=8, lr=1e-2, optimizer="muon", warmup=2, save_every=2, ema=0.9)
DENOISE = TrainConfig(steps=4, predict="v", **MUON)
BASE = replace(
    SDXL_MINI,
    name="tiny SDXL",
    unet=UNetConfig(
        channels=8,
        mult=(1, 2),
        depth=(0, 1),
        middle=1,
        heads=(2, 2),
        context=16 + 24,
        vector=24 + 6 * 8,
        blocks=1,
        groups=4,
    ),
    vae=VAEConfig(channels=8, mult=(1, 1, 1), blocks=1, latent=4, groups=4, scale=1.0),
    text=(TextConfig(width=16, **SHORT), TextConfig(width=24, projection=24, pad="!", **SHORT)),
    number_dim=8,
)
REFINER = replace(
    BASE,
    name="tiny SDXL refiner",
    unet=replace(BASE.unet, context=24, vector=24 + 5 * 8),
    text=BASE.text[1:],
    vector="refiner",
    zero_empty=False,
)
TINY_SDXL = SDXLRecipe(
    "sdxl-mini",
    BASE,
    REFINER,
    train_vae=TrainConfig(steps=4, **MUON),
    train_clip=TrainConfig(steps=4, **MUON),
    stages=(
        Stage([(16, 16)], DENOISE),
        Stage([(40, 24), (32, 32), (24, 40)], replace(DENOISE, seed=1), stray=0.3),
    ),
    train_refiner=replace(DENOISE, t_share=0.2, seed=2),
    train_decoder=TrainConfig(steps=4, **MUON),
    vision=dict(patch=8, width=16, layers=1, heads=2, hidden=32),
    n=120,
)
UPDATES = 4  # of each part
