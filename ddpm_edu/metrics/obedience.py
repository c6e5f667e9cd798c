"""Is the caption obeyed? Painted digits are read back from the pixels. Notebooks 07 and 09.

On real painted digits ink, ground, size and place are always found right, the digit as often as the
MNIST classifier finds it (`python benchmarks/read_painted.py`).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.hints import edges
from ..datasets.images import to_uint8
from ..datasets.painted import COLOURS, PIXELS, PLACES, SIZES, Scene, extent, parse, scene_of, step
from ..errors import ShapeError, fits
from ..files.load import load
from ..networks.classifier import Classifier

_FAR = 8  # pixels that tell the ink; at least five of them are pure


def read(images: Tensor, classifier: Classifier | None = None) -> list[Scene]:
    """What pictures (B, 3, 32, 32) show, bytes or floats in [-1, 1], painted or generated.

    Ground: the named colour nearest to the median of the frame, one pixel wide. Ink: the nearest to
    the median of the 8 pixels farthest from the ground. Size and place: the extent of what is more
    than half ink. Digit: the ink alone, scaled and centred like MNIST, shown to the classifier
    (None: the one that ships). Ink equals ground where no digit is seen. Raises ShapeError,
    DataError for NaN.
    """
    fits("images", images, ("B", 3, PIXELS, PIXELS), "pass")
    ink, ground, cover = read_colours(images)
    size, place = _size_and_place(cover)
    scale = torch.tensor(list(SIZES.values()))[size] / 20
    digit = read_digits(cover, scale, classifier or load("mnist_classifier"))
    return [scene_of(row) for row in torch.stack([digit, ink, ground, size, place], 1).tolist()]


def read_colours(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ink and ground, (B,) numbers in COLOURS, and how much of each pixel is ink, (B, H, W)."""
    x = (images if images.dtype == torch.uint8 else to_uint8(images)).detach().cpu().float()
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    nearest = lambda points: torch.cdist(points.median(2).values, palette).argmin(1)
    ground = nearest(torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]], 2))
    base = palette[ground][:, :, None, None]
    far = (x - base).square().sum(1).flatten(1).topk(_FAR).indices
    ink = nearest(x.flatten(2).gather(2, far[:, None].expand(-1, 3, -1)))
    way = palette[ink][:, :, None, None] - base
    cover = ((x - base) * way).sum(1) / way.square().sum(1).clamp(min=1)
    return ink, ground, cover.clamp(0, 1)


def _size_and_place(cover: Tensor) -> tuple[Tensor, Tensor]:
    top, bottom, left, right = extent(cover)
    size = (torch.maximum(bottom - top, right - left) + 1 > 16).long()  # painted: 8..14, 17..22
    centre = torch.stack([top + bottom, left + right], 1) / 2 - (PIXELS - 1) / 2
    steps = torch.tensor([step(pixels) for pixels in SIZES.values()])[size, None]
    places = torch.tensor(list(PLACES.values()), dtype=torch.float32)
    return size, torch.cdist(centre / steps, places).argmin(1)


def read_digits(cover: Tensor, scale: Tensor, classifier: Classifier) -> Tensor:
    """The ink (B, H, W) in [0, 1] as MNIST shows it, read by the classifier: (B,) labels.

    Its centre of mass goes to the middle of 28 x 28; scale (B,): pixels of `cover` for one of them.
    """
    height, width = cover.shape[1:]
    ink = (cover - 0.25).clamp(min=0)  # a decoder's faint noise all over moves no centre
    across, down = torch.arange(width).float(), torch.arange(height).float()
    centre = torch.stack([(ink.sum(1) * across).sum(1), (ink.sum(2) * down).sum(1)], 1)  # x, y
    centre = centre / ink.sum((1, 2)).clamp(min=1e-6)[:, None]
    offset = torch.arange(28) - 13.5
    offset = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), 2)  # (28, 28, 2)
    where = centre[:, None, None] + scale[:, None, None, None] * offset
    where = (2 * where + 1) / torch.tensor([width, height]) - 1
    digits = F.grid_sample(cover[:, None], where, align_corners=False)
    batches = (2 * digits - 1).to(next(classifier.parameters()).device).split(500)
    with torch.no_grad():
        return torch.cat([classifier(batch).argmax(1).cpu() for batch in batches])


def fidelity(
    images: Tensor, captions: list[str], classifier: Classifier | None = None
) -> dict[str, float]:
    """The share, 0 to 1, of pictures whose digit, ink, ground, size, place are as the captions say.

    "colours": ink and ground; "main": digit, ink and ground; "all": all five. Raises what `read`
    and `parse` raise, ShapeError for unequal numbers.
    """
    if len(images) != len(captions):
        raise ShapeError(f"{len(images)} images came with {len(captions)} captions: pass one each")
    wanted = [parse(text) for text in captions]
    pairs = zip(wanted, read(images, classifier))
    right = torch.tensor([[a == b for a, b in zip(*pair)] for pair in pairs]).double()
    shares = dict(zip(Scene._fields, right.mean(0).tolist()))
    groups = {"colours": [1, 2], "main": [0, 1, 2], "all": [0, 1, 2, 3, 4]}
    return shares | {name: right[:, c].prod(1).mean().item() for name, c in groups.items()}


def edge_f1(images: Tensor, hint: Tensor, within: int = 1) -> Tensor:
    """Are the lines of a hint (B, C, H, W) the edges of pictures (B, 3, H, W)? F1, 0 to 1: (B,).

    precision: share of the pictures' edges with a line at most `within` pixels away, along rows and
    columns; recall: share of the lines with an edge there; F1 = 2 precision recall / their sum.
    """
    fits("hint", hint, (len(images), "C", *images.shape[2:]), "for these images pass")
    drawn, asked = edges(images)[:, :1] > 0, hint.amax(1, keepdim=True) > 0
    precision, recall = _near(drawn, asked, within), _near(asked, drawn, within)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)


def _near(a: Tensor, b: Tensor, within: int) -> Tensor:
    """The share of a, (B, 1, H, W) booleans, with b around."""
    hits = a & (F.max_pool2d(b.float(), 2 * within + 1, 1, within) > 0)
    return hits.flatten(1).sum(1) / a.flatten(1).sum(1).clamp(min=1)
