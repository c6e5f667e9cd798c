"""The book in a browser: quiet on the network, nothing serious from axe, keyboard, links, search, films.

Built once a run, as `make book` does it, and shared by the workers.
"""

import html
import json
import os
import re
import shutil
import sys
import urllib.parse
import zipfile
from pathlib import Path

import pytest
from labdriver import after, drawn, new_page
from notebook_page import all_notebooks, glossary

from ddpm_edu.files import npm

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = [path.stem for path in all_notebooks()]
WITH_FORMULAS = ("read", "12_sdxl")
PAGES = [
    "index",
    "live",
    "_static/live/index",
    "playground",
    "read",
    "map",
    "glossary",
    "use",
    "search",
    *NOTEBOOKS,
]


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source; where npm cannot be asked there is none, but continuous integration must."""
    if library := npm.package("axe-core"):
        return (library / "axe.min.js").read_text(encoding="utf-8")
    reason = "axe-core cannot be had from npm here (no npm, or no network)"
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


SET = "() => window.MathJax?.startup?.promise.then(() => true) ?? true"
THIN = """() => { const seen = {};
    document.querySelectorAll('.highlight span[class]').forEach(token => {
        const kind = token.className; seen[kind] = (seen[kind] || 0) + 1;
        if (seen[kind] > 3) token.replaceWith(...token.childNodes); });
    document.querySelectorAll('.highlight pre').forEach(pre => pre.normalize()); }"""
SERIOUS = """async rules => {
    const found = await axe.run(document, { resultTypes: ['violations'], ...rules });
    return found.violations.filter(v => ['serious', 'critical'].includes(v.impact))
        .map(v => `${v.id}: ${v.help}: ` + v.nodes.slice(0, 3).map(n => n.html.slice(0, 150)).join(' | ')); }"""
DARK = "() => { document.documentElement.dataset.theme = document.documentElement.dataset.mode = 'dark'; }"


def opened(page, book, name):
    page.set_default_timeout(120_000)
    page.goto(f"{book}/{name}.html")
    page.evaluate(SET)
    return page


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(name, book, page, axe):
    """All rules in the light, contrast in the dark. What is made alike a thousand times is looked
    at three times (each kind of token of the code) or on two pages (formulas)."""
    if name not in WITH_FORMULAS:
        empty = {"body": "", "content_type": "text/javascript"}
        page.route("**/tex-svg-full.js", lambda route: route.fulfill(**empty))
    opened(page, book, name)
    page.evaluate(axe)
    page.evaluate(THIN)
    found = page.evaluate(SERIOUS, {})
    page.emulate_media(reduced_motion="reduce")  # else colours change slowly
    page.evaluate(DARK)
    only = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
    found += page.evaluate(SERIOUS, only)
    assert found == [], "\n".join(found)


FOCUSABLE = """() => { const all = [...document.querySelectorAll('a[href], button, summary, input, select, textarea, [tabindex="0"]')];
    const seen = all.filter(n => n.checkVisibility({ visibilityProperty: true }) && !n.disabled && n.tabIndex >= 0 && n.getClientRects().length);
    seen.forEach((n, i) => n.dataset.stop = i); return seen.length; }"""
UNREACHABLE = """() => [...document.querySelectorAll('a[href], button, summary, input, select, [onclick], [role=button], [role=slider]')]
    .filter(n => n.checkVisibility({ visibilityProperty: true }) && !n.disabled && n.tabIndex < 0).map(n => n.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("name", ["index", NOTEBOOKS[1]])
def test_the_keyboard_alone_reaches_every_control(name, book, page):
    opened(page, book, name)
    for box in page.locator("[data-alive]").all()[:2]:  # the controls of a film, too
        box.scroll_into_view_if_needed()
        box.locator(".ddpm-widget").wait_for()
    page.evaluate("() => { window.scrollTo(0, 0); document.activeElement.blur(); }")
    assert page.evaluate(UNREACHABLE) == []
    stops = page.evaluate(FOCUSABLE)
    assert stops > 20
    reached = set()
    for _ in range(stops + 20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.dataset.stop"))
        if len(reached - {None}) == stops:
            return
    missing = sorted(set(map(str, range(stops))) - reached, key=int)
    html = [page.locator(f'[data-stop="{k}"]').evaluate("n => n.outerHTML") for k in missing[:3]]
    raise AssertionError(f"{len(missing)} of {stops} not reached by Tab: {html}")


def test_a_fold_opens_from_the_keyboard(book, page):
    opened(page, book, NOTEBOOKS[1])
    solution = page.locator("details", has_text="Show the solution").first
    assert solution.get_attribute("open") is None
    solution.locator("summary").focus()
    page.keyboard.press("Enter")
    assert solution.get_attribute("open") is not None


# ---- files, without a browser


def test_links_and_anchors_are_whole(book_folder):
    pages = {p.name: p.read_text(encoding="utf-8") for p in book_folder.glob("*.html")}
    ids = {name: set(re.findall(r'\sid="([^"]+)"', text)) for name, text in pages.items()}
    broken = []
    for name, text in pages.items():
        for target in set(re.findall(r'\s(?:href|src)="([^"]+)"', text)):
            if re.match(r"(?:https?|mailto|data):", target):
                continue
            path, _, anchor = urllib.parse.unquote(target).partition("#")
            path = path.partition("?")[0] or name
            if not (book_folder / path).is_file():
                broken.append(f"{name}: {target}")
            elif anchor and path in ids and anchor not in ids[path]:
                broken.append(f"{name}: {target}")
    assert broken == []


def test_nothing_comes_from_outside(book_folder):
    """No address of another machine is loaded; links that a reader may click are fine."""
    loaded = re.compile(r'(?:src|srcset|poster)="(?:https?:)?//|<link [^>]*href="(?:https?:)?//')
    for path in book_folder.glob("*.html"):
        text = re.sub(r'<link rel="canonical"[^>]*>', "", path.read_text(encoding="utf-8"))
        assert not (hit := loaded.search(text)), f"{path.name}: {hit.group()}"
    for path in book_folder.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?(?:https?:)?//", path.read_text()), path.name


def test_every_notebook_is_there_with_all_its_pictures(book_folder):
    for path in all_notebooks():
        text = (book_folder / f"{path.stem}.html").read_text(encoding="utf-8")
        stored = path.read_text(encoding="utf-8").count("data:image/")
        assert text.count("_static/pictures/") == stored and "data:image/webp" not in text
        assert re.search(r"As of 20\d\d-\d\d-\d\d", text) and "In this notebook" in text


def test_solutions_are_folded(book_folder):
    for path in all_notebooks():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        solutions = sum("solution" in c["metadata"].get("tags", []) for c in cells)
        text = (book_folder / f"{path.stem}.html").read_text(encoding="utf-8")
        assert text.count("Show the solution") == solutions, path.name
        assert not re.search(r"<details[^>]* open", text), path.name


def test_what_was_recorded_belongs_to_a_picture(book_folder):
    """Films, sliders and numbers are found by alt text: a notebook that was changed lost its own."""
    shipped = sorted((ROOT / "book/recorded").glob("*.zip"))
    assert len(shipped) >= 5
    for file in shipped:
        with zipfile.ZipFile(file) as archive:
            recorded = {entry["alt"] for entry in json.loads(archive.read("index.json"))}
        (path,) = (p for p in all_notebooks() if p.name.startswith(file.stem))
        alts = set(re.findall(r'<img alt=\\"(.*?)\\"', path.read_text(encoding="utf-8")))
        lost = recorded - {html.unescape(alt) for alt in alts}
        assert not lost, f"{path.name}: run book/harvest.py and book/ship.py {file.stem}: {lost}"
        page = (book_folder / f"{path.stem}.html").read_text(encoding="utf-8")
        assert "data-alive" in page and "The numbers of this chart" in page


# ---- search


@pytest.mark.parametrize("word", ["posterior", "guidance", "噪声", "扩散", "潜变量"])
def test_search_finds_english_and_chinese(word, book, page):
    page.goto(f"{book}/search.html?q={urllib.parse.quote(word)}")
    results = page.locator("#search-results a")
    results.first.wait_for(timeout=60_000)
    assert any(re.search(r"/\d\d_", link.evaluate("n => n.href")) for link in results.all())


def test_every_chinese_word_of_the_glossary_is_in_the_index(book_folder):
    terms = json.loads(
        re.search(r"Search\.setIndex\((.*)\)", (book_folder / "searchindex.js").read_text(encoding="utf-8"))[1]
    )["terms"]  # fmt: skip
    words = {w for entry in glossary() for w in re.findall("[\u4e00-\u9fff]+", entry["chinese"])}
    lost = {w for w in words if not all(w[i : i + 2] in terms for i in range(max(1, len(w) - 1)))}
    assert lost == set() and len(words) > 100


# ---- what moves


def first_widget(page, kind):
    box = page.locator("[data-alive]", has=page.locator(f"[data-kind={kind}]")).first
    for place in page.locator("[data-alive]").all():
        place.scroll_into_view_if_needed()
        place.locator(".ddpm-widget").wait_for()
        if box.count():
            break
    return box.locator(".ddpm-widget")


def test_a_slider_moves_without_a_kernel(book, page):
    opened(page, book, NOTEBOOKS[1])
    root = first_widget(page, "slider-image")
    before = after(root, lambda: root.locator("input[type=range]").press("Home"))
    seen = after(root, lambda: root.locator("input[type=range]").press("End"))
    assert seen != before


def test_a_film_plays_and_stands_still_for_who_wants_less_motion(book, browser):
    for motion in "no-preference", "reduce":
        with new_page(browser, reduced_motion=motion) as page:
            opened(page, book, NOTEBOOKS[1])
            root = first_widget(page, "film")
            root.locator("[role=img]").scroll_into_view_if_needed()
            page.wait_for_timeout(3000)
            assert (drawn(root) > 2) == (motion == "no-preference")
            root.locator("input[type=range]").press("Home")
            assert root.get_attribute("data-index") == "0"
            root.locator(".ddpm-play").click()
            page.wait_for_function("n => +n.dataset.index > 2", arg=root.element_handle())
            assert page.outside == [] and page.problems == []


# ---- slides

TOO_LARGE = """async () => { const found = [], wait = ms => new Promise(done => setTimeout(done, ms));
    for (let i = 0; i < Reveal.getTotalSlides(); i++) {
        const slide = Reveal.getCurrentSlide(); await wait(30);
        const parts = [...slide.children].filter(part => getComputedStyle(part).position !== 'absolute');
        const high = Math.max(...parts.map(part => part.offsetTop + part.offsetHeight));
        if (high > 730 || slide.scrollWidth > 1290) found.push([i, high, slide.scrollWidth, slide.textContent.slice(0, 40)]);
        while (Reveal.availableFragments().next) Reveal.nextFragment();
        Reveal.next(); }
    return found; }"""


def test_slides_fit_their_screen(page, tmp_path, axe):
    from ddpm_edu.classroom.slides import write

    out = tmp_path / "slides.html"
    count = write(all_notebooks()[2], out)
    page.set_default_timeout(120_000)
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(out.as_uri())
    page.evaluate("() => MathJax.startup.promise.then(() => true)")
    assert page.evaluate("() => Reveal.getTotalSlides()") == count > 20
    assert page.evaluate(TOO_LARGE) == []
    assert page.locator("mjx-container").count() > 50


# ---- the PDF


def test_pages_are_printed_as_one_pdf(book_folder, page, tmp_path):
    """Three pages of the book; the whole takes minutes."""
    sys.path.insert(0, str(ROOT / "book"))
    from pdf import joined, print_from

    small = tmp_path / "html"
    small.mkdir()
    os.symlink(book_folder / "_static", small / "_static")
    for name in "index", "read", "12_sdxl":
        shutil.copy(book_folder / f"{name}.html", small)
    text = joined(small)
    ids = re.findall(r'\bid="([^"]+)"', text.partition("<body")[2])
    assert len(ids) == len(set(ids)) and "<iframe" not in text
    targets = set(re.findall(r'\bhref="#([^"]+)"', text.partition("<body")[2]))
    assert targets <= set(ids) and "read--" in targets
    print_from(page, tmp_path)
    data = (tmp_path / "book.pdf").read_bytes()
    assert data.startswith(b"%PDF") and 15 < len(re.findall(rb"/Type /Page\b", data)) < 60
    assert not (small / "_whole.html").exists()
