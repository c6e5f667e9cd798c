"""data/vae_losses: what notebook 06 compares is there, says how it was made, and its command would make the same plan again."""

from pathlib import Path

import pytest

from ddpm_edu.files.load import load
from ddpm_edu.files.tensors import load_tensors

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "data/vae_losses").glob("*.safetensors.xz"))
NEEDED = {"command", "updates", "batch", "processor_seconds", "device", "date", "torch", "curves"}


def part_of(file):
    return file.name.partition(".")[0]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import autoencoder_losses

    return autoencoder_losses


def test_every_part_is_recorded(benchmark):
    parts = {"warm", "twin", *benchmark.LOSSES, *benchmark.CHANNELS}
    assert {part_of(file) for file in FILES} == parts


@pytest.mark.parametrize("file", FILES, ids=part_of)
def test_a_file_says_how_it_was_made(file, benchmark):
    meta = load_tensors(file)[1]["meta"]
    assert NEEDED <= meta.keys() and file.stat().st_size < 262_144
    assert f"benchmarks/autoencoder_losses.py {part_of(file)} " in meta["command"]
    vae, weights, config = benchmark.start(part_of(file), int(meta["command"].split()[-1]))
    recorded = load(file).config
    assert (recorded.mult, recorded.latent) == (vae.config.mult, vae.config.latent)
    assert vars(weights) == meta["weights"] and config.steps == meta["updates"]
    switched_on = {name for name, weight in meta["weights"].items() if weight}
    assert switched_on <= meta["curves"].keys()


def test_only_the_decoder_was_trained_on(benchmark):
    """All but the heavy KL's read the same latents."""
    warm = load(benchmark.FOLDER / "warm.safetensors").state_dict()
    for name in benchmark.LOSSES:
        other = load(benchmark.FOLDER / f"{name}.safetensors").state_dict()
        moved = max((other[k] - w).abs().max().item() for k, w in warm.items() if "encoder" in k)
        assert (moved > 0.05) == (name == "heavy_kl"), f"{name}: {moved}"
        assert any((other[k] - w).abs().max() > 0.05 for k, w in warm.items() if "decoder" in k)
