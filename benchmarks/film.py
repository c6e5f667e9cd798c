"""The film at the head of README.md: from words to pictures, by the emoji system that ships.

    python benchmarks/film.py --out data/film.webp

Each scene shows the latents x_t of four prompts, decoded, at each of the system's ten evaluations:
noise first, the pictures last. The names were chosen, the seeds count up from --seed: none is picked.
"""

import argparse
import json
import platform
import time
import warnings
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.files.load import load
from ddpm_edu.systems.pipeline import decode, text_to_image

SCENES = (
    ("red apple", "penguin", "sailboat", "snowman"),
    ("octopus", "sunflower", "locomotive", "violin"),
    ("fox", "pineapple", "rocket", "watermelon"),
)
SIDE, GAP, LINE = 152, 14, 34  # pixels of a picture, between two, of the line with its name
PAPER, INK = (255, 255, 255), (30, 30, 30)
FRAME, HOLD = 180, 1800  # milliseconds


def emerging(sd, prompts, seed: int) -> list[torch.Tensor]:
    """x_t of each evaluation, and what comes out, decoded: (B, 3, H, W) each."""
    seeds = list(range(seed, seed + len(prompts)))
    steps = list(text_to_image(sd, prompts, seeds=seeds))
    return [decode(sd, z) for z in (*(step.x_t for step in steps), steps[-1].x_prev)]


def frame(pictures: torch.Tensor, prompts, font) -> Image.Image:
    """One row of pictures with their prompts below, on white."""
    wide = len(prompts) * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (wide, SIDE + GAP + LINE), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (picture, prompt) in enumerate(zip(to_uint8(pictures), prompts)):
        x = GAP + i * (SIDE + GAP)
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        sheet.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, GAP))
        pen.text((x + SIDE // 2, SIDE + GAP + LINE // 2), prompt, INK, font, anchor="mm")
    return sheet


def film(sd, seed: int) -> tuple[list[Image.Image], list[int]]:
    """(frames, milliseconds of each)"""
    font, frames, times = ImageFont.load_default(17), [], []
    for i, prompts in enumerate(SCENES):
        steps = emerging(sd, prompts, seed + i * len(prompts))
        frames += [frame(step, prompts, font) for step in steps]
        times += [FRAME] * (len(steps) - 1) + [HOLD]
    return frames, times


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, default=Path("film.webp"))
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--quality", type=int, default=55)
    args = p.parse_args()

    warnings.simplefilter("ignore")
    started = time.perf_counter()
    frames, times = film(load("emoji"), args.seed)
    options = dict(save_all=True, append_images=frames[1:], duration=times, loop=0)
    frames[0].save(args.out, "WEBP", quality=args.quality, method=6, **options)
    print(
        json.dumps(
            {
                "out": str(args.out),
                "bytes": args.out.stat().st_size,
                "frames": len(frames),
                "seconds": round(sum(times) / 1000, 1),
                "prompts": [prompt for scene in SCENES for prompt in scene],
                "seconds_to_make": round(time.perf_counter() - started, 1),
                "machine": platform.machine(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
