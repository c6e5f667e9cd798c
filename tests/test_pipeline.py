"""Text to picture: the pictures of diffusers' pipelines, from the files that they save."""

import copy
import dataclasses
import math
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import read_json, read_tensors, refuses

from ddpm_edu import (
    SAMPLERS,
    CheckpointError,
    DataError,
    DdpmEduError,
    OptionError,
    ResourceError,
    SamplingError,
    Schedule,
    ShapeError,
    last,
    noise,
)
from ddpm_edu.diffusion import Cond
from ddpm_edu.files.folder import SOLVERS, schedule_config
from ddpm_edu.files.load import load
from ddpm_edu.samplers import sampling_times
from ddpm_edu.systems import arguments, guard, pipeline
from ddpm_edu.systems.pipeline import (
    condition,
    decode,
    draw,
    image_to_image,
    prompted,
    refine,
    text_to_image,
    unet_of,
)
from ddpm_edu.systems.system import SystemConfig, build

TOLERANCE = 1e-4
PROMPT, BAD = "a lighthouse at dusk", "blurry, a cat"


# ---------------------------------------------------------------- files that diffusers saved


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> (diffusers' pipeline, ours from the folder it saved), built when first asked for."""
    pytest.importorskip("diffusers")
    from tiny_pipelines import build

    pairs = {}

    def pair(name):
        if name not in pairs:
            folder = tmp_path_factory.mktemp(name)
            theirs = build(name)
            theirs.save_pretrained(folder)
            pairs[name] = theirs, load(folder)
            official = {k: v for k, v in theirs.scheduler.config.items() if k[0] != "_"}
            pairs[name][1].official = type(theirs.scheduler), official
        return pairs[name]

    return pair


def ours(sd, prompts=PROMPT, **options):
    return draw(sd, prompts, progress=False, **options)


def theirs(
    pipe,
    sampler="euler",
    *,
    size=(72, 56),
    seeds=(1,),
    prompts=PROMPT,
    scheduler_config=None,
    **options,
):
    """The picture in [-1, 1] that diffusers draws from our noise."""
    from tiny_pipelines import scheduler

    predict = {"prediction_type": pipe.scheduler.config.prediction_type}
    pipe.scheduler = scheduler(sampler, **predict, **(scheduler_config or {}))
    latents = noise((4, size[0] // 8, size[1] // 8), seeds)
    prompts = [prompts] * len(seeds) if isinstance(prompts, str) else prompts
    out = pipe(
        prompt=prompts, height=size[0], width=size[1], latents=latents, output_type="pt", **options
    ).images
    return 2 * out - 1


def difference(a, b):
    assert (
        a.shape == b.shape and b.std() > 0.02
    )  # a picture, not a flat field that anything would equal
    return (a - b).abs().max().item()


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl"])
def test_same_picture_as_diffusers(saved, name, sampler):
    """Guided with a negative prompt, 7 steps, an odd latent size (9 x 7)."""
    pipe, sd = saved(name)
    assert (
        difference(
            ours(sd, sampler=sampler, steps=7, guidance=6, negative=BAD, size=(72, 56), seeds=1),
            theirs(pipe, sampler, num_inference_steps=7, guidance_scale=6, negative_prompt=[BAD]),
        )
        < TOLERANCE
    )


@pytest.mark.parametrize(
    "name, options, same",
    [
        ("sd", {"guidance": 1.0}, {"guidance_scale": 1.0}),
        ("sd", {"guidance": 7.5}, {"guidance_scale": 7.5}),  # the encoding of ""
        ("sdxl", {"guidance": 1.0}, {"guidance_scale": 1.0}),
        ("sdxl", {"guidance": 7.5}, {"guidance_scale": 7.5}),  # zeros
        (
            "sdxl",
            {"guidance": 7.5, "rescale": 0.7},
            {"guidance_scale": 7.5, "guidance_rescale": 0.7},
        ),
        (
            "sdxl",
            {
                "guidance": 3.0,
                "original_size": (512, 300),
                "crop": (64, 7),
                "target_size": (80, 64),
            },
            {
                "guidance_scale": 3.0,
                "original_size": (512, 300),
                "crops_coords_top_left": (64, 7),
                "target_size": (80, 64),
            },
        ),
    ],
)
def test_same_options_same_picture(saved, name, options, same):
    pipe, sd = saved(name)
    mine = ours(sd, sampler="euler", steps=5, size=(72, 56), seeds=1, **options)
    assert difference(mine, theirs(pipe, "euler", num_inference_steps=5, **same)) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 3, 9])
@pytest.mark.parametrize(
    "sampler, spacing",
    [("ddim", "leading"), ("euler", "leading"), ("dpmpp_2m", "leading"), ("dpmpp_2m", "linspace")],
)
def test_same_picture_for_few_steps(saved, sampler, spacing, steps):
    pipe, sd = saved("sd")
    mine = ours(
        sd, sampler=sampler, spacing=spacing, steps=steps, guidance=1.0, size=(40, 64), seeds=5
    )
    assert (
        difference(
            mine,
            theirs(
                pipe,
                sampler,
                size=(40, 64),
                seeds=(5,),
                num_inference_steps=steps,
                guidance_scale=1.0,
                scheduler_config={"timestep_spacing": spacing},
            ),
        )
        < TOLERANCE
    )


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_two_prompts_at_once_as_diffusers(saved, name):
    pipe, sd = saved(name)
    prompts, negatives = [PROMPT, "two foxes"], [BAD, "snow"]
    mine = ours(
        sd,
        prompts,
        negative=negatives,
        sampler="dpmpp_2m",
        steps=4,
        guidance=5,
        size=64,
        seeds=[3, 11],
    )
    assert (
        difference(
            mine,
            theirs(
                pipe,
                "dpmpp_2m",
                size=(64, 64),
                seeds=(3, 11),
                prompts=prompts,
                num_inference_steps=4,
                guidance_scale=5,
                negative_prompt=negatives,
            ),
        )
        < TOLERANCE
    )


@pytest.mark.parametrize(
    "sampler, handover, guidance",
    [("euler", 0.8, 5), ("euler", 0.799, 1), ("ddim", 0.7, 1), ("dpmpp_2m", 0.5, 5)],
)
def test_base_and_refiner_as_diffusers(saved, sampler, handover, guidance):
    (base_pipe, base), (refiner_pipe, refiner) = saved("sdxl"), saved("refiner")
    from tiny_pipelines import scheduler

    mine = ours(
        base,
        sampler=sampler,
        steps=10,
        guidance=guidance,
        negative=BAD,
        size=(72, 56),
        seeds=1,
        refiner=refiner,
        handover=handover,
    )
    same = {
        "num_inference_steps": 10,
        "guidance_scale": guidance,
        "negative_prompt": [BAD],
        "prompt": [PROMPT],
    }
    base_pipe.scheduler, refiner_pipe.scheduler = scheduler(sampler), scheduler(sampler)
    half = base_pipe(
        height=72,
        width=56,
        latents=noise((4, 9, 7), [1]),
        denoising_end=handover,
        output_type="latent",
        **same,
    ).images
    done = refiner_pipe(image=half, denoising_start=handover, output_type="pt", **same).images
    assert difference(mine, 2 * done - 1) < TOLERANCE


# ---------------------------------------------------------------- as the scheduler's file says


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl"])
def test_default_picture(saved, name):
    """Nothing but a prompt: PNDM, DDIM with v, Euler; 50 steps, the pipeline's own guidance."""
    pipe, sd = saved(name)
    kind, entries = sd.official
    pipe.scheduler = kind.from_config(entries)
    theirs = pipe(prompt=PROMPT, latents=noise((4, 8, 8), [1]), output_type="pt").images
    assert difference(ours(sd, seeds=1), 2 * theirs - 1) < TOLERANCE


SCHEDULERS = {  # class, entries of scheduler_config.json, the system, steps
    "SD 2 base": ("PNDMScheduler", {"skip_prk_steps": True}, "sd", 9),
    "PNDM to the end": (
        "PNDMScheduler",
        {"skip_prk_steps": True, "set_alpha_to_one": True},
        "sd",
        4,
    ),
    "PNDM one step": ("PNDMScheduler", {"skip_prk_steps": True}, "sd", 1),
    "PNDM trailing": (
        "PNDMScheduler",
        {"skip_prk_steps": True, "timestep_spacing": "trailing"},
        "sd",
        5,
    ),
    "DDIM clean": ("DDIMScheduler", {"set_alpha_to_one": True}, "sd", 7),
    "DDIM trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}, "sd2", 8),
    "DDIM zero SNR": (
        "DDIMScheduler",
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "set_alpha_to_one": False},
        "sd2",
        8,
    ),
    "Euler linspace": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, "sdxl", 7),
    "Euler trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "sdxl", 7),
    "Euler karras": (
        "EulerDiscreteScheduler",
        {"timestep_spacing": "linspace", "use_karras_sigmas": True},
        "sdxl",
        7,
    ),
    "Euler leading karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "sdxl", 7),
    "Euler zero SNR": (
        "EulerDiscreteScheduler",
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        "sd2",
        6,
    ),
    "Euler offset 0": ("EulerDiscreteScheduler", {"steps_offset": 0}, "sdxl", 7),
    "Heun": ("HeunDiscreteScheduler", {}, "sd", 5),
    "Heun karras": (
        "HeunDiscreteScheduler",
        {"timestep_spacing": "linspace", "use_karras_sigmas": True},
        "sd",
        5,
    ),
    "DPM++ karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "sdxl", 7),
    "DPM++ linspace v": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}, "sd2", 7),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}, "sd", 6),
    "Euler a linspace": (
        "EulerAncestralDiscreteScheduler",
        {"timestep_spacing": "linspace"},
        "sdxl",
        6,
    ),
    "DDPM": ("DDPMScheduler", {}, "sd", 6),
    "x_0": ("DDIMScheduler", {"prediction_type": "sample"}, "sd", 5),
    "cosine": ("EulerDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}, "sd2", 5),
}


@pytest.mark.parametrize("case", SCHEDULERS)
def test_picture_of_a_scheduler_file(saved, tmp_path, case):
    import json

    import diffusers

    kind, entries, name, steps = SCHEDULERS[case]
    pipe, sd = saved(name)
    usual = {"clip_sample": False, "set_alpha_to_one": False}
    entries = {**sd.official[1], **usual, **entries, "_class_name": kind}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(entries))
    schedule, how = schedule_config(entries, sd=name != "sdxl")
    mine = build(dataclasses.replace(sd.config, **how), schedule)
    mine.load_state_dict(sd.state_dict())
    pipe.scheduler = getattr(diffusers, kind).from_pretrained(tmp_path, subfolder="scheduler")
    generator = torch.Generator().manual_seed(1)  # draws the first noise, then the steps' own
    theirs = pipe(
        prompt=PROMPT,
        latents=torch.randn(1, 4, 8, 8, generator=generator),
        generator=generator,
        num_inference_steps=steps,
        guidance_scale=3,
        output_type="pt",
    ).images
    assert difference(ours(mine, seeds=1, steps=steps, guidance=3), 2 * theirs - 1) < TOLERANCE


@pytest.mark.parametrize("kind", SOLVERS)
def test_missing_entries_mean_what_diffusers_means(kind):
    diffusers, own = pytest.importorskip("diffusers"), {"_class_name": kind, "skip_prk_steps": True}
    full = {k: v for k, v in getattr(diffusers, kind)().config.items() if k[0] != "_"}
    (schedule, how), (same, as_said) = (schedule_config(e) for e in (own, {**full, **own}))
    assert how == as_said and torch.equal(schedule.beta, same.beta)


def test_schedulers_that_are_not_ours(saved):
    official = saved("sdxl")[1].official[1]
    for kind in (
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "CMStochasticIterativeScheduler",
        "ScoreSdeVeScheduler",
        "LCMScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "UniPCMultistepScheduler",
        None,
    ):
        with refuses(CheckpointError, "_class_name", str(kind)):
            schedule_config({**official, "_class_name": kind})
    for kind, entry, value in (
        ("EulerDiscreteScheduler", "use_beta_sigmas", True),
        ("EulerDiscreteScheduler", "timestep_type", "continuous"),
        ("EulerDiscreteScheduler", "final_sigmas_type", "sigma_min"),
        ("EulerDiscreteScheduler", "prediction_type", "flow_prediction"),
        ("EulerDiscreteScheduler", "beta_schedule", "sigmoid"),
        ("EulerDiscreteScheduler", "timestep_spacing", "odd"),
        ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"),
        ("DPMSolverMultistepScheduler", "solver_order", 3),
        ("DPMSolverMultistepScheduler", "use_lu_lambdas", True),
        ("PNDMScheduler", "skip_prk_steps", False),
        ("PNDMScheduler", "prediction_type", "v_prediction"),
        ("DDIMScheduler", "thresholding", True),
        ("DDIMScheduler", "clip_sample", True),
        ("HeunDiscreteScheduler", "clip_sample", True),
        ("DDIMScheduler", "timestep_spacing", "linspace"),
        ("PNDMScheduler", "timestep_spacing", "linspace"),
        ("PNDMScheduler", "steps_offset", 0),
        ("DDPMScheduler", "variance_type", "learned_range"),
    ):
        entries = {**official, "skip_prk_steps": True, "_class_name": kind, entry: value}
        with refuses(CheckpointError, re.escape(f"{entry} = {value!r}")):
            schedule_config(entries, sd=False)
    with refuses(CheckpointError, "clip_sample"):  # diffusers' default, where nothing is said
        schedule_config({"_class_name": "DDIMScheduler"}, sd=False)


# ---------------------------------------------------------------- from a picture


@pytest.mark.parametrize(
    "name, sampler, strength",
    [
        ("sd", "ddim", 0.6),
        ("sd", "dpmpp_2m", 0.7),
        ("sd", "pndm", 1.0),
        ("sd", "heun", 0.5),
        ("sd2", "ddim", 0.3),
        ("sdxl", "euler", 0.5),
        ("refiner", "euler", 0.3),
    ],
)
def test_image_to_image_as_diffusers(saved, name, sampler, strength):
    """The same two draws from the same generator: the latent out of q(z | x), then the noise."""
    from tiny_pipelines import from_picture, scheduler

    pipe, sd = saved(name)
    picture = torch.rand(1, 3, 72, 56, generator=torch.Generator().manual_seed(3))
    predict = {"eps": "epsilon", "v": "v_prediction"}[sd.predict]
    pipe.scheduler = scheduler(sampler, prediction_type=predict)
    same = {"num_inference_steps": 10, "guidance_scale": 4, "negative_prompt": BAD}
    theirs = (pipe if name == "refiner" else from_picture(pipe))(
        prompt=PROMPT,
        image=picture,
        strength=strength,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
        **same,
    ).images
    options = {"steps": 10, "guidance": 4, "negative": BAD, "sampler": sampler, "seeds": 5}
    run = list(image_to_image(sd, PROMPT, 2 * picture - 1, strength=strength, **options))
    assert len(run) == round(10 * strength)
    assert difference(decode(sd, run[-1].x_prev), 2 * theirs - 1) < TOLERANCE


def test_little_strength_keeps_the_picture(one):
    picture = torch.rand(2, 3, 64, 64) * 2 - 1
    z_0 = one.vae.to_latent(picture)
    off = [
        (last(image_to_image(one, ["a", "b"], picture, strength=s, steps=20)) - z_0).abs().mean()
        for s in (0.05, 0.3, 1.0)
    ]
    assert off[0] < off[1] < off[2]
    alone = last(image_to_image(one, "b", picture[1:], strength=0.3, steps=20, seeds=1))
    assert torch.allclose(
        last(image_to_image(one, ["a", "b"], picture, strength=0.3, steps=20))[1:], alone, atol=1e-5
    )


@pytest.mark.parametrize(
    "error, change",
    [
        (OptionError, {"strength": 0}),
        (OptionError, {"strength": 0.04}),
        (OptionError, {"strength": 1.1}),
        (OptionError, {"strength": math.nan}),
        (OptionError, {"strength": "0.5"}),
        (DataError, {"picture": torch.full((1, 3, 64, 64), 128.0)}),
        (ShapeError, {"picture": torch.zeros(3, 3, 64, 64) - 1}),
        (DataError, {"picture": torch.zeros(1, 4, 64, 64) - 1}),  # alpha below 0
        (DataError, {"picture": "fox.png"}),
        (ShapeError, {"picture": torch.zeros(1, 3, 64, 64, device="meta")}),
        (ShapeError, {"picture": torch.zeros(1, 3, 64, 64).to_sparse()}),
    ],
)
def test_refused_pictures(one, error, change):
    options = {"picture": torch.zeros(1, 3, 64, 64) - 1, "strength": 0.5, "steps": 20, **change}
    with refuses(error, "strength" if "strength" in change else "picture|x has shape"):
        image_to_image(one, ["a", "b"], **options)


# ---------------------------------------------------------------- times


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 9, 10, 20, 25, 27, 50])
@pytest.mark.parametrize(
    "sampler, spacing, fact",
    [
        ("ddim", "leading", "ddim_leading"),
        ("euler", "trailing", "ddim_trailing"),
        ("dpmpp_2m", "leading", "dpmpp2m_leading"),
        ("dpmpp_2m", "linspace", "dpmpp2m_linspace"),
        ("dpmpp_2m", "trailing", "dpmpp2m_trailing"),
    ],
)
def test_times_are_the_official_ones(sampler, spacing, fact, steps):
    times, end = sampling_times(Schedule.sqrt_linear(), steps, sampler, spacing)
    assert times == read_json("schedule_facts.json")["timesteps"][str(steps)][fact]
    assert end == (0 if sampler == "ddim" else -1)


@pytest.mark.parametrize("split", ["20_0.7", "25_0.8", "30_0.8", "30_0.9", "50_0.7"])
def test_base_and_refiner_share_the_times_as_sgm_does(two, split):
    fact = read_json("schedule_facts.json")["sdxl_base_refiner_split_euler_leading"][split]
    steps, handover = split.split("_")
    seen = {"base": [], "refiner": []}
    for system, name in zip(two, seen):
        system.unet.forward = lambda x, t, cond, name=name: (
            seen[name].append(t[0].item()) or torch.zeros_like(x)
        )
    same = {"steps": int(steps), "sampler": "euler", "guidance": 1, "handover": float(handover)}
    run = refine(two[1], PROMPT, text_to_image(two[0], PROMPT, **same), **same)
    assert sum(1 for _ in run) == int(steps)
    assert seen == {"base": fact["base"], "refiner": fact["refiner"]}


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS])
@pytest.mark.parametrize("steps", [1, 3, 9, 27, 30, 999, 1000])
def test_exactly_as_many_steps_as_asked(sampler, steps):
    """With a model that costs nothing; heun's second look is no step."""
    schedule = Schedule.sqrt_linear()
    times, end = sampling_times(schedule, steps, sampler)
    run = SAMPLERS[sampler](lambda x, t, cond: x, schedule, torch.ones(1, 1, 1, 1), times, end=end)
    assert sum(1 for _ in run) == steps == len(set(times))


# ---------------------------------------------------------------- a tiny system of our own


def tiny(vector="", pooled=24, **more):
    from ddpm_edu.networks.text import TextConfig
    from ddpm_edu.networks.unet import UNetConfig
    from ddpm_edu.networks.vae import VAEConfig
    from ddpm_edu.systems.system import build

    torch.manual_seed(0)
    width = pooled + 8 * {"": 0, "sdxl": 6, "refiner": 5}[vector] if vector else 0
    unet = UNetConfig(
        channels=64,
        mult=(1, 2),
        depth=(0, 1),
        middle=1,
        heads=(2, 4),
        context=32,
        vector=width,
        blocks=1,
    )
    return build(
        SystemConfig(
            f"tiny {vector}",
            unet,
            VAEConfig(channels=16, mult=(1, 1, 2, 2), blocks=1, groups=8),
            (TextConfig(32, 2, 4, 64, projection=pooled if vector else 0),),
            "penultimate" if vector else "last",
            size=64,
            vector=vector,
            number_dim=8,
            **more,
        )
    )


@pytest.fixture(scope="module")
def one():
    pytest.importorskip("transformers")
    return tiny()


@pytest.fixture
def fresh():
    pytest.importorskip("transformers")
    return tiny()


@pytest.fixture
def two():
    pytest.importorskip("transformers")
    return tiny("sdxl", zero_empty=True), tiny("refiner")


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "ddpm"])
def test_a_picture_is_its_prompt_and_seed_not_its_batch(one, sampler):
    many = draw(
        one,
        ["a fox", "a boat", "a hill"],
        negative=["", "mist", "snow"],
        seeds=[7, 8, 9],
        steps=3,
        sampler=sampler,
        progress=False,
    )
    alone = draw(one, "a boat", negative="mist", seeds=8, steps=3, sampler=sampler, progress=False)
    assert torch.allclose(many[1:2], alone, atol=1e-5) and not torch.allclose(
        many[0], many[1], atol=1e-2
    )


def test_one_prompt_with_several_seeds_and_seeds_that_count_up(one):
    by_hand = draw(one, "a fox", seeds=[4, 5], steps=2, progress=False)
    assert torch.equal(
        by_hand, draw(one, ["a fox", "a fox"], seeds=4, steps=2, progress=False)
    ) and by_hand.shape == (2, 3, 64, 64)


def test_draw_shows_progress_and_decodes_with_the_system_that_came_last(two, capsys):
    sd, refiner = two
    shown = draw(sd, PROMPT, steps=5, refiner=refiner)
    assert "5/5" in capsys.readouterr().err
    same = {"steps": 5, "handover": 0.8}
    z = last(refine(refiner, PROMPT, text_to_image(sd, PROMPT, **same), **same))
    half = last(text_to_image(sd, PROMPT, **same))
    assert torch.equal(last(refine(refiner, PROMPT, half, size=64, **same)), z)
    assert torch.equal(shown, decode(refiner, z)) and not torch.equal(shown, decode(sd, z))
    draw(sd, PROMPT, steps=1, progress=False)
    assert capsys.readouterr().err == ""


def test_yields_steps_in_float32(one):
    steps = list(text_to_image(one, PROMPT, steps=3, size=(72, 40)))
    assert (
        [s.t for s in steps] == [751, 501, 251]
        and steps[0].x_t.shape == (1, 4, 9, 5)
        and steps[0].x_t.dtype == torch.float32
    )
    assert torch.equal(steps[0].x_prev, steps[1].x_t)


def test_bfloat16_comes_near(one, fresh):
    fresh.to(torch.bfloat16)
    steps = list(text_to_image(fresh, PROMPT, steps=4, guidance=3))
    assert all(s.x_prev.dtype == torch.float32 for s in steps)
    a, b = decode(fresh, steps[-1].x_prev), ours(one, steps=4, guidance=3)
    assert a.dtype == torch.float32 and next(fresh.vae.parameters()).dtype == torch.bfloat16
    assert 0 < (a - b).abs().mean() < 0.02


def test_a_float16_vae_decodes_in_float32(one, fresh):
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    fresh.vae.half()
    assert (decode(fresh, z) - decode(one, z)).abs().max() < 2e-3  # rounded weights, exact sums
    assert next(fresh.vae.parameters()).dtype == torch.float32


def test_the_vae_of_another_system_is_warned_of(fresh):
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = decode(fresh, z)
    fresh.vae.config = dataclasses.replace(fresh.vae.config, scale=2 * fresh.vae.config.scale)
    with pytest.warns(UserWarning, match="scale.*wrong colours"):
        assert not torch.equal(decode(fresh, z), own)


def test_big_pictures_are_decoded_in_tiles(one, monkeypatch):
    calls = []
    monkeypatch.setattr(
        pipeline, "decode_tiled", lambda vae, z: calls.append(tuple(z.shape)) or vae.from_latent(z)
    )
    monkeypatch.setattr(pipeline, "TILED_FROM", 64 * 64)
    z = torch.randn(2, 4, 8, 9)
    decode(one, z[..., :8])
    assert not calls
    decode(one, z)
    decode(one, z, tiled=False)
    decode(one, z[..., :8], tiled=True)
    assert calls == [(1, 4, 8, 9)] * 2 + [(1, 4, 8, 8)] * 2


# ---------------------------------------------------------------- condition


def test_vector_is_pooled_text_and_embedded_numbers(two):
    facts, (sd, refiner) = read_tensors("embeddings.safetensors"), two
    sd.config.__dict__["number_dim"] = refiner.config.__dict__["number_dim"] = 256
    sd.config.unet.__dict__["vector"], refiner.config.unet.__dict__["vector"] = (
        24 + 6 * 256,
        24 + 5 * 256,
    )
    size = lambda i: tuple(int(n) for n in facts["size/in"][i])
    for system, tail in ((sd, facts["size/emb512"][1]), (refiner, facts["aesthetic/emb256"][1])):
        vector = condition(
            system, [PROMPT], original_size=size(0), crop=size(2), target_size=size(1), score=2.5
        ).vector[0]
        expected = torch.cat(
            [
                system.text.encode([PROMPT]).vector[0],
                facts["size/emb512"][0],
                facts["size/emb512"][2],
                tail,
            ]
        )
        assert (
            vector.shape == expected.shape and (vector - expected).abs().max() < 1e-4
        )  # float32 angles of 1024 radians


def test_empty_negative_is_zeros_for_the_base_only(two):
    sd, refiner = two
    numbers = {"original_size": (64, 64), "crop": (0, 0), "target_size": (64, 64)}
    cond = condition(sd, ["", "snow", "  "], **numbers, zero_empty=True)
    assert cond.context[[0, 2]].abs().max() == 0 and cond.vector[[0, 2], :24].abs().max() == 0
    assert cond.context[1].abs().min() > 0 and torch.equal(cond.vector[0, 24:], cond.vector[1, 24:])
    seen = []
    for system in two:
        system.unet.forward = lambda x, t, cond: seen.append(cond) or torch.zeros_like(x)
    draw(sd, PROMPT, steps=10, guidance=2, refiner=refiner, progress=False)
    assert seen[0].context[1].abs().max() == 0 and seen[-1].context[1].abs().max() > 0
    assert torch.equal(seen[-1].context[1], refiner.text.encode([""]).context[0])


@pytest.mark.parametrize("part, name", [("context", "context"), ("vector", "vector")])
def test_wrong_widths_fail_at_the_call(two, part, name):
    sd, _ = two
    cut = {
        "context": lambda c: Cond(c.context[..., :-2], c.vector),
        "vector": lambda c: Cond(c.context, c.vector[:, :-2]),
    }[part]
    whole = sd.text.encode
    sd.text.encode = lambda texts: cut(whole(texts))
    sd.unet.forward = lambda *_: pytest.fail("the UNet was asked")
    given, takes = {"context": (30, 32), "vector": (70, 72)}[part]
    with refuses(ShapeError, f"cond.{name}", str(given), str(takes)):
        text_to_image(sd, PROMPT)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "prompts, words",
    [
        (None, ("prompts", "None")),
        (b"a fox", ("prompts", "string")),
        ([], ("0 prompts",)),
        (["a", None], ("prompt 1", "None")),
        ([b"a"], ("prompt 0", "bytes")),
        (7, ("prompts", "7")),
        ({"a": 1}, ("prompts",)),
    ],
)
def test_refused_prompts(one, prompts, words):
    with refuses(OptionError, *words):
        text_to_image(one, prompts)


@pytest.mark.parametrize(
    "prompt", ["🦊 on a 🛶", "a\0fox", "", " ", "\ud800 lone", "x" * 10_000, "ﷺ" * 50]
)
def test_odd_prompts_draw(one, prompt):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert draw(one, prompt, steps=1, size=32, progress=False).shape == (1, 3, 32, 32)


def test_long_prompt_warns_and_quotes_what_is_left_out(one):
    with pytest.warns(UserWarning, match="300 tokens .* 'lighthouse sea sea"):
        text_to_image(one, "sea " * 75 + "lighthouse" + " sea" * 224, steps=1)


@pytest.mark.parametrize(
    "options, words",
    [
        *[
            (
                {"size": size},
                ("size", re.escape(repr(size) if isinstance(size, bool) else str(size))),
            )
            for size in (0, 511, 10**6, True, -8, 12)
        ],
        ({"size": "64"}, ("size", "64")),
        ({"size": (64, 64, 64)}, ("height, width",)),
        ({"size": (64, 60)}, ("60", "56", "64")),
        ({"size": 64.0}, ("size",)),
        *[({"steps": steps}, ("steps", str(steps))) for steps in (0, -1, 1001, 1.5, True, "10")],
        *[
            ({"guidance": scale}, ("guidance", str(scale)))
            for scale in (float("nan"), -1, float("inf"), True, "7")
        ],
        *[
            ({"handover": part}, ("handover", str(part)))
            for part in (-0.1, 1.1, float("nan"), None)
        ],
        *[({"rescale": part}, ("rescale", str(part))) for part in (-0.1, 1.1)],
        *[
            ({"interval": pair}, ("interval",))
            for pair in ((1,), (-1, 5), (5, 1000), (9, 5), 5, (0, float("nan")))
        ],
        *[
            ({"aesthetic": pair}, ("aesthetic",))
            for pair in (6.0, (6,), (6, -1), (11, 2), ("a", "b"))
        ],
        *[
            ({name: pair}, (name,))
            for name in ("original_size", "target_size", "crop")
            for pair in (64, (1, 2, 3), (1.5, 2), (-1, 2), (True, 2), (64, 10**6))
        ],
        ({"original_size": (0, 64)}, ("original_size = 0", "from 1 to 65536")),
        ({"target_size": (64, 0)}, ("target_size = 0", "from 1 to 65536")),
        *[
            ({"seeds": seeds}, ("seeds",))
            for seeds in (-1, 2**63, 1.5, True, "1", None, [1.5], [True], [-1])
        ],
        ({"negative": 7}, ("negative",)),
        ({"negative": b"x"}, ("negative",)),
        ({"negative": ["a", "b"]}, ("2 negative prompts", "1 prompts")),
        ({"sampler": "magic"}, ("magic", "dpmpp_2m")),
        ({"spacing": "magic"}, ("magic", "leading")),
    ],
)
def test_refused_at_the_call(one, options, words):
    with refuses(OptionError, *words):
        text_to_image(one, PROMPT, **options)


def without(sd, part):
    sd = copy.copy(sd)
    sd._modules = {**sd._modules, part: None}
    return sd


def test_refused_systems(one):
    from ddpm_edu.systems.system import build

    for system, words in (
        ("sd15", ("sd15", "load")),
        (None, ("None",)),
        (one.unet, ("load",)),
        (build(one.config, device="meta"), ("meta", "without weights")),
        *((without(one, part), (rf"\.{part} is None",)) for part in ("unet", "vae", "text")),
    ):
        with refuses(OptionError, "sd", *words):
            text_to_image(system, PROMPT)
        with refuses(OptionError, "refiner", *words):
            refine(system, PROMPT, torch.zeros(1, 4, 8, 8))
        with refuses(OptionError, "sd", *words):
            decode(system, torch.zeros(1, 4, 8, 8))


NO_LATENTS = [
    torch.zeros(1, 3, 8, 8),
    torch.zeros(4, 8, 8),
    torch.zeros(1, 4, 8, 8, device="meta"),
    torch.tensor(0.0),
    "z",
    None,
]


@pytest.mark.parametrize("z", NO_LATENTS, ids=lambda z: str(getattr(z, "shape", z)))
def test_refused_latents(one, two, z):
    with refuses(ShapeError, "z "):
        decode(one, z)
    for base in (z, [z]):
        with refuses(ShapeError, "base "):
            last(refine(two[1], PROMPT, base, steps=2, handover=0.5))


def test_a_base_of_another_size_or_batch_is_refused(two):
    small = text_to_image(two[0], PROMPT, size=32, steps=2, handover=0.5)
    for base, options in (
        (small, {}),
        (torch.zeros(1, 4, 4, 4), {"size": 64}),
        (torch.zeros(2, 4, 8, 8), {}),
    ):
        with refuses(ShapeError, "base "):
            last(refine(two[1], PROMPT, base, steps=2, handover=0.5, **options))
    z = torch.zeros(1, 4, 4, 4)  # its own size, unless one is given
    same = [last(refine(two[1], PROMPT, z, steps=2, handover=0.5, **k)) for k in ({}, {"size": 32})]
    assert torch.equal(*same)


def test_models_for_something_else_are_named(two):
    from ddpm_edu.networks.unet import UNet

    sd, refiner = two
    with refuses(OptionError, "tiny refiner", "refiner", "image_to_image"):
        text_to_image(refiner, PROMPT)
    for channels, kind in ((9, "inpainting"), (8, "pix2pix"), (5, "something else")):
        config = dataclasses.replace(sd.config.unet, in_channels=channels, out_channels=4)
        sd.unet, sd.config = UNet(config), dataclasses.replace(sd.config, unet=config)
        for call in (
            lambda: text_to_image(sd, PROMPT),
            lambda: image_to_image(sd, PROMPT, torch.zeros(1, 3, 64, 64), strength=1),
            lambda: refine(sd, PROMPT, torch.zeros(1, 4, 8, 8)),
        ):
            with refuses(OptionError, f"tiny sdxl is a model for .*{kind}"):
                call()


def test_guidance_of_one_or_less_is_none(one):
    """As in diffusers."""
    plain = last(text_to_image(one, PROMPT, steps=2, guidance=1))
    for scale in (0, 0.5):
        assert torch.equal(last(text_to_image(one, PROMPT, steps=2, guidance=scale)), plain)
    assert not torch.equal(last(text_to_image(one, PROMPT, steps=2, guidance=1.5)), plain)


def test_prompted_is_guidance(one):
    """A Denoiser like any other: it knows its text, whatever cond it is given."""
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0)
    cond, empty = (
        condition(one, [text] * 2, original_size=(64, 64), crop=(0, 0), target_size=(64, 64))
        for text in (PROMPT, BAD)
    )
    plain, away = (one.unet(x, t, c) for c in (cond, empty))
    model = prompted(one, [PROMPT] * 2, [BAD] * 2, 5.0)
    assert torch.allclose(model(x, t), away + 5 * (plain - away), atol=1e-5)
    assert torch.equal(model(x, t, Cond()), model(x, t))
    outside = prompted(one, [PROMPT] * 2, [BAD] * 2, 5.0, interval=(0, 400))
    assert torch.equal(outside(x, t), plain)


def test_a_denoiser_takes_the_place_of_the_unet(one):
    """It gets the text's condition and what is beside x_t, both halves of the guidance."""
    seen = []

    def instead(x_t, t, cond):
        seen.append(cond)
        return unet_of(one)(x_t, t, cond._replace(picture=None))

    beside = torch.randn(1, 5, 8, 8)
    x, t = torch.randn(1, 4, 8, 8), torch.full((1,), 500.0)
    model = prompted(one, PROMPT, BAD, 5.0, denoiser=instead, picture=beside)
    assert torch.equal(model(x, t), prompted(one, PROMPT, BAD, 5.0)(x, t))
    assert torch.equal(seen[0].picture, beside.repeat(2, 1, 1, 1))
    for steps in (
        lambda **more: text_to_image(one, PROMPT, steps=2, **more),
        lambda **more: image_to_image(
            one, PROMPT, torch.zeros(1, 3, 64, 64), strength=0.5, steps=4, **more
        ),
    ):
        del seen[:]
        assert torch.equal(last(steps(denoiser=instead)), last(steps())) and len(seen) == 2


@pytest.mark.parametrize(
    "prompt, drawn", [("🍎", "red apple"), ("❤", "red heart"), ("❤️", "red heart")]
)
def test_emoji_are_read_as_their_names(fresh, prompt, drawn):
    fresh.meta = {"words": ["red", "apple", "heart"]}
    with pytest.warns(UserWarning, match=f"is read '{drawn}'"):
        mine = last(text_to_image(fresh, prompt, steps=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(mine, last(text_to_image(fresh, drawn, steps=1)))
    for unknown in ("a qwertyuiop", "red ⌀ apple"):
        with pytest.warns(UserWarning, match="never saw"):
            text_to_image(fresh, unknown, steps=1)
    for endless in ("❤" * 9999, "x" * 9999, " ".join(f"y{k}" for k in range(9999))):
        with pytest.warns(UserWarning, match="(is read|never saw)") as caught:
            text_to_image(fresh, endless, steps=1)
        assert all(len(str(warning.message)) < 1000 for warning in caught)


def test_too_many_or_few_seeds(one):
    for seeds in ([1], [1, 2, 3], []):
        with refuses(OptionError, f"{len(seeds)} seeds", "2 prompts"):
            text_to_image(one, ["a", "b"], seeds=seeds)


def test_a_refiner_of_other_latents_is_refused(one, two):
    two[1].config.vae.__dict__["scale"] = 0.13025
    with refuses(OptionError, "tiny refiner", "latents differ", "scale 0.13025", "scale 0.18215"):
        draw(two[0], PROMPT, refiner=two[1])


def test_sdxls_base_and_the_mini_refiner_do_not_fit():
    from ddpm_edu.systems.system import SDXL, SDXL_MINI, SDXL_MINI_REFINER

    for base, config in (
        (SDXL, SDXL_MINI_REFINER),
        # a VAE of the same plan but for the pixels a latent pixel
        (SDXL_MINI, dataclasses.replace(SDXL_MINI_REFINER, vae=SDXL.vae)),
    ):
        with refuses(OptionError, "SDXL mini refiner", base.name, "4 pixels", "8 pixels"):
            arguments.same_latents(SimpleNamespace(config=base), SimpleNamespace(config=config))


def test_a_target_of_another_aspect_is_warned_of_and_drawn(two):
    """A crop may lie anywhere, it is a number; the refiner learned no target."""
    base, refiner = two
    options = dict(steps=2, size=(64, 96), progress=False)
    with pytest.warns(UserWarning, match=r"target_size = \(96, 64\).*\(64, 96\)"):
        odd = draw(base, PROMPT, target_size=(96, 64), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = draw(base, PROMPT, target_size=(64, 97), **options)
        draw(base, PROMPT, crop=(0, 2**16), original_size=(1, 2**16), **options)
        picture = torch.zeros(1, 3, 64, 96) - 1
        image_to_image(refiner, PROMPT, picture, strength=0.5, steps=2, target_size=(96, 64))
    assert odd.shape == own.shape and not torch.allclose(odd, own, atol=1e-4)


# ---------------------------------------------------------------- runs that go wrong


def broken_at(sd, call, value):
    """The UNet works, but its answer number `call` holds `value` (an exception is raised)."""
    calls, works = [], sd.unet.forward

    def forward(x, t, cond):
        calls.append(t)
        out = works(x, t, cond)
        if len(calls) == call:
            if isinstance(value, Exception):
                raise value
            out[0, 0, 0, 0] = value
        return out

    sd.unet.forward = forward
    return calls


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stops_at_its_step(fresh, value):
    calls, steps = broken_at(fresh, 3, value), []
    with refuses(SamplingError, "step 3 of 5", "t = 401", "NaN"):
        for step in text_to_image(fresh, PROMPT, steps=5, sampler="ddim"):
            steps.append(step.t)
    assert len(calls) == 3 and steps == [801, 601]


def test_the_refiner_adds_other_noise_than_the_base_began_with(two):
    two[1].unet.forward = lambda x, t, cond: torch.zeros_like(x)
    options = {"steps": 10, "sampler": "euler_ancestral", "guidance": 1, "seeds": 3}
    step = next(refine(two[1], PROMPT, torch.zeros(1, 4, 8, 8), handover=0.5, **options))
    pair = torch.stack([step.x_prev.flatten(), noise((4, 8, 8), [3]).flatten()])
    assert step.x_prev.std() > 0.1 and torch.corrcoef(pair)[0, 1].abs() < 0.3


def test_nan_in_the_refiner_stops_there_too(two):
    sd, refiner = two
    broken_at(refiner, 2, float("nan"))
    with refuses(SamplingError, "step 2 of 2", r"t = 1\b"):
        draw(sd, PROMPT, steps=10, sampler="euler", refiner=refiner, progress=False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
        MemoryError("cannot allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("MPS backend out of memory (max allowed: 9 GiB). Tried to allocate 1 GiB"),
    ],
)
def test_out_of_memory_names_ways_out_and_leaves_the_system_usable(fresh, error):
    expected = ours(fresh, steps=3)
    works = fresh.unet.forward
    broken_at(fresh, 2, error)
    with refuses(
        ResourceError, "allocate", "smaller size", "fewer pictures", "bfloat16", "tiled=True"
    ):
        last(text_to_image(fresh, PROMPT, steps=3))
    fresh.unet.forward = works
    assert torch.equal(ours(fresh, steps=3), expected)


def test_out_of_memory_holds_on_to_nothing(fresh):
    """A notebook keeps the last error; what the failed step held must be free all the same."""
    import gc
    import weakref

    held = []

    def forward(x, t, cond):
        big = torch.zeros(1000)
        held.append(weakref.ref(big))
        raise torch.OutOfMemoryError("out of memory")

    fresh.unet.forward = forward
    try:
        last(text_to_image(fresh, PROMPT, steps=3))
    except ResourceError as error:
        kept = error
    gc.collect()
    assert kept.__context__ is None and held[0]() is None


def test_other_errors_are_left_alone(fresh):
    broken_at(fresh, 1, RuntimeError("an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        last(text_to_image(fresh, PROMPT, steps=3))
    assert not isinstance(caught.value, DdpmEduError)


def test_no_picture_of_one_colour_or_nan_is_returned(fresh):
    z = torch.zeros(2, 4, 8, 8)
    right = fresh.vae.from_latent
    for picture, word in (
        (lambda z: torch.full_like(right(z), -1e5), "one colour"),
        (lambda z: right(z) * float("nan"), "NaN"),
    ):
        fresh.vae.from_latent = picture
        with refuses(SamplingError, "picture 0", word, "float32"):
            decode(fresh, z)


# ---------------------------------------------------------------- a GPU short of memory, acted out


class Actor(torch.nn.Module):
    """A system that claims to be on a GPU."""

    def __init__(self):
        super().__init__()
        self.unet, self.text, self.config, self.moved = (
            torch.nn.Linear(3, 3),
            torch.nn.Linear(2, 2),
            None,
            [],
        )
        self.unet.parameters = lambda: iter(
            [SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)]
        )
        self.text.to = self.moved.append
        self.vae = SimpleNamespace(factor=8)


def test_text_encoders_make_room(monkeypatch):
    sd = Actor()
    weights, gib = 4 * (3 * 3 + 3 + 2 * 2 + 2), 2**30
    x = lambda pictures, width: torch.empty(pictures, 4, 128, width // 8, device="meta")
    asked = []
    monkeypatch.setattr(guard, "memory_needed", lambda *a: asked.append(a) or 10 * gib + weights)
    monkeypatch.setattr(guard, "free_memory", lambda device: free(sd.moved))
    free = lambda moved: 300 * gib
    guard.make_room(sd, x(16, 1024))
    assert not asked  # plenty
    free = lambda moved: 11 * gib
    guard.make_room(sd, x(2, 1032))
    assert not sd.moved and asked == [(None, torch.bfloat16, (1024, 1032), 2)]
    free = lambda moved: (12 if moved else 8) * gib
    guard.make_room(sd, x(2, 1032))
    assert sd.moved == ["cpu"]
    free = lambda moved: 8 * gib
    with pytest.warns(UserWarning, match="10.0 GiB .* 8.0 GiB .* smaller size"):
        guard.make_room(sd, x(2, 1032))


def test_a_cpu_short_of_memory_is_warned_of(one, monkeypatch):
    monkeypatch.setattr(guard, "free_memory", lambda device: 1000)
    with pytest.warns(UserWarning, match="will be needed"):
        last(text_to_image(one, PROMPT, steps=1))
    monkeypatch.undo()
    assert guard.free_memory(torch.device("cpu")) > 2**20


def test_the_estimate_is_asked_as_it_answers(one):
    """The real call, without a GPU: its signature, and more for more pictures."""
    from ddpm_edu.systems.memory import memory_needed

    few, many = (
        memory_needed(one.config, torch.bfloat16, (64, 72), pictures, True) for pictures in (1, 8)
    )
    assert sum(2 * p.numel() for p in one.parameters()) < few < many
