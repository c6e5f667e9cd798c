"""How well the shipped emoji model draws what it is told: 100 random names, and the time of one picture.

    python benchmarks/emoji_by_name.py --sheet data/emoji_drawn.webp

`retrieval`: share of drawn pictures whose own name the shipped emoji CLIP finds first among the 100; the real pictures'
share stands beside it, and CLIP's share among all 1,911 names as `clip_all`. `nearest_is_own`: share whose nearest real emoji, by pixels, is the one that was asked for: all of
them were in the training, so the model is to remember here, not to invent. Seconds: one "red apple", the best of five, loaded before.
"""

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import torch
from PIL import Image

from ddpm_edu.cli import grid
from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.files.load import load
from ddpm_edu.networks.clip import retrieval
from ddpm_edu.systems.pipeline import draw


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--names", type=int, default=100)
    p.add_argument("--seed", type=int, default=0, help="of the choice of names")
    p.add_argument("--steps", type=int, help="model evaluations (default: the model's own)")
    p.add_argument("--guidance", type=float, help="(default: the model's own)")
    p.add_argument("--language", choices=("en", "zh"), default="en")
    p.add_argument("--sheet", type=Path, help="write the pictures there, ten columns, WebP")
    args = p.parse_args()

    warnings.simplefilter("ignore")
    sd, clip, every = load("emoji"), load("emoji_clip"), emoji()
    options = {"steps": args.steps, "guidance": args.guidance, "progress": False}
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(args.seed))[
        : args.names
    ]
    real, names = every[chosen][0], every.captions(chosen, args.language)
    drawn = draw(sd, names, seeds=list(range(len(names))), **options)
    everything = every[slice(None)][0]
    distance = torch.cdist(drawn.flatten(1), everything.flatten(1))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        draw(sd, "red apple", **options)
        seconds.append(time.perf_counter() - started)
    if args.sheet:
        sheet = Image.fromarray(grid(to_uint8(drawn), 10, 1))
        sheet.save(args.sheet, "WEBP", quality=92, method=6)
    print(", ".join(names))
    print(
        json.dumps(
            {
                "names": args.names,
                "language": args.language,
                "steps": args.steps or sd.config.steps,
                "guidance": args.guidance or sd.config.guidance,
                "retrieval": retrieval(clip, drawn, names),
                "retrieval_real": retrieval(clip, real, names),
                "clip_all_en": retrieval(clip, everything, every.captions()),
                "clip_all_zh": retrieval(clip, everything, every.captions(language="zh")),
                "nearest_is_own": (distance.argmin(1) == chosen).double().mean().item(),
                "red_apple_seconds": round(min(seconds), 3),
                "threads": torch.get_num_threads(),
                "machine": platform.machine(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
