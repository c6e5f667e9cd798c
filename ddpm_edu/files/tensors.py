"""Files of tensors: read safely, written atomically, and said plainly what is wrong with one.

Only safetensors files are read, unless asked otherwise: a header in JSON and raw numbers, nothing that could run code.
Settings travel in its metadata as JSON.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, OptionError
from ..paths import replacing


def save_tensors(path, tensors: dict[str, Tensor], meta: dict | None = None) -> None:
    """Write {name: tensor} and `meta` (JSON-able) to a safetensors file, all or nothing.

    The file is written beside its place and then renamed over it: whoever is interrupted, by an error or by
    kill -9, finds the previous file whole. Raises CheckpointError if the folder cannot be written.
    """
    path = Path(path)
    try:
        text = json.dumps(meta or {})
    except (TypeError, ValueError, RecursionError) as e:
        raise OptionError(
            f"meta for {path} cannot be written as JSON ({e}): pass texts, numbers, lists and dicts of them"
        ) from e
    cpu, seen = {}, set()
    for name, t in tensors.items():
        t = t.detach().to("cpu").contiguous()
        cpu[name] = (
            t.clone() if t.untyped_storage().data_ptr() in seen else t
        )  # tied weights are written twice
        seen.add(cpu[name].untyped_storage().data_ptr())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(cpu, part, metadata={"ddpm_edu": text})
    except (OSError, ValueError, SafetensorError) as e:
        raise CheckpointError(
            f"{path}: could not be written ({e}): is the folder writable and the disk not full?"
        ) from e


MOST_HEADER = 25_000_000  # bytes; the names of SDXL take 0.3 MB, and a header is read whole before anything is known
PIECE = 1 << 25  # bytes of a file in memory at a time while its numbers are converted


def load_tensors(
    path, allow_pickle: bool = False, dtype: torch.dtype | None = None, names=None
) -> tuple[dict[str, Tensor], dict]:
    """({name: tensor}, meta) from a safetensors file. Raises CheckpointError, saying what the file looks like.

    The tensors are views of the file, read when first used: leave the file in place. dtype: convert what is not
    whole numbers, without holding both versions.  allow_pickle: read a pickle (.ckpt, .pt, .bin) too, by PyTorch's
    reader that knows tensors and runs nothing; a pickle that holds more is still refused.  names: of these tensors only.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise CheckpointError(
            f"{path}: no such file, or none that may be seen; expected weights in the .safetensors format there"
        )
    try:
        if allow_pickle and is_pickle(path):
            tensors = _read_pickle(path)
            tensors = tensors if names is None else {name: tensors[name] for name in names}
            return {
                k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in tensors.items()
            }, {}
        _check_header(path)
        tensors, metadata = _map(path, names)
        meta = json.loads(metadata.get("ddpm_edu", "{}"))
        if not isinstance(meta, dict):
            raise ValueError("the metadata is no JSON object")
    except PermissionError as e:
        raise CheckpointError(f"{path}: may not be read ({e}); change its permissions") from e
    except (SafetensorError, OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: {what_is_wrong(path, e)}") from e
    if dtype and any(t.is_floating_point() and t.dtype != dtype for t in tensors.values()):
        tensors = _convert(path, {name: t.nbytes for name, t in tensors.items()}, dtype)
    return tensors, meta


def _map(path, names=None):
    with safe_open(path, framework="pt") as f:
        return {
            name: f.get_tensor(name) for name in (f.keys() if names is None else names)
        }, f.metadata() or {}


def _convert(path, sizes, dtype):
    """Read and convert tensors of these sizes; the file is opened anew every PIECE bytes, which lets go of the pages that are done with."""
    out, f, mapped = {}, None, 0
    for name, size in sizes.items():
        if f is None or mapped + size > PIECE:
            f, mapped = safe_open(path, framework="pt"), 0
        t = f.get_tensor(name)
        out[name] = t.to(dtype, copy=True) if t.is_floating_point() else t.clone()
        mapped += size
        del t
    return out


def _check_header(path):
    """ValueError for what safetensors itself lets pass, or reads at length: long headers, and a name that stands twice."""
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError("long header")
        json.loads(f.read(length), object_pairs_hook=_once)


def _once(pairs):
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"the name {name[:80]} stands twice in it")
        seen.add(name)
    return dict(pairs)


def is_pickle(path) -> bool:
    """True if the file begins like a pickle, bare or zipped as PyTorch does it, and not like a safetensors file."""
    with open(path, "rb") as f:
        head = f.read(
            9
        )  # a safetensors header of 640 bytes begins like a pickle: then its "{" tells
    return head[:1] == b"\x80" and head[8:] != b"{" or head[:4] == b"PK\x03\x04"


def _read_pickle(path):
    """{name: tensor} from a pickle, by torch.load(weights_only=True): old versions of that could be made to run code."""
    version = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        raise CheckpointError(
            f"{path}: pickles are read with torch 2.10 or newer only, this is {torch.__version__}: "
            "update torch, or use the .safetensors file of the same model"
        )
    try:
        with open(path, "rb") as f:
            mapped = (
                f.read(2) == b"PK" and path.suffix != ".safetensors"
            )  # by that name torch would take it for one
            f.seek(0)
            state = torch.load(
                path if mapped else f, map_location="cpu", weights_only=True, mmap=mapped
            )
    except Exception as e:  # many kinds: what a pickle may hold is unlimited
        reason = next((line for line in str(e).splitlines() if "GLOBAL" in line), str(e)).strip()[
            :200
        ]
        raise CheckpointError(
            f"{path}: this pickle holds more than weights, or is damaged; nothing in it was run ({reason}). "
            "Use the .safetensors file of the same model"
        ) from e
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(v, Tensor) for v in state.values())
    ):
        raise CheckpointError(
            f"{path}: this pickle holds no plain set of named tensors; use the .safetensors file of the same model"
        )
    return state


def what_is_wrong(path, reason="") -> str:
    """One sentence: what a file that is no sound safetensors file seems to be, and what to do about it."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        head = f.read(512)
    text = head.lstrip().lower()
    if size == 0:
        return "the file is empty; fetch or save it again"
    header = int.from_bytes(head[:8], "little")
    if header > MOST_HEADER and head[8:9] == b"{":
        return f"its header would be {header:,} bytes long, far more than any model's (at most {MOST_HEADER:,} are read): damaged, or made to do harm"
    if header > 8 and head[8:9] == b"{":  # before the pickle: a header of 640 bytes begins like one
        expected = _expected_size(path, header, size)
        if expected and size < expected:
            return f"the file is cut short: {size:,} of {expected:,} bytes; fetch or save it again"
        if expected and size > expected:
            return f"{size - expected:,} bytes too many follow the {expected:,} that the header speaks of (damaged file); fetch or save it again"
        return f"the safetensors header does not fit the data (damaged file: {str(reason)[:200]}); fetch or save it again"
    if is_pickle(path):
        return (
            "this looks like a pickle (.ckpt, .pt, .pth); reading one can run any code hidden in it, so it is refused. "
            "Use the .safetensors file of the same model"
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "this looks like a web page, probably an error page saved by a download; fetch the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights; run `git lfs pull` or fetch the file itself"
    return f"this is not a safetensors file (it begins with {head[:8]!r}); fetch or save it again"


def _expected_size(path, header, size):
    """Bytes the header promises, or None if it says no such thing."""
    if size < 8 + header:
        return 8 + header
    with open(path, "rb") as f:
        f.seek(8)
        try:
            entries = json.loads(f.read(header))
            return (
                8
                + header
                + max(
                    (e["data_offsets"][1] for k, e in entries.items() if k != "__metadata__"),
                    default=0,
                )
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None
