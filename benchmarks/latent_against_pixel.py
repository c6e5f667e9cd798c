"""Latent against pixel diffusion: the same UNet on the same painted digits for equal wall time, on latents and on plain pixels.

    python benchmarks/latent_against_pixel.py                  120 s a side
    python benchmarks/latent_against_pixel.py --seconds 600 --batch 64

Both sides read the text through the shipped "painted" system's encoder and take its plan of UNet, optimizer and sampling;
the latent side works in its VAE, frozen, on latents encoded before the clock starts. Each side is a process of its own, so
that its peak memory is its own: `peak_mb` when training ends, `loaded_mb` just before it starts. GFLOP a step: three times the
forward pass (the backward one counts twice). Fidelity: what the oracle reads right on prompts, against `ceiling`, the same for
decoded copies of real test pictures, whose mean PSNR stands beside. The last line printed is one JSON object.
"""

import argparse
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import time

import torch

from ddpm_edu import Cond, guided, last, load, noise
from ddpm_edu.datasets.painted import painted_digits, prompts
from ddpm_edu.gpu.profile import flops
from ddpm_edu.metrics.frechet import psnr
from ddpm_edu.metrics.obedience import fidelity
from ddpm_edu.networks.unet import UNet
from ddpm_edu.samplers import dpmpp_2m
from ddpm_edu.training.latents import conditions, encode
from ddpm_edu.training.recipes import PAINTED, start_at_zero
from ddpm_edu.training.train import progress, train

SIDES = {"latents": 4, "pixels": 3}  # channels


class Pixels:
    """The pictures themselves, painted when asked for, with their captions' contexts."""

    def __init__(self, sd, pictures):
        captions = pictures.captions()
        known = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
        self.pictures, self.contexts = pictures, conditions(sd, list(known)).context
        self.row, self.uncond = (
            torch.tensor([known[caption] for caption in captions]),
            Cond(sd.text.encode([""]).context),
        )

    def __len__(self):
        return len(self.row)

    def __getitem__(self, index):
        return self.pictures[index][0], Cond(self.contexts[self.row[index]])


def peak_mb():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def one_side(side, seconds, batch, pictures, asked, seed, threads):
    torch.set_num_threads(threads)
    sd, real = load("painted"), painted_digits("train", pictures)
    started = time.perf_counter()
    dataset = encode(sd, real, batch=50) if side == "latents" else Pixels(sd, real)
    encoded = time.perf_counter() - started
    torch.manual_seed(seed)
    unet = start_at_zero(UNet(dataclasses.replace(sd.config.unet, in_channels=SIDES[side])))
    config = dataclasses.replace(
        PAINTED.train_unet, seconds=seconds, batch_size=batch, warmup=10, seed=seed
    )
    loaded, x_0, cond = peak_mb(), *dataset[torch.arange(1)]
    work = 3 * batch * flops(unet, x_0, torch.zeros(1), cond)
    started = time.perf_counter()
    for step in progress(train(unet, sd.schedule, dataset, config), desc=side):
        pass
    spent, peak = time.perf_counter() - started, peak_mb()
    texts = prompts(asked, seed=7)
    model, shape = guided(step.ema.eval(), sd.config.guidance, dataset.uncond), x_0.shape[1:]
    drawn = []
    started = time.perf_counter()
    for part in torch.arange(asked).split(50):
        context = conditions(sd, [texts[i] for i in part.tolist()])
        z = last(
            dpmpp_2m(
                model,
                sd.schedule,
                noise(shape, part),
                sd.config.steps,
                context,
                predict=config.predict,
            )
        )
        drawn.append((sd.vae.from_latent(z) if side == "latents" else z).clamp(-1, 1))
    sampling = time.perf_counter() - started
    return {
        "updates": step.step,
        "seconds_a_step": round(spent / step.step, 4),
        "gflop_a_step": round(work / 1e9, 2),
        "encoding_s": round(encoded, 1),
        "loaded_mb": loaded,
        "peak_mb": peak,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "sampling_s_a_picture": round(sampling / asked, 4),
        "fidelity": rounded(fidelity(torch.cat(drawn), texts)),
    }


def ceiling(n=400):
    """What the VAE alone leaves of real test pictures."""
    vae, classifier = load("painted").vae, load("mnist_classifier")
    x, captions = painted_digits("test", n)[torch.arange(n)]
    y = torch.cat([vae.from_latent(vae.to_latent(part)) for part in x.split(50)]).clamp(-1, 1)
    return {
        "psnr": round(psnr(x, y).mean().item(), 2),
        "decoded_copies": rounded(fidelity(y, captions, classifier)),
        "real_pictures": rounded(fidelity(x, captions, classifier)),
    }


def rounded(shares):
    return {name: round(share, 4) for name, share in shares.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="training time of each side")
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        help="pictures an update; a step on pixels keeps about 50 MB for each",
    )
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--asked", type=int, default=200, help="prompts drawn afterwards")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help="this side only, in this process")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(one_side(**vars(args))))
        sys.exit()
    result = {
        "benchmark": "latent_against_pixel",
        **{k: v for k, v in vars(args).items() if k != "side"},
    }
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side] + [
            text for k, v in vars(args).items() if k != "side" for text in (f"--{k}", str(v))
        ]
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        result[side] = json.loads(out.splitlines()[-1])
    cost = {
        k: round(result["pixels"][k] / result["latents"][k], 2)
        for k in ("seconds_a_step", "gflop_a_step", "peak_mb", "sampling_s_a_picture")
    }
    print(
        json.dumps(
            result
            | {
                "pixels_over_latents": cost,
                "ceiling": ceiling(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            }
        )
    )
