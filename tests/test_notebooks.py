"""What every notebook of the course must be, read from its file; running them is tests/run_notebooks.py's part."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from notebook_page import written

from ddpm_edu.cli import main
from ddpm_edu.exercises.check import Result, find

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("[0-9][0-9]_*.ipynb"))
pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem[:2])


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook, tag=None):
    return [
        c
        for c in notebook.cells
        if c.cell_type == "code" and (tag is None or tag in c.metadata.get("tags", []))
    ]


def text(notebook):
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def test_has_the_parts_every_notebook_has(path):
    notebook = read(path)
    first = notebook.cells[0].source
    assert first.startswith(f"# {path.stem[:2]}"), "the title begins with the notebook's number"
    header = text(notebook).split("\n## ")[0]  # the title, perhaps a picture, then the objectives
    for words in ("able to", "Know first", "Time and memory"):
        assert words.lower() in header.lower(), f"before the first section {words!r} is missing"
    for words in ("Common mistakes", "Summary", "References", "Glossary"):
        assert words.lower() in text(notebook).lower(), f"no part {words!r}"
    assert len(re.findall(r"[\u4e00-\u9fff]{2,}", text(notebook))) >= 5, (
        "key terms carry their Chinese names"
    )
    assert "arXiv" in text(notebook) or path.stem.startswith("00")


def test_is_saved_executed_and_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata, "metadata.widgets: GitHub may refuse to show it"
    assert notebook.metadata.kernelspec.name == "python3"
    counts = [c.execution_count for c in code(notebook) if c.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), f"not run once from top to bottom: {counts}"
    outputs = [o for c in code(notebook) for o in c.outputs]
    assert not [o.ename for o in outputs if o.output_type == "error"]
    assert not [o.text for o in outputs if o.get("name") == "stderr" and "Warning" in o.text]
    assert not re.findall(r"(?:/work|/root|/home|/tmp)/[\w./-]+", json.dumps(notebook)), (
        "paths of one machine"
    )
    assert not [o for o in outputs if any("widget-view" in kind for kind in o.get("data", {}))], (
        "JupyterLab would say: model not found"
    )
    assert path.stat().st_size < 2_500_000


def test_has_its_navigation_map_links_and_metadata(path):
    notebook = json.loads(path.read_text())
    assert written(notebook, path) == notebook, "run: python tests/notebook_page.py"
    links = re.findall(r"\]\((\d\d_\w+\.ipynb)[^)]*\)", text(read(path)))
    assert links and all((path.parent / link).exists() for link in links)


def test_pictures_have_alt_text(path):
    pages = "".join(
        "".join(o.get("data", {}).get("text/html", "")) for c in code(read(path)) for o in c.outputs
    )
    pictures = re.findall(r"<img\b[^>]*>", pages)
    assert len(pictures) >= 5
    assert not [p[:80] for p in pictures if not re.search(r'\balt="[^"]{12,}"', p)]


def test_cells_are_short_and_explained(path):
    notebook = read(path)
    exercises = {"exercise", "check", "solution", "setup"}
    lines = [
        c.source.count("\n") + 1
        for c in code(notebook)
        if not exercises & set(c.metadata.get("tags", []))
    ]
    assert max(lines) <= 25, f"longest code cell: {max(lines)} lines"
    assert sum(lines) / len(lines) <= 15
    folded = sum(c.source.startswith("# drawing") for c in code(notebook))
    assert sum(c.cell_type == "markdown" for c in notebook.cells) >= 0.7 * (len(lines) - folded)


def namespace(notebook):
    """What the notebook imports, and nothing else: exercises must stand on their own."""
    space = {}
    for cell in code(notebook):
        try:
            statements = ast.parse(cell.source).body
        except SyntaxError:  # a cell of IPython commands
            continue
        wanted = [s for s in statements if isinstance(s, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(wanted, []), "imports", "exec"), space)
    return space


def run(source, space):
    """Run a cell; the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), space)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), space) if last else None


def test_solutions_are_right_and_stubs_not_attempted(path):
    notebook = read(path)
    stubs, checks, solutions = (code(notebook, tag) for tag in ("exercise", "check", "solution"))
    assert 2 <= len(solutions) <= 5 and len(stubs) == len(checks) == len(solutions)
    names = [re.search(r'check\("(\d\d\.\d)"', c.source)[1] for c in checks]
    assert names == [f"{path.stem[:2]}.{k + 1}" for k in range(len(names))]
    for name, stub, check_cell, solution in zip(names, stubs, checks, solutions):
        assert find(name)
        assert f'check("{name}", solution)' in solution.source, (
            "a solution is called `solution`: running all cells must not overwrite the learner's own"
        )
        space = namespace(notebook)
        run(stub.source, space)
        result = run(check_cell.source, space)
        assert isinstance(result, Result) and result.status == "not attempted yet", (
            f"{name}, stub: {result}"
        )
        result = run(solution.source, namespace(notebook))
        assert isinstance(result, Result) and result.status == "right", (
            f"{name}, solution: {result}"
        )


def calls(tree, function):
    """The calls of a function of that name."""
    return [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and getattr(n.func, "id", None) == function
    ]


def test_student_version_runs_without_the_solutions(path, tmp_path):
    """The command drops just the solution cells, and nothing outside the exercises uses what they define
    but by `use("NN.K", name)`."""
    assert main(["student", str(path), "--out", str(tmp_path)]) == 0
    original, student = read(path), read(tmp_path / path.name)
    assert [c.source for c in student.cells] == [
        c.source for c in original.cells if "solution" not in c.metadata.get("tags", [])
    ]
    assert not any(c.outputs for c in code(student))
    own, used = set(), set()
    for cell in code(original):
        if {"exercise", "check", "solution"} & set(cell.metadata.get("tags", [])):
            own |= {n.name for n in ast.parse(cell.source).body if isinstance(n, ast.FunctionDef)}
        elif not cell.source.lstrip().startswith(("%", "!")):
            tree = ast.parse(cell.source)
            through_use = {id(n) for call in calls(tree, "use") for n in ast.walk(call)}
            used |= {
                n.id
                for n in ast.walk(tree)
                if isinstance(n, ast.Name)
                and isinstance(n.ctx, ast.Load)
                and id(n) not in through_use
            }
            own -= {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
            own -= {  # ddim_step = use("05.1", ddim_step)
                n.targets[0].id
                for n in tree.body
                if isinstance(n, ast.Assign) and n.value in calls(tree, "use")
            }
    assert not own & used, f"cells outside the exercises use {own & used}"
