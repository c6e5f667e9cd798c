"""The Gaussian head start against the textbook formula, worked out with full matrices in float64."""
import pytest
import torch
from helpers import refuses

from ddpm_edu import DataError, Schedule, ShapeError, class_cond, last, noise, sample
from ddpm_edu.data import ImageDataset
from ddpm_edu.gaussian import GaussianPrior


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
    x = torch.einsum("nik,nk->ni", mix[labels], torch.randn(n, 3, generator=g)) + 0.02 * torch.randn(n, size * size, generator=g)
    x = (x + (labels[:, None] - 0.5) * 0.4).clamp(-1, 1)
    return ImageDataset(x.view(n, 1, size, size), labels, classes)


SCHEDULE = Schedule.cosine(200)


def prior(rank=3):
    return GaussianPrior.fit(Nothing(), SCHEDULE, dataset(), classes=2, rank=rank)


def test_fit_is_probabilistic_pca():
    """Mean, and the largest eigenvalues of each class's covariance, against numpy-style full decompositions."""
    data, fitted = dataset(), prior()
    for k in (0, 1, 2):
        x = (data[torch.arange(len(data))][0] if k == 2 else data[(data.labels == k).nonzero()[:, 0]][0]).flatten(1).double()
        values = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0)
        torch.testing.assert_close(fitted.mean[k].double(), x.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(fitted.variance[k].double(), values[:3], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(fitted.rest[k].double(), values[3:].mean()[None].clamp(min=1e-4), atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("t", [0, 20, 100, 150])
@pytest.mark.parametrize("label", [0, 1, -1])
def test_x0_hat_is_the_conditional_mean(t, label):
    """E[x_0|x_t] = mean + s C (s^2 C + n^2 I)^-1 (x_t - s mean), by solving with the full 16 x 16 matrices."""
    fitted, k = prior(), label if label >= 0 else 2
    x_t = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(t))
    rest = fitted.rest[k].double()
    basis = fitted.basis[k].double()
    cov = basis @ torch.diag(fitted.variance[k].double() - rest) @ basis.T + rest * torch.eye(16, dtype=torch.float64)
    s, n = SCHEDULE.alpha_bar[t].sqrt(), (1 - SCHEDULE.alpha_bar[t]).sqrt()
    mean = fitted.mean[k].double()
    away = (x_t.flatten(1).double() - s * mean).T
    want = mean + (s * cov @ torch.linalg.solve(s ** 2 * cov + n ** 2 * torch.eye(16, dtype=torch.float64), away)).T
    times, cond = torch.full((5,), t), class_cond(torch.full((5,), label), 2)
    got = fitted.x0_hat(x_t, times, cond)[0].flatten(1).double()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    v = fitted(x_t, times, cond)  # with a network that adds nothing, v is the Gaussian's own
    x_0, _ = SCHEDULE.split(x_t, v, times, "v")
    torch.testing.assert_close(x_0.flatten(1).double(), want, atol=2e-4, rtol=1e-3)
    assert torch.equal(fitted.model.seen[:, :1], x_t) and fitted.model.seen.shape == (5, 2, 4, 4)


def test_samples_have_the_mean_and_covariance_of_the_class():
    """Drawn through the sampler, the Gaussian alone gives back its own moments: 4,000 samples, 4 standard errors."""
    fitted = prior()
    x = last(sample(fitted, SCHEDULE, noise((1, 4, 4), range(4000)), 100, class_cond(torch.ones(4000, dtype=torch.long), 2), predict="v")).flatten(1)
    variance = (fitted.basis[1] ** 2) @ fitted.variance[1] + fitted.rest[1] * (1 - (fitted.basis[1] ** 2).sum(1))
    assert ((x.mean(0) - fitted.mean[1]).abs() < 4 * (variance / 4000).sqrt() + 0.01).all()
    torch.testing.assert_close(x.var(0), variance, rtol=0.15, atol=0.004)


def test_fit_repeats_and_leaves_the_global_seed_alone():
    torch.manual_seed(5)
    a = prior()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), prior().state_dict().values()))


def test_bad_input():
    with refuses(DataError, "class 0", "200 pictures", "rank"):
        prior(rank=16)
    fitted = prior()
    with refuses(ShapeError, "x_t", "GaussianPrior", "cond.vector"):
        fitted(torch.zeros(2, 1, 5, 5), torch.zeros(2), class_cond(torch.zeros(2, dtype=torch.long), 2))
    with refuses(ShapeError, "cond.vector"):
        fitted(torch.zeros(2, 1, 4, 4), torch.zeros(2), class_cond(torch.zeros(2, dtype=torch.long), 3))
