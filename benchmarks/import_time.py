"""Seconds that `import ddpm_edu` takes in a fresh process, best of several, and what else it loads.

    python benchmarks/import_time.py [REPEATS]

The last line is one JSON object: wall seconds (best, and every run), processor seconds (they do not count the waiting
that other processes cause), the seconds that ddpm_edu adds to `import torch`, and the heavy modules loaded.
"""

import json
import platform
import subprocess
import sys

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


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:2]))))
