"""A notebook as slides for a projector: headings, formulas, pictures; code folded. All notebooks.

    write(Path("notebooks/03_unet.ipynb"), Path("03_unet.slides.html"))

One file that needs no network: nbconvert turns the text into HTML, reveal.js shows it, MathJax sets
the formulas, and both come from npm once (files/npm.py).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import OptionError
from ..files import npm
from ..paths import replacing

LEAD = 420  # characters of text on a slide, in whole paragraphs
SHORT = 330  # a slide of at most that has room for a picture
LEFT_OUT = ("References", "Glossary")  # to be read, not shown
LIBRARIES = {
    "reveal.js": ("dist/reveal.css", "dist/reveal.js"),
    "mathjax": ("es5/tex-svg-full.js",),
}
LOOKS = """
html, body { background: white; } .reveal { font: 27px/1.4 system-ui, "DejaVu Sans", sans-serif; color: #111; }
.reveal .slides { text-align: left; } .reveal .slides section { height: 100%; box-sizing: border-box; padding: 18px 30px; }
.reveal h1 { font-size: 62px; margin: 170px 0 24px; line-height: 1.15; } .reveal h2 { font-size: 34px; margin: 0 0 14px; color: #005a8f; }
.reveal figure { margin: 0; text-align: center; } .reveal img { width: auto; height: auto; max-width: 1180px; max-height: 500px; min-height: 260px; object-fit: contain; }
.reveal figcaption { font-size: 20px; max-width: 60em; margin: 6px auto 0; } .reveal p { margin: 0 0 14px; }
.reveal table { font-size: 21px; border-collapse: collapse; margin: 0 auto; } .reveal td, .reveal th { padding: 2px 14px; border-bottom: 1px solid #ddd; }
.reveal details { position: absolute; right: 30px; top: 18px; font-size: 17px; z-index: 5; } .reveal details[open] { left: 30px; background: white; }
.reveal summary { cursor: pointer; text-align: right; color: #005a8f; } .reveal pre { font-size: 17px; line-height: 1.35; max-height: 590px; overflow: auto;
background: #f4f4f4; padding: 10px 14px; margin: 4px 0; box-shadow: none; width: auto; } .reveal code { font-family: "DejaVu Sans Mono", monospace; font-size: 0.9em; }
.reveal ul, .reveal ol { margin: 0 0 12px 1.1em; } .reveal .answer figure img { max-height: 400px; } .reveal .slide-number { font-size: 15px; }
"""  # noqa: E501
START = """
function fit() { // what is still too large for this slide
  const slide = Reveal.getCurrentSlide(), scale = Reveal.getScale(), high = slide.querySelector("img");
  for (const formula of slide.querySelectorAll("mjx-container[display] svg")) {
    const wide = formula.getBoundingClientRect().width / scale;
    if (wide > 1200) formula.parentNode.style.fontSize = `${120000 / wide}%`;
  }
  const parts = [...slide.children].filter(part => getComputedStyle(part).position !== "absolute");
  const over = Math.max(...parts.map(part => part.offsetTop + part.offsetHeight)) - 706;
  if (high && over > 0) Object.assign(high.style, { minHeight: 0, maxHeight: `${Math.max(160, high.offsetHeight - over)}px` });
}
MathJax = { tex: { inlineMath: [["$", "$"]] }, svg: { fontCache: "global" }, options: { enableMenu: false },
  startup: { ready() { MathJax.startup.defaultReady(); MathJax.startup.promise.then(() => { Reveal.layout(); fit(); }); } } };
Reveal.on("slidechanged", fit);
Reveal.initialize({ width: 1280, height: 720, margin: 0.02, hash: true, slideNumber: "c/t", transition: "none", center: false });
"""  # noqa: E501


def write(notebook: Path, out: Path) -> int:
    """Write the slides of a notebook; how many there are. OptionError: no notebook, or no npm."""
    if not notebook.is_file():
        where = "in the folder of the course, its number, such as 03"
        raise OptionError(f"{notebook}: no such notebook. Name its file, or, {where}")
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        columns = [list(column) for column in deck(cells)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        remedy = "save it in JupyterLab"
        raise OptionError(
            f"{notebook} is no notebook that can be read ({error}): {remedy}"
        ) from None
    libraries = {name: library(name, parts) for name, parts in LIBRARIES.items()}
    body = "\n".join(f"<section>{''.join(map(framed, column))}</section>" for column in columns)
    css, script = libraries["reveal.js"]
    text = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{notebook.stem}</title>'
        f"<style>{css}{LOOKS}</style></head><body>"
        f'<div class="reveal"><div class="slides">{body}</div></div>'
        f"<script>{script}</script><script>{START}</script>"
        f"<script>{libraries['mathjax'][0]}</script></body></html>"
    )
    with replacing(out) as part:
        Path(part).write_text(text, encoding="utf-8")
    return sum(map(len, columns))


def library(name: str, parts: tuple[str, ...]) -> list[str]:
    folder = npm.package(name)
    if folder is None:
        raise OptionError(
            f"slides need {name}, which comes from npm once: install npm (node.js), go online, "
            "and run the command again"
        )
    texts = [(folder / part).read_text(encoding="utf-8") for part in parts]
    return [text.replace("</script", r"<\/script") for text in texts]


def framed(slide: str) -> str:
    return f"<section>{slide}</section>"


# ---- which slides there are


def deck(cells: list[dict]) -> Iterator[list[str]]:
    """A column of slides for each section: its text, then its pictures and formulas, downwards."""
    column, heading, code = [], "", []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for title, rest in sections(text):
                if title is not None:
                    if column:
                        yield column
                    column, heading, code = [], title, []
                if not heading.lstrip("# 0123456789").startswith(LEFT_OUT):
                    column += text_slide(title, heading, rest)
        elif not heading.lstrip("# 0123456789").startswith(LEFT_OUT):
            shown = [slide for output in cell["outputs"] for slide in pictures(output)]
            if taught(cell):
                code.append(text)
            for slide in shown:
                if column and roomy(column[-1]) and "fragment" not in slide:
                    column[-1] += folded(code) + slide
                else:
                    column.append(title_of(heading) + folded(code) + slide)
                code = []
    if column:
        yield column


def roomy(slide: str) -> bool:
    """A short text with no picture yet."""
    words = re.sub("<.*?>", "", slide, flags=re.S)
    return "$$" not in slide and len(words) < SHORT and not re.search("<h1|<figure|<table", slide)


def taught(cell: dict) -> bool:
    return not cell["metadata"].get("jupyter", {}).get("source_hidden")


def sections(text: str) -> Iterator[tuple[str | None, str]]:
    """(heading or None, what follows) of a cell of text; a line of navigation is left out."""
    text = "\n".join(line for line in text.split("\n") if "[map](" not in line)
    parts = re.split(r"^(#{1,3} .*)$", text, flags=re.M)
    if parts[0].strip():
        yield None, parts[0]
    yield from zip(parts[1::2], parts[2::2])


def text_slide(title: str | None, heading: str, rest: str) -> list[str]:
    """A slide for a new heading, or for a text that holds a formula."""
    lead = first_words(rest)
    if title is None and "$$" not in rest:
        return []
    if title is None or not title.startswith("# "):
        return [title_of(heading) + lead] if lead or title else []
    return [f"<h1>{markdown(title[2:])[3:-4]}</h1>{lead}"]


def first_words(text: str) -> str:
    """Whole paragraphs, up to LEAD characters, the first in any case; formulas do not count."""
    kept, used = [], 0
    for paragraph in re.split(r"\n\s*\n", re.sub(r"<details>.*?</details>", "", text, flags=re.S)):
        size = len(re.sub(r"\$\$.*?\$\$", "", paragraph, flags=re.S))
        if kept and used + size > LEAD:
            break
        kept.append(paragraph)
        used += size
    return markdown("\n\n".join(kept))


def title_of(heading: str) -> str:
    words = heading.lstrip("# ")
    return f"<h2>{markdown(words)[3:-4]}</h2>" if words else ""


def markdown(text: str) -> str:
    from nbconvert.filters import markdown2html

    return str(markdown2html(text)).strip()


def folded(code: list[str]) -> str:
    if not code:
        return ""
    return f"<details><summary>code</summary><pre>{html.escape(code[-1])}</pre></details>"


def pictures(output: dict) -> Iterator[str]:
    """The slide of a picture or table; a question shows its answer at the next click."""
    data = "".join(output.get("data", {}).get("text/html", ""))
    question = re.fullmatch(
        r"(<p>.*?</p>)<details><summary>.*?</summary>(.*)</details>", data, re.S
    )
    if question:
        yield f'{question[1]}<div class="answer fragment">{question[2]}</div>'
    elif "<figure" in data or "<table" in data:
        yield data
