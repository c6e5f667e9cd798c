"""Recorded GPU runs: what benchmarks/gpu_sampling.py wrote, read and drawn. Notebooks 11, 12, 14.

    recorded.times("sdxl", "vae")     a table a machine: seconds, share of the roof, error
    recorded.ladder()                 one guided SDXL step, change by change, as bars
    recorded.profile()                where its milliseconds go, kernel by kernel

Each is a `Report`, shown when it ends a cell. What was not recorded, or failed, it says.
"""

import html
import json
from pathlib import Path

from . import plot

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RIVALS = ("diffusers", "diffusers_regional", "diffusers_compiled")
ROWS = {  # what a full run has, in the order of the tables
    "sdxl": ("plain", "graphed_only", "fast", *RIVALS),
    "sd15": ("plain", "fast", "diffusers", "diffusers_compiled"),
    "vae": ("plain", "fast", "diffusers", "diffusers_compiled"),
    "throughput": ("bf16_4", "fp8_4"),
}
NOTHING = (
    "NO GPU RUN IS RECORDED YET, so no time on a GPU is claimed here.\n"
    "On a machine with an NVIDIA GPU this records one (then run this notebook again):\n"
    "    python benchmarks/gpu_sampling.py"
)


def records(folder=RESULTS) -> list[dict]:
    """[{device, torch, results: {task/row: {...}}, ...}] of the runs on a GPU, not of tiny ones."""
    files = sorted(Path(folder).glob("gpu_sampling_*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return [file for file in found if not file["tiny"]]


class Report:
    """Pictures and tables, one under the other."""

    def __init__(self, parts: list):
        self.parts = parts or [Text(NOTHING)]

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundles = [part._repr_mimebundle_() for part in self.parts]
        return {kind: "\n".join(b[kind] for b in bundles) for kind in ("text/html", "text/plain")}

    def __str__(self):
        return self._repr_mimebundle_()["text/plain"]


class Text:
    def __init__(self, text: str):
        self.text = text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/html": f"<pre>{html.escape(self.text)}</pre>", "text/plain": self.text}


# ---------------------------------------------------------------- the three reports


def times(*tasks: str, folder=RESULTS) -> Report:
    """A table for each machine: the rows of "sdxl", "sd15", "vae", "throughput"."""
    head = ["", "time", "pictures a second", "of the roof", "error"]
    return Report(
        [plot.Table(head, _lines(record, tasks), source(record)) for record in records(folder)]
    )


def _lines(record, tasks):
    there = lambda task: [k.split("/")[1] for k in record["results"] if k.startswith(task + "/")]
    keys = [f"{task}/{row}" for task in tasks for row in dict.fromkeys([*ROWS[task], *there(task)])]
    return [_line(record, key) for key in keys]


def _line(record: dict, key: str) -> list[str]:
    row = record["results"].get(key)
    if row is None:
        return [key, "not recorded", "", "", ""]
    if "failed" in row:
        return [key, "failed: " + row["failed"][:60], "", "", ""]
    share, error = roof_share(record, row), row.get("off")
    return [
        key,
        duration(row["seconds"]),
        f"{row['images_per_s']:.2f}" if "images_per_s" in row else "",
        f"{share:.0%}" if share else "",
        "" if error is None else f"{error:.1e}",
    ]


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.1f} ms"


def roof_share(record: dict, row: dict) -> float | None:
    """The row's operations a second as a share of what a large bf16 product reaches there."""
    roof = record["results"].get("roof/matmul", {}).get("tflops")
    return row["tflop"] / row["seconds"] / roof if roof and "tflop" in row else None


def source(record: dict) -> str:
    """The machine, the versions and the days, for a caption."""
    rows = record["results"].values()
    days = sorted({row["date"] for row in rows if "date" in row})
    rival = sorted({row["diffusers"] for row in rows if row.get("diffusers")})
    parts = [f"Recorded on {record['device']}", f"PyTorch {record['torch']}"]
    parts += [f"diffusers {' and '.join(rival)}"] if rival else []
    parts += [f"{record['weights']} weights", " to ".join(dict.fromkeys(days[:1] + days[-1:]))]
    return ", ".join(part for part in parts if part) + "."


def rungs(record: dict) -> list[tuple[str, float, float | None]]:
    """[(change, ms a guided SDXL step, share of the roof or None)], from float32 to all changes."""
    rows = [
        (row["rung"], key.removeprefix("ladder/"), row)
        for key, row in record["results"].items()
        if key.startswith("ladder/") and "failed" not in row
    ]
    return [(name, 1e3 * row["seconds"], roof_share(record, row)) for _, name, row in sorted(rows)]


def ladder(folder=RESULTS) -> Report:
    """Bars for each machine: one guided SDXL step, each bar with the changes above it kept."""
    return Report([_bars(record, rungs(record)) for record in records(folder) if rungs(record)])


def _bars(record, steps):
    fig, ax = plot.axes(8, 0.6 + 0.36 * len(steps))
    ax.barh([name for name, *_ in steps], [ms for _, ms, _ in steps], color=plot.OKABE_ITO["blue"])
    for i, (_, ms, share) in enumerate(steps):
        text = f" {ms:.1f} ms" + (f", {share:.0%} of the roof" if share else "")
        ax.text(ms, i, text, va="center", fontsize=9)
    roof = record["results"].get("roof/matmul", {}).get("tflops")
    flop = next((r["tflop"] for k, r in record["results"].items()
                 if k.startswith("ladder/") and "tflop" in r), None)  # fmt: skip
    if roof and flop:
        ax.axvline(1e3 * flop / roof, color="black", linestyle="--", linewidth=1)
    longest = max(ms for _, ms, _ in steps)
    ax.set(xlim=(0, 1.35 * longest), xlabel="ms a guided SDXL step; dashed: arithmetic alone")
    ax.invert_yaxis()
    alt = "Bars from top to bottom: " + ", ".join(f"{name} {ms:.0f} ms" for name, ms, _ in steps)
    caption = source(record) + (
        " Each bar keeps the changes above it. GroupNorm, called by itself, gives its result back"
        " in the other memory order, so channels_last can gain little before compiled."
    )
    return plot.figure(fig, alt=alt + ".", caption=caption)


def profile(what: str = "step", most: int = 12, folder=RESULTS) -> Report:
    """A table for each machine: the kernels of the fast "step" or "vae" that take most time."""
    tables = []
    for record in records(folder):
        row = record["results"].get(f"profile/{what}", {"failed": "not recorded"})
        if "failed" in row:
            tables.append(Text(f"profile/{what}: {row['failed']}. {source(record)}"))
            continue
        lines = [
            [name[:60], f"{ms:.2f}", f"{ms / row['total_ms']:.0%}", f"{runs:.0f}"]
            for name, ms, runs in row["kernels"][:most]
        ]
        caption = f"{row['total_ms']:.1f} ms in all kernels. {source(record)}"
        tables.append(plot.Table(["kernel", "ms", "share", "runs"], lines, caption))
    return Report(tables)
