"""Weights in 8 bits: every number within half a step of its row, and plain words for a damaged file."""

import pytest
import torch
from helpers import refuses

from ddpm_edu.errors import CheckpointError
from ddpm_edu.files.load import load, save
from ddpm_edu.files.tensors import SMALLEST, load_tensors, pack, save_tensors, unpack
from ddpm_edu.networks.unet import UNet, UNetConfig
from ddpm_edu.schedule import Schedule


def state(dtype=torch.float32):
    """Large tensors with rows from 1e-6 to 1e3, two of them zeros, and all kinds that stay as they are."""
    g = torch.Generator().manual_seed(0)
    rows = 10 ** torch.linspace(-6, 3, 64)
    linear, conv = (
        torch.randn(64, 128, generator=g) * rows[:, None],
        torch.randn(64, 16, 3, 3, generator=g) * rows.flip(0)[:, None, None, None],
    )
    linear[5], conv[63] = 0, 0
    linear[7] = linear[7].abs().amax() * torch.where(
        torch.arange(128) % 2 == 0, 1, -1
    )  # both ends of the range
    small = {
        "bias": torch.randn(64, generator=g),
        "norm": torch.randn(8, 1, generator=g),
        "long": torch.randn(SMALLEST, generator=g),
    }
    return {k: v.to(dtype) for k, v in {"linear": linear, "conv": conv, **small}.items()} | {
        "count": torch.arange(10000).view(100, 100),
        "empty": torch.ones(0, 3),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_by_half_a_step_at_most(dtype):
    before = state(dtype)
    packed = pack(before)
    after = unpack(packed)
    assert list(after) == list(before) and all(
        v.dtype in (torch.float32, torch.int64) for v in after.values()
    )
    for name in ("linear", "conv"):
        w = before[name].flatten(1)
        step = w.abs().amax(1, keepdim=True) / 127
        assert packed[name].dtype == torch.int8 and packed[name].abs().amax() == 127
        torch.testing.assert_close(packed[f"{name}.scale"], step[:, 0].float())
        wrong = (after[name].flatten(1).to(dtype) - w).abs()
        assert (wrong <= step * (0.5 + 1e-5)).all() and (
            wrong > step * 0.45
        ).any()  # as close as promised, and rounded indeed
    assert not after["linear"][5].any() and not after["conv"][63].any()
    for name in ("bias", "norm", "long"):
        assert packed[name].dtype == torch.float16
        torch.testing.assert_close(after[name], before[name].float(), rtol=2**-11, atol=1e-7)
    assert torch.equal(after["count"], before["count"]) and set(packed) - set(before) == {
        "linear.scale",
        "conv.scale",
    }


def test_packing_again_what_was_unpacked_changes_nothing():
    once = pack(state())
    twice = pack(unpack(once))
    assert all(torch.equal(once[k], twice[k]) for k in once if not k.endswith(".scale"))


def test_where_float16_would_overflow():
    packed = pack({"huge": torch.tensor([1.0, 7e4]), "large": torch.tensor([-6e4])})
    assert packed["huge"].dtype == torch.float32 and packed["large"].dtype == torch.float16
    assert torch.equal(unpack(packed)["huge"], torch.tensor([1.0, 7e4]))


def test_a_state_that_is_not_packed():
    before = {
        "a": torch.randn(200, 100),
        "a.scale": torch.ones(3),
        "half": torch.ones(3, dtype=torch.float16),
        "n": torch.tensor([3]),
    }
    after = unpack(before)
    assert list(after) == list(before) and all(
        torch.equal(after[k], before[k].float()) for k in ("a", "a.scale", "half")
    )
    assert torch.equal(after["n"], before["n"]) and after["half"].dtype == torch.float32


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("linear.scale"), ("linear is int8", "linear.scale")),
        (lambda s: s.update({"linear.scale": torch.ones(63)}), ("linear.scale", "(64, 128)")),
        (lambda s: s.update({"linear.scale": torch.ones(64, 1)}), ("one float a row",)),
        (lambda s: s.update({"linear.scale": torch.ones(64, dtype=torch.int8)}), ("int8",)),
        (lambda s: s["linear.scale"][3:4].fill_(float("nan")), ("linear.scale", "NaN")),
        (lambda s: s["conv.scale"][:1].fill_(float("inf")), ("conv.scale", "infinity")),
        (lambda s: s["conv.scale"][:1].fill_(-1), ("negative",)),
        (lambda s: s.update(lone=torch.ones(4, dtype=torch.int8)), ("lone",)),
        (
            lambda s: s.update(
                {"bare": torch.tensor(1, dtype=torch.int8), "bare.scale": torch.tensor(1.0)}
            ),
            ("bare",),
        ),
    ],
)
def test_damaged_pairs(change, words):
    packed = pack(state())
    change(packed)
    with refuses(CheckpointError, "my file", *words):
        unpack(packed, "my file")


def test_what_cannot_be_packed():
    with refuses(CheckpointError, "linear", "int8 already"):
        pack(pack(state()))
    with refuses(CheckpointError, "linear.scale"):
        pack({**state(), "linear.scale": torch.ones(64)})


def test_weights_that_diverged_are_refused_when_read():
    for bad in (float("nan"), float("inf")):
        w = torch.ones(64, 128)
        w[3, 4] = bad
        with refuses(CheckpointError, "w.scale", "diverged"):
            unpack(pack({"w": w}))


def test_a_pretrained_model_in_int8(tmp_path):
    torch.manual_seed(0)
    model = UNet(
        UNetConfig(
            in_channels=1,
            channels=32,
            mult=(1, 2),
            depth=(0, 0),
            middle=0,
            heads=(4, 4),
            vector=3,
            blocks=1,
            groups=8,
        )
    )
    path = tmp_path / "net.safetensors"
    save(
        path,
        model,
        {"shape": [1, 8, 8]},
        schedule=Schedule.cosine(30),
        predict="v",
        dtype=torch.int8,
    )
    back = load(path)
    assert back.meta["shape"] == [1, 8, 8] and torch.equal(
        back.schedule.beta, Schedule.cosine(30).beta
    )
    for name, w in model.state_dict().items():
        step = (
            w.abs().flatten(1).amax(1) / 127
            if w.ndim > 1 and w.numel() >= SMALLEST
            else 2**-10 * w.abs().amax()
        )
        assert (
            (back.model.state_dict()[name] - w).abs().flatten(1 if w.ndim > 1 else 0).amax(-1)
            <= 0.51 * step
        ).all(), name
    assert path.stat().st_size < 0.4 * 4 * sum(p.numel() for p in model.parameters())
    tensors, meta = load_tensors(path)
    tensors = {k: v.clone() for k, v in tensors.items()}
    del tensors["up.0.0.conv1.weight.scale"]
    save_tensors(path, tensors, meta)
    with refuses(CheckpointError, "net.safetensors", "conv1.weight"):
        load(path)
