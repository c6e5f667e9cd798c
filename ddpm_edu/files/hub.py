"""Models by hub name, "owner/name": from the cache, else fetched as far as needed. Notebook 11."""

import os
import re
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..systems.system import part_dtype
from .folder import Folder, variants

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def is_name(source: str) -> bool:
    """Whether `source` reads like owner/name."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)
    return bool(named) and not source.endswith(".safetensors")


def cache(repo: str) -> Path:
    """Where huggingface_hub keeps a model, its `blobs` and `snapshots`."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        HF_HUB_CACHE = Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))


def snapshot(repo: str, dtype=torch.float32, ema: bool = True, places=()) -> Path:
    """The folder of a model in the cache; what is missing is fetched, unless HF_HUB_OFFLINE is set.

    Half precision takes files in half precision where there are. CheckpointError with `places`.
    """
    remedy = f"pass the path of a .safetensors file or of a folder with {repo}'s files"
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        cause = "hub names need the package huggingface_hub: install it"
        raise CheckpointError(f"{repo}: {cause}, or {remedy}") from None
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
        if complete(Folder(folder), dtype, ema):
            return folder
        lacking = f"{folder} is incomplete"
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        lacking = f"not found ({', '.join(map(str, places))})"
    remedy = f"fetch it where there is a network, or {remedy}"
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if constants.HF_HUB_OFFLINE or offline:
        raise CheckpointError(
            f"{repo}: {lacking}, and HF_HUB_OFFLINE is set: {remedy}, or unset it"
        )
    try:
        names = needed(HfApi().list_repo_files(repo), dtype, ema)
        return Path(snapshot_download(repo, allow_patterns=names))
    except Exception as e:  # a network has many ways to fail, each with its own class
        cause = f"{type(e).__name__}: {str(e).partition(chr(10))[0]:.200}"
        raise CheckpointError(f"{repo}: {lacking}, and fetching failed ({cause}): {remedy}") from e


def complete(folder: Folder, dtype, ema: bool) -> bool:
    """Whether a snapshot holds what `load` reads: the index, config and weights of each part; of a
    ControlNet, which has no index, these alone."""
    try:
        if folder.has("config.json") and not folder.has("model_index.json"):
            return bool(folder.weights(".", dtype))
        index = folder.json("model_index.json")
        for part in PARTS:
            if (index.get(part) or [None])[0]:
                folder.json(f"{part}/config.json")
                folder.weights(part, dtype, ema)
        folder.json("scheduler/scheduler_config.json")
    except (CheckpointError, OSError):
        return False
    return True


def needed(names: list[str], dtype, ema: bool) -> list[str]:
    """Of the files of a repository, those that `load` reads. ValueError if it is no such model."""
    if "model_index.json" not in names and "config.json" not in names:
        raise ValueError("it has no model_index.json: not a model in diffusers' layout")
    if "model_index.json" not in names:
        return ["config.json", *_weights("", names, dtype, ema)]
    small = r"model_index\.json|(scheduler|tokenizer|tokenizer_2)/[^/]*\.(json|txt)"
    keep = [name for name in names if re.fullmatch(small, name)]
    for part in PARTS:
        if files := _weights(f"{part}/", names, part_dtype(part, dtype), ema):
            keep += [*files, f"{part}/config.json"]
    return keep


def _weights(folder: str, names: list[str], dtype, ema: bool) -> list[str]:
    """Of the names in a folder those of the most wanted variant of its weights."""
    for variant in map(re.escape, variants(dtype, ema)):
        whole = rf"{variant}(-\d{{5}}-of-\d{{5}})?\.safetensors"  # or a shard, or their index
        file = re.compile(rf"{folder}\w+({whole}|\.safetensors\.index{variant}\.json)")
        if files := [name for name in names if file.fullmatch(name)]:
            return files
    return []
