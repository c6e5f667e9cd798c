"""The five-minute plan with a VAE that starts as a linear autoencoder in closed form (notebook 09).

    python benchmarks/linear_start.py                 trains it, about ten minutes of CPU time
    python benchmarks/linear_start.py --weights W     measures the system W, trained before

Writes data/recorded/linear_start.npz, for three kinds of pictures: copies of new pictures, copies
whose latents got noise, and drawn prompts. NAME_right (N, 5) says which of a caption's five facts
`read` finds in each picture; NAME (8, 3, 32, 32) are the first ones. The last line printed is one
JSON object.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import torch
from figures import provenance

from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.painted import painted_digits, parse, prompts
from ddpm_edu.files.load import load
from ddpm_edu.metrics.obedience import read
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.paths import data_folder
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.training.recipes import FIVE_MINUTES
from ddpm_edu.training.whole_system import train_system

OUT = data_folder() / "recorded" / "linear_start.npz"
PICTURES, NOISE, SHOWN = 500, 0.3, 8
PLAN = dataclasses.replace(
    FIVE_MINUTES,
    vae=VAEConfig(channels=24, mult=(1, 2), blocks=1, latent=4, groups=4, patch=2, linear=True),
    train_vae=dataclasses.replace(FIVE_MINUTES.train_vae, steps=800),
    train_clip=dataclasses.replace(FIVE_MINUTES.train_clip, steps=800),
    train_unet=dataclasses.replace(FIVE_MINUTES.train_unet, steps=2300),
    train_decoder=dataclasses.replace(FIVE_MINUTES.train_decoder, steps=4000),
)


@torch.no_grad()
def measured(sd) -> dict[str, tuple]:
    """{name: pictures (PICTURES, 3, 32, 32) and their captions}."""
    x, texts = painted_digits("test", PICTURES)[torch.arange(PICTURES)]
    z_0 = sd.vae.to_latent(x)
    noisy = z_0 + NOISE * torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0))
    wishes = prompts(PICTURES, seed=1)
    parts = torch.arange(PICTURES).split(100)
    drawn = [draw(sd, [wishes[k] for k in p], seeds=(100 + p).tolist()) for p in parts]
    return {
        "copies": (sd.vae.from_latent(z_0), texts),
        "noisy": (sd.vae.from_latent(noisy), texts),
        "drawn": (torch.cat(drawn), wishes),
    }


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--weights", type=Path, help="a system that was trained before")
    args = p.parse_args()
    sd = load(args.weights) if args.weights else train_system(PLAN).sd
    card = {
        "command": " ".join(["python", *sys.argv]),
        **provenance(),
        "vae": dataclasses.asdict(sd.config.vae),
        "noise": NOISE,
    }
    arrays, shares = {}, {}
    for name, (pictures, captions) in measured(sd).items():
        pairs = zip(map(parse, captions), read(pictures))
        right = np.array([[a == b for a, b in zip(*pair)] for pair in pairs])
        arrays |= {name: to_uint8(pictures[:SHOWN]).numpy(), f"{name}_right": right}
        shares[name] = {"digit, ink and ground": right[:, :3].all(1).mean()}
    np.savez_compressed(OUT, card=json.dumps(card), **arrays)
    print(json.dumps({**card, **shares}))


if __name__ == "__main__":
    main()
