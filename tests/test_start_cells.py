"""Colab, Kaggle, Binder and dev containers: what can be run without them."""

import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from notebook_page import all_notebooks
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
import start_cells  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BINDER = yaml.safe_load((ROOT / ".binder/environment.yml").read_text(encoding="utf-8"))
CONTAINER = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))


# ---- the start cell


@pytest.fixture
def course(tmp_path):
    """The address of a repository that holds a package ddpm_edu and nothing else."""
    package = tmp_path / "origin/ddpm_edu/__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("FETCHED = True")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "all")):
        subprocess.run(["git", *words], cwd=tmp_path / "origin", check=True)
    return (tmp_path / "origin").as_uri()


def test_the_start_cell_fetches_the_course(course, tmp_path):
    """Run by IPython in an empty folder; what is imported afterwards is what was fetched."""
    (tmp_path / "there").mkdir()
    cell = start_cells.CELL.format(address=course) + "\nimport ddpm_edu; print(ddpm_edu.FETCHED)"
    (tmp_path / "cell.ipy").write_text(cell)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"PATH": path, "PIP_NO_INDEX": "1", "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", str(tmp_path / "cell.ipy")],
        cwd=tmp_path / "there",
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True"], done.stdout + done.stderr


def test_the_guide_shows_the_same_cell():
    assert start_cells.CELL.format(address="ADDRESS") in (ROOT / "book/install.md").read_text()


def test_notebooks_with_a_start_cell(tmp_path, monkeypatch, capsys):
    out = tmp_path / "colab"
    monkeypatch.setattr(sys, "argv", ["start_cells.py", "ann/course", "--out", str(out)])
    start_cells.main()
    assert [path.name for path in sorted(out.iterdir())] == [p.name for p in all_notebooks()]
    for path in all_notebooks()[:2]:
        new = nbformat.read(out / path.name, as_version=4)
        nbformat.validate(new)
        codes = [cell.source for cell in new.cells if cell.cell_type == "code"]
        assert "git clone -q --depth 1 https://github.com/ann/course " in codes[0]
        assert codes[1].startswith("# Setup")
    with pytest.raises(SystemExit):
        start_cells.main()
    assert "is there already" in capsys.readouterr().err


def test_links_name_every_notebook_three_times():
    table = start_cells.links("ann/course")
    assert all(table.count(f"/{path.name})") == 3 for path in all_notebooks())
    assert table.count("ann/course") == 3 * len(all_notebooks())


# ---- Binder


def test_binder_installs_what_the_notebooks_need():
    names = {"pytorch-cpu": "torch", "matplotlib-base": "matplotlib"}
    extras = PROJECT["optional-dependencies"]
    asked = [Requirement(r) for r in (*PROJECT["dependencies"], *extras["lab"], *extras["sd"])]
    python, pip, *rest = BINDER["dependencies"]
    found = [Requirement(entry) for entry in rest]
    assert {(names.get(r.name, r.name), str(r.specifier)) for r in found} == {
        (r.name, str(r.specifier)) for r in asked
    }
    assert python.removeprefix("python=") in Requirement("p" + PROJECT["requires-python"]).specifier
    assert pip == "pip"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_binder_then_installs_the_package(tmp_path):
    script = ROOT / ".binder/postBuild"
    assert script.stat().st_mode & stat.S_IXUSR
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n')
    fake.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    subprocess.run([script], env=os.environ | {"PATH": path}, check=True)
    assert (tmp_path / "log").read_text().splitlines() == [
        "-m pip install --no-deps -e .",
        "-m ipykernel install --sys-prefix --env GOMP_SPINCOUNT 500",
    ]


# ---- dev containers


def test_the_container_installs_as_the_makefile_does():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert CONTAINER["postCreateCommand"] == "make install" and "\ninstall: " in makefile
    python = CONTAINER["image"].removeprefix("python:")
    assert python in Requirement("p" + PROJECT["requires-python"]).specifier
    interpreter = CONTAINER["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter.endswith("/.venv/bin/python") and "\nVENV   := .venv\n" in makefile
