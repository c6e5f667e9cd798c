"""The whole book as one PDF: its pages, one after another, printed by chromium."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PAPER = {"width": 686, "height": 970}  # what the margins leave of A4, in pixels of the screen
FOOT = (
    '<div style="width:100%;text-align:center;font:8px sans-serif;color:#555">'
    '<span class="pageNumber"></span></div>'
)
# Answers and figures stand open; code that only draws, and the solutions, stay in the notebooks.
OPENED = """() => {
    document.documentElement.dataset.theme = 'light';
    document.querySelectorAll('img').forEach(img => { img.loading = 'eager'; });
    const folds = '.text_html > details:not(.numbers), .bd-article details:not([class])';
    document.querySelectorAll(folds).forEach(fold => { fold.open = true; });
    return Promise.all([...document.images].map(img => img.decode().catch(() => img.src)))
        .then(all => all.filter(Boolean)); }"""
LOOKS = """<style>
@page { size: A4; margin: 16mm 14mm 18mm; }
body { font-size: 10.5pt; margin: 0; } .bd-content { padding: 0; } article { break-after: page; }
details.hide, details.numbers, .on-this-page { display: none !important; }
.bd-content pre { font-size: 7.6pt; } figure.shown img { max-height: 210mm; width: auto; }
mjx-container[display="true"] { overflow: visible !important; }
mjx-container[display="true"] > svg { max-width: 100%; height: auto; }
mjx-container path, mjx-container use { stroke-width: 0 !important; }
div.highlight, div.cell_input, table, tr { break-inside: avoid; }
pre, table:has(tr:nth-child(20)) { break-inside: auto !important; }
h1, h2, h3, h4, summary { break-inside: avoid !important; break-after: avoid !important; }
section > p:last-child { break-before: avoid; }
</style>"""


def print_book(out: Path) -> Path:
    """Print out/html as out/book.pdf. RuntimeError: no chromium, a picture that does not load."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        raise RuntimeError("no chromium here: install it (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        print_from(browser.new_page(), out)
        browser.close()
    return out / "book.pdf"


def print_from(page, out: Path) -> None:
    """The same, from an open page of a browser."""
    whole = out / "html/_whole.html"
    whole.write_text(joined(out / "html"), encoding="utf-8")
    try:
        page.set_default_timeout(900_000)
        page.set_viewport_size(PAPER)
        page.goto(whole.resolve().as_uri())
        page.evaluate("() => window.MathJax?.startup?.promise.then(() => true) ?? true")
        page.emulate_media(media="print")
        if missing := page.evaluate(OPENED):
            raise RuntimeError(f"pictures that do not load: {missing[:3]}")
        page.pdf(
            path=out / "book.pdf",
            outline=True,
            tagged=True,
            prefer_css_page_size=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOT,
        )
    finally:
        whole.unlink()


def joined(folder: Path) -> str:
    """The head of the cover and the articles of all pages; links between pages stay within."""
    cover = (folder / "index.html").read_text(encoding="utf-8")
    names = ["index", *re.findall(r'<li class="toctree-l1"><a[^>]*href="(\w+)\.html"', cover)]
    names = [name for name in dict.fromkeys(names) if (folder / f"{name}.html").is_file()]
    formulas = (folder / "read.html").read_text(encoding="utf-8")  # a page that loads MathJax
    head = formulas.partition("<body")[0].replace("</head>", LOOKS + "</head>")
    # The theme's own script looks for parts of a page that are not printed.
    head = re.sub(r"<script[^>]*sphinx-book-theme\.js[^>]*></script>", "", head)
    parts = (article(folder / f"{name}.html", set(names)) for name in names)
    return f"{head}<body><main class='bd-content'>{''.join(parts)}</main></body></html>"


def article(path: Path, names: set[str]) -> str:
    text = path.read_text(encoding="utf-8")
    text = re.search(r"<article.*?</article>", text, re.S)[0]
    text = re.sub(r"<iframe.*?</iframe>|<script.*?</script>", "", text, flags=re.S)
    here = path.stem

    def link(match: re.Match) -> str:
        page, _, anchor = match[1].partition("#")
        page = page.removesuffix(".html") or here
        return f'href="#{page}--{anchor}"' if page in names else match[0]

    text = re.sub(r'\bid="([^"]+)"', rf'id="{here}--\1"', text)
    text = re.sub(r'\bhref="((?!https?:)[^"]*)"', link, text)
    return text.replace("<article", f'<article id="{here}--"', 1)
