"""The challenge: what an entry may not do brings 0 points and a named cause, and the board goes on."""

import dataclasses
import html
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import refuses

import ddpm_edu.challenge as challenge
from ddpm_edu import Cond, class_cond, noise
from ddpm_edu.challenge import results as files
from ddpm_edu.challenge.board import board, page
from ddpm_edu.challenge.judge import Counted, clean, judged, processes, readable
from ddpm_edu.challenge.oral import QUESTIONS, markdown
from ddpm_edu.challenge.results import Result, collected, read, write
from ddpm_edu.challenge.rules import BUDGETS, Clock, Rules, labels_of, network, points
from ddpm_edu.classroom.learner import told
from ddpm_edu.cli import main
from ddpm_edu.errors import DataError, OptionError
from ddpm_edu.show.widgets import oral
from ddpm_edu.training.recipes import SMALL

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs the limits of Unix")
ENTRIES = Path(challenge.__file__).parent / "entries"
QUICK = Rules(seconds=0.5, pictures=100, sampling=2, patience=30, memory=2**29)
SECRET = "the teacher's own token"
TRAIN = "    return net\n"
SAMPLE = "    return x_T.clamp(-1, 1)\n"


def source(train=TRAIN, sample=SAMPLE, head="") -> str:
    """An entry with these bodies."""
    return (
        f"{head}\nimport torch\ndef train(net, data, clock):\n    {train.strip()}\n"
        f"def sample(net, x_T, labels, evaluations):\n    {sample.strip()}\n"
    )


@pytest.fixture(scope="module")
def nursery():
    with processes() as made:
        yield made


# ---------------------------------------------------------------- attacks: (train, sample), cause

CALL = "net(x_T, torch.zeros(len(x_T)))"
IN_TRAINING = {
    "loops_and_catches_everything": (
        "while True:\n        try:\n            while True: pass\n        except BaseException: pass",
        "too slow", "processor time"),
    "prints_secrets": (
        "import os; print(dict(os.environ))\n    raise ValueError(os.environ['COURSE_TOKEN'])",
        "error", "KeyError"),
    "reads_its_parent": ("import os; open(f'/proc/{os.getppid()}/environ').read()", "error", "denied"),
    "calls_home": ("import socket; socket.create_connection(('127.0.0.1', 1), 1)", "error", "PermissionError"),
    "listens": ("import socket; socket.socket().bind(('', 0))", "error", "PermissionError"),
    "forks": ("import os\n    for _ in range(100): os.fork()", "error", "PermissionError"),
    "starts_programs": ("import subprocess; subprocess.Popen(['sleep', '4242'])", "error", "PermissionError"),
    "kills": ("import os; os.kill(os.getppid(), 9)", "error", "PermissionError"),
    "eats_memory": ("x = [torch.ones(2**26) for _ in range(100)]", "too much memory", ""),
    "writes_outside": ("open('FOLDER/written', 'w').write('x')", "error", "denied"),
    "writes_points": ("open('FOLDER/other.json', 'w').write('{}')", "error", "denied"),
    "reads_a_neighbour": ("open('FOLDER/neighbour.py').read()", "error", "denied"),
    "reads_the_classifier": ("from ddpm_edu import load; load('mnist_classifier')", "error", ""),
    "reads_shipped_weights": ("from ddpm_edu import load; return load('mnist')[0]", "error", ""),
    "reads_the_test_digits": (
        "from ddpm_edu.datasets.images import mnist; mnist('test')", "error", ""),
    "reads_an_entry_of_ours": (
        "from ddpm_edu.challenge.entries import quick", "error", ""),
    "exits": ("import os; os._exit(7)", "ended", "status 7"),
    "leaves_by_signal": ("import ctypes; ctypes.string_at(1)", "ended", "signal 11"),
    "answers_with_a_gigabyte": ("return {'x': torch.zeros(2**28, dtype=torch.int8)}", "too large", ""),
    "writes_rubbish": (
        "import os\n    for h in range(3, 64):\n        try: os.write(h, os.urandom(10**5))\n"
        "        except OSError: pass\n    return net", "rubbish|too large", ""),
    "asks_while_training": (
        "import os, json, struct\n    raw = json.dumps({'call': 1, 'arguments': []}).encode()\n"
        "    for h in range(3, 64):\n        try: os.write(h, struct.pack('>I', len(raw)) + raw)\n"
        "        except OSError: pass\n    return net", "rubbish", ""),
    "returns_nothing": ("pass", "wrong weights", "must return net"),
    "returns_other_names": ("return {'weight': torch.zeros(3)}", "wrong weights", "all its names"),
    "returns_other_shapes": (
        "return {k: v[..., None] for k, v in net.state_dict().items()}", "wrong weights", "must have shape"),
    "returns_whole_numbers": (
        "return {k: v.long() for k, v in net.state_dict().items()}", "wrong weights", "not floats"),
    "returns_nan": (
        "return {k: v * float('nan') for k, v in net.state_dict().items()}", "not a number", "NaN"),
    "raises_what_cannot_be_shown": (
        "class E(Exception):\n        def __str__(self): raise E\n    raise E", "error", "stopped with E"),
}  # fmt: skip
IN_SAMPLING = {
    "loops_late": ("while True: pass", "too slow", "processor time"),
    "one_too_many": (
        f"for _ in range(evaluations + 1): x = {CALL}\n    return x", "too many evaluations", "200 were asked for, 100 are allowed"),
    "hides_the_refusal": (
        f"for _ in range(evaluations + 1):\n        try: x = {CALL}\n        except ValueError: pass\n    return x",
        "too many evaluations", ""),
    "guides_twice": (
        "x = torch.cat([x_T, x_T]); net(x, torch.zeros(len(x)))\n    return x_T", "too many evaluations", ""),
    "asks_for_nothing_much": ("net(x_T[:, :, :3], torch.zeros(len(x_T)))", "error", "shape"),
    "asks_with_nan": ("net(x_T / 0 * 0, torch.zeros(len(x_T)))", "error", "NaN"),
    "opens_the_network_late": ("import socket; socket.socket()", "error", "PermissionError"),
    "reads_the_data_late": ("from ddpm_edu.datasets.images import mnist; mnist('train')", "error", ""),
    "looks_for_weights": ("import torch as t\n    raise ValueError(net.__closure__ and net.state_dict())", "error", "AttributeError"),
    "draws_nan": ("return x_T / 0 * 0", "not a number", "pictures"),
    "draws_too_few": ("return x_T[:-1]", "wrong shape", r"\(99, 1, 28, 28\)"),
    "draws_bytes": ("return x_T.byte()", "wrong shape", "uint8"),
    "draws_words": ("return 'a seven'", "wrong shape", "str"),
    "equals_everything": (
        "class Any:\n        __eq__ = lambda self, other: True\n        shape = x_T.shape\n    return Any()",
        "wrong shape", "Any"),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_TRAINING)
def test_attacks_in_training(name, nursery, tmp_path, monkeypatch):
    body, cause, words = IN_TRAINING[name]
    attack(tmp_path, monkeypatch, nursery, source(body), cause, words)


@pytest.mark.parametrize("name", IN_SAMPLING)
def test_attacks_in_sampling(name, nursery, tmp_path, monkeypatch):
    body, cause, words = IN_SAMPLING[name]
    attack(tmp_path, monkeypatch, nursery, source(sample=body), cause, words)


def attack(folder, monkeypatch, nursery, text, cause, words):
    """The entry has 0 points and this cause; nothing was read, written, or left behind."""
    monkeypatch.setenv("COURSE_TOKEN", SECRET)
    (folder / "neighbour.py").write_text(source())
    file, said = folder / "attack.py", []
    file.write_text(text.replace("FOLDER", str(folder)))
    result = judged(file, QUICK, seed=0, say=said.append, nursery=nursery)
    assert re.fullmatch(cause, result.cause), (result.cause, result.message)
    assert re.search(words, result.message), result.message
    assert result.points == 0 and not result.scores and not result.picture
    assert SECRET not in " ".join([*said, json.dumps(dataclasses.asdict(result))])
    assert sorted(p.name for p in folder.iterdir()) == ["attack.py", "neighbour.py"]
    assert read(write(result, folder / "attack.json")) == result


def test_an_error_that_no_line_of_theirs_raised_is_told():
    """Such as a call with too many arguments, where their function never begins."""
    assert told(TypeError("too many")) == ("error", "Your code stopped with TypeError: too many")


def test_one_that_sleeps_is_stopped_by_the_clock(nursery, tmp_path):
    (tmp_path / "sleeps.py").write_text(source("import time; time.sleep(10**6)"))
    rules = dataclasses.replace(QUICK, patience=1)
    result = judged(tmp_path / "sleeps.py", rules, seed=0, nursery=nursery)
    assert result.cause == "too slow" and "long after" in result.message


# ---------------------------------------------------------------- what is harmless, and what counts

TRICKS = """
import ddpm_edu.metrics.frechet as metrics, ddpm_edu.challenge.rules as rules
metrics.accuracy = lambda *a: 1.0
metrics.frechet_to_real = lambda *a, **k: 0.0
rules.points = rules.of_one = lambda *a: 100.0
rules.Clock.done = lambda self: 0.0
"""


@pytest.fixture(scope="module")
def harmless(nursery, tmp_path_factory):
    """An entry that patches what it can reach, prints much, and draws with what it may use."""
    folder, said = tmp_path_factory.mktemp("harmless"), []
    train = "import sys\n    for _ in range(100): print('x' * 10**7)\n    sys.stdout.write('done \\x1b[2J')\n    return net"
    file = folder / "tricks.py"
    draw = f"for _ in range(evaluations): {CALL}\n    return x_T.clamp(-1, 1)"
    file.write_text(source(train, draw, TRICKS))
    return judged(file, QUICK, seed=3, command="by hand", say=said.append, nursery=nursery), said


def test_patching_the_judge_changes_nothing(harmless):
    result, _ = harmless
    assert result.cause == "judged" and 0 < result.points < 1  # noise: 10 % right, far from digits
    assert [*result.scores] == list(BUDGETS)
    assert all(s["accuracy"] <= 0.2 and s["frechet"] > 20 for s in result.scores.values())


def test_a_gigabyte_of_print_is_cut_to_its_end(harmless):
    _, said = harmless
    (printed,) = (text for text in said if "printed" in text)
    assert printed.endswith("done  [2J") and len(printed) < 2100 and "\x1b" not in printed


def test_the_walls_are_named(harmless):
    assert "limits" in harmless[0].walls
    if os.uname().sysname == "Linux" and os.uname().machine == "x86_64":
        assert {"network", "processes"} <= set(harmless[0].walls)


def test_a_result_says_where_it_comes_from_and_is_read_as_written(harmless, tmp_path):
    result, _ = harmless
    assert result.command == "by hand" and result.seed == 3 and torch.__version__ in result.versions
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result.date) and len(result.sha256) == 64
    assert read(write(result, tmp_path / "tricks.json")) == result


@pytest.mark.parametrize(
    "text, cause",
    [
        ("def train(net, data, clock): return net\n", "missing"),
        ("def train(:\n", "syntax error"),
        ("x = 1 +\n", "syntax error"),
        ("(" * 5000, "syntax error"),
        (b"\xff\xfe\x00", "unreadable"),
        ("", "missing"),
        (source() + "#" * 20_000, "too large"),
    ],
)  # fmt: skip
def test_files_that_are_no_entries(text, cause, tmp_path):
    file = tmp_path / "x.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert judged(file, QUICK, seed=0, nursery=object()).cause == cause  # no process is made


def test_each_evaluation_of_each_picture_is_counted():
    counted = Counted(network().eval(), most=10)
    x, t, c = torch.randn(6, 1, 28, 28), torch.full((6,), 3.0), class_cond(torch.arange(6)).vector
    assert "back" in counted((x, t, c)) and counted.count == 6
    assert "failed" in counted((x, t, c)) and counted.over == 12 and counted.count == 6
    assert "back" in counted((x[:4], t[:4], c[:4])) and counted.count == 10
    assert "failed" in counted((x, t[:2], c)) and "failed" in counted((x, t, c[:, :3]))


def test_the_network_from_afar_is_the_network():
    from ddpm_edu.classroom.wire import decode

    net = network().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
    x, t = noise((1, 28, 28), range(300)), torch.arange(300.0)
    cond = class_cond(torch.arange(300) % 10)
    with torch.no_grad():
        here = net(x, t, cond)
    there = decode(Counted(net, 300)((x, t, cond.vector))["back"])
    assert here.abs().max() > 0.1
    torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- rules


def test_points():
    one = lambda a, f: {n: {"accuracy": a, "frechet": f} for n in BUDGETS}
    assert points(one(1.0, 0.0)) == 100 and points(one(0.5, 0.0)) == 50
    assert points(one(1.0, 1.0)) == 50 and points(one(0.0, 0.0)) == 0
    mixed = one(1.0, 0.0) | {1: {"accuracy": 0.0, "frechet": 9.0}}
    assert points(mixed) == 75


def test_network_and_labels():
    net = network()
    assert sum(p.numel() for p in net.parameters()) == 73_364
    assert (
        net(torch.zeros(2, 1, 28, 28), torch.zeros(2), Cond(vector=torch.zeros(2, 10))).eq(0).all()
    )
    assert labels_of(1000).bincount().tolist() == [100] * 10
    assert SMALL.patch == 2


def test_the_clock_counts_processor_time():
    clock = Clock(1e9)
    before = clock.used()
    sum(range(10**6))
    assert clock.used() > before and 0 < clock.done() < 1e-3


@pytest.mark.parametrize(
    "field, value",
    [("seconds", 0), ("seconds", float("nan")), ("pictures", 10), ("memory", 0), ("patience", 0.1)],
)
def test_rules_refuse(field, value):
    with refuses(OptionError, field):
        Rules(**{field: value})


# ---------------------------------------------------------------- our entries, the board, the command


@pytest.mark.parametrize("name", ["plain", "quick", "few"])
def test_our_entries_run_within_the_rules(name, nursery):
    """So short a training draws nothing; that it counts as it should is what is seen here."""
    file = ENTRIES / f"{name}.py"
    readable(file.read_bytes())
    rules = dataclasses.replace(QUICK, seconds=1.0, sampling=10)
    result = judged(file, rules, seed=0, nursery=nursery)
    assert result.cause == "judged", result.message
    assert rules.budget <= result.trained < 1.02 * rules.budget + 2


def a_result(name="ada", points=50.0, **changes):
    scores = {n: {"accuracy": points / 100, "frechet": 0.0} for n in BUDGETS}
    facts = dict(sha256="0" * 64, seconds=30.0, pictures=1000, seed=1, date="2026-11-29")
    facts |= dict(device="x86_64 CPU", versions="torch 2", command="ddpm-edu", cause="judged")
    picture = files.picture(torch.zeros(40, 1, 28, 28))
    return Result(
        entry=name, **facts | dict(points=points, scores=scores, picture=picture) | changes
    )


FAILED = dict(cause="too slow", message="It loops.", points=0.0, scores={}, picture="")


def test_the_board_is_sorted_and_names_what_it_leaves_out(tmp_path):
    for result in (a_result("ada", 40.0), a_result("bob", 60.0), a_result("cem", **FAILED)):
        write(result, tmp_path / f"{result.entry}.json")
    (tmp_path / "dan.json").write_text("{")
    (tmp_path / "eve.json").write_text(json.dumps({"challenge": 1, "entry": "eve", "points": 1000}))
    path, left_out = board(tmp_path, tmp_path / "board.html")
    text = path.read_text()
    rows = re.findall(r'<th scope="row">(.*?)</th>', text)
    assert rows == ["bob", "ada", "cem"] and "It loops." in text and text.count("too slow") == 2
    assert len(left_out) == 2 and all(name in text for name in ("dan.json", "eve.json"))
    assert "whoever can write there" in text and 'lang="en"' in text and "viewport" in text
    assert text.count("<img") == text.count('alt="Digits') == 2 and "http" not in text


def test_entries_with_other_times_stand_apart():
    text = page([a_result("ada"), a_result("bob", 90.0, seconds=60.0)])
    assert text.count("<table>") == 2 and text.index("60 seconds") < text.index("30 seconds")


def test_nothing_of_a_result_becomes_html():
    evil = "<script>alert(1)</script>"
    result = a_result(evil.replace("/", ""), command=evil, versions=evil, device=evil, walls=[evil])
    failed = a_result("x", **FAILED | {"cause": evil, "message": evil})
    text = page([result, failed], [evil])
    assert "<script" not in text and html.escape(evil) in text


def test_a_changed_entry_is_noticed(tmp_path):
    write(a_result("ada"), tmp_path / "ada.json")
    (tmp_path / "ada.py").write_text(source())
    assert (
        "ada.py has changed since it was judged"
        in board(tmp_path, tmp_path / "b.html")[0].read_text()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"points": 101}, {"points": -1}, {"points": "90"}, {"points": float("nan")},
        {"points": True}, {"scores": {}}, {"scores": {"1": {"accuracy": 1, "frechet": 0}}},
        {"scores": {str(n): {"accuracy": 2, "frechet": 0} for n in BUDGETS}},
        {"scores": {str(n): {"accuracy": 1} for n in BUDGETS}}, {"scores": [1]},
        {"picture": "no base64!"}, {"picture": "aGVsbG8="}, {"sha256": "0"}, {"challenge": 2},
        {"cause": "error"}, {"unknown": 1}, {"entry": "../ada"}, {"entry": None},
        {"entry": ""}, {"entry": "a\ud800"}, {"entry": "a" * 99}, {"entry": "a\x1b"}, {"walls": 1},
    ],
    ids=lambda change: f"{[*change][0]}-{[*change.values()][0]!a:.9}",
)  # fmt: skip
def test_broken_results_are_refused(change, tmp_path):
    good = json.loads(write(a_result(), tmp_path / "good.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(good | change))
    with refuses(DataError, "bad.json", "no result"):
        read(tmp_path / "bad.json")
    found, broken = collected(tmp_path)
    assert [r.entry for r in found] == ["ada"] and "bad.json" in broken[0]


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 10**5, "\ud800".encode("utf-8", "surrogatepass"), "x" * 300_000]
)
def test_files_that_are_no_results(text, tmp_path):
    (tmp_path / "bad.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with refuses(DataError, "bad.json"):
        read(tmp_path / "bad.json")


def test_pipes_and_characters_that_are_none_do_not_stop_the_board(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    odd = dataclasses.replace(a_result("bo"), device="x86 \ud800")
    write(odd, tmp_path / "bo.json")
    page, broken = board(tmp_path, tmp_path / "b.html")
    assert "x86 ?" in page.read_text() and "pipe.json: no result" in broken[0]


def test_command(tmp_path, capsys):
    shutil.copy(ENTRIES / "plain.py", tmp_path)
    (tmp_path / "zero.py").write_text(source("return 1 / 0"))
    run = ["challenge", "run", str(tmp_path / "zero.py"), str(tmp_path / "plain.py")]
    limits = ["--seconds", "0.8", "--pictures", "100", "--patience", "30", "--seed", "5"]
    assert main([*run, *limits]) == 0
    out = capsys.readouterr().out
    assert "0.0 points, error: Your code stopped with ZeroDivisionError" in out
    assert "plain.py: it printed: " in out and read(tmp_path / "plain.json").points > 0
    assert main(["challenge", "board", str(tmp_path)]) == 0
    text = (tmp_path / "board.html").read_text()
    assert "ZeroDivisionError" in text and "whoever can write" in text
    forged = dataclasses.replace(read(tmp_path / "plain.json"), points=99.0)
    write(forged, tmp_path / "plain.json")
    assert main(["challenge", "board", str(tmp_path), "--rerun", *limits]) == 0
    assert read(tmp_path / "plain.json").points < 20
    assert "judged anew" in (tmp_path / "board.html").read_text()


@pytest.mark.parametrize(
    "args, words",
    [
        (["run", "FOLDER/nothing.py"], "nothing.py"),
        (["run", "FOLDER"], "FOLDER"),
        (["run", "FOLDER/a.py", "--seconds", "0"], "seconds"),
        (["run", "FOLDER/a.py", "--pictures", "3"], "pictures"),
        (["run", "FOLDER/a.py", "--memory", "0"], "--memory"),
        (["run", "FOLDER/a.py", "--seed", "-1"], "--seed"),
        (["run", "FOLDER/a.py", "--out", "FOLDER/none"], "does not exist"),
        (["run", "FOLDER/a.py", "FOLDER/b/a.py"], "b does not exist"),
        (["board", "FOLDER/none"], "no such folder"),
        (["board", "FOLDER"], "no result"),
        (["board", "FOLDER/empty", "--rerun"], "no entry"),
    ],
)
def test_command_refuses(args, words, tmp_path, capsys):
    (tmp_path / "a.py").write_text(source())
    (tmp_path / "empty").mkdir()
    args = [a.replace("FOLDER", str(tmp_path)) for a in args]
    assert main(["challenge", *args]) == 2
    assert re.search(words.replace("FOLDER", str(tmp_path)), capsys.readouterr().err)
    assert not list(tmp_path.glob("*.json"))


def test_characters_that_move_a_cursor_are_not_shown():
    assert clean("a\x1b[31mb\r\u202ec\nd") == "a [31mb  c\nd"


# ---------------------------------------------------------------- the oral part


def test_notebook_18_asks_the_thirty_questions_as_they_are():
    (path,) = (Path(__file__).parent.parent / "notebooks").glob("18_*.ipynb")
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    assert len(QUESTIONS) == 30 and len({q.text for q in QUESTIONS}) == 30
    for k in range(1, 31):
        assert any(cell.endswith(markdown(k)) for cell in cells), k


def test_the_questions_cover_notebooks_00_to_17():
    assert {n for q in QUESTIONS for n in q.notebooks} == {f"{n:02}" for n in range(18)}
    assert all(2 <= len(re.findall(r"[.?:](?:\s|$)", q.answer)) for q in QUESTIONS)
    assert set(re.findall(r"<(/?\w+)>", "".join(q.answer for q in QUESTIONS))) == {"sub", "/sub"}


def test_the_draw_is_the_seeds_and_ratings_say_what_to_read():
    asked = [(q.text, q.answer, q.notebooks) for q in QUESTIONS]
    one, other = oral(asked, n=10, seed=1), oral(asked, n=10, seed=2)
    assert one.numbers == oral(asked, n=10, seed=1).numbers != other.numbers
    assert len(set(one.numbers)) == 10 and one.questions[0][0] == asked[one.numbers[0] - 1][0]
    quiz = oral([("a", "b", ["01"]), ("c", "d", ["02", "01"]), ("e", "f", ["03"])], n=3)
    quiz.rated = [{"a": 1, "c": 2, "e": 0}[text] for text, *_ in quiz.questions]
    assert quiz.again == ["01", "02"]
    assert "<details>" in quiz.page() and quiz.caption in html.unescape(quiz.page())


@pytest.mark.parametrize(
    "questions, n, words",
    [([], 1, "n"), ([("a", "b", ["01"])], 2, "n = 2"), ([("", "b", ["01"])], 1, "question"),
     ([("a", " ", ["01"])], 1, "answer"), ([("a", "b", [])], 1, "notebooks")],
)  # fmt: skip
def test_oral_refuses(questions, n, words):
    with refuses(OptionError, words):
        oral(questions, n=n)
