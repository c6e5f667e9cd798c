"""What names of weights tell: which model, which part, whose layout; our names. Notebook 11.

One notation for every layout: a row says their name > ours, `#` is a number that stays, `#-1` one
less. A row that begins with "." renames wherever it stands; of the others, which rename the
beginning of a name, the first that fits does.
"""

import functools
import re

from torch import Tensor

from ..errors import CheckpointError

# ---------------------------------------------------------------- rows


def table(text: str) -> list[tuple[str, str]]:
    """[(theirs, ours)] of a text of rows, several a line."""
    return re.findall(r"(\S+) > (\S+)", text)


TRANSFORMER = table("""
    .transformer_blocks. > .blocks.     .ff.net.0.proj. > .ff.proj.     .ff.net.2. > .ff.out.
    .to_q. > .q.        .to_k. > .k.        .to_v. > .v.        .to_out.0. > .out.
""")
ORIGINAL_UNET = (
    table("""
    time_embed. > time.             label_emb.0. > vector.      input_blocks.0.0. > conv_in.
    input_blocks.#. > down.#-1.     middle_block. > mid.        output_blocks. > up.
    out.0. > norm_out.              out.2. > conv_out.          .op. > .conv.
    .in_layers.0. > .norm1.         .in_layers.2. > .conv1.     .emb_layers.1. > .time.
    .out_layers.0. > .norm2.        .out_layers.3. > .conv2.    .skip_connection. > .skip.
""")
    + TRANSFORMER
)
FOLDER_UNET = TRANSFORMER + table("""
    .time_emb_proj. > .time.        .conv_shortcut. > .skip.
""")  # inside a block of diffusers; where the blocks lie, see `folder_unet_rows`
ORIGINAL_CONTROL = table("""
    input_hint_block. > hint.   zero_convs.#.0. > zeros.#.      middle_block_out.0. > zero_mid.
""")
FOLDER_CONTROL = table("""
    controlnet_down_blocks.# > zeros.#      controlnet_mid_block. > zero_mid.
    controlnet_cond_embedding.conv_in. > hint.0.
""")  # beside those of a UNet; the rest of the hint's encoder, see `_folder_control`
ORIGINAL_VAE = table("""
    post_quant_conv. > post_quant.  .down.#.block.#. > .down.#.#.   .mid.block_1. > .mid.0.
    quant_conv. > quant.            .up.#.block.#. > .up.#.#.       .mid.attn_1. > .mid.1.
    .nin_shortcut. > .skip.         .proj_out. > .out.              .mid.block_2. > .mid.2.
""")
FOLDER_VAE = table("""
    post_quant_conv. > post_quant.                  quant_conv. > quant.
    .down_blocks.#.resnets.#. > .down.#.#.          .up_blocks.#.resnets.#. > .up.#.#.
    .down_blocks.#.downsamplers.0. > .down.#.downsample.
    .up_blocks.#.upsamplers.0. > .up.#.upsample.
    .mid_block.resnets.0. > .mid.0.                 .mid_block.resnets.1. > .mid.2.
    .mid_block.attentions.0.group_norm. > .mid.1.norm.
    .mid_block.attentions.0.to_q. > .mid.1.q.       .mid_block.attentions.0.to_k. > .mid.1.k.
    .mid_block.attentions.0.to_v. > .mid.1.v.
    .mid_block.attentions.0.to_out.0. > .mid.1.out.
    .conv_norm_out. > .norm_out.                    .conv_shortcut. > .skip.
""")
OLD_FOLDER_VAE = table("""
    .query. > .to_q.    .key. > .to_k.      .value. > .to_v.    .proj_attn. > .to_out.0.
""")  # the attention's names in diffusers' older files -> its newer ones
OPENCLIP_TEXT = table("""
    positional_embedding > text_model.embeddings.position_embedding.weight
    token_embedding. > text_model.embeddings.token_embedding.
    ln_final. > text_model.final_layer_norm.
    transformer.resblocks. > text_model.encoder.layers.         .ln_#. > .layer_norm#.
    .mlp.c_fc. > .mlp.fc1.      .mlp.c_proj. > .mlp.fc2.        .attn. > .self_attn.
""")  # ours are the names of transformers' files, "text_model." in front
FOLDER_TEXT = table("""
    embeddings. > text_model.embeddings.    encoder. > text_model.encoder.
    final_layer_norm. > text_model.final_layer_norm.
""")  # transformers 5.6 and later leave "text_model." out
FOLDER_CLIP = table("""
    text_model. > text.text_model.          text_projection. > text.text_projection.
    vision_model. > vision.                 visual_projection. > projection.
    logit_scale > log_scale
""")


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
    if twice := len(state) - len(out):
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
    rows = table(f"""
        conv_norm_out. > norm_out.              mid_block.resnets.0. > mid.0.
        mid_block.attentions.0. > mid.1.        mid_block.resnets.1. > mid.{1 + middle}.
        time_embedding.linear_1. > time.0.      time_embedding.linear_2. > time.2.
        add_embedding.linear_1. > vector.0.     add_embedding.linear_2. > vector.2.
    """)
    for level in range(levels):
        for side, k, count in (("down", level, blocks), ("up", levels - 1 - level, blocks + 1)):
            first = k * (blocks + 1)  # on the way down, the Downsample counts as one more
            for j in range(count):
                rows.append((f"{side}_blocks.{k}.resnets.{j}.", f"{side}.{first + j}.0."))
                rows.append((f"{side}_blocks.{k}.attentions.{j}.", f"{side}.{first + j}.1."))
            last = f"{first + blocks}.{0 if side == 'down' else 1 + attention[level]}"
            rows.append((f"{side}_blocks.{k}.{side}samplers.0.", f"{side}.{last}."))
    return rows


def _folder_unet(names):
    """How many levels and blocks there are, and where attention is, the names tell."""
    text = "\n".join(names)
    numbers = lambda start: map(int, re.findall(rf"^{start}\.([1-5]?\d)\.", text, re.M))
    last = lambda start: max(numbers(start), default=0)
    has = lambda part: f"\n{part}.attentions." in text or text.startswith(f"{part}.attentions.")
    levels, blocks = 1 + last("down_blocks"), 1 + last(r"down_blocks\.0\.resnets")
    attention = [has(f"down_blocks.{level}") for level in range(levels)]
    return folder_unet_rows(levels, blocks, attention, has("mid_block")) + FOLDER_UNET


def _folder_control(names):
    """The hint's encoder has an activation after each convolution, which we count."""
    found = re.findall(r"^controlnet_cond_embedding\.blocks\.(\d\d?)\.", "\n".join(names), re.M)
    last = 1 + max(map(int, found), default=-1)
    start = "controlnet_cond_embedding."
    rows = [(f"{start}blocks.{k}.", f"hint.{2 * k + 2}.") for k in range(last)]
    return [
        *FOLDER_CONTROL,
        *rows,
        (f"{start}conv_out.", f"hint.{2 * last + 2}."),
        *_folder_unet(names),
    ]


def _original_vae(names):
    """The original counts the decoder's levels from the finest, we in the order of running."""
    levels = len({name.split(".")[2] for name in names if name.startswith("decoder.up.")})
    turn = [(f"decoder.up.{k}.", f"decoder.up.{levels - 1 - k}.") for k in range(levels)]
    return turn + ORIGINAL_VAE


ROWS = {  # (part, layout): the rows for these names
    ("unet", "original"): lambda names: ORIGINAL_UNET,
    ("unet", "folder"): _folder_unet,
    ("control", "original"): lambda names: ORIGINAL_CONTROL + ORIGINAL_UNET,
    ("control", "folder"): _folder_control,
    ("vae", "original"): _original_vae,
    ("vae", "folder"): lambda names: OLD_FOLDER_VAE + FOLDER_VAE,
    ("text", "original"): lambda names: OPENCLIP_TEXT,
    ("text", "folder"): lambda names: FOLDER_TEXT,
    ("clip", "folder"): lambda names: FOLDER_CLIP,
}
MATRICES = re.compile(r"\.proj_(in|out)\.|\.mid\.1\.")  # 1x1 convolutions in other layouts


def to_ours(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of any layout -> ours: original (with its prefix or not, or a whole single file),
    folder, or ours already. kind: "unet", "control", "vae", "text" or "clip". What is HARMLESS is
    left out; a name that is in no table stays as it is."""
    found = parts_in(state)
    if kind == "text" and {"text", "text_2"} <= found:
        raise CheckpointError("these are two text encoders: take one, see split_single_file")
    if found:
        parts = split_single_file(state)
        state = next((part for name, part in parts.items() if name.startswith(kind)), state)
    needed = "logit_scale" if kind == "clip" else None
    state = {
        without_prefix(k): v for k, v in state.items() if k == needed or not HARMLESS.search(k)
    }
    layout = signed(state, SIGNS)
    if layout is None or layout[0] != kind:
        return state
    out = {}
    for key, w in rename(state, ROWS[layout](state) if layout in ROWS else []).items():
        if m := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", key):
            # OpenCLIP holds Q, K and V in one matrix (3C, C), here three (C, C)
            out |= {f"{m[1]}{name}_proj.{m[2]}": part for name, part in zip("qkv", w.chunk(3))}
        elif key == "text_projection":  # which it multiplies from the other side
            out["text_projection.weight"] = w.T.contiguous()
        else:
            out[key] = w.flatten(1) if w.ndim == 4 and MATRICES.search(key) else w
    return out


# ---------------------------------------------------------------- single files

PREFIXES = {  # what stands before the names in a single file -> the part
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text",
    "conditioner.embedders.0.": "text",
    "conditioner.embedders.1.": "text_2",
}
WRAPPER = re.compile(  # around a whole model, a ControlNet, or a text encoder
    r"^((_orig_mod|module)\.)+|^control_model\.|^(model|transformer)\."
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
        if HARMLESS.search(key) or key in MARKS:
            continue
        if part := next(iter(parts_in([key])), None):
            parts.setdefault(part, {})[without_prefix(key)] = value
        elif key.startswith("model_ema."):
            averages[key] = value
        else:
            unknown.append(key)
    if not parts or strange(state):
        cause = f"no single file of Stable Diffusion: it looks like {looks_like(state)}"
        raise CheckpointError(f"{cause}; pass a file of a whole system, or the folder of its parts")
    if averages:
        names = {k: "model_ema.diffusion_model" + k.replace(".", "") for k in parts.get("unet", {})}
        unknown += averages.keys() - names.values()
        if ema and (missing := names.values() - averages.keys()):
            lack = f"{count(missing)} of the averages are missing"
            raise CheckpointError(f"{lack}: pass ema=False for the others")
        if ema and names:
            parts["unet"] = {k: averages[name] for k, name in names.items()}
    if unknown:
        seems = f"otherwise it looks like {looks_like(state)}"
        raise CheckpointError(f"{count(unknown)} unexpected, of no part of a system; {seems}")
    return parts


# ---------------------------------------------------------------- what it looks like

SIGNS = {  # (part, layout): a name that says so, once the prefix is off
    ("clip", "folder"): r"^vision_model\.",
    ("control", "original"): r"^(input_hint_block|zero_convs|middle_block_out)\.",
    ("control", "folder"): r"^controlnet_(cond_embedding|down_blocks|mid_block)\.",
    ("control", "ours"): r"^zero(s\.\d|_mid\.)",
    ("unet", "original"): r"^(input_blocks|output_blocks|middle_block)\.",
    ("unet", "folder"): r"^(down_blocks|up_blocks|mid_block)\.",
    ("unet", "ours"): r"^(down|up|mid)\.\d",
    ("vae", "folder"): r"^(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.",
    ("vae", "original"): r"^(encoder|decoder)\.((down|up)\.\d+\.block|mid\.(block|attn)_\d)\.",
    ("vae", "ours"): r"^(encoder|decoder)\.((down|up)\.\d+\.\d|mid\.\d)",
    ("text", "original"): r"^transformer\.resblocks\.",
    ("text", "folder"): r"^(text_model\.)?encoder\.layers\.\d+\.\w+\.",  # ours too: the same names
}
EMBEDDING = "a textual inversion (load_embedding reads it): a new word, not a model"
CONTROL = "a ControlNet: an addition to a model, not a model"
STRANGERS = {  # what it is: a name somewhere
    "a LoRA (load_lora reads it): small changes to a model, not a model": r"lora_(up|down)\b"
    r"|lora_(A|B|a|b|linear)\b|[._]lora\.|^lora_|\.hada_w|\.lokr_|\.oft_|\.dora_scale$|lora_linear_layer",
    CONTROL: r"^control_model\.|^(input_hint_block|zero_convs|controlnet_\w+|zero_mid)\.",
    "an adapter: an addition to a model, not a model": r"^(ip_adapter|image_proj|adapter)\.",
    "a motion module: an addition to a model, not a model": r"motion_modules\.",
    "SD 3, another kind of model": r"^(model\.diffusion_model\.)?joint_blocks\.|\.add_q_proj\.",
    "FLUX, another kind of model": r"^(model\.diffusion_model\.)?(double|single)"
    r"_(transformer_)?blocks\.",
    EMBEDDING: r"^emb_params$|^string_to_|^clip_[lg]$",
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


def signed(names, signs: dict):
    """What the first sign that some name bears stands for, or None: (part, layout) by SIGNS."""
    text = "\n".join(names)
    return next((what for what, sign in signs.items() if re.search(sign, text, re.M)), None)


def count(names, kind="") -> str:
    """How many, of which kind, and the first five: "6 missing (a, b, c, d, e, ...)"."""
    first = ", ".join(f"{name:.120}" for name in sorted(names)[:5]) + ", ..." * (len(names) > 5)
    return " ".join(filter(None, (str(len(names)), kind, f"({first})")))


def strange(state: dict) -> str:
    """What {name: tensor or shape} is that is no model of ours, in words; "" if nothing known."""
    shapes = [tuple(getattr(v, "shape", v)) for v in state.values()]
    words = len(shapes) in (1, 2) and all(len(s) in (1, 2) and s[-1] in TEXTS for s in shapes)
    return signed(state, STRANGERS) or EMBEDDING * words  # {"<my-cat>": (768,)}


def looks_like(state: dict) -> str:
    """What {name: tensor or shape} is: "SDXL base (a single file)", "the UNet of SD 1.5 (folder
    names)", ..."""
    if not state or strange(state):
        kind = strange(state) or "nothing: it is empty"
        return kind.replace(":", f" for {_which_unet(state)}:") if kind == CONTROL else kind
    if found := parts_in(state):  # names of one part only, for the signs
        part = next(part for part in ("unet", "vae", "text", "text_2") if part in found)
        starts = tuple(prefix for prefix, its in PREFIXES.items() if its == part)
    shapes = {
        without_prefix(k): tuple(getattr(v, "shape", v))
        for k, v in state.items()
        if not found or k.startswith(starts)
    }
    part, layout = signed(shapes, SIGNS) or (None, None)
    names = "(names of this course)" if layout == "ours" else f"({layout} names)"
    if part == "unet":
        model = _which_unet(shapes)
        return f"{model} (a single file)" if len(found) > 1 else f"the UNet of {model} {names}"
    if part == "vae":
        return f"the VAE of SD or SDXL {names}"  # they differ in their numbers only
    if part == "text":
        width = size(shapes, r"(token|position|positional)_embedding", -1)
        return f"the text encoder {TEXTS.get(width, f'of width {width}')} {names}"
    return f"nothing known here (first names: {', '.join(list(state)[:3])})"


def size(state: dict, name: str, dim: int, default=None):
    """shape[dim] of the first tensor (or shape) of such a name."""
    shapes = (getattr(v, "shape", v) for k, v in state.items() if re.search(name, k))
    return next((shape[dim] for shape in shapes if len(shape) > max(0, dim)), default)


def _which_unet(shapes):
    width = size(shapes, r"attn2\.(to_)?k\.weight$", 1)
    inputs = size(shapes, r"^(input_blocks\.0\.0|conv_in)\.weight$", 1, 4)
    if width is None:
        return "a model without text"
    kind = {8: " (InstructPix2Pix)", 9: " (inpainting)"}.get(inputs, "")
    model = UNETS.get(width, f"no known model, context {width} wide")
    return model + f" with {inputs} input channels{kind}" * (inputs != 4)
