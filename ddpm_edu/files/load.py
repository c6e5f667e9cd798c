"""`load` and `save`: systems, denoisers, VAEs, CLIPs, classifiers. Notebook 11.

    model, schedule, predict, meta = load("mnist")       a denoiser with all that sampling needs
    sd = load("emoji")                                   a whole system, ready to draw
    save("my.safetensors", model, schedule=schedule, predict="v", dtype=torch.int8)

A file is read in four steps: find it, build its plan on the meta device, where nothing takes room,
compare that with the file's names and shapes, then fill it. A wrong file leaves nothing behind.
"""

import dataclasses
import os
import re
import warnings
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import (
    CheckpointError,
    OptionError,
    ResourceError,
    check_device,
    known_prediction,
    whole,
)
from ..networks.classifier import Classifier, ClassifierConfig
from ..networks.clip import CLIP, CLIPConfig
from ..networks.gaussian import GaussianPrior
from ..networks.mlp import MLP
from ..networks.text import TextConfig
from ..networks.tokenizer import Tokenizer, tokenize
from ..networks.unet import SpaceToDepth, UNet, UNetConfig
from ..networks.unet_classic import ClassicUNet
from ..networks.vae import VAE, VAEConfig
from ..paths import data_folder
from ..schedule import Schedule
from ..systems.system import (
    REFINER,
    SD2_BASE,
    SD15,
    SD21,
    SDXL,
    StableDiffusion,
    SystemConfig,
    build,
    part_dtype,
)
from . import folder as folders
from . import hub
from .names import (
    FOLDER_CLIP,
    MARKS,
    count,
    looks_like,
    rename,
    split_single_file,
    strange,
    to_ours,
)
from .tensors import PIECE, header, load_tensors, pack, reading, save_tensors, unpack

LAYERED = {"UNet": "unet", "VAE": "vae", "TextEncoder": "text"}  # come in several layouts
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
    """A published system: its plan, its hub name, its single files with their sizes in bytes."""

    config: SystemConfig
    hub: str
    files: dict[str, int]


KNOWN = {
    "sd15": Known(
        SD15,
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        {
            "v1-5-pruned-emaonly.safetensors": 4_265_146_304,
            "v1-5-pruned.safetensors": 7_703_324_286,
        },
    ),
    "sd21": Known(
        SD21, "stabilityai/stable-diffusion-2-1", {"v2-1_768-ema-pruned.safetensors": 5_214_604_494}
    ),
    "sdxl": Known(
        SDXL,
        "stabilityai/stable-diffusion-xl-base-1.0",
        {
            "sd_xl_base_1.0.safetensors": 6_938_078_334,
            "sd_xl_base_1.0_0.9vae.safetensors": 6_938_078_334,
        },
    ),
    "sdxl-refiner": Known(
        REFINER,
        "stabilityai/stable-diffusion-xl-refiner-1.0",
        {"sd_xl_refiner_1.0.safetensors": 6_075_981_930},
    ),
}


# ---------------------------------------------------------------- finding


def shipped() -> list[str]:
    """Names of the weights that ship with the course."""
    return sorted(path.stem for path in (data_folder() / "weights").glob("*.safetensors"))


def where(name: str) -> list[Path]:
    """The places where a known name is looked for, in this order: the weights that ship; a folder
    and single files below data/models; the hub's cache."""
    if name in shipped():
        return [data_folder() / "weights" / f"{name}.safetensors"]
    if name not in KNOWN:
        raise OptionError(f"{name!r} is not known: choose one of {', '.join([*KNOWN, *shipped()])}")
    models, known = data_folder() / "models", KNOWN[name]
    return [models / name, *(models / file for file in known.files), hub.cache(known.hub)]


def find(source, dtype=torch.float32, ema: bool = True) -> Path:
    """The folder or file that a source of `load` means; a hub name is fetched if need be."""
    if not isinstance(source, (str, os.PathLike)):
        raise OptionError(f"source = {source!r:.80}: pass a name or a path")
    name = str(source)
    if name in KNOWN or name in shipped():
        places = where(name)
        here = [place for place in places if os.path.exists(place) and place.name[:8] != "models--"]
        return here[0] if here else hub.snapshot(KNOWN[name].hub, dtype, ema, places)
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):
        return path
    if hub.is_name(name):
        return hub.snapshot(name, dtype, ema, [path, hub.cache(name)])
    raise CheckpointError(
        f"{name}: no such file or folder, or none that may be seen; expected a .safetensors file, "
        f"a folder in diffusers' layout, a hub name owner/name, or one of {', '.join(KNOWN)}. "
        f"Shipped with the course: {', '.join(shipped()) or 'none found'}"
    )


# ---------------------------------------------------------------- loading


def load(source, *, device="cpu", dtype=torch.float32, config=None, ema: bool = True):
    """What `source` holds, ready to use: a StableDiffusion, a Pretrained denoiser, or a module.

    source: a name that ships ("emoji", "mnist", "emoji_clip", "mnist_classifier"), one of KNOWN
    ("sd15"), a hub name "owner/name", a folder in diffusers' layout, or a .safetensors file.
    dtype: of the weights in memory, whatever the file has (see `part_dtype`).  config: the
    SystemConfig of a single file, which does not say it all; without one the context's width tells
    which known system it is.  ema: the averaged weights of the UNet where a source has both.
    Systems and modules have `.meta`, what the file says beside. Raises CheckpointError for what is
    missing, damaged or for another model, ResourceError when memory ends; memory holds one copy.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise OptionError(f"dtype = {dtype!r:.80}: choose torch.float32, bfloat16 or float16")
    check_device(device)
    place = find(source, dtype, ema)
    try:
        if os.path.isdir(place):
            if config is not None:
                raise OptionError("config: a folder says itself what its config is, leave it out")
            return _load_folder(folders.Folder(place), device, dtype, ema)
        return _load_file(place, device, dtype, config, ema)
    except PermissionError as e:
        raise CheckpointError(f"{place}: may not be read ({e}); change its permissions") from e
    except (MemoryError, RuntimeError) as e:
        out = isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(e)
        if not out:
            raise
        cause = str(e).partition("\n")[0][:120]
    raise ResourceError(  # outside of `except`, whose frames hold on to the tensors
        f"{place}: memory ended while loading ({cause}). In {str(dtype)[6:]} the weights alone "
        f"take {_bytes(place, dtype, ema) / 2**30:.2f} GiB. Load them with dtype=torch.bfloat16, "
        "half of float32, or choose a smaller model, or free memory: close other notebooks"
    )


def _bytes(place, dtype, ema):
    """Of all weights of a source, by the headers of its files."""
    files = [place]
    if os.path.isdir(place):
        inside = folders.Folder(place)
        parts = [p for p in (*hub.PARTS, ".") if (place / p / "config.json").exists()]
        files = [file for part in parts for file in inside.weights(part, dtype, ema)]
    entries = [e for file in files for k, e in header(file).items() if k != "__metadata__"]
    return sum(prod(e["shape"]) for e in entries) * dtype.itemsize


def _load_folder(folder, device, dtype, ema):
    if not folder.has("model_index.json") and folder.has("config.json"):
        return _load_clip(folder, device, dtype)
    config, schedule = folders.system_config(folder)
    texts, n = ("text_encoder", "text_encoder_2"), len(config.text)
    names = ("unet", "vae") + (texts[-n:] if config.vector else texts[:n])
    files = {name: folder.weights(name, part_dtype(name, dtype), ema) for name in names}
    for name, part in zip(names, (config.unet, config.vae, *config.text)):
        _bounded(part, sum(len(header_of(file)) for file in files[name]), folder.root / name)
    sd = build(config, schedule, device="meta", dtype=dtype)
    for name, part in sd.parts().items():  # compared before anything is read
        check_state(part, _together(files[name]), folder.root / name)
    own = "tokenizer_2" if config.vector else "tokenizer"
    sd.text.tokenizer = folders.tokenizer(folder, own, config.text[-1]) or sd.text.tokenizer
    for name, part in sd.parts().items():
        state = _together(files[name], part_dtype(name, dtype), device)
        load_state(part, state, folder.root / name)
    return sd


def header_of(path) -> dict:
    """The header of a file, with every trouble as a CheckpointError."""
    with reading(path):
        return header(path)


def _together(files, dtype=None, device=None):
    """The tensors of all shards; views of the files without a dtype."""
    state = {}
    for file in files:
        more, _ = load_tensors(file, dtype)
        if twice := state.keys() & more.keys():
            raise CheckpointError(
                f"{file}: {count(twice)} are in another shard too; fetch it again"
            )
        state |= {name: more.pop(name).to(device) for name in list(more)} if device else more
    return state


def _load_clip(folder, device, dtype):
    """A whole CLIP in transformers' layout."""
    kind = folder.json("config.json").get("_class_name")
    if kind is not None:
        raise CheckpointError(
            f"{folder.root}: this is one part of a system ({kind!r:.80}), and model_index.json is "
            "not here: pass the folder above, which holds " + folders.LAYOUT
        )
    config, files = folders.clip_config(folder), folder.weights(".", dtype)
    for part in (config, config.text):
        _bounded(part, sum(len(header_of(file)) for file in files), folder.root)
    own = folder.has("tokenizer.json") and folders.tokenizer(folder, ".", config.text)
    with folders.plan_of(folder.root), torch.device("meta"):
        clip = CLIP(config, own or None)
    named = lambda state: rename(
        {k: v for k, v in state.items() if not k.endswith("position_ids")}, FOLDER_CLIP
    )
    check_state(clip, named(_together(files)), folder.root)
    load_state(clip, named(_together(files, dtype, device)), folder.root)
    return _ready(clip, device, {})


def _load_file(path, device, dtype, config, ema):
    views, meta = load_tensors(path)  # names and shapes; no number is read yet
    if "class" in meta:
        if config is not None:
            raise OptionError(f"config: {path} says itself what its config is, leave it out")
        return _load_ours(path, views, meta, device, dtype)
    return _load_single(path, views, device, dtype, config, ema)


def _load_ours(path, views, meta, device, dtype):
    """A file of `save`."""
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format = {meta.get('format')!r:.40}, and this ddpm_edu reads format {FORMAT}"
            ": the file is of another version of the course, update ddpm_edu"
        )
    with folders.plan_of(path):
        beta = views.pop("schedule.beta", None)
        schedule = Schedule(beta.clone()) if beta is not None else None
        model = construct(meta, schedule, len(views), path)
        beside, predict = meta.get("meta", {}), meta.get("predict")
        _check_meta(beside)
        if predict is not None or schedule is not None and not isinstance(model, StableDiffusion):
            known_prediction(predict)
            if schedule is None:
                raise KeyError("schedule.beta")
    state = {k: w for k, w in views.items() if not _is_scale(k, views)}
    check_state(model, state, path)
    small = os.path.getsize(path) <= PIECE  # copied: its file may be written anew meanwhile
    for name in state:  # one by one, so that memory holds one copy
        pair = {k: views[k] for k in (name, f"{name}.scale") if k in views}
        w = unpack(pair, path)[name]
        kind = part_dtype(name.partition(".")[0], dtype) if w.dtype == torch.float32 else w.dtype
        state[name] = w.to(device, kind, copy=small and w is views[name])
    load_state(model, state, path)
    model = _ready(model, device, beside)
    if schedule is None or isinstance(model, StableDiffusion):
        return model
    return Pretrained(model, schedule, predict, beside)


def _is_scale(name, state) -> bool:
    of = state.get(name.removesuffix(".scale"))
    return name.endswith(".scale") and of is not None and of.dtype == torch.int8


def _check_meta(meta):
    """ValueError unless what is read of `meta` elsewhere is what it should be."""
    if not isinstance(meta, dict):
        raise ValueError("its meta is no JSON object")
    words, shape = meta.get("words", []), meta.get("shape", [1, 1, 1])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("words in its meta are no list of texts")
    if not isinstance(shape, list) or [type(n) for n in shape] != [int] * 3:
        raise ValueError(f"shape = {shape!r:.80} in its meta is not [channels, height, width]")
    if not all(1 <= n <= 8192 for n in shape):
        raise ValueError(f"shape = {shape!r:.80} in its meta is not from 1 to 8192")


def _ready(model, device, meta):
    """The buffers that a file does not hold move too, and are made where they were on meta."""
    if isinstance(model, CLIP):
        places = model.vision.embeddings
        n = places.position_embedding.weight.shape[0]
        places.register_buffer("position_ids", torch.arange(n)[None], persistent=False)
    model.meta = meta
    return model.to(device).eval().requires_grad_(False)


def _load_single(path, views, device, dtype, config, ema):
    """A single file in the original names."""
    try:
        parts = split_single_file(views, ema)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from None
    config = _heeding(path, views, config or _recognise(path, views))
    schedule = None
    if "ztsnr" in views:
        schedule = Schedule.sqrt_linear().zero_terminal_snr()
        config = dataclasses.replace(config, spacing="trailing")
        warnings.warn(
            f"{path}: the mark ztsnr says that its schedule ends in pure noise (zero terminal SNR)"
            ": it is sampled so, from the last time on",
            stacklevel=4,
        )
    sd = build(config, schedule, device="meta", dtype=dtype)
    named = dict(zip(("unet", "vae", "text", "text_2"), sd.parts().items()))
    for side, (name, part) in named.items():
        if side not in parts:
            raise CheckpointError(
                f"{path}: holds no weights of {name}, only of {', '.join(parts)}; "
                "use a file of the whole system, or a folder"
            )
        check_state(part, parts[side], f"{path} ({name})")
    names = {id(x): name for name, x in views.items()}
    wanted = {side: {k: names[id(x)] for k, x in state.items()} for side, state in parts.items()}
    views.clear(), parts.clear()
    for side, (name, part) in named.items():
        tensors, _ = load_tensors(path, part_dtype(name, dtype), wanted[side].values())
        state = {new: tensors.pop(old).to(device) for new, old in wanted[side].items()}
        load_state(part, state, f"{path} ({name})")
    return sd


def _recognise(path, views) -> SystemConfig:
    """The known system a single file holds, by the width of its UNet's context; more input
    channels (inpainting, InstructPix2Pix) are read."""
    shape = lambda end, n: next(
        (x.shape[1] for k, x in views.items() if k.endswith(end) and x.ndim == n), 0
    )
    width, inputs = shape("attn2.to_k.weight", 2), shape("input_blocks.0.0.weight", 4) or 4
    known = next((known for known in KNOWN.values() if known.config.unet.context == width), None)
    if known is None:
        raise CheckpointError(
            f"{path}: no known system has a context {width} wide (SD 1.5: 768, SD 2: 1024, SDXL: "
            f"2048, refiner: 1280). It looks like {looks_like(views)}; a single file does not tell "
            "the number of heads: pass config=SystemConfig(...), or a folder"
        )
    said = header_of(path).get("__metadata__", {})
    config = known.config
    if config is SD21 and Path(path).name not in known.files:
        kind = str(said.get("modelspec.architecture"))
        if "512" in kind:
            config = SD2_BASE
        elif "768" not in kind and "modelspec.prediction_type" not in said:
            warnings.warn(
                f"{path}: SD 2 comes as 768 pixels, predict = 'v', and as 512 pixels (base), "
                "predict = 'eps', and this file does not say which: taken for the first. If the "
                "pictures are noise, pass config=SD2_BASE (txt2img: --plan sd2-base)",
                stacklevel=5,
            )
    if inputs != 4:
        unet = dataclasses.replace(config.unet, in_channels=inputs, out_channels=4)
        config = dataclasses.replace(config, unet=unet)
    predict = {"v": "v", "epsilon": "eps"}.get(said.get("modelspec.prediction_type"))
    return _predicting(config, predict or config.predict)


def _predicting(config, predict) -> SystemConfig:
    """The plan of a finetune that predicts something else; PNDM combines eps and nothing else."""
    sampler = "ddim" if (config.sampler, predict) == ("pndm", "v") else config.sampler
    return dataclasses.replace(config, predict=predict, sampler=sampler)


def _heeding(path, views, config: SystemConfig) -> SystemConfig:
    """The plan with what a file's marks say. CheckpointError for those that we cannot follow."""
    marks = [mark for mark in MARKS if mark in views]
    if any(mark.startswith("edm") for mark in marks):
        raise CheckpointError(
            f"{path}: {', '.join(marks)} mark a model trained in EDM's way (sigmas up to 80, "
            "inputs scaled): no sampler here draws with it"
        )
    return _predicting(config, "v") if marks else config


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
    shapes = {k for k in own.keys() & ours.keys() if own[k].shape != ours[k].shape}
    problems = [
        count(names).replace(" ", f" {label} ", 1)
        for label, names in (
            ("missing", own.keys() - ours.keys()),
            ("unexpected", ours.keys() - own.keys()),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        seems = f" This looks like {looks_like(state)}." if part or strange(state) else ""
        raise CheckpointError(
            f"{source} does not fit this {type(model).__name__}: {'; '.join(problems)}.{seems} "
            "Is it for another model or config?"
        )
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
        raise CheckpointError(
            f"{source}: {count(odd)} are of type {ours[odd[0]].dtype}, not floating numbers: "
            "a quantized file? Use one in float32, float16 or bfloat16"
        )
    check_finite(ours, source)
    on_meta = any(v.is_meta for v in own.values())
    model.load_state_dict(ours, strict=True, assign=on_meta)


def check_finite(tensors: dict[str, Tensor], source) -> None:
    """CheckpointError that names the tensors with NaN or infinity; on meta there are none."""
    broken = [
        k for k, v in tensors.items() if v.is_floating_point() and not v.is_meta and not _finite(v)
    ]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken)} tensors hold NaN or infinity ({', '.join(broken[:5])}): "
            "the training diverged or the file is damaged, use another one"
        )


def _finite(x: Tensor) -> bool:
    """The extremes of a piece tell, and need no memory: NaN is the extreme of whatever holds it."""
    pieces = (p.float() if x.itemsize == 1 else p for p in x.flatten().split(1 << 22))
    return all(bool(torch.stack(p.aminmax()).isfinite().all()) for p in pieces if p.numel())


# ---------------------------------------------------------------- saving


def save(path, model, meta: dict | None = None, *, schedule=None, predict=None, dtype=None) -> None:
    """Write a model with its plan and `meta` (JSON-able) to one file, all or nothing; see `load`.

    model: a StableDiffusion, a denoiser (with schedule and predict, or a Pretrained), a VAE, CLIP
    or Classifier; torch.compile, DataParallel and the like are taken off.  dtype: of the weights in
    the file; None: as they are; torch.int8 rounds large ones to 8 bits, a quarter of float32.
    Raises OptionError for what has no plan, CheckpointError for NaN or a failure to write.
    """
    if isinstance(model, Pretrained):
        model, schedule, predict = model.model, model.schedule, model.predict
    model = unwrapped(model)
    is_system = isinstance(model, StableDiffusion)
    schedule = model.schedule if is_system else schedule
    plan = describe(model)
    inner = plan
    while inner:
        if inner["class"] not in KINDS:
            kind = inner["class"]
            raise OptionError(f"model: a {kind} has no plan, pass one of {', '.join(KINDS)}")
        inner = inner.get("model")
    if not is_system and schedule is not None:
        known_prediction(predict)
        plan["predict"] = predict
    if not isinstance(meta, dict | None):
        raise OptionError(f"meta = {meta!r:.80}: pass a dict, or nothing")
    state = {
        re.sub(r"(^|\.)(_orig_mod|module)\.", r"\1", k): v for k, v in model.state_dict().items()
    }
    check_finite(state, path)
    if dtype == torch.int8:
        state = pack(state)
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
    "UNet": (UNet, UNetConfig),
    "VAE": (VAE, VAEConfig),
    "CLIP": (CLIP, CLIPConfig),
    "Classifier": (Classifier, ClassifierConfig),
}
SETTINGS = {  # of classes without a config: how their arguments are read back
    MLP: lambda m: dict(dim=m.dim, hidden=m.hidden, layers=len(m.middle), vector=m.n_vector),
    ClassicUNet: lambda m: dict(
        in_channels=m.in_channels, channels=m.last.in_channels, vector=m.n_vector, emb=m.emb
    ),
    SpaceToDepth: lambda m: dict(factor=m.factor),
    GaussianPrior: lambda m: dict(
        shape=list(m.shape), classes=m.classes, parts=m.parts, rank=m.rank
    ),
}
KINDS = (*CONFIGS, *(kind.__name__ for kind in SETTINGS), "StableDiffusion")


def describe(model: nn.Module) -> dict:
    """The plan of a model as JSON: {class, config}, and model, the plan of what it wraps."""
    model = unwrapped(model)
    plan = {"class": type(model).__name__}
    if dataclasses.is_dataclass(getattr(model, "config", None)):
        plan["config"] = dataclasses.asdict(model.config)
    elif type(model) in SETTINGS:
        plan["config"] = SETTINGS[type(model)](model)
    if isinstance(model, (CLIP, StableDiffusion)):
        tokenizer = model.tokenizer if isinstance(model, CLIP) else model.text.tokenizer
        plan["tokenizer"] = _describe_tokenizer(tokenizer)
    if isinstance(model, (SpaceToDepth, GaussianPrior)):
        plan["model"] = describe(model.model)
    return plan


def construct(plan: dict, schedule, names: int, source) -> nn.Module:
    """The model of a plan on the meta device. Whatever a wrong plan leads to is raised as it comes.

    names: of the tensors that are there to fill it; a plan of more blocks is refused, not built.
    """
    kind, c = plan["class"], dict(plan["config"])
    if kind == "StableDiffusion":
        config = SystemConfig(**c)
        for part in (config.unet, config.vae, *config.text):
            _bounded(part, names, source)
        if schedule is None:
            raise KeyError("schedule.beta")
        sd = build(config, schedule, device="meta")
        sd.text.tokenizer = _tokenizer(plan, config.text[0], source) or sd.text.tokenizer
        return sd
    with torch.device("meta"):
        if kind in CONFIGS:
            cls, make = CONFIGS[kind]
            config = make(**c)
            for part in (config, getattr(config, "text", config)):
                _bounded(part, names, source)
            own = (_tokenizer(plan, config.text, source),) if cls is CLIP else ()
            return cls(config, *own)
        cls = {cls.__name__: cls for cls in SETTINGS}[kind]
        _bounded(SimpleNamespace(**c), names, source)
        inner = construct(plan["model"], schedule, names, source) if "model" in plan else None
        if cls is SpaceToDepth:
            return SpaceToDepth(inner, whole("factor", c["factor"], 1, 64))
        return GaussianPrior(inner, schedule, **c) if cls is GaussianPrior else cls(**c)


def _bounded(config, names: int, source) -> None:
    """CheckpointError for a plan of more blocks than there are tensors."""
    get = lambda name: getattr(config, name, 0)
    depth = get("depth") or (0,) * len(get("mult") or ())
    blocks = sum((2 * get("blocks") + 1) * (1 + n) for n in depth)
    blocks += get("middle") + get("layers") + len(get("widths") or ())
    if blocks > min(names, MOST_BLOCKS):
        raise CheckpointError(
            f"{source}: its config asks for {blocks:,} blocks and layers (at most {MOST_BLOCKS:,} "
            f"are built), but there are {names:,} tensors to fill them: damaged, or made to do harm"
        )


def _describe_tokenizer(tokenizer):
    """None stands for CLIP's own, which ships beside."""
    if tokenizer is tokenize or tokenizer is None:
        return None
    if not isinstance(tokenizer, Tokenizer):
        raise OptionError(f"tokenizer = {tokenizer!r:.80} cannot be written: use a Tokenizer")
    start, end = map(tokenizer.bpe.id_to_token, (tokenizer.start, tokenizer.end))
    return {"json": tokenizer.bpe.to_str(), "start": start, "end": end, "length": tokenizer.length}


def _tokenizer(plan, config: TextConfig, source) -> Tokenizer | None:
    if (entry := plan["tokenizer"]) is None:
        return None
    if not isinstance(entry, dict) or not str(entry["json"]).startswith("{"):
        raise ValueError("its tokenizer is no JSON")  # a path would be opened
    tokenizer = Tokenizer(entry["json"], entry["start"], entry["end"], entry["length"])
    words = tokenizer.bpe.get_vocab_size(), tokenizer.length, tokenizer.end
    end = config.vocab - 1 if config.end is None else config.end
    if words[0] > config.vocab or words[1:] != (config.length, end):
        raise CheckpointError(
            f"{source}: its tokenizer has {words[0]} ids in rows of {words[1]} that end with "
            f"{words[2]}, but the text encoder takes {config.vocab} in rows of {config.length} "
            f"that end with {end}"
        )
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
        return _heeding(place, views, _recognise(place, views))
    if meta["class"] != "StableDiffusion":
        raise CheckpointError(
            f"{source}: holds a {meta['class']!r:.80}, not a whole system; `load` gives it, and "
            "`ddpm-edu sample` draws with denoisers"
        )
    with folders.plan_of(place):
        return construct(meta, Schedule.linear(2), len(views), place).config
