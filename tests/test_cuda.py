"""What only an NVIDIA GPU can show: `python -m pytest -m cuda tests/test_cuda.py` where one is.

The checks of benchmarks/gpu/checks.py, which need no pytest there, and a few things more.
"""

import copy
import sys
import time
from pathlib import Path

import pytest
import torch
from test_fast import CONFIGS, difference, inputs, tiny

from ddpm_edu import SAMPLERS, Cond, Schedule, guided, last, noise
from ddpm_edu.diffusion import randn_like
from ddpm_edu.gpu.fast import KERNELS, Graphed, by_products, speed_up

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.gpu import checks  # noqa: E402
from benchmarks.gpu.bench import Bench, Setting, tf32  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU"),
]
CHECKS = [
    checks.unets,  # against float64 on the CPU
    checks.twins,  # every prefix of the changes: sizes, kept results, second prompt, other weights
    checks.vaes,
    checks.systems,  # every sampler, against the CPU
    checks.training_steps,
    checks.nan_weights,
    checks.eight_bits,  # against emulated
    checks.out_of_memory,  # ResourceError, and a picture afterwards
    *(
        pytest.param(check, marks=pytest.mark.slow)
        for check in (checks.compiled_unet, checks.compiled_vae, checks.compiled_eight_bits)
    ),
]


@pytest.fixture(autouse=True)
def exact():
    """float32 products in float32; no kernels or memory left to the next test."""
    with tf32(False):
        yield
    torch.compiler.reset()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_checks(check):
    found = list(check(Bench(Setting(), time.time() + 600)))
    wrong = [row for row in found if len(row) == 3 and not row[1] <= row[2]]
    assert found and not wrong


def on_gpu(call):
    x, t, cond = call
    return x.cuda(), t.cuda(), cond.map(torch.Tensor.cuda)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_never_waits_for_the_gpu(sampler):
    """A twin with its graph, guided, noise made on the GPU: anything that waits raises."""
    unet = speed_up(tiny("sd").cuda(), compile=False)
    gen = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=gen).cuda()
    x_T, cond, uncond = draw(2, 4, 8, 8), Cond(draw(2, 7, 24)), Cond(draw(1, 7, 24))
    schedule = Schedule.sqrt_linear()
    run = lambda: last(
        SAMPLERS[sampler](
            guided(unet, 5.0, uncond), schedule, x_T, 3, cond, generator=torch.randn_like
        )
    )
    run()  # records the graph, works out the schedule
    torch.cuda.set_sync_debug_mode("error")
    try:
        x = run()
        with pytest.raises(RuntimeError):
            x.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.isfinite().all()


def test_a_graph_copies_an_input_only_if_it_changed():
    f = Graphed(lambda x, y: x + y)
    x, y = torch.ones(3).cuda(), torch.full((3,), 10.0).cuda()
    with torch.no_grad():
        assert f(x, y).tolist() == [11] * 3
        held = next(iter(f.recorded.values()))[1]
        held[1].fill_(20)  # only a copy would make good for it
        kept = f(x.clone(), y)
        y += 1
        assert f(x, y).tolist() == [12] * 3
        assert f(x, torch.full_like(y, 50.0)).tolist() == [51] * 3
        assert kept.tolist() == [21] * 3 and len(f.recorded) == 1


def test_written_weights_reach_a_recorded_graph():
    """Summed weights are written where the graph reads them; nothing is recorded anew."""
    plain = tiny("sd").cuda()
    fast, call = speed_up(plain, compile=False), on_gpu(inputs(CONFIGS["sd"]))
    fast(*call)
    run = fast.run
    for doubling in fast.doublings:
        doubling.conv.weight.mul_(2)
    assert difference(fast(*call), plain(*call)) < 1e-4 and fast.run is run


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_by_products(dtype, limit):
    gen = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 4500, 512, generator=gen)
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    here = by_products(*(part.to("cuda", dtype) for part in (q, k, v)))
    assert difference(here.double().cpu(), exact) < limit


@pytest.mark.parametrize("cross", KERNELS)
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_kernel_of_cross_attention(cross, compile):
    plain = tiny("sdxl").to("cuda", torch.bfloat16)
    x, t, cond = on_gpu(inputs(plain.config))
    call = x.bfloat16(), t, cond.map(torch.Tensor.bfloat16)
    fast = speed_up(copy.deepcopy(plain), compile=compile, cross=cross)
    assert difference(fast(*call).float(), plain(*call).float()) < 3e-2


def test_noise_of_a_seed_is_the_same_on_every_device():
    x = torch.empty(2, 4, 8, 8, device="cuda")
    gens = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    assert torch.equal(randn_like(x, gens).cpu(), noise((4, 8, 8), [3, 4]))
