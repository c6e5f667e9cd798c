"""The environment: pyproject.toml, constraints.txt and environment.yml agree, and the Makefile installs what they say."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PIN_LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
PINS = {
    canonicalize_name(name): version for name, version in (line.split("==") for line in PIN_LINES)
}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
INSTALLED_EXTRAS = re.search(r"^EXTRAS := (\S+)$", MAKEFILE, re.M).group(1)


def requirements(*extras):
    """What pyproject.toml asks for, with these extras."""
    return [
        Requirement(text)
        for text in sum((EXTRAS[extra] for extra in extras), PROJECT["dependencies"])
    ]


# ---- the three files


def test_every_pin_is_exact_and_portable():
    for line in PIN_LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), (
            f"{line}: not a plain name==version"
        )
    assert len(PINS) == len(PIN_LINES), "a package is pinned twice"


@pytest.mark.parametrize(
    "requirement", requirements(*EXTRAS), ids=lambda requirement: requirement.name
)
def test_every_range_is_met_by_its_pin(requirement):
    name = canonicalize_name(requirement.name)
    assert name in PINS, f"{name} is not pinned in constraints.txt"
    assert requirement.specifier and PINS[name] in requirement.specifier, (
        f"{requirement} is not met by {PINS[name]}"
    )


def test_the_build_backend_is_pinned_to_the_same_version():
    for requirement in map(Requirement, PYPROJECT["build-system"]["requires"]):
        assert str(requirement.specifier) == f"=={PINS[requirement.name]}"


def test_conda_installs_the_same():
    conda, pip = [], None
    for entry in yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))[
        "dependencies"
    ]:
        if isinstance(entry, dict):
            pip = entry["pip"]
        else:
            conda.append(entry)
    assert pip == ["-c constraints.txt", f"-e .[{INSTALLED_EXTRAS}]"]
    (python,) = [entry.removeprefix("python=") for entry in conda if entry.startswith("python=")]
    assert python in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert set(conda) == {f"python={python}", "pip"}, "packages come from constraints.txt alone"


def test_the_guide_installs_the_same_without_make():
    guide = (ROOT / "book/install.md").read_text(encoding="utf-8")
    assert f"-c constraints.txt -e .[{INSTALLED_EXTRAS}]" in guide
    assert "-c constraints.txt -e .[lab,sd]" in guide
    assert set(INSTALLED_EXTRAS.split(",")) <= set(EXTRAS)


def test_the_command_is_declared():
    assert PROJECT["scripts"] == {"ddpm-edu": "ddpm_edu.cli:main"}


# ---- the environment this runs in


def closure(todo):
    """Names and versions of all that is installed for these requirements, and for theirs, and so on."""
    found, seen = {}, set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        installed = distribution(requirement.name)
        found[key[0]] = installed.version
        for text in installed.requires or []:
            child = Requirement(text)
            if child.marker is None or any(
                child.marker.evaluate({"extra": extra}) for extra in requirement.extras or {""}
            ):
                todo.append(child)
    return found


def test_the_environment_is_the_pinned_one():
    for name, version in closure(requirements(*INSTALLED_EXTRAS.split(","))).items():
        assert name in PINS, f"{name} {version} is installed and needed, but not pinned"
        assert Version(version).public == PINS[name], f"{name} is {version}, pinned is {PINS[name]}"


def test_nothing_is_pinned_in_vain():
    elsewhere = {"appnope", "colorama", "pywinpty"}  # macOS and Windows
    bench = {
        "denoising-diffusion-pytorch",
        "einops",
        "ema-pytorch",
        "pytorch-fid",
    }  # not part of the environment
    linux = {name for name in PINS if name.startswith(("nvidia-", "cuda-", "triton"))}
    reached = set(closure(requirements(*INSTALLED_EXTRAS.split(","))))
    vain = set(PINS) - reached - elsewhere - bench - (linux if sys.platform != "linux" else set())
    if sys.platform != "win32":  # where some of the terminal's packages are not needed
        assert vain == set()


# ---- the tracked files


def tracked():
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_package_index():
    """Where packages come from is the business of the machine that installs them."""
    forbidden = re.compile(
        "|".join(
            (
                "index" + "-url",
                "index" + "_url",
                "trusted" + "-host",
                r"https?://[\w.-]*(py" "pi|pythonhosted|anaconda|npmjs|artifactory|nexus)",
            )
        ),
        re.I,
    )
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert not (hit := forbidden.search(text)), f"{path.relative_to(ROOT)}: {hit.group()}"


def test_the_repository_stays_small():
    megabytes = sum(path.stat().st_size for path in tracked()) / 2**20
    assert megabytes < 56, f"{megabytes:.0f} MB are tracked"


def test_both_licences_are_stated():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "https://creativecommons.org/licenses/by/4.0/" in (
        ROOT / "notebooks" / "LICENSE.md"
    ).read_text(encoding="utf-8")


# ---- the Makefile, with a Python that only notes what is asked of it

PYTEST = "-m pytest -n 2 --dist worksteal"
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "{log}"
case "$1 $2" in
    "-c import"*) {version_check} ;;
    "--version ") echo "Python 3.9.1" ;;
    "-m venv") {venv} ;;
    "-m pip") {pip} ;;
    "-m pytest") {pytest} ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    if not shutil.which("make"):
        pytest.skip("no make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    log, python = tmp_path / "log", tmp_path / "fake_python"

    def run(
        target,
        *,
        version_check="true",
        venv=f"mkdir -p $4/bin; ln -sf {python} $4/bin/python",
        pip="true",
        pytest="true",
        **env,
    ):
        python.write_text(
            FAKE_PYTHON.format(
                log=log, version_check=version_check, venv=venv, pip=pip, pytest=pytest
            )
        )
        python.chmod(0o755)
        log.write_text("")
        clean = {
            name: value
            for name, value in os.environ.items()
            if name
            not in (
                "DISPLAY",
                "WAYLAND_DISPLAY",
                "SSH_CONNECTION",
                "ARGS",
                "MAKEFLAGS",
                "MAKELEVEL",
                "MFLAGS",
            )
        }
        done = subprocess.run(
            ["make", target, f"PYTHON={python}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=clean | env,
        )
        return done.returncode, done.stdout + done.stderr, log.read_text()

    return run


def test_make_help_names_every_target(make):
    code, text, _ = make("help")
    assert code == 0
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M).group(1).split()
    assert all(re.search(rf"^  make {target} ", text, re.M) for target in targets), text


def test_make_installs_once_then_only_runs(make):
    code, text, log = make("test-package")
    assert code == 0, text
    assert (
        f"-m pip install --disable-pip-version-check -c constraints.txt -e .[{INSTALLED_EXTRAS}]"
        in log
    )
    assert log.splitlines()[-1].startswith("-m pytest")
    code, text, log = make("test-package")
    runs = [f"{PYTEST} -m not full --ignore tests/browser/test_notebooks_run.py"]
    assert code == 0 and log.splitlines() == runs, "the second run installed again"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "Makefile"])
def test_make_installs_again_when_a_file_changes(make, tmp_path, name):
    make("install")
    later = (tmp_path / "pyproject.toml").stat().st_mtime + 3600
    os.utime(tmp_path / name, (later, later))
    _, _, log = make("install")
    assert "-m pip install" in log and "-m venv" not in log


def test_make_takes_up_a_broken_off_install(make):
    code, _, log = make("test-package", pip="[ $3 != install ]")
    assert code != 0 and "-m pytest" not in log
    code, text, log = make("test-package")
    assert code == 0, text
    assert "-m pip install" in log and log.splitlines()[-1].startswith(PYTEST)


def test_make_refuses_another_python(make):
    code, text, log = make("lab", version_check="exit 1")
    assert code != 0
    assert (
        "needs Python 3.11 to 3.14" in text
        and "Python 3.9.1" in text
        and "PYTHON=python3.12" in text
    )
    assert "pip install" not in log


def test_make_says_what_debian_lacks(make, tmp_path):
    code, text, _ = make("lab", venv="exit 1")
    assert code != 0 and "sudo apt install python3-venv" in text
    assert not (tmp_path / ".venv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS always has a display")
@pytest.mark.parametrize(
    "env, browser",
    [
        ({}, False),
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "a 1 b 22"}, False),
    ],
)
def test_make_lab_opens_a_browser_only_where_there_is_a_display(make, env, browser):
    code, text, log = make("lab", **env)
    assert code == 0, text
    command = log.splitlines()[-1]
    assert command.startswith("-m jupyterlab") and command.endswith(" notebooks")
    assert ("--no-browser" not in command) == browser
    assert " --LabApp.default_url=/lab/tree/welcome.md " in command
    assert ("--allow-root" in command) == (os.getuid() == 0)


def test_make_test_runs_all_but_the_full_size_and_fails_with_it(make):
    assert make("test", pytest="exit 1")[0] != 0
    code, _, log = make("test")
    assert code == 0 and log.splitlines() == [f"{PYTEST} -m not full"]
    _, _, log = make("test-full")
    assert log.splitlines() == [PYTEST]
    _, _, log = make("test-notebooks", ARGS="03")
    assert log.splitlines() == [f"{PYTEST} tests/browser/test_notebooks_run.py -k 03_"]


def test_continuous_integration_checks_the_code_and_runs_every_test():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "chromium" in "\n".join(lines) and lines[-2:] == ["make lint", "make test"]


# ---- the runner of the notebooks


@pytest.fixture
def run_one(tmp_path, monkeypatch, capsys):
    """The runner's exit status and what it prints, on a notebook of these code cells."""
    import run_notebooks

    monkeypatch.setenv("IPYTHONDIR", "")  # main sets its own; this one comes back afterwards

    def run(*cells, name="00_try.ipynb", tags=(), stored=(), limit_mb=3072, **options):
        cells = [nbformat.v4.new_code_cell(text, metadata={"tags": list(tags)}) for text in cells]
        for cell, text in zip(cells, stored):
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name)
        monkeypatch.setattr(run_notebooks, "LIMIT_MB", limit_mb)
        return run_notebooks.main(["00"], tmp_path, **options), capsys.readouterr().out

    return run


def test_notebooks_run_in_a_copy_and_are_reported(tmp_path, run_one):
    code, text = run_one("x = bytearray(300 * 2**20)", "open('left_behind', 'w').close()")
    assert code == 0, text
    assert [path.name for path in tmp_path.iterdir()] == ["00_try.ipynb"]
    seconds, mb = re.search(r"([\d.]+) s +(\d+) MB  00_try.ipynb", text).groups()
    assert float(seconds) > 0
    if sys.platform == "linux":
        assert 300 < int(mb) < 900


def test_a_failing_cell_fails_the_run(run_one):
    code, text = run_one("assert 1 + 1 == 3")
    assert code == 1 and "AssertionError" in text


def test_another_result_in_a_tagged_cell_fails_the_run(run_one):
    cell, tag = "import sys; print(2, file=sys.stderr); print(1 + 1)", ["nbval-check-output"]
    assert run_one(cell, stored=["2"], tags=tag)[0] == 0
    code, text = run_one(cell, stored=["3"], tags=tag)
    assert code == 1 and "cell 0 prints\n2\nand the notebook says\n3" in text
    assert run_one(cell, stored=["3"])[0] == 0, "not tagged: not compared"


def test_too_much_memory_fails_the_run(run_one):
    code, text = run_one("1 + 1", limit_mb=10)
    assert code == 1 and "FAILED: the limit is 10 MB" in text


def test_the_longest_cells_are_named(run_one):
    code, text = run_one("1 + 1", "import time; time.sleep(0.3)", cells=True)
    first, second = re.findall(r"([\d.]+) s  cell (\d)", text)
    assert code == 0 and first[1] == "1" and second[1] == "0" and float(first[0]) >= 0.3


def test_processor_seconds_count_work_and_children_but_no_waiting(run_one):
    work = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    code, text = run_one("import time; time.sleep(0.5)", work, child, cells=True)
    used = {k: float(s) for k, s in re.findall(r"cell (\d) \(([\d.]+)\)", text)}
    (total,) = re.findall(r"\(([\d.]+) s of the processor\)", text)
    assert code == 0 and used["0"] < 0.2 and 0.4 <= used["1"] < 0.6 <= used["2"] + 0.2
    assert sum(used.values()) - 0.2 <= float(total) < 3


def test_what_runs_around_a_notebook_leaves_no_trace_in_it(tmp_path):
    import run_notebooks

    (cell,) = cells = [nbformat.v4.new_code_cell("x")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    run_notebooks.execute(notebook, tmp_path, "x = 7", "open('done', 'w').write(str(x))")
    assert (tmp_path / "done").read_text() == "7" and len(notebook.cells) == 1
    assert cell.execution_count == 1 and cell.outputs[0].data["text/plain"] == "7"


def test_no_notebook_at_all_fails_the_run(run_one):
    code, text = run_one(name="elsewhere.ipynb")
    assert code != 0 and "no notebook" in text
