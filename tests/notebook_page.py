"""What every notebook's page has, written from the files: python tests/notebook_page.py [00 03 ...]

The line "← previous · map · next →" under the title and at the end; the map in notebook 00 and each
header's seconds and memory (README's table); links for arXiv numbers; folded cells (setup, solutions,
`# drawing`); where each term of data/glossary.json is introduced; and the metadata that JupyterLab
would write itself (a notebook that has others is marked as changed as soon as it is opened).
Running it twice changes nothing more.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
MAP = "00_pictures_first.ipynb#Map"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": "3.11.7",
    },
}


def all_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def source(cell) -> str:
    return "".join(cell["source"])


def set_source(cell, text: str) -> None:
    cell["source"] = text.splitlines(keepends=True)


def short_title(path: Path) -> str:
    """ "05 Samplers and guidance": the first line up to a colon."""
    title = source(json.loads(path.read_text())["cells"][0]).split("\n")[0]
    return " ".join(title.lstrip("# ").split(":")[0].split())


def navigation(path: Path, folder: Path = NOTEBOOKS) -> str:
    """[← previous](...) · [map](...) · [next →](...), for the notebooks that exist."""
    paths = all_notebooks(folder)
    at = paths.index(path)
    before = [f"[← {short_title(p)}]({p.name})" for p in paths[max(at - 1, 0) : at]]
    after = [f"[{short_title(p)} →]({p.name})" for p in paths[at + 1 : at + 2]]
    return " · ".join([*before, f"[map]({MAP})", *after])


def without_navigation(text: str) -> str:
    lines = [line for line in text.split("\n") if f"[map]({MAP})" not in line]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def navigate(notebook: dict, line: str) -> None:
    """The line goes under the title, and to the end of the last cell."""
    first, last = notebook["cells"][0], notebook["cells"][-1]
    title, _, rest = without_navigation(source(first)).partition("\n")
    set_source(first, f"{title}\n\n{line}\n\n{rest.strip()}")
    set_source(last, f"{without_navigation(source(last))}\n\n{line}")


def link_papers(text: str) -> str:
    """arXiv 2006.11239 -> [arXiv 2006.11239](https://arxiv.org/abs/2006.11239), where no link is yet."""
    return re.sub(
        r"(?<!\[)arXiv[ :](\d{4}\.\d{4,5})(?!\d|\])", r"[arXiv \1](https://arxiv.org/abs/\1)", text
    )


def course_map() -> list[str]:
    """README's table of notebooks, its first two columns, with links that hold in this folder."""
    rows = re.findall(r"^\| \[(.*?)\]\(notebooks/(.*?)\) \| (.*?) \|", readme(), re.M)
    return [f"| [{title}]({file}) | {learns} |" for title, file, learns in rows]


def readme() -> str:
    return (ROOT / "README.md").read_text()


def cost_line(path: Path, old: str) -> str:
    """The header's line of seconds and memory, from README's table; what follows "No GPU" stays."""
    row = re.search(rf"^\| \[.*\]\(notebooks/{path.name}\) .*\| (.*?) \|$", readme(), re.M)
    cost = row[1].replace(", ", " and ") if row else "not measured yet"
    kept = re.search(r"No GPU.*|A GPU.*|With a GPU.*", old)
    return (
        f"**Time and memory:** about {cost} on one CPU core (`make test-notebooks` measures it). "
        + (kept[0] if kept else "")
    ).strip()


def write_cost(notebook: dict, path: Path) -> None:
    for cell in notebook["cells"][:8]:
        if cell["cell_type"] == "markdown":
            line = re.search(r"^\*\*Time and memory:\*\*.*$", source(cell), re.M)
            if line:
                set_source(cell, source(cell).replace(line[0], cost_line(path, line[0])))


def draw_map(notebook: dict) -> None:
    """Refresh the rows of the table under "## Map"."""
    for cell in notebook["cells"]:
        if source(cell).startswith("## Map\n"):
            kept = [s for s in source(cell).split("\n") if not s.startswith("| [")]
            head = max(i for i, s in enumerate(kept) if s.startswith("|---"))
            set_source(cell, "\n".join([*kept[: head + 1], *course_map(), *kept[head + 1 :]]))


FOLDED = "click the dots to see it"


def tagged(cell, tag: str) -> bool:
    return cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", [])


def fold(cell) -> None:
    """Setup, solutions (with what they print) and cells that only draw are one click away."""
    for tag in ("setup", "solution"):
        if tagged(cell, tag) and not source(cell).startswith(f"# {tag.capitalize()}"):
            set_source(cell, f"# {tag.capitalize()}: {FOLDED}\n{source(cell)}")
    drawing = cell["cell_type"] == "code" and source(cell).startswith("# drawing")
    if drawing or tagged(cell, "setup") or tagged(cell, "solution"):
        cell["metadata"].setdefault("jupyter", {})["source_hidden"] = True
    if tagged(cell, "solution"):
        cell["metadata"]["jupyter"]["outputs_hidden"] = True


def written(notebook: dict, path: Path, folder: Path = NOTEBOOKS) -> dict:
    """The notebook with its page as it must be; the one given is not changed."""
    notebook = json.loads(json.dumps(notebook))
    notebook["metadata"] |= METADATA
    navigate(notebook, navigation(path, folder))
    write_cost(notebook, path)
    if path.name.startswith("00"):
        draw_map(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            set_source(cell, link_papers(source(cell)))
        fold(cell)
    return notebook


def refresh(path: Path) -> bool:
    """Write the page of one notebook; True where that changed it."""
    notebook = json.loads(path.read_text())
    new = written(notebook, path)
    if new != notebook:
        path.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n")
    return new != notebook


GLOSSARY = ROOT / "data/glossary.json"
CHINESE = "[\u4e00-\u9fff]+"


def glossary() -> list[dict]:
    """[{"english": [names], "chinese", "meaning", "notebook": the first that prints the term}]"""
    return json.loads(GLOSSARY.read_text(encoding="utf-8"))


def chinese(path: Path) -> set[str]:
    """The Chinese words in a notebook's cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {word for cell in cells for word in re.findall(CHINESE, source(cell))}


def introduced(entries: list[dict]) -> list[dict]:
    """The entries with the notebook that first prints each term; "" where none does."""
    words = [(path.stem[:2], chinese(path)) for path in all_notebooks()]
    whole = lambda entry: set(re.findall(CHINESE, entry["chinese"]))
    first = lambda entry: next((n for n, found in words if whole(entry) <= found), "")
    return [entry | {"notebook": first(entry)} for entry in entries]


def refresh_glossary() -> None:
    lines = (json.dumps(entry, ensure_ascii=False) for entry in introduced(glossary()))
    GLOSSARY.write_text("[\n " + ",\n ".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or ("",)
    for path in all_notebooks():
        if path.name.startswith(wanted):
            print(f"{path.name}: {'refreshed' if refresh(path) else 'as it should be'}")
    refresh_glossary()
