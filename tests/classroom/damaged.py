"""Submissions as they arrive: damaged in 40 ways, each with the marks that are right for it.

    python tests/classroom/damaged.py FOLDER 10 2     # writes 10 of each kind, grades them 2 at a time, compares

All are made from notebook 01 as it is handed out, with right answers to its four exercises.
"""

import json
import random
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "01_forward_process.ipynb"
EXERCISES = ["01.1", "01.2", "01.3", "01.4"]
NAMES = dict(zip(EXERCISES, ["my_q_sample", "jump", "beta_from", "zero_terminal_snr"]))
ANSWERS = {
    "my_q_sample": """def my_q_sample(x_0, t, eps, beta):
    alpha_bar = torch.cumprod(1 - beta, dim=0)[t]

    alpha_bar = alpha_bar.reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
""",
    "jump": """def jump(alpha_bar, s, t):
    alpha = alpha_bar[t] / alpha_bar[s]
    return alpha.sqrt(), 1 - alpha
""",
    "beta_from": """ONE = 1.0


def beta_from(alpha_bar):
    before = torch.cat([torch.full((1,), ONE, dtype=alpha_bar.dtype), alpha_bar[:-1]])
    return 1 - alpha_bar / before
""",
    "zero_terminal_snr": """def stretched(root):
    return (root - root[-1]) * root[0] / (root[0] - root[-1])


def zero_terminal_snr(alpha_bar):
    return stretched(alpha_bar.sqrt()) ** 2
""",
}


def handed_out(folder: Path) -> dict:
    """The notebook as students get it; handed_out.json is beside it."""
    from ddpm_edu.cli import main

    assert main(["student", str(ROOT / "notebooks" / NOTEBOOK), "--out", str(folder)]) == 0
    return json.loads((folder / NOTEBOOK).read_text())


def text(cell) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def code(source, **more):
    return {
        "cell_type": "code",
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    } | more


def cells_of(nb, *names) -> list[dict]:
    """The cells that define these answers, else all four."""
    names = names or ANSWERS
    return [
        c
        for c in nb["cells"]
        if c["cell_type"] == "code" and any(f"def {n}(" in text(c) for n in names)
    ]


def answered(nb: dict, **other) -> dict:
    """A copy with right answers, or others."""
    nb = json.loads(json.dumps(nb))
    for name, answer in (ANSWERS | other).items():
        (cell,) = cells_of(nb, name)
        cell["source"] = answer
    return nb


def checks(nb) -> list[dict]:
    return [
        c
        for c in nb["cells"]
        if c["cell_type"] == "code"
        and text(c).startswith(
            (
                "check(",
                "my_q_sample = use",
                "jump = use",
                "beta_from = use",
                "zero_terminal_snr = use",
            )
        )
    ]


def without(nb, cells):
    nb["cells"] = [c for c in nb["cells"] if not any(c is gone for gone in cells)]
    return nb


def split(nb, rng):
    out = []
    for c in nb["cells"]:
        lines = text(c).split("\n")
        if any(c is a for a in cells_of(nb)):
            cut = rng.randint(len(lines) - 3, len(lines) - 2)
            out += [code("\n".join(lines[:cut])), code("\n".join(lines[cut:]))]
        else:
            out.append(c)
    nb["cells"] = out
    return nb


def every(nb, change, cells=None):
    for c in cells if cells is not None else cells_of(nb):
        change(c)
    return nb


def set_source(c, source):
    c["source"] = source


def stubs_behind(nb, stub):
    """Each empty cell once more, behind its check."""
    for name in ANSWERS:
        (empty,) = cells_of(stub, name)
        (check,) = [
            c
            for c in nb["cells"]
            if c["cell_type"] == "code" and text(c).startswith("check(") and f", {name})" in text(c)
        ]
        nb["cells"].insert(nb["cells"].index(check) + 1, json.loads(json.dumps(empty)))
        nb["cells"].insert(nb["cells"].index(check) + 2, json.loads(json.dumps(check)))
    return nb


def twice(nb):
    nb["cells"] = [
        c for c in nb["cells"] for _ in range(2 if any(c is a for a in cells_of(nb)) else 1)
    ]
    return nb


def shuffled(nb, rng):
    rng.shuffle(nb["cells"])
    return nb


def colab(nb):
    """As Google Colab downloads: its own metadata, ids in another place, outputs of its own."""
    nb |= {"nbformat": 4, "nbformat_minor": 0}
    nb["metadata"] = {
        "colab": {"provenance": []},
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
    }
    for i, c in enumerate(nb["cells"]):
        c.pop("id", None)
        c["metadata"] = {"id": f"x{i}", "colab": {"base_uri": "https://localhost:8080/"}}
        c["source"] = text(c).splitlines(keepends=True)
    nb["cells"].insert(0, code("!pip install -q ddpm_edu\n%cd /content"))
    nb["cells"].insert(1, code("from google.colab import drive\ndrive.mount('/content/drive')"))
    return nb


def vscode(nb):
    nb["metadata"] = {
        "language_info": {"name": "python"},
        "orig_nbformat": 4,
        "vscode": {"interpreter": {"hash": "0"}},
    }
    for c in nb["cells"]:
        c.pop("id", None)
        c["metadata"] = {"vscode": {"languageId": "python"}}
    return nb


def version_3(nb):
    cells = []
    for c in nb["cells"]:
        kind = {"cell_type": c["cell_type"], "metadata": {}}
        cells.append(
            kind
            | (
                {"input": text(c), "language": "python", "outputs": []}
                if c["cell_type"] == "code"
                else {"source": text(c)}
            )
        )
    return {
        "metadata": {"name": ""},
        "nbformat": 3,
        "nbformat_minor": 0,
        "worksheets": [{"cells": cells, "metadata": {}}],
    }


def script(nb) -> bytes:
    parts = [
        text(c) if c["cell_type"] == "code" else "# " + text(c).replace("\n", "\n# ")
        for c in nb["cells"]
    ]
    return "\n\n# %%\n".join(parts).encode()


def raw(nb) -> bytes:
    return json.dumps(nb).encode()


RIGHT = dict.fromkeys(EXERCISES, "right")


def only(name, finding):
    return RIGHT | {name: finding}


def put(nb, *cells):
    nb["cells"][1:1] = cells
    return nb


# kind: (what makes it of (stub, random): a notebook, bytes, or {file name: either}; the finding an exercise)
KINDS = {
    "whole": (lambda s, r: answered(s), RIGHT),
    "doubled": (lambda s, r: twice(answered(s)), RIGHT),
    "empty_cells_behind": (lambda s, r: stubs_behind(answered(s), s), RIGHT),
    "split": (lambda s, r: split(answered(s), r), RIGHT),
    "now_markdown": (lambda s, r: every(n := answered(s), lambda c: c.update(cell_type="markdown"), cells_of(n)), RIGHT),
    "now_raw": (lambda s, r: every(n := answered(s), lambda c: c.update(cell_type="raw"), cells_of(n)), RIGHT),
    "no_checks": (lambda s, r: without(n := answered(s), checks(n)), RIGHT),
    "only_answers": (lambda s, r: (n := answered(s)) | {"cells": [code("import torch"), *cells_of(n)]}, RIGHT),
    "reversed": (lambda s, r: (n := answered(s)) | {"cells": n["cells"][::-1]}, RIGHT),
    "shuffled": (lambda s, r: shuffled(answered(s), r), RIGHT),
    "syntax_error_elsewhere": (lambda s, r: put(every(answered(s), lambda c: set_source(c, text(c) + "\nprint('half\n")), code("for x in:\n  pass")), RIGHT),
    "endless_elsewhere": (lambda s, r: put(every(answered(s), lambda c: set_source(c, text(c) + "\nwhile True:\n    pass\n")), code("import time\nwhile True: time.sleep(1)")), RIGHT),
    "error_elsewhere": (lambda s, r: put(answered(s), code("raise SystemExit"), code("1 / 0"), code("import no_such_thing")), RIGHT),
    "giant_output": (lambda s, r: put(answered(s), code("print(1)", outputs=[{"output_type": "stream", "name": "stdout", "text": "x" * (3 * 10**7)}])), RIGHT),
    "no_kernel": (lambda s, r: answered(s) | {"metadata": {}}, RIGHT),
    "other_kernel": (lambda s, r: answered(s) | {"metadata": {"kernelspec": {"name": "julia-1.9", "display_name": "Julia", "language": "julia"}}}, RIGHT),
    "colab": (lambda s, r: colab(answered(s)), RIGHT),
    "vscode": (lambda s, r: vscode(answered(s)), RIGHT),
    "version_3": (lambda s, r: version_3(answered(s)), RIGHT),
    "windows": (lambda s, r: b"\xef\xbb\xbf" + raw(every(answered(s), lambda c: set_source(c, text(c).replace("\n", "\r\n")))), RIGHT),
    "utf16": (lambda s, r: json.dumps(answered(s), ensure_ascii=False).encode("utf-16"), RIGHT),
    "magics": (lambda s, r: put(every(answered(s), lambda c: set_source(c, "%%time\n" + text(c))), code("%matplotlib inline\nfiles = !ls\ntorch?"), code("%%bash\nls | wc")), RIGHT),
    "renamed_file": (lambda s, r: {"final version (2).ipynb": answered(s)}, RIGHT),
    "two_files": (lambda s, r: {NOTEBOOK: s, "01_forward_process-Copy1.ipynb": answered(s)}, RIGHT),
    "script": (lambda s, r: {"01_forward_process.py": script(answered(s))}, RIGHT),
    "other_name": (lambda s, r: renamed(s), RIGHT),
    "prints_a_lot": (lambda s, r: answered(s, jump=ANSWERS["jump"].replace("    alpha =", "    for _ in range(10): print('x' * 10**6)\n    alpha =")), RIGHT),
    "as_handed_out": (lambda s, r: s, dict.fromkeys(EXERCISES, "not attempted")),
    "wrong": (lambda s, r: answered(s, my_q_sample=ANSWERS["my_q_sample"].replace("(1 - alpha_bar).sqrt()", "(1 - alpha_bar)")), only("01.1", "wrong")),
    "syntax_error": (lambda s, r: answered(s, jump="def jump(alpha_bar, s, t)\n    return 1\n"), only("01.2", "syntax error")),
    "error": (lambda s, r: answered(s, beta_from="def beta_from(alpha_bar):\n    return alpha_bra\n"), only("01.3", "error")),
    "endless": (lambda s, r: answered(s, jump="def jump(alpha_bar, s, t):\n    while True:\n        pass\n"), only("01.2", "too slow")),
    "too_much_memory": (lambda s, r: answered(s, jump="def jump(alpha_bar, s, t):\n    return torch.ones(10**11), 1\n"), only("01.2", "too much memory")),
    "ends_itself": (lambda s, r: answered(s, jump="import os\n\n\ndef jump(alpha_bar, s, t):\n    os._exit(0)\n"), only("01.2", "ended")),
    "deleted": (lambda s, r: without(n := answered(s), [c for c in n["cells"] if c["cell_type"] == "code" and "beta_from" in text(c)]), only("01.3", "missing")),
    "cut_short": (lambda s, r: raw(answered(s))[: 2 * 10**4], dict.fromkeys(EXERCISES, "damaged file")),
    "empty": (lambda s, r: b"", dict.fromkeys(EXERCISES, "damaged file")),
    "web_page": (lambda s, r: b"<!DOCTYPE html><html><body>Sign in</body></html>", dict.fromkeys(EXERCISES, "damaged file")),
    "unmerged": (lambda s, r: raw(answered(s)).replace(b'"cells"', b'\n<<<<<<< HEAD\n"cells"', 1), dict.fromkeys(EXERCISES, "damaged file")),
    "nested": (lambda s, r: b"[" * 10**6, dict.fromkeys(EXERCISES, "damaged file")),
}  # fmt: skip


def renamed(stub):
    nb = answered(stub)
    (cell,) = cells_of(nb, "jump")
    cell["source"] = ANSWERS["jump"].replace("def jump(", "def mine(")
    for c in checks(nb):
        c["source"] = text(c).replace('check("01.2", jump)', 'check("01.2", mine)')
    return nb


def write(folder: Path, stub: dict, kinds=KINDS, copies=1) -> dict:
    """Write submissions; {student: the findings that are right for it}."""
    right = {}
    for copy in range(copies):
        for kind in kinds:
            make, findings = kinds[kind]
            student = f"{kind}-{copy}"
            made = make(json.loads(json.dumps(stub)), random.Random(f"{kind}{copy}"))
            files = (
                made
                if isinstance(made, dict) and "cells" not in made and "worksheets" not in made
                else {NOTEBOOK: made}
            )
            (folder / student).mkdir(parents=True)
            for name, content in files.items():
                (folder / student / name).write_bytes(
                    content if isinstance(content, bytes) else raw(content)
                )
            right[student] = findings
    return right


def differences(results, right) -> list[str]:
    """Where a student's findings are not the right ones, or a student is missing."""
    found = {r["student"]: {e: name for e, (name, _) in r["findings"].items()} for r in results}
    messages = {r["student"]: r["findings"] for r in results}
    return [f"{s}: {messages.get(s)}, not {right[s]}" for s in right if found.get(s) != right[s]]


def main(folder, copies, jobs):
    from ddpm_edu.classroom.grade import grade

    folder = Path(folder)
    stub = handed_out(folder / "handed out")
    right = write(folder / "submissions", stub, copies=int(copies))
    shutil.copy(folder / "handed out" / "handed_out.json", folder / "submissions")
    start = time.monotonic()
    results = grade(
        folder / "submissions", folder / "marks.csv", jobs=int(jobs), say=lambda *_, **__: None
    )
    wrong = differences(results, right)
    print("\n".join(wrong))
    print(
        json.dumps(
            {
                "submissions": len(right),
                "kinds": len(KINDS),
                "graded": len(results),
                "wrong": len(wrong),
                "minutes": round((time.monotonic() - start) / 60, 2),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
