"""README, the book's pages and the map say what is so: links, commands, one list of needs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_page import all_notebooks, source
from PIL import Image

from ddpm_edu.cli import parser
from ddpm_edu.datasets.emoji import emoji

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
import course_map  # noqa: E402

WELCOME = "notebooks/welcome.md"
OWN = ("install", "use", "package", "numbers")
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CLASSROOM.md", WELCOME, *(f"book/{name}.md" for name in OWN))
}
PLACES = pytest.mark.parametrize("name", PAGES)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings."""
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def codes(text: str) -> list[str]:
    """Lines of blocks of code, and code within lines."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [*"\n".join(blocks).splitlines(), *re.findall(r"`([^`\n]+)`", rest)]


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 120


@PLACES
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[name])
    for link in [*links, *re.findall(r'(?:src|srcset)="(.*?)"', PAGES[name])]:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name}: {link}"


@PLACES
def test_commands_parse(name):
    for line in codes(PAGES[name]):
        words = shlex.split(line, comments=True) if line.startswith("ddpm-edu ") else []
        if len(words) > 2 and "COMMAND" not in words:
            parser().parse_args(words[1:])  # an unknown option ends the test


@PLACES
def test_scripts_and_targets_exist(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for line in codes(PAGES[name]):
        for target in re.findall(r"\bmake ([a-z-]+)", line):
            assert target in targets, line
        if script := re.search(r"python (\S+\.py)(.*)", line):
            text = (ROOT / script[1]).read_text(encoding="utf-8")
            for option in re.findall(r"--[a-z-]+", script[2]):
                assert f'"{option}"' in text, f"{script[1]} knows no {option}"


def test_the_welcome_page_leads_to_every_notebook():
    rows = [line for line in PAGES[WELCOME].splitlines() if line.startswith("| **")]
    linked = re.findall(r"\]\((.*?\.ipynb)\)", "".join(rows))
    assert linked == [path.name for path in all_notebooks()]
    shown = {part: re.findall(r"\[(\d\d) ", row) for part, row in zip(course_map.PARTS, rows)}
    needs = course_map.NEEDS
    assert shown == {p: [n for n in needs if needs[n][0] == p] for p in shown}


def test_every_number_has_its_command():
    rows = re.findall(r"^\| (?!what|---)(.*) \|$", PAGES["book/numbers.md"], re.M)
    assert len(rows) >= 24
    for row in rows:
        _, command, result = re.split(r" \| ", row)
        assert command.startswith("`python ") or command == "the same", row
        assert re.search(r"\d", result), row


def test_the_film_plays_and_is_told_in_words():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import film

    path, names = ROOT / "data/film.webp", [name for scene in film.SCENES for name in scene]
    assert path.stat().st_size <= 250_000
    with Image.open(path) as opened:
        assert (opened.n_frames, opened.info["loop"]) == (len(film.SCENES) * 11, 0)
    (told,) = re.findall(r'film.webp".*? alt="(.*?)"', PAGES["README.md"])
    assert all(name in told for name in names)
    assert set(names) <= set(emoji().captions())


# ---- the map


def numbers(text: str) -> list[str]:
    return re.findall(r"\b[01]\d\b", text)


def test_the_map_has_every_notebook_and_is_drawn_from_its_list():
    assert list(course_map.NEEDS) == [path.name[:2] for path in all_notebooks()]
    assert course_map.FILE.read_text(encoding="utf-8") == course_map.svg(), (
        "python book/course_map.py draws it anew"
    )


def test_teachers_read_the_same_needs():
    sentence = re.search(r"Which needs which: (.*?)\. ", " ".join(PAGES["CLASSROOM.md"].split()))[1]
    told = {}
    for clause in sentence.split("; "):
        who, what = re.split(r" needs? ", clause)
        told |= {number: numbers(what) for number in numbers(who)}
    assert told == {n: course_map.direct(n) for n in course_map.NEEDS if course_map.direct(n)}


@pytest.mark.parametrize("path", all_notebooks(), ids=lambda path: path.name[:2])
def test_headers_know_the_same_needs(path):
    """Know first: all direct needs, and nothing that does not come before."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"][:8]
    text = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")
    known = re.search(r"^\*\*Know first:\*\*.*$", text, re.M)[0]
    later = re.findall(r"notebook (\d\d) takes them apart", known)
    named = set(numbers(known)) - {"00", *later}
    number = path.name[:2]
    assert set(course_map.direct(number)) <= named <= course_map.before(number)


def test_boxes_can_be_links():
    page = course_map.svg(lambda number: f"{number}.html?a=1&b=2")
    assert page.count("<a href=") == len(course_map.NEEDS) and "a=1&amp;b=2" in page
    assert "<a " not in course_map.svg()


def test_the_map_is_drawn_by_its_command(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    script = (ROOT / "book/course_map.py").read_text(encoding="utf-8")
    (tmp_path / "book/course_map.py").write_text(script, encoding="utf-8")
    for path in all_notebooks():
        first = json.dumps({"cells": json.loads(path.read_text(encoding="utf-8"))["cells"][:1]})
        (tmp_path / "notebooks" / path.name).write_text(first, encoding="utf-8")
    subprocess.run([sys.executable, "book/course_map.py"], cwd=tmp_path, check=True)
    assert (tmp_path / "notebooks/map.svg").read_bytes() == course_map.FILE.read_bytes()
