"""The errors of this package: each message names the thing, the cause and the remedy."""


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
