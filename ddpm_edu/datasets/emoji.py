"""Emoji: 1,911 pictures, 64x64, with English and Chinese names and categories; one sheet that ships with the course.

Pictures and licences: data/emoji/README.md. Importing this module reads nothing.
"""

import difflib
import gzip
import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, OptionError
from ..paths import data_folder
from .images import from_uint8

PIXELS, COLUMNS = 64, 44  # of a picture; of the sheet, which reads like a page
SHA256 = {
    "sheet.webp": "2590803f5259a1bc15f0d7bff566ac490b03a4ef5b49cccf354fb68c91054957",
    "names.json.gz": "9c68c95e6375bf8f70e3831c275f3aaad703b483909dd9eba8f763ca13e07dd9",
}


@dataclass(frozen=True, eq=False)
class Emoji:
    """Pictures on white with their names, in Unicode's order.

    images: (N, 3, 64, 64) uint8. The others are tuples of N: `characters` ("🍎"), `names` ("red apple"), `chinese` ("红苹果"),
    `categories` ("Food & Drink"), `chinese_categories` and `tags` (English words that go with it: ("apple", "fruit", ...)).
    `dataset[index]`, index a tensor, list or slice, gives (x_0 (B, 3, 64, 64) float32 in [-1, 1], names: list of B).
    """

    images: Tensor
    characters: tuple[str, ...]
    names: tuple[str, ...]
    chinese: tuple[str, ...]
    categories: tuple[str, ...]
    chinese_categories: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> tuple[Tensor, list[str]]:
        return from_uint8(self.images[self._index(index)]), self.captions(index)

    def captions(self, index=slice(None), language: str = "en") -> list[str]:
        """The names, English ("en") or Chinese ("zh")."""
        if language not in ("en", "zh"):
            raise OptionError(f"language = {language!r} is not known: choose 'en' or 'zh'")
        names = self.names if language == "en" else self.chinese
        return [names[i] for i in self._index(index).tolist()]

    def find(self, name: str) -> int:
        """The index of an emoji by its character, English or Chinese name. OptionError, with the nearest names, for an unknown one."""
        for known in (self.characters, self.names, self.chinese):
            if name in known:
                return known.index(name)
        near = difflib.get_close_matches(str(name), self.names + self.chinese, 3)
        raise OptionError(
            f"no emoji is called {name!r}"
            + (f": did you mean {', '.join(map(repr, near))}?" if near else ": see emoji().names")
        )

    def subset(self, which) -> "Emoji":
        """Those at these indices, or those of a category, by its English name."""
        if isinstance(which, str):
            if which not in self.categories:
                raise OptionError(
                    f"category = {which!r} is not known: choose one of {', '.join(dict.fromkeys(self.categories))}"
                )
            which = [i for i, category in enumerate(self.categories) if category == which]
        index = self._index(which)
        if not len(index):
            raise OptionError("a subset of no emoji was asked for: choose at least one")
        columns = (
            self.characters,
            self.names,
            self.chinese,
            self.categories,
            self.chinese_categories,
            self.tags,
        )
        return Emoji(
            self.images[index], *(tuple(column[i] for i in index.tolist()) for column in columns)
        )

    def _index(self, index) -> Tensor:
        every = torch.arange(len(self))
        return every[
            index if isinstance(index, slice) else torch.as_tensor(index).reshape(-1).long()
        ]


def emoji() -> Emoji:
    """All 1,911, from the sheet that ships with the course; sums are verified. DataError if a file is missing or altered."""
    from PIL import Image  # here, so that importing this module stays quick

    listed = json.loads(gzip.decompress(_verified("names.json.gz")))
    try:
        sheet = np.asarray(
            Image.open(io.BytesIO(_verified("sheet.webp")), formats=["WEBP"]).convert("RGB")
        )
    except (OSError, KeyError) as error:
        raise DataError(
            f"this Pillow cannot read WebP, the format of the emoji sheet ({error}): install one from "
            "python-pillow.org, whose builds can"
        ) from None
    tiles = (
        sheet.reshape(-1, PIXELS, COLUMNS, PIXELS, 3)
        .transpose(0, 2, 4, 1, 3)
        .reshape(-1, 3, PIXELS, PIXELS)
    )
    characters, names, chinese, number, tags = zip(*listed["emoji"])
    categories, chinese_categories = zip(*(listed["categories"][k] for k in number))
    return Emoji(
        torch.from_numpy(tiles[: len(names)].copy()),
        characters,
        names,
        chinese,
        categories,
        chinese_categories,
        tuple(map(tuple, tags)),
    )


def _verified(name: str) -> bytes:
    path = data_folder() / "emoji" / name

    def broken(cause):
        return DataError(
            f"emoji file {path} {cause}: restore it with `git checkout -- data/emoji`, "
            "or point DDPM_EDU_DATA to a folder that holds emoji/ (data/emoji/README.md says how it was made)"
        )

    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise broken("is missing") from None
    except OSError as error:
        raise broken(f"cannot be read ({error})") from None
    if (found := hashlib.sha256(raw).hexdigest()) != SHA256[name]:
        raise broken(
            f"has the wrong content (sha256 {found}, expected {SHA256[name]}, {len(raw):,} bytes)"
        )
    return raw
