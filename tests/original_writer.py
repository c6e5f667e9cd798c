"""Systems of this course written as one file in the original names: the way back, for tests only.

The package reads these names and does not write them. UNet and VAE as in the repository of latent
diffusion, the first text encoder as transformers names it, the second one as OpenCLIP does. That
diffusers reads the file and draws the same picture is what proves these names right.
"""

import re

import torch

from ddpm_edu.files.tensors import save_tensors

OUTSIDE = {  # of the UNet's blocks
    "conv_in": "input_blocks.0.0",
    "time": "time_embed",
    "vector": "label_emb.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
RESBLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
TRANSFORMER = {
    "blocks.": "transformer_blocks.",
    ".ff.proj.": ".ff.net.0.proj.",
    ".ff.out.": ".ff.net.2.",
    ".q.": ".to_q.",
    ".k.": ".to_k.",
    ".v.": ".to_v.",
    ".attn1.out.": ".attn1.to_out.0.",
    ".attn2.out.": ".attn2.to_out.0.",
}
OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    ".layer_norm": ".ln_",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.": ".attn.",
}


def replaced(name: str, rows: dict[str, str]) -> str:
    for ours, theirs in rows.items():
        name = name.replace(ours, theirs)
    return name


def unet_name(name: str) -> str:
    """down.0.0.norm1.weight -> input_blocks.1.0.in_layers.0.weight, and so on."""
    side, rest = name.split(".", 1)
    if side in OUTSIDE:
        return f"{OUTSIDE[side]}.{rest}"
    if side == "mid":
        place, number, rest = "middle_block", *rest.split(".", 1)
    else:
        block, number, rest = rest.split(".", 2)
        place = f"input_blocks.{int(block) + 1}" if side == "down" else f"output_blocks.{block}"
    part, _, last = rest.partition(".")
    if part == "blocks":
        rest = replaced(rest, TRANSFORMER)
    elif part == "conv" and side == "down":
        rest = f"op.{last}"
    else:
        rest = f"{RESBLOCK.get(part, part)}.{last}"
    return f"{place}.{number}.{rest}"


def control_name(name: str) -> str:
    """Of a ControlNet: zeros.3.weight -> control_model.zero_convs.3.0.weight, and so on."""
    side, rest = name.split(".", 1)
    own = {"hint": "input_hint_block.", "zero_mid": "middle_block_out.0."}
    if side == "zeros":
        number, last = rest.split(".")
        new = f"zero_convs.{number}.0.{last}"
    else:
        new = own[side] + rest if side in own else unet_name(name)
    return f"control_model.{new}"


def vae_name(name: str, levels: int) -> str:
    """decoder.up.0.1.norm1.weight -> decoder.up.2.block.1.norm1.weight of three levels."""
    name = re.sub(r"^(post_quant|quant)\.", r"\1_conv.", name)
    name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"\.(down|up)\.(\d+)\.(\d+)\.", r".\1.\2.block.\3.", name)
    name = re.sub(r"\.mid\.1\.out\.", ".mid.1.proj_out.", name)
    names = {"0": "block_1", "1": "attn_1", "2": "block_2"}
    name = re.sub(r"\.mid\.([012])\.", lambda m: f".mid.{names[m[1]]}.", name)
    return name.replace(".skip.", ".nin_shortcut.")


def to_vae(state: dict, levels: int) -> dict:
    """Its attention's matrices are 1x1 convolutions."""
    names = {k: vae_name(k, levels) for k in state}
    convolution = lambda k, w: ".attn_1." in names[k] and w.ndim == 2
    return {names[k]: w[:, :, None, None] if convolution(k, w) else w for k, w in state.items()}


def to_open_clip(state: dict) -> dict:
    """Q, K and V in one matrix (3C, C); the projection is multiplied from the other side."""
    out, rows = {}, {}
    for name, w in state.items():
        if found := re.fullmatch(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)", name):
            rows.setdefault(f"{found[1]}in_proj_{found[3]}", {})[found[2]] = w
        elif name == "text_projection.weight":
            out["text_projection"] = w.T.contiguous()
        else:
            out[replaced(name, OPEN_CLIP)] = w
    for name, parts in rows.items():
        out[replaced(name, OPEN_CLIP)] = torch.cat([parts[k] for k in "qkv"])
    return out | {"logit_scale": torch.tensor(4.6)}


def save_original(sd, path) -> None:
    """A base or a refiner of SDXL's shape; marks say that it predicts v, down to pure noise."""
    encoders = [encoder.state_dict() for encoder in sd.text.encoders]
    starts = {f"conditioner.embedders.{len(encoders) - 1}.model.": to_open_clip(encoders[-1])}
    if len(encoders) == 2:
        starts["conditioner.embedders.0.transformer."] = encoders[0]
    starts["first_stage_model."] = to_vae(sd.vae.state_dict(), len(sd.config.vae.mult))
    unet = sd.unet.state_dict()
    starts["model.diffusion_model."] = {unet_name(k): w for k, w in unet.items()}
    state = {start + k: w.clone() for start, part in starts.items() for k, w in part.items()}
    marks = ("v_pred",) * (sd.predict == "v") + ("ztsnr",) * (sd.schedule.beta[-1] == 1).item()
    save_tensors(path, state | {mark: torch.tensor([]) for mark in marks})
