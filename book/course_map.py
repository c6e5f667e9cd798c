"""The map of the course: which notebook needs which. Writes notebooks/map.svg:

    python book/course_map.py

NEEDS is the one list: headers ("Know first"), CLASSROOM.md and picture are tested against it.
"""

import json
import re
from collections.abc import Callable
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "notebooks" / "map.svg"

# notebook: (part, what it needs directly; their needs come along)
NEEDS = {
    "00": ("I", ""),
    "01": ("I", ""),  # 00 is pleasant before it, but not needed
    "02": ("I", "01"),
    "03": ("I", "01"),
    "04": ("I", "02 03"),
    "05": ("I", "04"),
    "06": ("II", "02 03"),
    "07": ("II", "04 06"),
    "08": ("II", "04"),
    "09": ("II", "05 07 08"),
    "10": ("II", "09"),
    "11": ("II", "09"),
    "12": ("III", "09"),
    "13": ("III", "12"),
    "14": ("III", "12"),
    "15": ("IV", "09"),
    "16": ("IV", "09"),
    "17": ("V", "09"),
    "18": ("V", "16"),
}
PARTS = {
    "I": ("diffusion", "#56B4E9"),
    "II": ("latent diffusion, Stable Diffusion", "#F0C75E"),
    "III": ("SDXL", "#5FC7A4"),
    "IV": ("around and beyond", "#E5A3C4"),
    "V": ("yours", "#C9C9C9"),
}
WIDTH, HEIGHT = 122, 54  # of a box
ACROSS, DOWN = 152, 70  # from box to box


def direct(number: str) -> list[str]:
    return NEEDS[number][1].split()


def before(number: str) -> set[str]:
    """All that comes before a notebook."""
    return {n for need in direct(number) for n in (need, *before(need))}


def column(number: str) -> int:
    return max((column(need) + 1 for need in direct(number)), default=0)


def title(number: str) -> str:
    """ "Samplers and guidance": the notebook's first line, up to a colon."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    line = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    return " ".join(re.sub(r"^[# ]*\d\d", "", line.split("\n")[0]).split(":")[0].split())


def places() -> dict[str, tuple[int, int]]:
    """The left upper corner of each box: columns from left to right, each centred."""
    columns: dict[int, list[str]] = {}
    for number in NEEDS:
        columns.setdefault(column(number), []).append(number)
    tallest = max(map(len, columns.values()))
    return {
        number: (2 + ACROSS * c, round(30 + DOWN * (row + (tallest - len(found)) / 2)))
        for c, found in columns.items()
        for row, number in enumerate(found)
    }


def lines_of(text: str, most: int = 11) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if len(longer) <= most else [*lines, word]
    return [line for line in lines if line]


def arrow(start, end) -> str:
    (x, y), (to_x, to_y) = start, end
    x, y, to_y = x + WIDTH, y + HEIGHT // 2, to_y + HEIGHT // 2
    half = (x + to_x) // 2
    return f'<path d="M{x} {y} C{half} {y} {half} {to_y} {to_x - 7} {to_y}"/>'


def pleasant(x: int, y: int) -> str:
    """A dashed arrow from 00 down to 01: a good start that nothing rests on."""
    x += WIDTH // 2
    return f'<path d="M{x} {y + HEIGHT} L{x} {y + DOWN - 6}" stroke-dasharray="3 3"/>'


def box(number: str, x: int, y: int, link: Callable[[str], str] | None) -> str:
    part, text = NEEDS[number][0], lines_of(title(number))
    first = y + HEIGHT / 2 + 4.5 - 7.5 * (len(text) - 1)
    words = "".join(
        f'<tspan x="{x + 32}" y="{first + 15 * i:g}">{escape(line)}</tspan>'
        for i, line in enumerate(text)
    )
    drawn = (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{PARTS[part][1]}"/>'
        f'<text x="{x + 16}" y="{y + HEIGHT / 2 + 2:g}" class="n">{number}</text>'
        f'<text x="{x + 16}" y="{y + HEIGHT / 2 + 16:g}" class="p">{part}</text>'
        f"<text>{words}</text>"
    )
    if link is None:
        return drawn
    name = escape(f"{number} {title(number)}", quote=True)
    return f'<a href="{escape(link(number), quote=True)}" aria-label="{name}">{drawn}</a>'


def legend() -> str:
    x, drawn = 2, ""
    for part, (name, color) in PARTS.items():
        if any(part == p for p, _ in NEEDS.values()):
            text = f"{part}  {name}"
            width = round(7.3 * len(text)) + 18
            drawn += (
                f'<rect x="{x}" y="2" width="{width}" height="20" rx="5" fill="{color}"/>'
                f'<text x="{x + 7}" y="16.5">{text}</text>'
            )
            x += width + 8
    return drawn


def sentence() -> str:
    """What the picture says, in words: for those who do not see it."""
    said = (f"{n} needs {' and '.join(direct(n))}" for n in NEEDS if direct(n))
    return "Which notebook needs which. " + "; ".join(said) + "."


def svg(link: Callable[[str], str] | None = None) -> str:
    """The picture; with link(number) -> address each box is a link.

    Boxes bring their own light ground and the arrows are grey, so it reads on white and on black.
    """
    where = places()
    wide = max(x for x, _ in where.values()) + WIDTH + 2
    high = max(y for _, y in where.values()) + HEIGHT + 2
    arrows = "\n".join(
        arrow(where[need], where[number]) for number in NEEDS for need in direct(number)
    )
    boxes = "\n".join(box(number, *where[number], link) for number in NEEDS)
    role = 'role="img"' if link is None else 'role="group"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" {role} \
aria-label="{sentence()}" font-family="Helvetica, Arial, sans-serif" font-size="14" fill="#111">
<style>.n {{ font-weight: bold; font-size: 15px }} .p {{ font-size: 10px }}
.n, .p {{ text-anchor: middle }}
a:hover rect, a:focus rect {{ stroke: #808080; stroke-width: 3 }}</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="5" markerHeight="5" \
orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#808080"/></marker></defs>
{legend()}
<g fill="none" stroke="#808080" stroke-width="1.8" marker-end="url(#tip)">
{arrows}
{pleasant(*where["00"])}
</g>
{boxes}
</svg>
"""


if __name__ == "__main__":
    FILE.write_text(svg(), encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: {len(NEEDS)} notebooks")
