"""LoRA files as the community writes them, in and out. Notebook 17.

    lora = load_lora("cat.safetensors", sd)       of kohya's scripts, of diffusers, of peft
    attach(sd, lora, 0.8)
    save_lora("mine.safetensors", lora, sd)       diffusers reads it, and what reads kohya's files

A file holds of each layer A ("down"), B ("up") and perhaps alpha, under this layer's name in one of
several notations. What they mean depends on the system, so `load_lora` asks for it.
"""

import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, OptionError, in_range, warn
from ..networks.lora import LoRA, LowRank, layers
from ..networks.unet import UNet
from ..systems.system import StableDiffusion
from .folder import Folder
from .load import check_finite
from .names import (
    FOLDER_TEXT,
    FOLDER_UNET,
    ORIGINAL_UNET,
    SIGNS,
    UNETS,
    count,
    folder_unet_rows,
    looks_like,
    rename,
    signed,
    size,
    table,
)
from .tensors import header, inside, load_tensors, save_tensors

KEY = re.compile(  # a layer's name, and what of its change
    r"(.+?)(?:\.lora_|[._]lora\.|\.lora_linear_layer\.)(down|up|mid|A|B)(?:\.\w+)?\.weight"
    r"|(.+)\.(alpha)"
)
OTHERS = {  # changes of another form: a name in their files
    "a DoRA (a LoRA and lengths of its own)": r"\.dora_scale$|\.lora_magnitude_vector",
    "a LoHa (products of LoRAs)": r"\.hada_[wt]\d",
    "a LoKr (Kronecker products)": r"\.lokr_[wt]\d",
    "an OFT (rotations)": r"\.oft_",
    "a GLoRA": r"\.[ab][12]\.weight$",
    "an IA3 (factors of channels)": r"\.on_input$|\.ia3_",
    "a LoRA with biases": r"\.lora_(B|up)(\.\w+)?\.bias$",
    "whole differences of weights, no LoRA": r"\.diff(_b)?$|\.[wb]_norm$",
}
SAVED = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"  # by diffusers, by peft
BEGINNINGS = {  # of a name: the part that the layer is in
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "diffusion_model.": "unet",  # what ComfyUI saves
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
# kohya's scripts write "_" for every "." of a name; the others were there before
WORDS = """
    down_blocks up_blocks mid_block input_blocks output_blocks middle_block transformer_blocks
    to_q to_k to_v to_out proj_in proj_out conv_in conv_out conv_shortcut time_emb_proj
    time_embedding add_embedding linear_1 linear_2 in_layers out_layers emb_layers skip_connection
    time_embed label_emb text_model self_attn q_proj k_proj v_proj out_proj text_projection
""".split()
UNDERSCORED = re.compile(rf"(?<![a-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?![a-z])")
OLD_UNET = table(".to_out. > .out.")  # what older diffusers called the processors of attention
OLD_TEXT = table("""
    .self_attn.to_q. > .self_attn.q_proj.       .self_attn.to_k. > .self_attn.k_proj.
    .self_attn.to_v. > .self_attn.v_proj.       .self_attn.to_out. > .self_attn.out_proj.
""")

# ---------------------------------------------------------------- in


def load_lora(path, sd: StableDiffusion) -> LoRA:
    """The LoRA of a .safetensors file for `sd`, not attached yet; its metadata is `lora.meta`.

    path: the file, or the folder that diffusers or peft saved it in.

    Names of kohya's scripts (for SDXL also with the original names), of diffusers and of peft; a
    missing alpha is the rank. sd may be on the meta device, see `build`. CheckpointError for a
    damaged file, a LoRA of another system, rank 0, or a change of another form such as DoRA.
    """
    path = inside(path, *SAVED)
    views, meta = load_tensors(path)
    if kind := signed(views, OTHERS):
        remedy = "only (alpha / r) B A is read here: use a plain LoRA of the same thing"
        raise CheckpointError(f"{path}: this is {kind}: {remedy}")
    entries, strangers = _entries(views)
    if not entries:
        raise CheckpointError(f"{path}: no LoRA, it looks like {looks_like(views)}: pass a LoRA")
    check_finite(views, path)
    said = header(path).get("__metadata__", {})
    try:
        told = _told(path, said)
        alphas = {theirs: _alpha(theirs, its, told) for theirs, its in entries.items()}
    except (ValueError, TypeError, AttributeError, RuntimeError) as e:
        remedy = "damaged, get it again"
        raise CheckpointError(f"{path}: no alpha can be read ({e!s:.100}): {remedy}") from None
    names, own = our_names(entries, sd, path), dict(layers(sd))
    changes, misfits = {}, []
    for theirs, its in entries.items():
        layer = own.get(names.get(theirs))
        if layer is None:
            strangers.append(theirs)
        elif change := _change(layer, its, alphas[theirs], f"{path}: {theirs}"):
            changes[names[theirs]] = change
        else:
            misfits.append(theirs)
    if strangers or misfits:
        kinds = {"names of no layer of it": strangers, "of another shape": misfits}
        found = "; ".join(count(names, kind) for kind, names in kinds.items() if names)
        cause = f"a LoRA {_made_for(views)}and {sd.config.name} do not fit: {found}"
        raise CheckpointError(f"{path}: {cause}: use one that was trained on {sd.config.name}")
    if not any(alphas.values()):
        warn(f"{path}: alpha is 0 in every layer, so this LoRA changes nothing")
    lora = LoRA(changes).eval().requires_grad_(False)
    lora.meta = {k: text for k, text in said.items() if k != "ddpm_edu"} | meta
    return lora


def _entries(views) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """({layer, as the file names it: {"down": A, "up": B, perhaps "alpha", "mid"}}, the rest)."""
    entries, rest = {}, []
    for key, w in views.items():
        if match := KEY.fullmatch(key):
            side = match[2] or match[4]
            side = {"A": "down", "B": "up"}.get(side, side)
            its = entries.setdefault(match[1] or match[3], {})
            rest += [key] if side in its else []  # in two notations at once
            its[side] = w
        else:
            rest.append(key)
    return entries, rest


def _change(layer: nn.Module, its: dict, alpha: float, name: str) -> LowRank | None:
    """The change of a layer, or None where the shapes are those of another one."""
    if missing := {"down", "up"} - its.keys():
        remedy = "half of a change, get the file again"
        raise CheckpointError(f"{name}: {' and '.join(sorted(missing))} missing: {remedy}")
    kinds = [w.dtype for side, w in its.items() if side != "alpha" and not w.is_floating_point()]
    if kinds:
        raise CheckpointError(f"{name}: {kinds[0]}, no floating numbers: use another file")
    down, up = (its[side].to(torch.float32, copy=True) for side in ("down", "up"))
    if 0 in (*down.shape, *up.shape):
        shapes = f"A {tuple(down.shape)}, B {tuple(up.shape)}"
        raise CheckpointError(f"{name}: rank 0, {shapes}, changes nothing: use another file")
    if down.ndim not in (2, 4) or up.ndim != down.ndim:
        return None
    if (mid := its.get("mid")) is not None:  # 1x1, then k x k: together one k x k
        if mid.ndim != 4 or mid.shape[:2] != (len(down), len(down)):
            return None
        down = torch.einsum("rsij,sc->rcij", mid.float(), down.flatten(1))
    if isinstance(layer, nn.Linear):  # SD 1's proj_in and proj_out are 1x1 convolutions elsewhere
        down, up = down.flatten(1), up.flatten(1)
    try:
        with torch.device("meta"):
            change = LowRank(layer, len(down), alpha)
    except OptionError as e:  # a rank beyond all
        raise CheckpointError(f"{name}: {e}") from None
    state = {"down.weight": down, "up.weight": up}
    if any(w.shape != state[key].shape for key, w in change.state_dict().items()):
        return None
    change.load_state_dict(state, assign=True)
    return change


def _told(path, said: dict) -> dict:
    """What is told of alpha outside of the tensors: diffusers writes it into the metadata, peft
    into adapter_config.json beside the file."""
    if Path(path).name.startswith("adapter_model"):
        return Folder(Path(path).parent).json("adapter_config.json", {})
    return json.loads(said.get("lora_adapter_metadata", "{}"))


def _alpha(theirs: str, its: dict, told: dict) -> float:
    """Of one layer: its tensor says so, or `told` does; else it is the rank."""
    if (alpha := its.get("alpha")) is not None:
        return in_range("alpha", alpha.item(), -1e6, 1e6)
    part, name = placed(theirs)
    get = lambda key, default: told.get(f"{part}.{key}", told.get(key)) or default
    rank, own = len(its.get("down", ())), get("alpha_pattern", {})
    found = (alpha for end, alpha in own.items() if f".{name}".endswith(f".{end}"))
    alpha = float(next(found, get("lora_alpha", rank)))
    alpha *= math.sqrt(rank) if get("use_rslora", False) else 1
    return in_range("alpha", alpha, -1e6, 1e6)


def _made_for(views) -> str:
    """ "of SDXL base ", by the width of the text that it reads; "" where nothing tells."""
    if signed(views, {"other": r"^transformer\.|(double|single|joint)_(transformer_)?blocks"}):
        return "of FLUX or SD 3 "
    width = size(views, r"attn2[._].*to_k.*(down|lora_A).*weight$", 1)
    return f"of {UNETS[width]} " if width in UNETS else ""


# ---------------------------------------------------------------- names


def placed(theirs: str) -> tuple[str, str]:
    """(part, name in it) of a layer: "lora_unet_mid_block_resnets_0_conv1" is ("unet",
    "mid_block.resnets.0.conv1")."""
    theirs = theirs.removeprefix("base_model.model.")
    start = next((start for start in BEGINNINGS if theirs.startswith(start)), "")
    name = theirs.removeprefix(start)
    if start.endswith("_"):
        kept = UNDERSCORED.sub(lambda match: match[1].replace("_", "-"), name)
        name = kept.replace("_", ".").replace("-", "_")
    is_text = re.match(r"(text_model\.)?encoder\.layers\.", name)
    part = BEGINNINGS.get(start) or ("text_encoder" if is_text else "unet")
    return part, name.replace(".processor.", ".")


def our_names(theirs, sd: StableDiffusion, source="the LoRA") -> dict[str, str]:
    """{name of a layer in a file: ours}, of a part that sd has."""
    parts, ours = {}, {}
    for layer in theirs:
        part, name = placed(layer)
        parts.setdefault(part, {})[f"{name}.weight"] = layer
    for part, start in _starts(sd).items():
        names = parts.get(part, {})
        original = signed(names, {"original": SIGNS["unet", "original"]})
        rows = OLD_TEXT + FOLDER_TEXT
        if part == "unet":
            rows = ORIGINAL_UNET if original else [*_folder_rows(sd.unet.config), *OLD_UNET]
        try:
            renamed = rename(names, rows)
        except CheckpointError as e:
            raise CheckpointError(f"{source}: {e}") from None
        ours |= {layer: start + k.removesuffix(".weight") for k, layer in renamed.items()}
    return ours


def _starts(sd) -> dict[str, str]:
    """{part: how the names of its layers begin in sd}."""
    is_system = isinstance(sd, StableDiffusion)
    if not is_system or type(sd.unet) is not UNet:
        kind = (
            f"denoises with a {type(sd.unet).__name__}"
            if is_system
            else f"is a {type(sd).__name__}"
        )
        remedy = "pass a StableDiffusion with a UNet, one before `speed_up`"
        raise OptionError(f"sd {kind}, and files of LoRAs are for UNets: {remedy}")
    encoders = [name for name in sd.config.parts() if name.startswith("text")]
    texts = {name: f"text.encoders.{k}." for k, name in enumerate(encoders)}
    return {"unet": "unet.", **texts}


def _folder_rows(c) -> list:
    attention = [depth > 0 for depth in c.depth]
    return folder_unet_rows(len(c.mult), c.blocks, attention, c.middle > 0) + FOLDER_UNET


# ---------------------------------------------------------------- out


def save_lora(path, lora: LoRA, sd: StableDiffusion, meta: dict | None = None, dtype=None) -> None:
    """Write `lora`, made for `sd`, and `meta` (JSON-able) to a .safetensors file, all or nothing.

    In kohya's notation with diffusers' names, the one that most programs read, since alpha is in
    it. lora.scale is not. dtype: of the matrices; None: as they are. CheckpointError for NaN.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise OptionError(f"dtype = {dtype}: the matrices are floats, pass torch.float16, say")
    names, tensors = kohya_names(sd), {}
    # In SD 1, whose text encoder is OpenAI's CLIP alone, other programs project around the
    # transformers by 1x1 convolutions.
    as_convolution = [c.act for c in sd.config.text] == ["quick_gelu"]
    for ours, change in lora.items():
        if ours not in names:
            remedy = "pass the system that it was made for"
            raise OptionError(
                f"lora changes {ours}, which is no layer of {sd.config.name}: {remedy}"
            )
        down, up = (m.weight.detach().to(dtype or m.weight.dtype) for m in (change.down, change.up))
        if as_convolution and ours.endswith(("proj_in", "proj_out")):
            down, up = down[:, :, None, None], up[:, :, None, None]
        its = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(change.alpha)}
        tensors |= {f"{names[ours]}.{key}": w for key, w in its.items()}
    check_finite(tensors, path)
    save_tensors(path, tensors, {"of": sd.config.name, **(meta or {})})


def kohya_names(sd: StableDiffusion) -> dict[str, str]:
    """{our name of a layer: kohya's}, of all that a LoRA can change but the VAE's."""
    starts = {part: start for part, start in _starts(sd).items() if part != "unet"}
    own = {f"{name}.weight": name for name, _ in layers(sd.unet)}
    rows = _folder_rows(sd.unet.config)
    there = lambda theirs, ours: ".attentions." not in theirs or f"{ours}proj_in.weight" in own
    outside = [(ours, theirs) for theirs, ours in rows if theirs[0] != "." and there(theirs, ours)]
    inside = [(ours, theirs) for theirs, ours in rows if theirs[0] == "."]
    longest_first = sorted(inside, key=lambda row: -len(row[0]))
    folder = rename(rename(own, outside), longest_first)
    found = {f"unet.{ours}": f"lora_unet_{theirs}" for theirs, ours in folder.items()}
    short = {"text_encoder": "lora_te1_" if len(starts) > 1 else "lora_te_"}
    for (part, start), encoder in zip(starts.items(), sd.text.encoders):
        begins = short.get(part, "lora_te2_")
        found |= {start + name: begins + name for name, _ in layers(encoder)}
    return {ours: k.removesuffix(".weight").replace(".", "_") for ours, k in found.items()}
