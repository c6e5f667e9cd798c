"""How the tests share a machine, and what the notebooks cost."""

import os

import pytest

# Set before anything imports torch; programs that a test starts see it too.
os.environ.setdefault("GOMP_SPINCOUNT", "500")  # threads that spin stop their neighbours
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # pytest -n shares the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // int(workers))))


@pytest.fixture(scope="module")
def tiny_sd(tmp_path_factory):
    """A tiny Stable Diffusion with random weights, read from the files that diffusers wrote."""
    from tiny_pipelines import build

    from ddpm_edu.files.load import load

    build("sd").save_pretrained(root := tmp_path_factory.mktemp("sd"))
    return load(root)


def pytest_collection_modifyitems(items):
    """Half of the notebooks first, half in the middle: two workers begin there, and with the longest."""
    runs = [item for item in items if "test_notebooks_run" in item.nodeid]
    rest = [item for item in items if "test_notebooks_run" not in item.nodeid]
    early, late, half = runs[::2], runs[1::2], max(0, len(items) // 2 - len(runs[::2]))
    items[:] = early + rest[:half] + late + rest[half:]


def pytest_terminal_summary(terminalreporter):
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    costs = sorted(v for r in reports for k, v in r.user_properties if k == "notebook")
    if costs:
        from run_notebooks import line  # needs more than a machine with a GPU may have

        terminalreporter.section("notebooks: seconds, peak MB of the kernel")
        for name, seconds, mb in costs:
            terminalreporter.write_line(line(name, seconds, mb))
        total = sum(seconds for _, seconds, _ in costs)
        terminalreporter.write_line(f"{total:8.1f} s in all, with two at a time on two cores")
