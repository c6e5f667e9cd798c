"""Names of the same weights in other layouts.

The original single-file checkpoints, the folders of diffusers and transformers, and this package hold the same
tensors under different names. Each table is a row of ideas: a pattern, and what it is called here.
"""

import re

from torch import Tensor

from ..errors import CheckpointError
from .recognise import HARMLESS, WRAPPER, layout_of, looks_like, parts_in, split_single_file

__all__ = ["to_ours", "to_folder", "split_single_file", "looks_like"]


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
        raise CheckpointError(
            f"{len(state) - len(out)} tensors are there under two names, one of each layout: keep one of them"
        )
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
    places = {
        "conv_in": "conv_in",
        "conv_norm_out": "norm_out",
        "conv_out": "conv_out",
        "time_embedding.linear_1": "time.0",
        "time_embedding.linear_2": "time.2",
        "add_embedding.linear_1": "vector.0",
        "add_embedding.linear_2": "vector.2",
        "mid_block.resnets.0": "mid.0",
        "mid_block.resnets.1": f"mid.{1 + middle}",
    }
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
            rest = key[len(place) :]
            for old, new in rows:
                rest = rest.replace(old, new)
            key = places[place] + rest
        out[key] = value
    return _unmixed(out, state)


def original_unet(state):
    """Original names -> ours."""
    return flat_projections(rename(state, ORIGINAL_UNET))


def folder_unet(state):
    """diffusers names -> ours; how many levels and blocks there are, and where attention is, the names tell."""
    levels = 1 + max(
        (int(k.split(".")[1]) for k in state if k.startswith("down_blocks.")), default=0
    )
    blocks = 1 + max(
        (int(k.split(".")[3]) for k in state if k.startswith("down_blocks.0.resnets.")), default=0
    )
    attention = [
        any(k.startswith(f"down_blocks.{level}.attentions.") for k in state)
        for level in range(levels)
    ]
    middle = any(k.startswith("mid_block.attentions.") for k in state)
    return flat_projections(
        _move(state, _folder_places(levels, blocks, attention, middle), FOLDER_UNET)
    )


def to_folder_unet(state, conv: bool = False):
    """Ours -> diffusers names. conv: proj_in and proj_out as 1x1 convolutions (O, I, 1, 1), as SD 1.x has them
    (`use_linear_projection` false in its config); matrices (O, I) in SD 2 and SDXL."""
    levels = 1 + sum(bool(re.fullmatch(r"down\.\d+\.0\.conv\.weight", k)) for k in state)
    blocks = (
        1 + max(int(k.split(".")[1]) for k in state if k.startswith("down.")) - (levels - 1)
    ) // levels
    attention = [f"down.{level * (blocks + 1)}.1.norm.weight" in state for level in range(levels)]
    places = _folder_places(levels, blocks, attention, "mid.1.norm.weight" in state)
    out = _move(
        state,
        {ours: theirs for theirs, ours in places.items()},
        [(ours, theirs) for theirs, ours in FOLDER_UNET],
    )
    return {k: v[:, :, None, None] if conv and _is_projection(k) else v for k, v in out.items()}


def flat_projections(state):
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
    return _matrices(
        rename(
            out,
            [(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.")],
        )
    )


def folder_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights in diffusers' names, the older ones too -> our names."""
    return _matrices(rename(state, _forth(OLD_FOLDER_VAE + FOLDER_VAE)))


def to_folder_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights in our names -> diffusers' names: the inverse of `folder_vae`."""
    return rename(state, _forth([(ours, theirs) for theirs, ours in FOLDER_VAE]))


def _forth(rows):
    """Rows for `rename`: each `#` a number that stays, and a name that starts no part of a key starts the key."""
    return [
        (
            ("" if old[0] == "." else "^") + re.escape(old).replace(r"\#", r"(\d+)"),
            re.sub("#", lambda match, numbers=iter("123"): rf"\g<{next(numbers)}>", new),
        )
        for old, new in rows
    ]


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
    (WRAPPER, ""),
]


def original_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One text encoder's weights from a single file, CLIP-L's or OpenCLIP's names, prefix or not -> our names.

    OpenCLIP keeps Q, K and V in one matrix (3C, C), here three (C, C), and multiplies by text_projection from the other
    side, so it is transposed. `logit_scale` belongs to training.
    """
    names = [re.match(r"conditioner\.embedders\.\d+\.", key) for key in state]
    if len({m[0] for m in names if m}) > 1:
        raise CheckpointError(
            "these are the weights of two text encoders: pass those of one, see `split_single_file`"
        )
    out = {}
    for key, value in rename(rename(state, TEXT_PREFIX), OPENCLIP_TEXT).items():
        if m := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", key):
            out.update(
                {f"{m[1]}{name}_proj.{m[2]}": part for name, part in zip("qkv", value.chunk(3))}
            )
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

READ = {
    ("unet", "original"): original_unet,
    ("unet", "folder"): folder_unet,
    ("unet", "ours"): flat_projections,
    ("vae", "original"): original_vae,
    ("vae", "folder"): folder_vae,
    ("text", "original"): original_text,
    ("text", "folder"): folder_text,
}


def to_ours(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of any layout -> ours: original (its prefix stripped or not, or a whole single file), folder, or ours already.

    kind: "unet", "vae" or "text".  What is HARMLESS is left out; a name that is in no table stays as it is.
    """
    found = parts_in(state)
    if kind == "text" and {"text", "text_2"} <= found:
        raise CheckpointError(
            "these are two text encoders: take the one you mean from split_single_file"
        )
    if found:
        parts = split_single_file(state)
        state = next((part for name, part in parts.items() if name.startswith(kind)), state)
    state = {re.sub(WRAPPER, "", k): v for k, v in state.items() if not HARMLESS.search(k)}
    read = READ.get(layout_of(state))
    return read(state) if read and layout_of(state)[0] == kind else state


def to_folder(kind: str, state: dict[str, Tensor], conv: bool = False) -> dict[str, Tensor]:
    """Our names -> those of diffusers ("unet", "vae") and transformers ("text"); conv as in `to_folder_unet`."""
    if kind == "unet":
        return to_folder_unet(state, conv)
    return {"vae": to_folder_vae, "text": to_folder_text}[kind](state)
