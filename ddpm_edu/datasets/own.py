"""Your own pictures with their captions, classes and shapes, from any folder. Notebook 17.

    own = own_pictures("my-pictures", 64)
    x_0, captions = own[[0, 1]]                (2, 3, 64, 64) in [-1, 1], ["a red cup", "a cat"]

A caption is a row of metadata.jsonl, {"file_name": "cup.png", "text": "a red cup"}; or the text of
cup.txt, beside cup.png; or what the file's name says, red_cup_02.png; or its sub-folder's name.
"""

import json
import os
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, ResourceError, one_of, warn, whole
from ..systems.pictures import upright_size
from .buckets import bucket_order, nearest_bucket, one_bucket
from .images import class_folders, each_whole, from_uint8, pictures_below, read_picture, to_uint8
from .originals import Cut, excess

SOURCES = ("metadata", "txt", "folders", "names", "none")  # of captions, in the order of "auto"
METADATA = "metadata.jsonl"


@dataclass(frozen=True, eq=False)
class Own:
    """own[index] -> (x_0 (B, 3, h, w) in [-1, 1], captions: B); DataError for several buckets."""

    files: tuple[str, ...]  # paths below the folder
    captions: tuple[str, ...]  # "" for none
    source: str  # where they come from, one of SOURCES
    labels: Tensor | None  # (N,) numbers of sub-folders
    names: tuple[str, ...]  # of these, as captions
    shapes: list[tuple[int, int]]  # (h, w) of each bucket
    images: tuple[Tensor, ...]  # (n, 3, h, w) bytes of each bucket
    bucket: Tensor  # (N,)
    row: Tensor  # (N,) of images[bucket]
    sizes: Tensor  # (N, 2) height and width of the files' pictures

    def __len__(self) -> int:
        return len(self.bucket)

    def __getitem__(self, index) -> tuple[Tensor, list[str]]:
        index = torch.arange(len(self))[index if isinstance(index, slice) else _flat(index)]
        return self.pictures(index), [self.captions[i] for i in index.tolist()]

    def pictures(self, index: Tensor) -> Tensor:
        """(B, 3, h, w) in [-1, 1] of one bucket."""
        return from_uint8(self.images[one_bucket(self.bucket[index])][self.row[index]])

    def where(self, index) -> list[Cut]:
        """Original size, crop and target size of pictures, which SDXL learns with them."""
        rows = zip(self.sizes[index].tolist(), self.bucket[index].tolist())
        found = [(tuple(size), self.shapes[k]) for size, k in rows]
        over = [excess(size, shape) for size, shape in found]
        return [Cut(o, (h // 2, w // 2), t) for (o, t), (h, w) in zip(found, over)]

    def order(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """An epoch in which each batch comes from one bucket, see `bucket_order`."""
        return bucket_order(self.bucket, batch_size, generator)

    def at(self, index: Tensor) -> "Own":
        """These pictures, each as often as it is named; the buckets stay."""
        labels = None if self.labels is None else self.labels[index]
        texts = {k: tuple(getattr(self, k)[i] for i in index) for k in ("files", "captions")}
        rows = {k: getattr(self, k)[index] for k in ("bucket", "row", "sizes")}
        return replace(self, labels=labels, **texts, **rows)

    def repeated(self, n: int) -> "Own":
        """The same pictures over and over until each bucket has at least n."""
        again = [self.bucket.eq(k).nonzero()[:, 0] for k in self.bucket.unique()]
        return self.at(torch.cat([own.repeat(max(1, -(-n // len(own)))) for own in again]))

    def most_common(self) -> "Own":
        """Those of the largest bucket, as the only one."""
        k = int(self.bucket.bincount().argmax())
        own = self.at(self.bucket.eq(k).nonzero()[:, 0])
        one = torch.zeros_like(own.bucket)
        return replace(own, shapes=[self.shapes[k]], images=(self.images[k],), bucket=one)

    def squares(self, size: int) -> "Squares":
        """The same, each pressed into a square, as CLIP takes pictures."""
        return Squares(self, size)


@dataclass(frozen=True, eq=False)
class Squares:
    """squares[index] -> (x_0 (B, 3, size, size), captions: B)."""

    own: Own
    size: int

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, index) -> tuple[Tensor, list[str]]:
        x_0, captions = self.own[index]
        if x_0.shape[2:] != (self.size, self.size):
            x_0 = F.interpolate(x_0, (self.size, self.size), mode="bilinear", antialias=True)
        return x_0, captions

    def order(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """An epoch, see `bucket_order`."""
        return self.own.order(batch_size, generator)


def own_pictures(
    path,
    size: int = 64,
    *,
    captions: str = "auto",
    default: str = "",  # the caption of a picture without one
    shapes: list[tuple[int, int]] | None = None,  # buckets (h, w), see `buckets`; None: squares
    least: int = 1,  # pictures of a bucket; a smaller one's go to the bucket next to it
    skip: bool = True,  # name broken pictures and leave them out, instead of refusing them
) -> Own:
    """The pictures below a folder, of any kind that `folder` reads, in the order of their paths.

    captions: one of SOURCES; "auto" is the first that the folder has: metadata.jsonl, .txt files,
    two sub-folders or more, names that say something, none. DataError for a folder without
    pictures, for broken ones that are not skipped, for captions that are asked for and not there,
    and for a metadata.jsonl or .txt that cannot be read.
    """
    path = Path(path).expanduser()
    whole("size", size, 1, 4096, "the side of the pictures, in pixels")
    one_of("captions", captions, ("auto", *SOURCES))
    files = pictures_below(path)
    sizes = dict(each_whole(path, files, upright_size, skip))
    shapes, bucket = _buckets(torch.tensor([*sizes.values()]), shapes or [(size, size)], least)
    place = dict(zip(sizes, bucket.tolist()))
    read = lambda file: read_picture(file, shapes[place[file]])
    try:
        pictures = dict(each_whole(path, list(sizes), read, skip))
    except MemoryError:
        raise ResourceError(
            f"{len(sizes):,} pictures of size = {size} do not fit into memory: choose a smaller one"
        ) from None
    kept = list(pictures)
    labels, names = _classes(path, kept, captions)
    source, texts = _captions(path, kept, captions, labels, names)
    if source != "none" and not default:
        _some_without(path, kept, texts, source)
    bucket = torch.tensor([place[file] for file in kept])
    return Own(
        tuple(file.relative_to(path).as_posix() for file in kept),
        tuple(text or default for text in texts),
        source,
        labels,
        names,
        shapes,
        tuple(
            torch.stack([pictures[f] for f in kept if place[f] == k] or [torch.empty(3, *shape)])
            for k, shape in enumerate(shapes)
        ),
        bucket,
        torch.stack([bucket == k for k in range(len(shapes))]).cumsum(1)[bucket, range(len(kept))]
        - 1,
        torch.tensor([sizes[file] for file in kept]),
    )


def captioned(images: Tensor, captions: list[str]) -> Own:
    """Pictures (N, 3, h, w) in [-1, 1] that are there already, such as a model drew, with texts."""
    n, shape = len(images), tuple(images.shape[2:])
    zeros = torch.zeros(n, dtype=torch.long)
    files = tuple(map(str, range(n)))
    size = torch.tensor([shape] * n)
    return Own(
        files,
        tuple(captions),
        "none",
        None,
        (),
        [shape],
        (to_uint8(images),),
        zeros,
        torch.arange(n),
        size,
    )


def _buckets(sizes: Tensor, shapes: list, least: int) -> tuple[list, Tensor]:
    """(shapes that are used, (N,) which of them): the smallest go until each has `least`."""
    while True:
        bucket = nearest_bucket(sizes, shapes)
        counts = bucket.bincount(minlength=len(shapes)).tolist()
        if len(shapes) == 1 or min(counts) >= max(1, least):
            return shapes, bucket
        smallest = counts.index(min(counts))
        shapes = [shape for k, shape in enumerate(shapes) if k != smallest]


def _classes(path, files, captions) -> tuple[Tensor | None, tuple[str, ...]]:
    """Numbers of sub-folders and their names as captions; one alone, or some loose: none."""
    try:
        folders = class_folders(path, files)
    except DataError:  # beside loose pictures
        if captions in ("auto", "folders"):
            raise
        return None, ()
    if len(folders) < 2 and captions != "folders" or not folders:
        return None, ()
    labels = [folders.index(f.relative_to(path).parts[0]) for f in files]
    names = [spoken(name) or name for name in folders]
    told_apart = [n if names.count(n) == 1 else folder for n, folder in zip(names, folders)]
    return torch.tensor(labels), tuple(told_apart)


def _flat(index) -> Tensor:
    return torch.as_tensor(index).reshape(-1).long()


# ---------------------------------------------------------------- captions

CAMERA = re.compile(  # names that a machine gave
    r"(?i)^(img|image|dsc|dscn|dscf|pxl|mvi|dji|gopr|pic|picture|photo|foto|scan|screenshot|"
    r"bild|untitled|unnamed|download|whatsapp image|screen shot|[0-9a-f]{8,}|[0-9a-f-]{32,})"
    r"(?![^\W\d_]).*$"
)


def spoken(name: str) -> str:
    """What a file's name, without its suffix, says: "red_apple (2)" -> "red apple".

    "" for a number, and for names that cameras and computers give: IMG_2041, screenshot.
    """
    text = one_line(re.sub(r"[_+.~]", " ", unicodedata.normalize("NFC", name)))
    if CAMERA.match(text):
        return ""
    text = text if " " in text else text.replace("-", " ")
    text = re.sub(r"(?i)[\s-]+copy[\s(]*\d*\)?$", "", text)
    text = re.sub(r"[\s(\[#-]*\d*[)\]\s]*$", "", re.sub(r"^(0\d*|\d{3,})[\s-]+", "", text))
    return text if any(map(str.isalpha, text)) else ""


def one_line(text: str) -> str:
    """With single blanks, and without control characters and halves of surrogate pairs."""
    kept = (c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
    return " ".join("".join(kept).split())


def _captions(path, files, asked, labels, names) -> tuple[str, list[str]]:
    """(one of SOURCES, a text for each file); DataError where they are asked for and none is."""
    read = {
        "metadata": lambda: _metadata(path, files),
        "txt": lambda: [_beside(path, file) for file in files],
        "folders": lambda: [] if labels is None else [names[k] for k in labels.tolist()],
        "names": lambda: [spoken(file.stem) for file in files],
        "none": lambda: [""] * len(files),
    }
    if asked != "auto":
        texts = read[asked]()
        if asked != "none" and not any(texts):
            raise DataError(f"{path}: captions = {asked!r}, and no picture has one: {WRITE}")
        return asked, texts
    for source, its in read.items():
        texts = its()
        enough = len(files) / 2 if source == "names" else 0  # some numbered ones are no captions
        if source == "none" or sum(map(bool, texts)) > enough:
            return source, texts


WRITE = (
    f'write rows {{"file_name": "cup.png", "text": "a red cup"}} into {METADATA}, or the text into '
    "cup.txt beside cup.png, or call the file red_cup.png"
)


def _some_without(path, files, texts, source) -> None:
    without = [file.name for file, text in zip(files, texts) if not text]
    if without:
        what = f"{path}: {len(without)} of {len(files)} pictures have no caption ({source})"
        warn(f"{what}, such as {without[0]}")


def _beside(path: Path, picture: Path) -> str:
    file = picture.with_suffix(".txt")
    return one_line(_text(file, path)) if file.is_file() else ""


def _text(file: Path, path: Path) -> str:
    """A text file in UTF-8, or in the UTF-16 that Windows writes."""
    raw = file.read_bytes()
    code = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(code)
        if "\0" in text:  # UTF-16 without its mark
            raise UnicodeDecodeError(code, raw, raw.index(0), raw.index(0) + 1, "zero bytes")
        return text
    except UnicodeDecodeError as e:
        name = file.relative_to(path)
        raise DataError(f"{path}: {name} is no text in UTF-8 ({e.reason}): save it as UTF-8") from e


def _metadata(path: Path, files: list[Path]) -> list[str]:
    """Of every metadata.jsonl in a folder of a picture; its file names are relative to it."""
    known = {}
    below = {place for f in files for place in f.parents if place.is_relative_to(path)}
    for file in sorted(place / METADATA for place in below):
        known |= _rows(file, path) if file.is_file() else {}
    real = [os.path.normpath(file) for file in files]
    if lost := known.keys() - set(real):
        name = os.path.relpath(min(lost), path)
        warn(f"{path}: {METADATA} names {len(lost)} pictures that are not there, such as {name}")
    return [known.get(name, "") for name in real] if known else []


def _rows(file: Path, path: Path) -> dict[str, str]:
    found = {}
    for number, line in enumerate(_text(file, path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
            if not (isinstance(name, str) and isinstance(text, str)):
                raise TypeError("both are texts")
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            wanted = '{"file_name": "cup.png", "text": "a red cup"}'
            raise DataError(
                f"{file}, line {number} is no row such as {wanted} ({e!s:.80}): correct it"
            ) from None
        found[os.path.normpath(file.parent / name)] = one_line(text)
    return found
