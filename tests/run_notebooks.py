"""Run the notebooks as a learner would, top to bottom, and say what each cost: python tests/run_notebooks.py [00 03 ...]

They run in a copy, so nothing in notebooks/ changes, and their kernels see an empty IPython profile. Each cell is one
test (nbval; the cells tagged nbval-check-output must print what is stored). The exit status is pytest's, or 1 where a
notebook took more memory than a learner may be asked for.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
GOAL_SECONDS = 90  # on two cores; only marked when missed, as machines differ
LIMIT_MB = 3 * 1024  # enforced


def peak_mb(pid):
    """The most memory process `pid` has held so far, in MB; where the system keeps no peak, what it holds now."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return next(
            int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")
        )
    except OSError:
        memory = psutil.Process(pid).memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 2**20


class Costs:
    """pytest plugin: adds up the seconds of each notebook's cells and keeps its kernel's peak memory."""

    def __init__(self):
        self.seconds, self.mb = {}, {}

    def pytest_runtest_logreport(self, report):
        notebook = report.nodeid.split("::")[0]
        self.seconds[notebook] = self.seconds.get(notebook, 0) + report.duration

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item):
        try:  # the kernel stops with the last cell's teardown, so look before
            peak = peak_mb(item.parent.kernel.km.provisioner.pid)
        except (
            AttributeError,
            psutil.Error,
        ):  # it never started, or it died; the cell has failed by itself
            return
        notebook = item.nodeid.split("::")[0]
        self.mb[notebook] = max(self.mb.get(notebook, 0), peak)

    def too_big(self):
        return [notebook for notebook, mb in self.mb.items() if mb > LIMIT_MB]

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == pytest.ExitCode.OK and self.too_big():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        terminalreporter.section("notebooks: seconds, peak MB of the kernel")
        for notebook, seconds in sorted(self.seconds.items()):
            slow = f"  (the goal is {GOAL_SECONDS} s)" if seconds > GOAL_SECONDS else ""
            big = f"  FAILED: the limit is {LIMIT_MB} MB" if notebook in self.too_big() else ""
            write(f"{seconds:8.1f} s {self.mb.get(notebook, 0):7.0f} MB  {notebook}{slow}{big}")
        write(f"{sum(self.seconds.values()):8.1f} s in all")


def main(wanted, folder=ROOT / "notebooks"):
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "notebooks")
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        notebooks = sorted(
            path
            for path in copy.glob("*.ipynb")
            if not wanted or path.name.startswith(tuple(wanted))
        )
        if not notebooks:
            print(
                f"no notebook in {folder} starts with {' or '.join(wanted) or 'anything'}",
                file=sys.stderr,
            )
            return pytest.ExitCode.USAGE_ERROR
        os.environ["IPYTHONDIR"] = str(Path(scratch, "ipython"))
        options = [
            "--nbval-lax",
            "--nbval-current-env",
            "--nbval-cell-timeout=120",
            "-p",
            "no:cacheprovider",
            "-c",
            str(ROOT / "pyproject.toml"),
            "--rootdir",
            scratch,
        ]
        with contextlib.chdir(scratch):
            return pytest.main([*options, *map(str, notebooks)], plugins=[Costs()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
