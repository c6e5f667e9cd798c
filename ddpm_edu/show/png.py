"""Pictures as PNG with their settings in it, and grids of them. Notebook 00."""

import json
from pathlib import Path

from ..errors import OptionError
from ..paths import replacing


def grid(x, columns: int, zoom: int):
    """uint8 (N, C, H, W) -> numpy (rows * H * zoom, columns * W * zoom[, 3])."""
    import torch

    n, c, h, w = x.shape
    columns = min(columns, n)
    x = torch.cat([x, x.new_zeros(-n % columns, c, h, w)])
    x = x.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    x = x.flatten(0, 1).flatten(1, 2)  # (rows*H, columns*W, C)
    x = x.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    return (x[..., 0] if c == 1 else x).numpy()


def write_png(path: Path, picture, meta: dict) -> None:
    """A numpy picture as PNG, `meta` and the versions as JSON in its text chunk "ddpm_edu".

    All or nothing. Raises OptionError.
    """
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from .. import __version__

    info, versions = PngInfo(), {"version": __version__, "torch": torch.__version__}
    info.add_text("ddpm_edu", json.dumps(meta | versions))
    try:
        with replacing(path) as part, open(part, "wb") as file:
            Image.fromarray(picture).save(file, format="png", pnginfo=info)
    except (OSError, ValueError) as error:
        raise OptionError(f"--out {path}: could not be written ({error})") from error
