"""A model as a folder, the way diffusers lays it out: one sub-folder a part, each with a config.json and weights.

    model_index.json  scheduler/  unet/  vae/  text_encoder/ [text_encoder_2/]  tokenizer/ [tokenizer_2/]

Which files there are and how they are written; what the JSON files say is in config_json.py.
"""

import json
from pathlib import Path, PurePosixPath

import torch

from ..errors import CheckpointError
from ..networks.tokenizer import Tokenizer, clip_tokenizer
from ..paths import replacing
from .config_json import reading

# ---------------------------------------------------------------- reading


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises CheckpointError if the file is missing or holds something else."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = (
            sorted(p.name for p in path.parent.iterdir())[:8]
            if path.parent.is_dir()
            else "no such folder"
        )
        raise CheckpointError(
            f"{path}: no such file; a model in folder layout needs it (found there: {beside})"
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not readable as JSON ({e}); fetch the file again") from e
    if not isinstance(entries, dict):
        raise CheckpointError(
            f"{path}: holds {type(entries).__name__} instead of the entries of a config; fetch the file again"
        )
    return entries


def pad(tokenizer: Path) -> str:
    """What fills up a prompt, "eot" or "!", by the JSON files of a tokenizer's folder; without any: "eot"."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (tokenizer / name).is_file():
            token = read_json(tokenizer / name).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token not in ("<|endoftext|>", "!", None):
                raise CheckpointError(
                    f"{tokenizer / name}: pad_token = {token!r} is not supported here; possible: '<|endoftext|>' or '!'"
                )
            if token:
                return "!" if token == "!" else "eot"
    return "eot"


def read_tokenizer(path: Path, length: int) -> Tokenizer:
    """The tokenizer of a folder whose words are not CLIP's, from its tokenizer.json."""
    names = [
        token.get("content") if isinstance(token, dict) else token
        for token in map(read_json(path / "tokenizer_config.json").get, ("bos_token", "eos_token"))
    ]
    with reading(path / "tokenizer.json"):
        return Tokenizer(path / "tokenizer.json", *names, length)


def weight_files(folder: Path, dtype=torch.float32, ema: bool = True) -> list[Path]:
    """The files that hold the weights of one part: the shards of an index, or one file; half precision prefers `.fp16`.

    Raises CheckpointError for no weights, a missing shard, or an index that points out of its folder.
    """
    variants = ["", ".fp16"] if dtype == torch.float32 else [".fp16", ""]
    for variant in ([] if ema else [".non_ema"]) + variants:
        for stem in ("diffusion_pytorch_model", "model"):
            if (index := folder / f"{stem}.safetensors.index{variant}.json").is_file():
                return _shards(index)
            if (file := folder / f"{stem}{variant}.safetensors").is_file():
                return [file]
    for file in (folder / "diffusion_pytorch_model.bin", folder / "pytorch_model.bin"):
        if file.is_file():
            return [file]  # a pickle: for load_tensors to refuse
    there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
    raise CheckpointError(
        f"{folder}: no weights; expected diffusion_pytorch_model.safetensors or model.safetensors there (found: {there})"
    )


def _shards(index):
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(n, str) for n in names.values())
    ):
        raise CheckpointError(f"{index}: no weight_map of names to files; fetch the file again")
    files = sorted(set(names.values()))
    for name in files:
        if (
            PurePosixPath(name).name != name
            or name in ("", "..")
            or "\\" in name
            or ":" in name
            or "\0" in name
        ):
            raise CheckpointError(
                f"{index}: names the shard {name!r}, which lies outside its folder: refused, use an index from a source you trust"
            )
    missing = [n for n in files if not (index.parent / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(files)} shards missing ({', '.join(missing[:3])}): fetch them into {index.parent}"
        )
    return [index.parent / n for n in files]


# ---------------------------------------------------------------- writing


def write_tokenizer(path: Path, pad: str, tokenizer=None) -> None:
    """CLIP's tokenizer as the four files that transformers reads, vocab.json and merges.txt equal to the official ones;
    a `Tokenizer` of your own as one of the `tokenizers` package."""
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!" if pad == "!" else "<|endoftext|>",
    }
    if isinstance(tokenizer, Tokenizer):
        start, end = map(tokenizer.bpe.id_to_token, (tokenizer.start, tokenizer.end))
        write_text(path / "tokenizer.json", tokenizer.bpe.to_str())
        return write_json(
            path / "tokenizer_config.json",
            {"bos_token": start, "eos_token": end, "model_max_length": tokenizer.length},
        )
    bpe = json.loads(clip_tokenizer().bpe.to_str())["model"]
    write_json(path / "vocab.json", dict(sorted(bpe["vocab"].items())))
    write_text(
        path / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in bpe["merges"])
    )
    write_json(path / "special_tokens_map.json", special)
    write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "do_lower_case": True,
            "add_prefix_space": False,
            "errors": "replace",
            **special,
        },
    )


def write_json(path: Path, entries: dict) -> None:
    write_text(path, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises CheckpointError if the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            Path(part).write_text(text, encoding="utf-8")
    except OSError as e:
        raise CheckpointError(
            f"{path}: could not be written ({e}): is the folder writable and the disk not full?"
        ) from e
