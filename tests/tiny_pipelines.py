"""Tiny pipelines with random weights, built and saved by diffusers, whose pictures ours must equal.

64 channels at least: with one channel a group a GroupNorm cancels every shift of a channel, and
time goes unseen.
"""

import gzip

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ddpm_edu.paths import data_folder

# Stable Diffusion's official scheduler config, as far as it differs from diffusers' defaults
OFFICIAL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
}


def scheduler(sampler, **config):
    kind, more = SCHEDULERS[sampler]
    return kind(**{**OFFICIAL, **more, **config})


def tokenizer(pad="<|endoftext|>"):
    """CLIP's, with byte-level characters as its paper's code numbers them."""
    lines = (
        gzip.decompress((data_folder() / "tokenizer" / "merges.txt.gz").read_bytes())
        .decode("utf-8")
        .splitlines()
    )
    merges = [tuple(line.split(" ")) for line in lines]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    tokens = [
        *signs,
        *(s + "</w>" for s in signs),
        *map("".join, merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad,
        model_max_length=77,
    )


def text_encoder(kind, act):
    return kind(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=24,
            hidden_act=act,
            eos_token_id=2,
            bos_token_id=0,
        )
    ).eval()


def unet(context, vector=0, depth=1, linear=False, channels=64, inputs=4):
    more = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": vector,
        }
        if vector
        else {}
    )
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=inputs,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(channels, 2 * channels),
        cross_attention_dim=context,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, depth),
        use_linear_projection=linear,
        **more,
    ).eval()


def vae(scale):
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        scaling_factor=scale,
    ).eval()


def from_picture(pipe):
    """The image-to-image pipeline of the same parts."""
    xl = isinstance(pipe, StableDiffusionXLPipeline)
    kind = StableDiffusionXLImg2ImgPipeline if xl else StableDiffusionImg2ImgPipeline
    other = kind(**pipe.components, **({} if xl else {"requires_safety_checker": False}))
    other.set_progress_bar_config(disable=True)
    return other


def inpainting(pipe):
    """The inpainting pipeline of the same parts."""
    xl = isinstance(pipe, StableDiffusionXLPipeline)
    kind = StableDiffusionXLInpaintPipeline if xl else StableDiffusionInpaintPipeline
    other = kind(**pipe.components, **({} if xl else {"requires_safety_checker": False}))
    other.set_progress_bar_config(disable=True)
    return other


def build(name, seed=0, channels=4):
    """A pipeline of diffusers with its official scheduler: "sd" (PNDM), "sd2" (DDIM, v), "sdxl" or
    "refiner" (Euler). channels: that the UNet takes, 9 for inpainting."""
    torch.manual_seed(seed)
    clip, open_clip = tokenizer(), tokenizer("!")
    if name in ("sd", "sd2"):
        pipe = StableDiffusionPipeline(
            vae=vae(0.18215),
            text_encoder=text_encoder(CLIPTextModel, "quick_gelu" if name == "sd" else "gelu"),
            tokenizer=clip if name == "sd" else open_clip,
            unet=unet(32, linear=name == "sd2", inputs=channels),
            safety_checker=None,
            feature_extractor=None,
            scheduler=scheduler("pndm")
            if name == "sd"
            else scheduler("ddim", prediction_type="v_prediction"),
            requires_safety_checker=False,
        )
    elif name == "sdxl":
        pipe = StableDiffusionXLPipeline(
            vae=vae(0.13025),
            text_encoder=text_encoder(CLIPTextModel, "quick_gelu"),
            tokenizer=clip,
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, "gelu"),
            tokenizer_2=open_clip,
            unet=unet(64, 24 + 6 * 8, 2, True, inputs=channels),
            scheduler=scheduler("euler"),
            add_watermarker=False,
        )
    else:
        pipe = StableDiffusionXLImg2ImgPipeline(
            vae=vae(0.13025),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, "gelu"),
            tokenizer_2=open_clip,
            unet=unet(32, 24 + 5 * 8, 2, True, 96),
            scheduler=scheduler("euler"),
            add_watermarker=False,
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe
