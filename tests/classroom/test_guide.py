"""CLASSROOM.md says what is so: the number of exercises a week, the commands, the names of what goes wrong."""

import importlib
import re
import shlex
from pathlib import Path

from ddpm_edu.classroom.judge import Finding
from ddpm_edu.cli import parser

GUIDE = (Path(__file__).resolve().parents[2] / "CLASSROOM.md").read_text(encoding="utf-8")


def exercises(number):
    return len(importlib.import_module(f"ddpm_edu.exercises.nb{number}").EXERCISES)


def test_exercises_of_each_week():
    rows = re.findall(r"^\| (\d+) \| (.*?) \| .*? \| ([\d to]+) \| \d+ min \|$", GUIDE, re.M)
    assert [int(week) for week, *_ in rows] == list(range(1, 13))
    for _, notebooks, count in rows[:-1]:
        assert sum(map(exercises, re.findall(r"\b\d\d\b", notebooks))) == int(count), notebooks
    least, most = map(int, rows[-1][2].split(" to "))
    counts = [exercises("13") + exercises("14"), *map(exercises, ("15", "16", "17"))]
    assert re.findall(r"\b1\d\b", rows[-1][1]) == ["13", "14", "15", "16", "17"]
    assert (min(counts), max(counts)) == (least, most)


def test_commands_parse():
    block = re.search(r"## Hand out.*?```\n(.*?)```", GUIDE, re.S)[1]
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    ours = [words[1:] for words in commands if words[0] == "ddpm-edu"]
    assert [words[0] for words in ours] == ["student", "collect", "grade"]
    for words in ours:
        parser().parse_args(words)


def test_names_of_findings():
    text = " ".join(GUIDE.split())
    listed = re.search(r"\*Names of what went wrong:\* (.*?) - \*Again", text)[1]
    listed = {name.strip(" .") for name in re.sub(r"\(.*?\)", "", listed).split(",")}
    named = {
        name.strip() for name in re.split(r",|\bor\b", Finding.__doc__.split(". ")[0].split(":")[1])
    }
    assert listed == {re.sub(r"\s+", " ", name) for name in named} - {"right"}
