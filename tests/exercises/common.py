"""The tests that the exercises of every notebook get. A file of tests brings only a student's answers:

RIGHT = {"02.1": answer}                         # every exercise, solved another way than the course solves it
WRONG = [("02.1", answer, "words of the hint")]  # two or more an exercise, each a mistake a student makes
TestAnswers = answers(RIGHT, WRONG)
"""

from collections import Counter
from importlib import import_module

import pytest

from ddpm_edu.exercises.check import check


def answers(right, wrong, stubs={}):
    """A class of tests. stubs: {"02.1": what the unfilled cell passes to check}, where that is not a function."""
    notebook = next(iter(right)).split(".")[0]
    exercises = import_module(f"ddpm_edu.exercises.nb{notebook}").EXERCISES
    own = [
        (name, mistake, hint)
        for name, exercise in exercises.items()
        for mistake, hint in exercise.mistakes
    ]

    class Answers:
        def test_every_exercise_has_a_right_and_two_wrong_answers(self):
            assert sorted(right) == sorted(exercises)
            counts = Counter(name for name, *_ in wrong)
            assert counts.keys() <= exercises.keys()
            assert min(counts[name] for name in exercises) >= 2, counts

        @pytest.mark.parametrize("name", exercises)
        def test_a_right_answer_written_another_way_passes(self, name):
            result = check(name, right[name])
            assert result.status == "right", result.message
            assert result.message == exercises[name].right

        @pytest.mark.parametrize("name", exercises)
        def test_an_unfilled_stub_is_not_attempted(self, name):
            for stub in (
                stubs.get(name, lambda *given: ...),
                stubs.get(name, lambda *given: None),
                ...,
                None,
            ):
                assert check(name, stub).status == "not attempted yet", stub

        @pytest.mark.parametrize(
            "name, answer, words", wrong, ids=[f"{name}-{words}" for name, _, words in wrong]
        )
        def test_a_wrong_answer_is_caught_and_named(self, name, answer, words):
            result = check(name, answer)
            assert result.status == "wrong", result
            assert words in result.message, result.message

        @pytest.mark.parametrize(
            "name, mistake, hint", own, ids=[f"{name}-{hint[:30]}" for name, _, hint in own]
        )
        def test_each_known_mistake_gets_its_own_hint(self, name, mistake, hint):
            """No hint is hidden by an earlier one."""
            assert check(name, mistake).message == hint

    return Answers
