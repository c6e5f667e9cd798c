"""The emoji system trained on from the weights that ship: what a minute on a GPU is worth."""

import dataclasses
import time

import torch

from ddpm_edu.files.load import load
from ddpm_edu.files.tensors import save_tensors
from ddpm_edu.training.latents import encode
from ddpm_edu.training.recipes import EMOJI
from ddpm_edu.training.train import train

from .bench import Bench


def emoji(bench: Bench) -> dict:
    """Updates a second at batch 512; the averaged UNet is written beside the results."""
    sd = load(EMOJI.name, device=bench.setting.device)
    latents = encode(sd, EMOJI.dataset(), None if bench.cuda else 32)
    seconds = min(60, bench.left() - 12) if bench.cuda else 0.5
    batch = 512 if bench.cuda else 8
    config = dataclasses.replace(
        EMOJI.train_unet, batch_size=batch, seconds=seconds, lr=3e-3, warmup=20
    )
    unet = sd.unet.requires_grad_(True)
    losses, started = [], time.perf_counter()
    for update in train(unet, sd.schedule, latents, config):
        losses.append(update.loss)
    took = time.perf_counter() - started
    half = {key: w.to("cpu", torch.float16) for key, w in update.ema.state_dict().items()}
    for folder in bench.folders:
        save_tensors(folder / "emoji_unet.safetensors", half)
    return {
        "seconds": took / update.step,
        "updates": update.step,
        "updates_per_s": update.step / took,
        "batch": batch,
        "loss_first": sum(losses[:20]) / len(losses[:20]),
        "loss_last": sum(losses[-20:]) / len(losses[-20:]),
    }
