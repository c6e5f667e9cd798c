"""A question with buttons: the answer and its picture appear after the click. All notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

import traitlets as tr

from ...errors import OptionError
from .. import plot
from .base import Widget, static

ASKED: dict[str, Predict] = {}  # this kernel's questions, each the last time it was shown


class Predict(Widget):
    """What `predict` returns: the widget, and in a saved notebook the answer in a folded block."""

    _esm = static("common.js") + static("question.js")
    question = tr.Unicode().tag(sync=True)
    options = tr.List().tag(sync=True)
    items = tr.List().tag(sync=True)  # [""], or the names of the rows of buttons
    answer = tr.List().tag(sync=True)  # the right option's index, one an item
    why = tr.Unicode().tag(sync=True)
    picture = tr.Unicode().tag(sync=True)  # HTML
    chosen = tr.List().tag(sync=True)  # an index an item, -1: not clicked yet

    @property
    def right(self) -> int | None:
        """How many items were predicted right; None until all are."""
        if -1 in self.chosen:
            return None
        return sum(a == b for a, b in zip(self.chosen, self.answer))

    def page(self) -> str:
        rows = zip(self.items, self.answer)
        truth = "; ".join(
            f"{name}: {self.options[k]}" if name else self.options[k] for name, k in rows
        )
        text = html.escape
        return (
            f"<p><b>{text(self.question)}</b> {text(' / '.join(self.options))}?</p>"
            "<details><summary>Predict first, then click here: the answer</summary>"
            f"<p><b>{text(truth)}.</b> {text(self.why)}</p>{self.picture}</details>"
        )


def predict(
    question: str,
    options: Sequence[str],
    answer: str | Sequence[str],
    why: str,
    *,
    picture=None,
    items: Sequence[str] | None = None,
) -> Predict:
    """Ask before showing: buttons with `options`; the click reveals `answer`, `why` and `picture`.

    answer: the right option, as the cells above have computed it. picture: what `plot.figure`,
    `plot.image_grid` or `plot.table` returns. items: names of several rows of buttons, for a quiz;
    then `answer` holds one option an item. Plain text only, no formulas.

    >>> predict("Which is larger?", ["1/2", "1/3"], "1/2", "Halves are larger than thirds.").answer
    [0]

    OptionError: fewer than two options, an answer that is none of them, an empty text.
    """
    for name, text in ("question", question), ("why", why):
        plot.require_text(name, text)
    if len(set(options)) < 2:
        raise OptionError(f"options are {list(options)}: give at least two different ones")
    answers = [answer] if items is None else list(answer)
    if len(answers) != len(items or [""]) or not set(answers) <= set(options):
        raise OptionError(
            f"answer is {answer!r}: it must be one of {', '.join(options)}"
            + (f", one for each of the {len(items)} items" if items is not None else "")
        )
    widget = Predict(
        question=question,
        options=list(options),
        items=list(items or [""]),
        answer=[list(options).index(a) for a in answers],
        why=why,
        picture=picture._repr_mimebundle_()["text/html"] if picture is not None else "",
        chosen=[-1] * len(answers),
        caption="Click your prediction. The answer appears then.",
        alt=f"{question} {' / '.join(options)}?",
        drawn=1,
    )
    ASKED[question] = widget
    return widget


class Tally:
    """How many predictions of this kernel were right."""

    def __init__(self, widgets: Sequence[Predict]):
        made = [w for w in widgets if w.right is not None]
        self.right, self.made = sum(w.right for w in made), sum(len(w.items) for w in made)
        self.asked = sum(len(w.items) for w in widgets)

    def __repr__(self):
        if not self.made:
            return f"{self.asked} questions asked, no prediction made yet."
        waiting = self.asked - self.made
        rest = f" ({waiting} not answered yet)" if waiting else ""
        return f"{self.right} of {self.made} predictions right{rest}."


def predictions() -> Tally:
    """The tally of all `predict` questions that this kernel has shown so far."""
    return Tally(list(ASKED.values()))
