"""A whole Stable Diffusion from random weights in a given wall time, and how often it draws what it is told.

    python benchmarks/stable_diffusion_from_nothing.py --seconds 300 --save FILE.npz
    python benchmarks/stable_diffusion_from_nothing.py --seconds 0          # the shipped one, not trained here

VAE, CLIP and UNet are trained by `train_system` on painted digits; the clock runs from the start of this process. Then
`--prompts` random captions of combinations seen in training and as many of held-out ones are drawn, and the oracle counts.
FILE.npz holds images (N, 32, 32, 3) uint8, prompts and seeds, those seen in training first.
"""

import time

STARTED = time.perf_counter()

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch

from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.painted import painted_digits, prompts
from ddpm_edu.files.load import load, save
from ddpm_edu.metrics.frechet import psnr
from ddpm_edu.metrics.obedience import fidelity
from ddpm_edu.networks.clip import retrieval
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.training.recipes import FIVE_MINUTES
from ddpm_edu.training.whole_system import train_system


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--seconds",
        type=float,
        default=300,
        help="wall time for all three parts; 0: the shipped system (default: 300)",
    )
    p.add_argument("--prompts", type=int, default=500)
    p.add_argument("--seed", type=int, default=0, help="of the prompts")
    p.add_argument("--guidance", type=float, help="(default: the plan's)")
    p.add_argument("--steps", type=int, help="model evaluations a picture (default: the plan's)")
    p.add_argument("--save", type=Path)
    p.add_argument("--weights", type=Path, help="write the trained system there")
    args = p.parse_args()

    result = {
        "seconds": args.seconds,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    if args.seconds:
        trained = train_system(FIVE_MINUTES, args.seconds - (time.perf_counter() - STARTED))
        sd, clip = trained.sd, trained.clip
        result |= {
            "wall": round(time.perf_counter() - STARTED, 1),
            "updates": {part: trained.record[part]["updates"] for part in ("vae", "clip", "unet")},
        }
        if args.weights:
            save(args.weights, sd, {**sd.meta, "train": trained.record}, dtype=torch.int8)
    else:
        sd, clip = load("painted"), load("painted_clip")
    result |= parts(sd, clip)
    options = {
        name: getattr(args, name)
        for name in ("guidance", "steps")
        if getattr(args, name) is not None
    }
    drawn = {}
    for name, held in (("seen", False), ("held_out", True)):
        texts, seeds = prompts(args.prompts, args.seed, held), list(range(args.prompts))
        started = time.perf_counter()
        drawn[name] = (
            torch.cat(
                [
                    draw(
                        sd, texts[k : k + 100], seeds=seeds[k : k + 100], progress=False, **options
                    )
                    for k in range(0, len(texts), 100)
                ]
            ),
            texts,
            seeds,
        )
        result[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
        result[name] = {
            word: round(share, 4) for word, share in fidelity(drawn[name][0], texts).items()
        }
    if args.save:
        images, texts, seeds = (sum((list(d[i]) for d in drawn.values()), []) for i in range(3))
        np.savez_compressed(
            args.save,
            images=to_uint8(torch.stack(images)).permute(0, 2, 3, 1).numpy(),
            prompts=np.array(texts),
            seeds=np.array(seeds),
        )
    print(json.dumps(result))


@torch.no_grad()
def parts(sd, clip) -> dict:
    """What the VAE and CLIP can do, on digits that neither was trained on."""
    x, captions = painted_digits("test", 1000)[torch.arange(1000)]
    rest, held = painted_digits("test", 1000, held=True)[torch.arange(1000)]
    y = torch.cat([sd.vae.from_latent(sd.vae.to_latent(part)) for part in x.split(100)])
    hundreds = [retrieval(clip, x[k : k + 100], captions[k : k + 100]) for k in range(0, 1000, 100)]
    return {
        "vae_psnr": round(psnr(x, y).mean().item(), 2),
        "vae_read": round(fidelity(y, captions)["main"], 4),
        "clip_top1_of_100": round(float(np.mean(hundreds)), 4),
        "clip_top1_held_out": round(
            float(
                np.mean(
                    [
                        retrieval(clip, rest[k : k + 100], held[k : k + 100])
                        for k in range(0, 1000, 100)
                    ]
                )
            ),
            4,
        ),
    }


if __name__ == "__main__":
    main()
