"""How good are the pictures, and do they show what was asked for? Notebooks 00, 04, 09."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "frechet": (
            "frechet_distance frechet frechet_to_real moments features precision_recall psnr "
            "accuracy"
        ),
        "obedience": "edge_f1 fidelity read",
    },
)
