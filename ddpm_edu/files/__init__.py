"""Weights and whole systems on disk: read safely, checked strictly, written whole. Notebook 11."""

from ..lazy import lazily

__getattr__, __dir__ = lazily(
    __name__,
    {
        "checkpoint": "load_pretrained save_pretrained load_state",
        "tensors": "load_tensors save_tensors",
        "names": "to_ours to_folder",
        "load": "KNOWN find where",
        "system_file": "save_system load_system",
        "recognise": "looks_like",
        "config_json": "",
        "folder": "",
        "hub": "",
        "int8": "",
    },
)
