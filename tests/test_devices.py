"""Apple GPUs ("mps") are not here, nor is CUDA: what can be proved without them.

mps has no float64 and no waiting for a copy that was told not to wait. The meta device stands in
for it: its tensors have types and shapes, no numbers. That shows which types and which noise reach
a device, not that a kernel of Apple's computes the right thing. Whether there is a GPU is faked in
the command line only, as far as the name and the type it passes on.
"""

import pytest
import torch
from test_fast import CONFIGS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm_edu import SAMPLERS, Cond, Schedule, cli, guided, last, loss
from ddpm_edu.diffusion import class_cond, generators, karras_timesteps, randn_like
from ddpm_edu.gpu.fast import speed_up
from ddpm_edu.networks.gaussian import GaussianPrior
from ddpm_edu.networks.unet import SpaceToDepth, UNet, UNetConfig
from ddpm_edu.networks.vae import VAE, VAEConfig, decode_tiled
from ddpm_edu.systems import guard

SCHEDULE = Schedule.sqrt_linear()
RANDOM = ("rand", "normal", "uniform", "bernoulli", "exponential")


class Mps(TorchDispatchMode):
    """Refuses float64 on the meta device, as mps does, and noise made there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        there = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.is_meta]
        if any(x.dtype == torch.float64 for x in there):
            raise TypeError(f"{func}: mps has no float64")
        name = str(func).split(".")[1]
        if there and any(word in name for word in RANDOM) and not name.endswith("_like"):
            raise TypeError(f"{func}: noise is drawn on the CPU")
        return out


def test_the_stand_in_refuses_what_it_should():
    for bad in (
        lambda: torch.ones(2, dtype=torch.float64).to("meta"),
        lambda: torch.ones(2, device="meta").double(),
        lambda: torch.randn(2, device="meta"),
    ):
        with Mps(), pytest.raises(TypeError):
            bad()
    with Mps():  # as mps does: another type on the way is fine
        assert torch.ones(2, dtype=torch.float64).to(torch.empty(0, device="meta")).is_meta


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_and_twins(sampler):
    with torch.device("meta"):
        x_T = torch.empty(2, 4, 8, 8)
        cond, uncond = Cond(torch.empty(2, 7, 24)), Cond(torch.empty(1, 7, 24))
        twin = speed_up(UNet(CONFIGS["sd"]).requires_grad_(False))
    times = karras_timesteps(SCHEDULE, 3)
    for model, predict in ((twin, "eps"), (half, "v"), (half, "x_0")):
        model = guided(model, 5.0, uncond, rescale=0.7)
        options = dict(predict=predict, clip=1.0, generator=generators([3, 4]))
        with Mps():
            x = last(SAMPLERS[sampler](model, SCHEDULE, x_T, times, cond, **options))
        assert x.is_meta and x.dtype == torch.float32


def half(x_t, t, cond):
    return x_t * 0.5


@pytest.mark.parametrize("predict", ["eps", "v", "x_0"])
def test_loss_and_closed_forms(predict):
    with torch.device("meta"):
        unet = UNet(CONFIGS["class"])
        x_0 = torch.empty(2, 4, 8, 8)
    cond = class_cond(torch.tensor([0, -1])).map(lambda part: part.to("meta"))
    with Mps():
        value = loss(unet, SCHEDULE, x_0, cond, predict=predict)
        value.backward()
        mean, variance = SCHEDULE.posterior(x_0, x_0, torch.tensor([1, 2]))
        SCHEDULE.q_step(x_0, 3, randn_like(x_0))
    assert value.is_meta and mean.is_meta and variance.is_meta


def test_networks():
    unet = UNetConfig(8, 4, channels=8, mult=(1,), depth=(0,), heads=(1,), vector=2, groups=4)
    with torch.device("cpu"):
        prior = GaussianPrior(
            SpaceToDepth(UNet(unet), 1), SCHEDULE, (4, 4, 4), classes=2, parts=2, rank=1
        )
    with torch.device("meta"):
        vae = VAE(VAEConfig(channels=32, mult=(1, 2), blocks=1)).requires_grad_(False)
        z, x = torch.empty(1, 4, 6, 6), torch.empty(1, 3, 8, 8)
    with Mps():
        decode_tiled(vae, z, tile=4, overlap=2)
        decode_tiled(speed_up(vae), z, tile=4, overlap=2)
        vae.to_latent(x, generators([1]))
        prior.to("meta")


def test_only_cuda_reads_its_answer_later(monkeypatch):
    """A copy from mps that does not wait holds anything (pytorch issue 139550, among others)."""
    given = []
    to = torch.Tensor.to
    note = lambda x, *args, **kwargs: (given.append(kwargs), to(x, *args, **kwargs))[1]
    monkeypatch.setattr(torch.Tensor, "to", note)
    answer, event = guard._finite(torch.tensor([1.0, torch.nan]))
    assert not answer and event is None and given == [{"non_blocking": False}]


# ---------------------------------------------------------------- the command line


class Stop(Exception):
    """Instead of loading."""


@pytest.mark.parametrize(
    "there, told, device, dtype",
    [
        ((), (), "cpu", torch.float32),
        (("mps",), (), "mps", torch.float16),
        (("cuda",), (), "cuda", torch.bfloat16),
        (("mps",), ("--device", "cpu"), "cpu", torch.float32),
        (("mps",), ("--dtype", "float32"), "mps", torch.float32),
        (("mps",), ("--device", "mps", "--dtype", "bfloat16"), "mps", torch.bfloat16),
    ],
)
def test_txt2img_takes_the_device_that_is_there(there, told, device, dtype, tmp_path, monkeypatch):
    import ddpm_edu.files.load

    given = []

    def load(name, *, device, dtype, config=None):
        given.append((device, dtype))
        raise Stop

    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    monkeypatch.setattr(cli, "check_device", lambda device: device)
    monkeypatch.setattr(ddpm_edu.files.load, "load", load)
    with pytest.raises(Stop):
        cli.main(["txt2img", "a dot", "--out", str(tmp_path / "a.png"), *told])
    assert given == [(device, dtype)]


@pytest.mark.parametrize("device", ["mps", "cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_refused(device, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert cli.main(["txt2img", "a dot", "--device", device, "--out", str(out)]) == 2
    assert device in capsys.readouterr().err and not out.exists()
