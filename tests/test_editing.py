"""Pictures changed: what is read as a picture or a mask, and inpainting as diffusers does it."""

import math
import os

import numpy as np
import pytest
import torch
from folder_writer import to_folder
from helpers import read_json, refuses
from PIL import Image

from ddpm_edu import DataError, ShapeError
from ddpm_edu.datasets.hints import edges
from ddpm_edu.datasets.masks import SHARES, masks
from ddpm_edu.files.load import load
from ddpm_edu.files.names import to_ours
from ddpm_edu.networks.unet import UNet
from ddpm_edu.systems.pictures import grown, mask_of, picture_of
from ddpm_edu.systems.pipeline import decode, edit, inpaint
from ddpm_edu.systems.system import SD15_INPAINT, SDXL_INPAINT

PROMPT, BAD = "a lighthouse at dusk", "blurry, a cat"
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
X = torch.from_numpy(RGB).permute(2, 0, 1)[None] / 127.5 - 1


# ---------------------------------------------------------------- pictures


def pil(mode, array=RGB):
    return Image.fromarray(array).convert(mode)


def sixteen_bits():
    return Image.fromarray((RGB[..., 0].astype(np.uint16) * 257))


def with_alpha():
    return Image.fromarray(np.dstack([RGB, np.full((6, 9), 255, np.uint8)]))


GREY = X[:, :1].expand(-1, 3, -1, -1)
PICTURES = {  # what is passed -> what it is, within a level (CMYK, palette: some levels)
    "PIL": (pil("RGB"), X, 1e-6),
    "grey": (Image.fromarray(RGB[..., 0]), GREY, 1e-6),
    "CMYK": (pil("CMYK"), X, 0.01),
    "palette": (Image.fromarray(RGB // 128 * 255).quantize(8), None, 0.02),
    "HSV": (pil("HSV"), X, 0.06),
    "16 bits": (sixteen_bits(), GREY, 1e-6),
    "one bit": (Image.fromarray(RGB[..., 0] > 127), None, 1e-6),
    "opaque alpha": (with_alpha(), X, 1e-6),
    "bytes (H, W, 3)": (RGB, X, 1e-6),
    "bytes (H, W)": (RGB[..., 0], GREY, 1e-6),
    "uint16 (H, W)": (RGB[..., 0].astype(np.uint16) * 257, GREY, 1e-6),
    "booleans": (RGB[..., 0] > 127, None, 1e-6),
    "floats (H, W, 3)": (RGB / 127.5 - 1, X, 1e-6),
    "flipped": (RGB[::-1], X.flip(2), 1e-6),
    "of other byte order": (RGB[..., 0].astype(">u2") * 257, GREY, 1e-6),
    "tensor (3, H, W)": (X[0], X, 0),
    "tensor (1, 3, H, W)": (X, X, 0),
    "tensor (1, H, W)": (X[0, :1], GREY, 0),
    "tensor of bytes": (torch.from_numpy(RGB).permute(2, 0, 1), X, 1e-6),
    "two pictures": (torch.cat([X, -X]), torch.cat([X, -X]), 0),
    "one pixel": (RGB[:1, :1], X[:, :, :1, :1], 1e-6),
}
HARD = {  # what is black and white only
    "palette": torch.from_numpy(RGB // 128 * 255).permute(2, 0, 1)[None] / 127.5 - 1,
    "one bit": torch.from_numpy(RGB[None, None, ..., 0] > 127) * 2.0 - 1,
    "booleans": torch.from_numpy(RGB[None, None, ..., 0] > 127) * 2.0 - 1,
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_any_kind(name):
    given, wanted, tolerance = PICTURES[name]
    wanted = HARD[name] if wanted is None else wanted
    x, alpha = picture_of(given)
    assert x.dtype == torch.float32 and x.shape[1] == 3 and alpha is None
    assert x.shape[2:] == wanted.shape[2:] and (x - wanted).abs().max() <= tolerance


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "bmp"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    pil("RGB").save(path, **({"lossless": True} if suffix == "webp" else {}))
    for place in (path, str(path)):
        assert torch.allclose(picture_of(place)[0], X, atol=1e-6)


def test_turned_by_exif(tmp_path):
    """A phone's picture lies on its side, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    pil("RGB").save(tmp_path / "x.png", exif=exif)
    wanted = torch.rot90(X, -1, (2, 3))
    assert torch.allclose(picture_of(tmp_path / "x.png")[0], wanted, atol=1e-6)
    image = Image.open(tmp_path / "x.png")
    assert torch.allclose(picture_of(image)[0], wanted, atol=1e-6)
    assert image.size == (9, 6)  # the caller's own is not turned


def test_the_first_frame_of_several(tmp_path):
    frames = [Image.fromarray(np.full((4, 4, 3), v, np.uint8)) for v in (200, 10)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (picture_of(tmp_path / "x.gif")[0] - (200 / 127.5 - 1)).abs().max() < 0.03


def test_alpha_is_returned_and_lies_on_white():
    rgba = np.dstack([RGB, np.linspace(0, 255, 54).round().astype(np.uint8).reshape(6, 9)])
    share = torch.from_numpy(rgba[None, None, ..., 3] / 255).float()
    for given in (Image.fromarray(rgba), rgba, torch.cat([X, share], 1)):
        x, alpha = picture_of(given)
        assert torch.allclose(alpha, share, atol=1e-6)
        assert torch.allclose(x, share * X + 1 - share, atol=1e-5)


def pipe(path):
    os.mkfifo(path)
    return path


def bad_file(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "error, make, words",
    [
        (DataError, lambda folder: folder / "nowhere.png", "picture .* cannot be read"),
        (DataError, lambda folder: folder, "cannot be read"),
        (DataError, lambda folder: bad_file(folder, b"<html>"), "x.png cannot be read"),
        (DataError, lambda folder: pipe(folder / "x.png"), "x.png cannot be read .* pipe"),
        (DataError, lambda _: Image.new("RGB", (0, 5)), "0 x 5 pixels: there are none"),
        (DataError, lambda _: Image.new("1", (10_000, 10_000)), "10000 x 10000 .* 8192"),
        (DataError, lambda _: np.zeros((1, 9000), np.uint8), "9000 x 1 pixels"),
        (DataError, lambda _: torch.full((3, 4, 4), math.nan), "picture"),
        (DataError, lambda _: torch.full((3, 4, 4), 200.0), "from 200 to 200"),
        (DataError, lambda _: np.zeros((4, 4, 3), np.int64) - 1, "int64"),
        (DataError, lambda _: np.array([["a"]]), "pass numbers"),
        (DataError, lambda _: None, "NoneType"),
        (DataError, lambda _: torch.full((4, 2, 2), -0.5), "alpha of picture"),
        (ShapeError, lambda _: torch.zeros(2, 5, 4, 4), r"\(2, 5, 4, 4\)"),
        (ShapeError, lambda _: torch.zeros(3, 0, 4), r"\(3, 0, 4\)"),
        (ShapeError, lambda _: torch.zeros(3), r"\(3,\)"),
        (ShapeError, lambda _: torch.zeros(1, 3, 4, 4, device="meta"), "meta"),
    ],
)
def test_no_pictures(tmp_path, error, make, words):
    with refuses(error, words):
        picture_of(make(tmp_path))


def test_a_hundred_megapixels_in_a_file_are_refused_before_they_fill_the_memory(tmp_path, recwarn):
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "x.png")
    with refuses(DataError, "picture is 10000 x 10000 pixels", "8192"):
        picture_of(tmp_path / "x.png")
    assert not recwarn.list


def test_bright_pictures_are_no_mistake_but_bright_floats_may_be(tmp_path, recwarn):
    bright = Image.fromarray(RGB // 4 + 190)
    bright.save(tmp_path / "x.png")
    for given in (bright, tmp_path / "x.png", np.asarray(bright)):
        x, _ = picture_of(given)
        edges(x)
    assert x.min() > 0 and not recwarn.list
    with pytest.warns(UserWarning, match="no number below 0"):
        picture_of(x)


def test_a_veil_is_no_mask():
    """What is nowhere transparent by half lies on white, and all of it is edited."""
    sd, how = load("painted"), dict(steps=2, seeds=0, progress=False)
    rgba = np.full((8, 8, 4), 200, np.uint8)
    veiled = edit(sd, "a red three", rgba, **how)
    assert torch.equal(veiled, edit(sd, "a red three", picture_of(rgba)[0], **how))


# ---------------------------------------------------------------- masks

HOLE = np.zeros((6, 9), bool)
HOLE[1:4, 2:5] = True
M = torch.from_numpy(HOLE)[None, None].float()


@pytest.mark.parametrize(
    "given",
    [
        HOLE,
        HOLE.astype(np.uint8) * 255,
        HOLE.astype(np.uint8),
        HOLE.astype(np.float64),
        HOLE[..., None].repeat(3, 2).astype(np.float32),
        torch.from_numpy(HOLE),
        M,
        M[0],
        Image.fromarray(HOLE),
        Image.fromarray(HOLE.astype(np.uint8) * 255),
        Image.fromarray(
            np.dstack([np.full((6, 9, 3), 255, np.uint8), HOLE.astype(np.uint8) * 255])
        ),
    ],
    ids=lambda x: f"{type(x).__name__} {getattr(x, 'dtype', getattr(x, 'mode', ''))}",
)
def test_masks_of_any_kind(given):
    assert torch.equal(mask_of(given, (6, 9)), M)


def test_soft_masks_stay_soft(tmp_path):
    soft = np.linspace(0, 1, 54).reshape(6, 9)
    assert torch.allclose(mask_of(soft, (6, 9)).double(), torch.from_numpy(soft)[None, None])
    Image.fromarray((soft * 255).round().astype(np.uint8)).save(tmp_path / "m.png")
    assert (mask_of(tmp_path / "m.png", (6, 9)) - torch.from_numpy(soft)).abs().max() < 0.003


@pytest.mark.parametrize(
    "error, given, words",
    [
        (ShapeError, HOLE.T, "mask is 6 x 9 pixels and the picture 9 x 6"),
        (ShapeError, torch.zeros(6, 9, 2), "mask has shape"),
        (DataError, np.full((6, 9), math.nan), "mask runs from nan"),
        (DataError, -M, "from -1 to"),
        (DataError, 2 * M, "to 2"),
        (DataError, "nowhere.png", "mask .* cannot be read"),
        (DataError, 1.0, "mask is a float"),
    ],
)
def test_no_masks(error, given, words):
    with refuses(error, words):
        mask_of(given, (6, 9))


def test_masks_for_other_prompts():
    with refuses(ShapeError, "3 masks for 2 prompts"):
        edit(load("painted"), ["a", "b"], X, mask=M.expand(3, -1, -1, -1))


def test_grown_masks_fill_the_squares_they_touch():
    mask = torch.zeros(1, 1, 10, 7)
    mask[0, 0, 4, 3], mask[0, 0, 9, 6], mask[0, 0, 0, 0] = 1, 0.5, 0.4
    wanted = torch.zeros(1, 1, 10, 7)
    wanted[0, 0, 4:8, :4], wanted[0, 0, 8:, 4:] = 1, 1
    assert torch.equal(grown(mask, 4), wanted)


def test_masks_for_training():
    """Of 0 and 1, each kind as often as it should be, the same from the same seed."""
    mask = masks(2000, 32, seed=1)
    assert mask.shape == (2000, 1, 32, 32) and set(mask.unique().tolist()) == {0, 1}
    share = mask.mean((1, 2, 3))
    assert (share > 0.01).all()
    assert abs((share == 1).float().mean().item() - SHARES["all"]) < 0.03
    full = (mask.amin(3).sum(2) > 0) ^ (mask.amin(2).sum(2) > 0)  # rows, or columns; some boxes too
    assert SHARES["half"] - 0.03 < full.float().mean().item() < SHARES["half"] + 0.1
    assert torch.equal(mask, masks(2000, 32, seed=1)) and not mask.equal(masks(2000, 32, seed=2))


# ---------------------------------------------------------------- the official inpainting UNets


@pytest.mark.parametrize("name, config", [("sd15", SD15_INPAINT), ("sdxl_base", SDXL_INPAINT)])
@pytest.mark.parametrize(
    "layout, first", [("original", "input_blocks.0.0.weight"), ("folder", "conv_in.weight")]
)
def test_inpainting_unets_one_to_one(name, config, layout, first):
    """Names and shapes of the base's, as listed, but that the first layer takes 9 channels."""
    listed = {k: tuple(v) for k, v in read_json("layout_keys.json.gz")[layout][name].items()}
    prefix = "model.diffusion_model." if layout == "original" else ""
    listed = {k.removeprefix(prefix): v for k, v in listed.items() if k.startswith(prefix)}
    assert listed[first] == (320, 4, 3, 3)
    listed[first] = (320, 9, 3, 3)
    with torch.device("meta"):
        unet, given = UNet(config.unet), {k: torch.empty(v) for k, v in listed.items()}
    own = {k: tuple(v.shape) for k, v in unet.state_dict().items()}
    assert {k: tuple(v.shape) for k, v in to_ours("unet", given).items()} == own
    if layout == "folder":
        back = to_folder("unet", unet.state_dict(), conv=name == "sd15")
        assert {k: tuple(v.shape) for k, v in back.items()} == listed


# ---------------------------------------------------------------- inpainting as diffusers


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(name, channels) -> (diffusers' inpainting pipeline, ours from the folder it saved)."""
    pytest.importorskip("diffusers")
    from tiny_pipelines import build, inpainting

    pairs = {}

    def pair(name, channels=4):
        if (name, channels) not in pairs:
            folder = tmp_path_factory.mktemp(f"{name}{channels}")
            theirs = build(name, channels=channels)
            theirs.save_pretrained(folder)
            pairs[name, channels] = inpainting(theirs), load(folder)
        return pairs[name, channels]

    return pair


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize(
    "name, sampler, strength",
    [
        ("sd", "ddim", 0.7),
        ("sd", "pndm", 1.0),
        ("sd", "heun", 0.5),
        ("sd", "dpmpp_2m", 1.0),
        ("sdxl", "euler", 1.0),
        ("sdxl", "dpmpp_2m", 0.6),
    ],
)
def test_inpaint_as_diffusers(saved, channels, name, sampler, strength):
    """Any mask, a negative prompt, the same draws of one generator in the same order."""
    from tiny_pipelines import scheduler

    pipe, sd = saved(name, channels)
    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(1, 3, 64, 48, generator=generator)
    mask = torch.zeros(1, 1, 64, 48)
    mask[:, :, 13:50, 10:37] = 1
    pipe.scheduler = scheduler(sampler)
    theirs = pipe(
        prompt=PROMPT,
        negative_prompt=BAD,
        image=picture,
        mask_image=mask,
        height=64,
        width=48,
        strength=strength,
        num_inference_steps=10,
        guidance_scale=4,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    options = {"steps": 10, "guidance": 4, "negative": BAD, "sampler": sampler, "seeds": 5}
    run = list(inpaint(sd, PROMPT, 2 * picture - 1, mask, strength=strength, **options))
    assert len(run) == round(10 * strength)
    assert (decode(sd, run[-1].x_prev) - (2 * theirs - 1)).abs().max() < 1e-4
