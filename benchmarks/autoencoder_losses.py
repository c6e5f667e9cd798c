"""What each loss of an autoencoder does: decoders trained on from one warm start (notebook 06).

    python benchmarks/autoencoder_losses.py warm              first: 64 numbers a picture, squared error
    python benchmarks/autoencoder_losses.py squared           then each of LOSSES, from the warm one
    python benchmarks/autoencoder_losses.py twin --seed 1     the shipped VAE's plan, another seed,
                                                              half as many updates
    python benchmarks/autoencoder_losses.py channels_2        the shipped VAE given 2 latent channels

The encoder stays as the warm start left it, so that all decoders read the same latents; only the run
with the heavy KL trains it too, as the KL acts there. Each part writes data/vae_losses/NAME.safetensors.xz,
its weights rounded to whole numbers of at most LEVELS, with its loss terms, command, processor seconds,
device, date and versions; `psnr` is that of the rounded weights. One thread. The last line printed is
one JSON object.
"""

import argparse
import datetime
import json
import platform
import time
from dataclasses import replace

import torch

from ddpm_edu import load
from ddpm_edu.datasets.painted import painted_digits
from ddpm_edu.files import tensors
from ddpm_edu.files.load import save
from ddpm_edu.metrics.frechet import psnr
from ddpm_edu.networks.vae import VAE, VAEConfig
from ddpm_edu.paths import data_folder
from ddpm_edu.training.autoencoder import (
    Autoencoder,
    LossWeights,
    classifier_features,
    measure_scale,
    only_decoder,
    with_scale,
)
from ddpm_edu.training.recipes import PAINTED
from ddpm_edu.training.train import TrainConfig, fit, progress
from ddpm_edu.training.whole_system import thin

FOLDER = data_folder() / "vae_losses"
TIGHT = VAEConfig(channels=8, mult=(1, 2, 3, 4), blocks=1, latent=4, groups=4)  # 48 times fewer
BASE = dict(batch_size=16, optimizer="muon", ema=0.99, warmup=20, clip_norm=100.0)
WARM = TrainConfig(steps=2500, lr=1e-2, **BASE)
FURTHER = TrainConfig(steps=1000, lr=5e-3, **BASE)
LOSSES = {
    "squared": LossWeights(kl=0),
    "l1": LossWeights(mse=0, l1=1, kl=0),
    "perceptual": LossWeights(perceptual=0.3, kl=0),
    "adversarial": LossWeights(adversarial=0.01, kl=0),
    "heavy_kl": LossWeights(kl=1e-3),  # 1,000 times too heavy
}
CHANNELS = {f"channels_{c}": c for c in (1, 2, 4)}
COARSE = 31  # levels: cost these small VAEs at most 0.07 dB; the better one needs finer numbers
LEVELS = {"twin": 63}
TOUCHING = ("encoder.conv_out", "quant", "post_quant", "decoder.conv_in")  # the latent


def run(vae: VAE, weights: LossWeights, config: TrainConfig, name: str):
    """(the averaged VAE, {loss: its curve}, processor seconds)."""
    torch.manual_seed(config.seed)
    features = classifier_features() if weights.perceptual else None
    model, record = Autoencoder(vae, weights, features), []

    def objective(model, batch, generator):
        terms = model.terms(batch[0], generator)
        record.append({k: v.item() for k, v in terms.items()})
        return model.total(terms)

    started = time.process_time()
    for step in progress(
        fit(model, painted_digits("train"), config, objective), config.steps, desc=name
    ):
        pass
    seconds = time.process_time() - started
    return step.ema.vae, {k: thin([r[k] for r in record]) for k in record[0]}, round(seconds)


def start(name: str, seed: int):
    """(VAE, weights, config) of a part."""
    torch.manual_seed(seed)
    if name == "warm":
        return VAE(TIGHT), LossWeights(), WARM
    if name == "twin":
        config = replace(PAINTED.train_vae, steps=PAINTED.train_vae.steps // 2, seed=seed)
        return VAE(PAINTED.vae), PAINTED.losses, config
    if name in CHANNELS:
        shipped = load("painted").vae
        vae = VAE(replace(shipped.config, latent=CHANNELS[name]))
        kept = {k: w for k, w in shipped.state_dict().items() if not k.startswith(TOUCHING)}
        vae.load_state_dict(kept, strict=False)
        return vae, LossWeights(), replace(FURTHER, steps=400, lr=1e-2)
    vae = load(FOLDER / "warm.safetensors").requires_grad_(True)
    if not LOSSES[name].kl:
        only_decoder(vae)
    return vae, LOSSES[name], FURTHER


def store(name: str, vae: VAE, meta: dict) -> dict:
    """Write the VAE to FOLDER, in few levels; `meta` with the quality of what was written."""
    levels = LEVELS.get(name, COARSE)
    tensors.SMALLEST = 1024  # small layers in whole numbers as well: a quarter of the file
    vae.load_state_dict(tensors.unpack(tensors.pack(vae.state_dict(), levels)))
    x = painted_digits("test")[torch.arange(200)][0]
    with torch.no_grad():
        meta["psnr"] = round(psnr(x, vae.decode(vae.encode(x)[0])).mean().item(), 2)
    meta["levels"] = levels
    FOLDER.mkdir(exist_ok=True)
    save(FOLDER / f"{name}.safetensors.xz", vae, meta, dtype=torch.int8, levels=levels)
    return meta


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["warm", *LOSSES, "twin", *CHANNELS])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    vae, weights, config = start(args.part, args.seed)
    vae, curves, seconds = run(vae, weights, config, args.part)
    vae = with_scale(vae, measure_scale(vae, painted_digits("train"), n=512))
    meta = {
        "command": f"python benchmarks/autoencoder_losses.py {args.part} --seed {args.seed}",
        "weights": vars(weights),
        "updates": config.steps,
        "batch": config.batch_size,
        "processor_seconds": seconds,
        "device": f"{platform.machine()} CPU, 1 thread of a shared machine",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "curves": curves,
    }
    meta = store(args.part, vae, meta)
    print(json.dumps({k: v for k, v in meta.items() if k != "curves"}))
