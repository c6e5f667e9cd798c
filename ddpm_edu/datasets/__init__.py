"""Digits, photographs, your own pictures, captioned digits, emoji, points. Notebooks 00 to 13."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "images": "ImageDataset mnist cifar10 folder to_uint8 from_uint8",
        "points": "swiss_roll gaussian_mixture",
        "painted": "Scene caption parse painted_digits prompts scenes",
        "emoji": "emoji Emoji",
        "hints": "edges strokes blurred",
        "originals": "Original Cut originals",
        "buckets": "buckets nearest_bucket bucket_order",
        "own": "Own own_pictures",
    },
)
