"""The configs of a model as the entries of diffusers' JSON files, and back.

What our classes cannot do is refused by the name of its entry.
"""

from contextlib import contextmanager

import torch

from ..errors import CheckpointError, DataError
from ..networks.text import TextConfig
from ..networks.unet import UNetConfig
from ..networks.vae import VAEConfig
from ..schedule import Schedule

# entry: the values our classes can do, the first one is what a missing entry means
UNET_ENTRIES = {
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "act_fn": ("silu", "swish"),
    "norm_eps": (1e-5,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text_time"),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
    "reverse_transformer_layers_per_block": (None,),
}
VAE_ENTRIES = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
}
TEXT_ENTRIES = {"layer_norm_eps": (1e-5,), "hidden_act": ("quick_gelu", "gelu")}
SCHEDULER_ENTRIES = {
    "rescale_betas_zero_snr": (False,),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}
PREDICT = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}


# ---------------------------------------------------------------- reading


def unet_config(entries: dict, source="unet/config.json") -> UNetConfig:
    """UNetConfig of a `UNet2DConditionModel`; there `attention_head_dim` means the NUMBER of heads."""
    with reading(source):
        _possible(source, entries, UNET_ENTRIES, "UNet2DConditionModel")
        widths = entries.get("block_out_channels", [320, 640, 1280, 1280])
        levels = len(widths)
        down = entries.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
        up = entries.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
        known = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
        if len(down) != levels or any(b not in known for b in down):
            raise _Unable("down_block_types", down, f"{levels} of {' or '.join(known)}")
        if up != [b.replace("Down", "Up") for b in reversed(down)]:
            raise _Unable("up_block_types", up, "the down blocks in reverse")
        layers = _per_level(entries, "transformer_layers_per_block", 1, levels)
        heads = _per_level(entries, "attention_head_dim", 8, levels)
        heads = [
            1 if not known[b] and widths[level] % h else h
            for level, (h, b) in enumerate(zip(heads, down))
        ]  # unused without attention
        vector = (
            entries.get("projection_class_embeddings_input_dim")
            if entries.get("addition_embed_type")
            else 0
        )
        if vector is None:
            raise _Unable(
                "projection_class_embeddings_input_dim", None, "a number beside addition_embed_type"
            )
        inputs, outputs = entries.get("in_channels", 4), entries.get("out_channels", 4)
        return UNetConfig(
            inputs,
            0 if outputs == inputs else outputs,
            widths[0],
            _mult(widths),
            tuple(n if known[b] else 0 for n, b in zip(layers, down)),
            layers[-1],
            tuple(heads),
            _same(entries, "cross_attention_dim", 1280),
            vector,
            _same(entries, "layers_per_block", 2),
            entries.get("norm_num_groups", 32),
        )


def vae_config(entries: dict, source="vae/config.json", scale: float | None = None) -> VAEConfig:
    """VAEConfig of an `AutoencoderKL`. `scale` stands in for a missing scaling_factor; None: it must be there."""
    with reading(source):
        _possible(source, entries, VAE_ENTRIES, "AutoencoderKL")
        widths = entries.get("block_out_channels", [64])
        for name, block in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            if entries.get(name, [block]) != [block] * len(widths):
                raise _Unable(name, entries.get(name), f"{block} at every level")
        channels, scale = entries.get("in_channels", 3), entries.get("scaling_factor", scale)
        if entries.get("out_channels", 3) != channels:
            raise _Unable(
                "out_channels", entries.get("out_channels"), f"{channels}, as in_channels"
            )
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise _Unable(
                "scaling_factor",
                scale,
                "a number such as 0.13025: with a wrong one pictures come out grey or garish",
            )
        return VAEConfig(
            channels,
            widths[0],
            _mult(widths),
            entries.get("layers_per_block", 1),
            entries.get("latent_channels", 4),
            entries.get("norm_num_groups", 32),
            float(scale),
        )


def text_config(
    entries: dict, source="text_encoder/config.json", projects: bool = False, pad: str = "eot"
) -> TextConfig:
    """TextConfig of a CLIP text model; `projects`: the class has the projection of the pooled state (a bare one has not)."""
    entries = entries.get("text_config") or entries
    with reading(source):
        _possible(source, entries, TEXT_ENTRIES, "CLIPTextModel")
        return TextConfig(
            width=entries.get("hidden_size", 512),
            layers=entries.get("num_hidden_layers", 12),
            heads=entries.get("num_attention_heads", 8),
            hidden=entries.get("intermediate_size", 2048),
            act=entries.get("hidden_act", "quick_gelu"),
            projection=entries.get("projection_dim", 512) if projects else 0,
            pad=pad,
            vocab=entries.get("vocab_size", 49408),
            length=entries.get("max_position_embeddings", 77),
        )


def schedule_config(
    entries: dict, source="scheduler/scheduler_config.json"
) -> tuple[Schedule, str]:
    """(Schedule, what the UNet predicts) of any diffusers scheduler with betas; missing entries mean its defaults."""
    with reading(source):
        _possible(source, entries, SCHEDULER_ENTRIES, entries.get("_class_name", "scheduler"))
        if "FlowMatch" in str(entries.get("_class_name")):
            raise _Unable("_class_name", entries["_class_name"], "a scheduler with betas")
        T, ends = (
            entries.get("num_train_timesteps", 1000),
            (entries.get("beta_start", 0.0001), entries.get("beta_end", 0.02)),
        )
        if entries.get("trained_betas") is not None:
            schedule = Schedule(torch.tensor(entries["trained_betas"], dtype=torch.float64))
        else:
            kind = entries.get("beta_schedule", "linear")
            schedule = (
                Schedule.cosine(T)
                if kind == "squaredcos_cap_v2"
                else (Schedule.linear if kind == "linear" else Schedule.sqrt_linear)(T, *ends)
            )
        return schedule, PREDICT[entries.get("prediction_type", "epsilon")]


class _Unable(Exception):
    """An entry that our classes cannot do: name, value, what they can."""


@contextmanager
def reading(source):
    """Turns whatever a config of wrong types or sizes raises into one CheckpointError that names its file."""
    try:
        yield
    except _Unable as e:
        name, value, possible = e.args
        raise CheckpointError(
            f"{source}: {name} = {value!r} is not supported here; possible: {possible}"
        ) from None
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        DataError,
    ) as e:  # OptionError and ScheduleError, too
        raise CheckpointError(f"{source}: no plan of a model that can be built ({e})") from e


def _possible(source, entries, table, kind):
    for name, values in table.items():
        value = entries.get(name, values[0])
        if value not in values:
            raise _Unable(name, value, " or ".join(map(repr, values)))


def _per_level(entries, name, default, levels):
    value = entries.get(name, default)
    value = [value] * levels if isinstance(value, int) else value
    if (
        not isinstance(value, list)
        or len(value) != levels
        or not all(isinstance(v, int) for v in value)
    ):
        raise _Unable(name, value, f"one number, or {levels}, one a level")
    return value


def _same(entries, name, default):
    value = entries.get(name, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise _Unable(name, value, "one number for all levels")
    return value


def _mult(widths):
    if any(w % widths[0] for w in widths):
        raise _Unable("block_out_channels", widths, "whole multiples of the first")
    return tuple(w // widths[0] for w in widths)


# ---------------------------------------------------------------- writing


def unet_entries(c: UNetConfig, number_dim: int) -> dict:
    """The config.json of a UNet, as `unet_config` and diffusers read it. Raises CheckpointError for one they cannot describe."""
    if not c.context or not c.middle or c.depth[-1] not in (0, c.middle):
        raise CheckpointError(
            f"a UNet with context = {c.context}, middle = {c.middle}, depth = {c.depth} has no description in folder layout: "
            "it needs a context, and as many transformers in the middle as in a last level that has any; use save_pretrained"
        )
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


def schedule_entries(schedule: Schedule, predict: str, spacing: str = "leading") -> dict:
    """A DDIM scheduler's config with every beta spelt out."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.T,
        "trained_betas": schedule.beta.tolist(),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": spacing,
        "prediction_type": {ours: theirs for theirs, ours in PREDICT.items()}[predict],
    }


def index_entries(vector: str, zero_empty: bool, projects: bool) -> dict:
    """model_index.json: which parts there are, and the classes they have in diffusers."""
    clip, projected = "CLIPTextModel", "CLIPTextModelWithProjection"
    pipeline, *texts = {
        "": ("StableDiffusionPipeline", projected if projects else clip),
        "sdxl": ("StableDiffusionXLPipeline", clip, projected),
        "refiner": ("StableDiffusionXLImg2ImgPipeline", None, projected),
    }[vector]
    parts = {
        "scheduler": ("diffusers", "DDIMScheduler"),
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
