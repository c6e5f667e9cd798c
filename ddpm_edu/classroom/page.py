"""One page a student: points, and what went wrong, without answers. All notebooks."""

import html

COLOURS = {"right": "#00664a", "not attempted": "#555", "missing": "#555"}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{student}: {points} of {of} points</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56em; margin: 2em auto; padding: 0 1em;
  color: #111; background: #fff }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .4em .7em; border-top: 1px solid #bbb }}
td {{ overflow-wrap: anywhere }} th {{ white-space: nowrap }}
@media (prefers-color-scheme: dark) {{ body {{ color: #eee; background: #171717 }}
  b {{ filter: brightness(2) }} }}
</style>
<h1>{student}: {points} of {of} points</h1>
{files}<table>
<tr><th scope="col">Exercise</th><th scope="col">Points</th><th scope="col">Result</th></tr>
{rows}
</table>
<p>Answers were also run on inputs that no notebook shows. Took {seconds:.1f} s.</p>
</html>
"""


def page(result: dict, exercises: list[str]) -> str:
    """HTML of a student's result (see grade.py), for these exercises."""
    rows = []
    for exercise in exercises:
        name, message = result["findings"][exercise]
        colour = COLOURS.get(name, "#a33000")
        text = f'<b style="color:{colour}">{html.escape(name)}</b>'
        text += f". {html.escape(message)}" if message else ""
        points = int(name == "right")
        rows.append(f'<tr><th scope="row">{exercise}</th><td>{points}</td><td>{text}</td></tr>')
    files = [
        f"<p>{html.escape(file)}: {html.escape(problem)}.</p>\n"
        for file, problem in result["problems"].items()
    ]
    return PAGE.format(
        student=html.escape(result["student"]),
        points=sum(result["findings"][e][0] == "right" for e in exercises),
        of=len(exercises),
        files="".join(files),
        rows="\n".join(rows),
        seconds=result["seconds"],
    )
