"""How well the models that edit do, figure by figure; the last line is one JSON object.

python benchmarks/editing.py inpainting        another digit into a painted picture
python benchmarks/editing.py upscaling         painted pictures of half the size, enlarged
"""

import argparse
import datetime
import json
import platform

import numpy as np
import torch
import torch.nn.functional as F
from sdxl_craft import details

from ddpm_edu import load
from ddpm_edu.datasets.painted import (
    PIXELS,
    PLACES,
    SIZES,
    caption,
    painted_digits,
    random_bits,
    step,
)
from ddpm_edu.metrics.frechet import frechet, psnr
from ddpm_edu.metrics.obedience import read
from ddpm_edu.systems.pipeline import edit, enlarged


def inpainting(args) -> dict:
    """Test pictures; the box of the digit is masked, another digit is asked for, all else as it is."""
    sd = load(args.model or "painted-inpaint")
    data = painted_digits("test", args.n, seed=1, held=None)
    x, _ = data[:]
    asked = [
        s._replace(digit=(s.digit + 1 + k) % 10)
        for s, k in zip(data.scenes(), (random_bits(np.arange(args.n), 2, 20) % 9).tolist())
    ]
    mask = torch.stack([digit_box(s) for s in asked])
    y = in_parts(sd, [caption(s) for s in asked], x, mask=mask)
    seen = read(y)
    outside = ((y - x).abs() * (1 - mask)).max().item() * 127.5
    right = lambda f: float(np.mean([f(a) == f(b) for a, b in zip(asked, seen)]))
    return {
        "model": sd.config.name,
        "outside_levels": outside,
        "digit": right(lambda s: s.digit),
        "digit_ink_ground": right(lambda s: s[:3]),
        "all": right(lambda s: s),
    }


def digit_box(scene) -> torch.Tensor:
    """(1, 32, 32): 1 where the scene's digit may have ink, and a pixel around."""
    mask, pixels = torch.zeros(1, PIXELS, PIXELS), SIZES[scene.size]
    middle = [PIXELS // 2 + step(pixels) * side for side in PLACES[scene.place]]
    rows, columns = (slice(max(0, m - pixels // 2 - 1), m + pixels // 2 + 1) for m in middle)
    mask[:, rows, columns] = 1
    return mask


def in_parts(sd, prompts, x, size=50, mask=None, **options):
    """`edit` of many pictures, some at a time."""
    out = []
    for k in range(0, len(x), size):
        part = slice(k, k + size)
        own = {} if mask is None else {"mask": mask[part]}
        seeds = list(range(len(x)))[part]
        out.append(edit(sd, prompts[part], x[part], seeds=seeds, progress=False, **own, **options))
    return torch.cat(out)


def upscaling(args) -> dict:
    """Test pictures of half the size enlarged, against bicubic: dB, and the details' distance."""
    sd = load(args.model or "painted-upscale")
    data = painted_digits("test", args.n, seed=1, held=None)
    x, captions = data[:]
    small = F.avg_pool2d(x, 2)
    ways = {"bicubic": enlarged(small), "ours": in_parts(sd, captions, small)}
    found = {"model": sd.config.name}
    for name, y in ways.items():
        found[name] = {
            "psnr": psnr(x, y).mean().item(),
            "psnr_of_all": psnr(x[None], y[None]).item(),
            "details": frechet(details(x), details(y)),
            "read": float(np.mean([a == b for a, b in zip(data.scenes(), read(y))])),
        }
    return found


WAYS = {f.__name__: f for f in (inpainting, upscaling)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--n", type=int, default=500, help="pictures (500)")
    parser.add_argument("--model", help="a name or a file, not what ships")
    args = parser.parse_args()
    result = WAYS[args.what](args)
    about = {
        "command": f"python benchmarks/editing.py {args.what} --n {args.n}",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
    }
    print(json.dumps(result | about))


if __name__ == "__main__":
    main()
