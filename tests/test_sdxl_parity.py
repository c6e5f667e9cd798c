"""SDXL in miniature written in the names of the originals: diffusers reads it and draws the same.

The base and the refiner in both layouts, with pure noise at the last time, v, trailing steps,
guidance, sizes, crops, hand-over; then the way back, by `load`. diffusers' solvers in sigma stop
short of infinity, at alpha_bar = 2^-24, and a folder tells ours to do so too; DDIM has a true zero.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from folder_writer import save_folder
from helpers import refuses
from original_writer import save_original

from ddpm_edu import last, noise
from ddpm_edu.errors import CheckpointError
from ddpm_edu.files.load import load, shipped
from ddpm_edu.systems.pipeline import decode, draw, image_to_image, refine
from ddpm_edu.systems.system import SDXL_MINI, SDXL_MINI_REFINER

diffusers = pytest.importorskip("diffusers")
from tiny_pipelines import from_picture, scheduler  # noqa: E402
from tiny_sdxl import random_pair  # noqa: E402

TOLERANCE, STEPS, SIZE = 1e-4, 8, (24, 40)
PROMPT, BAD = "a red seven on a blue ground", "a white two on a black ground"
PIPELINES = {
    "base": diffusers.StableDiffusionXLPipeline,
    "refiner": diffusers.StableDiffusionXLImg2ImgPipeline,
}
NUMBERS = {"original_size": (90, 34), "crop": (3, 8), "target_size": (48, 80)}
THEIR_NUMBERS = {
    "original_size": (90, 34),
    "crops_coords_top_left": (3, 8),
    "negative_crops_coords_top_left": (3, 8),
    "target_size": (48, 80),
}


def shipped_pair():
    return {"base": load("sdxl-mini"), "refiner": load("sdxl-mini-refiner")}


PAIRS = {"random": random_pair} | ({"shipped": shipped_pair} if "sdxl-mini" in shipped() else {})


@pytest.fixture(scope="module", params=PAIRS)
def systems(request):
    return PAIRS[request.param]()


@pytest.fixture(scope="module")
def files(systems, tmp_path_factory):
    """Both systems in both layouts."""
    root = tmp_path_factory.mktemp("mini")
    for name, sd in systems.items():
        save_folder(sd, root / name)
        save_original(sd, root / f"{name}.safetensors")
    return root


@pytest.fixture(scope="module")
def pairs(systems, files):
    """(layout, "base" or "refiner") -> diffusers' pipeline and what our `load` makes of the file."""
    made = {}
    for name, sd in systems.items():
        kind, folder, file = PIPELINES[name], files / name, files / f"{name}.safetensors"
        made["folder", name] = kind.from_pretrained(folder, add_watermarker=False), load(folder)
        local = dict(config=str(folder), local_files_only=True, add_watermarker=False)
        with pytest.warns(UserWarning, match="ztsnr"):
            ours = load(file, config=sd.config)
        ours.text.tokenizer = sd.tokenizer  # a single file holds none
        made["single file", name] = kind.from_single_file(file, **local), ours
    for pipe, _ in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_picture(ours, theirs):
    assert ours.shape == theirs.shape == (1, 3, *SIZE) and theirs.std() > 0.02
    assert (ours - (2 * theirs - 1)).abs().max() < TOLERANCE


# ---------------------------------------------------------------- the way there


LAYOUTS = [(layout, name) for layout in ("folder", "single file") for name in PIPELINES]
SAMPLERS = [("folder", "dpmpp_2m"), ("folder", "euler"), ("single file", "ddim")]


def theirs(pipe, sampler, **options):
    """What the pipeline returns, with a scheduler that is our sampler, down from pure noise."""
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    own, pipe.scheduler = pipe.scheduler, scheduler(sampler, prediction_type="v_prediction", **zero)
    same = {"prompt": PROMPT, "negative_prompt": BAD, "guidance_scale": 3.0}
    picture = pipe(**same, num_inference_steps=STEPS, **THEIR_NUMBERS, **options).images
    pipe.scheduler = own
    return picture


def options(sampler):
    same = {"negative": BAD, "guidance": 3.0, "steps": STEPS, "spacing": "trailing"}
    return {**same, **NUMBERS, "sampler": sampler}


def from_noise(pipe, sampler, **more):
    height, width = SIZE
    latents = noise((4, height // 4, width // 4), [1])
    return theirs(pipe, sampler, height=height, width=width, latents=latents, **more)


@pytest.mark.parametrize("layout, sampler", SAMPLERS)
def test_the_base_draws_what_diffusers_draws(pairs, layout, sampler):
    pipe, sd = pairs[layout, "base"]
    ours = draw(sd, PROMPT, size=SIZE, seeds=1, progress=False, **options(sampler))
    same_picture(ours, from_noise(pipe, sampler, output_type="pt"))


@pytest.mark.parametrize("layout, sampler", SAMPLERS)
def test_the_refiner_goes_on_as_in_diffusers(pairs, layout, sampler):
    (base_pipe, base), (pipe, refiner) = pairs[layout, "base"], pairs[layout, "refiner"]
    more = dict(refiner=refiner, handover=0.7, **options(sampler))
    ours = draw(base, PROMPT, size=SIZE, seeds=1, progress=False, **more)
    z = from_noise(base_pipe, sampler, denoising_end=0.7, output_type="latent")
    same_picture(ours, theirs(pipe, sampler, image=z, denoising_start=0.7, output_type="pt"))


@pytest.mark.parametrize("layout, sampler", SAMPLERS)
def test_the_refiner_alone_redraws_a_picture_as_in_diffusers(pairs, layout, sampler):
    """From the same draws of one generator: the latent out of q(z | x), then the noise."""
    pipe, refiner = pairs[layout, "refiner"]
    picture = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    run = image_to_image(
        refiner, PROMPT, 2 * picture - 1, strength=0.5, seeds=5, **options(sampler)
    )
    generator = torch.Generator().manual_seed(5)
    more = dict(image=picture, strength=0.5, generator=generator, output_type="pt")
    same_picture(decode(refiner, last(run)), theirs(pipe, sampler, **more))


@pytest.mark.parametrize("layout, sampler", SAMPLERS)
def test_a_redrawn_picture_is_refined_as_in_diffusers(pairs, layout, sampler):
    """The base redraws and stops at 0.6, the refiner goes on."""
    (base_pipe, base), (pipe, refiner) = pairs[layout, "base"], pairs[layout, "refiner"]
    picture = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    same = dict(handover=0.6, **options(sampler))
    run = image_to_image(base, PROMPT, 2 * picture - 1, strength=0.75, seeds=5, **same)
    ours = decode(refiner, last(refine(refiner, PROMPT, run, size=SIZE, **same)))
    generator = torch.Generator().manual_seed(5)
    more = dict(image=picture, strength=0.75, generator=generator, denoising_end=0.6)
    z = theirs(from_picture(base_pipe), sampler, output_type="latent", **more)
    same_picture(ours, theirs(pipe, sampler, image=z, denoising_start=0.6, output_type="pt"))


def test_as_the_folder_says_it_is_sampled(pairs):
    """No scheduler of ours: the class and the entries that the folder names."""
    pipe, sd = pairs["folder", "base"]
    latents = noise((4, 6, 10), [2])
    more = dict(num_inference_steps=STEPS, latents=latents, output_type="pt")
    picture = pipe(PROMPT, height=24, width=40, **more).images
    same_picture(draw(sd, PROMPT, size=SIZE, seeds=2, steps=STEPS, progress=False), picture)


def test_the_true_zero_comes_near(systems, pairs):
    """Ours with alpha_bar_T = 0 and diffusers' with 2^-24, where they differ."""
    ours = draw(systems["base"], PROMPT, size=SIZE, seeds=1, progress=False, **options("euler"))
    picture = 2 * from_noise(pairs["folder", "base"][0], "euler", output_type="pt") - 1
    assert (ours - picture).abs().max() < 5e-3


def test_both_tokenizers_read_as_ours(systems, pairs):
    """One tokenizer, two fillings: the end token again, and "!", whose id is 0."""
    texts = [PROMPT, "", "a red 7 ?", "Mauve? cafe\u0301", "a red seven " * 3]
    for name, sd in systems.items():
        pipe = pairs["folder", name][0]
        for suffix, pad in (("", "eot"), ("_2", "!")):
            tokenizer = getattr(pipe, f"tokenizer{suffix}")
            if tokenizer is None:
                assert (name, suffix) == ("refiner", "")
                continue
            more = dict(padding="max_length", max_length=16, truncation=True, return_tensors="pt")
            assert torch.equal(sd.tokenizer(texts, pad), tokenizer(texts, **more).input_ids)
            assert tokenizer.model_max_length == 16
    assert not torch.equal(sd.tokenizer(texts, "eot"), sd.tokenizer(texts, "!"))


# ---------------------------------------------------------------- and back


@pytest.mark.parametrize("layout, name", LAYOUTS)
def test_load_reads_what_was_written(systems, pairs, layout, name):
    sd, ours = systems[name], pairs[layout, name][1]
    assert same_weights(sd, ours) and ours.predict == "v"
    again = ours.config
    if layout == "folder":  # does not say how many steps, nor the guidance
        kept = ("name", "steps", "guidance", "offset", "end")
        again = replace(again, **{field: getattr(sd.config, field) for field in kept})
        assert ours.config.end == -1 and ours.tokenizer(["a red !"]).equal(
            sd.tokenizer(["a red !"])
        )
    assert again == sd.config
    assert torch.allclose(ours.schedule.alpha_bar, sd.schedule.alpha_bar, rtol=0, atol=1e-7)
    end = 2**-24 if layout == "folder" else 0
    assert ours.schedule.alpha_bar[-1].item() == pytest.approx(end, rel=1e-6)


@pytest.mark.parametrize("name, other", [("base", SDXL_MINI_REFINER), ("refiner", SDXL_MINI)])
def test_a_single_file_needs_its_own_plan(files, name, other):
    file = files / f"{name}.safetensors"
    with refuses(CheckpointError, "context (96|64) wide", "config="):
        load(file)
    cause = "another shape" if name == "base" else "no weights of text_encoder_2"
    with refuses(CheckpointError, cause), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(file, config=other)
