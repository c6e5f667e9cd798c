"""The list of what was handed out: which notebooks, and what is checked in them. All notebooks.

`ddpm-edu student` writes it as handed_out.json, `ddpm-edu grade` reads it: so an answer is found by
its name where the cell that checks it was deleted, and nobody loses a column.
"""

import ast
import hashlib
import json
from pathlib import Path

from .. import __version__
from ..errors import OptionError
from .notebook import Script, Unreadable
from .notebook import read as notebook

FILE = "handed_out.json"


def made(files: list[Path]) -> dict:
    """The list for these notebooks; calls in cells tagged `solution` are not in it."""
    notebooks = {}
    for file in files:
        try:
            script = notebook(file)
        except Unreadable as error:
            raise OptionError(f"{file}: not a notebook that can be read ({error})") from None
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        notebooks[file.name] = {"sha256": digest, "exercises": _exercises(script)}
    return {"ddpm_edu": __version__, "notebooks": notebooks}


def _exercises(script: Script) -> dict[str, str]:
    calls = [call for statement in script.statements for call in statement.calls]
    return {name: ast.unparse(answer) for kind, name, answer in calls if kind == "check"}


def read(path: Path) -> dict:
    """Raises OptionError for a file that is no such list."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        expressions(found)
        return found
    except OSError as error:
        cause = error.strerror
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"
    raise OptionError(f"{path} is no list of what was handed out ({cause}): `ddpm-edu student`")


def expressions(found: dict) -> dict[str, str]:
    """{exercise: the expression that is checked}, of all notebooks."""
    from ..exercises.check import find

    both = {}
    for entry in found["notebooks"].values():
        both |= {str(name): str(answer) for name, answer in entry["exercises"].items()}
    for name, answer in both.items():
        find(name)
        ast.parse(answer, mode="eval")
    return both
