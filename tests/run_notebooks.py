"""Run notebooks from top to bottom, without a browser: python tests/run_notebooks.py [00 03 ...] [--save] [--cells]

They run in a copy, so nothing in notebooks/ changes, and their kernels see an empty IPython profile.
A cell that fails, a cell tagged nbval-check-output that prints something else than what is stored, or a
notebook that takes more memory than a learner may be asked for: the exit status is 1. With --save the
new outputs take the place of the stored ones; --cells names the cells that took longest. `make test` runs the same notebooks in a real browser
(tests/browser/test_notebooks_run.py), where there is one.
"""

import argparse
import base64
import contextlib
import io
import math
import os
import re
import shutil
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import nbformat
import numpy as np
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from notebook_page import METADATA
from PIL import Image

from ddpm_edu.show.widgets import freeze

ROOT = Path(__file__).resolve().parent.parent
GOAL_SECONDS = 90  # on two cores; only marked when missed, as machines differ
LIMIT_MB = 3 * 1024  # enforced
CELL_SECONDS = 300
SMALL, LARGE = 2_000, 20_000  # bytes of a stored picture
FEW = 256  # colours of a figure
ALIKE = 45.0  # dB of peak signal to noise: 1.4 of 255 off


def peak_mb(pid: int) -> float:
    """The most memory process `pid` has held so far; where the system keeps no peak, what it holds now."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return next(int(s.split()[1]) / 1024 for s in status.splitlines() if s.startswith("VmHWM:"))
    except OSError:
        memory = psutil.Process(pid).memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 2**20


def execute(notebook, folder: Path) -> tuple[float, float]:
    """Run a notebook's cells in `folder`, in place; (seconds, peak MB). Raises CellExecutionError."""
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    started = time.perf_counter()
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        return time.perf_counter() - started, peak_mb(client.km.provisioner.pid)


def printed(cell) -> str:
    """What a code cell printed and returned, as text."""
    parts = []
    for output in cell["outputs"]:
        text = output["text"] if output["output_type"] == "stream" else ""
        if output["output_type"] == "stream" and output["name"] != "stdout":
            continue  # progress bars and warnings
        text = text or output.get("data", {}).get("text/plain", "")
        parts.append("".join(text))
    return "".join(parts).strip()


def differences(stored: list, ran: list) -> list[str]:
    """The cells tagged nbval-check-output that print something else than what is stored, in words."""
    found = []
    for index, (before, now) in enumerate(zip(stored, ran, strict=True)):
        if "nbval-check-output" in before["metadata"].get("tags", []):
            if printed(before) != printed(now):
                found.append(
                    f"cell {index} prints\n{printed(now)}\nand the notebook says\n{printed(before)}"
                )
    return found


def line(name: str, seconds: float, mb: float) -> str:
    """One notebook's cost, with a word where it misses the goals."""
    slow = f"  (the goal is {GOAL_SECONDS} s)" if seconds > GOAL_SECONDS else ""
    big = f"  FAILED: the limit is {LIMIT_MB} MB" if mb > LIMIT_MB else ""
    return f"{seconds:8.1f} s {mb:7.0f} MB  {name}{slow}{big}"


def longest(notebook, most: int = 8) -> list[str]:
    """A line for each of the cells that took longest."""
    spent = []
    for index, cell in enumerate(notebook.cells):
        if times := cell.metadata.get("execution"):
            names = "iopub.execute_input", "shell.execute_reply"
            start, end = (datetime.fromisoformat(times[name]) for name in names)
            spent.append(((end - start).total_seconds(), index))
    first = lambda index: notebook.cells[index].source.replace("\n", " ")[:60]
    return [f"{s:8.1f} s  cell {k}: {first(k)}" for s, k in sorted(spent, reverse=True)[:most]]


def save(path: Path, notebook) -> None:
    """Store the outputs, without what JupyterLab and GitHub would stumble over."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.update(nbformat.from_dict(METADATA))
    freeze(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = WEBP.sub(lighter, data["text/html"])
    nbformat.write(notebook, path)


WEBP = re.compile(r"data:image/webp;base64,([A-Za-z0-9+/=]+)")


def lighter(match: re.Match) -> str:
    """A stored picture in the smallest of these forms; the eye sees no difference between them.

    As it is; in fewer colours, for figures of few (ALIKE); for large ones as AVIF.
    """
    raw = base64.b64decode(match[1])
    picture = Image.open(io.BytesIO(raw))
    if getattr(picture, "n_frames", 1) > 1:
        return match[0]
    kind, small = "webp", fewer_colours(picture.convert("RGB"), raw)
    if len(small) > LARGE:
        out = io.BytesIO()
        picture.convert("RGB").save(out, "AVIF", quality=70, subsampling="4:4:4", speed=7)
        if len(out.getvalue()) < 0.9 * len(small):
            kind, small = "avif", out.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(small).decode()}"


def fewer_colours(picture: Image.Image, raw: bytes) -> bytes:
    """The WebP file `raw` of a picture, or that of its likeness in 32, 64 or 128 colours.

    A likeness differs from it by a peak signal-to-noise ratio of at least ALIKE.
    """
    pixels = np.asarray(picture, np.float32)
    if len(raw) < SMALL or not picture.getcolors(FEW):
        return raw
    for colours in (32, 64, 128):
        few = picture.quantize(colours, Image.Quantize.MEDIANCUT, dither=0).convert("RGB")
        mse = np.square(np.asarray(few, np.float32) - pixels).mean()
        if 10 * math.log10(255**2 / max(mse, 1e-9)) < ALIKE:
            continue
        out = io.BytesIO()
        few.save(out, "WEBP", lossless=True, quality=100, method=6)
        return min(raw, out.getvalue(), key=len)
    return raw


def main(wanted, folder: Path = ROOT / "notebooks", store=False, cells=False) -> int:
    """Run those that start with one of `wanted` (none: all); the exit status."""
    names = sorted(p for p in folder.glob("*.ipynb") if p.name.startswith(tuple(wanted or [""])))
    if not names:
        print(f"no notebook in {folder} starts with {' or '.join(wanted) or 'anything'}")
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["IPYTHONDIR"] = str(Path(scratch, "ipython"))
        os.environ.setdefault("GOMP_SPINCOUNT", "500")  # as `make lab` has it
        copy = shutil.copytree(folder, Path(scratch, "notebooks"), dirs_exist_ok=True)
        for path in names:
            stored, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
            try:
                seconds, mb = execute(notebook, copy)
            except CellExecutionError as error:
                failed += 1
                print(f"{path.name}: FAILED\n{error}")
                continue
            problems = [] if store else differences(stored.cells, notebook.cells)
            failed += bool(problems) or mb > LIMIT_MB
            problems += longest(notebook) if cells else []
            print("\n".join([line(path.name, seconds, mb), *problems]), flush=True)
            if store:
                save(path, notebook)
    return int(failed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wanted", nargs="*", help="beginnings of names, such as 03; none: all")
    parser.add_argument("--save", action="store_true", help="store the new outputs")
    parser.add_argument("--cells", action="store_true", help="name the cells that took longest")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(options.wanted, store=options.save, cells=options.cells))
