"""What grader and learner's process say to each other, as plain data. All notebooks.

A message is a JSON object behind its length in four bytes. Tensors travel as dtype, shape and
bytes, a function as a number by which the other side calls it. Never a pickle: what comes from a
learner's process may be anything, and decoding it must run no code of the learner's.
"""

import base64
import json
import os
import select
import struct
import time

import numpy as np
import torch

LIMIT = 8 * 2**20  # bytes of a message
FORMS = ("float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 "
         "float8_e4m3fn float8_e5m2").split()  # fmt: skip


class WireError(Exception):
    """A message that is too large, cut short, late or none; `name` says which."""

    def __init__(self, name, message=""):
        super().__init__(message or name)
        self.name = name


def encode(value, functions=None):
    """JSON-able data of numbers, texts, tensors, arrays, lists, tuples and dicts of them.

    functions: a list that functions are appended to; they travel as their place in it.
    Anything else travels as the name of its type only.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if value is ...:
        return {"ellipsis": True}
    if isinstance(value, list):
        return [encode(v, functions) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(v, functions) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, functions), encode(v, functions)] for k, v in value.items()]}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        return _packed(torch.from_numpy(np.array(value)), numpy=True)
    if isinstance(value, torch.Tensor):
        return _packed(value)
    if callable(value) and functions is not None:
        functions.append(value)
        return {"function": len(functions) - 1}
    return {"other": type(value).__name__[:40]}


def _packed(x, numpy=False):
    form = str(x.dtype).removeprefix("torch.")
    if form not in FORMS or x.layout is not torch.strided or x.is_meta:
        return {"other": f"tensor of {form}"}
    if x.numel() * x.element_size() > LIMIT // 2:
        raise WireError("too large", f"a tensor of shape {tuple(x.shape)} is too large")
    flat = x.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if x.numel() else b""
    packed = base64.b64encode(raw).decode()
    return {"tensor": form, "shape": list(x.shape), "bytes": packed, "numpy": numpy}


class Other:
    """Stands for a value that is no plain data; its type has the same name."""


def decode(data, function=None):
    """What `encode` was given; function(number) makes something callable of a function's number.

    Raises ValueError, TypeError, LookupError, RuntimeError or RecursionError for anything else.
    """
    if data is None or type(data) in (bool, int, float, str):
        return data
    if isinstance(data, list):
        return [decode(v, function) for v in data]
    if "ellipsis" in data:
        return ...
    if "tuple" in data:
        return tuple(decode(v, function) for v in data["tuple"])
    if "dict" in data:
        return {decode(k, function): decode(v, function) for k, v in data["dict"]}
    if "tensor" in data:
        return _unpacked(data)
    if "function" in data and function:
        return function(int(data["function"]))
    return type(str(data["other"])[:60], (Other,), {})()


def _unpacked(data):
    if data["tensor"] not in FORMS:
        raise ValueError("no dtype")
    form, raw = getattr(torch, data["tensor"]), bytearray(base64.b64decode(data["bytes"]))
    flat = torch.frombuffer(raw, dtype=form) if raw else torch.empty(0, dtype=form)
    x = flat.reshape([int(n) for n in data["shape"]])
    return x.numpy() if data.get("numpy") else x


def send(pipe: int, message: dict) -> None:
    """Write one message. WireError if it is too large, or nobody reads it any more."""
    try:
        raw = json.dumps(message).encode()
    except (ValueError, RecursionError) as error:  # an int of 5,000 digits
        raise WireError("too large", f"the answer cannot be written down ({error})") from None
    if len(raw) > LIMIT:
        raise WireError("too large", "the answer is too large")
    rest = memoryview(struct.pack(">I", len(raw)) + raw)
    try:
        while rest:
            rest = rest[os.write(pipe, rest) :]
    except OSError as error:
        raise WireError("ended", str(error)) from None


def receive(pipe: int, deadline: float | None = None) -> dict:
    """Read one message. WireError at the deadline (of time.monotonic), at the end, for rubbish."""
    (size,) = struct.unpack(">I", _read(pipe, 4, deadline))
    if size > LIMIT:
        raise WireError("too large", "the answer is too large")
    try:
        message = json.loads(_read(pipe, size, deadline))
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise WireError("rubbish", "the process did not speak as it should")
    return message


def _read(pipe: int, size: int, deadline: float | None) -> bytes:
    parts, left = [], size
    while left:
        if deadline is not None:
            wait = max(0.0, deadline - time.monotonic())
            if not select.select([pipe], [], [], wait)[0]:
                raise WireError("too slow")
        try:
            part = os.read(pipe, min(left, 2**20))
        except OSError as error:
            raise WireError("ended", str(error)) from None
        if not part:
            raise WireError("ended")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
