"""A whole small system in one safetensors file: weights in 8 bits, the plans of its parts, schedule and tokenizer.

A file of this kind says all that is needed to draw; those that ship are data/weights/NAME.safetensors.
"""

import dataclasses
import os
from pathlib import Path

import torch

from ..errors import CheckpointError, DdpmEduError, OptionError
from ..networks.text import TextConfig
from ..networks.tokenizer import Tokenizer, tokenize
from ..networks.unet import UNetConfig
from ..networks.vae import VAEConfig
from ..paths import data_folder
from ..schedule import Schedule
from ..systems.system import StableDiffusion, SystemConfig, build, part_dtype
from .checkpoint import check_finite, load_state
from .int8 import pack, squeeze, unpack
from .tensors import load_tensors, save_tensors

KIND = "system"
PARTS = ("unet", "vae", "text")


def save_system(path, sd: StableDiffusion, meta: dict | None = None) -> None:
    """Write `sd` to one file, all or nothing; see `load_system`. The weights are packed (int8.py), so they are rounded.

    meta: what else to say, JSON-able: figures, known words.  Raises OptionError for a tokenizer that is a function of your
    own (pass a `Tokenizer`), CheckpointError if the file cannot be written.
    """
    if meta is not None and not isinstance(meta, dict):
        raise OptionError(f"meta = {meta!r:.80}: pass a dict, or nothing")
    tensors = {
        f"{part}.{name}": w for part in PARTS for name, w in getattr(sd, part).state_dict().items()
    }
    text = {
        "kind": KIND,
        "system": dataclasses.asdict(sd.config),
        "tokenizer": _describe(sd.text.tokenizer),
        "meta": meta or {},
    }
    check_finite(tensors, path)
    save_tensors(path, {**squeeze(pack(tensors)), "schedule.beta": sd.schedule.beta}, text)


def load_system(path, *, device="cpu", dtype=torch.float32) -> tuple[StableDiffusion, dict]:
    """(the system, ready to sample, `meta`) from a file of `save_system`. dtype: of the weights in memory, see `part_dtype`.

    Raises CheckpointError for a file that is none, is damaged, or does not fit its own plan; then nothing is returned.
    """
    tensors, text = load_tensors(path)
    config = plan(path, text)
    if not isinstance(text.get("meta"), dict) or not _is_text(text["meta"].get("words", [])):
        raise CheckpointError(
            f"{path}: its entry meta is no JSON object, or the words in it are no list of texts: the file is damaged, get it again"
        )
    try:
        sd = build(config, Schedule(tensors.pop("schedule.beta")), device="meta", dtype=dtype)
        tokenizer = _tokenizer(text["tokenizer"])
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        DdpmEduError,
    ) as e:  # whatever a changed entry leads to
        raise CheckpointError(
            f"{path}: no schedule or tokenizer that can be used ({str(e)[:200]}): the file is damaged, get it again"
        ) from e
    words = config.text[0].vocab, config.text[0].length
    if tokenizer and (tokenizer.bpe.get_vocab_size(), tokenizer.length) != words:
        raise CheckpointError(
            f"{path}: its tokenizer has {tokenizer.bpe.get_vocab_size()} ids in rows of {tokenizer.length}, but the text encoder takes "
            f"{words[0]} in rows of {words[1]}"
        )
    check_finite(tensors, path)
    state = unpack(tensors, path)
    if strange := [name for name in state if name.partition(".")[0] not in PARTS]:
        raise CheckpointError(
            f"{path}: {len(strange)} tensors belong to no part of a system ({', '.join(strange[:3])}): is it another kind of file?"
        )
    for part in PARTS:
        own = {
            name.removeprefix(f"{part}."): w.to(device, part_dtype(part, dtype))
            for name, w in state.items()
            if name.startswith(f"{part}.")
        }
        load_state(getattr(sd, part), own, f"{path} ({part})")
    sd.text.tokenizer = tokenizer or sd.text.tokenizer
    sd.meta = text["meta"]
    return sd, sd.meta


def _is_text(words) -> bool:
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


def plan(path, text: dict) -> SystemConfig:
    """The SystemConfig in a file's metadata. Raises CheckpointError if there is none that can be built."""
    if text.get("kind") != KIND:
        raise CheckpointError(
            f"{path}: not a file of a whole system of this course (save_system writes one)"
        )
    try:
        c = dict(text["system"])
        parts = {
            "unet": UNetConfig(**c["unet"]),
            "vae": VAEConfig(**c["vae"]),
            "text": tuple(TextConfig(**t) for t in c["text"]),
        }
        return SystemConfig(**{**c, **parts})
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as e:  # ValueError: also our own OptionError
        raise CheckpointError(
            f"{path}: no plan of a system that can be built ({str(e)[:200]}): the file is damaged, get it again"
        ) from e


# ---------------------------------------------------------------- what ships


def shipped(name: str) -> Path | None:
    """The file of the system that ships under this name, or None. Raises CheckpointError if that file is damaged."""
    path = data_folder() / "weights" / f"{name}.safetensors"
    if Path(name).name != name or not os.path.isfile(path):
        return None
    return path if load_tensors(path)[1].get("kind") == KIND else None


def all_shipped() -> list[str]:
    """Names of the whole systems that ship; a damaged file is passed over."""
    names = []
    for path in sorted((data_folder() / "weights").glob("*.safetensors")):
        try:
            names += [path.stem] if shipped(path.stem) else []
        except CheckpointError:
            pass
    return names


# ---------------------------------------------------------------- the tokenizer as JSON


def _describe(tokenizer):
    """None stands for CLIP's own, which ships beside."""
    if tokenizer is tokenize:
        return None
    if not isinstance(tokenizer, Tokenizer):
        raise OptionError(
            f"the tokenizer {tokenizer!r:.80} cannot be written to a file: use a text.Tokenizer"
        )
    start, end = map(tokenizer.bpe.id_to_token, (tokenizer.start, tokenizer.end))
    return {"json": tokenizer.bpe.to_str(), "start": start, "end": end, "length": tokenizer.length}


def _tokenizer(entry):
    if entry is None:
        return None
    if not str(entry["json"]).startswith("{"):
        raise ValueError("its tokenizer is no JSON")  # a path would be opened
    return Tokenizer(entry["json"], entry["start"], entry["end"], entry["length"])
