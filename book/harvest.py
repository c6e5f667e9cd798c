"""What films, sliders and charts hold: python book/harvest.py [00 ...] [--save] [--out FOLDER]

Runs the notebooks (minutes each, in copies) and records, beside each stored still picture, the
frames of its film, the pictures of a slider at some of its positions, the numbers of a chart. The
book shows them without a kernel, and finds them by the pictures' alt texts: --save stores the same
run's outputs in the notebooks, as tests/run_notebooks.py does, so that these texts agree. One zip a
notebook: index.json and a film in AVIF each.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
POSITIONS, SECONDS, FRAMES = 40, 10, 48  # at most, of one widget
POINTS = 300  # of a film of points
FIRST = f"import sys; sys.path.insert(0, {str(BOOK)!r}); import harvest; harvest.watch()"
LAST = "harvest.write({!r})"

seen: list[tuple] = []  # (kind, alt, what), as the cells show them


def watch() -> None:
    """Note every figure and every widget that this kernel shows."""
    from ddpm_edu.show import plot
    from ddpm_edu.show.widgets.base import Widget

    drawn, shown = plot.figure, Widget._repr_mimebundle_

    def figure(fig, *, alt, caption):
        seen.append(("chart", alt, numbers(fig)))
        return drawn(fig, alt=alt, caption=caption)

    def bundle(self, **kwargs):
        seen.append(("widget", self.alt, self))
        return shown(self, **kwargs)

    plot.figure, Widget._repr_mimebundle_ = figure, bundle


def write(path: str) -> None:
    """Record what was seen, as a zip."""
    index, pictures = [], {}
    for kind, alt, what in seen:
        entry = {"rows": what} if kind == "chart" else recorded(what, pictures)
        if entry and entry.get("rows", True):
            index.append({"kind": "chart", "alt": alt} | entry)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("index.json", json.dumps(index, ensure_ascii=False))
        for name, data in pictures.items():
            archive.writestr(name, data, zipfile.ZIP_STORED)


# ---- charts


def numbers(fig, rows: int = 9) -> list[list[list[str]]]:
    """A table for each axes with curves or bars: the head, then at most `rows` rows."""
    return [table for ax in fig.axes if (table := curves(ax, rows) or bars(ax))]


def curves(ax, rows: int) -> list[list[str]]:
    lines = [line for line in ax.get_lines() if named(line) and len(line.get_xdata()) > 1]
    if not lines or len(lines) > 8:
        return []
    x = np.asarray(lines[0].get_xdata(), dtype=float)
    lines = [k for k in lines if np.array_equal(x, np.asarray(k.get_xdata(), dtype=float))]
    at = sorted({round(k) for k in np.linspace(0, len(x) - 1, rows)})
    head = [plain(ax.get_xlabel()) or "x", *(plain(line.get_label()) for line in lines)]
    columns = [x, *(np.asarray(line.get_ydata(), dtype=float) for line in lines)]
    head[0] += f" (of {plain(ax.get_title())})" if ax.get_title() else ""
    return [head, *([f"{column[k]:.4g}" for column in columns] for k in at)]


def bars(ax) -> list[list[str]]:
    groups = [c for c in ax.containers if hasattr(c, "patches") and 1 < len(c.patches) <= 24]
    if not groups or len({len(g.patches) for g in groups}) > 1:
        return []
    flat = getattr(groups[0], "orientation", "vertical") == "horizontal"
    ticks = ax.get_yticklabels() if flat else ax.get_xticklabels()
    names = [plain(t.get_text()) for t in ticks]
    if len(names) != len(groups[0].patches) or not all(names):
        return []
    length = lambda patch: patch.get_width() if flat else patch.get_height()
    axis = plain(ax.get_xlabel() if flat else ax.get_ylabel()) or "value"
    heads = [plain(g.get_label()) if named(g) else axis for g in groups]
    rows = ([n, *(f"{length(g.patches[i]):.4g}" for g in groups)] for i, n in enumerate(names))
    return [[plain(ax.get_title()), *heads], *rows]


def named(artist) -> bool:
    return bool(artist.get_label()) and not str(artist.get_label()).startswith("_")


def plain(text: str) -> str:
    return " ".join(str(text).split())


# ---- widgets


def recorded(widget, pictures: dict) -> dict | None:
    """What the page needs to show the widget without a kernel; its frames go to `pictures`."""
    from ddpm_edu.show.widgets import Film, PointFilm, SliderImage, SliderPicture

    name = f"{len(pictures)}.avif"
    if isinstance(widget, PointFilm):
        return points(widget)
    if isinstance(widget, Film):
        n, h, w, channels = widget.shape
        keep = spaced(n, FRAMES)
        frames = np.frombuffer(widget.frames, np.uint8).reshape(n, h, w, channels)[keep]
        pictures[name] = avif(frames)
        kept = {"index": nearest(keep, widget.index), "fps": widget.fps * len(keep) / n}
        captions = [widget.captions[k] for k in keep] if widget.captions else []
        traits = ("label", "caption", "loop", "autoplay", "scale")
        return {"kind": "film", "file": name, "captions": captions} | kept | copied(widget, traits)
    if isinstance(widget, (SliderPicture, SliderImage)):
        return panel(widget, pictures, name)
    return None


def copied(widget, traits) -> dict:
    return {trait: getattr(widget, trait) for trait in traits}


def spaced(n: int, most: int) -> list[int]:
    return sorted({round(k) for k in np.linspace(0, n - 1, min(n, most))})


def nearest(kept: list[int], index: int) -> int:
    return min(range(len(kept)), key=lambda k: abs(kept[k] - index))


def points(film) -> dict:
    """Places in 8 bits, some frames, some points."""
    panels, n, count = film.shape
    places = np.frombuffer(film.frames, "<u2").reshape(panels, n, count, 2)
    keep, some = spaced(n, FRAMES), spaced(count, POINTS)
    places = (places[:, keep][:, :, some] >> 8).astype(np.uint8)
    step = np.diff(places, axis=1, prepend=0).astype(
        np.uint8
    )  # modulo 256: small numbers pack better
    traits = ("label", "caption", "loop", "autoplay", "titles", "colors", "side")
    return {
        "kind": "points",
        "steps": base64.b64encode(step.tobytes()).decode(),
        "shape": list(places.shape[:3]),
        "groups": [film.groups[k] for k in some],
        "captions": [film.captions[k] for k in keep] if film.captions else [],
        "index": nearest(keep, film.index),
        "fps": film.fps * len(keep) / n,
        "trail": max(1, round(film.trail * len(keep) / n)),
        "trail_every": film.trail_every,
    } | copied(film, traits)


def panel(widget, pictures: dict, name: str) -> dict | None:
    """The picture at a grid of positions; None where a line of text decides or nothing moves."""
    specs = widget.controls
    if any(spec["kind"] == "text" for spec in specs):
        return None
    start, began = dict(widget.position), time.perf_counter()
    widget._redraw()
    room = min(POSITIONS, SECONDS / (time.perf_counter() - began))
    sizes = [len(options) for options in widget._options.values()]
    kept = [spaced_around(n, m, p) for n, m, p in zip(sizes, shares(sizes, room), start.values())]
    frames, alts, captions = [], [], []
    for position in itertools.product(*kept):
        widget.set_trait("position", dict(zip(start, position)))
        if widget.error:
            return None
        frames.append(shown(widget))
        alts.append(widget.alt)
        captions.append(widget.caption)
    widget.set_trait("position", start)
    if len(frames) < 2 or len({f.shape for f in frames}) > 1:
        return None
    pictures[name] = avif(np.stack(frames))
    cut = lambda spec, keep: (
        spec | ({"texts": [spec["texts"][k] for k in keep]} if "texts" in spec else {})
    )
    return {
        "kind": "panel",
        "file": name,
        "controls": [cut(spec, keep) for spec, keep in zip(specs, kept)],
        "position": {key: nearest(keep, start[key]) for key, keep in zip(start, kept)},
        "sizes": [len(keep) for keep in kept],
        "scale": widget.scale if widget.raw else 1,
        "looks": widget.kind,
        "alts": alts,
        "captions": captions,
    }


def shown(widget) -> np.ndarray:
    if widget.raw:
        h, w, channels = widget.shape
        return np.frombuffer(widget.image, np.uint8).reshape(h, w, channels)
    return np.asarray(Image.open(io.BytesIO(widget.image)).convert("RGB"))


def shares(sizes: list[int], room: float) -> list[int]:
    """How many positions of each control, so that all combinations are at most `room`."""
    wanted = [min(n, 24) for n in sizes]
    while np.prod(wanted) > room and max(wanted) > 1:
        wanted[wanted.index(max(wanted))] -= 1
    return wanted


def spaced_around(n: int, most: int, start: int) -> list[int]:
    """Positions from first to last, the start among them."""
    kept = spaced(n, most)
    kept[nearest(kept, start)] = start
    return kept


def avif(frames: np.ndarray, *, quality: int = 55) -> bytes:
    """uint8 (N, h, w[, channels]) as one film."""
    frames = [f[..., 0] if f.ndim == 3 and f.shape[-1] == 1 else f for f in frames]
    first, *rest = [Image.fromarray(np.ascontiguousarray(f)).convert("RGB") for f in frames]
    out, sharp = io.BytesIO(), "4:2:0" if frames[0].ndim == 2 else "4:4:4"
    options = dict(quality=quality, subsampling=sharp, speed=6, duration=100)
    first.save(out, "AVIF", save_all=True, append_images=rest, **options)
    return out.getvalue()


def main() -> int:
    import nbformat

    sys.path.insert(0, str(ROOT / "tests"))
    from run_notebooks import copy_of, execute, line, longest, save

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wanted", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--save", action="store_true", help="store the new outputs")
    parser.add_argument("--cells", action="store_true", help="name the cells that took longest")
    parser.add_argument("--out", type=Path, default=BOOK / "_alive", help="folder (book/_alive)")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    with copy_of(ROOT / "notebooks") as copy:
        for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            if not path.name.startswith(tuple(args.wanted or [""])):
                continue
            target = args.out.resolve() / f"{path.name[:2]}.zip"
            notebook = nbformat.read(path, as_version=4)
            cost = execute(notebook, copy, FIRST, LAST.format(str(target)))
            lines = [line(path.name, *cost), *(longest(notebook) if args.cells else [])]
            print("\n".join(lines), flush=True)
            print(f"{target.name}: {target.stat().st_size / 1024:.0f} KB", flush=True)
            if args.save:
                save(path, notebook)
    return 0


if __name__ == "__main__":
    sys.exit(main())
