"""The data of the course: MNIST (ships with it), CIFAR-10 (fetched on request) and three 2-D toys.

Pictures leave this module as float32 in [-1, 1] of shape (B, C, H, W), labels as a one-hot `Cond.vector`.
Importing this module reads and downloads nothing.
"""

import gzip
import hashlib
import http.client
import io
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..diffusion import Cond, class_cond
from ..errors import DataError, OptionError, ShapeError
from ..paths import data_folder

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
MNIST_MD5 = {  # of the official idx files, after decompression
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


# ---------------------------------------------------------------- pictures


def to_uint8(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] as bytes 0..255, rounded; what a sampler left outside [-1, 1] is clipped."""
    if not x.is_floating_point():
        raise DataError(
            f"to_uint8 got {x.dtype}: it takes floats in [-1, 1]; bytes need no conversion"
        )
    if not torch.isfinite(x).all():
        raise DataError(
            "the pictures hold NaN or infinity: look for where the model or the sampler diverged"
        )
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Bytes 0..255 as float32 in [-1, 1]."""
    if images.dtype != torch.uint8:
        raise DataError(
            f"from_uint8 got {images.dtype}: it takes uint8; floats in [-1, 1] need no conversion"
        )
    return images.float() / 127.5 - 1


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Pictures with class labels, all in memory.

    images: (N, C, H, W), uint8 or float in [-1, 1]. labels: (N,) whole numbers in 0..classes-1.
    `dataset[index]`, index a tensor, list or slice, gives (x_0 float32 in [-1, 1], Cond(vector=one-hot)).
    Raises ShapeError for shapes that do not fit, DataError for no pictures, wrong values or wrong labels.
    """

    images: Tensor
    labels: Tensor
    classes: int = 10

    def __post_init__(self):
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), self.classes)
        object.__setattr__(self, "labels", self.labels.long())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        if not isinstance(index, slice):
            index = torch.as_tensor(index).reshape(-1)  # one number gives a batch of one
        images = self.images[index]
        x_0 = from_uint8(images) if images.dtype == torch.uint8 else images.float()
        return x_0, class_cond(self.labels[index], self.classes)

    def subset(self, which) -> "ImageDataset":
        """The first `which` pictures if it is a number, else the pictures at those indices."""
        if isinstance(which, int):
            if not 1 <= which <= len(self):
                raise OptionError(
                    f"a subset of {which} pictures was asked for; choose 1 to {len(self)}"
                )
            which = slice(which)
        return ImageDataset(self.images[which], self.labels[which], self.classes)

    def split(self, n: int) -> tuple["ImageDataset", "ImageDataset"]:
        """The first n pictures and the others."""
        if not 1 <= n < len(self):
            raise OptionError(
                f"a split after {n} pictures was asked for; choose 1 to {len(self) - 1}"
            )
        return self.subset(n), self.subset(slice(n, None))

    def per_class(self, n: int) -> "ImageDataset":
        """The first n pictures of each class, class by class."""
        found = [(self.labels == label).nonzero()[:n, 0] for label in range(self.classes)]
        if n < 1 or min(map(len, found)) < n:
            raise OptionError(
                f"{n} pictures a class were asked for; choose 1 to {min(map(len, found))}"
            )
        return self.subset(torch.cat(found))


def _check_images(images: Tensor):
    if images.ndim != 4:
        raise ShapeError(
            f"images have shape {tuple(images.shape)}: they must be (N, C, H, W); add the missing axis with [:, None]"
        )
    if images.numel() == 0:
        raise DataError(f"the dataset is empty: images have shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise DataError(f"images have type {images.dtype}: pass uint8, or floats in [-1, 1]")
    low, high = images.aminmax()
    if not (low >= -1 and high <= 1):  # NaN fails too
        raise DataError(
            f"images run from {low:.4g} to {high:.4g}: floats must lie in [-1, 1]; bytes must be uint8"
        )


def _check_labels(labels: Tensor, n: int, classes: int):
    if labels.shape != (n,):
        raise ShapeError(
            f"labels have shape {tuple(labels.shape)}: {n} pictures need labels of shape ({n},)"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"labels have type {labels.dtype}: they must be whole numbers")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}: with classes = {classes} they must lie in 0..{classes - 1}"
        )


# ---------------------------------------------------------------- MNIST


def mnist(split: str = "train") -> ImageDataset:
    """60,000 ("train") or 10,000 ("test") handwritten digits, (N, 1, 28, 28), from the files that ship with the course.

    Every read verifies the official checksums. Raises DataError if a file is missing, cut short or altered.
    """
    part = {"train": "train", "test": "t10k"}[_checked(split)]
    images = _read_idx(f"{part}-images-idx3-ubyte", ndim=3)
    return ImageDataset(images[:, None], _read_idx(f"{part}-labels-idx1-ubyte", ndim=1))


def _checked(split: str) -> str:
    if split not in ("train", "test"):
        raise OptionError(f"split = {split!r} is not known: choose 'train' or 'test'")
    return split


def _read_idx(name: str, ndim: int) -> Tensor:
    """An idx file: bytes 0, 0, 8 (= unsigned byte), ndim; each size as a big-endian int32; then the numbers."""
    path = data_folder() / "mnist" / f"{name}.gz"

    def broken(cause):
        return DataError(
            f"MNIST file {path} {cause}: restore it with `git checkout -- data/mnist`, "
            "or point DDPM_EDU_DATA to a folder that holds mnist/ (data/README.md says where to get it)"
        )

    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise broken("is missing") from None
    except EOFError:
        raise broken("is cut short") from None
    except (OSError, zlib.error) as error:
        raise broken(f"cannot be read ({error})") from None
    header = 4 + 4 * ndim
    if raw[:4] != bytes([0, 0, 8, ndim]):
        raise broken(
            f"is not an idx file of {ndim} axes (it starts with {raw[:4].hex() or 'nothing'})"
        )
    shape = np.frombuffer(raw[4:header].ljust(4 * ndim, b"\0"), ">i4").tolist()
    if len(raw) != header + math.prod(shape):
        raise broken(
            f"is cut short (its header promises {math.prod(shape)} numbers, it holds {max(0, len(raw) - header)})"
        )
    if (md5 := hashlib.md5(raw, usedforsecurity=False).hexdigest()) != MNIST_MD5[name]:
        raise broken(f"has the wrong content (md5 {md5}, official {MNIST_MD5[name]})")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).reshape(shape)


# ---------------------------------------------------------------- CIFAR-10


def cifar10(
    split: str = "train", root: str | Path | None = None, download: bool = False
) -> ImageDataset:
    """50,000 ("train") or 10,000 ("test") small photographs, (N, 3, 32, 32), of CIFAR10_CLASSES.

    root: the folder that holds torchvision's `cifar-10-batches-py/`, or a file `cifar10_jpeg.npz` of JPEG bytes;
    without it $DDPM_EDU_CIFAR10, without that `cifar10/` in the data folder. download=True fetches 170 MB into it.
    Raises DataError if the data are not there, altered, or cannot be fetched.
    """
    _checked(split)
    folder = Path(
        root or os.environ.get("DDPM_EDU_CIFAR10") or data_folder() / "cifar10"
    ).expanduser()
    if (packed := folder / "cifar10_jpeg.npz").is_file():
        return _cifar10_jpeg(packed, split)
    return _cifar10_torchvision(folder, split, download)


def _cifar10_torchvision(folder: Path, split: str, download: bool) -> ImageDataset:
    from torchvision.datasets import CIFAR10  # here, so that importing this module stays quick

    try:
        found = CIFAR10(
            folder, train=split == "train", download=download
        )  # compares every md5 before it unpickles
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        cause = (
            f"could not be downloaded to {folder} ({error})"
            if download
            else f"is not in {folder}, or is damaged there"
        )
        raise DataError(
            f"CIFAR-10 {cause}. With a network type `ddpm_edu.datasets.images.cifar10(download=True)` once (170 MB); "
            "without one set the variable DDPM_EDU_CIFAR10 to a folder that holds cifar-10-batches-py/"
        ) from None
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return ImageDataset(images, torch.tensor(found.targets))


def _cifar10_jpeg(path: Path, split: str) -> ImageDataset:
    """Picture i is the bytes jpeg[offset[i]:offset[i+1]]; JPEG loses a little, labels are the same."""
    from PIL import Image

    try:
        with np.load(path, allow_pickle=False) as file:
            jpeg, offset, labels = (file[f"{split}_{key}"] for key in ("jpeg", "offset", "label"))
        files = (io.BytesIO(jpeg[a:b]) for a, b in zip(offset, offset[1:]))
        images = np.stack(
            [np.asarray(Image.open(file, formats=["JPEG"]).convert("RGB")) for file in files]
        )
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is damaged or of another kind ({type(error).__name__}: {error}): it must hold the arrays "
            f"{split}_jpeg, {split}_offset and {split}_label; make it anew or remove it"
        ) from None
    return ImageDataset(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()
    )


# ---------------------------------------------------------------- 2-D toys


def swiss_roll(n: int = 1000, seed: int = 0, noise: float = 0.05) -> Tensor:
    """(n, 2) points r (cos r, sin r), r uniform in [1.5 pi, 4.5 pi], moved to mean 0 and unit scale, plus noise."""
    r = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=_generator(n, seed)))
    points = torch.stack([r * r.cos(), r * r.sin()], 1)
    mean = torch.tensor(
        [2, 2 / (3 * math.pi)]
    )  # the mean and scale of the whole law, so that n changes nothing
    scale = math.sqrt((9.75 * math.pi**2 - mean.square().sum().item()) / 2)
    return _jitter((points - mean) / scale, noise, seed)


def two_moons(n: int = 1000, seed: int = 0, noise: float = 0.05) -> Tensor:
    """(n, 2) points of two interleaved half circles, mean 0, unit scale, plus noise."""
    generator = _generator(n, seed)
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    scale = math.sqrt((21 / 16 - 1 / math.pi) / 2)
    return _jitter(torch.stack([x, y], 1) / scale, noise, seed)


def gaussian_mixture(n: int = 1000, seed: int = 0, modes: int = 8, std: float = 0.1) -> Tensor:
    """(n, 2) points of `modes` equally likely Gaussians N(mean_k, std^2 I), means on a circle of radius sqrt(2 (1 - std^2))."""
    angle = 2 * math.pi / modes * torch.randint(modes, (n,), generator=_generator(n, seed))
    radius = math.sqrt(2 * (1 - std**2))  # makes the variance of each coordinate 1
    return _jitter(radius * torch.stack([angle.cos(), angle.sin()], 1), std, seed)


def _generator(n: int, seed: int) -> torch.Generator:
    if n < 1:
        raise OptionError(f"n = {n} points were asked for: choose 1 or more")
    return torch.Generator().manual_seed(seed)


def _jitter(points: Tensor, std: float, seed: int) -> Tensor:
    noise = torch.randn(
        points.shape, generator=torch.Generator().manual_seed(seed + 1_000_003)
    )  # own stream
    return points + std * noise
