"""Whole systems, UNet + VAE + text encoders, and what is drawn with them. Notebooks 09 to 14."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "system": "StableDiffusion SystemConfig build",
        "pipeline": "text_to_image condition denoiser decode draw sampling_times",
        "attention_maps": "attention_weights recording word_maps token_words",
        "guard": "",
        "memory": "",
    },
)
