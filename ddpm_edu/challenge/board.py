"""The board: one HTML file with a class's results, for a screen or a phone. Notebook 18."""

import base64
import hashlib
import html
from pathlib import Path

from ..errors import OptionError
from ..paths import replacing
from .results import Result, collected
from .rules import BUDGETS, of_one

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The challenge: {n} entries</title>
<style>
:root {{ color-scheme: light dark; --line: #bbb; --text: #111; --back: #fff; --soft: #555;
  --good: #00664a; --bad: #a33000; --band: #f2f6fa }}
@media (prefers-color-scheme: dark) {{ :root {{ --line: #555; --text: #eee; --back: #171717;
  --soft: #bbb; --good: #5fd0a5; --bad: #ff9d76; --band: #22282e }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52em; margin: 1.5em auto; padding: 0 1em;
  color: var(--text); background: var(--back) }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }}
caption {{ text-align: left; color: var(--soft); padding: .3em 0 }}
th, td {{ text-align: right; padding: .35em .5em; border-top: 1px solid var(--line) }}
th:nth-child(2), td:nth-child(2) {{ text-align: left; overflow-wrap: anywhere }}
tbody tr:nth-child(odd) {{ background: var(--band) }}
tbody th {{ font-weight: 600 }}
td.points {{ font-weight: 700; color: var(--good) }} .bad {{ color: var(--bad) }}
details {{ border-top: 1px solid var(--line); padding: .4em 0 }}
summary {{ cursor: pointer; font-weight: 600; padding: .2em 0 }}
img {{ display: block; width: 100%; max-width: 560px; height: auto; image-rendering: pixelated;
  margin: .5em 0 }}
.small {{ color: var(--soft); font-size: .875rem; overflow-wrap: anywhere }}
@media (max-width: 30em) {{ body {{ font-size: 15px; padding: 0 .5em }}
  th, td {{ padding: .3em .25em }} }}
</style></head><body>
<main>
<h1>The challenge</h1>
<p>One network, one data set, limited training. Points with <i>k</i> evaluations a picture: 100
times the share of digits read right, divided by 1 + Fréchet distance. The total is the mean.</p>
{tables}
<h2>Each entry</h2>
{entries}
{broken}
<p class="small">{trust}</p>
</main></body></html>
"""
TRUST = (
    "This page repeats what the result files in its folder say; whoever can write there can "
    "write points. `ddpm-edu challenge board --rerun` judges every entry anew instead."
)
RERUN = "All entries were judged anew for this page, with one seed."
WORDS = "{n} evaluation{s}"


def board(folder, out, *, rerun: bool = False) -> tuple[Path, list[str]]:
    """Write the page of a folder's results; (its path, a sentence for each file left out).

    rerun: the results were made just now from the entries themselves; the page says so.
    OptionError where there is no result, or the page cannot be written.
    """
    results, broken = collected(folder)
    try:
        with replacing(out) as part:
            text = page(results, broken, folder, rerun)
            Path(part).write_text(text, encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:
        raise OptionError(f"--out {out}: could not be written ({error})") from error
    return Path(out), broken


def page(results: list[Result], broken=(), folder=None, rerun: bool = False) -> str:
    """HTML. Entries that had other times to train stand in tables of their own."""
    times = sorted({(r.seconds, r.pictures) for r in results}, reverse=True)
    tables = [
        table([r for r in results if (r.seconds, r.pictures) == time], len(times) > 1)
        for time in times
    ]
    names = "".join(f"<li>{html.escape(text)}</li>" for text in broken)
    return PAGE.format(
        n=len(results),
        tables="\n".join(tables),
        entries="\n".join(entry(r, changed(r, folder)) for r in results),
        broken=f"<h2>Files left out</h2>\n<ul>{names}</ul>" if names else "",
        trust=html.escape(RERUN if rerun else TRUST),
    )


def table(results: list[Result], several: bool) -> str:
    """A row an entry, best first."""
    head = "".join(f'<th scope="col"><abbr title="{words(n)}">{n}</abbr></th>' for n in BUDGETS)
    about = f"{results[0].seconds:g} s of training on two cores, {results[0].pictures:,} pictures"
    title = f"<h2>{results[0].seconds:g} seconds</h2>\n" if several else ""
    rows = "\n".join(row(rank + 1, r) for rank, r in enumerate(results))
    return (
        f"{title}<table><caption>{about}. Columns 1, 2, 4, 8: points with so many evaluations."
        f'</caption>\n<thead><tr><th scope="col"><abbr title="rank">#</abbr></th>'
        f'<th scope="col">entry</th><th scope="col">points</th>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table>"
    )


def row(rank: int, result: Result) -> str:
    name = html.escape(result.entry)
    if result.cause != "judged":
        why = html.escape(result.cause)
        cells = f'<td class="bad">0</td><td class="bad" colspan="4">{why}</td>'
    else:
        cells = f'<td class="points">{result.points:.1f}</td>' + "".join(
            f"<td>{of_one(result.scores[n]):.0f}</td>" for n in BUDGETS
        )
    return f'<tr><td>{rank}</td><th scope="row">{name}</th>{cells}</tr>'


def words(n: int) -> str:
    return WORDS.format(n=n, s="s" * (n > 1))


def entry(result: Result, note: str) -> str:
    """Pictures, figures, and where they come from, folded."""
    facts = f"{result.date}, {result.device}, {result.versions}, seed {result.seed}, "
    facts += f"sha256 {result.sha256[:16]}…" + (f", {result.command}" if result.command else "")
    why = ""
    if result.cause != "judged":
        cause, message = html.escape(result.cause), html.escape(result.message)
        why = f'<p class="bad"><b>{cause}.</b> {message}</p>'
    figures = "".join(
        f"<li>{words(n)}: {score['accuracy']:.1%} read right, Fréchet distance "
        f"{score['frechet']:.2f}</li>"
        for n, score in result.scores.items()
    )
    raw = result.picture and base64.b64encode(base64.b64decode(result.picture)).decode()
    alt = "Digits 0 to 9 in four rows, with 1, 2, 4 and 8 evaluations from top to bottom."
    shown = raw and f'<img src="data:image/png;base64,{raw}" alt="{alt}">'
    spent = f"{result.trained:.0f} s of processor time for training. " if result.trained else ""
    walls = f"Walls: {', '.join(map(str, result.walls)) or 'none'}."
    note = f'<p class="bad">{html.escape(note)}</p>' if note else ""
    return (
        f"<details><summary>{html.escape(result.entry)}</summary>{note}{why}{shown}"
        f"<ul>{figures}</ul>"
        f'<p class="small">{html.escape(spent + walls + " " + facts)}</p></details>'
    )


def changed(result: Result, folder) -> str:
    """A warning where the entry that lies beside its result is not the one that was judged."""
    file = folder and Path(folder) / f"{result.entry}.py"
    if not file or not file.is_file():
        return ""
    same = hashlib.sha256(file.read_bytes()).hexdigest() == result.sha256
    return "" if same else f"{file.name} has changed since it was judged: judge it again."
