"""Recorded runs: what a benchmark wrote, read and drawn. Notebooks 04, 09 to 17.

    recorded.times("sdxl", "vae")     a table a machine: seconds, share of the roof, error
    recorded.ladder()                 one guided SDXL step, change by change, as bars
    recorded.profile()                where its milliseconds go, kernel by kernel
    recorded.from_nothing()           a whole Stable Diffusion trained in minutes, part by part

The first three are of benchmarks/gpu_sampling.py, the last of stable_diffusion_from_nothing.py.
Each is a `Report`, shown when it ends a cell. What was not recorded, or failed, it says.
Trainings of minutes are data (training_runs.py): run("plain").losses, .pictures, .scores();
linear_start.py's system, whose VAE starts linear: linear_start().card, .right, .pictures;
sdxl_craft.py's models, with and without a part of SDXL's training: craft("pairs").card, .pictures;
beyond.py's models and mistakes: beside("few_ways").card["figures"], .losses, .pictures;
sudden_convergence.py's ControlNets: control("zeros").scores("f1"), .hints, .pictures;
zibs.py's ways to teach a new thing: taught().ways["rank-4"], .sheet("rank-4"), .singular.
"""

import html
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..paths import data_folder
from . import plot

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
FIVE_MINUTES = data_folder() / "recorded" / "five_minutes.npz"
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


# ---------------------------------------------------------------- on a GPU


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


# ---------------------------------------------------------------- from nothing

PARTS = {"vae": "VAE", "clip": "CLIP", "unet": "UNet", "decoder": "decoder"}
NO_RUN = (
    "NO FIVE-MINUTE RUN IS RECORDED YET, so nothing is claimed of it here.\n"
    "This records one, on a machine that does little else (then run this notebook again):\n"
    "    python benchmarks/stable_diffusion_from_nothing.py --seconds 300 "
    "--save data/recorded/five_minutes.npz"
)


def loss_curves(curves: dict, updates: dict, *, caption: str) -> plot.Picture:
    """The losses of a whole system, {part: losses}, side by side; updates: {part: how many}."""
    fig, axes = plot.axes(8.2, 2.6, columns=len(curves))
    for ax, (part, curve) in zip(axes, curves.items()):
        at = np.linspace(0, updates[part], len(curve) + 1)[1:]
        ax.plot(at, curve, color=plot.OKABE_ITO["blue"], linewidth=1.4)
        ax.set(title=PARTS[part], xlabel="update", yscale="log")
        ax.locator_params(axis="x", nbins=3)  # four panels have no room for more numbers
    axes[0].set(ylabel="loss")
    names = ", ".join(PARTS[part] for part in curves)
    return plot.figure(fig, alt=f"Loss curves of {names}.", caption=caption)


def from_nothing(file=FIVE_MINUTES) -> Report:
    """Pictures on the way, losses, and how often the end obeys; or how to record a run."""
    if not Path(file).exists():
        return Report([Text(NO_RUN)])
    with np.load(file) as run:
        result = json.loads(str(run["result"]))
        sheet, at = run["sheet"], [str(x).split() for x in run["sheet_at"]]
        texts = [str(text) for text in run["sheet_prompts"]]
        curves = {part: run[f"loss_{part}"] for part in PARTS if f"loss_{part}" in run}
    clock = result["seconds"] is not None  # else by updates, and wall time says nothing
    when = lambda seconds: f", {seconds} s" if clock else ""
    rows = [(f"{int(u):,} updates" if u.isdigit() else "the end") + when(s) for u, s in at]
    where = f"{result['command']}, {result['date']}, {result['machine']}, torch {result['torch']}"
    pictures = plot.image_grid(
        np.moveaxis(sheet.reshape(-1, *sheet.shape[2:]), -1, 1) / 127.5 - 1,
        columns=8,
        row_labels=rows,
        alt="Rows of eight pictures from the same noise, after more and more updates of the UNet.",
        caption=f"Recorded by {where}. Rows: updates of the UNet. Prompts: {'; '.join(texts)}.",
    )
    losses = loss_curves(
        curves,
        result["updates"],
        caption=f"Losses of the same run. On pictures that are new to it the VAE's copies have "
        f"{result['vae_psnr']:.1f} dB, and {result['vae_read']:.0%} of them are read right.",
    )
    took = f"{result['wall']:.0f} s" if clock else f"{result['cpu']:.0f} CPU seconds"
    machine = " One core was busy otherwise." if result["busy"] else ""
    facts = ("digit", "ink", "ground", "main", "all")
    obeyed = [
        {"500 prompts": name, **{fact: result[part][fact] for fact in facts}}
        for name, part in (("seen", "seen"), ("held out", "held_out"))
    ]
    table = plot.table(
        obeyed,
        formats=dict.fromkeys(facts, ".1%"),
        caption=f"Obedience at the end, after {took}.{machine} "
        'The column "main": digit, ink and ground.',
    )
    return Report([pictures, losses, table])


# ---------------------------------------------------------------- trainings


def _by_its_card(self) -> str:
    """Where it comes from, for a caption."""
    card = self.card
    return f"`{card['command']}`, {card['device']}, {card['date']}, {card['versions']}"


class Run(NamedTuple):
    """One recorded training."""

    card: dict  # command, device, date, versions, train, guidance, evaluations, snapshots
    losses: np.ndarray  # means of card["every"] updates each
    pictures: dict  # "ema", perhaps "raw" and "misread" -> (snapshots, N, C, H, W) in [-1, 1]

    @property
    def updates(self) -> list[int]:
        return [shot["updates"] for shot in self.card["snapshots"]]

    @property
    def minutes(self) -> list[float]:
        """Of processor time, drawing not counted."""
        return [shot["seconds"] / 60 for shot in self.card["snapshots"]]

    def scores(self, kind: str = "ema") -> list[tuple[float, float]]:
        """(share classified right, Frechet distance) at each snapshot."""
        return [(shot[kind]["right"], shot[kind]["frechet"]) for shot in self.card["snapshots"]]

    source = _by_its_card


def run(name: str, folder=None) -> Run:
    """The run data/recorded/NAME.npz. DataError where it is not there."""
    card, arrays = _recorded(name, f"training_runs.py {name}", folder)
    losses = arrays.pop("losses")
    return Run(card, losses, _pictures(dict(sorted(arrays.items()))))


class Beside(NamedTuple):
    """A training with a mistake, or in another way, beside the model that ships."""

    card: dict  # command, device, date, versions, seconds, train, figures
    losses: np.ndarray
    pictures: dict  # {who drew them: (N, 3, H, W) in [-1, 1]}


def beside(name: str, folder=None) -> Beside:
    """data/recorded/NAME.npz of benchmarks/beyond.py. DataError where it is not there."""
    script = "beyond.py few" if name == "few_steps" else f"beyond.py broken --run {name}"
    card, arrays = _recorded(name, script, folder)
    losses = arrays.pop("losses", np.zeros(0, np.float32))
    return Beside(card, losses, _pictures(arrays))


def _recorded(name: str, script: str, folder=None) -> tuple[dict, dict]:
    """(card, {name: array}) of data/recorded/NAME.npz. DataError where it is not there."""
    path = Path(folder or data_folder() / "recorded") / f"{name}.npz"
    if not path.exists():
        raise DataError(f"{path} is not there: record it with `python benchmarks/{script}`")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    return json.loads(str(arrays.pop("card"))), arrays


def _pictures(arrays: dict) -> dict:
    """Bytes to [-1, 1]."""
    return {key: array / np.float32(127.5) - 1 for key, array in arrays.items()}


# ---------------------------------------------------------------- a ControlNet


class Control(NamedTuple):
    """A ControlNet's first updates, as benchmarks/sudden_convergence.py drew them."""

    card: dict  # command, device, date, versions, settings, loss of every update, texts, kept
    shots: list[dict]  # after some updates: update, loss, colours, f1, f1_alone (without a text)
    hints: np.ndarray  # (4, 1, H, W) in [-1, 1]
    # (kept, 8, 3, H, W) in [-1, 1]: after so many updates, of the hints with a text, then without
    pictures: np.ndarray

    def scores(self, name: str) -> tuple[list, list]:
        """(updates, the figure after each)."""
        return [shot["update"] for shot in self.shots], [shot[name] for shot in self.shots]


def control(name: str, folder=None) -> Control:
    """The run control_NAME.npz: "zeros", "random", "shuffled". DataError if it is not there."""
    card, arrays = _recorded(f"control_{name}", f"sudden_convergence.py {name}", folder)
    return Control(card, card["shots"], **_pictures(arrays))


# ---------------------------------------------------------------- a VAE that starts linear


class LinearStart(NamedTuple):
    """Pictures of a system whose VAE starts linear, as benchmarks/linear_start.py read them.

    Three kinds: "copies" of new pictures, "noisy" copies, "drawn" prompts.
    """

    card: dict  # command, device, date, versions, vae: its config, noise: that of the latents
    right: dict  # {kind: (N, 5) bool}: digit, ink, ground, size, place as the caption says
    pictures: dict  # {kind: (8, 3, H, W) in [-1, 1]}, the first ones

    def main(self, kind: str) -> float:
        """The share whose digit, ink and ground are right."""
        return float(self.right[kind][:, :3].all(1).mean())


def linear_start(folder=None) -> LinearStart:
    """data/recorded/linear_start.npz. DataError where it is not there."""
    card, arrays = _recorded("linear_start", "linear_start.py", folder)
    right = {key.removesuffix("_right"): arrays.pop(key) for key in list(arrays) if "_" in key}
    return LinearStart(card, right, _pictures(arrays))


# ---------------------------------------------------------------- pairs of trainings


class Craft(NamedTuple):
    """Models trained alike but for one thing, as benchmarks/sdxl_craft.py measured them."""

    card: dict  # command, device, date, versions, updates, and {model: what was measured}
    pictures: dict  # {model: (8, 3, H, W) in [-1, 1]}

    def source(self) -> str:
        """Where it comes from, for a caption."""
        card = self.card
        return f"{card['command']}, {card['device']}, {card['date']}, {card['versions']}"


def craft(what: str, folder=None) -> Craft:
    """data/recorded/sdxl_WHAT.npz, of "pairs" or "nights". DataError where it is not there."""
    card, arrays = _recorded(f"sdxl_{what}", f"sdxl_craft.py {what}", folder)
    return Craft(card, _pictures(arrays))


# ---------------------------------------------------------------- flow matching and DiT


class Flow(NamedTuple):
    """One measurement of benchmarks/flow.py."""

    card: dict  # command, device, date, versions, n pictures judged, settings, rows: the figures
    arrays: dict  # losses (numbers of their own), "paths, ..." and "one step, ..." of points
    pictures: dict  # {name: (4 or 8, 3, H, W) in [-1, 1]}

    source = _by_its_card


def flow(what: str, folder=None) -> Flow:
    """data/recorded/flow_WHAT.npz, of parameters, dit, reflow, shift, broken. DataError if missing.

    Losses are means of equal stretches of the run.
    """
    card, arrays = _recorded(f"flow_{what}", f"flow.py {what}", folder)
    of = lambda pictures: {k: v for k, v in arrays.items() if k.startswith("pictures") == pictures}
    named = {k.removeprefix("pictures, "): v for k, v in of(True).items()}
    return Flow(card, of(False), _pictures(named))


# ---------------------------------------------------------------- a new thing, taught


class Taught(NamedTuple):
    """Ways to teach the emoji model a creature, as benchmarks/zibs.py trained and measured them."""

    card: dict  # command, device, date, versions; scales, and the prompts of the sheets
    ways: dict  # {way: {train, cpu_seconds, parameters, losses, curves, figures}}
    singular: np.ndarray  # (layers, 33) of full fine-tuning: 32 values, the sum of all squares
    sheets: dict  # {name: bytes of a WebP of 64 x 64 pictures, six in a row}

    def pictures(self, name: str) -> np.ndarray:
        """(N, 3, 64, 64) in [-1, 1]. DataError for a sheet that was not recorded."""
        from PIL import Image

        if name not in self.sheets:
            raise DataError(f"no sheet {name!r} was recorded: there are {', '.join(self.sheets)}")
        image = Image.open(io.BytesIO(self.sheets[name]), formats=["WEBP"]).convert("RGB")
        sheet, side = np.asarray(image), 65  # a picture and the gap after it
        rows, columns = (-(-n // side) for n in sheet.shape[:2])
        corners = [(side * r, side * c) for r in range(rows) for c in range(columns)]
        parts = np.stack([sheet[y : y + 64, x : x + 64] for y, x in corners])
        return parts.transpose(0, 3, 1, 2) / np.float32(127.5) - 1

    source = _by_its_card


def taught(folder=None) -> Taught:
    """data/recorded/zibs.npz and zibs_scale.npz. DataError where one is not there."""
    card, arrays = _recorded("zibs", "zibs.py record --out FOLDER", folder)
    more, sheets = _recorded("zibs_scale", "zibs.py slider --out FOLDER", folder)
    singular = arrays.pop("singular")
    bytes_of = {k.removeprefix("sheet_"): v.tobytes() for k, v in (arrays | sheets).items()}
    return Taught(more | card, card["ways"], singular, bytes_of)
