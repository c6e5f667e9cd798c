"""The errors of this package and the checks that raise them: a message names the thing, the cause and the remedy."""

import math
import sys
import warnings

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


def pixels(name, x, beyond=0.0) -> None:
    """Raise DataError unless x (N, ...) holds floats in [-1, 1], or up to `beyond` outside it; warn
    if all lie in [0, 1], for what `ToTensor` gives would be learned, or judged, at half contrast."""
    if len(x) == 0:
        raise DataError(f"{name}: there are none, the shape is {tuple(x.shape)}; pass at least one")
    if not x.is_floating_point():
        raise DataError(
            f"{name} have type {x.dtype}: pass floats in [-1, 1]; from_uint8 converts bytes"
        )
    low, high = (bound.item() for bound in x.detach().aminmax())
    if not (low >= -1 - beyond and high <= 1 + beyond):  # NaN fails too
        wrong = ~(x.detach().flatten(1).abs() <= 1 + beyond).all(1)
        raise DataError(
            f"{name} run from {low:.4g} to {high:.4g}, first in {name}[{wrong.nonzero()[0, 0]}]: "
            "pass floats in [-1, 1]; from_uint8 converts bytes"
        )
    if low >= 0 and high > low:
        warn(
            f"{name} have no number below 0: are they in [0, 1] instead of [-1, 1]? "
            "Then pass 2 * x - 1"
        )


def warn(message) -> None:
    """A warning that points at the line outside of this package which led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("ddpm_edu"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level - 1)
