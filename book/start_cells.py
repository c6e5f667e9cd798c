"""Notebooks that start anywhere: links and a start cell for Colab, Kaggle and Binder.

python book/start_cells.py OWNER/NAME                 # prints both, for a course on GitHub
python book/start_cells.py OWNER/NAME --out colab     # writes notebooks that begin with the cell
"""

import argparse
import json
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
CELL = """\
!git clone -q --depth 1 {address} course && pip install -q anywidget
import sys; sys.path.insert(0, "course")"""
PLACES = {
    "Colab": "https://colab.research.google.com/github/{repo}/blob/main/notebooks/{name}",
    "Kaggle": "https://kaggle.com/kernels/welcome"
    "?src=https://github.com/{repo}/blob/main/notebooks/{name}",
    "Binder": "https://mybinder.org/v2/gh/{repo}/main?urlpath=lab/tree/notebooks/{name}",
}


def notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def links(repo: str) -> str:
    """A table in markdown: a row a notebook, a column a place to run it."""
    rows = [["", *PLACES], ["---"] * (1 + len(PLACES))]
    for path in notebooks():
        places = (f"[open]({link.format(repo=repo, name=path.name)})" for link in PLACES.values())
        rows.append([path.stem, *places])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def started(notebook: dict, address: str) -> dict:
    """The notebook with the start cell before its first code cell."""
    cells = notebook["cells"]
    at = next(i for i, cell in enumerate(cells) if cell["cell_type"] == "code")
    source = ("# Start: fetches the course\n" + CELL.format(address=address)).splitlines(True)
    start = dict(cell_type="code", execution_count=None, id="start", metadata={}, outputs=[])
    return notebook | {"cells": [*cells[:at], start | {"source": source}, *cells[at:]]}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("repo", metavar="OWNER/NAME", help="of the course on GitHub")
    p.add_argument("--out", type=Path, help="a new folder")
    args = p.parse_args()
    address = f"https://github.com/{args.repo}"
    if not args.out:
        print(links(args.repo), CELL.format(address=address), sep="\n\n")
        return
    if args.out.exists():
        p.error(f"{args.out} is there already; name a new folder")
    args.out.mkdir(parents=True)
    for path in notebooks():
        new = started(json.loads(path.read_text(encoding="utf-8")), address)
        text = json.dumps(new, indent=1, ensure_ascii=False)
        (args.out / path.name).write_text(text + "\n", encoding="utf-8")
    print(f"{args.out}: {len(notebooks())} notebooks")


if __name__ == "__main__":
    main()
