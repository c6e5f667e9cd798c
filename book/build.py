"""The course as a web book: python book/build.py [--pdf]. `make book` calls it.

Stages the sources in book/_build/source (notebooks as shipped, nothing is executed; their pictures
become files), runs sphinx into book/_build/html, with --pdf prints all of it as one PDF.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import course_map
from stage import glossary_page, staged, widgets_script

from ddpm_edu.files import npm

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
FIRST = ("read", "map", "live", "playground")  # before the notebooks
LAST = ("glossary", "install", "use", "classroom", "package", "numbers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=BOOK / "_build", help="folder (book/_build)")
    parser.add_argument("--pdf", action="store_true", help="print the whole book, too")
    args = parser.parse_args()
    if importlib.util.find_spec("myst_nb") is None:
        print("the book needs sphinx and myst-nb: make install", file=sys.stderr)
        return 2
    source = stage(args.out / "source")
    status = sphinx(source, args.out / "html")
    if status == 0:
        print(f"The book: {args.out / 'html/index.html'}")
    if status == 0 and args.pdf:
        from pdf import print_book

        print(f"The PDF: {print_book(args.out)}")
    return status


def stage(source: Path) -> Path:
    """Write everything that sphinx reads; files that stay the same keep their dates."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(BOOK / "_static", source / "_static")
    shutil.copy(BOOK / "conf.py", source)
    pages = {page.name: page for page in BOOK.glob("*.md")}
    pages["classroom.md"] = ROOT / "CLASSROOM.md"
    for name, page in pages.items():
        text = with_own_links(page.read_text(encoding="utf-8"))
        (source / name).write_text(text, encoding="utf-8")
    (source / "map.md").write_text(map_page(), encoding="utf-8")
    for path in notebooks():
        page = json.dumps(staged(path, source / "_static"), ensure_ascii=False)
        (source / path.name).write_text(page, encoding="utf-8")
    words = glossary_page(ROOT / "data/glossary.json", notebooks())
    (source / "glossary.md").write_text(words, encoding="utf-8")
    for film in "film.webp", "emoji_drawn.webp":
        shutil.copy(ROOT / "data" / film, source / "_static")
    (source / "_static/widgets.js").write_text(widgets_script(), encoding="utf-8")
    shutil.copy(ROOT / "ddpm_edu/show/widgets/widgets.css", source / "_static")
    formulas(source / "_static/mathjax")
    if (BOOK / "live/build.py").is_file():
        subprocess.run(
            [sys.executable, BOOK / "live/build.py", source / "_static/live"], check=True
        )
    cover = (BOOK / "index.md").read_text(encoding="utf-8")
    (source / "index.md").write_text(cover + contents(source), encoding="utf-8")
    return source


def with_own_links(text: str) -> str:
    """Links of pages that are also read on GitHub: to a page of the book, or none."""

    def link(match: re.Match) -> str:
        words, target = match[1], match[2].removeprefix("../")
        file = Path(target.partition("#")[0])
        if target.startswith("README.md"):
            return f"[{words}](map.md)"
        if file.name == "CLASSROOM.md":
            return f"[{words}](classroom.md)"
        if file.suffix == ".ipynb" or file.parent.name == "book":
            return f"[{words}]({file.name})"
        return f"{words} (`{target}`)" if words != target else f"`{target}`"

    return re.sub(r"\[([^\]]+)\]\(((?:\.\./|README|notebooks/|book/)[^)]*)\)", link, text)


def map_page() -> str:
    """The picture, each box a link, and the table of README."""
    files = {p.name[:2]: f"{p.stem}.html" for p in notebooks()}
    picture = course_map.svg(lambda number: files[number]).replace("\n", " ")
    picture = re.sub(r'(<a href="[^"]*") aria-label="[^"]*"', r"\1", picture)
    picture = re.sub(
        r"(?<![\w\"])\.([np])(?= \{|,)", r".map .\1", picture
    )  # its style stays its own
    picture = picture.replace("</tspan>", " </tspan>").replace("</text>", " </text>")
    rows = re.findall(r"^\| \[(.*?)\]\(notebooks/(.*?)\) \| (.*?) \|", readme(), re.M)
    table = [f"| [{title}]({file}) | {learns} |" for title, file, learns in rows]
    about = "Which notebook needs which: an arrow leads from each to those that need it."
    return "\n".join(
        ["# The map", "", about, "", f"<div class='map'>{picture}</div>", ""]
        + ["| notebook | what you learn |", "|---|---|", *table, ""]
    )


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def formulas(folder: Path) -> None:
    """MathJax: the one file that sets formulas."""
    folder.mkdir()
    if mathjax := npm.package("mathjax"):
        shutil.copy(mathjax / "es5/tex-svg-full.js", folder)
    else:
        print("make book: formulas will stand as LaTeX", file=sys.stderr)
        (folder / "tex-svg-full.js").write_text("")


def contents(source: Path) -> str:
    """The table of contents of the whole book, for those pages that there are."""
    there = lambda names: [name for name in names if (source / f"{name}.md").is_file()]
    parts = {"Start": there(FIRST)}
    for part, (name, _) in course_map.PARTS.items():
        title = f"Part {part}: {name}"
        parts[title] = [p.stem for p in notebooks() if course_map.NEEDS[p.name[:2]][0] == part]
    parts["More"] = there(LAST)
    tree = "\n```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```\n"
    return "".join(tree.format(title, "\n".join(docs)) for title, docs in parts.items() if docs)


def sphinx(source: Path, html: Path) -> int:
    from sphinx.cmd.build import build_main

    shutil.rmtree(html, ignore_errors=True)
    doctrees = str(source.parent / "doctrees")
    status = build_main(["-q", "-W", "--keep-going", "-E", "-d", doctrees, str(source), str(html)])
    for page in html.glob("*.html"):
        page.write_text(named(page.read_text(encoding="utf-8")), encoding="utf-8")
    return status


def named(page: str) -> str:
    """Folds and search boxes are called what they show; the themes say something else."""
    page = page.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    button = r'(<button class="btn search-button-field[^>]*?) aria-label="Search"'
    return re.sub(button, r"\1", page)


if __name__ == "__main__":
    sys.exit(main())
