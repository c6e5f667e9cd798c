"""Whole systems, UNet + VAE + text encoders, and what is drawn with them. Notebooks 09 to 14."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "system": "StableDiffusion SystemConfig build",
        "pipeline": (
            "text_to_image image_to_image inpaint upscale refine prompted condition unet_of decode "
            "draw edit"
        ),
        "arguments": "",
        "editing": "",
        "pictures": "picture_of mask_of",
        "codes": "CodeSystem CodeConfig rerank",
        "cascade": "Cascade CascadeConfig",
        "prior": "draw_embeddings caption_cond nearest",
        "control": "controlled",
        "attention_maps": "attention_weights recording word_maps token_words",
        "guard": "",
        "words": "add_word vectors_of",
        "memory": "memory_needed lora_memory weight_bytes peak_bytes",
    },
)
