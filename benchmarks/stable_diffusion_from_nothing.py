"""A whole Stable Diffusion from random weights, and how often it draws what the prompt says.

    python benchmarks/stable_diffusion_from_nothing.py --seconds 300 --save RUN.npz --weights W.safetensors
    python benchmarks/stable_diffusion_from_nothing.py --seconds 300 --busy  # beside a busy process
    python benchmarks/stable_diffusion_from_nothing.py --plan                # by updates, no clock
    python benchmarks/stable_diffusion_from_nothing.py --seconds 0           # the one that ships

VAE, CLIP and UNet are trained by `train_system` on painted digits; the clock runs from the start of
this process. Then `--prompts` random captions of combinations seen in training and as many of
held-out ones are drawn, and counted. RUN.npz holds what notebook 09 shows: the loss curves, eight
pictures after some of the UNet's updates, and all figures as JSON.
"""

import time

STARTED = time.perf_counter()

import argparse
import copy
import datetime
import json
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
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
    p.add_argument("--plan", action="store_true", help="the plan's own updates, however long")
    p.add_argument("--busy", action="store_true", help="one core spins for another process")
    p.add_argument("--prompts", type=int, default=500)
    p.add_argument("--seed", type=int, default=0, help="of the prompts")
    p.add_argument("--guidance", type=float, help="(default: the plan's)")
    p.add_argument("--steps", type=int, help="model evaluations a picture (default: the plan's)")
    p.add_argument("--save", type=Path)
    p.add_argument("--weights", type=Path, help="write the trained system there")
    args = p.parse_args()

    result = {
        "command": " ".join(["python", *sys.argv]),
        "seconds": None if args.plan else args.seconds,
        "busy": args.busy,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    sheet, curves = Sheet(), {}
    if args.seconds or args.plan:
        with busy(args.busy):
            left = None if args.plan else args.seconds - (time.perf_counter() - STARTED)
            trained = train_system(FIVE_MINUTES, left, watch=sheet)
        sd, clip, record = trained
        curves = {k: part.pop("loss") for k, part in record.items() if isinstance(part, dict)}
        result |= {
            "wall": round(time.perf_counter() - STARTED, 1),
            "cpu": round(sum(os.times()[:4]), 1),  # seconds of all cores and processes together
            "updates": {part: record[part]["updates"] for part in curves},
        }
        if args.weights:
            save(args.weights, sd, {**sd.meta, "train": record}, dtype=torch.int8)
    else:
        sd, clip = load("painted"), load("painted_clip")
    result |= parts(sd, clip)
    options = {k: v for k, v in (("guidance", args.guidance), ("steps", args.steps)) if v}
    for name, held in (("seen", False), ("held_out", True)):
        texts, seeds = prompts(args.prompts, args.seed, held), list(range(args.prompts))
        started = time.perf_counter()
        drawn = torch.cat(
            [
                draw(sd, texts[k : k + 100], seeds=seeds[k : k + 100], progress=False, **options)
                for k in range(0, len(texts), 100)
            ]
        )
        result[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
        result[name] = {word: round(share, 4) for word, share in fidelity(drawn, texts).items()}
    if args.save:
        sheet.draw(sd, "end")
        np.savez_compressed(
            args.save,
            **{f"loss_{part}": np.array(curve, np.float32) for part, curve in curves.items()},
            sheet=as_bytes(torch.stack(sheet.pictures)),
            sheet_at=np.array(sheet.at),
            sheet_prompts=np.array(sheet.prompts),
            result=json.dumps(result),
        )
    print(json.dumps(result))


class Sheet:
    """The same prompts and noise after some of the UNet's updates; `at`: updates and seconds."""

    UPDATES = (100, 300, 1000)

    def __init__(self):
        self.prompts, self.pictures, self.at, self.probe = prompts(8, 5), [], [], None

    def __call__(self, sd, step) -> None:
        if step.step in self.UPDATES:
            self.probe = self.probe or copy.deepcopy(sd)
            self.probe.unet.load_state_dict(step.ema.state_dict())
            self.draw(self.probe, step.step)

    def draw(self, sd, name) -> None:
        seconds = time.perf_counter() - STARTED
        self.pictures.append(draw(sd, self.prompts, seeds=10, progress=False))
        self.at.append(f"{name} {seconds:.0f}")


def as_bytes(x: torch.Tensor) -> np.ndarray:
    """(..., 3, 32, 32) -> (..., 32, 32, 3) uint8."""
    return to_uint8(x).movedim(-3, -1).numpy()


@contextmanager
def busy(wanted: bool):
    """Beside a process that spins on one core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


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
