"""Any picture as a tensor, and any mask: files, PIL pictures, arrays, tensors. Notebook 10.

x, alpha = picture_of("holiday.jpg")     (1, 3, H, W) in [-1, 1]; (1, 1, H, W) in [0, 1] or None
mask = mask_of("mask.png", (H, W))       (1, 1, H, W) in [0, 1]: white is painted anew
"""

import math
import os
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError, OptionError, ShapeError, pixels
from .arguments import MAX_SIDE, dense

FORMATS = "JPEG PNG WEBP GIF BMP TIFF PPM TGA ICO AVIF HEIF JPEG2000".split()  # no PostScript
MOST_PIXELS = 150_000_000  # of one picture; more is a bomb, or needs gigabytes


def picture_of(picture, name: str = "picture") -> tuple[Tensor, Tensor | None]:
    """(x (B, 3, H, W) float32 in [-1, 1], alpha (B, 1, H, W) in [0, 1], None where all is opaque).

    picture: a path or a PIL picture, of any mode, turned upright, of animated ones the first frame;
    an array (H, W) or (H, W, C), a tensor (C, H, W) or (B, C, H, W) with 1 (grey), 3 or 4 channels:
    bytes, 16-bit numbers, or floats in [-1, 1]; the fourth, alpha, in [0, 1]. What is transparent
    lies on white. B is 1 but for tensors. DataError for what cannot be read, has NaN or is out of
    range, and for sides above MAX_SIDE; ShapeError for other shapes.
    """
    if isinstance(picture, (str, os.PathLike)) or hasattr(picture, "getbands"):
        colours, alpha = _read(picture, name)
        top = 255  # bytes are within range
    else:
        x, top = _channels(picture, name, (1, 3, 4))
        _small_enough(name, *x.shape[2:])
        colours, alpha = x[:, :3], x[:, 3:] if x.shape[1] == 4 else None
        if top:
            colours, alpha = 2 * colours / top - 1, None if alpha is None else alpha / top
    if not top:
        pixels(name, colours, beyond=0.1)
    x = colours.float().expand(-1, 3, -1, -1)
    if alpha is not None:
        alpha = _shares(f"alpha of {name}", alpha)
        x = alpha * x + (1 - alpha)
        alpha = None if bool((alpha == 1).all()) else alpha
    return x, alpha


def mask_of(mask, size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) float32 in [0, 1]: 1, white, is painted anew, 0 stays, between is between.

    mask: as for `picture_of`, but that floats lie in [0, 1]; booleans; bytes may be 0 and 1, too.
    size: the picture's, (H, W): ShapeError for another one. What is transparent stays.
    """
    if isinstance(mask, (str, os.PathLike)) or hasattr(mask, "getbands"):
        colours, alpha = _read(mask, "mask")
        x = (colours.mean(1, keepdim=True) + 1) / 2
        x = x if alpha is None else x * alpha
    else:
        x, top = _channels(mask, "mask", (1, 3, 4))
        x = x[:, :3].mean(1, keepdim=True)
        x = x / top if top and x.numel() and x.max() > 1 else x
    if tuple(x.shape[2:]) != tuple(size):
        (h, w), (height, width) = x.shape[2:], size
        raise ShapeError(
            f"mask is {w} x {h} pixels and the picture {width} x {height}: make them equal"
        )
    return _shares("mask", x)


def picture_and_mask(picture, mask) -> tuple[Tensor, Tensor]:
    """x (B, 3, H, W) and a mask (B, 1, H, W) of 0 and 1; OptionError if that is 0 everywhere."""
    x, _ = picture_of(picture)
    hard = (mask_of(mask, x.shape[2:]) >= 0.5).float()
    if not hard.any():
        raise OptionError("mask is nowhere 1 (white), so nothing is painted anew: mark a place")
    return x, hard


def padded(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W), its last row and column repeated until H and W are multiples of factor."""
    h, w = x.shape[2:]
    return F.pad(x, (0, -w % factor, 0, -h % factor), mode="replicate")


def grown(mask: Tensor, factor: int) -> Tensor:
    """1 in every square of factor x factor pixels where the mask is at least 1/2 somewhere."""
    h, w = mask.shape[2:]
    squares = F.max_pool2d((padded(mask, factor) >= 0.5).float(), factor)
    return F.interpolate(squares, scale_factor=factor)[:, :, :h, :w]


# ---------------------------------------------------------------- files and PIL pictures


def opened(file, small: tuple[int, int] | None = None):
    """A file as a PIL picture, upright, RGB, L or, where some is transparent, RGBA.

    small: a size above which a JPEG need not be decoded. ValueError for too many pixels; what a
    decoder raises at a damaged picture can be anything.
    """
    from PIL import Image  # here, so that importing this module stays quick

    Image.init()
    with warnings.catch_warnings():  # its limit is lower than ours
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])
    with image:
        if math.prod(image.size) > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many, make it smaller")
        if small:
            image.draft(None, small)
        return plain(image)


def upright_size(file) -> tuple[int, int]:
    """(height, width) of a file's picture, turned upright; only its header is read."""
    from PIL import Image

    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            try:
                turned = image.getexif().get(0x0112, 1) > 4  # a quarter turn
            except Exception:  # damaged EXIF
                turned = False
            return image.size if turned else image.size[::-1]


def plain(image):
    """A PIL picture of any mode, itself turned upright, as RGB, L or, with transparency, RGBA."""
    from PIL import Image, ImageOps

    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a picture with damaged EXIF is still a picture
        pass
    if image.mode[0] in "IF":  # grey of 16 or 32 bits, which Pillow would clip
        return Image.fromarray(_eight_bits(np.asarray(image).astype(np.float32), image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _eight_bits(x, image):
    deep = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    tops = [65535] if deep else [255, 65535] if image.mode == "I" else [1, 255, 65535]
    top = next((top for top in tops if 0 <= x.min() and x.max() <= top), None)
    if top is None:
        raise ValueError(f"grey from {x.min():g} to {x.max():g}: save it with 8 or 16 bits")
    return (x * (255 / top)).round().astype(np.uint8)


def on_white(image):
    """The same, as RGB or L: what is transparent lies on white."""
    from PIL import Image

    if image.mode != "RGBA":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _read(picture, name) -> tuple[Tensor, Tensor | None]:
    """Colours in [-1, 1] and alpha in [0, 1] of a path or a PIL picture."""
    try:
        if hasattr(picture, "getbands"):
            _small_enough(name, picture.height, picture.width)
            image = plain(picture.copy())
        else:
            path = os.path.expanduser(picture)
            if os.path.exists(path) and not os.path.isfile(path):
                raise ValueError("it is a folder or a pipe")  # one might wait for a pipe for ever
            image = opened(path)
            _small_enough(name, image.height, image.width)
    except DataError:
        raise
    except Exception as e:  # a damaged picture can raise anything in its decoder
        cause = str(e) or type(e).__name__
        raise DataError(f"{name} = {picture!s:.200} cannot be read ({cause:.200}): pass a picture, "
                        "such as a .png or .jpg") from None  # fmt: skip
    array = np.atleast_3d(np.array(image))
    x = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
    return 2 * x[:, :3] - 1, x[:, 3:] if x.shape[1] == 4 else None


def _small_enough(name, height, width) -> None:
    if not height * width:
        raise DataError(f"{name} is {width} x {height} pixels: there are none, pass at least one")
    if max(height, width) > MAX_SIDE:
        raise DataError(
            f"{name} is {width} x {height} pixels: a side has at most {MAX_SIDE}, make it smaller"
        )


# ---------------------------------------------------------------- arrays and tensors


def _channels(x, name, known) -> tuple[Tensor, float]:
    """(B, C, H, W) floats with C of `known`, and the largest number of whole ones, else 0."""
    is_array = isinstance(x, np.ndarray)
    if not is_array and not isinstance(x, Tensor):
        raise DataError(
            f"{name} is a {type(x).__name__}: pass a path, a PIL picture, an array or a tensor"
        )
    if not is_array:
        dense(name, x, tuple(x.shape), "pass")
    else:  # flipped ones, and those of other byte order, are no tensors as they are
        x = x.astype(x.dtype.newbyteorder("="), order="C")
    try:
        x = torch.as_tensor(x)
    except TypeError as e:
        raise DataError(f"{name} is an array of {x.dtype} ({e!s:.60}): pass numbers") from None
    if is_array and x.ndim == 3 and x.shape[2] in known:
        x = x.permute(2, 0, 1)
    shape = tuple(x.shape)
    if x.ndim == 2:
        x = x[None]
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] not in known or not x.numel():
        wanted = "(H, W), (H, W, C) of an array" if is_array else "(C, H, W) or (B, C, H, W)"
        raise ShapeError(f"{name} has shape {shape}: pass {wanted}, C one of {known}")
    return x.detach().cpu().float(), _top(x, name)


def _top(x, name) -> float:
    if x.is_floating_point():
        return 0
    tops = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535}
    if x.dtype not in tops:
        raise DataError(f"{name} has numbers of type {x.dtype}: pass bytes, or floats")
    return tops[x.dtype]


def _shares(name, x) -> Tensor:
    low, high = x.aminmax()
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise DataError(f"{name} runs from {low:.4g} to {high:.4g}: pass numbers in [0, 1]")
    return x.float()
