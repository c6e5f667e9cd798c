"""An oral examination: one question after the other, rated by oneself. Notebook 18."""

from __future__ import annotations

import html
import random
from collections.abc import Sequence

import traitlets as tr

from ...errors import OptionError, whole
from .. import plot
from .base import Widget, static

RATINGS = ("knew it", "half of it", "did not know")


class Oral(Widget):
    """What `oral` returns. `rated` and `again` know how it went, while the kernel lives."""

    _esm = static("common.js") + static("oral.js")
    questions = tr.List().tag(
        sync=True
    )  # [question, answer as HTML, notebooks], in order of asking
    numbers = tr.List().tag(sync=True)  # of the questions, from 1
    ratings = tr.List(list(RATINGS)).tag(sync=True)
    rated = tr.List().tag(sync=True)  # a rating's index for each question asked so far

    @property
    def again(self) -> list[str]:
        """Notebooks to read again, the most needed first: 2 for each question not known, 1 for half
        of it."""
        need = {}
        for (_, _, notebooks), rating in zip(self.questions, self.rated):
            for name in notebooks if rating else ():
                need[name] = need.get(name, 0) + rating
        return sorted(need, key=lambda name: (-need[name], name))

    def page(self) -> str:
        text, answer, _ = self.questions[0]
        return (
            f"<p><b>{self.numbers[0]}. {text}</b></p><details><summary>Answer aloud, then click "
            f"here</summary><p>{answer}</p></details><p><em>{html.escape(self.caption)}</em></p>"
        )


def oral(questions: Sequence[tuple[str, str, Sequence[str]]], n: int = 10, seed: int = 0) -> Oral:
    """Ask n of the questions (HTML text, HTML answer, notebooks) in an order that the seed draws.

    The answer shows on a click; then one rates oneself, and the next question comes. All by mouse
    or keyboard. Raises OptionError for no questions, an empty text, or another n.
    """
    whole("n", n, 1, len(questions), "of the questions")
    whole("seed", seed, 0, 2**40)
    for text, answer, _ in questions:
        plot.require_text("question", text)
        plot.require_text("answer", answer)
    if any(not notebooks for *_, notebooks in questions):
        raise OptionError("questions: each needs the notebooks that teach it")
    order = random.Random(seed).sample(range(len(questions)), n)
    return Oral(
        questions=[
            [text, answer, list(names)] for text, answer, names in map(questions.__getitem__, order)
        ],
        numbers=[k + 1 for k in order],
        caption=f"{n} of {len(questions)} questions, drawn with seed {seed}. Answer aloud, then "
        "look, then rate yourself. Tab and Enter do as well as the mouse.",
        alt="A question of the oral examination, and buttons",
        drawn=1,
    )
