"""ddpm_edu: diffusion models from first noise to Stable Diffusion XL, small enough to read.

Start with `schedule.py`, then `diffusion.py` and `samplers.py`; `networks/unet.py` is the network.
The names below are loaded with the package; the folders, `load` and `save` when first touched, so
that `import ddpm_edu` stays quick.
"""

from .diffusion import (
    Cond,
    Step,
    class_cond,
    ddpm,
    generators,
    guided,
    karras_timesteps,
    last,
    loss,
    noise,
    sample,
    spaced_timesteps,
)
from .errors import (
    CheckpointError,
    DataError,
    DdpmEduError,
    OptionError,
    ResourceError,
    SamplingError,
    ScheduleError,
    ShapeError,
    TrainingError,
)
from .lazy import lazily
from .samplers import SAMPLERS
from .schedule import Schedule

__version__ = "0.1.0"
_FOLDERS = "networks systems files datasets metrics training gpu show exercises"
__getattr__, _later = lazily(
    __name__, {"files.load": "load save"} | dict.fromkeys(_FOLDERS.split(), "")
)
__all__ = [
    "Schedule",
    "Cond",
    "Step",
    "class_cond",
    "loss",
    "sample",
    "ddpm",
    "guided",
    "last",
    "noise",
    "generators",
    "spaced_timesteps",
    "karras_timesteps",
    "SAMPLERS",
    "DdpmEduError",
    "ScheduleError",
    "ShapeError",
    "OptionError",
    "DataError",
    "CheckpointError",
    "TrainingError",
    "SamplingError",
    "ResourceError",
]


def __dir__():
    return sorted({*globals(), *_later()})
