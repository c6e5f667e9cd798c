"""One UNet trained well and three times wrongly: what loss, pictures and obedience show. Notebook 09.

    python benchmarks/broken_unets.py --save RUNS.npz                # about 5 minutes of one core

The UNet of the five-minute plan, on latents and texts of the painted system that ships:

    healthy     the plan, only shorter
    no text     the condition is always dropped (p_uncond = 1)
    scale       latents times 0.18215, SD 1.5's number, instead of 1 / their own deviation
    shuffled    picture i gets the caption of picture i - 1

RUNS.npz holds loss_NAME, sheet_NAME (12 pictures, the same prompts and noise) and result, the line
of JSON that is printed last: the shares obeyed of --prompts captions, the loss of the last tenth.
"""

import argparse
import dataclasses
import datetime
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ddpm_edu import load
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.painted import painted_digits, prompts
from ddpm_edu.metrics.obedience import fidelity
from ddpm_edu.networks.vae import SD_VAE
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.training.autoencoder import with_scale
from ddpm_edu.training.latents import encode
from ddpm_edu.training.recipes import FIVE_MINUTES
from ddpm_edu.training.whole_system import assemble, thin, train_unet

NAMES = ("healthy", "no text", "scale", "shuffled")


def run(name: str, updates: int, pictures: int, n: int) -> tuple[list, torch.Tensor, dict]:
    """Loss of every update, the sheet, the shares obeyed."""
    vae, clip = load("painted").vae, load("painted_clip")
    own = vae.config.scale
    sd = assemble(FIVE_MINUTES, with_scale(vae, SD_VAE.scale if name == "scale" else own), clip)
    latents = encode(sd, painted_digits(), pictures)
    if name == "shuffled":
        latents = dataclasses.replace(latents, row=latents.row.roll(1))
    config = dataclasses.replace(
        FIVE_MINUTES.train_unet, steps=updates, p_uncond=1.0 if name == "no text" else 0.1
    )
    losses = []
    log = lambda steps: (losses.append(step.loss) or step for step in steps)
    sd = train_unet(sd, latents, config, log=log)
    texts = prompts(n)
    drawn = [
        draw(sd, texts[k : k + 100], seeds=list(range(k, min(k + 100, n))), progress=False)
        for k in range(0, n, 100)
    ]
    shares = {k: round(share, 4) for k, share in fidelity(torch.cat(drawn), texts).items()}
    return losses, draw(sd, prompts(12, 5), seeds=10, progress=False), shares


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--updates", type=int, default=600)
    p.add_argument("--pictures", type=int, default=12000)
    p.add_argument("--prompts", type=int, default=200)
    p.add_argument("--runs", nargs="+", default=NAMES, choices=NAMES)
    p.add_argument("--save", type=Path)
    args = p.parse_args()
    started, kept = time.process_time(), {"sheet_prompts": np.array(prompts(12, 5))}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "updates": args.updates,
        "prompts": args.prompts,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    for name in args.runs:
        losses, sheet, shares = run(name, args.updates, args.pictures, args.prompts)
        kept[f"loss_{name}"] = np.array(thin(losses), np.float32)
        kept[f"sheet_{name}"] = to_uint8(sheet).movedim(1, -1).numpy()
        tenth = losses[-max(1, len(losses) // 10) :]
        result[name] = shares | {"loss": round(sum(tenth) / len(tenth), 4)}
        print(name, result[name], flush=True)
    result["cpu"] = round(time.process_time() - started, 1)
    if args.save:
        np.savez_compressed(args.save, **kept, result=json.dumps(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
