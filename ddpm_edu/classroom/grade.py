"""Grading a folder of submissions: several at a time, resumable, nothing stops it. All notebooks.

grade(folder, csv, handed_out) -> one row a student in `csv`, and beside it a folder of the same
name: one page a student, results.jsonl to go on from, and seed.txt, which is the teacher's own.
"""

import csv as tables
import hashlib
import json
import os
import queue
import re
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path

from .. import __version__
from ..errors import OptionError, ResourceError
from ..exercises import check, fresh
from ..paths import data_folder, replacing
from . import handed_out as lists
from .judge import PACKAGE, Finding, Learner, Limits, Nursery, judge, prepared
from .page import page
from .wire import WireError

SUFFIXES = (".ipynb", ".py")
SKIPPED = (".", "__MACOSX", lists.FILE)


def grade(
    folder, csv, handed_out=None, seed=None, jobs=1, limits=Limits(), say=print
) -> list[dict]:
    """Grade every submission in `folder`; the results, by student.

    Raises OptionError where there is nothing to grade, or no way to do so on this machine.
    """
    if os.name != "posix":
        raise OptionError("grading needs limits that this system has not: use Linux, macOS or WSL")
    todo = submissions(Path(folder))
    exercises = lists.expressions(_list_of(Path(folder), handed_out))
    room = _room(Path(csv), Path(folder))
    seed = _seed(room / "seed.txt") if seed is None else seed
    asked = {n: prepared(check.find(n), fresh.cases(n, seed)) for n in exercises}
    key = _key(seed, exercises)
    results = _resumed(room / "results.jsonl")
    batch = queue.Queue()
    for student, files in todo.items():
        digest = _digest(files, key, limits)
        if results.get(student, {}).get("digest") != digest:
            batch.put((student, files, digest))
    again = {student for student, *_ in batch.queue}
    results = {student: results[student] for student in todo if student not in again}
    say(f"{len(todo)} submissions, {batch.qsize()} to grade, {len(exercises)} exercises")
    try:
        _work(batch, exercises, asked, limits, jobs, room, results, say)
    finally:
        done = [results[student] for student in todo if student in results]
        _write(Path(csv), room, done, exercises, everything=handed_out is None)
    return done


def submissions(folder: Path) -> dict[str, list[Path]]:
    """{student: notebooks}: an entry of the folder is a student, a folder of notebooks or one."""
    if not folder.is_dir():
        raise OptionError(f"{folder} is no folder: name the one with the submissions")
    found = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(SKIPPED) or entry.is_symlink():
            continue
        if entry.is_dir():
            found[entry.name] = sorted(_notebooks(entry))
        elif _is_notebook(entry):
            found[entry.stem] = [entry, *found.get(entry.stem, [])]
    if not found:
        raise OptionError(f"{folder} holds no submissions: a folder or a notebook a student")
    return found


def _notebooks(folder: Path):
    for root, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(SKIPPED)]
        for name in files:
            path = Path(root, name)
            if _is_notebook(path) and not name.startswith(SKIPPED) and not path.is_symlink():
                yield path


def _is_notebook(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()  # no pipe: one waits for it for ever


def _room(csv: Path, folder: Path) -> Path:
    """The folder beside the table, made. Among the submissions it would be one of them."""
    room = csv.with_suffix("")
    if not csv.suffix:
        raise OptionError(f"--csv {csv}: pass a name with an ending, such as {csv}.csv")
    if Path(folder).resolve() in (room.resolve(), *room.resolve().parents):
        raise OptionError(f"--csv {csv}: its pages would lie among the submissions: name another")
    room.mkdir(parents=True, exist_ok=True)
    return room


def _list_of(folder: Path, handed_out):
    """The list of what was handed out: the one named, the folder's own, or the whole course."""
    for path in (handed_out, folder / lists.FILE):
        if path and (path == handed_out or path.is_file()):
            return lists.read(Path(path))
    course = PACKAGE.parent / "notebooks"
    if not course.is_dir():
        raise OptionError("--handed-out: name the handed_out.json that `ddpm-edu student` wrote")
    return lists.made(sorted(course.glob("*.ipynb")))


def _seed(path: Path) -> int:
    """The teacher's secret, made once; nobody else may read the file."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.randbits(60)}\n")
    except FileExistsError:
        pass
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} holds no seed ({error}): remove it, or pass --seed") from None


def _key(seed: int, exercises: dict) -> str:
    """Changes with whatever the marks depend on besides the submission."""
    parts = [__version__, seed, sorted(exercises.items())]
    parts += [p.read_bytes() for p in sorted((PACKAGE / "exercises").glob("*.py"))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _digest(files, key: str, limits: Limits) -> str:
    total = hashlib.sha256(f"{key} {limits}".encode())
    for file in files:
        total.update(file.name.encode(errors="surrogateescape"))
        try:
            with open(file, "rb") as f:
                total.update(hashlib.file_digest(f, "sha256").digest())
        except OSError:
            total.update(b"unreadable")
    return total.hexdigest()


def _resumed(path: Path) -> dict:
    """{student: result} of an earlier run; a line that was cut short is left out."""
    found = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            result = json.loads(line)
            found[result["student"]] = result
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
    return found


# ---------------------------------------------------------------- the work


def _work(batch, exercises, asked, limits, jobs, room, results, say) -> None:
    """`jobs` threads empty the queue, each with a nursery of its own."""
    home, lock, stop = Path(tempfile.mkdtemp(prefix="ddpm-edu-")), threading.Lock(), []
    nurseries = [Nursery(home, data_folder()) for _ in range(min(jobs, batch.qsize()))]

    def work(nursery):
        try:
            while not stop:
                student, files, digest = batch.get_nowait()
                result = one(nursery, student, files, exercises, asked, limits)
                with lock:
                    if stop:  # what is found while processes are being ended counts for nothing
                        return
                    results[student] = result | {"digest": digest}
                    _keep(room / "results.jsonl", results[student])
                    right = sum(name == "right" for name, _ in result["findings"].values())
                    say(f"{student}: {right} right, {result['seconds']:.1f} s", flush=True)
        except queue.Empty:
            pass
        except Exception as error:  # a full disk, no memory for processes, nobody who reads `say`
            stop.append(error)

    threads = [threading.Thread(target=work, args=[n], daemon=True) for n in nurseries]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.append(None)
        for nursery in nurseries:
            nursery.open = False
            nursery.close()
        shutil.rmtree(home, ignore_errors=True)
    if stop[0]:
        raise stop[0]


def _keep(path: Path, result: dict) -> None:
    """Write one result down, unless it is to be found again."""
    if any(name == "grader failed" for name, _ in result["findings"].values()):
        return
    with open(path, "a") as file:
        file.write(json.dumps(result) + "\n")


def one(nursery, student: str, files, exercises: dict, asked: dict, limits: Limits) -> dict:
    """The result of one submission. Whatever happens, there is one."""
    learner, findings, hello = Learner(nursery, files, limits, len(exercises)), {}, {}
    try:
        learner.start(time.monotonic() + 60)
    except WireError:
        learner.stop()
    start = time.monotonic()
    for name, expression in exercises.items():
        if time.monotonic() - start > 10 * limits.seconds:
            findings[name] = Finding("too slow", "The submission's time was used up before.")
            continue
        try:
            found = judge(learner, name, asked[name], expression)
        except ResourceError:
            raise
        except Exception as error:  # a mistake of ours must not stop the batch
            learner.stop()
            found = Finding("grader failed", f"{type(error).__name__}: {error}"[:300])
        findings[name], hello = found, learner.hello or hello
    learner.stop()
    problems = hello.get("problems", {})
    problems = problems if isinstance(problems, dict) else {}
    called = hello.get("called", [])
    return {
        "student": student,
        "seconds": round(time.monotonic() - start, 2),
        "problems": {str(file)[:200]: str(why)[:200] for file, why in problems.items()},
        "findings": {e: [f.name, f.message] for e, f in _damaged(findings, problems).items()},
        "touched": sorted({str(c)[:2] for c in called} | {file.name[:2] for file in files}),
        "walls": sorted(str(wall) for wall in hello.get("walls", [])),
    }


def _damaged(findings: dict, problems: dict) -> dict:
    """Where a file cannot be read, what is missing may be in it."""
    if not problems:
        return findings
    why = Finding("damaged file", "; ".join(f"{f}: {w}" for f, w in sorted(problems.items()))[:600])
    return {e: why if f.name == "missing" else f for e, f in findings.items()}


# ---------------------------------------------------------------- what is written


def _write(csv: Path, room: Path, results, exercises, everything: bool) -> None:
    """The table, and a page a student."""
    touched = {number for result in results for number in result["touched"]}
    shown = [e for e in exercises if not everything or e[:2] in touched] or list(exercises)
    try:
        with replacing(csv) as part, open(part, "w", newline="", encoding="utf-8") as file:
            table = tables.writer(file)
            table.writerow(["student", "points", "of", *shown, "went wrong", "seconds"])
            table.writerows(_row(result, shown) for result in results)
        for result in results:
            with replacing(room / _file(result["student"])) as part:
                Path(part).write_text(page(result, shown), encoding="utf-8", errors="replace")
    except OSError as error:
        raise OptionError(f"--csv {csv}: could not be written ({error})") from error


def _file(student: str) -> str:
    """The name of a student's page: no two students have one."""
    name = re.sub(r"[^\w.-]+", "_", student)[:80]
    if name == student:
        return f"{name}.html"
    return f"{name}-{hashlib.sha256(student.encode(errors='surrogatepass')).hexdigest()[:6]}.html"


def _row(result: dict, shown: list[str]) -> list:
    points = [int(result["findings"][e][0] == "right") for e in shown]
    wrong = [
        f"{e} {name}: {message}" if message else f"{e} {name}"
        for e in shown
        for name, message in [result["findings"][e]]
        if name != "right"
    ]
    wrong += [f"{file}: {why}" for file, why in result["problems"].items()]
    cells = [result["student"], sum(points), len(points), *points, "; ".join(wrong)]
    return [_safe(cell) for cell in (*cells, result["seconds"])]


def _safe(cell):
    """A text that no spreadsheet takes for a formula."""
    if isinstance(cell, str):
        cell = cell.encode(errors="replace").decode()
        return "'" + cell if re.match(r"\s*[=+@＝＋＠－-]|[\t\r\n]", cell) else cell
    return cell
