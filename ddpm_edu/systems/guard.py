"""When a run cannot go on: memory that ends, and steps that are no numbers any more. Each becomes one plain error."""

import warnings
from collections.abc import Callable, Iterator

import torch

from ..diffusion import Step
from ..errors import ResourceError, SamplingError
from .memory import memory_needed
from .system import StableDiffusion

WAYS_OUT = "choose a smaller size, fewer pictures at a time, bfloat16 instead of float32, or decode with tiled=True"

PLENTY = (
    16 * 1024
)  # bytes a pixel, several times what drawing with SDXL takes: no need then for an estimate, which takes seconds


def make_room(sd: StableDiffusion, size: tuple[int, int], pictures: int, guidance: bool) -> None:
    """On a GPU that is short of memory, move the text encoders to the CPU, where they then work; warn if that is too little."""
    weight = next(sd.unet.parameters())
    if (
        weight.device.type != "cuda"
        or free_memory(weight.device) > PLENTY * pictures * size[0] * size[1]
    ):
        return
    held = sum(p.numel() * p.element_size() for p in sd.parameters())
    needed = memory_needed(sd.config, weight.dtype, size, pictures, guidance) - held
    if needed > free_memory(weight.device):
        sd.text.to("cpu")
        torch.cuda.empty_cache()
    if needed > (free := free_memory(weight.device)):
        warnings.warn(
            f"about {needed / 2**30:.1f} GiB will be needed and {free / 2**30:.1f} GiB are free: {WAYS_OUT}",
            stacklevel=4,
        )


def free_memory(device) -> int:
    """Bytes that can still be allocated on a GPU, those included that torch keeps but does not use."""
    return (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )


def within_memory(call: Callable):
    """call(), with running out of memory told as ResourceError, after everything that call had allocated is free again."""
    try:
        return call()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        said = str(error).splitlines()[0] if str(error) else "out of memory"
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in said:
            raise
    torch.cuda.empty_cache()  # outside of `except`: the error itself holds on to the tensors of its frames
    raise ResourceError(
        f"out of memory ({said}): {WAYS_OUT}. The models are still loaded and can be used"
    )


def watched(steps: Iterator[Step], total: int) -> Iterator[Step]:
    """Pass Steps on and stop at one that is not finite. On a GPU the answer is read one step later, so that nothing waits."""
    number, asked = 0, []
    while (step := within_memory(lambda: next(steps, None))) is not None:
        number += 1
        asked.append((f"step {number} of {total} (t = {step.t:g})", *_finite(step.x_prev)))
        while len(asked) > step.x_prev.is_cuda:
            _require(*asked.pop(0))
        yield step
    for question in asked:
        _require(*question)


def _finite(x):
    """(answer, event): whether x is finite, once the event has come; a GPU works on meanwhile."""
    answer, event = (
        x.isfinite().all().to("cpu", non_blocking=True),
        torch.cuda.Event() if x.is_cuda else None,
    )
    if event:
        event.record()
    return answer, event


def _require(where, answer, event):
    if event:
        event.synchronize()
    if not answer:
        raise SamplingError(
            f"NaN or infinity came up in {where}: float16 overflows easily, use bfloat16 or float32; "
            "in float32 the weights are broken or guidance is far too large"
        )
