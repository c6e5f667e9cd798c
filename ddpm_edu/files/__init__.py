"""Weights and whole systems on disk: read safely, checked strictly, written whole. Notebook 11."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "load": "Pretrained KNOWN config_of describe find load_state save where",
        "tensors": "load_tensors save_tensors",
        "names": "to_ours looks_like split_single_file",
        "folder": "Folder",
        "lora": "load_lora save_lora",
        "embedding": "load_embedding save_embedding",
        "hub": "",
    },
)
