"""ControlNets from files, and the pictures that they steer: diffusers' names, shapes and pixels."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from helpers import refuses
from original_writer import control_name

from ddpm_edu import CheckpointError, OptionError, ShapeError, last, noise
from ddpm_edu.datasets.hints import edges
from ddpm_edu.datasets.painted import caption, painted_digits
from ddpm_edu.files import hub
from ddpm_edu.files import load as load_module
from ddpm_edu.files.folder import Folder, control_config
from ddpm_edu.files.load import check_state, load, save
from ddpm_edu.files.names import to_ours
from ddpm_edu.files.tensors import save_tensors
from ddpm_edu.metrics.obedience import edge_f1, fidelity
from ddpm_edu.networks.controlnet import (
    SD15_CONTROL,
    SDXL_CONTROL,
    ControlNet,
    ControlNetConfig,
    control_net,
)
from ddpm_edu.systems.control import controlled
from ddpm_edu.systems.pipeline import (
    decode,
    draw,
    image_to_image,
    inpaint,
    plan_walk,
    text_to_image,
)

TOLERANCE = 1e-4
PROMPT, BAD = "a lighthouse at dusk", "blurry, a cat"
SIZE = (72, 56)

# ---------------------------------------------------------------- names and shapes of the big ones


def official(name):
    """diffusers' ControlNetModel with the official config, on the meta device."""
    diffusers = pytest.importorskip("diffusers")
    xl = dict(
        cross_attention_dim=2048,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    plain = dict(down_block_types=("DownBlock2D",) * 3, mid_block_type="UNetMidBlock2D")
    kinds = {"sd15": {"cross_attention_dim": 768}, "sdxl": xl, "sdxl-small": xl | plain}
    with torch.device("meta"):
        return diffusers.ControlNetModel(**kinds[name])


BIG = {"sd15": SD15_CONTROL, "sdxl": SDXL_CONTROL}


def on_meta(config):
    with torch.device("meta"):
        return ControlNet(config)


def shapes(state):
    return {name: tuple(w.shape) for name, w in state.items()}


@pytest.mark.parametrize("name", BIG)
def test_folder_names_fit_one_to_one(name):
    theirs, net = official(name).state_dict(), on_meta(BIG[name])
    ours = to_ours("control", theirs)
    assert len(ours) == len(theirs) and shapes(ours) == shapes(net.state_dict())
    assert check_state(net, theirs, "it").keys() == net.state_dict().keys()


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("name", BIG)
def test_original_names_fit_one_to_one(name, prefix):
    """diffusers' own conversion of the original names finds all that its ControlNet needs."""
    theirs, net = official(name), on_meta(BIG[name])
    convolution = lambda k, w: name == "sd15" and ".proj_" in k and w.ndim == 2
    original = {
        control_name(k).replace("control_model.", prefix): w[:, :, None, None]
        if convolution(k, w)
        else w
        for k, w in net.state_dict().items()
    }
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    converted = convert_controlnet_checkpoint(original, {"layers_per_block": 2})
    wanted = shapes(theirs.state_dict())
    if name == "sdxl":  # its converter is older: no vector, three blocks a level
        start = ("add_embedding.", "down_blocks.2.downsamplers")
        wanted = {k: v for k, v in wanted.items() if not k.startswith(start)}
    assert shapes(converted) == wanted
    ours = to_ours("control", original)
    assert len(ours) == len(original) and shapes(ours) == shapes(net.state_dict())


@pytest.mark.parametrize("name", BIG)
def test_the_config_is_read(name):
    """As diffusers writes it."""
    config = control_config(json.loads(official(name).to_json_string()))
    alone = lambda c: replace(c, heads=(1,) * len(c.mult))  # a level without attention needs none
    assert alone(config) == alone(BIG[name])


def test_a_middle_of_one_block_is_refused():
    """The small ControlNets of SDXL have one."""
    with refuses(CheckpointError, "mid_block_type"):
        control_config(json.loads(official("sdxl-small").to_json_string()))


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> (diffusers' pipeline, our system, two ControlNets of theirs, and ours by folder)."""
    pytest.importorskip("diffusers")
    from diffusers import ControlNetModel
    from tiny_pipelines import build

    made = {}

    def get(name):
        if name not in made:
            pipe, nets = build(name), []
            folder = tmp_path_factory.mktemp(name)
            pipe.save_pretrained(folder / "system")
            for seed in (1, 2):
                torch.manual_seed(seed)
                net = ControlNetModel.from_unet(pipe.unet).eval()
                for p in net.parameters():
                    if not p.any():  # what starts at zero
                        torch.nn.init.normal_(p, std=0.05)
                net.save_pretrained(folder / f"control_{seed}")
                nets.append(net)
            ours = [load(folder / f"control_{seed}") for seed in (1, 2)]
            made[name] = pipe, load(folder / "system"), nets, ours
        return made[name]

    return get


def hints(n=1, seed=3):
    return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def difference(a, b):
    assert a.shape == b.shape and b.std() > 0.02
    return (a - b).abs().max().item()


def test_a_folder_and_a_single_file_are_the_same(saved, tmp_path):
    """In the original names, and in diffusers'."""
    *_, (theirs, _), (net, _) = saved("sd")
    assert net.config == ControlNetConfig(**vars(saved("sd")[1].config.unet))
    original = {control_name(k): w.clone() for k, w in net.state_dict().items()}
    save_tensors(tmp_path / "control.safetensors", original)
    save_tensors(tmp_path / "diffusers.safetensors", theirs.state_dict())
    for file in ("control", "diffusers"):
        again = load(tmp_path / f"{file}.safetensors", config=net.config)
        assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))


def test_a_file_of_ours(saved, tmp_path):
    *_, (net, _) = saved("sd")
    net.meta = {}
    save(tmp_path / "ours.safetensors", net, {"hint": "edges"})
    again = load(tmp_path / "ours.safetensors")
    assert again.config == net.config and again.meta == {"hint": "edges"}
    assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))


def test_known_by_its_contexts_width(tmp_path, monkeypatch):
    """A single file says its context's width and no number of heads; the plan is the known one."""
    small = dict(channels=32, mult=(1,), depth=(1,), middle=1, heads=(2,), context=8, blocks=1)
    config = ControlNetConfig(**small, groups=8, hint=4)
    monkeypatch.setattr(load_module, "SD15_CONTROL", replace(config, hint=3))
    torch.manual_seed(0)
    state = {control_name(k): w for k, w in ControlNet(config).state_dict().items()}
    save_tensors(tmp_path / "control.safetensors", state)
    assert load(tmp_path / "control.safetensors").config == config
    del state["control_model.zero_convs.1.0.bias"]
    save_tensors(tmp_path / "control.safetensors", state)
    with refuses(CheckpointError, "1 missing", "zeros.1.bias"):
        load(tmp_path / "control.safetensors")
    narrow = {k: w[:, :5] if "attn2.to_k" in k else w for k, w in state.items()}
    save_tensors(tmp_path / "control.safetensors", narrow)
    with refuses(CheckpointError, "5 wide", "ControlNetConfig"):
        load(tmp_path / "control.safetensors")


# ---------------------------------------------------------------- pictures


def pipelines(pipe, nets, kind=""):
    import diffusers

    xl = "XL" if "XL" in type(pipe).__name__ else ""
    made = getattr(diffusers, f"StableDiffusion{xl}ControlNet{kind}Pipeline")
    more = {} if xl else {"requires_safety_checker": False}
    other = made(**{**pipe.components, "controlnet": nets, **more})
    other.set_progress_bar_config(disable=True)
    return other


def drawn(pipe, nets, sampler="euler", **options):
    """The picture in [-1, 1] that diffusers draws from our noise."""
    from tiny_pipelines import scheduler

    pipe.scheduler = scheduler(sampler)
    latents = noise((4, SIZE[0] // 8, SIZE[1] // 8), (1,))
    out = pipelines(pipe, nets)(
        PROMPT,
        negative_prompt=BAD,
        num_inference_steps=6,
        height=SIZE[0],
        width=SIZE[1],
        latents=latents,
        output_type="pt",
        **options,
    ).images
    return 2 * out - 1


def ours(sd, denoiser, sampler="euler", **options):
    steps = text_to_image(
        sd,
        PROMPT,
        negative=BAD,
        steps=6,
        sampler=sampler,
        size=SIZE,
        seeds=1,
        denoiser=denoiser,
        **options,
    )
    return decode(sd, last(steps))


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_same_picture_as_diffusers(saved, name, sampler):
    """Guided, with a weight: both halves get the hint."""
    pipe, sd, (theirs, _), (net, _) = saved(name)
    hint = hints()
    expected = drawn(
        pipe, theirs, sampler, image=hint, controlnet_conditioning_scale=0.7, guidance_scale=4.0
    )
    steered = controlled(sd, net, 2 * hint - 1, 0.7)
    got = ours(sd, steered, sampler, guidance=4.0)
    assert difference(got, expected) < TOLERANCE
    assert difference(got, ours(sd, None, sampler, guidance=4.0)) > 0.01


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_several_at_once(saved, name):
    pipe, sd, theirs, nets = saved(name)
    a, b = hints(seed=3), hints(seed=4)
    expected = drawn(
        pipe, theirs, image=[a, b], controlnet_conditioning_scale=[1.0, 0.4], guidance_scale=1.0
    )
    steered = controlled(sd, nets, [2 * a - 1, 2 * b - 1], [1.0, 0.4])
    assert difference(ours(sd, steered, guidance=1.0), expected) < TOLERANCE


@pytest.mark.parametrize("share", [(0.0, 0.5), (0.3, 1.0), (0.2, 0.7)])
def test_an_interval(saved, share):
    """diffusers: from one share of the steps to another; here: of the times."""
    pipe, sd, (theirs, _), (net, _) = saved("sd")
    hint, n = hints(), 6
    kept = [i for i in range(n) if not (i / n < share[0] or (i + 1) / n > share[1])]
    times = plan_walk(sd, n, "euler").times
    expected = drawn(
        pipe,
        theirs,
        image=hint,
        guidance_scale=4.0,
        control_guidance_start=share[0],
        control_guidance_end=share[1],
    )
    steered = controlled(sd, net, 2 * hint - 1, interval=(times[kept[-1]], times[kept[0]]))
    assert difference(ours(sd, steered, guidance=4.0), expected) < TOLERANCE


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_from_a_picture(saved, name):
    from tiny_pipelines import scheduler

    pipe, sd, (theirs, _), (net, _) = saved(name)
    picture, hint = hints(seed=5), hints()
    pipe.scheduler = scheduler("euler")
    expected = pipelines(pipe, theirs, "Img2Img")(
        PROMPT,
        negative_prompt=BAD,
        image=picture,
        control_image=hint,
        strength=0.5,
        num_inference_steps=10,
        guidance_scale=4.0,
        controlnet_conditioning_scale=1.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    options = dict(strength=0.5, steps=10, guidance=4.0, negative=BAD, sampler="euler", seeds=5)
    steered = controlled(sd, net, 2 * hint - 1)
    steps = image_to_image(sd, PROMPT, 2 * picture - 1, denoiser=steered, **options)
    assert difference(decode(sd, last(steps)), 2 * expected - 1) < TOLERANCE


@pytest.mark.parametrize("channels", [4, 9])
def test_into_a_mask(saved, tmp_path, channels):
    """A ControlNet of four channels beside either UNet: mask and masked picture are not its own."""
    from tiny_pipelines import build, scheduler

    pipe, sd, (theirs, _), (net, _) = saved("sd")
    if channels == 9:
        pipe = build("sd", channels=9)
        pipe.save_pretrained(tmp_path)
        sd = load(tmp_path)
    picture, hint, mask = hints(seed=5), hints(), torch.zeros(1, 1, *SIZE)
    mask[:, :, 13:50, 10:37] = 1
    pipe.scheduler = scheduler("ddim")
    expected = pipelines(pipe, theirs, "Inpaint")(
        PROMPT,
        negative_prompt=BAD,
        image=picture,
        mask_image=mask,
        control_image=hint,
        height=SIZE[0],
        width=SIZE[1],
        strength=0.7,
        num_inference_steps=10,
        guidance_scale=4.0,
        controlnet_conditioning_scale=1.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    options = dict(strength=0.7, steps=10, guidance=4.0, negative=BAD, sampler="ddim", seeds=5)
    steered = controlled(sd, net, 2 * hint - 1)
    steps = inpaint(sd, PROMPT, 2 * picture - 1, mask, denoiser=steered, **options)
    assert difference(decode(sd, last(steps)), 2 * expected - 1) < TOLERANCE


# ---------------------------------------------------------------- properties


def test_weight_0_and_no_time_are_the_plain_unet(saved):
    _, sd, _, (net, other) = saved("sd")
    hint = 2 * hints() - 1
    plain = ours(sd, None, guidance=4.0)
    assert torch.equal(ours(sd, controlled(sd, net, hint, 0.0), guidance=4.0), plain)
    never = controlled(sd, [net, other], [hint, hint], interval=(0, 0))
    assert torch.equal(ours(sd, never, guidance=4.0), plain)


def test_each_picture_has_its_hint(saved):
    _, sd, _, (net, _) = saved("sd")
    two = 2 * hints(2) - 1
    options = dict(steps=3, size=SIZE, guidance=4.0, sampler="euler")
    both = last(text_to_image(sd, ["a", "b"], denoiser=controlled(sd, net, two), **options))
    for i, prompt in enumerate("ab"):
        steered = controlled(sd, net, two[i : i + 1])
        alone = last(text_to_image(sd, prompt, seeds=i, denoiser=steered, **options))
        assert torch.allclose(both[i : i + 1], alone, atol=1e-4)


def test_in_half_precision(saved):
    _, sd, _, (net, _) = saved("sd")
    half = copy.deepcopy(sd)
    half.unet.bfloat16(), half.text.bfloat16()
    hint = 2 * hints() - 1
    own = ours(half, controlled(half, copy.deepcopy(net).bfloat16(), hint), guidance=1.0)
    assert difference(own, ours(sd, controlled(sd, net, hint), guidance=1.0)) < 0.2
    mixed = ours(half, controlled(half, net, hint), guidance=1.0)  # the ControlNet in float32
    assert difference(mixed, own) < 0.2


# ---------------------------------------------------------------- bad input

HINT = torch.full((1, 3, *SIZE), -0.5)


@pytest.mark.parametrize(
    "error, name, arguments",
    [
        (OptionError, "control_net", lambda net: ("sd15-control-canny", HINT)),
        (OptionError, "control_net", lambda net: (net.hint, HINT)),
        (OptionError, "weight", lambda net: (net, HINT, float("nan"))),
        (OptionError, "weight", lambda net: (net, HINT, -1)),
        (OptionError, "interval", lambda net: (net, HINT, 1, (500, 100))),
        (OptionError, "interval", lambda net: (net, HINT, 1, 500)),
        (OptionError, "hint", lambda net: ([net, net], HINT)),
        (OptionError, "hint", lambda net: ([net, net], [HINT])),
        (OptionError, "weight", lambda net: ([net, net], [HINT, HINT], [1])),
        (OptionError, "interval", lambda net: ([net, net], [HINT, HINT], 1, [(0, 9)])),
        (OptionError, "hint", lambda net: ([], [])),
        (ShapeError, "hint", lambda net: (net, torch.zeros(1, 2, *SIZE))),
        (ShapeError, "hint", lambda net: (net, torch.zeros(5))),
    ],
)
def test_refused_at_the_call(saved, error, name, arguments):
    _, sd, _, (net, _) = saved("sd")
    with refuses(error, name):
        controlled(sd, *arguments(net))


@pytest.mark.parametrize("hint", [torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, *SIZE)])
def test_a_hint_of_another_size_is_refused_at_the_first_step(saved, hint):
    _, sd, _, (net, _) = saved("sd")
    with refuses(ShapeError, "hint"):
        ours(sd, controlled(sd, net, hint), guidance=1.0)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"context": 7}, "context"),
        ({"vector": 8}, "vector"),
        ({"channels": 32}, "channels"),
        ({"mult": (1, 2, 4), "depth": (0, 0, 0), "heads": (1, 1, 1)}, "mult"),
        ({"blocks": 2}, "blocks"),
        ({"in_channels": 9}, "in_channels"),
        ({"widths": (16, 32)}, "2 times"),
        ({"hint": 4}, "4 channels"),
    ],
)
def test_a_controlnet_of_another_system_is_refused(saved, changes, name):
    _, sd, _, (net, _) = saved("sd")
    other = ControlNet(ControlNetConfig(**{**vars(net.config), **changes}))
    with refuses(OptionError, "another system", name):
        controlled(sd, other, HINT)


def test_fewer_transformers_fit(saved):
    _, sd, _, _ = saved("sd")
    small = control_net(sd.unet, depth=(0, 0), middle=0)
    assert torch.equal(ours(sd, controlled(sd, small, HINT)), ours(sd, None))
    with refuses(OptionError, "meta"):
        controlled(sd, on_meta(small.config), HINT)


def test_what_a_folder_cannot_say_is_refused(saved, tmp_path):

    *_, (theirs, _), _ = saved("sd")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    entries = json.loads(file.read_text())
    for name, value in (
        ("global_pool_conditions", True),
        ("controlnet_conditioning_channel_order", "bgr"),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("conditioning_channels", 0),
    ):
        file.write_text(json.dumps({**entries, name: value}))
        with refuses(CheckpointError, "hint" if name == "conditioning_channels" else name):
            load(tmp_path)


def test_a_ControlNet_is_no_system_and_says_so(saved, tmp_path):
    _, sd, _, (net, _) = saved("sd")
    with refuses(CheckpointError, "a ControlNet for", "an addition to a model"):
        check_state(sd.unet, {control_name(k): w for k, w in net.state_dict().items()}, "it")
    with refuses(CheckpointError, "missing", "looks like the UNet"):
        check_state(net, sd.unet.state_dict(), "it")


# ---------------------------------------------------------------- names


def test_what_is_fetched_of_a_repository():
    stem = "diffusion_pytorch_model"
    names = ["README.md", "config.json", f"{stem}.bin", f"{stem}.safetensors", "images/a.png"]
    assert hub.needed(names, torch.float32, True) == ["config.json", f"{stem}.safetensors"]
    names.append(f"{stem}.fp16.safetensors")
    assert hub.needed(names, torch.float16, True) == ["config.json", f"{stem}.fp16.safetensors"]
    with pytest.raises(ValueError, match="model_index.json"):
        hub.needed(["README.md", f"{stem}.safetensors"], torch.float32, True)


def test_a_folder_is_found_by_its_known_name(saved, tmp_path, monkeypatch):
    *_, (theirs, _), (net, _) = saved("sd")
    monkeypatch.setattr(load_module, "data_folder", lambda: tmp_path)
    theirs.save_pretrained(tmp_path / "models" / "sd15-control-canny")
    again = load("sd15-control-canny")
    assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))
    folder = Folder(tmp_path / "models" / "sd15-control-canny")
    assert hub.complete(folder, torch.float32, True)
    (folder.root / "diffusion_pytorch_model.safetensors").unlink()
    assert not hub.complete(folder, torch.float32, True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refuses(CheckpointError, "diffusers/controlnet-canny-sdxl-1.0"):
        load("sdxl-control-canny")


# ---------------------------------------------------------------- the one that ships


def test_painted_edges_follows_lines_and_colours():
    """Held-out test digits, and their ink and ground swapped in the prompt."""
    sd, net = load("painted"), load("painted-edges")
    pictures = painted_digits("test", 12, seed=3, held=True)
    hint = edges(pictures[:][0])
    swapped = [caption(s._replace(ink=s.ground, ground=s.ink)) for s in pictures.scenes()]
    for texts in (pictures.captions(), swapped):
        x = draw(sd, texts, denoiser=controlled(sd, net, hint), progress=False)
        assert edge_f1(x, hint).mean() > 0.95
        assert fidelity(x, texts)["colours"] == 1
    alone = controlled(sd, net, hint)
    x = decode(sd, last(text_to_image(sd, [""] * 12, guidance=1, denoiser=alone)))
    assert edge_f1(x, hint).mean() > 0.8  # no word says where
    plain = decode(sd, last(text_to_image(sd, [""] * 12, guidance=1)))
    assert edge_f1(plain, hint).mean() < 0.4
