"""The errors of this package and the checks that raise them: a message names the thing, the cause and the remedy."""

import math

PREDICTIONS = ("eps", "x_0", "v")


class DdpmEduError(Exception):
    """Base of every error raised on purpose by ddpm_edu."""


class ScheduleError(DdpmEduError, ValueError):
    """A noise schedule that cannot be one, or a timestep outside it."""


class ShapeError(DdpmEduError, ValueError):
    """Tensors whose shapes do not fit together."""


class OptionError(DdpmEduError, ValueError):
    """An option outside its range: steps, eta, guidance, a size, a name."""


class DataError(DdpmEduError):
    """A dataset that is missing, damaged, empty or out of range."""


class CheckpointError(DdpmEduError):
    """A file of weights that is missing, damaged, unsafe or for another model."""


class TrainingError(DdpmEduError):
    """Training that cannot go on, for example a loss that is not a number."""


class SamplingError(DdpmEduError):
    """A run that brings no picture: NaN in a step, or a picture of one colour."""


class ResourceError(DdpmEduError):
    """The machine has too little for what was asked: memory, mostly."""


def in_range(name, value, low, high, hint) -> None:
    """Raise OptionError unless value is a finite number in [low, high]."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high and value not in (math.inf, -math.inf)):
        raise OptionError(
            f"{name} = {value!r:.40} is out of range: pass a number from {low} to {high} ({hint})"
        )


def whole(name, value, low, high, hint) -> None:
    """Raise OptionError unless value is a whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(
            f"{name} = {value!r} is not a whole number: pass {low} to {high} ({hint})"
        )
    in_range(name, value, low, high, hint)


def known_prediction(predict) -> None:
    """Raise OptionError unless `predict` names one of PREDICTIONS."""
    if predict not in PREDICTIONS:
        raise OptionError(
            f"predict = {predict!r} is not known: choose one of {', '.join(PREDICTIONS)}"
        )
