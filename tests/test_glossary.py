"""data/glossary.json: one Chinese name for one thing, in every notebook."""

import json
import re

import pytest
from notebook_page import CHINESE, all_notebooks, chinese, glossary, introduced, source

GLOSSARY = glossary()
NAMES = {name.lower(): entry for entry in GLOSSARY for name in entry["english"]}
EXAMPLES = {"中文", "红苹果", "汽车", "蓝色背景上的红色数字七"}  # prompts, no terms
NOTEBOOKS = all_notebooks()


def cells(path) -> list[str]:
    return [source(cell) for cell in json.loads(path.read_text())["cells"]]


def rows(path) -> list[tuple[str, str]]:
    """(English, Chinese) of the notebook's own glossary, one pair a term."""
    text = "\n".join(cells(path)).split("Glossary")[-1]
    pairs = []
    for line in re.findall(rf"^\|([^|]*)\|([^|]*{CHINESE}[^|]*)\|", text, re.M):
        english, terms = (re.sub(r"\(.*?\)", "", part) for part in line)
        pairs += zip(re.split("[,;]", english), re.split("[,，、;]", terms), strict=True)
    return [(e.strip(), z.strip()) for e, z in pairs if e.strip() != "English"]


def test_every_entry_is_whole_and_every_name_is_there_once():
    for entry in GLOSSARY:
        assert entry.keys() == {"english", "chinese", "meaning", "notebook"}
        assert all(entry.values()) and re.search(CHINESE, entry["chinese"]), entry
    names = [name.lower() for entry in GLOSSARY for name in entry["english"]]
    terms = [entry["chinese"] for entry in GLOSSARY]
    assert len(set(names)) == len(names) and len(set(terms)) == len(terms)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem[:2])
def test_a_notebooks_glossary_says_what_the_file_says(path):
    assert len(rows(path)) >= 5
    for english, term in rows(path):
        assert english.lower() in NAMES, f"{english} ({term}): not in data/glossary.json"
        assert NAMES[english.lower()]["chinese"] == term, english


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem[:2])
def test_every_chinese_term_of_a_notebook_is_in_the_file(path):
    known = {piece for entry in GLOSSARY for piece in re.findall(CHINESE, entry["chinese"])}
    assert chinese(path) - EXAMPLES <= known


def test_each_term_is_introduced_where_the_file_says():
    assert introduced(GLOSSARY) == GLOSSARY, "run: python tests/notebook_page.py"
