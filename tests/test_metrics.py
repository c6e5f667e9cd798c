"""Metrics against closed forms, scipy and brute force; classifiers against real pictures."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from ddpm_edu.datasets import images as data
from ddpm_edu.datasets.points import gaussian_mixture
from ddpm_edu.errors import DataError, OptionError, ShapeError
from ddpm_edu.files.load import load
from ddpm_edu.files.tensors import load_tensors
from ddpm_edu.metrics import frechet as metrics
from ddpm_edu.metrics.frechet import frechet, frechet_distance


def random_gaussian(d, seed):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d + 3, generator=g, dtype=torch.float64)
    return torch.randn(d, generator=g, dtype=torch.float64), root @ root.T / d


# ---------------------------------------------------------------- Frechet distance


@pytest.mark.parametrize("d", [1, 2, 16, 64])
def test_frechet_against_scipy(d):
    (mu_a, cov_a), (mu_b, cov_b) = random_gaussian(d, 1), random_gaussian(d, 2)
    root = scipy.linalg.sqrtm(cov_a.numpy() @ cov_b.numpy())
    expected = ((mu_a - mu_b) ** 2).sum().item() + np.trace(
        cov_a.numpy() + cov_b.numpy() - 2 * root.real
    )
    assert frechet_distance(mu_a, cov_a, mu_b, cov_b) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_frechet_in_one_dimension():
    """Between N(m, s^2) and N(n, r^2): (m - n)^2 + (s - r)^2."""
    one = lambda z: torch.tensor([z])
    assert frechet_distance(one(1.0), one(4.0)[None], one(3.0), one(25.0)[None]) == pytest.approx(
        (1 - 3) ** 2 + (2 - 5) ** 2
    )


def test_frechet_between_diagonal_gaussians():
    s, r = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    mu = torch.zeros(3)
    assert frechet_distance(mu, (s**2).diag(), mu + 2, (r**2).diag()) == pytest.approx(
        3 * 4 + ((s - r) ** 2).sum().item(), rel=1e-6
    )


def test_frechet_properties():
    (mu_a, cov_a), (mu_b, cov_b) = random_gaussian(12, 3), random_gaussian(12, 4)
    distance = frechet_distance(mu_a, cov_a, mu_b, cov_b)
    assert frechet_distance(mu_b, cov_b, mu_a, cov_a) == pytest.approx(distance, rel=1e-9)
    assert 0 <= frechet_distance(mu_a, cov_a, mu_a, cov_a) < 1e-9
    q = torch.linalg.qr(
        torch.randn(12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ).Q
    rotate = lambda mu, cov: (q @ mu, q @ cov @ q.T)
    assert frechet_distance(*rotate(mu_a, cov_a), *rotate(mu_b, cov_b)) == pytest.approx(
        distance, rel=1e-9
    )
    assert frechet_distance(3 * mu_a, 9 * cov_a, 3 * mu_b, 9 * cov_b) == pytest.approx(
        9 * distance, rel=1e-9
    )


def test_frechet_of_samples_finds_the_distance_of_their_laws():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(100_000, 4, generator=g), torch.randn(100_000, 4, generator=g) * 2 + 1
    assert frechet(a, b) == pytest.approx(4 * 1 + 4 * 1, rel=0.02)
    assert frechet(a, a) < 1e-9
    mean, cov = metrics.moments(b)
    assert (
        np.allclose(cov.numpy(), np.cov(b.numpy().T.astype(np.float64)))
        and mean.dtype == torch.float64
    )


@pytest.mark.parametrize(
    "a, b, error, message",
    [
        (
            torch.randn(5, 8),
            torch.randn(50, 8),
            DataError,
            "of 5 pictures are too few: use at least 9",
        ),
        (torch.randn(0, 8), torch.randn(50, 8), DataError, "0 pictures are too few"),
        (torch.randn(50, 8), torch.full((50, 8), math.nan), DataError, "NaN"),
        (torch.randn(50, 8), torch.full((50, 8), math.inf), DataError, "infinity"),
        (torch.randn(50, 8), torch.randn(50, 7), ShapeError, r"pass \(D,\), \(D, D\)"),
        (torch.randn(50, 8, 1), torch.randn(50, 8), ShapeError, r"features .* \(N, D\)"),
    ],
)
def test_frechet_refuses(a, b, error, message):
    with pytest.raises(error, match=message):
        frechet(a, b)


def test_frechet_distance_refuses():
    mu, cov = torch.zeros(3), torch.eye(3)
    with pytest.raises(ShapeError):
        frechet_distance(mu, cov, mu, torch.eye(4))
    with pytest.raises(ShapeError):
        frechet_distance(mu, cov, mu[:1], cov)
    with pytest.raises(DataError, match="NaN"):
        frechet_distance(mu, cov, mu, cov * math.nan)


# ---------------------------------------------------------------- precision and recall


def brute_force(points, among, k):
    """Kynkaanniemi et al. 2019, eq. 1, pair by pair."""
    inside = 0
    for p in points:
        for j, a in enumerate(among):
            radius = sorted(math.dist(a, b) for i, b in enumerate(among) if i != j)[k - 1]
            if math.dist(p, a) <= radius:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_against_brute_force(k):
    g = torch.Generator().manual_seed(k)
    real = torch.randn(60, 3, generator=g, dtype=torch.float64)
    generated = 0.7 * torch.randn(45, 3, generator=g, dtype=torch.float64) + 1
    expected = brute_force(generated, real, k), brute_force(real, generated, k)
    assert metrics.precision_recall(real, generated, k) == pytest.approx(expected)
    assert metrics.precision_recall(generated, real, k) == pytest.approx(expected[::-1])
    assert 0.1 < expected[1] < expected[0] < 1


def test_precision_and_recall_tell_two_faults_apart():
    """Sharp but of one kind only: precision. All kinds, but noisy: recall."""
    data_of = lambda seed, n=2500: gaussian_mixture(n, seed=seed)
    real, one_kind = data_of(0), data_of(1)
    one_kind = one_kind[one_kind[:, 0] > 1]
    noisy = data_of(2) + 0.5 * torch.randn(2500, 2, generator=torch.Generator().manual_seed(0))
    precision, recall = metrics.precision_recall(real, data_of(3))
    assert min(precision, recall) > 0.95
    assert metrics.precision_recall(real, real) == (1, 1)
    precision, recall = metrics.precision_recall(real, one_kind)
    assert precision > 0.95 and recall < 0.4
    precision, recall = metrics.precision_recall(real, noisy)
    assert precision < 0.6 and recall > 0.9


@pytest.mark.parametrize(
    "real, generated, k, error, name",
    [
        (torch.randn(3, 2), torch.randn(9, 2), 3, DataError, "features of 3 pictures"),
        (torch.randn(9, 2), torch.randn(0, 2), 3, DataError, "features of 0 pictures"),
        (torch.randn(9, 2), torch.randn(9, 2) * math.nan, 3, DataError, "features"),
        (torch.randn(9, 2), torch.randn(9, 3), 3, ShapeError, "generated"),
        (torch.randn(9, 2), torch.randn(9), 3, ShapeError, "features"),
        (torch.randn(9, 2), torch.randn(9, 2), 0, OptionError, "k = 0"),
        (torch.randn(9, 2), torch.randn(9, 2), 1.5, OptionError, "k = 1.5"),
    ],
)
def test_precision_and_recall_refuse(real, generated, k, error, name):
    with pytest.raises(error, match=name):
        metrics.precision_recall(real, generated, k)


# ---------------------------------------------------------------- one picture against its copy


def test_psnr_of_known_errors():
    """Off by 0.2 everywhere, a tenth of the range: 20 dB. Off in a quarter of the numbers only: 10
    log10(4) dB more."""
    x = torch.zeros(3, 3, 4, 4, dtype=torch.float64)
    y = x.clone()
    y[0] += 0.2
    y[1, :, :2, :2] -= 0.2
    assert metrics.psnr(x, y).tolist() == pytest.approx([20, 20 + 10 * math.log10(4), math.inf])
    assert (
        metrics.psnr(torch.ones(1, 5), torch.full((1, 5), 7.0)).item() == math.inf
    )  # beyond the range is shown as its end
    for a, b in ((x, x[:1]), (x[0, 0, 0], x[0, 0, 0, :1]), (torch.zeros(4), torch.zeros(4))):
        with pytest.raises(ShapeError, match="pass the same"):
            metrics.psnr(a, b)


# ---------------------------------------------------------------- classifiers


@pytest.fixture(scope="module")
def classifier():
    return load("mnist_classifier")


@pytest.fixture(scope="module")
def digits():
    return data.mnist("test")


@pytest.fixture(scope="module")
def features_of_all(classifier, digits):
    return metrics.features(classifier, digits[:][0])


def test_shipped_mnist_classifier(classifier, digits):
    part = digits.subset(2000)
    x_0, _ = part[:]
    assert metrics.accuracy(classifier, x_0, part.labels) >= 0.99
    assert metrics.accuracy(classifier, x_0, (part.labels + 1) % 10) < 0.01
    assert metrics.features(classifier, x_0[:3]).shape == (3, 64)
    assert classifier(x_0[:3]).shape == (3, 10)


def test_shipped_statistics_are_those_of_the_real_pictures(classifier, features_of_all):
    mean, cov = metrics.moments(features_of_all)
    assert torch.allclose(mean, classifier.real_test.mean, rtol=1e-3, atol=1e-4)
    assert torch.allclose(
        cov, classifier.real_test.cov, rtol=1e-2, atol=1e-4 * cov.diag().max().item()
    )


def test_frechet_to_real_tells_good_from_bad(classifier, digits, features_of_all):
    x_0, _ = digits.per_class(100)[:]
    real = metrics.frechet_to_real(classifier, x_0)
    noisy = x_0 + 0.5 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    one_class, _ = digits.subset((digits.labels == 3).nonzero()[:1000, 0])[:]
    assert metrics.frechet_to_real(classifier, noisy.clamp(-1, 1)) > 3 * real
    assert metrics.frechet_to_real(classifier, one_class) > 10 * real
    assert metrics.frechet_to_real(classifier, x_0, split="test") == pytest.approx(
        frechet(metrics.features(classifier, x_0), features_of_all), rel=0.01
    )


def test_a_picture_is_classified_alone(classifier, digits):
    """Neither the batch around it nor training mode changes a score."""
    x_0, _ = digits[:8]
    alone = torch.cat([metrics.features(classifier, x_0[i : i + 1]) for i in range(8)])
    classifier.train()
    together = metrics.features(classifier, x_0)
    assert classifier.training
    classifier.eval()
    assert torch.allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda x: (x + 1) * 127.5, DataError, "run from 0 to 255.*pictures.0.: pass floats"),
        (lambda x: data.to_uint8(x), DataError, "type torch.uint8: .*from_uint8"),
        (lambda x: x * math.nan, DataError, "run from nan"),
        (lambda x: x[:0], DataError, "pictures: there are none"),
        (lambda x: x[:, 0], ShapeError, r"takes \(N, 1, H, W\)"),
        (lambda x: x.expand(-1, 3, -1, -1), ShapeError, r"takes \(N, 1, H, W\)"),
    ],
)
def test_the_classifier_refuses(classifier, digits, change, error, message):
    with pytest.raises(error, match=message):
        metrics.features(classifier, change(digits[:4][0]))


def test_pictures_in_0_1_are_warned_about(classifier, digits):
    x_0, _ = digits[:4]
    with pytest.warns(UserWarning, match="below 0: if in .0, 1. instead") as caught:
        metrics.accuracy(classifier, (x_0 + 1) / 2, digits.labels[:4])
    assert caught[0].filename == __file__


def test_options(classifier, digits):
    x_0, _ = digits[:100]
    with pytest.raises(OptionError, match="split = 'valid' is not known"):
        metrics.frechet_to_real(classifier, x_0, split="valid")
    with pytest.raises(ShapeError, match="100 pictures came with 99 labels"):
        metrics.accuracy(classifier, x_0, digits.labels[:99])


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_weights_are_small_and_carded(name):
    path = data.data_folder() / "weights" / f"{name}_classifier.safetensors.xz"
    assert path.stat().st_size <= 1.5e6
    card = (path.parent / f"{name}_classifier.md").read_text()
    for word in (
        "command",
        "seed",
        "time",
        "hardware",
        "versions",
        "test accuracy",
        "Licence",
        f"{path.stat().st_size:,}",
    ):
        assert word in card


def test_cifar10_classifier_loads_and_has_no_pictures():
    classifier = load("cifar10_classifier")
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert metrics.features(classifier, x).shape == (
        4,
        128,
    ) and classifier.real_train.cov.shape == (128, 128)
    state, _ = load_tensors(data.data_folder() / "weights" / "cifar10_classifier.safetensors.xz")
    assert all(
        t.numel() < 32 * 32 * 3 or name.endswith((".weight", ".cov")) for name, t in state.items()
    )
