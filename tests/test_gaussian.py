"""The Gaussian head start against the textbook formula, with full matrices in float64."""

import pytest
import torch
from helpers import refuses

from ddpm_edu import (
    Cond,
    DataError,
    OptionError,
    Schedule,
    ScheduleError,
    ShapeError,
    class_cond,
    last,
    noise,
    sample,
)
from ddpm_edu.datasets.images import ImageDataset
from ddpm_edu.networks.gaussian import GaussianPrior


class Nothing(torch.nn.Module):
    """A network that adds nothing, and remembers what it was shown."""

    def forward(self, x, t, cond):
        self.seen = x
        return torch.zeros_like(x[:, :1])


def dataset(n=400, classes=2, size=4, seed=0):
    """Pictures of two classes with different means and strongly correlated pixels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    mix = torch.randn(classes, size * size, 3, generator=g) * 0.2
    x = torch.einsum(
        "nik,nk->ni", mix[labels], torch.randn(n, 3, generator=g)
    ) + 0.02 * torch.randn(n, size * size, generator=g)
    x = (x + (labels[:, None] - 0.5) * 0.4).clamp(-1, 1)
    return ImageDataset(x.view(n, 1, size, size), labels, classes)


SCHEDULE = Schedule.cosine(200)


def prior(parts=1, rank=3):
    return GaussianPrior.fit(Nothing(), SCHEDULE, dataset(), classes=2, parts=parts, rank=rank)


def moments(fitted, j):
    """Mean (16,) and full covariance (16, 16) of part j, float64."""
    basis, rest = fitted.basis[:, j].double(), fitted.rest[j].double()
    used = basis.square().sum(0) > 0.5
    basis = basis[:, used]
    return fitted.mean[j].double(), basis @ torch.diag(
        fitted.variance[j].double()[used] - rest
    ) @ basis.T + rest * torch.eye(16, dtype=torch.float64)


def test_one_part_is_probabilistic_pca():
    """Mean, and the largest eigenvalues of each class's covariance, against full decompositions."""
    data, fitted = dataset(), prior()
    assert fitted.weight.tolist() == [1, 1]
    for k in (0, 1):
        x = data[(data.labels == k).nonzero()[:, 0]][0].flatten(1).double()
        values = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0)
        torch.testing.assert_close(fitted.mean[k].double(), x.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(fitted.variance[k].double(), values[:3], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            fitted.rest[k].double(), values[3:].mean().clamp(min=1e-4), atol=1e-5, rtol=1e-2
        )


def test_parts_are_weighted_clusters():
    """Four parts a class: shares of the class, means that average to the class's, and less left
    over than with one."""
    data, one, four = dataset(), prior(), prior(parts=4)
    for k in (0, 1):
        own = slice(4 * k, 4 * k + 4)
        assert four.weight[own].sum().item() == pytest.approx(1) and (four.weight[own] > 0).all()
        torch.testing.assert_close(
            four.weight[own] @ four.mean[own], one.mean[k], atol=1e-5, rtol=0
        )
        x = data[(data.labels == k).nonzero()[:, 0]][0].flatten(1)
        assert (
            torch.cdist(x, four.mean[own]).amin(1).square().mean()
            < 0.8 * torch.cdist(x, one.mean[[k]]).square().mean()
        )


@pytest.mark.parametrize("t", [0, 20, 100, 150])
@pytest.mark.parametrize("label", [0, 1, -1])
@pytest.mark.parametrize("parts", [1, 3])
def test_x0_hat_is_the_conditional_mean(parts, label, t):
    """E[x_0|x_t] of the mixture by Bayes over its parts, densities and means with full 16 x 16
    matrices in float64."""
    fitted = prior(parts)
    own = range(2 * parts) if label < 0 else range(parts * label, parts * label + parts)
    s, n = SCHEDULE.alpha_bar[t].sqrt(), (1 - SCHEDULE.alpha_bar[t]).sqrt()
    g = torch.Generator().manual_seed(t)
    x_t = (s * dataset()[torch.arange(6)][0] + n * torch.randn(6, 1, 4, 4, generator=g)).float()
    logs, means = [], []
    for j in own:
        mean, cov = moments(fitted, j)
        seen = torch.distributions.MultivariateNormal(
            s * mean, s**2 * cov + n**2 * torch.eye(16, dtype=torch.float64)
        )
        logs.append(seen.log_prob(x_t.flatten(1).double()) + fitted.weight[j].double().log())
        away = (x_t.flatten(1).double() - s * mean).T
        means.append(mean + (s * cov @ torch.linalg.solve(seen.covariance_matrix, away)).T)
    want = (torch.stack(logs, 1).softmax(1)[..., None] * torch.stack(means, 1)).sum(1)
    times, cond = torch.full((6,), t), class_cond(torch.full((6,), label), 2)
    got = fitted.x0_hat(x_t, times, cond)[0].flatten(1).double()
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)
    v = fitted(x_t, times, cond)  # with a network that adds nothing, v is the mixture's own
    x_0, _ = SCHEDULE.split(x_t, v, times, "v")
    torch.testing.assert_close(x_0.flatten(1).double(), want, atol=5e-4, rtol=1e-3)
    assert torch.equal(fitted.model.seen[:, :1], x_t) and fitted.model.seen.shape == (6, 2, 4, 4)


def test_a_batch_of_all_classes_is_each_picture_alone():
    """First, second, none and both in one batch, in a prior that was loaded, not fitted."""
    fitted = prior(parts=3)
    loaded = GaussianPrior(Nothing(), SCHEDULE, (1, 4, 4), classes=2, parts=3, rank=3)
    loaded.load_state_dict(fitted.state_dict())
    x, t = noise((1, 4, 4), range(8)), torch.arange(8) * 20
    cond = Cond(vector=torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1]]).repeat(2, 1))
    together = loaded.x0_hat(x, t, cond)[0]
    for i in range(8):
        alone = fitted.x0_hat(x[i : i + 1], t[i : i + 1], Cond(vector=cond.vector[i : i + 1]))[0]
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=1e-5)
    any_class = loaded.x0_hat(x, t, Cond(vector=torch.ones(8, 2)))[0]
    torch.testing.assert_close(
        together[[2, 3, 6, 7]], any_class[[2, 3, 6, 7]], atol=1e-6, rtol=1e-5
    )
    assert (together[4:6] - any_class[4:6]).abs().max() > 1e-3


def test_a_schedule_that_ends_in_pure_noise():
    """There x_t says nothing: x0_hat is the class's mean, v = s eps - n x_0 its negative."""
    schedule = SCHEDULE.zero_terminal_snr()
    fitted = GaussianPrior.fit(Nothing(), schedule, dataset(), classes=2, parts=1, rank=3)
    x, cond = noise((1, 4, 4), range(4)), class_cond([0, 1, 0, 1], 2)
    for t in (197, 198, 198.5):
        assert fitted(x, torch.full((4,), t), cond).isfinite().all()
    v = fitted(x, torch.full((4,), 199), cond)
    torch.testing.assert_close(v, -fitted.mean[[0, 1, 0, 1]].view(4, 1, 4, 4), rtol=0, atol=1e-5)


def test_samples_have_the_mean_and_covariance_of_the_class():
    """Drawn through the sampler, the mixture alone gives back its own moments: 4,000 samples, 4
    standard errors."""
    fitted, label = prior(parts=2), torch.ones(4000, dtype=torch.long)
    x = last(
        sample(
            fitted, SCHEDULE, noise((1, 4, 4), range(4000)), 100, class_cond(label, 2), predict="v"
        )
    ).flatten(1)
    (m, c), (m_, c_) = moments(fitted, 2), moments(fitted, 3)
    w, w_ = fitted.weight[2:].tolist()
    mean = w * m + w_ * m_
    variance = (w * (c.diag() + m**2) + w_ * (c_.diag() + m_**2) - mean**2).float()
    assert ((x.mean(0) - mean).abs() < 4 * (variance / 4000).sqrt() + 0.01).all()
    torch.testing.assert_close(x.var(0), variance, rtol=0.15, atol=0.004)


def test_a_part_without_pictures_does_no_harm():
    """Only two different pictures a class: k-means leaves parts empty, and the answer is still a
    mean of the two."""
    x = torch.cat([torch.full((20, 1, 4, 4), v) for v in (-0.8, 0.4, -0.2, 0.9)])
    data = ImageDataset(x, torch.arange(80) // 40, 2)
    fitted = GaussianPrior.fit(Nothing(), SCHEDULE, data, classes=2, parts=5, rank=3)
    assert (fitted.weight == 0).any()
    x_0 = fitted.x0_hat(x[::20], torch.full((4,), 10), class_cond(torch.tensor([0, 0, 1, 1]), 2))[0]
    assert x_0.isfinite().all() and (x_0 - x[::20]).abs().max() < 0.1


def test_fit_repeats_and_leaves_the_global_seed_alone():
    torch.manual_seed(5)
    a = prior(parts=2)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert all(
        torch.equal(v, w)
        for v, w in zip(a.state_dict().values(), prior(parts=2).state_dict().values())
    )


@pytest.mark.parametrize("t", [[-1.0, 0], [200.0, 0], [float("nan"), 0], [3.0]], ids=str)
def test_times_that_are_none(t):
    with refuses(ScheduleError, "t = ", "from 0 to 199"):
        prior().x0_hat(
            noise((1, 4, 4), range(2)), torch.tensor(t), class_cond(torch.tensor([0, 1]), 2)
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_classes_that_are_none(value):
    with refuses(DataError, "cond.vector", "one-hot"):
        prior().x0_hat(
            noise((1, 4, 4), range(2)),
            torch.zeros(2),
            Cond(vector=torch.tensor([[1, 0], [0, value]])),
        )


def test_bad_input():
    with refuses(DataError, "class 0", "200 pictures", "rank"):
        prior(rank=16)
    with refuses(DataError, "class 0", "parts = 201"):
        prior(parts=201)
    for wrong in (0, -1, True, 2.5):
        with refuses(OptionError, "parts", "whole number"):
            prior(parts=wrong)
    fitted = prior()
    with refuses(ShapeError, "x_t", "GaussianPrior"):
        fitted(
            torch.zeros(2, 1, 5, 5), torch.zeros(2), class_cond(torch.zeros(2, dtype=torch.long), 2)
        )
    with refuses(ShapeError, "cond.vector"):
        fitted(
            torch.zeros(2, 1, 4, 4), torch.zeros(2), class_cond(torch.zeros(2, dtype=torch.long), 3)
        )


def test_mixed_precision_is_not_for_the_mixture():
    """In bfloat16 the distances to the means would be 0.4 % off, and their differences wrong."""
    fitted, x, cond = prior(), noise((1, 4, 4), range(4)), class_cond(torch.tensor([0, 1, 1, 0]), 2)
    t = torch.full((4,), 60)
    plain = fitted(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fitted(x, t, cond), plain)
