"""Data: digits, photographs, painted digits with captions, emoji, points in a plane. Notebooks 01 to 09."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "images": "ImageDataset mnist cifar10 to_uint8 from_uint8 swiss_roll gaussian_mixture",
        "painted": "Scene caption parse painted_digits prompts scenes",
        "emoji": "emoji Emoji",
    },
)
