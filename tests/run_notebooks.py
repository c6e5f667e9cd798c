"""Run notebooks from top to bottom, without a browser: python tests/run_notebooks.py [00 03 ...] [--save] [--cells]

They run in a copy, so nothing in notebooks/ changes, and their kernels see an empty IPython profile.
A cell that fails, a cell tagged nbval-check-output that prints something else than what is stored, or a
notebook that takes more memory than a learner may be asked for: the exit status is 1. With --save the
new outputs take the place of the stored ones (book/harvest.py NN --save records films besides, in the
same run); --cells names the cells that took longest. Processor seconds count the kernel's own work, so
they tell more than the clock where other programs run. `make test` runs the same notebooks in a real
browser (tests/browser/test_notebooks_run.py), where there is one.
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
from typing import NamedTuple

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


class Cost(NamedTuple):
    """What a run took: seconds by the clock, peak MB, processor seconds of the kernel."""

    seconds: float
    mb: float
    processor: float


def processor_seconds(pid: int) -> float:
    """What process `pid` has used so far, with its children, the ended ones and those that run."""
    used = 0.0
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            used += times.user + times.system
            if one == process:
                used += times.children_user + times.children_system
    return used


def execute(notebook, folder: Path, before: str = "", after: str = "") -> Cost:
    """Run a notebook's cells in `folder`, in place. Raises CellExecutionError.

    The code `before` and `after` runs in the same kernel, leaves no trace and is not counted.
    """
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    cells, cell = notebook.cells, nbformat.v4.new_code_cell
    notebook.cells = [cell(before), *cells, cell(after)]
    with client.setup_kernel():
        pid = client.km.provisioner.pid
        client.execute_cell(notebook.cells[0], 0, store_history=False)
        started, first = time.perf_counter(), processor_seconds(pid)
        for index, cell in enumerate(cells, start=1):
            began = processor_seconds(pid)
            client.execute_cell(cell, index)
            if "execution" in cell.metadata:
                cell.metadata.execution["processor"] = processor_seconds(pid) - began
        seconds, used = time.perf_counter() - started, processor_seconds(pid) - first
        cost = Cost(seconds, peak_mb(pid), used)
        client.execute_cell(notebook.cells[-1], len(cells) + 1, store_history=False)
    notebook.cells = cells
    return cost


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


def line(name: str, seconds: float, mb: float, processor: float | None = None) -> str:
    """One notebook's cost, with a word where it misses the goals."""
    used = "" if processor is None else f"  ({processor:.1f} s of the processor)"
    slow = f"  (the goal is {GOAL_SECONDS} s)" if seconds > GOAL_SECONDS else ""
    big = f"  FAILED: the limit is {LIMIT_MB} MB" if mb > LIMIT_MB else ""
    return f"{seconds:8.1f} s {mb:7.0f} MB  {name}{used}{slow}{big}"


def longest(notebook, most: int = 8) -> list[str]:
    """A line for each of the cells that took longest: seconds by the clock, of the processor."""
    spent = []
    for index, cell in enumerate(notebook.cells):
        if times := cell.metadata.get("execution"):
            names = "iopub.execute_input", "shell.execute_reply"
            start, end = (datetime.fromisoformat(times[name]) for name in names)
            spent.append(((end - start).total_seconds(), times["processor"], index))
    spent.sort(key=lambda row: -max(row[:2]))
    first = lambda index: notebook.cells[index].source.replace("\n", " ")[:60]
    return [f"{s:8.1f} s  cell {k} ({cpu:.1f}): {first(k)}" for s, cpu, k in spent[:most]]


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


@contextlib.contextmanager
def copy_of(folder: Path):
    """A copy of the folder to run notebooks in, with an empty IPython profile."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["IPYTHONDIR"] = str(Path(scratch, "ipython"))
        os.environ.setdefault("GOMP_SPINCOUNT", "500")  # as `make lab` has it
        yield shutil.copytree(folder, Path(scratch, "notebooks"), dirs_exist_ok=True)


def main(wanted, folder: Path = ROOT / "notebooks", store=False, cells=False) -> int:
    """Run those that start with one of `wanted` (none: all); the exit status."""
    names = sorted(p for p in folder.glob("*.ipynb") if p.name.startswith(tuple(wanted or [""])))
    if not names:
        print(f"no notebook in {folder} starts with {' or '.join(wanted) or 'anything'}")
        return 2
    failed = 0
    with copy_of(folder) as copy:
        for path in names:
            stored, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
            try:
                cost = execute(notebook, copy)
            except CellExecutionError as error:
                failed += 1
                print(f"{path.name}: FAILED\n{error}")
                continue
            problems = [] if store else differences(stored.cells, notebook.cells)
            failed += bool(problems) or cost.mb > LIMIT_MB
            problems += longest(notebook) if cells else []
            print("\n".join([line(path.name, *cost), *problems]), flush=True)
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
