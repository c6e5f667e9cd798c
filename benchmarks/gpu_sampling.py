"""Text-to-image on an NVIDIA GPU: is it right, how fast, where does the time go; with diffusers.

    python benchmarks/gpu_sampling.py                     every row, in order of worth
    python benchmarks/gpu_sampling.py --budget 325        what fits into 325 s; again: goes on
    python benchmarks/gpu_sampling.py --only sdxl,check   some tasks or rows
    python benchmarks/gpu_sampling.py --tiny              all of it, tiny, on the CPU, as a test

benchmarks/gpu.md says what each row is, and how to run this on a bare machine lent for minutes.
Weights are random: speed does not depend on them. Each row is tried alone: an error, an alarm or a
wrong result is written down, and the next row runs. Results are written whole after each row. Where
an error has killed the CUDA context or a row cannot be stopped, the program starts itself again,
with the same deadline, and goes on behind that row. The last line is one JSON object.
"""

import argparse
import datetime
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

STARTED = time.time()  # before the imports, which take seconds of the budget
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # a bare machine has the tree, not the package
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks a lot

import torch
from gpu.bench import TINY, Alarm, Bench, Setting, file_name, installed, machine
from gpu.rows import Row, all_rows

SAME = ("device", "tiny", "torch", "cuda", "cudnn")  # in all rows of a file
GRACE = 10  # seconds after the alarm until a row that does not stop is left behind


class Record:
    """The results of one machine: a JSON file, written whole after each change, to every folder."""

    def __init__(self, folders: list[Path], here: dict, run: str):
        self.folders, self.run, name = folders, run, file_name(here)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for n in range(1, 1000):  # what another machine or version has written stays as it is
            self.name = f"{name}{'' if n == 1 else f'_{n}'}.json"
            found = self._read(folders[0] / self.name)
            if found is None or all(found.get(k) == here.get(k) for k in SAME):
                break
        self.file = found or here | {"results": {}, "running": None}
        if self.file["running"]:
            key, run = self.file["running"]
            self.put(key, {"failed": "the program ended inside this row"}, run)

    @staticmethod
    def _read(path) -> dict | None:
        if path.exists():
            try:
                return json.loads(path.read_text())
            except ValueError:
                return {}  # not ours: another name is taken
        return None

    @property
    def results(self) -> dict:
        return self.file["results"]

    def start(self, key: str) -> None:
        self.file["running"] = [key, self.run]
        self._write()

    def put(self, key: str, result: dict, run: str = "") -> None:
        command = " ".join(["python", *sys.argv])
        date = datetime.date.today().isoformat()
        stamp = {"date": date, "command": command, "run": run or self.run}
        self.file["running"] = None
        self.results[key] = result | stamp
        self._write()

    def _write(self) -> None:
        text = json.dumps(self.file, indent=1) + "\n"
        for folder in self.folders:
            part = folder / (self.name + ".part")
            part.write_text(text)
            os.replace(part, folder / self.name)

    def waiting(self, rows: list[Row], again: bool) -> list[Row]:
        """Rows without a result (again: of this run), then those that failed in earlier runs."""
        old = lambda row: self.results.get(row.key, {}).get("run") != self.run
        new = [row for row in rows if row.key not in self.results or again and old(row)]
        failed = [row for row in rows if "failed" in self.results.get(row.key, {}) and old(row)]
        return new + [row for row in failed if row not in new]


def measured(row: Row, bench: Bench) -> dict:
    """What the row returns, or why it failed; never longer than the alarm and its grace."""
    end = 5 if bench.cuda else 0.5
    limit = max(1.0, min(max(2.5 * row.seconds(bench), bench.setting.patience), bench.left() - end))
    leave = threading.Timer(limit + GRACE, start_again)
    leave.daemon = True
    leave.start()
    started = time.perf_counter()
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, limit, 5)  # once more every 5 s, should one be swallowed
    try:
        result = row.measure(bench)
        bench.compiled |= set(row.compiles)
    except (Exception, Alarm, SystemExit) as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        what = f"stopped after {limit:.0f} s" if isinstance(error, Alarm) else repr(error)[:500]
        result = {"failed": what, "trace": traceback.format_exc()[-3000:]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        leave.cancel()
    return result | {"wall_s": time.perf_counter() - started}


def _alarm(number, frame):
    raise Alarm


def context_is_dead() -> bool:
    """After an illegal access every later call fails, and only a new process helps."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(8, device="cuda").add_(1).sum().item()
    except RuntimeError:
        return True
    return False


def start_again() -> None:
    """This program anew: the environment holds the deadline, the file what is done."""
    print("starting again", flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)  # timers outlive exec
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        if int(fd) > 2:
            try:
                os.set_inheritable(int(fd), False)
            except OSError:
                pass
    os.execv(sys.executable, [sys.executable, *sys.argv])


def summary(result: dict) -> str:
    if "failed" in result:
        return "FAILED: " + result["failed"]
    numbers = {k: v for k, v in result.items() if isinstance(v, float | int)}
    return "  ".join(f"{k} {v:.4g}" for k, v in numbers.items() if k != "rung")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="everything at tiny size on the CPU")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for all rows together")
    parser.add_argument("--out", type=Path, help="folder of the results; it goes on from those")
    parser.add_argument("--copy", type=Path, help="a second folder that the results are written to")
    parser.add_argument("--only", default="", help="comma-separated tasks or task/row")
    parser.add_argument("--again", action="store_true", help="measure what is there once more")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA GPU is here: --tiny runs everything at tiny size on the CPU")
    return args


def main(rows=all_rows):
    args = arguments()
    end = str(STARTED + args.budget)
    deadline = os.environ.setdefault("GPU_DEADLINE", end)  # outlives exec
    if args.tiny:
        torch.set_num_threads(1)  # small work: threads would only wait for each other
    torch.backends.cudnn.benchmark = True  # for everybody
    if (torch.backends.cudnn.version() or 0) < 91502:
        torch.backends.cuda.enable_cudnn_sdp(False)  # 9.13 to 9.15.1 crash under CUDA graphs
    out = args.out or (HERE.parent / ".gpu" if args.tiny else HERE / "results")
    bench = Bench(TINY if args.tiny else Setting(), float(deadline), [args.copy or out])
    record = Record([out, *([args.copy] if args.copy else [])], machine(bench), deadline)
    print({k: v for k, v in record.file.items() if k != "results"}, flush=True)

    wanted = [one for one in args.only.split(",") if one]
    chosen = [r for r in rows(bench) if not wanted or {r.key, r.key.split("/")[0]} & set(wanted)]
    late = []
    for row in record.waiting(chosen, args.again):
        if row.unless and "failed" not in record.results.get(row.unless, {"failed": ""}):
            continue
        if bench.left() < max(row.seconds(bench), 1):
            late.append(row.key)
            continue
        record.start(row.key)
        result = measured(row, bench)
        if "diffusers" in row.key:
            result["diffusers"] = installed("diffusers")
        record.put(row.key, result)
        print(f"{row.key:26} {summary(result)}   [{bench.left():.0f} s left]", flush=True)
        if "failed" in result and context_is_dead():
            start_again()
        if "trace" in result:
            bench.drop()
    if late:
        print("no time for:", *late)
    results = {row.key: record.results[row.key] for row in chosen if row.key in record.results}
    failed = [key for key, result in results.items() if "failed" in result]
    seconds = {
        key: float(f"{result['seconds']:.4g}")
        for key, result in results.items()
        if "seconds" in result and "failed" not in result
    }
    last = {"benchmark": "gpu_sampling", "file": str(record.folders[0] / record.name)}
    print(json.dumps(last | {"seconds": seconds, "failed": failed, "no_time": late}))


if __name__ == "__main__":
    main()
