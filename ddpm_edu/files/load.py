"""`load` and `save`: systems, denoisers, VAEs, CLIPs, classifiers. Notebook 11.

    model, schedule, predict, meta = load("mnist")       a denoiser with all that sampling needs
    sd = load("emoji")                                   a whole system, ready to draw
    save("my.safetensors", model, schedule=schedule, predict="v", dtype=torch.int8)

A file is read in four steps: find it, build its plan on the meta device, where nothing takes room,
compare that with the file's names and shapes, then fill it. A wrong file leaves nothing behind.
"""

import difflib
import os
import re
from dataclasses import asdict, is_dataclass, replace
from inspect import signature
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import (
    PREDICTIONS,
    CheckpointError,
    OptionError,
    ResourceError,
    check_device,
    memory_ended,
    one_of,
    warn,
    whole,
)
from ..networks.classifier import Classifier, ClassifierConfig
from ..networks.clip import CLIP, CLIPConfig
from ..networks.controlnet import (
    SD15_CONTROL,
    SD21_CONTROL,
    SDXL_CONTROL,
    ControlNet,
    ControlNetConfig,
)
from ..networks.dit import DiT, DiTConfig
from ..networks.gaussian import GaussianPrior
from ..networks.gpt import GPT, GPTConfig
from ..networks.lora import without_lora
from ..networks.mlp import MLP
from ..networks.precondition import Preconditioned
from ..networks.prior import Prior, PriorConfig
from ..networks.tokenizer import Tokenizer, tokenize
from ..networks.unet import SpaceToDepth, UNet, UNetConfig
from ..networks.unet_classic import ClassicUNet
from ..networks.vae import VAE, VAEConfig
from ..networks.vq import VQVAE, VQConfig
from ..paths import data_folder
from ..schedule import Schedule
from ..systems.cascade import Cascade, CascadeConfig
from ..systems.codes import CodeConfig, CodeSystem
from ..systems.system import PLANS, StableDiffusion, SystemConfig, build, part_dtype
from . import folder as folders
from . import hub
from .names import CONTROL, MARKS, count, looks_like, size, split_single_file, strange, to_ours
from .tensors import PIECE, header, load_tensors, pack, save_tensors, unpack

# The classes that come in several layouts
LAYERED = {
    "UNet": "unet",
    "ControlNet": "control",
    "VAE": "vae",
    "TextEncoder": "text",
    "CLIP": "clip",
}
WEIGHTS = (".safetensors", ".safetensors.xz")  # of the weights that ship; the first goes first
FORMAT = 1  # of the files that `save` writes; one of another format is refused
MOST_BLOCKS = 2000  # of a plan, before it is built; SDXL has 140


class Pretrained(NamedTuple):
    """A trained denoiser with what sampling it needs: model(x_t, t, cond), its schedule, what it
    predicts, and what its file says beside."""

    model: nn.Module
    schedule: Schedule
    predict: str
    meta: dict


class Known(NamedTuple):
    """A published system: its plan, its hub name, its single files, if any, and their bytes."""

    config: SystemConfig
    hub: str
    files: dict[str, int]


KNOWN = {
    "sd15": Known(
        PLANS["sd15"],
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        {
            "v1-5-pruned-emaonly.safetensors": 4_265_146_304,
            "v1-5-pruned.safetensors": 7_703_324_286,
        },
    ),
    "sd21": Known(
        PLANS["sd21"],
        "stabilityai/stable-diffusion-2-1",
        {"v2-1_768-ema-pruned.safetensors": 5_214_604_494},
    ),
    "sdxl": Known(
        PLANS["sdxl"],
        "stabilityai/stable-diffusion-xl-base-1.0",
        dict.fromkeys(
            ["sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors"], 6_938_078_334
        ),
    ),
    "sdxl-refiner": Known(
        PLANS["sdxl-refiner"],
        "stabilityai/stable-diffusion-xl-refiner-1.0",
        {"sd_xl_refiner_1.0.safetensors": 6_075_981_930},
    ),
    "sd15-inpaint": Known(
        PLANS["sd15-inpaint"],
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        {"sd-v1-5-inpainting.safetensors": 4_270_000_000},  # about
    ),
    "sdxl-inpaint": Known(  # a folder only
        PLANS["sdxl-inpaint"], "diffusers/stable-diffusion-xl-1.0-inpainting-0.1", {}
    ),
}


class KnownControl(NamedTuple):
    """A published ControlNet: its hub name, and the single file that others made of it."""

    hub: str
    files: tuple[str, ...]


CONTROLS = {
    "sd15-control-canny": KnownControl(
        "lllyasviel/control_v11p_sd15_canny", ("control_v11p_sd15_canny_fp16.safetensors",)
    ),
    "sd15-control-depth": KnownControl(
        "lllyasviel/control_v11f1p_sd15_depth", ("control_v11f1p_sd15_depth_fp16.safetensors",)
    ),
    "sd15-control-scribble": KnownControl(
        "lllyasviel/control_v11p_sd15_scribble", ("control_v11p_sd15_scribble_fp16.safetensors",)
    ),
    "sdxl-control-canny": KnownControl(
        "diffusers/controlnet-canny-sdxl-1.0", ("diffusers_xl_canny_full.safetensors",)
    ),
    "sdxl-control-depth": KnownControl(
        "diffusers/controlnet-depth-sdxl-1.0", ("diffusers_xl_depth_full.safetensors",)
    ),
}
PUBLISHED = KNOWN | CONTROLS


# ---------------------------------------------------------------- finding


def shipped() -> list[str]:
    """Names of the weights that ship with the course."""
    folder = data_folder() / "weights"
    files = [path.name for end in WEIGHTS for path in folder.glob(f"*{end}")]
    return sorted({name.partition(WEIGHTS[0])[0] for name in files})


def where(name: str) -> list[Path]:
    """The places where a known name is looked for, in this order: the weights that ship; a folder
    and single files below data/models; the hub's cache."""
    one_of("name", name, [*PUBLISHED, *shipped()])
    if name not in PUBLISHED:
        files = (data_folder() / "weights" / f"{name}{end}" for end in WEIGHTS)
        return [file for file in files if file.exists()]
    models, known = data_folder() / "models", PUBLISHED[name]
    return [models / name, *(models / file for file in known.files), hub.cache(known.hub)]


def find(source, dtype=torch.float32, ema: bool = True) -> Path:
    """The folder or file that a source of `load` means; a hub name is fetched if need be."""
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise OptionError(f"source = {source!r:.80}: pass a name or a path")
    name, known = str(source), [*PUBLISHED, *shipped()]
    if name in known:
        places = where(name)
        here = [place for place in places if os.path.exists(place) and place.name[:8] != "models--"]
        return here[0] if here else hub.snapshot(PUBLISHED[name].hub, dtype, ema, places)
    path = Path(os.path.expanduser(source))
    for place in (path, Path(f"{path}.xz")):  # packed, too
        if os.path.exists(place):
            return place
    if hub.is_name(name):
        return hub.snapshot(name, dtype, ema, [path, hub.cache(name)])
    near = [f"did you mean {other}? " for other in difflib.get_close_matches(name, known, 1)]
    raise CheckpointError(
        f"{name}: no such file or folder, or none that may be seen; {''.join(near)}Pass a "
        f".safetensors file, a folder in diffusers' layout, a hub name owner/name, or one of "
        f"{', '.join(PUBLISHED)}. Shipped with the course: {', '.join(shipped()) or 'none found'}"
    )


# ---------------------------------------------------------------- loading


def load(source, *, device="cpu", dtype=torch.float32, config=None, ema: bool = True):
    """What `source` holds, ready to use: a StableDiffusion, a Pretrained denoiser, or a module.

    source: a name that ships ("emoji", "mnist", "emoji_clip", "mnist_classifier"), one of KNOWN
    ("sd15") or CONTROLS, a hub name "owner/name", a folder in diffusers' layout, or a .safetensors
    file. dtype: of the weights in memory, whatever the file has (see `part_dtype`).  config: the
    SystemConfig or ControlNetConfig of a single file, which does not say it all; without one the
    context's width tells which known one it is.  ema: the averaged weights of the UNet where a
    source has both.  Systems and modules have `.meta`, what the file says beside. Raises
    CheckpointError for what is missing, damaged or for another model, ResourceError when memory
    ends; memory holds one copy.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise OptionError(f"dtype = {dtype!r:.80}: choose torch.float32, bfloat16 or float16")
    check_device(device)
    place = find(source, dtype, ema)
    try:
        return _load(place, device, dtype, config, ema)
    except PermissionError as e:
        raise CheckpointError(f"{place}: may not be read ({e}); change its permissions") from e
    except (MemoryError, RuntimeError) as e:
        if not memory_ended(e):
            raise
        cause = str(e).partition("\n")[0][:120]
    room = _bytes(place, dtype, ema) / 2**30
    raise ResourceError(  # outside of `except`, whose frames hold on to the tensors
        f"{place}: memory ended while loading ({cause}): in {str(dtype)[6:]} the weights take "
        f"{room:.2f} GiB. Pass dtype=torch.bfloat16, choose a smaller model, or free memory"
    )


def _load(place, device, dtype, config, ema):
    is_folder = os.path.isdir(place)
    views, meta = ({}, {}) if is_folder else load_tensors(place)  # no number is read yet
    if config is not None and (is_folder or "class" in meta):
        raise OptionError(f"config: {place} says itself what its config is, leave it out")
    if "class" in meta:
        return _load_ours(place, views, meta, device, dtype)
    if is_folder:
        model, parts = _folder(folders.Folder(place), dtype, ema)
    elif strange(views) == CONTROL:
        model, parts = _control(place, views, config)
    else:
        model, parts = _single(place, views, config, dtype, ema)
    for part in parts.values():  # compared before a number is read
        check_state(part.model, _read(part.files, part.names), part.source)
    for name, part in parts.items():
        state = _read(part.files, part.names, part_dtype(name, dtype), device)
        load_state(part.model, state, part.source)
    return _ready(model, device, {})


def _bytes(place, dtype, ema):
    """Of all weights of a source, by the headers of its files."""
    files, inside = [place], folders.Folder(place)
    if os.path.isdir(place):
        parts = [p for p in (*hub.PARTS, ".") if inside.has(f"{p}/config.json")]
        files = [file for part in parts for file in inside.weights(part, dtype, ema)]
    entries = [e for file in files for k, e in header(file).items() if k != "__metadata__"]
    return sum(prod(e["shape"]) for e in entries) * dtype.itemsize


class Part(NamedTuple):
    """A network on the meta device, and where its weights lie."""

    model: nn.Module
    source: Path | str  # for messages
    files: list[Path]
    names: dict[str, str] | None = None  # {name: in the file}; None: all of them, as they are


def _read(files, names=None, dtype=None, device=None):
    """{name: tensor} of all shards, or of `names`; without a dtype these are views."""
    state = {}
    for file in files:
        more, _ = load_tensors(file, dtype, names and names.values())
        if twice := state.keys() & more.keys():
            raise CheckpointError(f"{file}: {count(twice)} are in another shard too: get it again")
        state |= {name: more.pop(name).to(device) for name in list(more)}
    return {name: state[old] for name, old in names.items()} if names else state


def _folder(folder, dtype, ema):
    """(model on the meta device, {name: Part}) of a system, a ControlNet, or a CLIP."""
    if folder.has("config.json") and not folder.has("model_index.json"):
        entries = folder.json("config.json")
        if entries.get("_class_name") == "ControlNetModel":
            config = folders.control_config(entries, folder.root / "config.json")
            return _control_parts(config, folder.root, folder.weights(".", dtype))
        config, files = folders.clip_config(folder), folder.weights(".", dtype)
        _bounded(len(_read(files)), folder.root, config)
        own = folder.has("tokenizer.json") and folders.tokenizer(folder, ".", config.text)
        with folders.plan_of(folder.root), torch.device("meta"):
            clip = CLIP(config, own or None)
        return clip, {"clip": Part(clip, folder.root, files)}
    config, schedule = folders.system_config(folder)
    files = {}
    for name, part in config.parts().items():
        files[name] = folder.weights(name, part_dtype(name, dtype), ema)
        _bounded(len(_read(files[name])), folder.root / name, part)
    sd = build(config, schedule, device="meta", dtype=dtype)
    own = "tokenizer_2" if config.vector else "tokenizer"
    sd.text.tokenizer = folders.tokenizer(folder, own, config.text[-1]) or sd.tokenizer
    return sd, {k: Part(net, folder.root / k, files[k]) for k, net in sd.parts().items()}


def _single(path, views, config, dtype, ema):
    """(model on the meta device, {name: Part}) of a single file in the original names."""
    try:
        states = split_single_file(views, ema)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from None
    config, schedule = _plan(path, views, config), None
    if "ztsnr" in views:
        schedule = Schedule.sqrt_linear().zero_terminal_snr()
        config = replace(config, spacing="trailing")
        what = "its schedule ends in pure noise (zero terminal SNR)"
        warn(f"{path}: the mark ztsnr says that {what}: it is sampled so, from the last time on")
    sd = build(config, schedule, device="meta", dtype=dtype)
    names, parts = {id(x): name for name, x in views.items()}, {}
    for side, (name, part) in zip(("unet", "vae", "text", "text_2"), sd.parts().items()):
        if side not in states:
            cause = f"no weights of {name}, only of {', '.join(states)}"
            raise CheckpointError(f"{path}: {cause}: use a file of the whole system, or a folder")
        own = {new: names[id(x)] for new, x in states[side].items()}
        parts[name] = Part(part, f"{path} ({name})", [path], own)
    return sd, parts


def _control(path, views, config):
    """The same of a single file of a ControlNet, in the original names or in diffusers'."""
    if not isinstance(config, ControlNetConfig | None):
        its = f"its config is a ControlNetConfig, not a {type(config).__name__}"
        raise CheckpointError(f"{path}: this is a ControlNet: {its}")
    if config is None:
        width = size(views, r"attn2\.to_k\.weight$", 1, 0)
        hint = size(views, r"(input_hint_block\.0|cond_embedding\.conv_in)\.weight$", 1, 3)
        known = [c for c in (SD15_CONTROL, SD21_CONTROL, SDXL_CONTROL) if c.context == width]
        if not known:
            raise CheckpointError(
                f"{path}: a ControlNet whose context is {width} wide, as of no known system: pass "
                "config=ControlNetConfig(...), or its folder"
            )
        config = replace(known[0], hint=hint)
    return _control_parts(config, path, [path])


def _control_parts(config, source, files):
    _bounded(len(_read(files)), source, config)
    with torch.device("meta"):
        net = ControlNet(config)
    return net, {"control": Part(net, source, files)}


def _plan(path, views, config=None) -> SystemConfig:
    """The plan of a single file: the one given, or the known system whose UNet's context is as
    wide; with what the file's marks and metadata say."""
    said, predict = header(path).get("__metadata__", {}), None
    if config is None:
        width = size(views, r"attn2\.to_k\.weight$", 1, 0)
        inputs = size(views, r"input_blocks\.0\.0\.weight$", 1) or 4
        known = [known for known in KNOWN.values() if known.config.unet.context == width]
        known = [k for k in known if k.config.unet.in_channels == inputs] or known
        if not known:
            raise CheckpointError(
                f"{path}: no known system has a context {width} wide (SD 1.5: 768, SD 2: 1024, "
                f"SDXL: 2048, refiner: 1280). It looks like {looks_like(views)}; the number of "
                "heads is not in it: pass config=SystemConfig(...), or a folder"
            )
        config, kind = known[0].config, str(said.get("modelspec.architecture"))
        predict = {"v": "v", "epsilon": "eps"}.get(said.get("modelspec.prediction_type"))
        if config is PLANS["sd21"] and Path(path).name not in known[0].files:
            if "512" in kind:
                config = PLANS["sd2-base"]
            elif "768" not in kind and "modelspec.prediction_type" not in said:
                warn(
                    f"{path}: SD 2 comes as 768 pixels, predict = 'v', and as 512 pixels (base), "
                    "predict = 'eps', and this file does not say which: taken for the first. If "
                    "the pictures are noise, pass config=SD2_BASE (txt2img: --plan sd2-base)"
                )
        if inputs != config.unet.in_channels:  # InstructPix2Pix
            config = replace(config, unet=replace(config.unet, in_channels=inputs, out_channels=4))
    marks = [mark for mark in MARKS if mark in views]
    if any(mark.startswith("edm") for mark in marks):
        way = "EDM's way (sigmas up to 80, inputs scaled): no sampler here draws with it"
        raise CheckpointError(f"{path}: {', '.join(marks)} mark a model trained in {way}")
    predict = "v" if marks else predict or config.predict
    # a finetune may predict something else; PNDM combines eps and nothing else
    sampler = "ddim" if (config.sampler, predict) == ("pndm", "v") else config.sampler
    return replace(config, predict=predict, sampler=sampler)


def _load_ours(path, views, meta, device, dtype):
    """A file of `save`."""
    if meta.get("format") != FORMAT:
        it = f"format = {meta.get('format')!r:.40}, and this ddpm_edu reads format {FORMAT}"
        raise CheckpointError(f"{path}: {it}: it is of another version, update ddpm_edu")
    with folders.plan_of(path):
        own, views = views, _with_base(views, meta, path)
        beta = views.pop("schedule.beta", None)
        schedule = Schedule(beta.clone()) if beta is not None else None
        model = construct(meta, schedule, len(views), path)
        beside, predict = meta.get("meta", {}), meta.get("predict")
        _check_meta(beside)
        is_system = isinstance(model, SYSTEMS)
        views = _of_model(views, own, model)
        if predict is not None or schedule is not None and not is_system:
            one_of("predict", predict, PREDICTIONS)
            if schedule is None:
                raise KeyError("schedule.beta")
    scales = {f"{name}.scale" for name, w in views.items() if w.dtype == torch.int8}
    state = {name: w for name, w in views.items() if name not in scales}
    check_state(model, state, path)
    small = os.path.getsize(path) <= PIECE  # copied: its file may be written anew meanwhile
    for name in state:  # one by one, so that memory holds one copy
        pair = {k: views[k] for k in (name, f"{name}.scale") if k in views}
        w = unpack(pair, path)[name]
        kind = part_dtype(name.partition(".")[0], dtype) if w.dtype == torch.float32 else w.dtype
        state[name] = w.to(device, kind, copy=small and w is views[name])
    load_state(model, state, path)
    _ready(model, device, beside)
    return model if schedule is None or is_system else Pretrained(model, schedule, predict, beside)


def _with_base(views, meta, source):
    """What a file holds, and of the system that it starts from what it does not hold."""
    base = meta.get("base")
    if base is None:
        return views
    if not isinstance(base, str) or base not in shipped():
        cause = f"base = {base!r:.40}, and it holds only what differs from that system"
        raise CheckpointError(
            f"{source}: {cause}, whose weights are not in {data_folder() / 'weights'}: get them"
        )
    kept = _named_as_in(meta["class"], load_tensors(find(base))[0])
    return {k: w for k, w in kept.items() if k.removesuffix(".scale") not in views} | views


def _named_as_in(kind, state):
    """Of a system's state what a model of this class can take from it, by the class's names."""
    names = {
        "CLIP": {"text.encoders.0.": "text."},
        "Cascade": {"text.": "text.", "unet.": "base.model."},
    }.get(kind, {"": ""})
    pairs = [(k, old, new) for k in state for old, new in names.items() if k.startswith(old)]
    return {k.replace(old, new, 1): state[k] for k, old, new in pairs}


def _of_model(views, own, model):
    """Without what of a base this model does not have: a CLIP takes its text, a smaller UNet has
    fewer blocks."""
    names = model.state_dict().keys()
    return {k: w for k, w in views.items() if k in own or k.removesuffix(".scale") in names}


def _check_meta(meta):
    """ValueError unless what is read of `meta` elsewhere is what it should be."""
    if not isinstance(meta, dict):
        raise ValueError("its meta is no JSON object")
    shape = meta.get("shape", [1, 1, 1])
    for name in ("words", "classes"):
        its = meta.get(name, [])
        if not isinstance(its, list) or not all(isinstance(text, str) for text in its):
            raise ValueError(f"{name} in its meta are no list of texts")
    if not isinstance(shape, list) or len(shape) != 3:
        raise ValueError(f"shape = {shape!r:.80} in its meta is not [channels, height, width]")
    for side in shape:
        whole("shape in its meta", side, 1, 8192)


def _ready(model, device, meta):
    """The buffers that a file does not hold move too, and are made where they were on meta."""
    if isinstance(model, CLIP):
        places = model.vision.embeddings
        n = places.position_embedding.weight.shape[0]
        places.register_buffer("position_ids", torch.arange(n)[None], persistent=False)
    model.meta = meta
    return model.to(device).eval().requires_grad_(False)


# ---------------------------------------------------------------- filling


def check_state(model: nn.Module, state: dict[str, Tensor], source) -> dict[str, Tensor]:
    """The state in our names, after a look whether every name and shape is the model's.

    CheckpointError counts and names what is missing, unexpected or of another shape, and says what
    the state looks like.
    """
    part, own = LAYERED.get(type(model).__name__), model.state_dict()
    try:
        ours = to_ours(part, state) if part else state
    except CheckpointError as e:
        raise CheckpointError(f"{source} does not fit this {type(model).__name__}: {e}") from None
    except (RuntimeError, ValueError, IndexError) as e:  # shapes that no name allows
        raise CheckpointError(f"{source}: damaged, get it again ({e})") from e
    unused = model.unused(ours) if hasattr(model, "unused") else ()
    ours = {k: v for k, v in ours.items() if k not in unused}
    problems = {
        "missing": own.keys() - ours.keys(),
        "unexpected": ours.keys() - own.keys(),
        "of another shape": {k for k in own.keys() & ours.keys() if own[k].shape != ours[k].shape},
    }
    if any(problems.values()):
        found = [count(names, kind) for kind, names in problems.items() if names]
        seems = f" This looks like {looks_like(state)}." if part or strange(state) else ""
        fits = f"does not fit this {type(model).__name__}: {'; '.join(found)}.{seems}"
        raise CheckpointError(f"{source} {fits} Is it for another model or config?")
    return ours


def load_state(model: nn.Module, state: dict[str, Tensor], source="the state") -> None:
    """Fill `model` from {name: tensor}, strictly and all or nothing.

    A UNet, VAE or TextEncoder takes the names of any layout. A model on the meta device takes the
    tensors themselves, in their dtype; another one is filled with their values. CheckpointError as
    from `check_state`, and for NaN or infinity; then nothing is filled.
    """
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{source}: not a plain {{name: tensor}}, nothing was filled")
    ours = check_state(model, state, source)
    own = model.state_dict()
    if odd := [k for k, v in ours.items() if v.is_floating_point() != own[k].is_floating_point()]:
        cause = f"{count(odd)} are of type {ours[odd[0]].dtype}, not floating numbers"
        raise CheckpointError(f"{source}: {cause}: use a file in float32, float16 or bfloat16")
    check_finite(ours, source)
    on_meta = any(v.is_meta for v in own.values())
    model.load_state_dict(ours, strict=True, assign=on_meta)


def check_finite(tensors: dict[str, Tensor], source) -> None:
    """CheckpointError that names the tensors with NaN or infinity; on meta there are none."""

    def finite(x):  # the extremes of a piece tell, and need no memory: NaN is one where it is
        pieces = (p.float() if x.itemsize == 1 else p for p in x.flatten().split(1 << 22))
        return all(bool(torch.stack(p.aminmax()).isfinite().all()) for p in pieces if p.numel())

    numbers = {k: v for k, v in tensors.items() if v.is_floating_point() and not v.is_meta}
    if broken := [k for k, v in numbers.items() if not finite(v)]:
        cause = f"{len(broken)} tensors hold NaN or infinity ({', '.join(broken[:5])})"
        raise CheckpointError(f"{source}: {cause}: diverged or damaged, use another file")


# ---------------------------------------------------------------- saving


def save(
    path,
    model,
    meta: dict | None = None,
    *,
    schedule=None,
    predict=None,
    dtype=None,
    levels: int = 127,
    base: str | None = None,
) -> None:
    """Write a model with its plan and `meta` (JSON-able) to one file, all or nothing; see `load`.

    model: a StableDiffusion or Cascade, a denoiser (with schedule and predict, or a Pretrained), a
    VAE, CLIP or Classifier; torch.compile, DataParallel and the like are taken off.  dtype: of the
    weights in the file; None: as they are; torch.int8 rounds large ones to 8 bits, a quarter of
    float32, or to fewer `levels` (`pack`). A path that ends in .safetensors.xz is packed without
    loss.
    base: a system that ships; weights that are equal in it are left out, and `load` takes them from
    there; a CLIP takes its text side.
    Raises OptionError for what has no plan, CheckpointError for NaN or a failure to write.
    """
    if isinstance(model, Pretrained):
        model, schedule, predict = model.model, model.schedule, model.predict
    model = without_lora(unwrapped(model))
    is_system = isinstance(model, SYSTEMS)
    schedule = model.schedule if is_system else schedule
    plan = inner = describe(model)
    while inner:
        one_of("class of model", inner["class"], KINDS)
        inner = inner.get("model")
    if not is_system and schedule is not None:
        one_of("predict", predict, PREDICTIONS)
        plan["predict"] = predict
    if not isinstance(meta, dict | None):
        raise OptionError(f"meta = {meta!r:.80}: pass a dict, or nothing")
    state = {
        re.sub(r"(^|\.)(_orig_mod|module)\.", r"\1", k): v for k, v in model.state_dict().items()
    }
    check_finite(state, path)
    if base is not None:
        plan["base"] = one_of("base", base, shipped())
        same = _named_as_in(plan["class"], load(base).state_dict())
        equal = lambda name, w: name in same and torch.equal(w, same[name])
        state = {name: w for name, w in state.items() if not equal(name, w.cpu())}
    if dtype == torch.int8:
        state = pack(state, levels)
    elif dtype is not None:
        state = {k: v.to(dtype) if v.dtype == torch.float32 else v for k, v in state.items()}
    beta = {} if schedule is None else {"schedule.beta": schedule.beta}
    save_tensors(path, {**state, **beta}, {"format": FORMAT, **plan, "meta": meta or {}})


def unwrapped(model):
    """The module inside torch.compile, DataParallel, DistributedDataParallel."""
    while (inner := getattr(model, "_orig_mod", None)) is not None or (
        "DataParallel" in type(model).__name__ and (inner := model.module) is not None
    ):
        model = inner
    if not isinstance(model, nn.Module):
        raise OptionError(f"model = {type(model).__name__}: pass a torch.nn.Module")
    return model


# ---------------------------------------------------------------- plans

CONFIGS = {
    UNet: UNetConfig,
    VAE: VAEConfig,
    CLIP: CLIPConfig,
    Classifier: ClassifierConfig,
    ControlNet: ControlNetConfig,
    DiT: DiTConfig,
    GPT: GPTConfig,
    VQVAE: VQConfig,
    CodeSystem: CodeConfig,
    Prior: PriorConfig,
    Cascade: CascadeConfig,
    StableDiffusion: SystemConfig,
}
SYSTEMS = (StableDiffusion, Cascade)  # they hold their schedule
SETTINGS = {  # of classes without a config: how their arguments are read back
    MLP: lambda m: dict(dim=m.dim, hidden=m.hidden, layers=len(m.middle), vector=m.n_vector),
    ClassicUNet: lambda m: dict(
        in_channels=m.in_channels, channels=m.last.in_channels, vector=m.n_vector, emb=m.emb
    ),
    SpaceToDepth: lambda m: dict(factor=m.factor),
    Preconditioned: lambda m: dict(sigma_data=m.sigma_data),
    GaussianPrior: lambda m: dict(
        shape=list(m.shape), classes=m.classes, parts=m.parts, rank=m.rank
    ),
}
KINDS = {kind.__name__: kind for kind in (*CONFIGS, *SETTINGS)}


def describe(model: nn.Module) -> dict:
    """The plan of a model as JSON: {class, config}, and model, the plan of what it wraps."""
    model = unwrapped(model)
    kind = type(model)
    plan = {"class": kind.__name__}
    if is_dataclass(getattr(model, "config", None)):
        plan["config"] = asdict(model.config)
    elif kind in SETTINGS:
        plan["config"] = SETTINGS[kind](model)
    takes = signature(kind).parameters if kind.__name__ in KINDS else ()
    if "tokenizer" in takes:
        plan["tokenizer"] = _describe_tokenizer(model.tokenizer)
    if "model" in takes:
        plan["model"] = describe(model.model)
    return plan


def construct(plan: dict, schedule, names: int, source) -> nn.Module:
    """The model of a plan on the meta device. Whatever a wrong plan leads to is raised as it comes.

    names: of the tensors that are there to fill it; a plan of more blocks is refused, not built.
    """
    kind, own = KINDS[plan["class"]], dict(plan["config"])
    config = CONFIGS.get(kind, SimpleNamespace)(**own)
    _bounded(names, source, config)
    given, takes = {"config": config} if kind in CONFIGS else own, signature(kind).parameters
    if "schedule" in takes:
        if schedule is None:
            raise KeyError("schedule.beta")
        given["schedule"] = schedule
    if "tokenizer" in takes:
        given["tokenizer"] = _tokenizer(plan["tokenizer"], config.text, source)
    if "model" in takes:
        given["model"] = construct(plan["model"], schedule, names, source)
    with torch.device("meta"):
        return kind(**given)


def _bounded(names: int, source, config) -> None:
    """CheckpointError for a plan of more blocks, its parts' too, than there are tensors."""
    get = lambda name: getattr(config, name, 0)
    for field in vars(config).values():
        for part in field if isinstance(field, tuple) else (field,):
            if is_dataclass(part):
                _bounded(names, source, part)
    depth = get("depth") or (0,) * len(get("mult") or ())
    depth = (depth,) if isinstance(depth, int) else depth  # a DiT's
    blocks = sum((2 * get("blocks") + 1) * (1 + n) for n in depth)
    blocks += get("middle") + get("layers") + len(get("widths") or ())
    if blocks > min(names, MOST_BLOCKS):
        asks = f"its config asks for {blocks:,} blocks and layers, at most {MOST_BLOCKS:,}"
        harm = f"and {names:,} tensors are there to fill them: damaged, or made to do harm"
        raise CheckpointError(f"{source}: {asks}, {harm}")


def _describe_tokenizer(tokenizer):
    """None stands for CLIP's own, which ships beside."""
    if tokenizer is tokenize or tokenizer is None:
        return None
    if not isinstance(tokenizer, Tokenizer):
        raise OptionError(f"tokenizer = {tokenizer!r:.80} cannot be written: use a Tokenizer")
    start, end = map(tokenizer.bpe.id_to_token, (tokenizer.start, tokenizer.end))
    return {"json": tokenizer.bpe.to_str(), "start": start, "end": end, "length": tokenizer.length}


def _tokenizer(entry, text, source) -> Tokenizer | None:
    config = text[0] if isinstance(text, tuple) else text
    if entry is None:
        return None
    if not isinstance(entry, dict) or not str(entry["json"]).startswith("{"):
        raise ValueError("its tokenizer is no JSON")  # a path would be opened
    tokenizer = Tokenizer(entry["json"], entry["start"], entry["end"], entry["length"])
    words = tokenizer.bpe.get_vocab_size(), tokenizer.length, tokenizer.end
    end = config.vocab - 1 if config.end is None else config.end
    if words[0] > config.vocab or words[1:] != (config.length, end):
        takes = f"but its text encoder takes {config.vocab}, {config.length}, {end}"
        cause = "its tokenizer has {} ids in rows of {} that end with {}".format(*words)
        raise CheckpointError(f"{source}: {cause}, {takes}: they are of two models")
    return tokenizer


# ---------------------------------------------------------------- plans of systems


def config_of(source) -> SystemConfig:
    """The plan of a whole system, a source of `load`, without reading its weights."""
    if str(source) in KNOWN:
        return KNOWN[str(source)].config
    if os.path.isdir(place := find(source)):
        return folders.system_config(folders.Folder(place))[0]
    views, meta = load_tensors(place)
    if "class" not in meta:
        return _plan(place, views)
    if meta["class"] != "StableDiffusion":
        remedy = "`ddpm-edu sample` draws with denoisers"
        if meta["class"] in (CodeSystem.__name__, Cascade.__name__):
            remedy = f"in Python load({str(source)!r}).draw(prompts) draws with it"
        raise CheckpointError(f"{source}: a {meta['class']!r:.80}, no whole system; {remedy}")
    with folders.plan_of(place):
        return SystemConfig(**meta["config"])
