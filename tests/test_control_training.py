"""A ControlNet's training: what stays frozen, what is dropped, and that it goes on bit for bit."""

from dataclasses import replace

import pytest
import torch

from ddpm_edu import Cond, load
from ddpm_edu.datasets.hints import edges
from ddpm_edu.networks.controlnet import ControlNet, control_net
from ddpm_edu.training import control, follow
from ddpm_edu.training.control import PAINTED_EDGES, Steered, hinted, train_control

SHORT = replace(
    PAINTED_EDGES, n=24, train=replace(PAINTED_EDGES.train, steps=4, batch_size=4, save_every=1)
)


@pytest.fixture(scope="module")
def painted():
    return load("painted")


def test_each_picture_comes_with_its_hint(painted):
    pictures = PAINTED_EDGES.dataset()
    data = hinted(painted, pictures, edges, 10)
    index = torch.tensor([7, 2])
    z_0, cond = data[index]
    x, captions = pictures[index]
    assert len(data) == 10 and torch.equal(cond.picture, edges(x))
    assert torch.allclose(z_0, painted.vae.to_latent(x), atol=1e-5)
    assert torch.allclose(cond.context, painted.text.encode(captions).context, atol=1e-5)
    assert data.uncond.picture is None  # a dropped text keeps its hint


def test_only_the_controlnet_learns(painted):
    net = control_net(painted.unet, **PAINTED_EDGES.net)
    model, before = Steered(painted.unet, net), painted.unet.state_dict()
    assert {name.partition(".")[0] for name in model.state_dict()} == {"net"}
    data = hinted(painted, PAINTED_EDGES.dataset(), edges, 4)
    z, cond = data[torch.arange(4)]
    t = torch.full((4,), 500)
    plain = Cond(cond.context)
    assert torch.equal(model(z, t, cond), painted.unet(z, t, plain))
    trained = train_control(SHORT)
    assert isinstance(trained, ControlNet) and trained.zero_mid.weight.any()
    assert trained.meta == {"base": "painted", "hint": "edges"}
    assert all(map(torch.equal, before.values(), load("painted").unet.state_dict().values()))


def test_a_run_that_stopped_goes_on(tmp_path):
    whole = train_control(SHORT)

    def two(steps):
        for step in steps:
            yield step
            if step.step == 2:
                return

    train_control(SHORT, tmp_path / "half.safetensors", two)
    seen = []
    on = lambda steps: (seen.append(step.step) or step for step in steps)
    again = train_control(SHORT, tmp_path / "half.safetensors", on)
    assert seen == [3, 4]
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))


def test_followed_from_the_shell(tmp_path, monkeypatch):
    monkeypatch.setitem(control.CONTROL_RECIPES, "painted-edges", SHORT)
    out = tmp_path / "edges.safetensors"
    assert follow.follow("painted-edges", out, steps=2) == [out]
    net = load(out)
    assert isinstance(net, ControlNet) and net.config.factor == 4
    assert net.meta["base"] == "painted" and net.meta["train"]["updates"] == 2
    assert len(net.meta["train"]["loss"]) == 2
