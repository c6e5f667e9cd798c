"""diffusers around the same weights: its pipelines and VAE, eager and compiled as it advises.

It is measured where it is installed or carried (benchmarks/gpu.md); nothing else needs it.
"""

import importlib.util

import torch

from ddpm_edu.files.names import to_ours

from .bench import GUIDANCE, Bench


def missing() -> str | None:
    if importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed: carry its wheel, see benchmarks/gpu.md"


def pipeline(bench: Bench, name: str, compile: str = ""):
    """draw(inputs, steps) -> pictures (B, 3, H, W) in [0, 1] by diffusers' pipeline.

    compile: "" is eager, "whole" compiles UNet and VAE as one piece each, "regional" the UNet's
    repeated blocks.
    """
    import diffusers

    config = bench.plan(name)
    unet, vae = their_unet(bench, name), their_vae(bench, name)
    if compile and bench.cuda:
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
        if compile == "whole":
            unet = torch.compile(unet, mode="reduce-overhead", fullgraph=True)
            vae.decode = torch.compile(vae.decode, fullgraph=True)
        else:
            unet.compile_repeated_blocks(fullgraph=True)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    parts = dict(vae=vae, unet=unet, scheduler=scheduler, text_encoder=None, tokenizer=None)
    if config.vector:
        more = dict(text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
        pipe = diffusers.StableDiffusionXLPipeline(**parts, **more)
    else:
        more = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipe = diffusers.StableDiffusionPipeline(**parts, **more)
    pipe.set_progress_bar_config(disable=True)

    def draw(inputs, steps):
        cond, uncond, x_T = inputs
        told = {}
        if config.vector:  # the six numbers they work out themselves
            pooled = cond.vector.shape[1] - 6 * config.number_dim
            told["pooled_prompt_embeds"] = cond.vector[:, :pooled]
            told["negative_pooled_prompt_embeds"] = uncond.vector[:, :pooled]
        return pipe(
            prompt_embeds=cond.context,
            negative_prompt_embeds=uncond.context,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=x_T.to(cond.context.dtype),
            height=config.size,
            width=config.size,
            output_type="pt",
            **told,
        ).images

    return draw


def their_unet(bench: Bench, name: str):
    """UNet2DConditionModel of the same plan and weights."""
    import diffusers

    config = bench.plan(name)
    c = config.unet
    kinds = ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in c.depth]
    entries = dict(
        sample_size=config.size // 8,
        block_out_channels=[c.channels * m for m in c.mult],
        layers_per_block=c.blocks,
        down_block_types=kinds,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(kinds)],
        transformer_layers_per_block=[n or 1 for n in c.depth],
        attention_head_dim=list(c.heads),  # they mean how many
        cross_attention_dim=c.context,
        norm_num_groups=c.groups,
        use_linear_projection=bool(c.vector),  # SD 1.5 has 1x1 convolutions there
    )
    if c.vector:
        entries |= dict(
            addition_embed_type="text_time",
            addition_time_embed_dim=config.number_dim,
            projection_class_embeddings_input_dim=c.vector,
        )
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**entries)
    return filled(theirs, "unet", bench.network("unet", name))


def their_vae(bench: Bench, name: str):
    """AutoencoderKL of the same plan and weights."""
    import diffusers

    c = bench.plan(name).vae
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(
            block_out_channels=[c.channels * m for m in c.mult],
            down_block_types=["DownEncoderBlock2D"] * len(c.mult),
            up_block_types=["UpDecoderBlock2D"] * len(c.mult),
            layers_per_block=c.blocks,
            latent_channels=c.latent,
            norm_num_groups=c.groups,
            scaling_factor=c.scale,
            force_upcast=False,
        )
    return filled(theirs, "vae", bench.network("vae", name))


def filled(theirs, part: str, ours):
    """Our weights in their model; our loader says which is which, as it renames 0, 1, 2, ..."""
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    numbers = {key: torch.tensor([i]) for i, key in enumerate(shapes)}
    place = {int(i): key for key, i in to_ours(part, numbers).items()}
    weights = ours.state_dict()
    state = {
        key: weights[place[i]].reshape(shape).clone(memory_format=torch.contiguous_format)
        for i, (key, shape) in enumerate(shapes.items())
    }
    theirs.load_state_dict(state, assign=True)
    return theirs.eval().requires_grad_(False)
