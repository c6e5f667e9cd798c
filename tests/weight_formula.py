"""The weight formula of tests/fixtures/README.md: weights of any size from their names alone, without a file."""

import hashlib
import math
import zlib

import numpy as np
import torch


def u(key, shape):
    """A hash of (key, flat index) spread over [-1, 1): float64 array of this shape."""
    h = np.arange(math.prod(shape), dtype=np.uint32)  # uint32 wraps around, which is the modulo
    h *= np.uint32(2654435761)
    h += np.uint32(zlib.crc32(key.encode()))
    h ^= h >> 16
    h *= np.uint32(2246822519)
    h ^= h >> 13
    h *= np.uint32(3266489917)
    h ^= h >> 16
    return (h / 2**32 * 2 - 1).reshape(shape)


def weight(key, shape):
    """Weight under its original key, float32; `position_ids` int64."""
    if key.endswith("position_ids"):
        return np.arange(math.prod(shape)).reshape(shape)
    if key.endswith("logit_scale"):
        return np.float32(4.6052)
    values = u(key, shape).astype(np.float32)
    if "token_embedding" in key or "position_embedding" in key or "positional_embedding" in key:
        return np.float32(0.05) * values
    if len(shape) >= 2:
        return values * np.float32(math.sqrt(3 / math.prod(shape[1:])))
    return (
        np.float32(0.05) * values
        if key.endswith("bias")
        else np.float32(1) + np.float32(0.1) * values
    )


def tiny_weights(prefix, shapes):
    """{original key: float32 tensor} of a tiny model, rounded to float16 as in the reference, and their sha256."""
    arrays = {
        key: weight(f"{prefix}.{key}", shape).astype(np.float16) for key, shape in shapes.items()
    }
    digest = hashlib.sha256(
        b"".join(arrays[key].astype("<f2").tobytes() for key in sorted(arrays))
    ).hexdigest()
    return {key: torch.from_numpy(a.astype(np.float32)) for key, a in arrays.items()}, digest
