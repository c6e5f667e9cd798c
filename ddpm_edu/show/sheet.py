"""What a training run shows as it goes: a sheet of samples, and the loss. Notebook 17."""

import json
from pathlib import Path

import torch
from torch.nn import functional as F

from ..datasets.images import to_uint8
from ..errors import OptionError
from ..paths import replacing
from ..training.whole_system import thin
from .png import grid, write_png

WIDE = 4  # pictures a row


class Sheet:
    """sheet(seen), see `training.own.Seen`, writes OUT-samples.png and OUT-loss.png anew.

    Their numbers are in their metadata, under "ddpm_edu", as JSON: step, steps, captions; losses.
    """

    def __init__(self, out: Path):
        stem = Path(out).name.partition(".safetensors")[0]
        self.samples = Path(out).with_name(f"{stem}-samples.png")
        self.curve = Path(out).with_name(f"{stem}-loss.png")

    def __call__(self, seen) -> None:
        told = {"step": seen.step, "steps": seen.steps}
        zoom = max(1, 128 // max(seen.pictures.shape[2:]))
        pictures = F.pad(to_uint8(seen.pictures), (1, 1, 1, 1), value=255)
        write_png(self.samples, grid(pictures, WIDE, zoom), {**told, "captions": seen.captions})
        self._curve(seen, told)

    def _curve(self, seen, told) -> None:
        from matplotlib.figure import Figure

        losses = thin(seen.losses)
        first, width = seen.step - len(seen.losses), len(seen.losses) / len(losses)
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot([first + (k + 0.5) * width for k in range(len(losses))], losses)
        axes.set(xlabel="update", ylabel="loss", xlim=(0, seen.steps), yscale="log")
        axes.grid(alpha=0.3)
        text = json.dumps({**told, "first": first, "losses": losses, "torch": torch.__version__})
        try:
            with replacing(self.curve) as part:
                figure.savefig(part, format="png", dpi=120, metadata={"ddpm_edu": text})
        except OSError as error:
            raise OptionError(f"{self.curve} could not be written ({error})") from error
