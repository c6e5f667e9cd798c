"""Loading and saving whole systems: Stable Diffusion 1.5 and 2.1, SDXL base and refiner, from the official files.

`load` takes a known name, a hub name, a folder or a single file, and returns a `StableDiffusion` (system.py);
`save_folder` writes one that diffusers reads, too.
"""

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointError, OptionError, whole
from ..files import config_json, folder, hub, system_file
from ..networks.text import CLIP_L
from ..networks.vae import SD_VAE
from ..paths import data_folder
from ..schedule import Schedule
from ..systems.memory import widest_moment
from ..systems.system import (
    REFINER,
    SD15,
    SD21,
    SDXL,
    StableDiffusion,
    SystemConfig,
    build,
    part_dtype,
)
from .checkpoint import load_state
from .names import to_folder
from .recognise import looks_like, split_single_file
from .tensors import load_tensors, save_tensors

__all__ = [
    "KNOWN",
    "REFINER",
    "SD15",
    "SD21",
    "SDXL",
    "Known",
    "StableDiffusion",
    "SystemConfig",
    "build",
    "config_of",
    "find",
    "folder_config",
    "load",
    "memory_needed",
    "part_dtype",
    "save_folder",
    "weight_bytes",
    "where",
]


OURS = "_ddpm_edu"  # our entry of model_index.json; diffusers passes over names that begin with _


# ---------------------------------------------------------------- what is known and where it is looked for


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


def where(name: str) -> list[Path]:
    """The places where a known system is looked for, in this order: a folder and single files below data/models, the hub's cache."""
    if ships := system_file.shipped(name):
        return [ships]
    if name not in KNOWN:
        raise OptionError(
            f"{name!r} is not known: choose one of {', '.join([*KNOWN, *system_file.all_shipped()])}"
        )
    models = data_folder() / "models"
    return [
        models / name,
        *(models / file for file in KNOWN[name].files),
        hub.cache(KNOWN[name].hub),
    ]


def find(source, dtype=torch.float32, ema: bool = True) -> Path:
    """The folder or file that `source` of `load` means; a hub name is fetched if it is not there. Raises CheckpointError."""
    if str(source) in KNOWN:
        places = where(str(source))
        found = next((place for place in places[:-1] if os.path.exists(place)), None)
        return found or hub.snapshot(KNOWN[str(source)].hub, dtype, ema, places)
    if ships := system_file.shipped(str(source)):
        return ships
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):
        return path
    if hub.is_name(str(source)):
        return hub.snapshot(str(source), dtype, ema, [path, hub.cache(str(source))])
    raise CheckpointError(
        f"{source}: no such file or folder; expected a .safetensors file, a folder in diffusers' layout, a hub name "
        f"owner/name, or one of {', '.join(KNOWN)}. Shipped with the course: {', '.join(system_file.all_shipped()) or 'none found'}"
    )


# ---------------------------------------------------------------- loading


def load(
    source,
    *,
    device="cpu",
    dtype=torch.float32,
    allow_pickle: bool = False,
    ema: bool = True,
    config: SystemConfig | None = None,
) -> StableDiffusion:
    """A system with the weights of `source`, ready to sample.

    source: a name that ships ("emoji") or of KNOWN ("sd15"), a file of `save_system`, a hub name "owner/name",
    a folder in diffusers' layout, or a single .safetensors file.
    dtype: of all weights in memory, whatever the file has (see `part_dtype`).  ema: the averaged weights of the UNet where a
    source has both.  allow_pickle: read .ckpt and .bin too, tensors only.  config: the plan of a single file, which does not
    say it all; without one the context's width tells which known system it is (SD 2: the 768-pixel one that predicts v).
    Raises CheckpointError for what is missing, damaged, or for another model; memory holds one copy of the weights.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise OptionError(
            f"dtype = {dtype!r}: choose torch.float32, torch.bfloat16 or torch.float16"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as e:
        raise OptionError(
            f'device = {device!r}: not to be had here ({str(e).splitlines()[0][:100]}); use "cpu"'
        ) from e
    if not isinstance(source, (str, os.PathLike)):
        raise OptionError(f"source = {source!r:.80}: pass a name or a path")
    place = find(source, dtype, ema)
    if os.path.isdir(place):
        if config is not None:
            raise OptionError(
                f"{place} is a folder, and a folder says what its config is: leave config out"
            )
        return _load_folder(place, device, dtype, allow_pickle, ema)
    return _load_file(place, device, dtype, allow_pickle, ema, config)


def _load_folder(root, device, dtype, allow_pickle, ema):
    config, schedule = folder_config(root)
    sd = build(config, schedule, device="meta", dtype=dtype)
    for name, part in sd.parts().items():
        paths = folder.weight_files(root / name, part_dtype(name, dtype), ema)
        state = {}
        for path in paths:
            more = _read(path, name, device, dtype, allow_pickle)
            if twice := state.keys() & more.keys():
                raise CheckpointError(
                    f"{path}: {len(twice)} tensors stand in another shard too ({min(twice)}, ...); fetch the files again"
                )
            state |= more
        load_state(part, state, root / name)
    if config.text[-1].vocab != CLIP_L.vocab:  # other words than CLIP's
        sd.text.tokenizer = folder.read_tokenizer(
            root / ("tokenizer_2" if config.vector else "tokenizer"), config.text[-1].length
        )
    return sd


def _load_file(path, device, dtype, allow_pickle, ema, config):
    header, meta = load_tensors(
        path, allow_pickle
    )  # views of the file: names and shapes, no numbers read yet
    if meta.get("kind") == system_file.KIND:
        if config is not None:
            raise OptionError(f"{path} says itself what its config is: leave config out")
        return system_file.load_system(path, device=device, dtype=dtype)[0]
    try:
        parts = split_single_file(header, ema)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from None
    names = {id(x): name for name, x in header.items()}
    parts = {
        side: {name: names[id(x)] for name, x in state.items()} for side, state in parts.items()
    }
    config = config or _recognise(path, header)
    del header
    sd = build(config, device="meta", dtype=dtype)
    for (name, part), side in zip(sd.parts().items(), ("unet", "vae", "text", "text_2")):
        if side not in parts:
            raise CheckpointError(
                f"{path}: holds no weights of {name}, only of {', '.join(parts)}; use a file of the whole system, or a folder"
            )
        state = _read(path, name, device, dtype, allow_pickle, parts[side].values())
        load_state(part, {new: state[old] for new, old in parts[side].items()}, f"{path} ({name})")
    return sd


def _recognise(path, header):
    """The known system a single file holds, by the width of its UNet's context; more input channels (inpainting) are read."""
    width = next(
        (
            x.shape[1]
            for name, x in header.items()
            if name.endswith("attn2.to_k.weight") and x.ndim == 2
        ),
        0,
    )
    config = next(
        (known.config for known in KNOWN.values() if known.config.unet.context == width), None
    )
    if config is None:
        raise CheckpointError(
            f"{path}: no known system has a context {width} wide (SD 1.5: 768, SD 2: 1024, SDXL base: 2048, refiner: 1280). "
            f"This looks like {looks_like(header)}; a single file does not tell the number of heads: pass config=SystemConfig(...), or a folder"
        )
    inputs = next(
        (
            x.shape[1]
            for name, x in header.items()
            if name.endswith("input_blocks.0.0.weight") and x.ndim == 4
        ),
        4,
    )
    return (
        config
        if inputs == 4
        else replace(config, unet=replace(config.unet, in_channels=inputs, out_channels=4))
    )


def _read(path, part, device, dtype, allow_pickle, names=None):
    tensors, _ = load_tensors(path, allow_pickle, part_dtype(part, dtype), names)
    return {name: tensors.pop(name).to(device) for name in list(tensors)}


def folder_config(root: Path) -> tuple[SystemConfig, Schedule]:
    """The plan and the schedule of a folder in diffusers' layout, from its JSON files. Raises CheckpointError naming the entry."""
    index = folder.read_json(root / "model_index.json")

    def entry(part, *classes):
        kind = index.get(part) or [None, None]
        if not isinstance(kind, list) or kind[-1] not in classes:
            raise CheckpointError(
                f"{root / 'model_index.json'}: {part} = {index.get(part)!r} is not supported here; possible: "
                f"{' or '.join(map(str, classes))}. Is this another kind of model ({index.get('_class_name')})?"
            )
        return kind[-1]

    def read(part):
        return folder.read_json(root / part / "config.json"), str(root / part / "config.json")

    entry("unet", "UNet2DConditionModel"), entry("vae", "AutoencoderKL")
    texts = []
    for suffix in ("", "_2"):
        kind = entry(f"text_encoder{suffix}", "CLIPTextModel", "CLIPTextModelWithProjection", None)
        if kind:
            texts.append(
                config_json.text_config(
                    *read(f"text_encoder{suffix}"),
                    kind.endswith("WithProjection"),
                    folder.pad(root / f"tokenizer{suffix}"),
                )
            )
    if not texts:
        raise CheckpointError(
            f"{root / 'model_index.json'}: no text encoder; expected text_encoder or text_encoder_2"
        )
    entries, source = read("unet")
    unet, scale = config_json.unet_config(entries, source), None
    dim = entries.get("addition_time_embed_dim") or 256
    vector = (
        {6: "sdxl", 5: "refiner"}.get((unet.vector - texts[-1].projection) / dim)
        if unet.vector
        else ""
    )
    if vector is None:
        raise CheckpointError(
            f"{source}: projection_class_embeddings_input_dim = {unet.vector} is neither {texts[-1].projection} + 6 * {dim} "
            f"(SDXL) nor {texts[-1].projection} + 5 * {dim} (its refiner)"
        )
    if not vector:
        scale = SD_VAE.scale  # SD 1.5's own config is older than the entry scaling_factor
    vae = config_json.vae_config(*read("vae"), scale)
    schedule, predict = config_json.schedule_config(
        *(folder.read_json(p := root / "scheduler" / "scheduler_config.json"), str(p))
    )
    spacing = folder.read_json(root / "scheduler" / "scheduler_config.json").get(
        "timestep_spacing", "leading"
    )
    own = index.get(OURS) if isinstance(index.get(OURS), dict) else {}
    side = entries.get("sample_size")
    size = (side if isinstance(side, int) and side > 0 else 64) * 2 ** (len(vae.mult) - 1)
    name = next(
        (known.config.name for known in KNOWN.values() if known.config.unet == unet), root.name
    )
    try:
        return SystemConfig(
            name,
            unet,
            vae,
            tuple(texts),
            "penultimate" if vector else "last",
            predict,
            size,
            vector,
            dim,
            bool(vector and index.get("force_zeros_for_empty_prompt", vector == "sdxl")),
            spacing,
            own.get("steps", 30),
            own.get("guidance", 7.5),
            own.get("interval"),
        ), schedule
    except OptionError as e:
        raise CheckpointError(f"{root}: its parts do not fit together: {e}") from None


def save_folder(sd: StableDiffusion, root) -> None:
    """Write a system as a folder in diffusers' layout, which `load` and diffusers' from_pretrained read.

    Every file is written whole or not at all, and model_index.json last: a folder without it is not a model yet.
    The layout of SDXL has two text encoders: OptionError for a system that reads a pooled text from its only one.
    """
    root, c = Path(root), sd.config
    if c.vector == "sdxl" and len(c.text) == 1:
        raise OptionError(
            f"{c.name}: this layout knows pooled text and sizes beside two text encoders only: write it with system_file.save_system"
        )
    entries = {
        "unet": {
            **config_json.unet_entries(c.unet, c.number_dim),
            "sample_size": c.size // sd.vae.factor,
        },
        "vae": config_json.vae_entries(c.vae),
    }
    for name, part in sd.parts().items():
        kind = name.split("_")[0]
        save_tensors(
            root
            / name
            / ("model.safetensors" if kind == "text" else "diffusion_pytorch_model.safetensors"),
            to_folder(kind, part.state_dict()),
        )
        folder.write_json(
            root / name / "config.json", entries.get(name) or config_json.text_entries(part.config)
        )
        if kind == "text":
            folder.write_tokenizer(
                root / name.replace("text_encoder", "tokenizer"), part.config.pad, sd.text.tokenizer
            )
    folder.write_json(
        root / "scheduler" / "scheduler_config.json",
        config_json.schedule_entries(sd.schedule, sd.predict, c.spacing),
    )
    index = config_json.index_entries(c.vector, c.zero_empty, bool(c.text[0].projection))
    folder.write_json(
        root / "model_index.json",
        {**index, OURS: {"steps": c.steps, "guidance": c.guidance, "interval": c.interval}},
    )


# ---------------------------------------------------------------- memory


def weight_bytes(config: SystemConfig, dtype=torch.float32) -> int:
    """Bytes of all weights, exactly: counted on the meta device."""
    return sum(
        p.numel() * p.element_size() for p in build(config, device="meta", dtype=dtype).parameters()
    )


def memory_needed(
    source, dtype=torch.float32, size=None, batch: int = 1, guidance: bool = True
) -> int:
    """Bytes to draw `batch` pictures of `size` (pixels: one side, or (height, width)) at once: weights and the widest moment.

    source: a SystemConfig, or a source of `load`, whose weights are not read. The weights are exact. The widest moment is the
    larger of one UNet call (on 2 batch pictures with guidance) and decoding one picture in one piece, as a rehearsal on the
    meta device counts it (memory.py); the libraries' own work space comes on top.
    """
    config = source if isinstance(source, SystemConfig) else config_of(source)
    height, width = (size, size) if isinstance(size, int) else size or (config.size, config.size)
    for side in (height, width):
        whole("size", side, 8, 8192, "pixels a side")
    whole("batch", batch, 1, 1024, "pictures at once")
    return _memory(config, dtype, (height, width), batch * (2 if guidance else 1))


@functools.lru_cache
def _memory(config, dtype, size, batch):
    return weight_bytes(config, dtype) + widest_moment(
        build(config, device="meta", dtype=dtype), size, batch
    )


def config_of(source) -> SystemConfig:
    """The plan of a source of `load`, without reading its weights; a known system's without looking for it."""
    if str(source) in KNOWN:
        return KNOWN[str(source)].config
    place = find(source)
    if os.path.isdir(place):
        return folder_config(place)[0]
    header, meta = load_tensors(place)
    return (
        system_file.plan(place, meta)
        if meta.get("kind") == system_file.KIND
        else _recognise(place, header)
    )
