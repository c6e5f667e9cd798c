"""Text-to-image speed on an NVIDIA GPU: this package plain and fast beside diffusers eager and compiled, in one run.

    python benchmarks/gpu_sampling.py                            everything, in the order of TASKS
    python benchmarks/gpu_sampling.py --only sdxl,ladder/fused    some of it; what is in the results already is kept
    python benchmarks/gpu_sampling.py --tiny                      all of it at tiny size on the CPU, to see that it works

What is measured is exact up to rounding but for "fp8"; approximations.py shows what fewer steps and the like do to pictures.
Weights are random: speed does not depend on them. diffusers gets the same ones, and `off_diffusers` says how far apart the
two pictures are. Times are medians of CUDA events around a whole call, after warm-up; prompts are already encoded.
A picture is: all steps with guidance (two UNet passes each, one batched call), Euler, and the VAE. Each result is written
when it is there, so that a run that is cut off goes on where it stopped. The last line printed is one JSON object.

"compiled" compiles the UNet as one piece, in torch.compile's default mode: one to a few minutes for each batch size. Its
max-autotune mode tries variants of every kernel for many minutes more (--mode max-autotune-no-cudagraphs).
diffusers is compiled as its guide advises: channels_last, mode "reduce-overhead" (which is CUDA graphs too), fullgraph.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import gc
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddpm_edu import SAMPLERS, Cond, Schedule, guided, last, noise, spaced_timesteps
from ddpm_edu.files import config_json
from ddpm_edu.files.names import to_folder
from ddpm_edu.gpu.fast import CHANGES, flops, speed_up
from ddpm_edu.gpu.float8 import fp8, to_float8
from ddpm_edu.networks.unet import UNet, timestep_embedding
from ddpm_edu.networks.vae import VAE
from ddpm_edu.systems import system

SCHEDULE, GUIDANCE = Schedule.sqrt_linear(), 5.0
BF16, F32 = torch.bfloat16, torch.float32


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured: on a GPU the real sizes, with --tiny ones that a CPU does in seconds."""

    device: str = "cuda"
    dtype: torch.dtype = BF16
    steps: int = 30
    few_steps: int = 20
    batches: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 5
    matmul: int = 8192
    tokens: tuple[tuple[int, int, int], ...] = (
        (10, 4096, 64),
        (20, 1024, 64),
        (8, 4096, 40),
    )  # heads, tokens, width of a head
    mode: str = "default"


TINY = Setting("cpu", F32, 3, 2, (1, 2), 1, 128, ((2, 64, 16),))


def plan(name, setting):
    """The system of that name; its tiny stand-in keeps the topology."""
    config = {"sdxl": system.SDXL, "sd15": system.SD15}[name]
    if setting.device == "cpu":
        vector = 16 + 6 * 32 if config.vector else 0  # the pooled text and six numbers
        unet = dataclasses.replace(
            config.unet,
            channels=64,
            mult=(1, 2),
            depth=config.unet.depth[:2],
            middle=config.unet.depth[1],
            heads=(2, 4),
            context=32,
            vector=vector,
            blocks=1,
        )
        text = dataclasses.replace(
            config.text[0], width=32, heads=4, projection=16 if vector else 0
        )
        config = dataclasses.replace(
            config,
            unet=unet,
            vae=dataclasses.replace(config.vae, channels=32, blocks=1),
            text=(text,),
            size=64,
            number_dim=32,
        )
    return config


@functools.lru_cache(maxsize=2)
def network(kind, config, dtype, device):
    """A UNet or VAE whose weights are made on the device: N(0, 1 / fan in), norms near 1, small biases."""
    with torch.device("meta"):
        model = kind(config)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    gen = torch.Generator(device).manual_seed(0)
    for name, p in model.named_parameters():
        p.normal_(std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.05, generator=gen)
        if p.ndim == 1 and name.endswith("weight"):
            p.add_(1)
    return model


def told(config, batch, setting):
    """(condition, negative condition, noise) of a batch: random numbers where the text encoders' would be."""
    gen = torch.Generator().manual_seed(1)
    c, to = config.unet, lambda x: x.to(setting.device, setting.dtype)
    numbers = timestep_embedding(
        torch.tensor([config.size, config.size, 0, 0, config.size, config.size]), config.number_dim
    ).flatten()
    pooled = c.vector - len(numbers)

    def cond():
        vector = (
            torch.cat([torch.randn(1, pooled, generator=gen), numbers[None]], 1)
            if c.vector
            else None
        )
        return Cond(torch.randn(1, 77, c.context, generator=gen), vector).map(
            lambda x: to(x.expand(batch, *x.shape[1:]))
        )

    return (
        cond(),
        cond(),
        noise((4, config.size // 8, config.size // 8), range(batch)).to(setting.device),
    )


def one_call(inputs, dtype):
    """What a guided step asks the network: every picture with both conditions."""
    cond, uncond, x = inputs
    return (
        torch.cat([x, x]).to(dtype),
        torch.full((2 * len(x),), 500.0, device=x.device),
        Cond(*(a if a is None else torch.cat([a, b]) for a, b in zip(cond, uncond))),
    )


def ours(unet, vae, inputs, steps):
    """Pictures (B, 3, H, W) in [0, 1]."""
    cond, uncond, x_T = inputs
    dtype = cond.context.dtype
    model = guided(lambda x_t, t, cond: unet(x_t.to(dtype), t, cond).float(), GUIDANCE, uncond)
    z = last(
        SAMPLERS["euler"](
            model, SCHEDULE, x_T, spaced_timesteps(SCHEDULE.T, steps, "leading", 1), cond
        )
    )
    with torch.no_grad():
        return (
            torch.cat([vae.from_latent(one.to(dtype)) for one in z.split(1)])
            .div(2)
            .add(0.5)
            .clamp(0, 1)
        )


def diffusers_pipeline(config, unet, vae, setting, compiled):
    """diffusers' own pipeline around the same weights."""
    import diffusers

    conv = not config.unet.vector  # SD 1.5 has 1x1 convolutions around its transformers
    entries = {
        **config_json.unet_entries(config.unet, config.number_dim),
        "use_linear_projection": not conv,
    }
    with torch.device("meta"):
        their_unet, their_vae = (
            diffusers.UNet2DConditionModel.from_config(entries),
            diffusers.AutoencoderKL.from_config(config_json.vae_entries(config.vae)),
        )
    for theirs, state in (
        (their_unet, to_folder("unet", unet.state_dict(), conv)),
        (their_vae, to_folder("vae", vae.state_dict())),
    ):
        theirs.load_state_dict(
            {k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()},
            assign=True,
        )
        theirs.eval().requires_grad_(False)
        if compiled and setting.device != "cpu":
            theirs.to(memory_format=torch.channels_last)
    if compiled and setting.device != "cpu":
        their_unet = torch.compile(their_unet, mode="reduce-overhead", fullgraph=True)
        their_vae.decode = torch.compile(their_vae.decode, mode="default", fullgraph=True)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    if config.vector:
        pipe = diffusers.StableDiffusionXLPipeline(
            vae=their_vae,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=their_unet,
            scheduler=scheduler,
            add_watermarker=False,
        )
    else:
        pipe = diffusers.StableDiffusionPipeline(
            vae=their_vae,
            text_encoder=None,
            tokenizer=None,
            unet=their_unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)

    def draw(inputs, steps):
        cond, uncond, x_T = inputs
        pooled = cond.vector.shape[1] - 6 * config.number_dim if config.vector else 0
        more = (
            dict(
                pooled_prompt_embeds=cond.vector[:, :pooled],
                negative_pooled_prompt_embeds=uncond.vector[:, :pooled],
            )
            if config.vector
            else {}
        )
        return pipe(
            prompt_embeds=cond.context,
            negative_prompt_embeds=uncond.context,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=x_T.to(cond.context.dtype),
            height=config.size,
            width=config.size,
            output_type="pt",
            **more,
        ).images

    return draw


def clock(f, setting, repeats=None):
    """(median, lowest, highest) seconds of f(), timed on the device after two calls to warm up, and the peak memory in GB."""
    cuda = setting.device != "cpu"
    for _ in range(2 if cuda else 1):
        f()
    times = []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats or setting.repeats):
        if cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            f()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            started = time.perf_counter()
            f()
            times.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(times),
        "low": min(times),
        "high": max(times),
        "repeats": len(times),
        **({"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if cuda else {}),
    }


def off(a, b):
    """|a - b| / |b|"""
    a, b = a.float().cpu(), b.float().cpu()
    return ((a - b).norm() / b.norm()).item()


@functools.cache
def work(name, setting, batch=1):
    """Floating-point operations of one guided step, and of decoding one picture."""
    config = plan(name, setting)
    side, c = config.size // 8, config.unet
    with torch.device("meta"):
        cond = Cond(
            torch.empty(2 * batch, 77, c.context),
            torch.empty(2 * batch, c.vector) if c.vector else None,
        )
        return (
            flops(UNet(c), torch.empty(2 * batch, 4, side, side), torch.empty(2 * batch), cond),
            flops(VAE(config.vae).decode, torch.empty(1, 4, side, side)),
        )


# ---------------------------------------------------------------- the tasks: each yields (name, result); `skip` says what is there


def roof(setting, skip):
    """The ceilings of this device: a large bf16 product, the same in 8 bits, a large copy; random data, not zeros."""
    n, gen = setting.matmul, torch.Generator(setting.device).manual_seed(0)
    a, b = (
        torch.randn(n, n, device=setting.device, dtype=setting.dtype, generator=gen)
        for _ in range(2)
    )
    ten = lambda f: {
        k: v / 10 if k in ("seconds", "low", "high") else v
        for k, v in clock(lambda: [f() for _ in range(10)], setting).items()
    }
    if not skip("matmul"):
        result = ten(lambda: a @ b)
        yield "matmul", result | {"tflops": 2 * n**3 / result["seconds"] / 1e12}
    if not skip("matmul_fp8") and (
        setting.device == "cpu" or torch.cuda.get_device_capability() >= (8, 9)
    ):
        (a8, s), (b8, r) = to_float8(a), to_float8(b)
        result = ten(
            lambda: torch._scaled_mm(
                a8, b8.T, scale_a=s, scale_b=r.T.contiguous(), out_dtype=BF16, use_fast_accum=True
            )
        )
        yield "matmul_fp8", result | {"tflops": 2 * n**3 / result["seconds"] / 1e12}
    if not skip("copy"):
        x = torch.randn(n * n * 8, device=setting.device, generator=gen)
        y = torch.empty_like(x)
        result = ten(lambda: y.copy_(x))
        yield "copy", result | {"tb_per_s": 2 * x.nbytes / result["seconds"] / 1e12}


def attention(setting, skip):
    """PyTorch's fused attentions at the sizes of SDXL's and SD 1.5's self-attention, a guided pair of pictures."""
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    for heads, tokens, width in setting.tokens:
        q, k, v = (
            torch.randn(2, heads, tokens, width, device=setting.device, dtype=setting.dtype)
            for _ in range(3)
        )
        for name, backend in (
            backends.items()
            if setting.device != "cpu"
            else {"flash": SDPBackend.FLASH_ATTENTION}.items()
        ):
            if not skip(key := f"{name}_{heads}x{tokens}x{width}"):

                def call():
                    with sdpa_kernel(backend):
                        return F.scaled_dot_product_attention(q, k, v)

                try:
                    result = clock(lambda: [call() for _ in range(20)], setting)
                except RuntimeError as error:
                    yield key, {"failed": str(error).splitlines()[0]}
                else:
                    yield (
                        key,
                        result
                        | {
                            "tflops": 20
                            * 4
                            * 2
                            * heads
                            * tokens**2
                            * width
                            / result["seconds"]
                            / 1e12
                        },
                    )


def whole_picture(name, setting, skip):
    config = plan(name, setting)
    parts = [
        network(kind, c, setting.dtype, setting.device)
        for kind, c in ((UNet, config.unet), (VAE, config.vae))
    ]
    inputs, steps = told(config, 1, setting), setting.steps
    step, decode = work(name, setting)
    ways = {
        "plain": lambda: functools.partial(ours, *parts),
        "fast": lambda: functools.partial(
            ours, *(speed_up(p, compile=setting.mode) for p in parts)
        ),
        "diffusers": lambda: diffusers_pipeline(config, *parts, setting, False),
        "diffusers_compiled": lambda: diffusers_pipeline(config, *parts, setting, True),
    }
    reference = None
    for way, make in ways.items():
        if skip(way):
            continue
        if "diffusers" in way and not has_diffusers():
            yield way, {"failed": "diffusers is not installed"}
            continue
        if reference is None:
            reference = ours(*parts, inputs, 3)
        draw, started = make(), time.perf_counter()
        distance = off(draw(inputs, 3), reference)
        first = time.perf_counter() - started
        result = clock(lambda: draw(inputs, steps), setting)
        yield (
            way,
            result
            | {
                "steps": steps,
                "batch": 1,
                "first_call_s": first,
                "off_plain_after_3_steps": distance,
                "tflop": (steps * step + decode) / 1e12,
            },
        )
        del draw
        forget()


def vae_decode(setting, skip):
    config = plan("sdxl", setting)
    z = torch.randn(1, 4, config.size // 8, config.size // 8, device=setting.device)
    vae = network(VAE, config.vae, setting.dtype, setting.device)
    reference = None
    for way in ("plain", "fast", "diffusers", "diffusers_compiled"):
        if skip(way):
            continue
        if "diffusers" in way and not has_diffusers():
            yield way, {"failed": "diffusers is not installed"}
            continue
        if "diffusers" in way:
            import diffusers

            with torch.device("meta"):
                theirs = diffusers.AutoencoderKL.from_config(config_json.vae_entries(config.vae))
            theirs.load_state_dict(
                {
                    k: v.clone(memory_format=torch.contiguous_format)
                    for k, v in to_folder("vae", vae.state_dict()).items()
                },
                assign=True,
            )
            theirs.eval().requires_grad_(False)
            decode = theirs.decode
            if way == "diffusers_compiled" and setting.device != "cpu":
                theirs.to(memory_format=torch.channels_last)
                decode = torch.compile(theirs.decode, fullgraph=True)
            f = lambda: decode((z / config.vae.scale).to(setting.dtype)).sample
        else:
            model = vae if way == "plain" else speed_up(vae, compile=setting.mode)
            f = lambda: model.from_latent(z.to(setting.dtype))
        with torch.no_grad():
            if reference is None:
                reference = vae.from_latent(z.to(setting.dtype))
            distance = off(f(), reference)
            yield (
                way,
                clock(f, setting, 2 * setting.repeats)
                | {"off_plain": distance, "tflop": work("sdxl", setting)[1] / 1e12},
            )
        forget()


def throughput(setting, skip):
    """SDXL, a few Euler steps with guidance: pictures a second by batch size, in bf16 and with 8-bit linear layers."""
    config = plan("sdxl", setting)
    unet, vae = (
        network(kind, c, setting.dtype, setting.device)
        for kind, c in ((UNet, config.unet), (VAE, config.vae))
    )
    fast_vae, steps, twins = speed_up(vae, compile=setting.mode), setting.few_steps, {}
    make = {
        "bf16": lambda: speed_up(unet, compile=setting.mode),
        "fp8": lambda: fp8(unet, compile=setting.mode, emulate=setting.device == "cpu"),
    }
    for way in make:
        for batch in setting.batches:
            if skip(key := f"{way}_{batch}"):
                continue
            inputs = told(config, batch, setting)
            twin = twins[way] = twins.get(way) or make[way]()
            with (
                torch.no_grad()
            ):  # the error of one call, against the plain network in the same type
                call = one_call(inputs, setting.dtype)
                distance = off(twin(*call), unet(*call))
            result = clock(
                lambda: ours(twin, fast_vae, inputs, steps), setting, max(1, setting.repeats // 2)
            )
            step, decode = work("sdxl", setting, batch)
            yield (
                key,
                result
                | {
                    "images_per_s": batch / result["seconds"],
                    "steps": steps,
                    "batch": batch,
                    "off_plain_one_call": distance,
                    "tflop": (steps * step + batch * decode) / 1e12,
                },
            )
        twins.clear()
        forget()


def ladder(name, setting, skip):
    """One guided step, one change at a time; `off_float32` is the error of one call against float32 (and no tf32)."""
    config = plan(name, setting)
    rungs = [("float32", F32, False, ()), ("tf32", F32, True, ()), ("bf16", BF16, True, ())]
    rungs += [(change, BF16, True, CHANGES[: i + 1]) for i, change in enumerate(CHANGES)]
    reference = None
    for rung, dtype, tf32, changes in rungs:
        if skip(rung):
            continue
        if reference is None:
            with tf32_allowed(False), torch.no_grad():
                inputs = told(config, 1, dataclasses.replace(setting, dtype=F32))
                reference = network(UNet, config.unet, F32, setting.device)(
                    *one_call(inputs, F32)
                ).cpu()
            forget()
        cond, uncond, x = inputs = told(config, 1, dataclasses.replace(setting, dtype=dtype))
        # the same numbers in every type: made in float32, then rounded
        unet = network(UNet, config.unet, F32, setting.device)
        unet = unet if dtype == F32 else rounded(unet, config.unet, dtype)
        unet = speed_up(unet, compile=setting.mode, changes=changes) if changes else unet
        model, t = (
            guided(lambda x_t, t, cond: unet(x_t.to(dtype), t, cond).float(), GUIDANCE, uncond),
            torch.full((1,), 500.0, device=setting.device),
        )
        with tf32_allowed(tf32), torch.no_grad():
            distance = off(unet(*one_call(inputs, dtype)), reference)
            result = clock(lambda: [model(x, t, cond) for _ in range(10)], setting)
        yield (
            rung,
            {k: v / 10 if k in ("seconds", "low", "high") else v for k, v in result.items()}
            | {"off_float32": distance, "tflop": work(name, setting)[0] / 1e12},
        )
        del unet, model
        forget(networks=dtype != F32)


def rounded(unet, config, dtype):
    with torch.device("meta"):
        other = UNet(config)
    other.load_state_dict({k: v.to(dtype) for k, v in unet.state_dict().items()}, assign=True)
    return other.eval().requires_grad_(False)


TASKS = {
    "roof": roof,
    "attention": attention,
    "sdxl": functools.partial(whole_picture, "sdxl"),
    "sd15": functools.partial(whole_picture, "sd15"),
    "vae": vae_decode,
    "throughput": throughput,
    "ladder": functools.partial(ladder, "sdxl"),
    "ladder_sd15": functools.partial(ladder, "sd15"),
}


# ---------------------------------------------------------------- around them


@contextlib.contextmanager
def tf32_allowed(yes):
    """Products of float32 in float32, or with their inputs rounded to tf32's 10 bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if yes else "highest")
    torch.backends.cudnn.allow_tf32 = yes
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def has_diffusers():
    import importlib.util

    return importlib.util.find_spec("diffusers") is not None


def forget(networks=False):
    """Give the memory of what is no longer used back."""
    if networks:
        network.cache_clear()
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def machine(setting):
    import importlib.metadata as meta

    version = lambda name: (
        meta.version(name) if name in {d.metadata["Name"] for d in meta.distributions()} else None
    )
    cuda = setting.device != "cpu"
    return {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "tiny": not cuda,
        "weights": "random",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
    }


def write(path, results):
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(beside, path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="everything at tiny size on the CPU")
    parser.add_argument(
        "--only",
        default=",".join(TASKS),
        help="comma-separated tasks, or task/result, of: " + ", ".join(TASKS),
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file; default benchmarks/results/gpu_sampling_DEVICE.json"
    )
    parser.add_argument(
        "--mode", default="default", help="of torch.compile: default or max-autotune-no-cudagraphs"
    )
    parser.add_argument("--repeats", type=int, help="timed calls of each")
    parser.add_argument(
        "--again", action="store_true", help="measure what is in the file already once more"
    )
    args = parser.parse_args(argv)
    only = args.only.split(",")
    if unknown := [o for o in only if o.split("/")[0] not in TASKS]:
        parser.error(f"unknown task {unknown[0]}: choose from {', '.join(TASKS)}")
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA GPU is here: --tiny runs everything at tiny size on the CPU")
    setting = dataclasses.replace(TINY if args.tiny else Setting(), mode=args.mode)
    setting = dataclasses.replace(setting, repeats=args.repeats or setting.repeats)
    torch.backends.cudnn.benchmark = True  # for everybody
    here = machine(setting)
    name = "tiny" if args.tiny else here["device"].lower().replace("nvidia ", "").replace(" ", "_")
    path = args.out or Path(__file__).parent / "results" / f"gpu_sampling_{name}.json"
    results = json.loads(path.read_text()) if path.exists() else here | {"results": {}}
    if changed := [k for k, v in here.items() if results[k] != v]:
        parser.error(
            f"{path} is of another machine ({', '.join(f'{k}: {results[k]} there, {here[k]} here' for k in changed)}): give another --out"
        )
    done = results["results"]
    for task, run in TASKS.items():
        wanted = [o for o in only if o.split("/")[0] == task]
        skip = lambda key: (
            f"{task}/{key}" in done
            and not args.again
            or not any(o in (task, f"{task}/{key}") for o in wanted)
        )
        if not wanted:
            continue
        for key, result in run(setting, skip):
            ceiling = done.get("roof/matmul", {}).get("tflops")
            if "tflop" in result and ceiling:
                result["roof_share"] = result["tflop"] / result["seconds"] / ceiling
            result["date"], result["command"] = (
                datetime.date.today().isoformat(),
                " ".join(
                    [
                        "python",
                        "benchmarks/gpu_sampling.py",
                        *(argv if argv is not None else sys.argv[1:]),
                    ]
                ),
            )
            done[f"{task}/{key}"] = result
            write(path, results)
            print(
                f"{task + '/' + key:34}",
                "  ".join(f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, (int, float))),
                result.get("failed", ""),
                flush=True,
            )
        forget(networks=True)
    print(json.dumps({"benchmark": "gpu_sampling", "file": str(path), **results}))


if __name__ == "__main__":
    main()
