"""Models by their hub name, "owner/name": from the local cache, else fetched, only the files that are needed."""

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from ..errors import CheckpointError
from .folder import read_json, weight_files

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def is_name(source: str) -> bool:
    """Whether `source` reads like owner/name."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source)) and not source.endswith(
        ".safetensors"
    )


def cache(repo: str) -> Path:
    """Where huggingface_hub keeps a model, its `blobs` and `snapshots`."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        HF_HUB_CACHE = Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))


def snapshot(repo: str, dtype=torch.float32, ema: bool = True, places=()) -> Path:
    """The folder of a model in the cache; what is missing is fetched first, unless HF_HUB_OFFLINE is set.

    Half precision takes the files in half precision where there are some. Raises CheckpointError naming `places`.
    """
    remedy = f"pass the path of a .safetensors file or of a folder with {repo}'s files"
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise CheckpointError(
            f"{repo}: hub names need the package huggingface_hub, which is not installed: install it, or {remedy}"
        ) from None
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
        if complete(folder, dtype, ema):
            return folder
        lacking = f"{folder} is incomplete"
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        lacking = f"not found ({', '.join(map(str, places))})"
    remedy = f"fetch it where there is a network, or {remedy}"
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in (
        "1",
        "ON",
        "YES",
        "TRUE",
    ):
        raise CheckpointError(
            f"{repo}: {lacking}, and HF_HUB_OFFLINE forbids to fetch it: {remedy}, or unset HF_HUB_OFFLINE"
        )
    if not _reachable(constants.ENDPOINT):
        raise CheckpointError(
            f"{repo}: {lacking}, and there is no network to fetch it ({constants.ENDPOINT} does not answer): {remedy}"
        )
    try:
        names = needed(HfApi().list_repo_files(repo), dtype, ema)
        return Path(snapshot_download(repo, allow_patterns=names))
    except Exception as e:  # a network has many ways to fail, each with its own class
        raise CheckpointError(
            f"{repo}: {lacking}, and fetching it failed ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}): {remedy}"
        ) from e


def _reachable(endpoint: str) -> bool:
    """Whether the hub answers at all: without this the client tries again and again for half a minute."""
    if getproxies():
        return True  # then only the proxy knows
    url = urlsplit(endpoint)
    try:
        socket.create_connection(
            (url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout=5
        ).close()
    except OSError:
        return False
    return True


def complete(folder: Path, dtype, ema: bool) -> bool:
    """Whether a snapshot holds what `load` reads: the index, and config and weights of each part that it names."""
    try:
        index = read_json(folder / "model_index.json")
        for part in PARTS:
            if (index.get(part) or [None])[0]:
                read_json(folder / part / "config.json")
                weight_files(folder / part, dtype, ema)
        read_json(folder / "scheduler" / "scheduler_config.json")
    except (CheckpointError, OSError):
        return False
    return True


def needed(names: list[str], dtype, ema: bool) -> list[str]:
    """Of the files of a repository, those that `load` reads. Raises ValueError if it is no model in diffusers' layout."""
    if "model_index.json" not in names:
        raise ValueError("it has no model_index.json: not a model in diffusers' layout")
    keep = [
        n
        for n in names
        if n == "model_index.json"
        or re.fullmatch(r"(scheduler|tokenizer|tokenizer_2)/[^/]*\.(json|txt)", n)
    ]
    for part in PARTS:
        there = [
            n.removeprefix(part + "/")
            for n in names
            if n.startswith(part + "/") and n.count("/") == 1
        ]
        half = part == "vae" and dtype == torch.float16  # the VAE stays in float32 then
        order = ["", "fp16"] if dtype == torch.float32 or half else ["fp16", ""]
        for variant in ([] if ema else ["non_ema"]) + order:
            if files := [
                n
                for n in there
                if n.endswith((".safetensors", ".json"))
                and _variant(n) == variant
                and ".safetensors" in n
            ]:
                keep += [f"{part}/{n}" for n in files] + [f"{part}/config.json"]
                break
    return keep


def _variant(name: str) -> str:
    """ "fp16" of model.fp16.safetensors, model.fp16-00001-of-00002.safetensors or model.safetensors.index.fp16.json; "" of none."""
    name = re.sub(r"-\d{5}-of-\d{5}", "", name)
    name = re.sub(r"\.safetensors\.index|\.(safetensors|json)$", "", re.sub(r"\.json$", "", name))
    return name.partition(".")[2]
