"""Fresh cases: every exercise has them, the reference passes them, each known mistake is caught by them alone."""

import importlib
from dataclasses import replace

import pytest
import torch

from ddpm_edu.exercises.check import checked, find
from ddpm_edu.exercises.fresh import FRESH, FRESH_CASES, cases

NAMES = [
    name
    for n in range(30)
    if importlib.util.find_spec(f"ddpm_edu.exercises.nb{n:02}")
    for name in importlib.import_module(f"ddpm_edu.exercises.nb{n:02}").EXERCISES
]
FIXED = {"04.4"}  # its answer is one fixed value


def test_every_exercise_has_fresh_cases():
    assert set(NAMES) - FIXED == set(FRESH) and cases("04.4", 1) == []


def text(case):
    return [
        x.tolist() if isinstance(x, torch.Tensor) else getattr(x, "__qualname__", x) for x in case
    ]


@pytest.mark.parametrize("name", sorted(FRESH))
def test_reference_passes_and_mistakes_are_caught(name):
    exercise = find(name)
    caught = [0] * len(exercise.mistakes)
    for seed in range(3):
        fresh = cases(name, seed)[-FRESH_CASES:]
        assert text(fresh[0]) == text(cases(name, seed)[-FRESH_CASES])  # the seed decides
        result = checked(replace(exercise, cases=fresh), exercise.reference)
        assert result, (seed, result)
        for i, (wrong, _) in enumerate(exercise.mistakes):
            caught[i] += not checked(replace(exercise, cases=fresh), wrong)
    assert min(caught, default=5) >= 1, [i for i, n in enumerate(caught) if n == 0]
    assert text(cases(name, 1)[-1]) != text(cases(name, 2)[-1])
