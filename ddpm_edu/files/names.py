"""What names of weights tell: which model, which part, whose layout; our names. Notebook 11.

One notation for every layout: a row is (their name, ours), `#` a number that stays, `#-1` one less.
A row that begins with "." renames wherever it stands; of the others, which rename the beginning of
a name, the first that fits does.
"""

import functools
import re

from torch import Tensor

from ..errors import CheckpointError

# ---------------------------------------------------------------- rows

TRANSFORMER = [
    (".transformer_blocks.", ".blocks."),
    (".to_out.0.", ".out."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".ff.net.0.proj.", ".ff.proj."),
    (".ff.net.2.", ".ff.out."),
]
ORIGINAL_UNET = [  # after "model.diffusion_model."
    ("time_embed.", "time."),
    ("label_emb.0.", "vector."),
    ("input_blocks.0.0.", "conv_in."),
    ("input_blocks.#.", "down.#-1."),
    ("middle_block.", "mid."),
    ("output_blocks.", "up."),
    ("out.0.", "norm_out."),
    ("out.2.", "conv_out."),
    (".op.", ".conv."),
    (".in_layers.0.", ".norm1."),
    (".in_layers.2.", ".conv1."),
    (".emb_layers.1.", ".time."),
    (".out_layers.0.", ".norm2."),
    (".out_layers.3.", ".conv2."),
    (".skip_connection.", ".skip."),
    *TRANSFORMER,
]
FOLDER_UNET = [  # inside a block of diffusers; where the blocks lie, see `folder_unet_rows`
    *TRANSFORMER,
    (".time_emb_proj.", ".time."),
    (".conv_shortcut.", ".skip."),
]
ORIGINAL_VAE = [  # after "first_stage_model."
    ("post_quant_conv.", "post_quant."),
    ("quant_conv.", "quant."),
    (".down.#.block.#.", ".down.#.#."),
    (".up.#.block.#.", ".up.#.#."),
    (".mid.block_1.", ".mid.0."),
    (".mid.attn_1.", ".mid.1."),
    (".mid.block_2.", ".mid.2."),
    (".proj_out.", ".out."),
    (".nin_shortcut.", ".skip."),
]
OLD_FOLDER_VAE = [  # the attention's names in diffusers' older files -> its newer ones
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
]
FOLDER_VAE = [
    ("post_quant_conv.", "post_quant."),
    ("quant_conv.", "quant."),
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
]
OPENCLIP_TEXT = [  # ours are the names of transformers' files, "text_model." in front
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("ln_final.", "text_model.final_layer_norm."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    (".ln_#.", ".layer_norm#."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.", ".self_attn."),
]
FOLDER_TEXT = [  # transformers 5.6 and later leave "text_model." out
    (f"{part}.", f"text_model.{part}.") for part in ("embeddings", "encoder", "final_layer_norm")
]
FOLDER_CLIP = [
    ("text_model.", "text.text_model."),
    ("text_projection.", "text.text_projection."),
    ("vision_model.", "vision."),
    ("visual_projection.", "projection."),
    ("logit_scale", "log_scale"),
]


def rename(state: dict, rows: list[tuple[str, str]]) -> dict:
    """{name: value} with every name through the rows. CheckpointError if two become one."""
    rows = [(old[0] == ".", *_pattern(old, new)) for old, new in rows]
    starts, inner = ([row[1:] for row in rows if row[0] == kind] for kind in (False, True))
    out = {}
    for key, value in state.items():
        for pattern, put in starts:
            if match := pattern.match(key):
                key = put(match) + key[match.end() :]
                break
        for pattern, put in inner:
            key = pattern.sub(put, key)
        out[key] = value
    if len(out) < len(state):
        twice = len(state) - len(out)
        raise CheckpointError(f"{twice} tensors are there under two names, one of each layout")
    return out


@functools.cache
def _pattern(old, new):
    def put(match):
        numbers = iter(match.groups())
        step = lambda m: str(int(next(numbers)) - 1) if m[1] else next(numbers)
        return re.sub(r"#(-1)?", step, new)

    return re.compile(re.escape(old).replace(r"\#", r"(\d{1,9})")), put


def folder_unet_rows(levels: int, blocks: int, attention: list[bool], middle: bool) -> list:
    """Where diffusers' blocks lie: it counts level by level, we in the order of the forward pass.

    attention: whether transformers follow the ResBlocks of a level, from the finest; middle: there.
    """
    rows = [
        ("conv_norm_out.", "norm_out."),
        ("time_embedding.linear_1.", "time.0."),
        ("time_embedding.linear_2.", "time.2."),
        ("add_embedding.linear_1.", "vector.0."),
        ("add_embedding.linear_2.", "vector.2."),
        ("mid_block.resnets.0.", "mid.0."),
        ("mid_block.resnets.1.", f"mid.{1 + middle}."),
        ("mid_block.attentions.0.", "mid.1."),
    ]
    for level in range(levels):
        for side, k, count in (("down", level, blocks), ("up", levels - 1 - level, blocks + 1)):
            first = k * (blocks + 1)  # on the way down, the Downsample counts as one more
            for j in range(count):
                rows.append((f"{side}_blocks.{k}.resnets.{j}.", f"{side}.{first + j}.0."))
                rows.append((f"{side}_blocks.{k}.attentions.{j}.", f"{side}.{first + j}.1."))
            last = 0 if side == "down" else 1 + attention[level]
            rows.append(
                (f"{side}_blocks.{k}.{side}samplers.0.", f"{side}.{first + blocks}.{last}.")
            )
    return rows


def _folder_unet(state):
    """How many levels and blocks there are, and where attention is, the names tell."""
    found = lambda start: {m[1] for k in state if (m := re.match(start + r"(\d{1,9})\.", k))}
    last = lambda start: 1 + max(map(int, found(start)), default=0)
    levels = min(last(r"down_blocks\."), 64)
    blocks = min(last(r"down_blocks\.0\.resnets\."), 64)
    has = lambda start: any(k.startswith(start) for k in state)
    attention = [has(f"down_blocks.{level}.attentions.") for level in range(levels)]
    rows = folder_unet_rows(levels, blocks, attention, has("mid_block.attentions."))
    return _matrices(rename(state, rows + FOLDER_UNET), ".proj_in.", ".proj_out.")


def _original_vae(state):
    """The original counts the decoder's levels from the finest, we in the order of running."""
    levels = len({key.split(".")[2] for key in state if key.startswith("decoder.up.")})
    turn = [(f"decoder.up.{k}.", f"decoder.up.{levels - 1 - k}.") for k in range(levels)]
    return _matrices(rename(state, turn + ORIGINAL_VAE), ".mid.1.")


def _original_text(state):
    """OpenCLIP holds Q, K and V in one matrix (3C, C), here three (C, C), and multiplies by
    text_projection from the other side."""
    out = {}
    for key, value in rename(state, OPENCLIP_TEXT).items():
        if m := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", key):
            out |= {f"{m[1]}{name}_proj.{m[2]}": w for name, w in zip("qkv", value.chunk(3))}
        elif key == "text_projection":
            out["text_projection.weight"] = value.T.contiguous()
        else:
            out[key] = value
    return out


def _matrices(state, *inside):
    """1x1 convolutions (O, I, 1, 1) as the matrices (O, I) that they are here."""
    return {
        k: v.flatten(1) if v.ndim == 4 and any(i in k for i in inside) else v
        for k, v in state.items()
    }


READ = {
    ("unet", "original"): lambda s: _matrices(rename(s, ORIGINAL_UNET), ".proj_in.", ".proj_out."),
    ("unet", "folder"): _folder_unet,
    ("unet", "ours"): lambda s: _matrices(s, ".proj_in.", ".proj_out."),
    ("vae", "original"): _original_vae,
    ("vae", "folder"): lambda s: _matrices(rename(s, OLD_FOLDER_VAE + FOLDER_VAE), ".mid.1."),
    ("text", "original"): _original_text,
    ("text", "folder"): lambda s: rename(s, FOLDER_TEXT),
}


def to_ours(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of any layout -> ours: original (with its prefix or not, or a whole single file),
    folder, or ours already. kind: "unet", "vae" or "text". What is HARMLESS is left out; a name
    that is in no table stays as it is."""
    found = parts_in(state)
    if kind == "text" and {"text", "text_2"} <= found:
        raise CheckpointError("these are two text encoders: take one, see split_single_file")
    if found:
        parts = split_single_file(state)
        state = next((part for name, part in parts.items() if name.startswith(kind)), state)
    state = {without_prefix(k): v for k, v in state.items() if not HARMLESS.search(k)}
    read = READ.get(layout := layout_of(state))
    return read(state) if read and layout[0] == kind else state


# ---------------------------------------------------------------- single files

PREFIXES = {  # what stands before the names in a single file -> the part
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text",
    "conditioner.embedders.0.": "text",
    "conditioner.embedders.1.": "text_2",
}
WRAPPER = re.compile(  # around a whole model, or around a text encoder
    r"^((_orig_mod|module)\.)+|^(model|transformer)\."
    r"(?=text_model\.|transformer\.|ln_final\.|positional_|token_|text_projection|logit_scale)"
)
HARMLESS = re.compile(  # counters, leftovers of training, what the schedule or the config says
    r"(^|\.)(position_ids|logit_scale)$|^denoiser\.(log_)?sigmas$|^model_ema\.(decay|num_updates)$"
    r"|^(scale_factor|logvar|lvlb_weights|global_step)$|^(first_stage_model\.)?loss\."
    r"|^(betas|(sqrt_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod"
    r"|sqrt_recip(m1)?_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12]))$"
)
MARKS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


def parts_in(names) -> set[str]:
    """The parts of a single file that these names belong to, by their prefixes."""
    return {part for prefix, part in PREFIXES.items() if any(k.startswith(prefix) for k in names)}


def without_prefix(key: str) -> str:
    """A single file's name without what stands before the part's own name."""
    prefix = next((p for p in PREFIXES if key.startswith(p)), "")
    return WRAPPER.sub("", key.removeprefix(prefix))


def split_single_file(state: dict[str, Tensor], ema: bool = True) -> dict[str, dict[str, Tensor]]:
    """A single file's tensors by part, {"unet": ..., "vae": ..., "text": ..., "text_2": ...}.

    The prefixes are stripped, HARMLESS and MARKS left out, no tensor is copied; a refiner's only
    encoder is `text`. ema: where the file holds averages of the UNet (`model_ema.`, names without
    dots), take those. CheckpointError for names that belong to no part.
    """
    parts, averages, unknown = {}, {}, []
    for key, value in state.items():
        part = next((part for prefix, part in PREFIXES.items() if key.startswith(prefix)), None)
        if HARMLESS.search(key) or key in MARKS:
            continue
        if part:
            parts.setdefault(part, {})[without_prefix(key)] = value
        elif key.startswith("model_ema."):
            averages[key] = value
        else:
            unknown.append(key)
    if not parts or strange(state):
        raise CheckpointError(
            f"no single file of Stable Diffusion: it looks like {looks_like(state)}; "
            "pass a file of the whole system, or the folder of its parts"
        )
    if averages:
        names = {k: "model_ema.diffusion_model" + k.replace(".", "") for k in parts.get("unet", {})}
        unknown += averages.keys() - names.values()
        if ema and (missing := names.values() - averages.keys()):
            raise CheckpointError(
                f"{count(missing)} of the averages are missing: pass ema=False for the others"
            )
        if ema and names:
            parts["unet"] = {k: averages[name] for k, name in names.items()}
    if unknown:
        raise CheckpointError(
            f"{count(unknown)} unexpected, of no part of Stable Diffusion; "
            f"otherwise it looks like {looks_like(state)}"
        )
    return parts


# ---------------------------------------------------------------- what it looks like

SIGNS = {  # (part, layout): a name that says so, once the prefix is off
    ("unet", "original"): r"^(input_blocks|output_blocks|middle_block)\.",
    ("unet", "folder"): r"^(down_blocks|up_blocks|mid_block)\.",
    ("unet", "ours"): r"^(down|up|mid)\.\d",
    ("vae", "folder"): r"^(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.",
    ("vae", "original"): r"^(encoder|decoder)\.((down|up)\.\d+\.block|mid\.(block|attn)_\d)\.",
    ("vae", "ours"): r"^(encoder|decoder)\.((down|up)\.\d+\.\d|mid\.\d)",
    ("text", "original"): r"^transformer\.resblocks\.",
    ("text", "folder"): r"^(text_model\.)?encoder\.layers\.\d+\.\w+\.",  # ours too: the same names
}
STRANGERS = {  # what it is: a name somewhere
    "a LoRA: small changes to a model, not a model": r"lora_(up|down|A|B|a|b|linear)\b"
    r"|[._]lora\.|^lora_|\.hada_w|\.lokr_|\.oft_|\.dora_scale$|lora_linear_layer",
    "a ControlNet: an addition to a model, not a model": r"^control_model\."
    r"|^(input_hint_block|zero_convs|controlnet_\w+)\.",
    "an adapter: an addition to a model, not a model": r"^(ip_adapter|image_proj|adapter)\.",
    "a motion module: an addition to a model, not a model": r"motion_modules\.",
    "SD 3, another kind of model": r"^(model\.diffusion_model\.)?joint_blocks\.|\.add_q_proj\.",
    "FLUX, another kind of model": r"^(model\.diffusion_model\.)?(double|single)"
    r"_(transformer_)?blocks\.",
    "a textual inversion (an embedding): a new word, not a model": r"^emb_params$"
    r"|^string_to_|^clip_[lg]$",
    "a whole CLIP model, pictures and text": r"^(visual|vision_model)\.",
    "a training checkpoint of this course": r"^random\.generator$",
    "a model of this course (load reads it)": r"^schedule\.beta$",
    "the MLP of this course": r"^middle\.0\.weight$",
}
UNETS = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL base", 1280: "the SDXL refiner"}  # by context
TEXTS = {
    768: "CLIP-L (SD 1.5, SDXL base)",
    1024: "OpenCLIP-H (SD 2)",
    1280: "OpenCLIP-bigG (SDXL base and refiner)",
}


def layout_of(names) -> tuple[str, str] | None:
    """(part, layout) of names without prefix, as in SIGNS, or None."""
    text = "\n".join(names)
    return next((what for what, sign in SIGNS.items() if re.search(sign, text, re.MULTILINE)), None)


def count(names) -> str:
    """How many, and the first five: "6 (a, b, c, d, e, ...)"."""
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def strange(keys) -> str:
    """What a set of names is that is no model of ours, in words; "" if nothing known."""
    text = "\n".join(keys)
    found = (w for w, sign in STRANGERS.items() if re.search(sign, text, re.MULTILINE))
    if (words := next(found, None)) is None and isinstance(keys, dict) and 0 < len(keys) <= 2:
        shapes = [tuple(getattr(v, "shape", v)) for v in keys.values()]
        if all(len(s) in (1, 2) and s[-1] in TEXTS for s in shapes):  # {"<my-cat>": (768,)}
            return next(words for words in STRANGERS if words.startswith("a textual inversion"))
    return words or ""


def looks_like(keys) -> str:
    """What a set of names is: "SDXL base (a single file)", "the UNet of SD 1.5 (folder names)", ...

    keys: {name: tensor or shape}, or names alone; then what only shapes can tell is left open.
    """
    if words := strange(keys):
        return words
    if not keys:
        return "nothing: it is empty"
    shapes = keys if isinstance(keys, dict) else dict.fromkeys(keys, ())
    found = parts_in(shapes)
    if found:  # names of one part only, for the signs
        part = next(part for part in ("unet", "vae", "text", "text_2") if part in found)
        starts = tuple(prefix for prefix, its in PREFIXES.items() if its == part)
        shapes = {k: v for k, v in shapes.items() if k.startswith(starts)}
    shapes = {without_prefix(k): tuple(getattr(v, "shape", v)) for k, v in shapes.items()}
    part, layout = layout_of(shapes) or (None, None)
    names = "(names of this course)" if layout == "ours" else f"({layout} names)"
    if part == "unet":
        model = _which_unet(shapes, "\n".join(keys))
        return f"{model} (a single file)" if len(found) > 1 else f"the UNet of {model} {names}"
    if part == "vae":
        return f"the VAE of SD or SDXL {names}"  # they differ in their numbers only
    if part == "text":
        width = _size(shapes, r"(token|position|positional)_embedding", -1)
        other = f"of width {width}" if width else "of some model"
        return f"the text encoder {TEXTS.get(width, other)} {names}"
    return f"nothing known here (first names: {', '.join(list(keys)[:3])})"


def _size(shapes, name, dim, default=None):
    """shape[dim] of the first tensor of such a name."""
    sizes = (
        s[dim] for k, s in shapes.items() if len(s) > abs(dim) - (dim < 0) and re.search(name, k)
    )
    return next(sizes, default)


def _which_unet(shapes, text):
    width = _size(shapes, r"attn2\.(to_)?k\.weight$", 1)
    if width is None and any(shapes.values()):
        return "a model without text"
    if width is None:  # names alone
        if re.search(r"(label_emb|add_embedding|^vector)\.", text, re.MULTILINE):
            return "SDXL base" if re.search(r"blocks\.9\.attn1\.", text) else "the SDXL refiner"
        if "cond_stage_model." in text:
            return "SD 2" if "cond_stage_model.model." in text else "SD 1.5"
        return "SD 1.5 or 2"
    inputs = _size(shapes, r"^(input_blocks\.0\.0|conv_in)\.weight$", 1, 4)
    model = UNETS.get(width, f"no known model, context {width} wide")
    kind = {4: "", 8: " (InstructPix2Pix)", 9: " (inpainting)"}.get(inputs, "")
    return model + (f" with {inputs} input channels{kind}" if inputs != 4 else "")
