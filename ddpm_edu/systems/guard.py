"""When a run cannot go on: memory that ends, steps that are no numbers any more. Notebook 11.

Each becomes one plain error. `pipeline` wraps what it runs in these.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..diffusion import Step
from ..errors import ResourceError, SamplingError, memory_ended, warn
from .memory import held, memory_needed
from .system import StableDiffusion

WAYS_OUT = (
    "choose a smaller size, fewer pictures at a time, bfloat16 instead of float32, or decode with "
    "tiled=True"
)
# Bytes a pixel, several times what drawing with SDXL takes: with so much free no estimate is made,
# which would take seconds.
PLENTY = 16 * 1024


def make_room(sd: StableDiffusion, x: Tensor) -> None:
    """Before sd draws latents x: on a GPU that is short of memory, move the text encoders away.

    They work on the CPU from then on. A warning where that is too little, on any device.
    """
    weight = next(sd.unet.parameters())
    size = tuple(side * sd.vae.factor for side in x.shape[2:])
    free = free_memory(weight.device)
    if free is None or free > PLENTY * len(x) * size[0] * size[1]:
        return
    needed = memory_needed(sd.config, weight.dtype, size, len(x)) - held(sd)
    if needed > free and weight.device.type == "cuda":
        sd.text.to("cpu")
        torch.cuda.empty_cache()
        free = free_memory(weight.device)
    if needed > free:
        warn(
            f"about {needed / 2**30:.1f} GiB will be needed and {free / 2**30:.1f} GiB are free: "
            f"{WAYS_OUT}"
        )


def free_memory(device) -> int | None:
    """Bytes that can still be allocated; None where nothing says so."""
    if device.type == "cuda":  # what torch keeps but does not use counts as free
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(z.split()[1]) for z in lines if z.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def within_memory(call: Callable):
    """call(); where memory ends ResourceError, after all that call had allocated is free again."""
    try:
        return call()
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not memory_ended(error):
            raise
        cause = str(error).splitlines()[0] if str(error) else "no more is said"
    # outside of `except`: the error holds the tensors of its frames
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    raise ResourceError(
        f"out of memory ({cause}): {WAYS_OUT}. The models are still loaded and can be used"
    )


def watched(steps: Iterator[Step], total: int) -> Iterator[Step]:
    """Pass Steps on; stop where memory ends and at a Step that is not finite.

    On a GPU the answer is read one step later, so that nothing waits.
    """
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
    answer = x.isfinite().all().to("cpu", non_blocking=x.is_cuda)  # mps has no event to ask later
    event = torch.cuda.Event() if x.is_cuda else None
    if event:
        event.record()
    return answer, event


def _require(where, answer, event):
    if event:
        event.synchronize()
    if not answer:
        raise SamplingError(
            f"NaN or infinity came up in {where}: float16 overflows easily, use bfloat16 or "
            "float32; in float32 the weights are broken or guidance is far too large"
        )
