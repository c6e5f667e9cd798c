"""How good are the pictures: Frechet distance, accuracy, PSNR; painted digits read back. Notebooks 00, 04, 09."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "frechet": "frechet_distance frechet_to_real moments psnr accuracy load_judge",
        "obedience": "fidelity read",
    },
)
