"""What a reader sees of each notebook's page. The navigation line and the folded cells: tests/notebook_page.py."""

import re

import nbformat
import pytest
from notebook_page import all_notebooks

from ddpm_edu.exercises.check import find

NOTEBOOKS = all_notebooks()
EXERCISES = {"exercise", "check", "solution"}


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell) -> set:
    return set(cell.metadata.get("tags", []))


def code(notebook) -> list:
    return [c for c in notebook.cells if c.cell_type == "code"]


def folded(cell) -> bool:
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def pictures(cell) -> int:
    pages = (o.get("data", {}).get("text/html", "") for o in cell.get("outputs", []))
    return sum("".join(page).count("<img") for page in pages)


def hero(notebook) -> list[str]:
    """A picture under the title, before the objectives and before any code that is not folded."""
    cells = notebook.cells
    goals = next(i for i, c in enumerate(cells) if "able to" in c.source)
    first = next((i for i, c in enumerate(cells) if c.cell_type == "code" and pictures(c)), 10**6)
    if first > goals:
        return ["the objectives come before the first picture"]
    return [
        f"code before the picture is not folded: {c.source[:60]!r}"
        for c in cells[: first + 1]
        if c.cell_type == "code" and not folded(c) and c.source.count("\n") > 4
    ]


def setup(notebook) -> list[str]:
    """The first code cell is the folded Setup; all imports stand there or in a section's Setup."""
    first, *rest = code(notebook)
    imports = [
        c.source[:60]
        for c in rest
        if re.search(r"^(import|from) ", c.source, re.M) and not tags(c) & {*EXERCISES, "setup"}
    ]
    setups = [first, *(c for c in rest if "setup" in tags(c))]
    open_ones = [c for c in setups if not (c.source.startswith("# Setup") and folded(c))]
    return [*imports, *(f"no folded Setup: {c.source[:60]}" for c in open_ones)]


def columns(notebook) -> list[str]:
    """Lines of code of at most 100 columns."""
    lines = [line for c in code(notebook) for line in c.source.split("\n")]
    return [line[:70] for line in lines if len(line) > 100]


def cells(notebook) -> list[str]:
    """Cells that teach have at most 20 lines (15 is the aim)."""
    return [
        f"{c.source.count(chr(10)) + 1} lines: {c.source[:60]!r}"
        for c in code(notebook)
        if c.source.count("\n") >= 20 and not folded(c) and not tags(c) & EXERCISES
    ]


def predictions(notebook) -> list[str]:
    """A question to the reader ("Predict first") hides its answer: show.widgets.predict."""
    return [
        c.source[c.source.index("Predict first") :][:70]
        for c in notebook.cells
        if c.cell_type == "markdown" and "Predict first" in c.source
    ]


def used_exercises(notebook) -> list[str]:
    """What the learner writes is used afterwards, by use("NN.K", f), where there is a reference."""
    source = "\n".join(c.source for c in code(notebook))
    asked = {n for n in re.findall(r'check\("(\d\d\.\d)"', source) if find(n).reference}
    return sorted(asked - set(re.findall(r'use\("(\d\d\.\d)"', source)))


ASCII = r"alpha_bar|beta_t|x_\{?t|x_0|x0_hat|sqrt\(|\beps\b|\bsigma\b"
LABEL = r"(?:[xy]label|title|ylabels?|column_labels|row_labels|labels)\s*=\s*\[?\s*f?r?(\"[^\"]*\"|'[^']*')"


def formulas(notebook) -> list[str]:
    """Labels of axes and titles set their formulas: r"$\\bar\\alpha_t$", not "alpha_bar_t"."""
    labels = [m for c in code(notebook) for m in re.findall(LABEL, c.source)]
    return [label for label in labels if "$" not in label and re.search(ASCII, label)]


RULES = (hero, setup, columns, cells, predictions, used_exercises, formulas)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_page(path, rule):
    found = rule(read(path))
    assert not found, f"{rule.__doc__}\n" + "\n".join(found[:20])
