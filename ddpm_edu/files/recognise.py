"""What a set of names is: which model, which part of it, in whose layout; and a single file taken apart."""

import re

from torch import Tensor

from ..errors import CheckpointError

PREFIXES = {  # what stands before the names in a single file -> the part
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text",
    "conditioner.embedders.0.": "text",
    "conditioner.embedders.1.": "text_2",
}
WRAPPER = r"^(model|transformer)\.(?=text_model\.|transformer\.|ln_final\.|positional_|token_|text_projection|logit_scale)"  # around a text encoder
HARMLESS = re.compile(  # no weights: counters, and what the schedule or the config says already
    r"(^|\.)(position_ids|logit_scale)$|^denoiser\.sigmas$|^model_ema\.(decay|num_updates)$"
    r"|^(betas|(sqrt_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_recip(m1)?_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12]))$"
)
SIGNS = {  # (part, layout): a name that says so, once the prefix is off
    ("unet", "original"): r"^(input_blocks|output_blocks|middle_block)\.",
    ("unet", "folder"): r"^(down_blocks|up_blocks|mid_block)\.",
    ("unet", "ours"): r"^(down|up|mid)\.\d",
    ("vae", "folder"): r"^(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.",
    ("vae", "original"): r"^(encoder|decoder)\.((down|up)\.\d+\.block|mid\.(block|attn)_\d)\.",
    ("vae", "ours"): r"^(encoder|decoder)\.((down|up)\.\d+\.\d|mid\.\d)",
    ("text", "original"): r"^transformer\.resblocks\.",
    ("text", "folder"): r"^(text_model\.)?encoder\.layers\.",  # ours too: they are the same names
}
STRANGERS = {  # what it is: a name somewhere
    "a LoRA: small changes to a model, not a model": r"lora_(up|down|A|B)\b|\.lora\.|^lora_|\.hada_w|\.lokr_",
    "a ControlNet: an addition to a model, not a model": r"^control_model\.|^(input_hint_block|zero_convs|controlnet_\w+)\.",
    "SD 3, another kind of model": r"^(model\.diffusion_model\.)?joint_blocks\.",
    "FLUX, another kind of model": r"^(model\.diffusion_model\.)?double_blocks\.",
    "a textual inversion: a new word for a text encoder, not a model": r"^string_to_param|^emb_params$|^clip_[lg]$",
    "a whole CLIP model, pictures and text": r"^(visual|vision_model)\.",
    "a training checkpoint of this course": r"^random\.generator$",
    "a model of this course from save_pretrained (load_pretrained reads it)": r"^schedule\.beta$",
    "the MLP of this course": r"^middle\.0\.weight$",
}
UNETS = {
    768: "SD 1.5",
    1024: "SD 2",
    2048: "SDXL base",
    1280: "the SDXL refiner",
}  # by the width of the context
TEXTS = {
    768: "CLIP-L (SD 1.5, SDXL base)",
    1024: "OpenCLIP-H (SD 2)",
    1280: "OpenCLIP-bigG (SDXL base and refiner)",
}


def layout_of(names) -> tuple[str, str] | None:
    """(part, layout) of names without prefix: ("unet" | "vae" | "text", "original" | "folder" | "ours"), or None."""
    text = "\n".join(names)
    return next((what for what, sign in SIGNS.items() if re.search(sign, text, re.MULTILINE)), None)


def without_prefix(key: str) -> str:
    """A single file's name without what stands before the part's own name."""
    prefix = next((p for p in PREFIXES if key.startswith(p)), "")
    return re.sub(WRAPPER, "", key.removeprefix(prefix))


def parts_in(names) -> set[str]:
    """The parts of a single file that these names belong to, by their prefixes."""
    return {part for prefix, part in PREFIXES.items() if any(k.startswith(prefix) for k in names)}


def split_single_file(state: dict[str, Tensor], ema: bool = True) -> dict[str, dict[str, Tensor]]:
    """A single file's tensors by part: {"unet": ..., "vae": ..., "text": ..., "text_2": ...}, the prefixes stripped.

    Text encoders count in the file's order (the refiner's only one is `text`); what is HARMLESS is left out.  ema: where
    the file holds averaged weights of the UNet (`model_ema.`, their names without dots), take those. No tensor is copied.
    Raises CheckpointError for names that belong to no part.
    """
    parts, averages, unknown = {}, {}, []
    for key, value in state.items():
        part = next((part for prefix, part in PREFIXES.items() if key.startswith(prefix)), None)
        if HARMLESS.search(key):
            continue
        if part:
            parts.setdefault(part, {})[without_prefix(key)] = value
        elif key.startswith("model_ema."):
            averages[key] = value
        else:
            unknown.append(key)
    if not parts:
        raise CheckpointError(
            f"not a single file of Stable Diffusion: this looks like {looks_like(state)}"
        )
    if averages:
        names = {k: "model_ema.diffusion_model" + k.replace(".", "") for k in parts.get("unet", {})}
        unknown += averages.keys() - names.values()
        if ema and (missing := names.values() - averages.keys()):
            raise CheckpointError(
                f"{count(missing)} of the averaged weights are missing: pass ema=False to use the others"
            )
        if ema and names:
            parts["unet"] = {k: averages[name] for k, name in names.items()}
    if unknown:
        raise CheckpointError(
            f"{count(unknown)} unexpected, of no part of Stable Diffusion; otherwise this looks like {looks_like(state)}"
        )
    return parts


def count(names) -> str:
    """How many, and the first three: "5 (a, b, c, ...)"."""
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def looks_like(keys) -> str:
    """What a set of names is, in words: "SDXL base (a single file)", "the UNet of SD 1.5 (folder names)", "a LoRA: ...", ...

    keys: {name: tensor or shape}, or names alone; then what only shapes can tell is left open.
    """
    text = "\n".join(keys)
    stranger = next(
        (words for words, sign in STRANGERS.items() if re.search(sign, text, re.MULTILINE)), None
    )
    if stranger:
        return stranger
    shapes = keys if isinstance(keys, dict) else dict.fromkeys(keys, ())
    found = parts_in(shapes)
    if found:  # names of one part only, for the signs
        first = next(
            p
            for p, part in PREFIXES.items()
            if part == next(part for part in ("unet", "vae", "text", "text_2") if part in found)
            and any(k.startswith(p) for k in shapes)
        )
        shapes = {k: v for k, v in shapes.items() if k.startswith(first)}
    shapes = {without_prefix(k): tuple(getattr(v, "shape", v)) for k, v in shapes.items()}
    part, layout = layout_of(shapes) or (None, None)
    names = "(names of this course)" if layout == "ours" else f"({layout} names)"
    if part == "unet":
        model = _which_unet(shapes, text)
        return f"{model} (a single file)" if len(found) > 1 else f"the UNet of {model} {names}"
    if part == "vae":
        return f"the VAE of SD or SDXL {names}"  # they differ in their numbers only
    if part == "text":
        width = next(
            (
                s[-1]
                for k, s in shapes.items()
                if s and re.search(r"(token|position|positional)_embedding", k)
            ),
            None,
        )
        return f"the text encoder {TEXTS.get(width, f'of width {width}' if width else 'of some model')} {names}"
    return (
        f"nothing known here (first names: {', '.join(list(keys)[:3])})"
        if text
        else "nothing: it is empty"
    )


def _which_unet(shapes, text):
    width = next(
        (
            s[1]
            for k, s in shapes.items()
            if len(s) > 1 and re.search(r"attn2\.(to_)?k\.weight$", k)
        ),
        None,
    )
    if width is None and any(shapes.values()):
        return "a model without text"
    if width is None:
        if re.search(r"(label_emb|add_embedding|^vector)\.", text, re.MULTILINE):
            return "SDXL base" if re.search(r"blocks\.9\.attn1\.", text) else "the SDXL refiner"
        return (
            "SD 2"
            if "cond_stage_model.model." in text
            else "SD 1.5"
            if "cond_stage_model." in text
            else "SD 1.5 or 2"
        )
    inputs = next(
        (
            s[1]
            for k, s in shapes.items()
            if len(s) > 1 and k in ("input_blocks.0.0.weight", "conv_in.weight")
        ),
        4,
    )
    return UNETS.get(width, f"no known model, context {width} wide") + (
        f" with {inputs} input channels" if inputs != 4 else ""
    )
