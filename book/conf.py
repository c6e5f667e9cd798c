"""Sphinx's settings. The sources are staged by build.py: run `make book`."""

import re

from sphinx.search.en import SearchEnglish

project = "Diffusion, from the first noisy dot to SDXL"
html_title = "Diffusion models: the course as a book"
author = "the authors of ddpm_edu"
copyright = "the authors of ddpm_edu: text CC BY 4.0, code MIT"
language = "en"
extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = []

nb_execution_mode = "off"  # the notebooks as shipped
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["widgets.css", "book.css"]
html_js_files = [(f"{name}.js", {"defer": "defer"}) for name in ("book", "widgets", "alive")]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "logo": {"text": "Diffusion models: the course"},
    "show_toc_level": 2,
    "search_bar_text": "Search (English or 中文)",
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
mathjax_path = "mathjax/tex-svg-full.js"  # one file, its letters are drawn: no fonts to load
mathjax3_config = {
    "svg": {"fontCache": "global"},
    "options": {"enableMenu": False, "enableAssistiveMml": True},
}

CHINESE = re.compile("[\u4e00-\u9fff]+")


class EnglishAndChinese(SearchEnglish):
    """English as usual. Chinese has no spaces: of each run of letters, the run and all pairs."""

    def split(self, input: str) -> list[str]:
        runs = CHINESE.findall(input)
        pairs = [run[i : i + 2] for run in runs for i in range(len(run) - 1)]
        return [*super().split(CHINESE.sub(" ", input)), *runs, *pairs]


def setup(app):
    app.add_search_language(EnglishAndChinese)
