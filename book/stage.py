"""A shipped notebook as a page of the book: folded cells, pictures as files, its date, contents."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
import zipfile
from pathlib import Path

from PIL import Image

MAP = "00_pictures_first.ipynb#Map"
IMG = re.compile(
    r'<img alt="(.*?)" src="data:image/(\w+);base64,([^"]+)" (?:width="(\d+)" )?[^>]*>'
)


def staged(path: Path, static: Path) -> dict:
    """The notebook at `path`, changed for the book; its pictures go to static/pictures."""
    alive = Alive(path, static)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    titles = headings(notebook)
    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = text.replace(MAP, "map.md")
            cell["source"] = below_title(text, path, titles) if number == 0 else text
        else:
            fold(cell)
            for k, output in enumerate(cell["outputs"]):
                name = f"{path.name[:2]}-{number}-{k}"
                show(output, name, static / "pictures", alive)
            if "\nPlayground(" in text:
                put_playground(cell)
    alive.write()
    return notebook


def headings(notebook: dict) -> list[str]:
    """The sections' titles."""
    texts = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]
    text = re.sub(r"^(```|~~~).*?^\1", "", "\n\n".join(texts), flags=re.M | re.S)
    return re.findall(r"^## +(.*)", text, re.M)


def below_title(text: str, path: Path, titles: list[str]) -> str:
    """Date and contents, after the line with the neighbours."""
    head, line, rest = re.split(r"(^.*\(map\.md\).*$)", text, maxsplit=1, flags=re.M)
    folded = "<details class='on-this-page'><summary>In this notebook</summary>"
    listed = "```{contents}\n:local:\n:depth: 1\n:backlinks: none\n```"
    about = f"<span class='dated'>As of {date(path)}. {len(titles)} sections.</span>"
    return f"{head}{line}\n\n{about}\n\n{folded}\n\n{listed}\n\n</details>\n{rest}"


def date(path: Path) -> str:
    """The day of the last commit that changed the file; without git, the file's."""
    import datetime

    said = subprocess.run(
        ["git", "log", "-1", "--format=%cs", "--", path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip() or str(datetime.date.fromtimestamp(path.stat().st_mtime))


def fold(cell: dict) -> None:
    """What JupyterLab hides until a click, myst-nb does by tags."""
    hidden = cell["metadata"].get("jupyter", {})
    tags = cell["metadata"].setdefault("tags", [])
    if hidden.get("source_hidden") and hidden.get("outputs_hidden"):
        tags.append("hide-cell")
    elif hidden.get("source_hidden"):
        tags.append("hide-input")
    name = re.match(r"# (Solution|Setup|drawing)", "".join(cell["source"]))
    if hidden.get("source_hidden") and name:
        what = {"Solution": "the solution", "Setup": "the imports", "drawing": "the drawing code"}
        prompts = {f"code_prompt_{do}": f"{do.capitalize()} {what[name[1]]}" for do in PROMPTS}
        cell["metadata"]["mystnb"] = prompts


PROMPTS = ("show", "hide")


def show(output: dict, name: str, folder: Path, alive: Alive) -> None:
    """Pictures become files, tables can be scrolled, films move, charts have their numbers."""
    data = output.get("data", {})
    if "text/html" not in data:
        return
    found = iter(range(100))
    text = "".join(data["text/html"])
    text = IMG.sub(lambda m: picture(m, f"{name}-{next(found)}", folder), text)
    text = re.sub(r"<table>(.*?)</table>", scrolled, text, flags=re.S)
    text = text.replace('<figure style="margin:0.5em 0">', '<figure class="shown">')
    data["text/html"] = FIGURE.sub(alive.shown, text)


def put_playground(cell: dict) -> None:
    """The widget needs no kernel: it takes the place of its still picture (live/build.py)."""
    data = cell["outputs"][0]["data"]
    run = "<script>playground(document.getElementById('playground'));</script>"
    script = f'<script src="_static/live/playground.js"></script>{run}'
    data["text/html"] = f'<div id="playground">{data["text/html"]}</div>{script}'


FIGURE = re.compile(r'<figure class="shown"><img alt="(.*?)".*?</figure>', re.S)


class Alive:
    """What harvest.py recorded of one notebook, found by the pictures' alt texts."""

    def __init__(self, path: Path, static: Path):
        self.name, self.script = path.name[:2], static / f"alive/{path.name[:2]}.js"
        self.entries, self.used = [], {}
        for folder in "_alive", "recorded":  # all that was recorded here; what is shipped
            file = BOOK / folder / f"{self.name}.zip"
            if file.is_file() and not self.entries:
                with zipfile.ZipFile(file) as archive:
                    self.entries = json.loads(archive.read("index.json"))
                    for entry in self.entries:
                        if film := entry.pop("file", ""):
                            entry["film"] = base64.b64encode(archive.read(film)).decode()

    def shown(self, match: re.Match) -> str:
        """The figure with its numbers, or with the place of its film in the script."""
        alt = html.unescape(match[1])
        for k, entry in enumerate(self.entries):
            if entry["alt"] == alt and entry["kind"] == "chart":
                return match[0] + numbers(entry["rows"])
            if entry["alt"] == alt:
                self.used[k] = entry
                return f'<div data-alive="{self.name}-{k}">{match[0]}</div>'
        return match[0]

    def write(self) -> None:
        if self.used:
            self.script.parent.mkdir(exist_ok=True)
            text = json.dumps(self.used, ensure_ascii=False)
            self.script.write_text(f'DDPM_ALIVE("{self.name}", {text});\n', encoding="utf-8")


def numbers(tables: list) -> str:
    """A chart's numbers, folded."""
    cell = lambda tag, text: f"<{tag}>{html.escape(text)}</{tag[:2]}>"
    row = lambda tag, texts: f"<tr>{''.join(cell(tag, t) for t in texts)}</tr>"
    body = "".join(
        f"<table>{row('th', head)}{''.join(row('td', r) for r in rows)}</table>"
        for head, *rows in tables
    )
    text = re.sub(r"<table>(.*?)</table>", scrolled, body, flags=re.S)
    return f'<details class="numbers"><summary>The numbers of this chart</summary>{text}</details>'


def widgets_script() -> str:
    """The package's widgets for a page without modules: DDPM_WIDGETS.film, .points, .panel."""
    files = BOOK.parent / "ddpm_edu/show/widgets"
    text = "window.DDPM_WIDGETS = {};\n"
    for kind, names in WIDGETS.items():
        body = "".join((files / f"{n}.js").read_text(encoding="utf-8") for n in names)
        body = body.replace("export default { render };", "")
        text += f"(() => {{\n{body}\nwindow.DDPM_WIDGETS.{kind} = {{ render }};\n}})();\n"
    return text


BOOK = Path(__file__).resolve().parent
WIDGETS = {
    "film": ("common", "transport", "film"),
    "points": ("common", "transport", "points"),
    "panel": ("common", "controls", "panel"),
}


def picture(match: re.Match, name: str, folder: Path) -> str:
    alt, kind, data, width = match.groups()
    raw = base64.b64decode(data)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.{kind}").write_bytes(raw)
    image = Image.open(io.BytesIO(raw))
    w = int(width or image.width)
    h = round(w * image.height / image.width)
    source = f"_static/pictures/{name}.{kind}"
    return f'<img alt="{alt}" src="{source}" width="{w}" height="{h}" loading="lazy">'


def scrolled(match: re.Match) -> str:
    head, *rows = re.findall(r"<tr>.*?</tr>", match[1], re.S)
    head = head.replace("<th ", '<th scope="col" ')
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scrolled" role="region" aria-label="table" tabindex="0">{table}</div>'


def glossary_page(path: Path, notebooks: list[Path]) -> str:
    """data/glossary.json as a page: English, Chinese, meaning, the first notebook."""
    files = {p.name[:2]: p.name for p in notebooks}
    rows = ["# Glossary 术语表", "", "English, 中文, what it means, and the first notebook.", ""]
    rows += ["| English | 中文 | meaning | first in |", "|---|---|---|---|"]
    entries = json.loads(path.read_text(encoding="utf-8"))
    for entry in sorted(entries, key=lambda e: e["english"][0].lower()):
        english = ", ".join(entry["english"])
        first = entry["notebook"]
        link = f"[{first}]({files[first]})" if first in files else ""
        meaning = entry["meaning"].replace("|", "\\|")
        rows.append(f"| {english} | {entry['chinese']} | {meaning} | {link} |")
    return "\n".join(rows) + "\n"
