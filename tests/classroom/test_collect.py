"""Zips of learning platforms are unpacked by student; dangerous ones are refused and leave nothing."""

import io
import json
import os
import stat
import struct
import zipfile

import pytest

from ddpm_edu.classroom import collect as room
from ddpm_edu.classroom.collect import clean, collect
from ddpm_edu.cli import main
from ddpm_edu.errors import DataError, OptionError

NB = json.dumps({"cells": []}).encode()
N = "01_forward_process.ipynb"


def zipped(files: dict) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in files.items():
            z.writestr(name, content)
    return out.getvalue()


def unpacked(tmp_path, files, name="class.zip"):
    (tmp_path / name).write_bytes(files if isinstance(files, bytes) else zipped(files))
    lines = collect(tmp_path / name, tmp_path / "out")
    tree = {
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    return tree, lines


@pytest.mark.parametrize(
    "platform, names",
    [
        ("Moodle", ["Ann Lee_123_assignsubmission_file_/{}", "王 小明_124_assignsubmission_file_/{}"]),
        ("Moodle", ["Ann Lee_123_assignsubmission_file_{}", "王 小明_124_assignsubmission_file_{}"]),
        ("Canvas", ["Ann Lee_123_9001_{}", "王 小明_LATE_124_9002_{}"]),
        ("Blackboard", ["Week 1_Ann Lee_attempt_2026-11-28-10-00-00_{}", "Week 1_王 小明_attempt_2026-11-28-11-00-00_{}"]),
        ("Brightspace", ["12-34 - Ann Lee - Nov 28, 2026 1005 AM/{}", "12-35 - 王 小明 - 28 November, 2026 1105/{}"]),
        ("Sakai", ["Week 1/Ann Lee(ann1)/Submission attachment(s)/{}", "Week 1/王 小明(wang)/Submission attachment(s)/{}"]),
        ("Google Classroom", ["Ann Lee - {}", "王 小明 - {}"]),
        ("a folder a student", ["Ann Lee/work/{}", "王 小明/{}"]),
        ("a folder a student", ["week1/Ann Lee/work/{}", "week1/王 小明/x/{}"]),
    ],
)  # fmt: skip
def test_every_platform_by_name(tmp_path, platform, names):
    files = {name.format(N): NB for name in names} | {"__MACOSX/._x": b"x", "index.html": b"<html>"}
    if any(name.startswith("week1/") for name in names):
        files.pop("index.html")
    tree, lines = unpacked(tmp_path, files)
    assert tree == {f"Ann Lee/{N}", f"王 小明/{N}"}
    assert lines[0] == f"students: 2, notebooks: 2, named as {platform} does"


def test_two_students_of_one_name_and_files_of_one_name(tmp_path):
    files = {
        f"Ann Lee_1_assignsubmission_file_/{N}": NB,
        f"Ann Lee_1_assignsubmission_file_/again/{N}": NB,
        f"Ann Lee_2_assignsubmission_file_/{N}": NB,
        "Bo_3_assignsubmission_file_/notes.pdf": b"x",
        "Bo_3_assignsubmission_file_/work.zip": zipped(
            {f"a/{N}": NB, "a/.ipynb_checkpoints/x.ipynb": NB}
        ),
    }
    tree, lines = unpacked(tmp_path, files)
    assert tree == {
        f"Ann Lee/{N}",
        "Ann Lee/01_forward_process (2).ipynb",
        f"Ann Lee_2/{N}",
        f"Bo/{N}",
    }
    assert any("notes.pdf" in line for line in lines[1:])


def test_no_two_students_share_a_folder(tmp_path):
    """Names that are alike but for their letters' case, or become so when they are cut or cleaned."""
    long, wide = "N" * 200, "字" * 100
    names = ("Ann", "ann", "ann (2)", "a?", "a*", f"{long}1", f"{long}2", f"{wide}1", f"{wide}2")
    tree, lines = unpacked(tmp_path, {f"{name}/{wide}.IPYNB": name for name in names})
    assert "students: 9, notebooks: 9" in lines[0]
    texts = [(tmp_path / "out" / path).read_text() for path in tree]
    assert sorted(texts) == sorted(names) and all(path.endswith(".IPYNB") for path in tree)


def test_a_notebook_a_student_and_one_that_prints_a_line_for_ever(tmp_path):
    """The line becomes 10 MB, which is much and no bomb; what is one is left out, the rest is not."""
    line = b'"Epoch 1, loss 0.1234",' * 400_000
    files = {"ann.ipynb": NB, "bo b.ipynb": line, "cy.ipynb": b"0" * 2**25}
    tree, lines = unpacked(tmp_path, files)
    assert tree == {"ann/ann.ipynb", "bo b/bo b.ipynb"}
    assert [line for line in lines if "bomb" in line] == lines[1:] and "cy" in lines[1]


def bomb(size):
    return zipped({f"Ann/{N}": b"0" * size})


def link():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        info = zipfile.ZipInfo(f"Ann/{N}")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, "/etc/passwd")
    return out.getvalue()


def lying():
    """Says that its file is small: the size in the directory is changed."""
    raw = bytearray(zipped({f"Ann/{N}": bytes(range(256)) * 3000}))
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 10)
    return bytes(raw)


DANGEROUS = {
    "slip": lambda: zipped({"../../evil.ipynb": NB}),
    "slip behind a name": lambda: zipped({"Ann/../../evil.ipynb": NB}),
    "backslashes": lambda: zipped({"Ann\\..\\..\\evil.ipynb": NB}),
    "absolute": lambda: zipped({"/tmp/evil.ipynb": NB}),
    "drive": lambda: zipped({"C:\\evil.ipynb": NB}),
    "link": link,
    "bomb": lambda: bomb(30 * 2**20),
    "lying": lying,
    "no zip": lambda: b"hello",
    "cut short": lambda: zipped({f"Ann/{N}": NB})[:-30],
    "empty": lambda: zipped({}),
    "no notebooks": lambda: zipped({"Ann/a.pdf": b"x"}),
}


@pytest.mark.parametrize("kind", DANGEROUS)
def test_dangerous_zips_are_refused_and_leave_nothing(tmp_path, kind):
    (tmp_path / "x.zip").write_bytes(DANGEROUS[kind]())
    with pytest.raises(DataError):
        collect(tmp_path / "x.zip", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"] and not (
        tmp_path.parent / "evil.ipynb"
    ).exists()


@pytest.mark.parametrize("kind", [k for k in DANGEROUS if k not in ("empty", "no notebooks")])
def test_one_students_dangerous_zip_leaves_the_others(tmp_path, kind):
    files = {f"Ann/{N}": NB, f"Bo/{N}": NB, "Cy/mine.zip": DANGEROUS[kind]()}
    tree, lines = unpacked(tmp_path, files)
    assert tree == {f"Ann/{N}", f"Bo/{N}"} and any(
        line.startswith("left out: Cy: ") for line in lines
    )


def test_sizes_are_counted_while_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MAX_FILE", 2**16)
    with pytest.raises(DataError, match="too large"):
        unpacked(tmp_path, {f"Ann/{N}": bytes(range(256)) * 1000})
    monkeypatch.setattr(room, "MAX_FILES", 2)
    with pytest.raises(DataError, match="files"):
        unpacked(tmp_path, {f"{i}/{N}": NB for i in range(3)})


def test_the_command(tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(zipped({f"Ann/{N}": NB}))
    command = ["collect", str(tmp_path / "x.zip"), "--out", str(tmp_path / "out")]
    assert main(command) == 0 and "students: 1" in capsys.readouterr().out
    assert main(command) == 2 and "there already" in capsys.readouterr().err
    assert main(["collect", str(tmp_path / "no.zip"), "--out", str(tmp_path / "b")]) == 2
    assert "no.zip" in capsys.readouterr().err and not (tmp_path / "b").exists()
    with pytest.raises(OptionError):
        collect(tmp_path / "x.zip", tmp_path / "out")
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(DataError, match="pipe"):
        collect(tmp_path / "pipe.zip", tmp_path / "b")


@pytest.mark.parametrize(
    "name, safe",
    [("a/b:c", "a_b_c"), ("..", "unnamed"), ("CON", "_"), ("é\0", "é_"), (" x. ", "x")],
)
def test_names(name, safe):
    assert clean(name) == safe
