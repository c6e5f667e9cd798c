"""Grading: damaged submissions get the marks that are right for them, attacks gain nothing and harm nothing."""

import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import damaged

from ddpm_edu.classroom import notebook
from ddpm_edu.classroom.grade import grade, submissions
from ddpm_edu.classroom.judge import PACKAGE, Limits
from ddpm_edu.cli import main
from ddpm_edu.errors import OptionError, ResourceError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs the limits of Unix")
LIMITS = Limits(seconds=10)


def quiet(*_, **__):
    pass


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handed") / "out"
    nb = damaged.handed_out(folder)
    nb["handed_out.json"] = (folder / "handed_out.json").read_text()
    return nb


def class_of(stub, folder, kinds, copies=1):
    """Submissions in folder/submissions; the findings that are right."""
    nb = {k: v for k, v in stub.items() if k != "handed_out.json"}
    kinds = kinds if isinstance(kinds, dict) else {kind: damaged.KINDS[kind] for kind in kinds}
    right = damaged.write(folder / "submissions", nb, kinds, copies)
    (folder / "submissions" / "handed_out.json").write_text(stub["handed_out.json"])
    return right


@pytest.mark.slow
def test_every_kind_of_damage_gets_its_marks(stub, tmp_path):
    right = class_of(stub, tmp_path, damaged.KINDS)
    results = grade(
        tmp_path / "submissions", tmp_path / "marks.csv", jobs=2, limits=LIMITS, say=quiet
    )
    assert damaged.differences(results, right) == []
    with open(tmp_path / "marks.csv", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(right)
    for student, findings in right.items():
        points = [int(findings[e] == "right") for e in damaged.EXERCISES]
        row = rows[student]
        assert [int(row[e]) for e in damaged.EXERCISES] == points and int(row["points"]) == sum(
            points
        )
        wrong = {name for name in findings.values() if name != "right"}
        assert all(name in row["went wrong"] for name in wrong) and float(row["seconds"]) >= 0
        page = (tmp_path / "marks" / f"{student}.html").read_text()
        assert f"{sum(points)} of 4 points" in page and "reshape(-1, 1, 1, 1)" not in page


# ---------------------------------------------------------------- attacks

SECRET = "the teacher's own token"
ATTACKS = {
    "imports_the_reference": "from ddpm_edu.exercises.nb01 import EXERCISES\n    return EXERCISES['01.2'].reference(*a)",
    "finds_the_reference": "from ddpm_edu.exercises.check import find\n    return find('01.2').reference(*a)",
    "reads_the_reference": f"import types; m = types.ModuleType('ddpm_edu.exercises.n'); m.__package__ = 'ddpm_edu.exercises'\n    exec(open({str(PACKAGE / 'exercises' / 'nb01.py')!r}).read(), m.__dict__)\n    return m.EXERCISES['01.2'].reference(*a)",
    "reads_the_solution": f"raise ValueError(open({str(damaged.ROOT / 'notebooks' / damaged.NOTEBOOK)!r}).read()[:150])",
    "reads_the_seed": "raise ValueError(open('FOLDER/marks/seed.txt').read())",
    "reads_a_neighbour": "raise ValueError(open('FOLDER/submissions/victim-0/01_forward_process.ipynb').read())",
    "prints_secrets": "import os, sys; print(dict(os.environ)); sys.stderr.write(str(os.environ))\n    raise ValueError(str(dict(os.environ)) + open(f'/proc/{os.getppid()}/environ').read())",
    "shows_its_environment": "import os\n    raise ValueError(str(dict(os.environ))[-190:])",
    "writes_outside": "open('FOLDER/written', 'w').write('x')",
    "writes_marks": "open('FOLDER/marks/results.jsonl', 'a').write('{}')",
    "removes_a_neighbour": "import shutil; shutil.rmtree('FOLDER/submissions/victim-0')",
    "closes_a_neighbour": "import os; os.chmod('FOLDER/submissions/victim-0', 0)",
    "forks": "import os\n    for _ in range(100): os.fork()\n    raise ValueError('FORKED')",
    "stays_behind": "import subprocess; subprocess.Popen(['sleep', '4242'], start_new_session=True)\n    raise ValueError('STARTED')",
    "kills": "import os; os.kill(os.getppid(), 9)\n    raise ValueError('KILLED')",
    "kills_all": "import os; os.kill(-1, 9)\n    raise ValueError('KILLED')",
    "calls_home": "import socket; socket.create_connection(('127.0.0.1', 1), 1)\n    raise ValueError('CONNECTED')",
    "sleeps": "import time; time.sleep(10**6)",
    "catches_everything": "while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "patches_check": "return 1, 1\nfrom ddpm_edu.exercises import check as room\nroom.check = room.use = lambda *_: True\ncheck = use = lambda *_: True",
    "equals_everything": "import numpy as np\n    class Any(np.ndarray):\n        __eq__ = lambda self, other: True\n        shape = property(lambda self: ())\n    return np.zeros(()).view(Any), np.zeros(()).view(Any)",
    "writes_its_own_marks": "import os, json, struct\n    raw = json.dumps({'name': 'right', 'result': True, 'trouble': ['right', '']}).encode()\n    for h in range(3, 64):\n        try: os.write(h, (struct.pack('>I', len(raw)) + raw) * 50)\n        except OSError: pass\n    return 1, 1",
    "writes_rubbish": "import os\n    for h in range(3, 64):\n        try: os.write(h, os.urandom(10**5))\n        except OSError: pass\n    return 1, 1",
    "prints_a_gigabyte": "for _ in range(1000): print('x' * 10**6)\n    return 1, 1",
    "answers_with_a_gigabyte": "return torch.zeros(2**28 - 1, dtype=torch.int8), 'x' * 2**28",
    "nests": "x = []\n    for _ in range(10**5): x = [x]\n    return x, x",
    "knows_the_public_cases": "bar, s, t = a\n    if len(bar) == 8: al = bar[t] / bar[s]; return al.sqrt(), 1 - al\n    return 0.5, 0.5",
    "fills_the_disk": "import tempfile\n    for _ in range(10**4): tempfile.NamedTemporaryFile(delete=False).write(b'x' * 10**6)",
    "raises_its_limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n    raise ValueError('RAISED')",
    "leaves_by_threads": "import threading\n    for _ in range(10**4): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
}


@pytest.mark.slow
def test_attacks_gain_nothing_and_harm_nothing(stub, tmp_path, monkeypatch):
    """Each tries it in 01.2, which is worth nothing then; its other answers, and the neighbours, keep their points."""
    monkeypatch.setenv("TEACHERS_TOKEN", SECRET)
    kinds = {"victim": (lambda s, r: damaged.answered(s), damaged.RIGHT)}
    class_of(stub, tmp_path / "first", kinds)
    (first,) = grade(
        tmp_path / "first" / "submissions", tmp_path / "first" / "m.csv", limits=LIMITS, say=quiet
    )
    if set(first["walls"]) != {"limits", "files", "network", "processes"}:
        pytest.skip(
            f"only these walls stand here: {first['walls']}; some of these attacks would do harm"
        )
    shutil.rmtree(tmp_path / "first")
    for name, body in ATTACKS.items():
        answer = f"def jump(*a):\n    {body}\n".replace("FOLDER", str(tmp_path))
        kinds[name] = (lambda s, r, answer=answer: damaged.answered(s, jump=answer), None)
    right = class_of(stub, tmp_path, kinds)
    before = tree(tmp_path / "submissions")
    results = grade(
        tmp_path / "submissions",
        tmp_path / "marks.csv",
        jobs=2,
        seed=5**20,
        limits=Limits(6),
        say=quiet,
    )
    assert tree(tmp_path / "submissions") == before
    assert {p.name for p in tmp_path.iterdir()} == {"submissions", "marks", "marks.csv"}
    assert {r["student"] for r in results} == set(right)
    for result in results:
        findings = {e: name for e, (name, _) in result["findings"].items()}
        if result["student"] == "victim-0":
            assert findings == damaged.RIGHT
            continue
        assert findings["01.2"] != "right", result
        rest = {name for e, name in findings.items() if e != "01.2"}
        assert rest == {"right"}, result
        text = json.dumps(result)
        for leaked in (
            SECRET,
            str(5**20),
            "Solution",
            "FORKED",
            "STARTED",
            "KILLED",
            "CONNECTED",
            "RAISED",
        ):
            assert leaked not in text, result
    assert (
        "sleep 4242"
        not in subprocess.run(["ps", "axo", "args"], capture_output=True, text=True).stdout
    )


def tree(folder):
    return {
        str(p): (p.stat().st_mode, p.is_file() and p.read_bytes())
        for p in sorted(folder.rglob("*"))
    }


# ---------------------------------------------------------------- the batch


def test_goes_on_where_it_was_stopped(stub, tmp_path):
    some = ("whole", "as_handed_out", "wrong")
    right = class_of(stub, tmp_path, some)
    folder, said = tmp_path / "submissions", []
    say = lambda line, **_: said.append(line)
    first = grade(folder, tmp_path / "marks.csv", say=say, limits=LIMITS)
    assert damaged.differences(first, right) == [] and "3 to grade" in said[0]
    assert (tmp_path / "marks" / "seed.txt").stat().st_mode & 0o77 == 0
    with open(tmp_path / "marks" / "results.jsonl", "a") as file:
        file.write('{"student": "cut sho')  # as a power cut leaves it
    (folder / "wrong-0" / damaged.NOTEBOOK).write_bytes(
        (folder / "whole-0" / damaged.NOTEBOOK).read_bytes()
    )
    shutil.rmtree(folder / "as_handed_out-0")
    said.clear()
    second = grade(folder, tmp_path / "marks.csv", say=say, limits=LIMITS)
    assert "2 submissions, 1 to grade" in said[0]  # only what has changed
    assert {r["student"]: {n for n, _ in r["findings"].values()} for r in second} == {
        "whole-0": {"right"},
        "wrong-0": {"right"},
    }


def test_refusals(tmp_path):
    for folder, words in ((tmp_path / "none", "no folder"), (tmp_path, "no submissions")):
        with pytest.raises(OptionError, match=words):
            grade(folder, tmp_path / "m.csv", say=quiet)
    (tmp_path / "a.ipynb").write_text("{}")
    (tmp_path / "list.json").write_text('{"notebooks": {"x": {"exercises": {"99.9": "f"}}}}')
    with pytest.raises(OptionError, match="99.9"):
        grade(tmp_path, tmp_path / "m.csv", tmp_path / "list.json", say=quiet)
    assert not (tmp_path / "m.csv").exists()


def test_links_are_not_followed(tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_text("{}")
    folder = tmp_path / "s"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x.ipynb").symlink_to(secret)
    (folder / "b.ipynb").symlink_to(secret)
    (folder / "c.IPYNB").write_text("{}")
    os.mkfifo(folder / "a" / "pipe.ipynb")
    os.mkfifo(folder / "pipe.py")
    assert submissions(folder) == {"a": [], "c": [folder / "c.IPYNB"]}


def test_a_table_among_the_submissions_is_refused(tmp_path):
    """Its pages, and the seed, would be a student's; so would a table without an ending be its own folder."""
    (tmp_path / "week1").mkdir()
    (tmp_path / "week1" / "ann.ipynb").write_text("{}")
    for table, words in (
        (tmp_path / "week1.csv", "among the submissions"),
        (tmp_path / "week1" / "marks.csv", "among the submissions"),
        (tmp_path / "marks", "marks.csv"),
    ):
        with pytest.raises(OptionError, match=words):
            grade(tmp_path / "week1", table, say=quiet)
    assert len(list(tmp_path.rglob("*"))) == 2


def test_an_interrupted_run_leaves_the_old_marks_of_what_has_changed_out(tmp_path, monkeypatch):
    """Also those that are none: a list, bytes that are no text, a result of other exercises."""
    from ddpm_edu.classroom import grade as room

    for name in ("ann", "bo"):
        (tmp_path / "s" / name).mkdir(parents=True)
    (tmp_path / "m").mkdir()
    old = json.dumps({"student": "ann", "digest": "another", "findings": {}})
    (tmp_path / "m" / "results.jsonl").write_bytes(b"[1]\n\xff\n" + f"{old}\n".encode())
    monkeypatch.setattr(room, "_work", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grade(tmp_path / "s", tmp_path / "m.csv", say=quiet)
    assert (tmp_path / "m.csv").read_text().count("\n") == 1


def test_formulas_do_not_reach_a_spreadsheet():
    from ddpm_edu.classroom.grade import _safe

    assert [_safe(c) for c in ("=1+1", "@a", "-b", "Ann", 3)] == ["'=1+1", "'@a", "'-b", "Ann", 3]
    for text in ("\n=cmd()", "  +1", "＝1", "\tx"):
        assert _safe(text) == f"'{text}"


# ---------------------------------------------------------------- what an answer needs


def needed(*cells, exercise="01.1", handed_out="f"):
    script = notebook._script("01_x.ipynb", list(enumerate(cells, 1)))
    return [
        [s.cell for s in v.statements] for v in notebook.versions([script], exercise, handed_out)
    ]


@pytest.mark.parametrize(
    "cells, runs",
    [
        (("import torch", "x = train()", "def f(a): return torch.sin(a)", "check('01.1', f)"), [[1, 3]]),
        (("k = 1", "k += 1", "def f(a): return g(a)", "def g(a): return k * a", "check('01.1', f)"), [[1, 2, 3, 4]]),
        (("def f(a): return 1", "check('01.1', f)", "def f(a): ..."), [[1], [3]]),
        (("def f(a): ...", "def f(a): return 1", "check('01.1', f)"), [[2], [1]]),
        (("check('01.1', f)", "def f(a): return 1"), [[2]]),
        (("def f(a): return 1",), [[1]]),
        (("w = 2", "check('01.1', lambda a: w * a)"), [[1]]),
        (("t = {}", "t['a'] = 1", "def f(a): return t[a]", "t['b'] = 2", "check('01.1', f)"), [[1, 2, 3, 4]]),
        (("def f(a):\n    model = 1\n    return model", "model = train()", "check('01.1', f)"), [[1]]),
        (("def f(a): return 1", "f = use('01.1', f)"), [[1]]),
        (("def g(a): return 1",), []),
    ],
)  # fmt: skip
def test_what_runs_before_an_answer(cells, runs):
    assert needed(*cells) == runs


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_leaves_no_process(stub, tmp_path):
    class_of(stub, tmp_path, ("whole", "endless"))
    command = [
        sys.executable,
        "-m",
        "ddpm_edu.cli",
        "grade",
        str(tmp_path / "submissions"),
        "--csv",
        str(tmp_path / "marks.csv"),
    ]
    process = subprocess.Popen(
        [*command, "--jobs", "1", "--seconds", "60"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    results = tmp_path / "marks" / "results.jsonl"
    lines = [process.stdout.readline()]
    time.sleep(5)  # it is in the endless one, or on the way to it
    below = below_of(process.pid)
    assert below
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 130, lines + [rest]
    assert not results.exists() or "endless" not in results.read_text()
    deadline = time.monotonic() + 15  # what has ended is there until the first process reaps it
    while left := below & {int(p) for p in ps("pid")}:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def ps(columns):
    return subprocess.run(
        ["ps", "axo", columns], capture_output=True, text=True
    ).stdout.splitlines()[1:]


def below_of(pid):
    """Its children and theirs."""
    pairs = [tuple(map(int, line.split())) for line in ps("pid,ppid")]
    found = {pid}
    for _ in range(4):
        found |= {child for child, parent in pairs if parent in found}
    return found - {pid}


def test_no_process_is_no_mark(stub, tmp_path, monkeypatch):
    class_of(stub, tmp_path, ("whole",))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ResourceError, match="no process"):
        grade(tmp_path / "submissions", tmp_path / "marks.csv", say=quiet)
    assert not (tmp_path / "marks" / "results.jsonl").exists()


def course():
    return sorted((damaged.ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.slow
def test_the_solutions_of_all_notebooks_are_right_and_the_empty_cells_are_not(tmp_path):
    """Three students: one who copied every solution, one whose copies are empty, one who sent the teacher's files back."""
    assert main(["student", *map(str, course()), "--out", str(tmp_path / "out")]) == 0
    for student in ("solved", "empty", "originals"):
        (tmp_path / "s" / student).mkdir(parents=True)
    for file in course():
        original, copy = (
            json.loads(file.read_text()),
            json.loads((tmp_path / "out" / file.name).read_text()),
        )
        solutions = [c for c in original["cells"] if "solution" in c["metadata"].get("tags", [])]
        solved = copy | {
            "cells": copy["cells"]
            + [damaged.code(c["source"]) for c in solutions if c["cell_type"] == "code"]
        }
        for student, nb in (("solved", solved), ("empty", copy), ("originals", original)):
            (tmp_path / "s" / student / file.name).write_text(json.dumps(nb))
    results = grade(
        tmp_path / "s",
        tmp_path / "m.csv",
        tmp_path / "out" / "handed_out.json",
        limits=Limits(20),
        say=quiet,
    )
    results = {r["student"]: r["findings"] for r in results}
    names = {
        name
        for file in course()
        for name in importlib.import_module(f"ddpm_edu.exercises.nb{file.name[:2]}").EXERCISES
    }
    assert set(results["solved"]) == names
    assert {e: f for e, f in results["solved"].items() if f[0] != "right"} == {}
    for student in ("empty", "originals"):
        assert {e: f for e, f in results[student].items() if f[0] != "not attempted"} == {}
