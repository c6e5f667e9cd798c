"""Systems of this course written as folders in diffusers' layout: the way back, for tests only.

The package reads this layout and does not write it. Here our names and configs become diffusers',
so that its own classes can be filled with our weights and asked for the same numbers.
"""

import json
import re
from pathlib import Path

from ddpm_edu.files.folder import PREDICT, SOLVERS
from ddpm_edu.files.names import FOLDER_UNET, FOLDER_VAE, folder_unet_rows, rename
from ddpm_edu.files.tensors import save_tensors
from ddpm_edu.networks.text import TextConfig
from ddpm_edu.networks.tokenizer import Tokenizer, clip_tokenizer
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.schedule import Schedule

# ---------------------------------------------------------------- names


def to_folder(kind, state, conv=False):
    """Our names -> those of diffusers ("unet", "vae") and transformers ("text"). conv: proj_in and
    proj_out as 1x1 convolutions, as SD 1.x has them."""
    if kind == "unet":
        return to_folder_unet(state, conv)
    return rename(state, backwards(FOLDER_VAE)) if kind == "vae" else dict(state)


def backwards(rows):
    return [(ours, theirs) for theirs, ours in rows]


def to_folder_unet(state, conv: bool = False):
    """Ours -> diffusers names. conv: proj_in and proj_out as 1x1 convolutions (O, I, 1, 1), as SD 1.x has them
    (`use_linear_projection` false in its config); matrices (O, I) in SD 2 and SDXL."""
    levels = 1 + sum(bool(re.fullmatch(r"down\.\d+\.0\.conv\.weight", k)) for k in state)
    blocks = (
        1 + max(int(k.split(".")[1]) for k in state if k.startswith("down.")) - (levels - 1)
    ) // levels
    attention = [f"down.{level * (blocks + 1)}.1.norm.weight" in state for level in range(levels)]
    rows = folder_unet_rows(levels, blocks, attention, "mid.1.norm.weight" in state)
    # our blocks are found by their place alone: no row for attention that is not there
    rows = [row for row in rows if ".attentions." not in row[0] or f"{row[1]}norm.weight" in state]
    inside = [(ours, theirs) for theirs, ours in FOLDER_UNET]
    out = rename(rename(state, backwards(rows)), sorted(inside, key=lambda row: -len(row[0])))
    return {
        k: v[:, :, None, None]
        if conv and k.endswith((".proj_in.weight", ".proj_out.weight"))
        else v
        for k, v in out.items()
    }


# ---------------------------------------------------------------- configs


def unet_entries(c: UNetConfig, number_dim: int) -> dict:
    """The config.json of a UNet, as `unet_config` and diffusers read it. Raises CheckpointError for one they cannot describe."""
    assert c.context and c.middle and c.depth[-1] in (0, c.middle), "no description there"
    down = ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in c.depth]
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": number_dim,
        "projection_class_embeddings_input_dim": c.vector,
    }
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": c.in_channels,
        "out_channels": c.out_channels or c.in_channels,
        "block_out_channels": [c.channels * m for m in c.mult],
        "down_block_types": down,
        "up_block_types": [b.replace("Down", "Up") for b in reversed(down)],
        "layers_per_block": c.blocks,
        "transformer_layers_per_block": [*(n or 1 for n in c.depth[:-1]), c.middle],
        "attention_head_dim": list(c.heads),
        "cross_attention_dim": c.context,
        "norm_num_groups": c.groups,
        "use_linear_projection": True,
        **(added if c.vector else {}),
    }


def vae_entries(c: VAEConfig) -> dict:
    """The config.json of a VAE."""
    levels = len(c.mult)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": c.in_channels,
        "out_channels": c.in_channels,
        "latent_channels": c.latent,
        "block_out_channels": [c.channels * m for m in c.mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": c.blocks,
        "norm_num_groups": c.groups,
        "scaling_factor": c.scale,
    }


def text_entries(c: TextConfig) -> dict:
    """The config.json of a text encoder."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if c.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.hidden,
        "hidden_act": c.act,
        "projection_dim": c.projection or c.width,
        "vocab_size": c.vocab,
        "max_position_embeddings": c.length,
        "bos_token_id": c.vocab - 2,
        "eos_token_id": c.vocab - 1,
        "pad_token_id": 0 if c.pad == "!" else c.vocab - 1,
    }


def schedule_entries(schedule: Schedule, c) -> dict:
    """A scheduler's config with every beta spelt out. c: the SystemConfig."""
    kinds = {sampler: kind for kind, (sampler, _) in SOLVERS.items()}
    return {
        "_class_name": kinds[c.sampler],
        "num_train_timesteps": schedule.T,
        "trained_betas": schedule.beta.tolist(),
        "rescale_betas_zero_snr": (schedule.beta[-1] == 1).item(),
        "clip_sample": False,
        "set_alpha_to_one": c.end == -1,
        "skip_prk_steps": True,
        "steps_offset": c.offset,
        "timestep_spacing": c.spacing,
        "prediction_type": {ours: theirs for theirs, ours in PREDICT.items()}[c.predict],
    }


def index_entries(vector: str, zero_empty: bool, projects: bool, scheduler: str) -> dict:
    """model_index.json: which parts there are, and the classes they have in diffusers."""
    clip, projected = "CLIPTextModel", "CLIPTextModelWithProjection"
    pipeline, *texts = {
        "": ("StableDiffusionPipeline", projected if projects else clip),
        "sdxl": ("StableDiffusionXLPipeline", clip, projected),
        "refiner": ("StableDiffusionXLImg2ImgPipeline", None, projected),
    }[vector]
    parts = {
        "scheduler": ("diffusers", scheduler),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    for suffix, kind in zip(("", "_2"), texts):
        parts[f"text_encoder{suffix}"] = ("transformers", kind) if kind else (None, None)
        parts[f"tokenizer{suffix}"] = ("transformers", "CLIPTokenizer") if kind else (None, None)
    if vector:
        more = {
            "force_zeros_for_empty_prompt": zero_empty,
            **({"requires_aesthetics_score": True} if vector == "refiner" else {}),
        }
    else:
        more = {
            "safety_checker": (None, None),
            "feature_extractor": (None, None),
            "requires_safety_checker": False,
        }
    return {"_class_name": pipeline, **parts, **more}


# ---------------------------------------------------------------- files


def write_tokenizer(path: Path, pad: str, tokenizer=None) -> None:
    """CLIP's tokenizer as the four files that transformers reads, vocab.json and merges.txt equal to the official ones;
    a `Tokenizer` of your own as one of the `tokenizers` package."""
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!" if pad == "!" else "<|endoftext|>",
    }
    if isinstance(tokenizer, Tokenizer):
        start, end = map(tokenizer.bpe.id_to_token, (tokenizer.start, tokenizer.end))
        write_text(path / "tokenizer.json", tokenizer.bpe.to_str())
        return write_json(
            path / "tokenizer_config.json",
            {
                "bos_token": start,
                "eos_token": end,
                **({"pad_token": "!"} if pad == "!" else {}),
                "model_max_length": tokenizer.length,
            },
        )
    bpe = json.loads(clip_tokenizer().bpe.to_str())["model"]
    write_json(path / "vocab.json", dict(sorted(bpe["vocab"].items())))
    write_text(
        path / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in bpe["merges"])
    )
    write_json(path / "special_tokens_map.json", special)
    write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "do_lower_case": True,
            "add_prefix_space": False,
            "errors": "replace",
            **special,
        },
    )


def write_json(path: Path, entries: dict) -> None:
    write_text(path, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def save_folder(sd, root) -> None:
    """A system as a folder that `load` and diffusers' from_pretrained read."""
    root, c = Path(root), sd.config
    entries = {
        "unet": {**unet_entries(c.unet, c.number_dim), "sample_size": c.size // sd.vae.factor},
        "vae": vae_entries(c.vae),
    }
    for name, part in sd.parts().items():
        kind = name.split("_")[0]
        save_tensors(
            root
            / name
            / ("model.safetensors" if kind == "text" else "diffusion_pytorch_model.safetensors"),
            to_folder(kind, part.state_dict()),
        )
        write_json(root / name / "config.json", entries.get(name) or text_entries(part.config))
        if kind == "text":
            write_tokenizer(
                root / name.replace("text_encoder", "tokenizer"), part.config.pad, sd.text.tokenizer
            )
    scheduler = schedule_entries(sd.schedule, c)
    write_json(root / "scheduler" / "scheduler_config.json", scheduler)
    kind = scheduler["_class_name"]
    index = index_entries(c.vector, c.zero_empty, bool(c.text[0].projection), kind)
    write_json(root / "model_index.json", index)
