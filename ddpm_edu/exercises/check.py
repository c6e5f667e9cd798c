"""Checks: right, not attempted yet, or what went wrong, in one sentence. All notebooks.

    check("01.1", my_function)
    my_function = use("01.1", my_function)  # yours from here on if it is right, else the reference

An exercise knows the right answer and the usual wrong ones, all as code: a learner's answer is run
on the same inputs and compared. So the hints are executed too, and a hint can never describe a
mistake that is none.
"""

import copy
import html
import importlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import OptionError


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    reference: the right answer: a function, compared on `cases` (tuples of arguments), or a plain
    value if cases is None. mistakes: (wrong answer, hint) pairs, tried in order; a wrong answer is
    of the same kind as `reference`. test: for free-form answers instead: takes the answer, returns
    "" if right or a hint if wrong. tolerance: largest difference allowed, relative to the size of
    the right numbers.  right: what to say when right.
    """

    reference: Any = None
    cases: Sequence[tuple] | None = None
    mistakes: Sequence[tuple[Any, str]] = ()
    test: Callable[[Any], str] | None = None
    tolerance: float = 1e-4
    right: str = ""


@dataclass(frozen=True)
class Result:
    """`status` is "right", "wrong" or "not attempted yet"; `message` says what happened."""

    status: str
    message: str

    def __bool__(self):
        return self.status == "right"

    def __repr__(self):
        return f"{MARKS[self.status][0]} {self.message}"

    def _repr_html_(self):
        mark, colour = MARKS[self.status]
        return (
            f'<div role="status" style="border-left:5px solid {colour};padding:6px '
            '12px;margin:4px 0">'
            f"<b>{mark}</b> {html.escape(self.message)}</div>"
        )


MARKS = {
    "right": ("✓ Right.", "#009E73"),
    "wrong": ("✗ Not yet.", "#D55E00"),
    "not attempted yet": ("… Not attempted yet.", "#777777"),
}


def check(name: str, answer) -> Result:
    """Check `answer` to exercise `name` ("01.1" is the first of notebook 01). Never raises for a
    wrong answer."""
    return checked(find(name), answer)


def use(name: str, answer):
    """`answer` if it is right, else the reference of exercise `name`; prints which in one line.

    So the cells that follow draw with the learner's own function. The reference may name its
    arguments otherwise: pass them by position. OptionError where the exercise has no reference.
    """
    exercise = find(name)
    if exercise.reference is None:
        raise OptionError(f"exercise {name} has many right answers and no reference to use instead")
    right = bool(checked(exercise, answer))
    if right:
        print(f"{name}: from here on YOUR {getattr(answer, '__name__', 'answer')} is used.")
    else:
        print(f"{name}: from here on the reference is used, until yours is right.")
    return answer if right else exercise.reference


def find(name: str) -> Exercise:
    """The exercise of that name. Raises OptionError if there is none."""
    notebook = str(name).split(".")[0]
    try:
        exercises = importlib.import_module(f"{__package__}.nb{notebook}").EXERCISES
    except ModuleNotFoundError:
        exercises = {}
    if name not in exercises:
        raise OptionError(
            f"there is no exercise {name!r}; notebook {notebook} has: "
            f"{', '.join(exercises) or 'none'}"
        )
    return exercises[name]


def checked(exercise: Exercise, answer) -> Result:
    """Compare an answer with an exercise's right and wrong answers."""
    if blank(answer):
        return Result("not attempted yet", "Fill in the cell above, then run this one again.")
    if exercise.test is not None:
        try:
            hint = exercise.test(answer)
        except _Blank:
            return Result("not attempted yet", "Your function returns nothing yet.")
        except (Exception, SystemExit) as error:  # a learner's code may raise anything
            hint = where(error)
        return Result("wrong", hint) if hint else Result("right", exercise.right)
    if exercise.cases is not None and not callable(answer):
        return Result(
            "wrong",
            f"Pass the function itself, without calling it; this is a {type(answer).__name__}.",
        )
    cases = exercise.cases if exercise.cases is not None else [()]
    wrong_hints = [hint for _, hint in exercise.mistakes]
    alive = [True] * len(wrong_hints)  # mistakes that explain every case so far
    problem = ""
    for case in cases:
        given = copy.deepcopy(case)
        try:
            got = answer(*given) if exercise.cases is not None else answer
        except (Exception, SystemExit) as error:
            return Result("wrong", where(error))
        if blank(got):
            return Result("not attempted yet", "Your function returns nothing yet.")
        if not _same(given, case):
            return Result(
                "wrong",
                "Your function changes its inputs. Build a new tensor instead of writing into "
                "one you were given.",
            )
        want = _run(exercise.reference, case)
        problem = problem or difference(got, want, exercise.tolerance)
        for i, (wrong, _) in enumerate(exercise.mistakes):
            alive[i] = alive[i] and not difference(got, _run(wrong, case), exercise.tolerance)
    if not problem:
        return Result("right", exercise.right)
    hints = [hint for hint, possible in zip(wrong_hints, alive) if possible]
    return Result("wrong", hints[0] if hints else problem)


class _Blank(Exception):
    pass


def call(answer, *args):
    """For `test` functions: call the learner's function; returning nothing counts as not
    attempted."""
    out = answer(*copy.deepcopy(args))
    if blank(out):
        raise _Blank
    return out


def blank(answer) -> bool:
    """None and ... are what an unfilled stub gives."""
    return answer is None or answer is ...


def where(error: BaseException) -> str:
    """Error, message and the learner's line."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    place = (
        f" (line {lines[0].lineno} of your cell: {lines[0].line})"
        if lines and lines[0].line
        else ""
    )
    return f"Your code stopped with {type(error).__name__}: {error}{place}"


def difference(got, want, tolerance: float) -> str:
    """ "" if equal within tolerance, else one sentence. Numbers, strings, tensors, arrays, and
    tuples or dicts of them."""
    if isinstance(want, dict):
        if not isinstance(got, dict) or got.keys() != want.keys():
            return f"Expected a dict with the keys {list(want)}."
        return next(
            (f"{k}: {d}" for k in want if (d := difference(got[k], want[k], tolerance))), ""
        )
    if isinstance(want, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(got) != len(want):
            return (
                f"Expected {len(want)} values, in order; got "
                f"{len(got) if isinstance(got, (tuple, list)) else type(got).__name__}."
            )
        return next(
            (
                f"value {i + 1}: {d}"
                for i, (g, w) in enumerate(zip(got, want))
                if (d := difference(g, w, tolerance))
            ),
            "",
        )
    if isinstance(want, str) or isinstance(got, str):
        return "" if got == want else f"Got {got!r}, which is not it."
    try:
        g, w = (
            np.asarray(z.detach().cpu() if isinstance(z, torch.Tensor) else z, dtype=np.float64)
            for z in (got, want)
        )
    except (TypeError, ValueError):
        return f"Expected numbers, got a {type(got).__name__}."
    if g.shape != w.shape:
        return f"The shape is {g.shape}, expected {w.shape}."
    if np.isnan(g).any() and not np.isnan(w).any():
        return (
            "The result holds NaN (not a number): look for a division by zero or the root of "
            "a negative number."
        )
    off = np.abs(g - w)
    if w.size and not (off.max() <= tolerance * max(1.0, np.abs(w).max())):
        i = np.unravel_index(off.argmax(), off.shape)
        return f"The numbers differ: where {w[i]:.4g} was expected, yours is {g[i]:.4g}."
    return ""


def _run(thing, case):
    return thing(*copy.deepcopy(case)) if callable(thing) else thing


def _same(a, b) -> bool:
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else True for x, y in zip(a, b))
