"""What check and use say and return, for any exercise."""

import pytest
import torch

from ddpm_edu.errors import OptionError
from ddpm_edu.exercises.check import find, use

ARGUMENTS = (torch.tensor([0.9, 0.5, 0.2]),)  # alpha_bar, for exercise 01.3


def beta_from(alpha_bar):
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    return 1 - alpha_bar / before


def test_use_returns_the_learners_function_where_it_is_right(capsys):
    assert use("01.3", beta_from) is beta_from
    assert capsys.readouterr().out == "01.3: from here on YOUR beta_from is used.\n"


def stub(alpha_bar): ...


def wrong(alpha_bar):
    return 1 - alpha_bar


def crashes(alpha_bar):
    raise RuntimeError("not finished")


def leaves(alpha_bar):
    raise SystemExit


@pytest.mark.parametrize("answer", [stub, wrong, crashes, leaves, None, ..., 3])
def test_use_returns_the_reference_until_then(answer, capsys):
    used = use("01.3", answer)
    assert used is find("01.3").reference
    torch.testing.assert_close(used(*ARGUMENTS), beta_from(*ARGUMENTS))
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "01.3: from here on the reference is used, until yours is right."


def test_use_refuses_an_exercise_of_many_right_answers_and_an_unknown_one():
    with pytest.raises(OptionError, match="04.4"):
        use("04.4", {"A": "fast"})
    with pytest.raises(OptionError, match="01.9"):
        use("01.9", beta_from)
