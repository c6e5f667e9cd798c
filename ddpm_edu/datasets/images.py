"""Pictures with labels: MNIST, CIFAR-10, a folder of yours. Notebooks 03 and 04.

They leave as x_0 (B, C, H, W), float32 in [-1, 1], with a one-hot `Cond.vector`.
"""

import copy
import hashlib
import http.client
import os
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..diffusion import Cond, class_cond
from ..errors import DataError, OptionError, ResourceError, ShapeError, one_of, pixels, warn, whole
from ..paths import data_folder, locked, replacing, shipped
from ..systems.pictures import on_white, opened

SPLITS = ("train", "test")

# ---------------------------------------------------------------- arrays


def to_uint8(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] as bytes 0..255, rounded; what a sampler left outside is clipped."""
    if not x.is_floating_point():
        raise DataError(f"x has type {x.dtype}: pass floats in [-1, 1]; bytes need no conversion")
    if not torch.isfinite(x).all():
        raise DataError("x holds NaN or infinity: look for where the model or the sampler diverged")
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Bytes 0..255 as float32 in [-1, 1]."""
    if images.dtype != torch.uint8:
        raise DataError(
            f"images have type {images.dtype}: pass uint8; floats in [-1, 1] need no conversion"
        )
    return images.float() / 127.5 - 1


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """`dataset[index]`: tensor, list, slice or number -> (x_0 (B, C, H, W), Cond(vector=one-hot)).

    Images and labels may be tensors, arrays or lists. Raises ShapeError for shapes that do not fit,
    DataError for no pictures, wrong values or wrong labels; warns of pictures in [0, 1].
    """

    images: Tensor  # (N, C, H, W), uint8 or float in [-1, 1]
    labels: Tensor | None = None  # (N,) whole numbers; None: Cond() without a vector
    classes: int = 10  # labels are 0..classes-1
    names: tuple[str, ...] = ()  # of the classes

    def __post_init__(self):
        images = _tensor("images", self.images)
        last = images.ndim == 4 and min(images.shape[1:3]) > 4 and images.shape[3] in (1, 3)
        if images.ndim != 4 or last:
            raise ShapeError(
                f"images have shape {tuple(images.shape)}: pass (N, C, H, W); add a missing axis "
                "with images[:, None], move channels forward with images.permute(0, 3, 1, 2)"
            )
        if not images.numel():
            raise DataError(f"images are empty, their shape is {tuple(images.shape)}: pass some")
        if images.dtype != torch.uint8:
            pixels("images", images)
        labels = None if self.labels is None else _tensor("labels", self.labels)
        if labels is not None:
            _check_labels(labels, len(images), self.classes)
            labels = labels.long()
        vars(self).update(images=images, labels=labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        if not isinstance(index, slice):
            index = torch.as_tensor(index).reshape(-1)  # one number gives a batch of one
        images = self.images[index]
        x_0 = from_uint8(images) if images.dtype == torch.uint8 else images.float()
        return x_0, Cond() if self.labels is None else class_cond(self.labels[index], self.classes)

    def subset(self, which) -> "ImageDataset":
        """The first `which` pictures if it is a number, else the pictures at those indices."""
        if isinstance(which, int):
            whole("which", which, 1, len(self), "the first so many pictures")
            which = slice(which)
        part = copy.copy(self)
        labels = None if self.labels is None else self.labels[which]
        vars(part).update(images=self.images[which], labels=labels)
        if not len(part):
            raise OptionError("a subset of no pictures was asked for: choose at least one")
        return part

    def split(self, n: int) -> tuple["ImageDataset", "ImageDataset"]:
        """The first n pictures and the others."""
        whole("n", n, 1, len(self) - 1, "the pictures of the first part")
        return self.subset(n), self.subset(slice(n, None))

    def per_class(self, n: int) -> "ImageDataset":
        """The first n pictures of each class, class by class."""
        if self.labels is None:
            raise OptionError("per_class: these pictures have no labels; use subset")
        found = [(self.labels == label).nonzero()[:, 0] for label in range(self.classes)]
        whole("n", n, 1, min(map(len, found)), "the pictures of the smallest class")
        return self.subset(torch.cat([index[:n] for index in found]))

    @classmethod
    def of(cls, pairs, classes: int = 10) -> "ImageDataset":
        """From a dataset of (picture, label) pairs, such as torchvision's, read once into memory.

        A picture is a PIL image, or a (C, H, W) array of bytes or of floats in [-1, 1].
        """
        images, labels = [], []
        for i in range(len(pairs)):
            pair = pairs[i]
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise DataError(f"pairs[{i}] is a {type(pair).__name__}: pass (picture, label)")
            array = np.asarray(pair[0])
            if hasattr(pair[0], "getbands"):  # PIL: (H, W) or (H, W, C)
                array = np.moveaxis(np.atleast_3d(array), 2, 0)
            if images and array.shape != images[0].shape:
                raise ShapeError(
                    f"pairs[{i}] has a picture of shape {array.shape}, not {images[0].shape}: "
                    "resize them, or read their files with folder(path, size)"
                )
            images.append(array)
            labels.append(pair[1])
        return cls(images, labels, classes)


def _tensor(name: str, values) -> Tensor:
    array = values
    try:
        if isinstance(values, (list, tuple)):
            array = np.stack([np.asarray(v) for v in values]) if len(values) else np.empty(0)
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as e:
        raise DataError(
            f"{name}: a {type(values).__name__} that is no array of numbers ({e}): pass a tensor, "
            "an array or a list; ImageDataset.of takes a dataset of (picture, label) pairs"
        ) from None


def _check_labels(labels: Tensor, n: int, classes: int) -> None:
    if labels.shape != (n,):
        raise ShapeError(f"labels have shape {tuple(labels.shape)}: {n} pictures need ({n},)")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"labels have type {labels.dtype}: pass whole numbers")
    wrong = ((labels < 0) | (labels >= classes)).nonzero()[:, 0].tolist()
    if wrong:
        raise DataError(
            f"labels[{wrong[0]}] = {labels[wrong[0]]}: pass 0..{classes - 1}, or more classes"
        )


# ---------------------------------------------------------------- a folder of pictures

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .tga .ico "
    ".avif .heic .heif .jxl .jp2".split()
)


def folder(
    path,
    size: int = 64,
    channels: int = 3,  # 3: colour, 1: grey
    pad: bool = False,  # white margins instead of cutting off what is not square
    skip: bool = False,  # leave unreadable files out, with a warning, instead of refusing them
) -> ImageDataset:
    """The pictures below a folder, (N, channels, size, size) bytes; its sub-folders are classes.

    Pictures of any size and mode are turned upright, cut square around the middle and resized;
    transparent ones are laid on white; of animated ones the first frame is taken. They come in the
    order of their paths. Names that begin with a dot, and files without a picture's suffix, are
    left out. DataError if there are none, or it names those that cannot be read.
    """
    path = Path(path).expanduser()
    whole("size", size, 1, 4096, "the side of the pictures, in pixels")
    if channels not in (1, 3):
        raise OptionError(f"channels = {channels!r}: choose 3 for colour, 1 for grey")
    files = pictures_below(path)
    classes = class_folders(path, files)
    try:
        images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    except RuntimeError:
        need = len(files) * channels * size**2 / 1e9
        raise ResourceError(
            f"{len(files):,} pictures of size = {size} need {need:,.1f} GB: choose fewer or smaller"
        ) from None
    read = lambda file: read_picture(file, (size, size), channels, pad)
    kept = []
    for file, picture in each_whole(path, files, read, skip):
        images[len(kept)] = picture
        kept.append(file)
    images = images[: len(kept)]
    if not classes:
        return ImageDataset(images)
    labels = [classes.index(f.relative_to(path).parts[0]) for f in kept]
    return ImageDataset(images, labels, len(classes), classes)


def class_folders(path: Path, files: list[Path]) -> tuple[str, ...]:
    """The sub-folders that pictures lie in, () if all lie in `path`; DataError for some of both."""
    classes = sorted({f.relative_to(path).parts[0] for f in files if f.parent != path})
    loose = [f for f in files if f.parent == path]
    if classes and loose:
        raise DataError(
            f"{path} holds {len(loose)} pictures ({_some(loose)}) beside the sub-folders "
            f"{', '.join(classes[:5])}: move them into one, or all into {path}"
        )
    return tuple(classes)


def each_whole(path: Path, files: list[Path], read: Callable, skip: bool) -> Iterator[tuple]:
    """(file, read(file)) of those that can be read; the others are named, at the end, by DataError
    or, where they are to be skipped and some are left, by a warning."""
    broken = {}
    for file in files:
        try:
            found = read(file)
        except Exception as e:  # a damaged picture can raise anything in its decoder
            broken[file] = f"{file.relative_to(path)}: {str(e).replace(str(file), 'it') or repr(e)}"
        else:
            yield file, found
    if broken:
        cause = (
            f"{path}: {len(broken)} of {len(files)} pictures cannot be read "
            f"({'; '.join(list(broken.values())[:5])}{'; ...' if len(broken) > 5 else ''})"
        )
        if not skip or len(broken) == len(files):
            remedy = "" if skip else ", or pass skip=True to leave them out"
            raise DataError(f"{cause}: remove or convert them{remedy}")
        warn(f"{cause}: they are left out")


def pictures_below(path: Path) -> list[Path]:
    """The files with a picture's suffix below a folder, in the order of their paths. DataError."""

    def refuse(error):
        raise DataError(f"{path} cannot be read ({error}): pass a folder that may be opened")

    found, others, seen = [], [], {os.path.realpath(path)}
    new = lambda place: place not in seen and not seen.add(place)  # links may run in circles
    for place, folders, names in os.walk(path, onerror=refuse, followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if new(os.path.realpath(os.path.join(place, name)))]
        for file in (Path(place, name) for name in names if not name.startswith(".")):
            fits = file.suffix.lower() in SUFFIXES and not file.is_fifo()
            (found if fits else others).append(file)
    if not found:
        held = f"only {_some(others)}" if others else "nothing"
        raise DataError(f"{path} holds no pictures ({held}): pass a folder of .png, .jpg and such")
    return sorted(found, key=lambda f: f.relative_to(path).parts)


def _some(files: list[Path]) -> str:
    return ", ".join(f.name for f in files[:5]) + (", ..." if len(files) > 5 else "")


def read_picture(file: Path, size: tuple[int, int], channels: int = 3, pad: bool = False) -> Tensor:
    """A file as bytes (channels, *size), size = (height, width): upright, cut around the middle, or
    with white margins. What a decoder raises can be anything."""
    from PIL import Image, ImageOps  # here, so that importing this module stays quick

    (height, width), cubic = size, Image.Resampling.BICUBIC
    image = on_white(opened(file, small=(2 * max(size), 2 * max(size))))
    if pad:
        scale = min(width / image.width, height / image.height)
        small = [max(1, round(scale * side)) for side in image.size]
        ground = Image.new(image.mode, (width, height), "white")
        ground.paste(
            image.resize(small, cubic), ((width - small[0]) // 2, (height - small[1]) // 2)
        )
        image = ground
    else:
        image = ImageOps.fit(image, (width, height), cubic)
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array.reshape(height, width, channels)).permute(2, 0, 1)


# ---------------------------------------------------------------- MNIST

MNIST_MD5 = {  # of the official idx files, after decompression
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist(split: str = "train") -> ImageDataset:
    """60,000 ("train") or 10,000 ("test") handwritten digits, (N, 1, 28, 28), that ship.

    Every read verifies the official sums: DataError if a file is missing, cut short or altered.
    """
    part = {"train": "train", "test": "t10k"}[one_of("split", split, SPLITS)]
    images = _read_idx(f"{part}-images-idx3-ubyte", ndim=3)
    return ImageDataset(images[:, None], _read_idx(f"{part}-labels-idx1-ubyte", ndim=1))


def _read_idx(name: str, ndim: int) -> Tensor:
    """The bytes of an idx file, behind its 4 bytes of magic and `ndim` sizes, big-endian int32.

    It ships as .xz, a fifth smaller than the official .gz, which may stand in its place.
    """
    official = data_folder() / "mnist" / f"{name}.gz"
    raw = shipped(f"mnist/{name}.{'gz' if official.exists() else 'xz'}", MNIST_MD5[name])
    shape = np.frombuffer(raw, ">i4", ndim, offset=4).tolist()
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * ndim).reshape(shape)


# ---------------------------------------------------------------- CIFAR-10

# in the order of the labels, which is that of the alphabet
CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
STALL, LONGEST = 30, 3600  # seconds without a byte, and in all, after which a download has failed


def cifar10(split: str = "train", root=None, download: bool = False) -> ImageDataset:
    """50,000 ("train") or 10,000 ("test") small photographs, (N, 3, 32, 32), of CIFAR10_CLASSES.

    root: a folder with torchvision's `cifar-10-batches-py/`, or with `train/` and `test/`, each of
    them a folder of pictures in ten classes; None: $DDPM_EDU_CIFAR10, else `cifar10/` in the data
    folder. download: fetch 170 MB into it, if it is not there. DataError if that fails.
    """
    one_of("split", split, SPLITS)
    root = root or os.environ.get("DDPM_EDU_CIFAR10") or data_folder() / "cifar10"
    root = Path(root).expanduser()
    if (root / split).is_dir():
        dataset = folder(root / split, 32)
        if dataset.names != CIFAR10_CLASSES:
            raise DataError(
                f"{root / split} has the classes {', '.join(dataset.names) or 'none'}: CIFAR-10's "
                f"are {', '.join(CIFAR10_CLASSES)}"
            )
        return dataset
    from torchvision.datasets import CIFAR10  # here, so that importing this module stays quick

    try:
        if download:
            _fetch_cifar10(root)
        found = CIFAR10(root, split == "train")  # compares every md5 before it unpickles
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        cause = f"could not be downloaded to {root} ({error})"
        raise DataError(
            f"CIFAR-10 {cause if download else f'is not in {root}, or is damaged there'}. With a "
            "network call cifar10(download=True) once (170 MB). Without one fetch "
            f"{CIFAR10.url} elsewhere, unpack it and set DDPM_EDU_CIFAR10 to the folder that holds "
            f"{CIFAR10.base_folder}/; or use mnist() or painted_digits(), which ship"
        ) from None
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return ImageDataset(images, found.targets, names=CIFAR10_CLASSES)


def _fetch_cifar10(root: Path) -> None:
    """Of several processes one fetches, the others wait for it. Only whole files stay."""
    from torchvision.datasets import CIFAR10

    sums = {**dict(CIFAR10.train_list), **dict(CIFAR10.test_list)}
    sums[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    files = {root / CIFAR10.base_folder / name: md5 for name, md5 in sums.items()}
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        if all(_md5(path) == md5 for path, md5 in files.items()):
            return
        archive = root / CIFAR10.filename
        if fetched := _md5(archive) != CIFAR10.tgz_md5:
            archive.unlink(missing_ok=True)
            _download(CIFAR10.url, archive, CIFAR10.tgz_md5)
        with tarfile.open(archive) as tar:
            for path in files:
                path.parent.mkdir(exist_ok=True)
                with replacing(path) as part:
                    member = tar.extractfile(f"{CIFAR10.base_folder}/{path.name}")
                    Path(part).write_bytes(member.read())
        if fetched:
            archive.unlink()


def _download(url: str, path: Path, md5: str) -> None:
    from tqdm import tqdm

    digest, started = hashlib.md5(usedforsecurity=False), time.monotonic()
    with (
        replacing(path) as part,
        urllib.request.urlopen(url, timeout=STALL) as source,
        tqdm(
            total=int(source.headers.get("Content-Length") or 0), unit="B", unit_scale=True
        ) as bar,
    ):
        with open(part, "wb") as file:
            while piece := source.read1(1 << 16):
                digest.update(piece)
                bar.update(file.write(piece))
                if time.monotonic() - started > LONGEST:
                    raise TimeoutError(f"not done after {LONGEST} seconds")
        if digest.hexdigest() != md5:
            raise OSError(
                f"{url} gave {os.path.getsize(part):,} other bytes (md5 {digest.hexdigest()})"
            )


def _md5(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
