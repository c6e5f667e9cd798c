"""vae_loss.py: each loss against closed forms, whose weights each one moves, feature networks against their own layers, short trainings."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import refuses
from torch import nn

from ddpm_edu import DataError, OptionError, ShapeError
from ddpm_edu.files.load import load
from ddpm_edu.networks.classifier import Classifier, ClassifierConfig
from ddpm_edu.networks.vae import VAE, VAEConfig, kl
from ddpm_edu.training.autoencoder import (
    Autoencoder,
    LossWeights,
    PatchDiscriminator,
    VectorQuantizer,
    classifier_features,
    measure_scale,
    objective,
    perceptual,
    with_scale,
)
from ddpm_edu.training.optim import Muon

TINY = VAEConfig(channels=8, mult=(1, 2), blocks=1, latent=4, groups=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=2, size=16, seed=0):
    """Smooth ones, in [-1, 1]."""
    small = torch.rand(n, 3, 4, 4, generator=generator(seed)) * 2 - 1
    return F.interpolate(small, size=(size, size), mode="bilinear")


def autoencoder(seed=0, **options):
    torch.manual_seed(seed)
    return Autoencoder(VAE(TINY), **options)


def toy_features(x):
    return [x, F.avg_pool2d(x, 2)]


# ---------------------------------------------------------------- weights and the sum


@pytest.mark.parametrize("name", ["mse", "l1", "perceptual", "kl", "adversarial", "codebook"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "1", None], ids=str)
def test_bad_weights(name, value):
    with refuses(OptionError, f"LossWeights.{name}", "pass a number from 0"):
        LossWeights(**{name: value})


@pytest.mark.parametrize(
    "options, words",
    [
        ({"weights": LossWeights(perceptual=1)}, ["perceptual = 1", "classifier_features"]),
        ({"weights": LossWeights(codebook=1)}, ["codes = 0", "both"]),
        ({"codes": 8}, ["codebook = 0", "both"]),
        ({"codes": -1}, ["codes = -1"]),
    ],
)
def test_weights_without_their_part(options, words):
    with refuses(OptionError, *words):
        autoencoder(**options)


def test_nothing_to_train_for():
    with refuses(OptionError, "every weight", "0"):
        LossWeights(mse=0, kl=0)


@pytest.mark.parametrize(
    "options, names",
    [
        ({}, {"mse", "kl"}),
        ({"weights": LossWeights(mse=0, l1=1, kl=0)}, {"l1"}),
        ({"weights": LossWeights(codebook=1), "codes": 8}, {"mse", "codebook", "commitment"}),
        (
            {"weights": LossWeights(perceptual=1, adversarial=1), "features": toy_features},
            {"mse", "kl", "perceptual", "adversarial", "discriminator"},
        ),
    ],
)
def test_only_what_is_switched_on(options, names):
    model = autoencoder(**options)
    assert set(model.terms(pictures(), generator())) == names
    assert (model.discriminator is None) == ("discriminator" not in names) and (
        model.codebook is None
    ) == ("codebook" not in names)


def test_features_switched_off_are_not_asked():
    def never(x):
        raise AssertionError("asked")

    autoencoder(features=never)(pictures())


def test_terms_and_their_sum():
    """Everything at once, from the formulas of the papers, with the noise that the generator gives."""
    w = LossWeights(mse=2.0, l1=3.0, perceptual=5.0, kl=7e-3, adversarial=0.5)
    model, x = autoencoder(weights=w, features=toy_features).double(), pictures().double()
    noise = torch.randn(2, 4, 8, 8, generator=generator(3), dtype=torch.float64)
    mean, logvar = model.vae.encode(x)
    y = model.vae.decode(mean + logvar.exp().sqrt() * noise)
    real, fake = model.discriminator(x), model.discriminator(y)
    want = {
        "mse": ((x - y) ** 2).mean(),
        "l1": (x - y).abs().mean(),
        "kl": kl(mean, logvar).sum() / 2,
        "adversarial": -fake.mean(),
        "discriminator": (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean(),
        "perceptual": perceptual(toy_features, x, y),
    }
    terms = model.terms(x, generator(3))
    assert terms.keys() == want.keys()
    for name, value in want.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-9), name
    total = (
        2 * want["mse"]
        + 3 * want["l1"]
        + 5 * want["perceptual"]
        + 7e-3 * want["kl"]
        + 0.5 * want["adversarial"]
        + want["discriminator"]
    )
    assert objective(model, (x, ["caption"] * 2), generator(3)).item() == pytest.approx(
        total.item(), rel=1e-9
    )


def test_without_a_generator_there_is_no_noise():
    model, x = autoencoder(), pictures()
    assert torch.equal(model.reconstruct(x)[0], model.vae.decode(model.vae.encode(x)[0]))
    assert not torch.equal(model.reconstruct(x, generator())[0], model.reconstruct(x)[0])


@pytest.mark.parametrize("as_module", [False, True])
def test_features_are_neither_trained_nor_saved_nor_copied(as_module):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return [self.conv(x)]

        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    net = Net()
    model = autoencoder(
        weights=LossWeights(perceptual=1), features=net if as_module else lambda x: net(x)
    )
    assert all(name.startswith("vae.") for name, _ in model.named_parameters()) and all(
        k.startswith("vae.") for k in model.state_dict()
    )
    assert copy.deepcopy(model)(pictures()).isfinite()


# ---------------------------------------------------------------- who moves whom


def moved(model, value):
    """The parts of the model that this loss has a gradient for."""
    names, parameters = zip(*model.named_parameters())
    grads = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return {
        name.split(".")[0] for name, g in zip(names, grads) if g is not None and g.abs().sum() > 0
    }


def test_adversaries_do_not_touch_each_other():
    model = autoencoder(weights=LossWeights(adversarial=1.0))
    terms = model.terms(pictures(), generator())
    assert {name: moved(model, value) for name, value in terms.items()} == {
        "mse": {"vae"},
        "kl": {"vae"},
        "adversarial": {"vae"},
        "discriminator": {"discriminator"},
    }


def test_who_moves_the_codebook():
    model = autoencoder(weights=LossWeights(codebook=1.0), codes=8)
    terms = model.terms(pictures(), generator())
    assert {name: moved(model, value) for name, value in terms.items()} == {
        "mse": {"vae"},
        "codebook": {"codebook"},
        "commitment": {"vae"},
    }


def test_the_discriminator_learns_to_tell_noise_from_smooth():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8)
    optimizer, noise = torch.optim.AdamW(discriminator.parameters(), 3e-3), generator()
    for i in range(40):
        x, y = pictures(4, seed=100 + i), torch.randn(4, 3, 16, 16, generator=noise)
        value = F.relu(1 - discriminator(x)).mean() + F.relu(1 + discriminator(y)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert (
        discriminator(pictures(2, seed=8)).mean()
        > 0
        > discriminator(torch.randn(2, 3, 16, 16, generator=generator(8))).mean()
    )


def test_what_one_logit_sees():
    """22 x 22 pixels through the convolutions; with GroupNorm the whole picture, and never another picture."""
    torch.manual_seed(0)
    discriminator, x = PatchDiscriminator(width=8), torch.randn(2, 3, 64, 64, requires_grad=True)
    logits = discriminator(x)
    assert logits.shape == (2, 1, 8, 8) and discriminator(torch.randn(1, 3, 19, 8)).shape == (
        1,
        1,
        2,
        1,
    )
    (seen,) = torch.autograd.grad(logits[0, 0, 4, 4], x)
    assert seen[0].abs().sum(0).count_nonzero() == 64 * 64 and not seen[1].any()
    discriminator.norm1 = discriminator.norm2 = nn.Identity()
    (seen,) = torch.autograd.grad(discriminator(x)[0, 0, 4, 4], x)
    rows, columns = seen[0].abs().sum(0).nonzero().T
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == [25, 46, 25, 46] and len(
        rows
    ) == 22 * 22


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 7, 16)], ids=str)
def test_the_discriminator_refuses(shape):
    with refuses(ShapeError, "discriminator takes", "at least 8"):
        PatchDiscriminator()(torch.zeros(shape))
    with refuses(OptionError, "width = 12", "groups"):
        PatchDiscriminator(width=12)


# ---------------------------------------------------------------- the codebook


def test_nearest_codes_and_eq_3():
    torch.manual_seed(0)
    vq, z = (
        VectorQuantizer(7, 3).double(),
        torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True),
    )
    q = vq(z)
    nearest = ((z[:, None] - vq.codes.view(1, 7, 3, 1, 1)) ** 2).sum(2).argmin(1)
    assert torch.equal(q.indices, nearest) and q.indices.unique().numel() > 3
    e = vq.lookup(q.indices)
    assert torch.equal(e[1, :, 2, 3], vq.codes[q.indices[1, 2, 3]]) and torch.allclose(q.z, e)
    squared = ((z - e) ** 2).mean().item()
    assert q.codebook.item() == pytest.approx(squared) and q.commitment.item() == pytest.approx(
        0.25 * squared
    )
    (through,) = torch.autograd.grad((q.z * torch.arange(5.0)).sum(), z, retain_graph=True)
    assert torch.equal(through, torch.arange(5.0, dtype=torch.float64).expand(2, 3, 4, 5))
    (pull,) = torch.autograd.grad(q.commitment, z, retain_graph=True)
    assert torch.allclose(pull, 0.25 * 2 * (z - e) / z.numel())


def test_perplexity():
    vq = VectorQuantizer(8, 2)
    assert vq.perplexity(torch.full((1, 3, 3), 5)) == pytest.approx(1)
    assert vq.perplexity(torch.arange(8).view(1, 2, 4)) == pytest.approx(8)
    assert vq.perplexity(torch.tensor([[[0, 0, 0, 1]]])) == pytest.approx(
        math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    )
    assert (
        vq.perplexity(vq(torch.randn(4, 2, 16, 16, generator=generator())).indices) > 3
    )  # N(0, I) uses its codes


def test_codes_start_at_z_and_dead_ones_start_again():
    torch.manual_seed(0)
    vq, rows = (
        VectorQuantizer(8, 2, patience=3),
        lambda z: {tuple(row) for row in z.movedim(1, -1).flatten(0, 2).tolist()},
    )
    first, second = (0.01 * torch.randn(2, 2, 4, 4, generator=generator(k)) + k for k in (1, 2))
    before = vq.codes.clone()
    vq(first)  # without a generator nothing is learned
    vq.eval()(first, generator())  # nor in use
    assert torch.equal(vq.codes, before)
    used = vq.train()(first, generator()).indices.unique()
    assert set(map(tuple, vq.codes.tolist())) <= rows(first) and 1 < len(used)
    vq.load_state_dict(copy.deepcopy(vq.state_dict()))  # the state knows that they have started
    vq(second, generator())
    assert set(map(tuple, vq.codes.tolist())) <= rows(first)
    with torch.no_grad():
        vq.codes[0] = 2.0  # all of `second` falls to this one
    for _ in range(4):
        vq(second, generator())
    assert set(map(tuple, vq.codes[1:].tolist())) <= rows(second) and vq.codes[0].tolist() == [2, 2]


def test_the_codebook_refuses():
    vq = VectorQuantizer(8, 2)
    for indices, error, words in (
        (torch.tensor([[[8]]]), OptionError, "0 to 7"),
        (torch.tensor([[[-1]]]), OptionError, "-1 to -1"),
        (torch.zeros(1, 2, 2), ShapeError, "whole numbers"),
        (torch.tensor([1]), ShapeError, "B, h, w"),
    ):
        with refuses(error, words):
            vq.lookup(indices)
    with refuses(ShapeError, r"\(B, 2, h, w\)"):
        vq(torch.zeros(1, 3, 4, 4))
    with refuses(OptionError, "codes"):
        VectorQuantizer(0, 2)


# ---------------------------------------------------------------- features


def test_perceptual_is_the_mean_of_squared_distances_of_directions():
    """Two channels, angles known: |u - v|^2 = 2 - 2 cos(angle), whatever the lengths."""
    turned = lambda angle: torch.tensor([math.cos(angle), math.sin(angle)]).view(1, 2, 1, 1)
    x, y = torch.cat([3 * turned(0), turned(1)], 3), torch.cat([turned(0.5), 9 * turned(1)], 3)
    one = lambda z: [z]
    want = (2 - 2 * math.cos(0.5)) / 2  # the second pixel's directions agree
    assert perceptual(one, x, y).item() == pytest.approx(want, rel=1e-5)
    assert perceptual(lambda z: [z, z[..., :1]], x, y).item() == pytest.approx(
        (want + 2 * want) / 2, rel=1e-5
    )
    assert perceptual(one, x, 5 * x).item() == pytest.approx(0, abs=1e-6) and perceptual(
        one, x, -x
    ).item() == pytest.approx(4, rel=1e-5)
    with refuses(ShapeError, "same"):
        perceptual(one, x, y[..., :1])


def test_classifier_features_are_its_layers():
    classifier, x = load("cifar10_classifier"), pictures(2, 20)
    seen = []
    for layer in (classifier.stem, *classifier.blocks):
        layer.register_forward_hook(lambda layer, x, y: seen.append(y))
    classifier(x)
    maps = classifier_features()(x)
    assert len(maps) == 4 and all(torch.equal(a, b) for a, b in zip(maps, seen, strict=True))
    assert [m.shape[1:] for m in maps] == [(32, 20, 20), (32, 10, 10), (64, 5, 5), (128, 2, 2)]


def test_features_of_another_classifier():
    classifier = Classifier(ClassifierConfig(1, widths=(4, 4)))
    features = classifier_features(classifier)
    x = torch.rand(1, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(features(x)[-1].sum(), x)[0].any()
    assert (
        classifier.training
        and next(classifier.parameters()).requires_grad
        and next(classifier.parameters()).dtype == torch.float32
    )  # its own copy
    for shape in ((1, 3, 8, 8), (1, 1, 3, 8), (1, 8, 8)):
        with refuses(ShapeError, "at least 4"):
            features(torch.zeros(shape))


def test_classifier_features_order_pictures_by_damage():
    x, features = pictures(4, 32), classifier_features()
    noise = torch.randn(x.shape, generator=generator())
    near, far = perceptual(features, x, x + 0.05 * noise), perceptual(features, x, x + 0.3 * noise)
    assert 0 < near < far < 4 and perceptual(features, x, x) == 0


# ---------------------------------------------------------------- the scale


class Pairs:
    """x and captions, as the datasets of the course give them; it remembers what was asked for."""

    def __init__(self, x):
        self.x, self.asked = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.asked += index.tolist()
        return self.x[index], ["caption"] * len(index)


def test_scaled_latents_have_standard_deviation_1():
    vae, data = autoencoder().vae, Pairs(pictures(10))
    scale = measure_scale(vae, data, batch_size=3)
    assert data.asked == list(range(10))
    assert with_scale(vae, scale) is vae and vae.config == VAEConfig(
        channels=8, mult=(1, 2), blocks=1, latent=4, groups=4, scale=scale
    )
    assert vae.to_latent(data.x).std().item() == pytest.approx(1, rel=1e-4)
    data.asked = []
    measure_scale(vae, data, n=4)
    assert data.asked == [0, 3, 6, 9]


def test_scale_refuses():
    vae = autoencoder().vae
    with refuses(DataError, "empty"):
        measure_scale(vae, Pairs(pictures(4)[:0]))
    nn.init.zeros_(vae.quant.weight)
    with refuses(DataError, "standard deviation 0", "train it first"):
        nn.init.zeros_(vae.quant.bias)
        measure_scale(vae, Pairs(pictures(4)))
    for n, scale in ((0, 1.0), (1, 0.0)):
        with refuses(OptionError):
            measure_scale(vae, Pairs(pictures(4)), n=n) if n == 0 else with_scale(vae, scale)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    "options, factor",
    [
        ({}, 1.6),
        ({"weights": LossWeights(adversarial=0.05)}, 1.1),
        ({"weights": LossWeights(codebook=1.0), "codes": 32}, 1.4),
    ],
    ids=["plain", "adversarial", "codebook"],
)
def test_a_short_training_lowers_the_error(options, factor):
    """The error on pictures never seen falls by `factor` in 40 updates, and a codebook uses most of its 32 codes (perplexity above 10).

    Measured with three seeds: 2.0 to 3.0 plain, 1.15 to 1.5 adversarial, 1.75 to 2.2 and a perplexity of 19 to 22 with the codebook.
    """
    model, noise, held = autoencoder(**options), generator(1), pictures(8, seed=1)
    error = lambda: (model.reconstruct(held)[0] - held).square().mean().item()
    optimizer, before = Muon(model, 1e-2), error()
    for i in range(40):
        value = objective(model, (pictures(8, seed=100 + i), None), noise)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
    assert error() < before / factor
    if model.codebook is not None:
        assert model.codebook.perplexity(model.codebook(model.vae.encode(held)[0]).indices) > 10
