"""`import ddpm_edu` is quick and light, and the package's modules import downwards only."""
import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddpm_edu"

# Bottom to top; a module may import from lower layers and, without a circle, from its own.
LAYERS = [
    ["errors", "remember", "schedule", "paths"],
    ["diffusion", "solvers"],
    ["mlp", "unet", "unet_classic", "gaussian", "vae", "vq", "text"],
    ["recognise", "tensorfile", "int8"], ["layouts"],
    ["checkpoint"],
    ["memory", "config_json", "folder", "hub", "system", "system_file", "stable_diffusion"],
    ["guard", "words", "clip", "attention_maps"], ["pipeline"],
    ["fast"], ["float8"],
    ["muon", "ema", "train", "data", "metrics"], ["painted", "emoji", "vae_loss"], ["oracle"], ["recipes"],
    ["latents"], ["mini"], ["minis"],
    ["plot", "widgets", "check", "exercises", "cli"],
]
LAYER = {module: height for height, modules in enumerate(LAYERS) for module in modules}
# Used as oracles in tests or as rivals in benchmarks, never as parts.
FOREIGN = {"diffusers", "sklearn", "transformers", "tokenizers", "denoising_diffusion_pytorch"}
PARTS = {"text": {"transformers", "tokenizers"}, "clip": {"transformers", "tokenizers"}}  # the two places where some are parts


def test_import_is_quick_and_light():
    """Best of three in fresh processes. The 2 s are counted in processor seconds, which busy neighbours do not stretch
    much; what we add to torch's own import, nearly all of it, is counted by the clock."""
    lines = subprocess.run([sys.executable, "benchmarks/import_time.py"], cwd=ROOT, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    result = json.loads(lines[-1])
    assert result["cpu_seconds"] < 2 and result["seconds_beyond_torch"] < 0.3, result
    assert result["heavy_modules_loaded"] == []


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
            base = package[:len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from (".".join([*base, alias.name]) for alias in node.names)


def inner(path):
    """The modules of ddpm_edu that a file imports, itself left out; a name of ddpm_edu/__init__.py counts as no module."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("ddpm_edu.")}
    return {name for name in names if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()} - {module_of(path)}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    module = module_of(path)
    assert module in LAYER, f"{module} has no layer: put it into LAYERS here"
    for other in inner(path):
        assert LAYER[other] <= LAYER[module], f"{module} (layer {LAYER[module]}) imports {other} (layer {LAYER[other]})"
    assert "ddpm_edu" not in imports(path), "import the module that is needed, not the whole package"
    outside = {name.split(".")[0] for name in imports(path)}
    assert not outside & (FOREIGN - PARTS.get(module, set()))


def test_no_circles():
    graph = {}
    for path in FILES:
        graph.setdefault(module_of(path), set()).update(inner(path))
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "ddpm_edu")
    (PACKAGE / "exercises").mkdir(parents=True)
    file = PACKAGE / "exercises" / "nb00.py"
    file.write_text("import sklearn.x\nfrom .. import plot\nfrom ..check import Result\nfrom ddpm_edu import data\n"
                    "def later():\n    from . import nb01\n    import ddpm_edu.train as t\n")
    assert set(imports(file)) == {"sklearn.x", "ddpm_edu.plot", "ddpm_edu.check.Result", "ddpm_edu.data",
                                  "ddpm_edu.exercises.nb01", "ddpm_edu.train"}
