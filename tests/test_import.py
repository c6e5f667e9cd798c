"""`import ddpm_edu` is quick and light, and the package's modules import downwards only."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddpm_edu"

# Bottom to top: a file imports from its own room and from rooms before it.
ROOMS = [
    "errors",
    "lazy",
    "paths",
    "schedule",
    "diffusion",
    "samplers",
    "flow",
    "discrete",
    "consistency",
    "distribution_matching",
    "meanflow",
    "networks",
    "systems",
    "files",
    "datasets",
    "metrics",
    "training",
    "gpu",
    "show",
    "exercises",
    "classroom",
    "challenge",
    "cli",
]
UPWARDS = {("networks/clip.py", "files")}  # to be mended
# Used as oracles in tests or as rivals in benchmarks, never as parts.
FOREIGN = {
    "diffusers",
    "peft",
    "sklearn",
    "transformers",
    "tokenizers",
    "denoising_diffusion_pytorch",
}
PARTS = {
    "networks/text.py": {"transformers"},
    "networks/clip.py": {"transformers"},
    "networks/tokenizer.py": {"tokenizers"},
}  # the three places where some are parts


def test_import_is_quick_and_light():
    """In a fresh process, or the best of three. The 2 s are counted in processor seconds, which busy neighbours do not
    stretch much; what we add to torch's own import, nearly all of it, is counted by the clock."""
    for repeats in ("1", "3"):
        command = [sys.executable, "benchmarks/import_time.py", repeats]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["heavy_modules_loaded"] == []
        if result["cpu_seconds"] < 2 and result["seconds_beyond_torch"] < 0.3:
            return
    raise AssertionError(result)


def test_names_that_come_when_first_asked_for():
    import ddpm_edu

    assert callable(ddpm_edu.load) and ddpm_edu.networks.UNet.__name__ == "UNet"
    assert {"load", "save", "networks", "Schedule"} < set(dir(ddpm_edu))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ddpm_edu.nothing


def module_of(path):
    """The first name under ddpm_edu: ddpm_edu/exercises/nb00.py belongs to `exercises`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Absolute dotted names of everything a file imports, wherever in the file, `from ddpm_edu import x` as ddpm_edu.x."""
    package = ["ddpm_edu", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from (".".join([*base, alias.name]) for alias in node.names)


def inner(path):
    """The modules of ddpm_edu that a file imports, itself left out; a name of ddpm_edu/__init__.py counts as no module."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("ddpm_edu.")}
    return {
        name for name in names if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()
    } - {module_of(path)}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room, file = module_of(path), path.relative_to(PACKAGE).as_posix()
    assert room in ROOMS, f"{room} is no room of the package: put it into ROOMS here"
    for other in inner(path):
        assert ROOMS.index(other) <= ROOMS.index(room), f"{file} imports {other}"
    assert "ddpm_edu" not in imports(path), (
        "import the module that is needed, not the whole package"
    )
    outside = {name.split(".")[0] for name in imports(path)}
    assert not outside & (FOREIGN - PARTS.get(file, set()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_first_line_says_which_notebook_teaches_it(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert len(first) <= 120 and re.search(
        r"Notebooks? \d\d|[Ee]very notebook|All notebooks|notebooks", first
    ), first


def test_no_circles():
    """Not between rooms (their order forbids it) but between the files of a room."""
    for folder in {path.parent for path in FILES} - {PACKAGE}:
        graph = {}
        for path in folder.glob("*.py"):
            here = ".".join(["ddpm_edu", *folder.relative_to(PACKAGE).parts])
            names = {
                name.removeprefix(here + ".").split(".")[0]
                for name in imports(path)
                if name.startswith(here + ".")
            }
            graph[path.stem] = {name for name in names if (folder / f"{name}.py").exists()} - {
                path.stem
            }
        TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "ddpm_edu")
    (PACKAGE / "exercises").mkdir(parents=True)
    file = PACKAGE / "exercises" / "nb00.py"
    file.write_text(
        "import sklearn.x\nfrom ..show import plot\nfrom .check import Result\nfrom ddpm_edu import data\n"
        "def later():\n    from . import nb01\n    import ddpm_edu.training.train as t\n"
    )
    assert set(imports(file)) == {
        "sklearn.x",
        "ddpm_edu.show.plot",
        "ddpm_edu.exercises.check.Result",
        "ddpm_edu.data",
        "ddpm_edu.exercises.nb01",
        "ddpm_edu.training.train",
    }
