"""The memory a system takes: foretold by a rehearsal, and measured by the system."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from folder_writer import save_folder
from helpers import refuses
from test_stable_diffusion import SINGLE, TINY, sparse

from ddpm_edu import Cond
from ddpm_edu.errors import OptionError
from ddpm_edu.files.load import config_of
from ddpm_edu.networks.lora import attach, low_rank
from ddpm_edu.networks.recompute import recomputing
from ddpm_edu.systems.memory import lora_memory, memory_needed, peak_bytes, weight_bytes
from ddpm_edu.systems.system import SD15, SDXL, build

linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc"
)
PROBE = '''
import ctypes, json, sys, torch
ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 20)  # freed megabytes go back
torch.set_num_threads(1), torch.set_grad_enabled(False)
def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return 1024 * int(line.split()[1])
def peak(run):
    """Bytes beyond those held before."""
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts anew
    out = run()
    return status("VmHWM") - before
'''


def probe(code, *args):
    done = subprocess.run(
        [sys.executable, "-c", PROBE + code, *map(str, args)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_peak_of_a_few_lines():
    """Views and work in place cost nothing, what is let go makes room; in float32, 4 MB a piece."""

    def chain():
        a = torch.ones(1000, 1000)
        b = a + 1
        del a
        c = b.view(-1).relu_()
        return c[:10] + 1

    assert peak_bytes(chain) == 8_000_000
    assert peak_bytes(lambda: [torch.ones(1000, 1000) for _ in range(5)]) == 20_000_000
    assert (
        peak_bytes(
            lambda: torch.nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, 8, 4096, 40))
        )
        < 4 * 8 * 4096 * 40 * 5
    )


def test_memory_needed():
    weights = 859520964 + 83653863 + 123060480
    assert weight_bytes(SD15) == 4 * weights and weight_bytes(SD15, torch.bfloat16) == 2 * weights
    full, half = memory_needed(SD15), memory_needed(SD15, torch.bfloat16)
    assert full == 2 * half and weights * 4 < full < weights * 4 * 1.5
    assert memory_needed(SD15, size=768) > memory_needed(SD15, size=(512, 768)) > full
    assert (
        memory_needed(SD15, batch=16)
        > memory_needed(SD15, batch=8)
        > memory_needed(SD15, batch=8, guidance=False)
    )
    for bad in (
        {"size": 0},
        {"size": True},
        {"size": 1_000_000},
        {"size": (512, 511.5)},
        {"batch": 0},
    ):
        with refuses(OptionError, *bad):
            memory_needed(SD15, **bad)
    assert 7e9 < memory_needed(SDXL, torch.bfloat16, 1024) < 10e9


@pytest.mark.slow
def test_lora_memory():
    """Weights once, 16 bytes a number that learns (float32: A and B, gradient, average of both, two of Adam's: the gradient
    counts in the pass), and what is kept for the way back: less where blocks are run again."""
    learned = sum(p.numel() for p in low_rank(build(TINY, device="meta"), 4).parameters())
    weights = sum(p.numel() for p in build(TINY, device="meta").unet.parameters())
    sizes = dict(rank=4, size=128, dtype=torch.float32)
    least, most = lora_memory(TINY, **sizes), lora_memory(TINY, **sizes, recompute=False)
    assert 4 * weights + 20 * learned < least < most
    passes = least - 4 * weights - 16 * learned
    assert passes < 0.7 * (most - 4 * weights - 16 * learned)
    assert lora_memory(TINY, **sizes, batch=4) > least + 2 * (passes - 4 * learned)
    for bad in ({"size": 0}, {"batch": 0}, {"rank": 0}):
        with refuses(OptionError, *bad):
            lora_memory(TINY, **bad)


@pytest.mark.full
def test_a_lora_of_sdxl_fits_into_12_gb():
    """Rank 16, 1024 x 1024, one picture, bfloat16."""
    assert 5.2e9 < lora_memory(SDXL) < 7e9


def test_gradients_are_the_same_where_blocks_are_run_again():
    unet = build(TINY).unet
    lora = low_rank(unet, 2)
    for change in lora.changes:
        torch.nn.init.normal_(change.up.weight)
    attach(unet, lora)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([1, 900])
    found = []
    for again in (False, True):
        lora.zero_grad()
        with recomputing(unet) if again else nullcontext():
            unet(x, t, Cond(torch.ones(2, 77, 32))).square().mean().backward()
        found.append([p.grad.clone() for p in lora.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found)) and found[0][0].abs().sum() > 0
    assert not any("forward" in vars(module) for module in unet.modules())


def test_a_folder_is_asked_without_its_weights(tmp_path):
    save_folder(build(TINY), tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert config_of(tmp_path).unet == TINY.unet
    assert memory_needed(config_of(tmp_path)) == memory_needed(TINY) > weight_bytes(TINY)


@linux
@pytest.mark.full
def test_rehearsal_against_the_operating_system():
    """A UNet within 10 %; the VAE within a third: its convolutions take work space unannounced."""
    got = probe("""
from ddpm_edu.diffusion import Cond
from ddpm_edu.systems.memory import peak_bytes
from ddpm_edu.networks.unet import UNet, UNetConfig
from ddpm_edu.networks.vae import VAE, VAEConfig
def both(build, run, *x):
    model = build()
    run(model, *x)
    measured = peak(lambda: run(model, *x))
    with torch.device("meta"):
        model = build()
    return measured, peak_bytes(lambda: run(model, *(y.to("meta") for y in x)))
wide = UNetConfig(channels=128, mult=(1, 2), depth=(1, 1), heads=(4, 4), context=64, blocks=1)
deep = UNetConfig(channels=64, mult=(1, 2, 4), depth=(0, 1, 1), heads=(2, 4, 4), context=64)
call = lambda unet, x, t, c: unet(x, t, Cond(c))
t, c, vae = torch.zeros(2), torch.randn(2, 77, 64), VAEConfig(channels=64)
print(json.dumps([both(lambda: UNet(wide), call, torch.randn(2, 4, 64, 64), t, c),
                  both(lambda: UNet(deep), call, torch.randn(2, 4, 96, 96), t, c),
                  both(lambda: VAE(vae), VAE.decode, torch.randn(1, 4, 32, 32))]))
""")
    for (measured, foretold), tolerance in zip(got, (0.1, 0.1, 1 / 3)):
        assert abs(measured - foretold) < tolerance * measured, got


@linux
@pytest.mark.full
def test_rehearsal_of_a_training_step_against_the_operating_system():
    """Within 15 %, with blocks run again and without."""
    got = probe("""
from contextlib import nullcontext
from ddpm_edu.diffusion import Cond
from ddpm_edu.networks.lora import attach, low_rank
from ddpm_edu.networks.recompute import recomputing
from ddpm_edu.networks.unet import UNet, UNetConfig
from ddpm_edu.systems.memory import peak_bytes
torch.set_grad_enabled(True)
wide = UNetConfig(channels=64, mult=(1, 2), depth=(1, 1), heads=(4, 4), context=64, blocks=1)
def step(unet, again, x, t, c):
    with recomputing(unet) if again else nullcontext():
        torch.autograd.backward(unet(x, t, Cond(c)).square().mean())
def build():
    unet = UNet(wide).requires_grad_(False)
    attach(unet, low_rank(unet, 8))
    return unet
x = torch.randn(2, 4, 64, 64), torch.zeros(2), torch.randn(2, 77, 64)
rows = []
for again in (True, False):
    unet = build()
    step(unet, again, *x)
    measured = peak(lambda: step(unet, again, *x))
    with torch.device("meta"):
        unet = build()
    rows.append((measured, peak_bytes(lambda: step(unet, again, *(y.to("meta") for y in x)), True)))
print(json.dumps(rows))
""")
    for measured, foretold in got:
        assert abs(measured - foretold) < 0.15 * measured, got


@linux
@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_the_weights_once(tmp_path, dtype):
    """SD 1.5 from one bfloat16 file with averaged weights beside: at most 1.15 times them."""
    sparse(tmp_path / "model.safetensors", SINGLE["sd15"])
    weights, used = probe(
        """
from ddpm_edu.files.load import load
from ddpm_edu.systems.system import SD15, build
build(SD15, device="meta")  # imports what it imports
kept = []
used = peak(lambda: kept.append(load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))))
print(json.dumps([sum(p.nbytes for p in kept[0].parameters()), used]))
""",
        tmp_path / "model.safetensors",
        dtype,
    )
    assert weights == weight_bytes(SD15, getattr(torch, dtype))
    assert 0.9 * weights < used < 1.15 * weights, used / weights
