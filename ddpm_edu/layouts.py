"""Names of the same weights in other layouts, and what a set of names is.

The original single-file checkpoints, the folders of diffusers and transformers, and this package hold the same
tensors under different names. Each table is a row of ideas: a pattern, and what it is called here.
"""
import re

from torch import Tensor

from .errors import CheckpointError


def rename(state: dict[str, Tensor], rows: list) -> dict[str, Tensor]:
    """Every key through every row (pattern, new) of a table, in its order."""
    out = {}
    for key, value in state.items():
        for pattern, new in rows:
            key = re.sub(pattern, new, key)
        out[key] = value
    return _unmixed(out, state)


def _unmixed(out, state):
    if len(out) < len(state):
        raise CheckpointError(f"{len(state) - len(out)} tensors are there under two names, one of each layout: keep one of them")
    return out


# ---------------------------------------------------------------- UNet

ORIGINAL_UNET = [  # original single-file key, after "model.diffusion_model." -> ours; each row is one idea
    (r"^time_embed\.", "time."),
    (r"^label_emb\.0\.", "vector."),
    (r"^input_blocks\.0\.0\.", "conv_in."),
    (r"^input_blocks\.(\d+)\.", lambda match: f"down.{int(match[1]) - 1}."),
    (r"^middle_block\.", "mid."),
    (r"^output_blocks\.", "up."),
    (r"^out\.0\.", "norm_out."),
    (r"^out\.2\.", "conv_out."),
    (r"\.op\.", ".conv."),
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".skip."),
    (r"\.transformer_blocks\.", ".blocks."),
    (r"\.to_out\.0\.", ".out."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.ff\.net\.0\.proj\.", ".ff.proj."),
    (r"\.ff\.net\.2\.", ".ff.out."),
]

FOLDER_UNET = [  # folder name -> ours inside a block, read backwards for saving (so the longer name of ours comes first)
    (".ff.net.0.proj.", ".ff.proj."),
    (".ff.net.2.", ".ff.out."),
    (".to_out.0.", ".out."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".transformer_blocks.", ".blocks."),
    (".time_emb_proj.", ".time."),
    (".conv_shortcut.", ".skip."),
]


def _folder_places(levels: int, blocks: int, attention: list[bool], middle: bool) -> dict[str, str]:
    """{folder block: our block}: theirs counts level by level, ours in the order of the forward pass.

    attention: for each level, from the finest, whether transformers follow its ResBlocks; middle: the same there.
    """
    places = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out",
              "time_embedding.linear_1": "time.0", "time_embedding.linear_2": "time.2",
              "add_embedding.linear_1": "vector.0", "add_embedding.linear_2": "vector.2",
              "mid_block.resnets.0": "mid.0", "mid_block.resnets.1": f"mid.{1 + middle}"}
    if middle:
        places["mid_block.attentions.0"] = "mid.1"
    for level in range(levels):
        for side, k, count in (("down", level, blocks), ("up", levels - 1 - level, blocks + 1)):
            first = k * (blocks + 1)  # on the way down, the Downsample counts as one more
            for j in range(count):
                places[f"{side}_blocks.{k}.resnets.{j}"] = f"{side}.{first + j}.0"
                if attention[level]:
                    places[f"{side}_blocks.{k}.attentions.{j}"] = f"{side}.{first + j}.1"
            last = 0 if side == "down" else 1 + attention[level]
            places[f"{side}_blocks.{k}.{side}samplers.0"] = f"{side}.{first + blocks}.{last}"
    return places


def _move(state, places, rows):
    """Each key's block by `places`, the rest of it by plain replacements; a key of no place keeps its name."""
    out = {}
    for key, value in state.items():
        parts = key.split(".")
        place = next((p for p in (".".join(parts[:n]) for n in (4, 3, 2, 1)) if p in places), None)
        if place:
            rest = key[len(place):]
            for old, new in rows:
                rest = rest.replace(old, new)
            key = places[place] + rest
        out[key] = value
    return _unmixed(out, state)


def original_unet(state):
    """Original names -> ours."""
    return _flat(rename(state, ORIGINAL_UNET))


def folder_unet(state):
    """diffusers names -> ours; how many levels and blocks there are, and where attention is, the names tell."""
    levels = 1 + max((int(k.split(".")[1]) for k in state if k.startswith("down_blocks.")), default=0)
    blocks = 1 + max((int(k.split(".")[3]) for k in state if k.startswith("down_blocks.0.resnets.")), default=0)
    attention = [any(k.startswith(f"down_blocks.{level}.attentions.") for k in state) for level in range(levels)]
    middle = any(k.startswith("mid_block.attentions.") for k in state)
    return _flat(_move(state, _folder_places(levels, blocks, attention, middle), FOLDER_UNET))


def to_folder_unet(state, conv: bool = False):
    """Ours -> diffusers names. conv: proj_in and proj_out as 1x1 convolutions (O, I, 1, 1), as SD 1.x has them
    (`use_linear_projection` false in its config); matrices (O, I) in SD 2 and SDXL."""
    levels = 1 + sum(bool(re.fullmatch(r"down\.\d+\.0\.conv\.weight", k)) for k in state)
    blocks = (1 + max(int(k.split(".")[1]) for k in state if k.startswith("down.")) - (levels - 1)) // levels
    attention = [f"down.{level * (blocks + 1)}.1.norm.weight" in state for level in range(levels)]
    places = _folder_places(levels, blocks, attention, "mid.1.norm.weight" in state)
    out = _move(state, {ours: theirs for theirs, ours in places.items()}, [(ours, theirs) for theirs, ours in FOLDER_UNET])
    return {k: v[:, :, None, None] if conv and _is_projection(k) else v for k, v in out.items()}


def _flat(state):
    """1x1 convolutions (O, I, 1, 1) of proj_in and proj_out as matrices (O, I)."""
    return {k: v.flatten(1) if _is_projection(k) and v.ndim == 4 else v for k, v in state.items()}


def _is_projection(key):
    return key.endswith((".proj_in.weight", ".proj_out.weight"))


# ---------------------------------------------------------------- VAE
# A row is (their name, ours), `#` a number, and reads both ways. Both VAEs count the encoder's levels from the finest.

ORIGINAL_VAE = [  # original single-file key, after "first_stage_model." -> ours, but for the order of the decoder's levels
    (".down.#.block.#.", ".down.#.#."),
    (".up.#.block.#.", ".up.#.#."),
    (".mid.block_1.", ".mid.0."),
    (".mid.attn_1.", ".mid.1."),
    (".mid.block_2.", ".mid.2."),
    (".proj_out.", ".out."),
    (".nin_shortcut.", ".skip."),
    ("post_quant_conv.", "post_quant."),
    ("quant_conv.", "quant."),
]

FOLDER_VAE = [  # diffusers' key -> ours
    (".down_blocks.#.resnets.#.", ".down.#.#."),
    (".down_blocks.#.downsamplers.0.", ".down.#.downsample."),
    (".up_blocks.#.resnets.#.", ".up.#.#."),
    (".up_blocks.#.upsamplers.0.", ".up.#.upsample."),
    (".mid_block.resnets.0.", ".mid.0."),
    (".mid_block.resnets.1.", ".mid.2."),
    (".mid_block.attentions.0.group_norm.", ".mid.1.norm."),
    (".mid_block.attentions.0.to_q.", ".mid.1.q."),
    (".mid_block.attentions.0.to_k.", ".mid.1.k."),
    (".mid_block.attentions.0.to_v.", ".mid.1.v."),
    (".mid_block.attentions.0.to_out.0.", ".mid.1.out."),
    (".conv_norm_out.", ".norm_out."),
    (".conv_shortcut.", ".skip."),
    ("post_quant_conv.", "post_quant."),
    ("quant_conv.", "quant."),
]

OLD_FOLDER_VAE = [  # the attention's names in diffusers' older files -> its newer ones
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
]


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights from a single file, with "first_stage_model." or without it -> our names."""
    out = rename(state, [(r"^first_stage_model\.", ""), *_forth(ORIGINAL_VAE)])
    levels = len({key.split(".")[2] for key in out if key.startswith("decoder.up.")})
    # the original counts the decoder's levels from the finest, ours come in the order of running, the coarsest first
    return _matrices(rename(out, [(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.")]))


def folder_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights in diffusers' names, the older ones too -> our names."""
    return _matrices(rename(state, _forth(OLD_FOLDER_VAE + FOLDER_VAE)))


def to_folder_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights in our names -> diffusers' names: the inverse of `folder_vae`."""
    return rename(state, _forth([(ours, theirs) for theirs, ours in FOLDER_VAE]))


def _forth(rows):
    """Rows for `rename`: each `#` a number that stays, and a name that starts no part of a key starts the key."""
    return [(("" if old[0] == "." else "^") + re.escape(old).replace(r"\#", r"(\d+)"),
             re.sub("#", lambda match, numbers=iter("123"): rf"\g<{next(numbers)}>", new)) for old, new in rows]


def _matrices(state):
    """The attention's 1x1 convolutions (O, I, 1, 1) are matrices (O, I) here."""
    return {k: v.flatten(1) if ".mid.1." in k and v.ndim == 4 else v for k, v in state.items()}


# ---------------------------------------------------------------- text encoders
# Ours are the names of transformers' files, "text_model." in front; transformers 5.6 and later may leave that out.

OPENCLIP_TEXT = [  # OpenCLIP's key -> ours, for the keys that keep their tensor
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
]
TEXT_PREFIX = [  # of single files: SD's, SDXL's, and what their classes wrap around the encoder
    (r"^(cond_stage_model|conditioner\.embedders\.\d+)\.", ""),
    (r"^(model|transformer)\.(?=text_model\.|transformer\.|ln_final\.|positional_|token_|text_projection|logit_scale)", ""),
]


def original_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One text encoder's weights from a single file, CLIP-L's or OpenCLIP's names, prefix or not -> our names.

    OpenCLIP keeps Q, K and V in one matrix (3C, C), here three (C, C), and multiplies by text_projection from the other
    side, so it is transposed. `logit_scale` belongs to training.
    """
    names = [re.match(r"conditioner\.embedders\.\d+\.", key) for key in state]
    if len({m[0] for m in names if m}) > 1:
        raise CheckpointError("these are the weights of two text encoders: pass those of one, see `split_single_file`")
    out = {}
    for key, value in rename(rename(state, TEXT_PREFIX), OPENCLIP_TEXT).items():
        if m := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", key):
            out.update({f"{m[1]}{name}_proj.{m[2]}": part for name, part in zip("qkv", value.chunk(3))})
        elif key == "text_projection":
            out["text_projection.weight"] = value.T.contiguous()
        elif key != "logit_scale":
            out[key] = value
    return folder_text(out)


def folder_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights in transformers' names, "text_model." or not -> our names; `position_ids` are no weights."""
    kept = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    return rename(kept, [(r"^(?=(embeddings|encoder|final_layer_norm)\.)", "text_model.")])


def to_folder_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights in our names -> transformers' names, "text_model." in front, which all its versions read."""
    return dict(state)

# ---------------------------------------------------------------- one part, whatever its layout

SIGNS = {  # (part, layout): a name that says so, without the prefix of single files
    ("unet", "original"): r"^(input_blocks|output_blocks|middle_block)\.",
    ("unet", "folder"): r"^(down_blocks|up_blocks|mid_block)\.",
    ("unet", "ours"): r"^(down|up|mid)\.\d",
    ("vae", "folder"): r"^(encoder|decoder)\.(down|up|mid)_block",
    ("vae", "original"): r"^(encoder|decoder)\.((down|up)\.\d+\.block\.|mid\.block_)",
    ("text", "original"): r"^transformer\.resblocks\.",
    ("text", "folder"): r"^(text_model\.)?encoder\.layers\.",
}
PREFIXES = {  # what stands before the names in a single file -> the part
    "model.diffusion_model.": "unet", "first_stage_model.": "vae",
    "cond_stage_model.": "text", "conditioner.embedders.0.": "text", "conditioner.embedders.1.": "text_2",
}
INNER = r"^(transformer\.(?=text_model\.)|model\.(?=transformer\.|ln_final\.|positional_|token_|text_|logit_))"  # the wrapper of a text encoder
HARMLESS = re.compile(  # no weights: counters, and what the schedule or the config says already
    r"(^|\.)(position_ids|logit_scale)$|^denoiser\.sigmas$|^model_ema\.(decay|num_updates)$"
    r"|^(betas|(sqrt_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_recipm?1?_alphas_cumprod|posterior_\w+)$")


def to_ours(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of any layout -> ours: original (its prefix stripped or not, or a whole single file), folder, or ours already.

    kind: "unet", "vae" or "text".  What is HARMLESS is left out; a name that is in no table stays as it is.
    """
    if any(k.startswith("model.diffusion_model.") for k in state) and any(k.startswith("first_stage_model.") for k in state):
        parts = split_single_file(state)
        if kind == "text" and "text_2" in parts:
            raise CheckpointError("a single file with two text encoders: take `text` or `text_2` of split_single_file")
        state = parts.get(kind, state)
    prefix = next((p for p, part in PREFIXES.items() if part.startswith(kind) and any(k.startswith(p) for k in state)), "")
    state = {_inner(k.removeprefix(prefix)): v for k, v in state.items() if not HARMLESS.search(k)}
    layout = layout_of(state)
    rename_all = globals().get(f"{layout[1]}_{kind}") if layout and layout[0] == kind else None
    state = rename_all(state) if rename_all else state
    return _flat(state) if kind == "unet" else state


def to_folder(kind: str, state: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """Our names -> those of diffusers ("unet", "vae") or transformers ("text"). conv=True for the UNet of SD 1.x."""
    return globals()[f"to_folder_{kind}"](state, **options)


def layout_of(names) -> tuple[str, str] | None:
    """(part, layout) of names without prefix, or None: ("unet", "original" | "folder" | "ours"), ..."""
    text = "\n".join(names)
    return next((what for what, sign in SIGNS.items() if re.search(sign, text, re.MULTILINE)), None)


def _inner(key):
    return re.sub(INNER, "", key)


def split_single_file(state: dict[str, Tensor], ema: bool = True) -> dict[str, dict[str, Tensor]]:
    """A single file's tensors by part: {"unet": ..., "vae": ..., "text": ..., "text_2": ...}, the prefixes stripped.

    Text encoders count in the file's order (the refiner's only one is `text`).  ema: where the file holds averaged
    weights of the UNet (`model_ema.`, their names without dots) take those.  CheckpointError for names of no part.
    """
    parts, averages, unknown = {}, {}, []
    for key, value in state.items():
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if HARMLESS.search(key):
            continue
        if prefix:
            parts.setdefault(PREFIXES[prefix], {})[_inner(key.removeprefix(prefix))] = value
        elif key.startswith("model_ema."):
            averages[key] = value
        else:
            unknown.append(key)
    if "unet" not in parts:
        raise CheckpointError(f"not a single file of Stable Diffusion: this looks like {looks_like(state)}")
    if averages:
        names = {k: "model_ema.diffusion_model" + k.replace(".", "") for k in parts["unet"]}
        unknown += averages.keys() - names.values()
        if ema and (missing := names.values() - averages.keys()):
            raise CheckpointError(f"{_count(missing)} of the averaged weights missing: pass ema=False for the others")
        parts["unet"] = {k: averages[name] for k, name in names.items()} if ema else parts["unet"]
    if unknown:
        raise CheckpointError(f"{_count(unknown)} belong to no part of Stable Diffusion; this looks like {looks_like(state)}")
    return parts


def _count(names):
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


# ---------------------------------------------------------------- recognising what a set of names is

STRANGERS = [  # (a name somewhere, what it is)
    (r"lora_(up|down|A|B)\b|\.lora\.|^lora_|\.hada_w|\.lokr_", "a LoRA: small changes to a model, not a model"),
    (r"^control_model\.|^(input_hint_block|zero_convs|controlnet_\w+)\.", "a ControlNet: an addition to a model, not a model"),
    (r"^(model\.diffusion_model\.)?joint_blocks\.", "SD 3, another kind of model"),
    (r"^(model\.diffusion_model\.)?double_blocks\.", "FLUX, another kind of model"),
    (r"^string_to_param|^emb_params$|^clip_[lg]$", "a textual inversion: a new word for a text encoder, not a model"),
    (r"^(visual|vision_model)\.", "a whole CLIP model, images and text"),
    (r"^schedule\.beta$", "a model of this course, written by save_pretrained: read it with load_pretrained"),
]
UNETS = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL base", 1280: "the SDXL refiner"}  # by the width of the context
TEXTS = {768: "CLIP-L (of SD 1.5 and SDXL base)", 1024: "OpenCLIP-H (of SD 2)", 1280: "OpenCLIP-bigG (of SDXL base and refiner)"}


def looks_like(keys) -> str:
    """What a set of names is, in words: "SDXL base (a single file)", "the UNet of SD 1.5 (folder names)", "a LoRA", ...

    keys: {name: tensor or shape}, or names alone; then what only shapes can tell is left open.
    """
    text = "\n".join(keys)
    for sign, words in STRANGERS:
        if re.search(sign, text, re.MULTILINE):
            return words
    if not isinstance(keys, dict):
        keys = dict.fromkeys(keys)
    single = any(k.startswith("model.diffusion_model.") for k in keys)
    prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in keys)), "")
    bare = {_inner(k.removeprefix(prefix)): tuple(getattr(v, "shape", v) or ()) for k, v in keys.items() if k.startswith(prefix)}
    part, layout = layout_of(bare) or ("", "")
    names = "names of this course" if layout == "ours" else f"{layout} names"
    if part == "unet":
        whole = single and any(k.startswith(("first_stage_model.", "conditioner.", "cond_stage_model.")) for k in keys)
        return f"{_which_unet(bare, text)} (a single file)" if whole else f"the UNet of {_which_unet(bare, text)} ({names})"
    if part == "vae":
        return f"the VAE of SD or SDXL ({names})"
    if part == "text":
        width = next((s[-1] for k, s in bare.items() if s and re.search(r"token_embedding|position(al)?_embedding", k)), None)
        return f"the text encoder {TEXTS.get(width, 'of an unknown width' if width is None else f'of width {width}')} ({names})"
    first = ", ".join(list(keys)[:3])
    return f"nothing known here (first names: {first})" if first else "nothing: it is empty"


def _which_unet(shapes, text):
    width = next((s[1] for k, s in shapes.items() if s and re.search(r"attn2\.(to_)?k\.weight$", k)), None)
    if width is None and any(shapes.values()):
        return "a model without text"
    if width is None:
        vector = re.search(r"(label_emb|add_embedding|(^|\.)vector)\.", text)
        deep = re.search(r"blocks\.9\.attn1\.", text)
        return ("SDXL base" if deep else "the SDXL refiner") if vector else "SD 2" if "cond_stage_model.model." in text else "SD 1.5 or 2"
    inputs = next((s[1] for k, s in shapes.items() if s and k in ("input_blocks.0.0.weight", "conv_in.weight")), 4)
    return UNETS.get(width, f"no known model, context {width} wide") + (f" with {inputs} input channels" if inputs != 4 else "")
