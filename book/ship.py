"""Of what harvest.py recorded, the little that is committed: python book/ship.py 01 03 ...

All numbers of charts; of the films and sliders those in KEEP, the rest is too large. Reads
book/_alive, writes book/recorded.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from harvest import avif, nearest, spaced
from PIL import Image

BOOK = Path(__file__).resolve().parent
# notebook: {beginning of the alt text: (how many frames, points; quality of the pictures)}
KEEP = {
    "00": {"ten digits appear out of noise": (20, 0, 45), "The digit 7 from seed 3": (99, 0, 50)},
    "01": {"The digit 5 fades": (99, 0, 45), "A Swiss roll turns into noise": (24, 120, 0)},
    "02": {"Noise turns into a Swiss roll": (28, 150, 0), "Three pairs of bells": (99, 0, 50)},
    "03": {"Six clock hands": (99, 0, 45), "Three rows of digits at t": (99, 0, 45)},
    "04": {"A line that rises for": (99, 0, 45), "Loss against time": (99, 0, 45)},
    "05": {
        "The digits 0 to 9, drawn": (99, 0, 45),
        "Densities for guidance": (99, 0, 45),
        "Thirty digits, three of each": (99, 0, 40),
    },
    "06": {
        "Six digits above their copies": (99, 0, 45),
        "Eight digits above the same digits decoded; latent": (99, 0, 45),
        "Four rows of eight": (99, 0, 40),
    },
    "07": {"A curve of FLOPs": (99, 0, 50), "Eight decoded digits": (99, 0, 45)},
    "08": {"Similarity matrix of 16": (99, 0, 30), "Probabilities of eight": (99, 0, 25)},
    "09": {"Step 4: the guess": (99, 0, 45)},
    "10": {"Upper row: an original digit": (99, 0, 40)},
    "11": {"Bars of parameters and": (99, 0, 40), "Six latents on their way": (8, 0, 30)},
    "12": {
        "Bars of four models": (99, 0, 40),
        "Sixteen pictures": (99, 0, 35),
        "Pictures above, the": (99, 0, 35),
    },
    "13": {"Histogram of shorter": (99, 0, 40), "Left the resized": (99, 0, 40)},
    "14": {"Five noisy pictures": (15, 0, 35), "Ten coloured digits": (99, 0, 35)},
    "15": {
        "Ten pictures drawn": (99, 0, 35),
        "Three damaged": (99, 0, 35),
        "Eight small digits": (99, 0, 35),
    },
    "16": {"120 points from noise to data": (28, 120, 0), "The shares of noise": (99, 0, 40)},
    "17": {"Six pictures drawn with": (99, 0, 40), "An emoji and the same with": (99, 0, 50)},
    "18": {"Ten digits from each": (99, 0, 28)},
}


def main(names: list[str]) -> None:
    for name in names:
        with zipfile.ZipFile(BOOK / f"_alive/{name}.zip") as archive:
            index = json.loads(archive.read("index.json"))
            films = {n: archive.read(n) for n in archive.namelist() if n.endswith(".avif")}
        kept, files = [], {}
        for entry in index:
            rules = KEEP.get(name, {}).items()
            rule = next((rule for start, rule in rules if entry["alt"].startswith(start)), None)
            if entry["kind"] == "chart":
                kept.append(entry)
            elif rule and entry["kind"] == "points":
                kept.append(thinned(entry, *rule[:2]))
            elif rule:
                kept.append(entry)
                files[entry["file"]] = smaller(entry, films[entry["file"]], rule)
        target = BOOK / f"recorded/{name}.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("index.json", json.dumps(kept, ensure_ascii=False))
            for file, data in files.items():
                archive.writestr(file, data, zipfile.ZIP_STORED)
        print(f"{target.name}: {target.stat().st_size / 1024:.1f} KB, {len(kept)} of {len(index)}")


def thinned(entry: dict, frames: int, count: int) -> dict:
    """A film of points with fewer frames and points."""
    shape = entry["shape"]
    steps = np.frombuffer(base64.b64decode(entry["steps"]), np.uint8).reshape(*shape, 2)
    places = np.cumsum(steps, axis=1, dtype=np.uint8)
    keep, some = spaced(shape[1], frames), spaced(shape[2], count)
    steps = np.diff(places[:, keep][:, :, some], axis=1, prepend=0).astype(np.uint8)
    return entry | {
        "steps": base64.b64encode(steps.tobytes()).decode(),
        "shape": list(steps.shape[:3]),
        "groups": [entry["groups"][k] for k in some],
        "captions": [entry["captions"][k] for k in keep] if entry["captions"] else [],
        "index": nearest(keep, entry["index"]),
        "fps": entry["fps"] * len(keep) / shape[1],
    }


def smaller(entry: dict, data: bytes, rule: tuple) -> bytes:
    """A film with fewer frames, changed in `entry`, or of lower quality."""
    most, _, quality = rule
    picture = Image.open(io.BytesIO(data))
    keep = list(range(picture.n_frames))
    if entry["kind"] == "film":
        keep = spaced(picture.n_frames, most)
        entry["captions"] = [entry["captions"][k] for k in keep] if entry["captions"] else []
        entry["index"] = nearest(keep, entry["index"])
        entry["fps"] *= len(keep) / picture.n_frames
    frames = []
    for k in keep:
        picture.seek(k)
        frames.append(np.asarray(picture.convert("RGB")))
    grey = all((np.ptp(f.astype(int), axis=-1) < 12).all() for f in frames)
    return avif(np.stack([f[..., 0] if grey else f for f in frames]), quality=quality)


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(path.stem for path in (BOOK / "_alive").glob("*.zip")))
