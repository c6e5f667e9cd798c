"""Tests that run at the same time (pytest -n) share the cores: more threads than cores wait for each other, and all are slow."""

import os

if workers := os.environ.get(
    "PYTEST_XDIST_WORKER_COUNT"
):  # set before anything imports torch; programs that a test starts see it too
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // int(workers))))
