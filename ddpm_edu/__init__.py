"""ddpm_edu: diffusion models from first noise to Stable Diffusion XL, small enough to read.

Start with `schedule.py`, then `diffusion.py` and `samplers.py`; `networks/unet.py` is the network.
All names below, and the folders, are imported when first touched: `import ddpm_edu` is quick.
"""

from .lazy import lazily

__version__ = "0.1.0"
_FOLDERS = "networks systems files datasets metrics training gpu show exercises"
_NAMES = {
    "schedule": "Schedule",
    "diffusion": "Cond Step class_cond loss sample ddpm guided last noise generators "
    "spaced_timesteps karras_timesteps",
    "samplers": "SAMPLERS",
    "errors": "DdpmEduError ScheduleError ShapeError OptionError DataError CheckpointError "
    "TrainingError SamplingError ResourceError",
    "files.load": "load save",
}
__all__ = " ".join(_NAMES.values()).split()
__getattr__, __dir__ = lazily(__name__, _NAMES | dict.fromkeys(_FOLDERS.split(), ""))
