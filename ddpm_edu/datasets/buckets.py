"""Aspect buckets: pictures of one shape together in a batch. Notebook 13.

SDXL's buckets have areas of about 1024 x 1024 pixels and sides in steps of 64, eight units of its
latents (Podell et al. 2023, section 2.3 and appendix I). Ours have about 32 x 32, in steps of 4.
"""

import torch
from torch import Tensor

from ..errors import DataError, in_range, multiple, whole


def buckets(side: int, step: int, widest: float) -> list[tuple[int, int]]:
    """(height, width), tallest first: multiples of step, the largest of area up to side^2.

    Aspects go from 1 : widest to widest : 1. buckets(1024, 64, 4) has (1024, 1024), (960, 1088) ...
    """
    whole("side", side, step, 2**16, f"a multiple of step = {step}")
    multiple("side", side, "step", step)
    in_range("widest", widest, 1, 16)
    widths = range(step, side + 1, step)
    tall = [(side * side // (w * step) * step, w) for w in widths]
    tall = [(h, w) for h, w in tall if h <= widest * w]
    return sorted({*tall, *((w, h) for h, w in tall)}, reverse=True)


def nearest_bucket(sizes: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
    """For each of `sizes` (N, 2) the number of the bucket with the nearest logarithm of aspect."""
    log_aspect = lambda pairs: (pairs[:, 0] / pairs[:, 1]).log()
    own, theirs = log_aspect(sizes.double()), log_aspect(torch.tensor(shapes).double())
    return (own[:, None] - theirs).abs().argmin(1)


def bucket_order(bucket: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """An epoch's order of pictures in which each batch comes from one bucket.

    bucket (N,): each picture's. Pictures that fill no batch are left out this time. DataError where
    a bucket cannot fill a single batch.
    """
    batches = []
    for k in bucket.unique().tolist():
        own = (bucket == k).nonzero()[:, 0]
        if len(own) < batch_size:
            raise DataError(
                f"bucket {k} has {len(own)} pictures, less than one batch of {batch_size}: "
                "take fewer buckets, a smaller batch_size or more pictures"
            )
        own = own[torch.randperm(len(own), generator=generator)]
        batches += own[: len(own) // batch_size * batch_size].split(batch_size)
    order = torch.randperm(len(batches), generator=generator)
    return torch.cat([batches[k] for k in order])


def one_bucket(bucket: Tensor) -> int:
    """The bucket that all share. DataError if there are several: their shapes differ."""
    several = bucket.unique().tolist()
    if len(several) != 1:
        raise DataError(
            f"a batch holds pictures of buckets {several}: take its indices from `order`, which "
            "keeps buckets apart"
        )
    return several[0]
