"""Seconds that `import ddpm_edu` takes in a fresh process, best of several, and what else it loads.

    python benchmarks/import_time.py [REPEATS] [--drawing]

The last line is one JSON object: wall seconds (best, and every run), processor seconds (they do not count the waiting
that other processes cause), the seconds that ddpm_edu adds to `import torch`, and the heavy modules loaded. With --drawing instead: the
whole of `ddpm-edu txt2img "red apple"` beside the imports that it cannot do without, taken in turn.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

HEAVY = [
    "IPython",
    "accelerate",
    "anywidget",
    "diffusers",
    "ipywidgets",
    "jupyter_core",
    "matplotlib",
    "scipy",
    "sklearn",
    "torchvision",
    "transformers",
]
CHILD = f"""
import json, sys, time
start = time.perf_counter()
import torch
torch_seconds = time.perf_counter() - start
import ddpm_edu
seconds = time.perf_counter() - start
loaded = [module for module in {HEAVY} if module in sys.modules]
print(json.dumps(dict(wall=seconds, cpu=time.process_time(), own=seconds - torch_seconds, loaded=loaded)))
"""


def measure(repeats=3):
    runs = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(repeats)
    ]
    best = {key: round(min(run[key] for run in runs), 3) for key in ("wall", "cpu", "own")}
    return {
        "import_seconds": best["wall"],
        "cpu_seconds": best["cpu"],
        "seconds_beyond_torch": best["own"],
        "all_import_seconds": [round(run["wall"], 3) for run in runs],
        "heavy_modules_loaded": runs[0]["loaded"],
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


CLIP = "import torch, transformers.models.clip.modeling_clip"


def drawing(repeats=3):
    """Best of several, each pair in turn: seconds by the clock and of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*"-m ddpm_edu.cli txt2img".split(), "red apple", "--out", f"{folder}/a.png"]
        runs = {"imports": ["-c", CLIP], "drawing": command}
        taken = {name: [] for name in runs}
        for _ in range(repeats + 1):  # the first run warms the disk
            for name, arguments in runs.items():
                before, start = os.times(), time.perf_counter()
                subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
                after, wall = os.times(), time.perf_counter() - start
                cpu = sum(after[2:4]) - sum(before[2:4])
                taken[name].append((wall, cpu))
    best = {name: [min(column) for column in zip(*rows[1:])] for name, rows in taken.items()}
    wall, cpu = (best["drawing"][i] / best["imports"][i] for i in (0, 1))
    seconds = {name: {"wall": round(w, 2), "cpu": round(c, 2)} for name, (w, c) in best.items()}
    return {**seconds, "wall_ratio": round(wall, 3), "cpu_ratio": round(cpu, 3)}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("repeats", type=int, nargs="?", default=3)
    arguments.add_argument("--drawing", action="store_true")
    arguments = arguments.parse_args()
    print(json.dumps((drawing if arguments.drawing else measure)(arguments.repeats)))
