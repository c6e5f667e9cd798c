"""The typed errors, and every check of an argument that raises one. Notebook 00.

A message names the thing, the cause and the remedy. A check returns what it has checked.
"""

import os
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

PREDICTIONS = ("eps", "x_0", "v", "flow")
WEIGHTS = ("none", "snr", "snr_plus_1", "truncated", "min_snr")  # of the loss
MOST = 2**16  # of a size, unless a field says otherwise
MOST_PROMPTS = 1024  # in one call
FLOATS = "pass floats in [-1, 1]; from_uint8 converts bytes"


class DdpmEduError(Exception):
    """Base of every error raised on purpose by ddpm_edu."""


class ScheduleError(DdpmEduError, ValueError):
    """A noise schedule that cannot be one, or a timestep outside it."""


class ShapeError(DdpmEduError, ValueError):
    """Tensors whose shapes do not fit together."""


class OptionError(DdpmEduError, ValueError):
    """An option outside its range: steps, eta, guidance, a size, a name."""


class DataError(DdpmEduError):
    """A dataset that is missing, damaged, empty or out of range."""


class CheckpointError(DdpmEduError):
    """A file of weights that is missing, damaged, unsafe or for another model."""


class TrainingError(DdpmEduError):
    """Training that cannot go on, for example a loss that is not a number."""


class SamplingError(DdpmEduError):
    """A run that brings no picture: NaN in a step, or a picture of one colour."""


class ResourceError(DdpmEduError):
    """The machine has too little for what was asked: memory, mostly."""


# ---------------------------------------------------------------- one value: OptionError


def in_range(name, value, low, high, hint="", kind="number", types=(int, float)):
    """A number in [low, high]; infinity only where high is infinite."""
    if isinstance(value, types) and not isinstance(value, bool) and low <= value <= high:
        return value
    remedy = f"pass a {kind} from {low} to {high}" + (hint and f" ({hint})")
    raise OptionError(f"{name} = {value!r:.40} is out of range: {remedy}")


def whole(name, value, low, high=MOST, hint=""):
    """A whole number in [low, high]."""
    return in_range(name, value, low, high, hint, "whole number", int)


def one_of(name, value, choices):
    """One of these names."""
    if not isinstance(value, (str, type(None))) or value not in choices:
        known = ", ".join(str(choice) or "''" for choice in choices)
        raise OptionError(f"{name} = {value!r:.40} is not known: choose one of {known}")
    return value


def multiple(name, value, part, of):
    """A multiple of `of`, which is called `part`: a width of its heads, say."""
    if value % of:
        raise OptionError(f"{name} = {value} is not a multiple of {part} = {of}: change one")
    return value


def checked_prompts(prompts) -> list[str]:
    """A list of 1 to MOST_PROMPTS texts, out of a list or one string."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(prompts, (list, tuple)):
        raise OptionError(f'prompts = {prompts!r:.80}: pass a list of strings, [""] for no words')
    if not 0 < len(prompts) <= MOST_PROMPTS:
        raise OptionError(f"{len(prompts)} prompts: pass 1 to {MOST_PROMPTS} at a time")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            kind = type(prompt).__name__
            raise OptionError(f'prompt {i} is {prompt!r:.80}, a {kind}: pass a string, "" for none')
    return list(prompts)


@contextmanager
def needs(package, what):
    """with needs("transformers", "text encoders"): from transformers import ..."""
    try:
        yield
    except ModuleNotFoundError as e:
        if e.name != package:
            raise
        remedy = 'pip install -c constraints.txt -e ".[sd]"'
        raise OptionError(f"{what} need {package}, which is not installed: {remedy}") from e


def memory_ended(error: Exception) -> bool:
    """Whether it says that memory ran out: the CPU's, CUDA's or mps's, each in its own words."""
    words = ("out of memory", "allocate memory")
    return isinstance(error, MemoryError) or any(w in str(error) for w in words)


def check_device(device):
    """A device that this PyTorch has."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as e:  # AssertionError: built without CUDA
        cause = str(e).splitlines()[0]
        raise OptionError(f"device = {device!r} is not here ({cause:.100}): use 'cpu'") from None
    return device


def check_writable(path) -> Path:
    """A place where a file can be written: asked before the hours of training, not after."""
    path = Path(path)
    folder = Path(os.path.realpath(path)).parent  # a link is followed when written
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        with tempfile.TemporaryFile(dir=folder):  # rights tell too little: nobody writes in /proc
            return path
    except OSError as e:
        cause = f"{folder} does not exist" if not folder.exists() else e.strerror or e
    raise OptionError(f"{path} cannot be written ({cause}): name another file")


# ---------------------------------------------------------------- fields of a config: OptionError


def sizes(config, **limits) -> None:
    """Fields of a dataclass: whole numbers, or tuples of them, from `least` or (least, most).

    sizes(self, channels=1, mult=(1, 64)). Lists, as JSON has them, become tuples; None passes
    where the field's type says so. Without `most` a size is at most MOST.
    """
    _each(config, whole, limits)


def numbers(config, **limits) -> None:
    """The same for fields that hold any number: numbers(self, lr=(0, 10), scale=(1e-6, 1e6))."""
    _each(config, in_range, limits)


def one_a_level(config, *names) -> None:
    """Tuple fields of a network that has levels: as many entries in each, at most 8."""
    first = getattr(config, names[0])
    for name in names:
        value = getattr(config, name)
        if len(value) != len(first) or len(value) > 8:
            wanted = f"one entry a level, as {names[0]} = {first} has, at most 8"
            raise OptionError(f"{type(config).__name__}.{name} = {value}: pass {wanted}")


def choices(config, **known) -> None:
    """Fields that hold one of some names: choices(self, act=("gelu", "quick_gelu"))."""
    for name, names in known.items():
        one_of(f"{type(config).__name__}.{name}", getattr(config, name), names)


def parts(config, **kinds) -> None:
    """Fields that hold a config, or a tuple of them; a dict, as JSON has it, becomes one.

    parts(self, unet=UNetConfig, text=TextConfig).
    """
    for name, kind in kinds.items():
        made = [_part(field, value, kind) for field, value in _entries(config, name)]
        object.__setattr__(config, name, tuple(made) if _is_tuple(config, name) else made[0])


def _part(field, value, kind):
    if isinstance(value, dict):
        try:
            value = kind(**value)
        except TypeError as e:
            raise OptionError(f"{field} is no {kind.__name__} ({e})") from None
    if not isinstance(value, kind):
        raise OptionError(f"{field} = {value!r:.80} is no {kind.__name__}: pass one")
    return value


def _each(config, check, limits):
    for name, limit in limits.items():
        for field, value in _entries(config, name):
            check(field, value, *(limit if isinstance(limit, tuple) else (limit,)))


def _is_tuple(config, name) -> bool:
    return str(config.__dataclass_fields__[name].type).startswith("tuple")


def _entries(config, name) -> list[tuple]:
    """[(what a message calls it, value)] of one field; several where it is a tuple."""
    field, value = f"{type(config).__name__}.{name}", getattr(config, name)
    if value is None and "None" in str(config.__dataclass_fields__[name].type):
        return []
    if not _is_tuple(config, name):
        return [(field, value)]
    if not isinstance(value, (tuple, list)) or not value:
        raise OptionError(f"{field} = {value!r:.40}: pass a tuple of at least one, such as (1, 2)")
    object.__setattr__(config, name, tuple(value))
    return [(f"{field}[{i}]", entry) for i, entry in enumerate(value)]


# ---------------------------------------------------------------- tensors: ShapeError, DataError


def fits(name, x, shape, whose, hint="", of=()) -> None:
    """ShapeError unless the tensor x has `shape`; a name in it stands for any size but 0.

    fits("x_t", x_t, ("B", 4, "H", "W"), "this UNet takes"). of: a divisor for each size.
    """
    if not hasattr(x, "is_floating_point"):
        got = f"is {'missing' if x is None else 'no tensor but a ' + type(x).__name__}"
    else:
        got = f"has shape {tuple(x.shape)}"
        agree = (n > 0 if isinstance(want, str) else n == want for n, want in zip(x.shape, shape))
        divide = (n % d == 0 for n, d in zip(x.shape, of))
        if len(x.shape) == len(shape) and all(agree) and all(divide):
            return
    wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    raise ShapeError(f"{name} {got}: {whose} {wanted}" + (hint and f", {hint}"))


def pixels(name, x, beyond=0.0) -> None:
    """`within`, and a warning if all lie in [0, 1]: what `ToTensor` gives would be learned, or
    scored, at half contrast."""
    low, high = within(name, x, beyond)
    if low >= 0 and high > low:
        warn(f"{name} have no number below 0: if in [0, 1] instead of [-1, 1], pass 2 * x - 1")


def within(name, x, beyond=0.0) -> tuple[float, float]:
    """The smallest and largest number of x (N, ...); DataError unless it holds floats in [-1, 1],
    or up to `beyond` outside it."""
    if len(x) == 0:
        raise DataError(f"{name}: there are none, pass at least one")
    floats(name, x)
    low, high = (bound.item() for bound in x.detach().aminmax())
    if not (low >= -1 - beyond and high <= 1 + beyond):  # NaN fails too
        wrong = ~(x.detach().flatten(1).abs() <= 1 + beyond).all(1)
        where = f"from {low:.4g} to {high:.4g}, first in {name}[{wrong.nonzero()[0, 0]}]"
        raise DataError(f"{name} run {where}: {FLOATS}")
    return low, high


def floats(name, x) -> None:
    """Raise DataError unless x is a dense tensor of floats: bytes, say, are no picture."""
    kind = getattr(x, "dtype", type(x).__name__)
    if not hasattr(x, "is_floating_point") or not x.is_floating_point():
        raise DataError(f"{name} have type {kind}: {FLOATS}")
    if "strided" not in str(x.layout):
        raise DataError(f"{name} have the layout {x.layout}: pass {name}.to_dense()")


def warn(message) -> None:
    """A warning that points at the line outside of this package which led here."""
    frame, level = sys._getframe(1), 2
    inside = ("ddpm_edu.", "torch.")  # torch: its decorators, such as no_grad
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def token_ids(ids, vocab, length) -> None:
    """ShapeError unless ids are (B, up to length) long; DataError unless they lie in 0..vocab-1."""
    fits("ids", ids, ("B", "L"), "this encoder takes")
    if ids.shape[1] > length or "int64" not in str(ids.dtype):
        has = f"shape {tuple(ids.shape)} and type {ids.dtype}"
        raise ShapeError(f"ids have {has}: this encoder takes (B, up to {length}) of torch.int64")
    if ids.is_meta or not ids.numel():
        return
    outside = ids[(ids < 0) | (ids >= vocab)]
    if len(outside):
        what = f"token id {outside[0].item()} is not in this encoder's vocabulary, 0 to {vocab - 1}"
        raise DataError(f"{what}: is the tokenizer another model's?")


def code_numbers(codes, shape, book, most=MOST) -> None:
    """ShapeError unless codes are whole numbers of this shape, at most `most` in a row;
    OptionError unless they lie in 0..book-1."""
    fits("codes", codes, shape, "this book takes whole numbers")
    if codes.shape[1] > most or "int64" not in str(codes.dtype):
        has = f"shape {tuple(codes.shape)} and type {codes.dtype}"
        raise ShapeError(f"codes have {has}: pass up to {most} in a row, of torch.int64")
    if codes.is_meta:
        return
    low, high = (bound.item() for bound in codes.aminmax())
    if low < 0 or high >= book:
        cause = f"codes run from {low} to {high}: those of this book are 0 to {book - 1}"
        raise OptionError(f"{cause}: are they of another book?")
