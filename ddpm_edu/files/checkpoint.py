"""Weights and models: checked against each other, filled strictly, and whole models in one file.

A training checkpoint and a shipped model are both one safetensors file (tensorfile.py).
"""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, known_prediction
from ..networks.gaussian import GaussianPrior
from ..networks.unet import SpaceToDepth, UNet, UNetConfig
from ..paths import data_folder
from ..schedule import Schedule
from .int8 import pack, squeeze, unpack
from .names import to_ours
from .recognise import count, looks_like
from .tensors import load_tensors, save_tensors

PARTS = {
    "UNet": "unet",
    "VAE": "vae",
    "TextEncoder": "text",
}  # models whose weights come in several layouts


def load_state(model: nn.Module, state: dict[str, Tensor], source="the state") -> None:
    """Fill `model` from {name: tensor}, strictly and all or nothing.

    A UNet, VAE or TextEncoder takes the names of any layout (to_ours). A model on the meta device takes the
    tensors themselves, no copies, in their dtype; another one is filled with their values. CheckpointError as from
    `check_state`, and for NaN or infinity; then nothing is filled.
    """
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{source}: not a plain {{name: tensor}}, nothing was filled")
    part = PARTS.get(type(model).__name__)
    try:
        ours = to_ours(part, state) if part else state
    except CheckpointError as e:
        raise CheckpointError(f"{source} does not fit this {type(model).__name__}: {e}") from None
    unused = model.unused(ours) if hasattr(model, "unused") else ()
    ours = {k: v for k, v in ours.items() if k not in unused}
    check_state(model, ours, source, looks_like(state) if part else "")
    check_finite(ours, source)
    model.load_state_dict(
        ours, strict=True, assign=any(v.is_meta for v in model.state_dict().values())
    )


def check_state(model: nn.Module, state: dict[str, Tensor], source="the state", seems="") -> None:
    """CheckpointError unless {name: tensor} fits `model`; it counts and names what is missing, extra or mis-shaped,
    and says what the state `seems` to be."""
    own = model.state_dict()
    problems = []
    for label, names in (
        ("missing", own.keys() - state.keys()),
        ("unexpected", state.keys() - own.keys()),
        (
            "of another shape",
            {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape},
        ),
    ):
        if names:
            problems.append(count(names).replace(" ", f" {label} ", 1))
    if problems:
        seems = f" This looks like {seems}." if seems else ""
        raise CheckpointError(
            f"{source} does not fit this {type(model).__name__}: {'; '.join(problems)}.{seems} Is it for another model or config?"
        )


def check_finite(tensors: dict[str, Tensor], source) -> None:
    """CheckpointError that names the tensors with NaN or infinity; those on the meta device hold no numbers."""
    broken = [
        k for k, v in tensors.items() if v.is_floating_point() and not v.is_meta and not _finite(v)
    ]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} tensors hold NaN or infinity ({', '.join(broken[:3])}): "
            "the training diverged or the file is damaged, use another one"
        )


def _finite(x: Tensor) -> bool:
    """The extremes of a piece tell, and need no memory: NaN is the extreme of whatever holds it."""
    pieces = (
        piece.float() if x.itemsize == 1 else piece for piece in x.flatten().split(1 << 22)
    )  # 8 bits know no order
    return all(
        bool(torch.stack(piece.aminmax()).isfinite().all()) for piece in pieces if piece.numel()
    )


# ---------------------------------------------------------------- models that ship


class Pretrained(NamedTuple):
    """A trained model with what is needed to sample it: model(x_t, t, cond), its schedule, what it predicts, and its card."""

    model: nn.Module
    schedule: Schedule
    predict: str
    meta: dict


def describe(model: nn.Module) -> dict:
    """The plan of a denoiser as JSON: its class, its config or settings, and the model it wraps, if any."""
    kind, plan = type(model).__name__, {}
    if isinstance(model, UNet):
        plan = {"config": dataclasses.asdict(model.config)}
    elif isinstance(model, SpaceToDepth):
        plan = {"factor": model.factor}
    elif isinstance(model, GaussianPrior):
        plan = {
            "shape": list(model.shape),
            "classes": model.classes,
            "parts": model.parts,
            "rank": model.rank,
        }
    return {
        "kind": kind,
        **plan,
        **(
            {"model": describe(model.model)}
            if isinstance(model, (SpaceToDepth, GaussianPrior))
            else {}
        ),
    }


def build(plan: dict, schedule: Schedule) -> nn.Module:
    """The denoiser that `describe` described, without weights. Raises KeyError or TypeError if the plan is none."""
    if plan["kind"] == "UNet":
        return UNet(UNetConfig(**plan["config"]))
    if plan["kind"] == "SpaceToDepth":
        return SpaceToDepth(build(plan["model"], schedule), int(plan["factor"]))
    if plan["kind"] == "GaussianPrior":
        return GaussianPrior(
            build(plan["model"], schedule),
            schedule,
            tuple(plan["shape"]),
            plan["classes"],
            plan["parts"],
            plan["rank"],
        )
    raise KeyError(plan["kind"])


def save_pretrained(
    path,
    model: nn.Module,
    schedule: Schedule,
    predict: str,
    meta: dict | None = None,
    dtype=torch.float32,
) -> None:
    """Write a denoiser of `build`'s kinds with its plan, schedule and `meta` in one file. See load_pretrained.

    dtype: of the weights in the file; torch.int8 packs them (int8.py), a quarter of float32.
    """
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors = (
        squeeze(pack(state)) if dtype == torch.int8 else {k: v.to(dtype) for k, v in state.items()}
    )
    save_tensors(
        path,
        {**tensors, "schedule.beta": schedule.beta},
        {**(meta or {}), "model": describe(model), "predict": predict},
    )


def _check_shape(shape) -> None:
    if (
        not isinstance(shape, list)
        or len(shape) != 3
        or not all(isinstance(n, int) and 1 <= n <= 8192 for n in shape)
    ):
        raise ValueError(f"shape = {shape!r:.80} is not [channels, height, width]")


def load_pretrained(name) -> Pretrained:
    """The model in a file that `save_pretrained` wrote, or one that ships with the course by name ("mnist", "cifar10")."""
    path = (
        Path(name)
        if str(name).endswith(".safetensors")
        else data_folder() / "weights" / f"{name}.safetensors"
    )
    if not os.path.isfile(path):
        known = sorted(p.stem for p in (data_folder() / "weights").glob("*.safetensors"))
        raise CheckpointError(
            f"{name}: no such weights (looked at {path}). Shipped with the course: {', '.join(known) or 'none found'}"
        )
    tensors, meta = load_tensors(path)
    try:
        predict, schedule = meta["predict"], Schedule(tensors.pop("schedule.beta"))
        known_prediction(predict)
        model = build(meta["model"], schedule)
        _check_shape(meta.get("shape", [1, 1, 1]))
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as e:  # ValueError: also our own OptionError
        raise CheckpointError(
            f"{path}: a safetensors file, but not a model of this course ({e!r} in its metadata)"
        ) from e
    check_finite(tensors, path)
    load_state(
        model, {k.removeprefix("model."): v for k, v in unpack(tensors, path).items()}, str(path)
    )
    return Pretrained(model.eval().requires_grad_(False), schedule, predict, meta)
