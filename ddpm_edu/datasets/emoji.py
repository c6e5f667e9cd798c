"""Emoji: 1,911 pictures, 64x64, with English and Chinese names and categories. Notebook 09.

One sheet that ships; pictures and licences: data/emoji/README.md. Importing this reads nothing.
"""

import difflib
import io
import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, OptionError, one_of
from ..paths import shipped
from .images import from_uint8

PIXELS, COLUMNS = 64, 44  # of a picture; of the sheet, which reads like a page
SHA256 = {  # of the contents
    "sheet.webp": "a2648a2cce7cabaeb01a966859fc7d502c751cf2693e724a2726f01b0218c0ed",
    "names.json.gz": "42f067f69c7325eed6c89809b720b06a00c589fd0f16020b18ebd8577acd129a",
}


@dataclass(frozen=True, eq=False)
class Emoji:
    """Pictures on white with their names, in Unicode's order.

    `dataset[index]`, a tensor, list or slice -> (x_0 (B, 3, 64, 64) in [-1, 1], names: list of B).
    """

    images: Tensor  # (N, 3, 64, 64) uint8
    characters: tuple[str, ...]  # "🍎"
    names: tuple[str, ...]  # "red apple"
    chinese: tuple[str, ...]  # "红苹果"
    categories: tuple[str, ...]  # "Food & Drink"
    chinese_categories: tuple[str, ...]  # "食物与饮料"
    tags: tuple[tuple[str, ...], ...]  # English words that go with it: ("apple", "fruit", ...)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index) -> tuple[Tensor, list[str]]:
        return from_uint8(self.images[self._index(index)]), self.captions(index)

    def captions(self, index=slice(None), language: str = "en") -> list[str]:
        """The names, English ("en") or Chinese ("zh")."""
        names = {"en": self.names, "zh": self.chinese}[one_of("language", language, ("en", "zh"))]
        return [names[i] for i in self._index(index).tolist()]

    def find(self, name: str) -> int:
        """Where an emoji is, by its character, English or Chinese name. OptionError if unknown."""
        for known in (self.characters, self.names, self.chinese):
            if name in known:
                return known.index(name)
        near = difflib.get_close_matches(str(name), self.names + self.chinese, 3)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else "see emoji().names"
        raise OptionError(f"no emoji is called {name!r}: {hint}")

    def subset(self, which) -> "Emoji":
        """Those at these indices, or those of a category, by its English name."""
        if isinstance(which, str):
            one_of("category", which, tuple(dict.fromkeys(self.categories)))
            which = [i for i, category in enumerate(self.categories) if category == which]
        index = self._index(which)
        if not len(index):
            raise OptionError("a subset of no emoji was asked for: choose at least one")
        images, *columns = vars(self).values()
        return Emoji(images[index], *(tuple(c[i] for i in index.tolist()) for c in columns))

    def _index(self, index) -> Tensor:
        index = index if isinstance(index, slice) else torch.as_tensor(index).reshape(-1).long()
        return torch.arange(len(self))[index]


def emoji() -> Emoji:
    """All 1,911; their files' sums are verified: DataError if one is missing or altered."""
    from PIL import Image  # here, so that importing this module stays quick

    listed = json.loads(shipped("emoji/names.json.gz", SHA256["names.json.gz"]))
    sheet = io.BytesIO(shipped("emoji/sheet.webp", SHA256["sheet.webp"]))
    try:
        sheet = Image.open(sheet, formats=["WEBP"]).convert("RGB")
    except (OSError, KeyError) as error:
        raise DataError(
            f"this Pillow cannot read WebP, as the emoji sheet is ({error}): install a newer one"
        ) from None
    tiles = np.asarray(sheet).reshape(-1, PIXELS, COLUMNS, PIXELS, 3)
    tiles = tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, PIXELS, PIXELS)
    characters, names, chinese, number, tags = zip(*listed["emoji"])
    categories = zip(*(listed["categories"][k] for k in number))
    images = torch.from_numpy(tiles[: len(names)].copy())
    return Emoji(images, characters, names, chinese, *categories, tuple(map(tuple, tags)))
