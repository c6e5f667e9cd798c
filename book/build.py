"""The course as a web book: python book/build.py [--pdf]. `make book` calls it.

Stages the sources in book/_build/source (notebooks as shipped, nothing is executed; their pictures
become files), runs sphinx into book/_build/html, with --pdf prints all of it as one PDF.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import npm
from stage import glossary_page, staged

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
PAGES = ("read", "map", "install", "use", "package", "numbers")  # before the notebooks
AFTER = ("playground", "live", "glossary")
PARTS = {
    "Part I: one equation at a time": range(0, 6),
    "Part II: from pixels to words": range(6, 11),
    "Part III: Stable Diffusion and SDXL": range(11, 15),
    "Part IV: its neighbours": range(15, 17),
    "Part V: yours": range(17, 100),
}


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
    for page in BOOK.glob("*.md"):
        shutil.copy(page, source)
    for path in notebooks():
        (source / path.name).write_text(json.dumps(staged(path, source / "_static")))
    (source / "glossary.md").write_text(glossary_page(ROOT / "data/glossary.json", notebooks()))
    formulas(source / "_static/mathjax")
    if (BOOK / "live/build.py").is_file():
        subprocess.run(
            [sys.executable, BOOK / "live/build.py", source / "_static/live"], check=True
        )
    (source / "index.md").write_text((BOOK / "index.md").read_text() + contents(source))
    return source


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
    parts = {"The course": there(PAGES)}
    for title, numbers in PARTS.items():
        parts[title] = [p.stem for p in notebooks() if int(p.name[:2]) in numbers]
    parts["In your browser, and words"] = there(AFTER)
    tree = "\n```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```\n"
    return "".join(tree.format(title, "\n".join(docs)) for title, docs in parts.items() if docs)


def sphinx(source: Path, html: Path) -> int:
    from sphinx.cmd.build import build_main

    shutil.rmtree(html, ignore_errors=True)
    doctrees = str(source.parent / "doctrees")
    return build_main(["-q", "-W", "--keep-going", "-E", "-d", doctrees, str(source), str(html)])


if __name__ == "__main__":
    sys.exit(main())
