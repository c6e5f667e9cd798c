"""A number in a text cell is computed by the notebook, or tests/numbers_in_prose/NN.txt says where it comes from.

Computed: an output (text, table, caption, alt text) holds it, rounded as the text rounds it, or the code holds it literally. A line
of the list is "number | where it comes from", such as "400,000,000 | Radford et al. 2021, section 2.2". Lines that are not needed any
more must go. `python tests/test_prose_numbers.py` counts, with --add it writes what is missing as "to be computed".
"""

import html
import re
import sys
from pathlib import Path

import nbformat
import pytest
from notebook_page import ROOT, all_notebooks

NOTEBOOKS = all_notebooks()
LISTS = ROOT / "tests/numbers_in_prose"
TODO = "to be computed"
SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "k": 1e3, "M": 1e6, "B": 1e9}
NO_CLAIMS = [  # in this order
    r"^.*\[map\]\(.*$",  # the navigation line
    r"```.*?```|`[^`]*`",  # code
    r"\$\$.*?\$\$|\$[^$]*\$",  # formulas
    r"\]\([^)]*\)|https?://\S+|<[^>]*>",  # links, HTML
    r"arXiv[ :]*\d{4}\.\d{4,5}|\b\d{4}\.\d{4,5}\b",
    r"^#+ .*$|^ *\d+\. |^\| *(?:English|---).*$",  # headings, lists
    r"^\*\*Time and memory.*$",  # tests/notebook_page.py writes it
    r"(?i:notebooks?|sections?|sec\.|eqs?\.|equations?|tables?|figures?|fig\.|appendix|chapter|algorithms?|steps?|exercise|item|part|level|mistake) "
    r"[A-Z]?\d[\d.]*(?:(?:, | and | to | or |-|–)\d[\d.]*)*",
    r"\b\d\d\.\d\b(?= )",  # exercise 05.1
    r"\b(?:19|20)\d\d\b",  # years
    r"(?:SD|Diffusion|DALL-E|GPT-|v|Adam|PyTorch|Python|SDXL|CLIP|CIFAR|ViT-\w/|float|bfloat|int|fp|FP|DDR|H|A|RTX) ?-?\d[\d.]*\b",
]
NUMBER = r"(?<![\w.,^_/])(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\d+)(?: ?(%)| (thousand|million|billion)\b|(k|M|B)\b| (s|ms|seconds|minutes|hours|dB|MB|GB|KB|times|nats|degrees|TFLOP)\b)?"


def claims(text: str) -> list[tuple[str, bool]]:
    """(number as written, is it "about" so much) for each number of a text that claims something."""
    text = re.split(r"^#+ (?:Glossary|References)", text, flags=re.M)[0]
    for pattern in NO_CLAIMS:
        text = re.sub(
            pattern, " ", text, flags=re.S if "```" in pattern or "$$" in pattern else re.M
        )
    found = []
    for match in re.finditer(NUMBER, text):
        number, rough = (
            match[0],
            re.search(r"(?:about|nearly|roughly|some|almost|around) $", text[: match.start()]),
        )
        if match[1].isdigit() and int(match[1]) <= 12 and not match[2]:
            continue
        found.append((number, bool(rough)))
    return found


def numbers(text: str) -> set[float]:
    """The numbers of a text; 59% and 59 % are 0.59."""
    found = re.findall(r"(\d[\d,]*\.?\d*(?:e[+-]?\d+)?)([ \xa0]?%)?", text)
    value = lambda n: float(n.strip(",.").replace(",", ""))
    return {value(n) / 100 if percent else value(n) for n, percent in found if n.strip(",.")}


def computed(notebook) -> set[float]:
    """Every number in the outputs and, literally, in the code."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        texts.append(re.sub(r"(?<!['\"])#.*", "", cell.source))
        for output in cell.outputs:
            data = output.get("data", {})
            page = re.sub(r'src="[^"]*"|style="[^"]*"|width="\d+"', "", data.get("text/html", ""))
            texts += [output.get("text", ""), data.get("text/plain", ""), html.unescape(page)]
    return set().union(*map(numbers, texts))


def matches(claim: str, rough: bool, values: set[float]) -> bool:
    """Is one of the values the claim, when it is rounded as the claim is?"""
    digits, percent, word, letter, measure = re.fullmatch(NUMBER, claim).groups()
    bare = digits.replace(",", "")
    unit = SCALES.get(word or letter, 1.0)
    decimals = len(bare.partition(".")[2])
    whole = not decimals and not percent and not rough and unit == 1
    half = 0 if whole and not measure else 0.5 * 10.0**-decimals
    if (rough or unit > 1) and not decimals:
        half *= 10 ** (len(bare) - len(bare.rstrip("0")))  # "about 1,700" may be 1,683
    candidates = [(float(bare) / (100 if percent else 1), half / (100 if percent else 1))]
    if unit > 1:
        candidates += [(float(bare) * unit, half * unit)]
    slack = 1 + 1e-9
    return any(abs(v - wanted) <= near * slack for wanted, near in candidates for v in values)


def uncomputed(path) -> list[str]:
    notebook = nbformat.read(path, as_version=4)
    values = computed(notebook)
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    found = [claim for text in texts for claim in claims(text)]
    return list(dict.fromkeys(c for c, rough in found if not matches(c, rough, values)))


def listed(path) -> dict[str, str]:
    file = LISTS / f"{path.stem[:2]}.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return dict(map(str.strip, line.split("|", 1)) for line in lines if line.strip())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_numbers_in_prose_are_computed_or_their_source_is_named(path):
    found, known = uncomputed(path), listed(path)
    missing = [number for number in found if number not in known]
    assert not missing, "no output holds these, and the list names no source: " + "; ".join(missing)
    idle = [number for number in known if number not in found]
    assert not idle, f"computed now, or gone: take out of {path.stem[:2]}.txt: " + "; ".join(idle)
    assert all(len(reason) > 8 for reason in known.values()), "each needs its source"


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("It takes 59 % of 1,911 names, 3.5 times, 12 steps.", ["59 %", "1,911", "3.5 times"]),
        ("about 2.57 billion (eq. 14, section 5.2, notebook 05, arXiv 2006.11239, 2021)", ["2.57 billion"]),
        ("`x = 42`, $x^{17}$, $$y = 99$$, SD 1.5, float16, [a](b42.html), exercise 05.1 ", []),
        ("## 13  Thirteen\\n14. the fourteenth\\n16 pixels\\n## References\\n99 bottles", ["16"]),
    ],
)  # fmt: skip
def test_claims(text, wanted):
    assert [number for number, _ in claims(text.replace("\\n", "\n"))] == wanted


@pytest.mark.parametrize(
    "claim, rough, value, right",
    [
        ("59 %", False, 0.594, True),
        ("59 %", False, 0.596, False),
        ("0.8", False, 0.76, True),
        ("0.80", False, 0.76, False),
        ("2.57 billion", False, 2_567_463_684, True),
        ("1,700", True, 1683, True),
        ("1,700", False, 1683, False),
        ("40", True, 39.6, True),
        ("400", True, 470, False),
        ("17", False, 16.7, False),
        ("17 dB", False, 16.7, True),
    ],
)
def test_matches(claim, rough, value, right):
    assert matches(claim, rough, {float(value)}) is right


if __name__ == "__main__":
    total = 0
    for path in NOTEBOOKS:
        found, known = uncomputed(path), listed(path)
        if "--add" in sys.argv:
            known = {n: known.get(n, TODO) for n in found}
            text = "".join(f"{number} | {reason}\n" for number, reason in known.items())
            Path(LISTS / f"{path.stem[:2]}.txt").write_text(text, encoding="utf-8")
        waiting = sum(reason == TODO for reason in known.values())
        total += waiting
        print(f"{path.stem[:2]}: {len(known)} listed, {waiting} of them to be computed")
    print(f"{total} numbers in all are to be computed")
