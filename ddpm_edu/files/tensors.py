"""Files of tensors: safetensors in and out, 8 bits, what a wrong file is. Notebook 11.

A safetensors file is a header in JSON and raw numbers, nothing that could run code. What else
there is to say travels in its metadata as JSON. The weights that ship are packed besides: `.xz`.
"""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

try:
    import lzma
except ImportError:  # a few Pythons have none
    lzma = None

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, OptionError, whole
from ..paths import replacing

MOST_HEADER = 10_000_000  # bytes; SDXL's names take 0.3 MB, and a header is read whole
MOST_NAMES = 50_000  # SDXL with its averages has 4,195
PIECE = 1 << 25  # bytes of a file in memory at a time while its numbers are converted
SMALLEST = 2048  # numbers: smaller tensors (norms, biases) weigh little and stay finer than 8 bits
MOST_PACKED = 1 << 28  # bytes that a .xz may unpack to; what is larger is not packed
MOST_HALF = 60000.0  # a little below the largest float16, 65504


# ---------------------------------------------------------------- out and in


def save_tensors(path, tensors: dict[str, Tensor], meta: dict | None = None) -> None:
    """Write {name: tensor} and `meta` (JSON-able) to a safetensors file, all or nothing.

    A path that ends in .xz is packed: 8-bit weights lose about an eighth, without loss.
    Whoever is interrupted, by an error or by kill -9, finds the previous file whole.
    Raises OptionError for meta, CheckpointError if the file cannot be written.
    """
    try:
        text = json.dumps(dict(meta or {}))
    except (TypeError, ValueError, RecursionError) as e:
        raise OptionError(f"meta is no JSON ({e}): pass a dict of texts, numbers, lists, dicts")
    cpu, seen = {}, set()
    for name, t in tensors.items():
        t = t.detach().to("cpu").contiguous()
        tied = t.untyped_storage().data_ptr() in seen  # tied weights are written twice
        cpu[name] = t.clone() if tied else t
        seen.add(cpu[name].untyped_storage().data_ptr())
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            if _is_packed(path):
                Path(part).write_bytes(lzma.compress(save_bytes(cpu, {"ddpm_edu": text})))
            else:
                save_file(cpu, part, metadata={"ddpm_edu": text})
    except (OSError, ValueError, SafetensorError) as e:
        remedy = "is the folder writable and the disk not full?"
        raise CheckpointError(f"{path}: could not be written ({e}): {remedy}") from e


def load_tensors(path, dtype: torch.dtype | None = None, names=None):
    """({name: tensor}, meta) of a safetensors file, or of these names only.

    The tensors are views of the file, read when first used: leave the file in place.
    dtype: convert floating numbers, without holding both versions. Raises CheckpointError.
    """
    with reading(path):
        meta = json.loads(header(path).get("__metadata__", {}).get("ddpm_edu", "{}"))
        if not isinstance(meta, dict):
            raise ValueError("the metadata is no JSON object")
        if _is_packed(path):
            return _packed_tensors(path, dtype, names), meta
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in (f.keys() if names is None else names)}
        if dtype and any(t.is_floating_point() and t.dtype != dtype for t in tensors.values()):
            tensors = _convert(path, {name: t.nbytes for name, t in tensors.items()}, dtype)
    return tensors, meta


def _is_packed(path) -> bool:
    return str(path).endswith(".xz")


def _open(path):
    """A file's bytes, unpacked as they are read."""
    if not _is_packed(path):
        return open(path, "rb")
    if lzma is None:
        raise OSError("this Python was built without lzma, use another one")
    return lzma.open(path, format=lzma.FORMAT_XZ)


def _packed_tensors(path, dtype, names):
    with _open(path) as f:
        raw = f.read(MOST_PACKED + 1)
    if len(raw) > MOST_PACKED:
        raise ValueError(f"it unpacks to more than {MOST_PACKED:,} bytes")
    tensors = load_bytes(raw)
    if dtype:
        tensors = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
    return tensors if names is None else {name: tensors[name] for name in names}


def _convert(path, sizes, dtype):
    """Opens the file anew every PIECE bytes, which lets go of the pages that are done with."""
    out, f, mapped = {}, None, 0
    for name, size in sizes.items():
        if f is None or mapped + size > PIECE:
            f, mapped = safe_open(path, framework="pt"), 0
        t = f.get_tensor(name)
        out[name] = t.to(dtype, copy=True) if t.is_floating_point() else t.clone()
        mapped += size
        del t
    return out


def header(path) -> dict:
    """{name: {"dtype", "shape", "data_offsets"}}, and "__metadata__". ValueError for what
    safetensors itself lets pass or reads at length: long headers, a name that stands twice."""

    def once(pairs):
        if len(entries := dict(pairs)) < len(pairs):
            raise ValueError("a name stands twice in it")
        return entries

    with _open(path) as f:
        length = int.from_bytes(f.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError("long header")
        text = f.read(length)
    if (names := text.count(b'"shape"')) > MOST_NAMES:  # counted in no time, parsed in seconds
        raise ValueError(f"{names:,} names, at most {MOST_NAMES:,} are read")
    entries = json.loads(text, object_pairs_hook=once)
    if not isinstance(entries, dict):
        raise ValueError("the header is no JSON object")
    return entries


# ---------------------------------------------------------------- 8 bits


def pack(state: dict[str, Tensor], levels: int = 127) -> dict[str, Tensor]:
    """{name: tensor} in 8 bits: a large w becomes int8 q, `name`, and a scale a row, `name.scale`.

    w ~ scale q, scale = max |w| / levels of every row of the first dimension, q = round(w / scale):
    wrong by scale / 2 at most (Krishnamoorthi 2018, arXiv 1806.08342: symmetric, per channel). q
    runs from -levels to levels: fewer are rougher, and pack smaller as .xz.
    Small tensors become float16, or float32 where that overflows; whole numbers stay.
    """
    whole("levels", levels, 1, 127)
    packed = {}
    for name, w in state.items():
        if w.dtype == torch.int8 or f"{name}.scale" in state:
            raise CheckpointError(f"{name} is int8 already, or {name}.scale is taken: unpack it")
        if not w.is_floating_point():
            packed[name] = w
        elif w.ndim < 2 or w.numel() < SMALLEST:
            fits = not w.numel() or w.abs().max() <= MOST_HALF
            packed[name] = w.to(torch.float16 if fits else torch.float32)
        else:
            w = w.detach().float()
            scale = w.abs().flatten(1).amax(1) / levels
            step = _rows(scale.clamp(min=torch.finfo(torch.float32).tiny), w)
            packed |= {name: (w / step).round().to(torch.int8), f"{name}.scale": scale}
    return packed


def unpack(state: dict[str, Tensor], source="the state") -> dict[str, Tensor]:
    """The inverse of `pack`, up to rounding, in float32; tensors that are not packed stay, half
    ones in float32. CheckpointError for int8 without scales, or with scales that are none."""
    scales = {f"{name}.scale" for name, q in state.items() if q.dtype == torch.int8}
    out = {}
    for name, w in state.items():
        if w.dtype == torch.int8:
            scale = state.get(f"{name}.scale", w)
            if w.ndim < 2 or scale.shape != w.shape[:1] or not scale.is_floating_point():
                cause = f"{name} is int8 {tuple(w.shape)}, {name}.scale not one float a row"
                raise CheckpointError(f"{source}: {cause}: damaged, get it again")
            if not (scale.isfinite() & (scale >= 0)).all():
                cause = f"{name}.scale holds NaN, infinity or negative numbers"
                raise CheckpointError(f"{source}: {cause}: diverged or damaged, use another file")
            out[name] = w.float().mul_(_rows(scale.float(), w))
        elif name not in scales:
            out[name] = w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
    return out


def _rows(scale, w):
    """(rows,) as (rows, 1, ...), to be multiplied with w."""
    return scale.view(-1, *[1] * (w.ndim - 1))


# ---------------------------------------------------------------- wrong files

AGAIN, ITSELF = "fetch or save it again", "fetch the weights themselves"
OTHER = "use the .safetensors file of the same model"
PICKLE = "a pickle (.ckpt, .pt, .bin), which can run any code when it is read, and is refused"
CONVERT = (
    OTHER + ', or convert one that you trust: python -c "import torch, safetensors.torch as s; '
    "x = torch.load('IN.ckpt', map_location='cpu', weights_only=True); "
    "s.save_file(x.get('state_dict', x), 'OUT.safetensors')\""
)
SIGNATURES = [  # how a file begins, what it then looks like, what to do
    (rb"\x80[\0-\x05]|PK\x03\x04.{0,400}data\.pkl|c\w+\n\w+\n|\((d|l)p\d+\n", PICKLE, CONVERT),
    (rb"PK", "a zip archive", "unpack it"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "a packed archive", "unpack it"),
    (
        rb"version https://git-lfs|# xet version",
        "a Git LFS pointer",
        f"`git lfs pull`, or {ITSELF}",
    ),
    (rb"<", "a web page (HTML) or an XML error page, saved by a download", ITSELF),
    (rb"[{\[]", "JSON, an error message or a config", ITSELF),
    (rb"GGUF", "a GGUF file", OTHER),
    (rb"\x89HDF", "an HDF5 file", OTHER),
    (rb"\x93NUMPY", "a NumPy array", OTHER),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF|%PDF", "a picture or a document", ITSELF),
    (rb"\0{64}", "nothing but zeros, a download that never came", AGAIN),
    (rb"[\t\n\r -~][\t\n\r -~\x80-\xff]*\Z", "a text, such as an error message", ITSELF),
    (rb"", "none that is known here", AGAIN),
]


def inside(path, *names) -> Path:
    """The first file of these names in a folder; a path that is no such folder as it is."""
    files = [Path(path) / name for name in names]
    return next((file for file in files if file.is_file()), Path(path))


_UNSOUND = SafetensorError, OSError, EOFError, ValueError, RecursionError, AttributeError, TypeError
if lzma:
    _UNSOUND += (lzma.LZMAError,)


@contextmanager
def reading(path):
    """Whatever a file that cannot be read leads to, as one CheckpointError that says what it is."""
    if not os.path.isfile(path):
        there = "; a folder, or a pipe, is there" if os.path.exists(path) else ""
        raise CheckpointError(f"{path}: no such file; expected safetensors weights{there}")
    try:
        yield
    except PermissionError as e:
        raise CheckpointError(f"{path}: may not be read ({e}); change its permissions") from e
    except _UNSOUND as e:
        if "allocate memory" in str(e):
            raise MemoryError(str(e)) from e
        raise CheckpointError(f"{path}: {what_is_wrong(path, e)}") from e


def what_is_wrong(path, reason="") -> str:
    """What a file that is no sound safetensors file seems to be, and what to do about it."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        head = f.read(1024)
    if size == 0:
        return f"the file is empty; {AGAIN}"
    if _is_packed(path):
        return (
            f"the packed file (.xz) is damaged or holds no safetensors ({reason!s:.200}); {AGAIN}"
        )
    length, starts = int.from_bytes(head[:8], "little"), head[8:9] == b"{"
    if starts and 8 < length <= MOST_HEADER:
        expected = _expected_size(path, length, size)
        if size < expected:
            return f"the file is cut short: {size:,} of {expected:,} bytes; {AGAIN}"
        if size > expected > 0:
            more = f"{size - expected:,} bytes too many follow the {expected:,} of the header"
            return f"{more} (damaged file); {AGAIN}"
        return f"the safetensors header is no sound one (damaged: {str(reason)[:200]}); {AGAIN}"
    if starts and not re.match(rb"[ -~]{8}", head):
        harm = f"far more than any model's (at most {MOST_HEADER:,}): damaged, or made to do harm"
        return f"its header would be {length:,} bytes long, {harm}"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "ignore").encode()
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    what, remedy = next(row[1:] for row in SIGNATURES if re.match(row[0], head, re.DOTALL))
    return f"this is not a safetensors file: it looks like {what}; {remedy}"


def _expected_size(path, length, size) -> int:
    """Bytes the header promises, or 0 if it says no such thing."""
    if size < 8 + length:
        return 8 + length
    try:
        ends = [e["data_offsets"][1] for k, e in header(path).items() if k != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0
