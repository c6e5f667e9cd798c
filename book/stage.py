"""A shipped notebook as a page of the book: folded cells, pictures as files, its date, contents."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
from pathlib import Path

from PIL import Image

MAP = "00_pictures_first.ipynb#Map"
IMG = re.compile(r'<img alt="(.*?)" src="data:image/(\w+);base64,([^"]+)" (?:width="(\d+)" )?[^>]*>')


def staged(path: Path, static: Path) -> dict:
    """The notebook at `path`, changed for the book; its pictures go to static/pictures."""
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
                show(output, name, static / "pictures")
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
    listed = "```{contents}\n:local:\n:depth: 1\n```"
    about = f"As of {date(path)}, {len(titles)} sections. The outputs are those of the notebook."
    return f"{head}{line}\n\n{about}\n{{.dated}}\n\n{folded}\n\n{listed}\n\n</details>\n{rest}"


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


def show(output: dict, name: str, folder: Path) -> None:
    """Pictures become files, tables can be scrolled."""
    data = output.get("data", {})
    if "text/html" not in data:
        return
    found = iter(range(100))
    text = "".join(data["text/html"])
    text = IMG.sub(lambda m: picture(m, f"{name}-{next(found)}", folder), text)
    text = re.sub(r"<table>(.*?)</table>", scrolled, text, flags=re.S)
    data["text/html"] = text.replace('<figure style="margin:0.5em 0">', '<figure class="shown">')


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
