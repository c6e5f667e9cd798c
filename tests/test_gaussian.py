"""The Gaussian head start against matrix algebra in float64, and Muon's orthogonal step against the SVD."""
import pytest
import torch
from helpers import refuses
from torch import nn

from ddpm_edu import Cond, DataError, Schedule, ShapeError
from ddpm_edu.checkpoint import load_pretrained, save_pretrained
from ddpm_edu.gaussian import GaussianPrior
from ddpm_edu.muon import Muon, orthogonal
from ddpm_edu.unet import UNet, UNetConfig

SCHEDULE, SHAPE, RANK = Schedule.cosine(100), (1, 4, 4), 3


class Blobs:
    """Two classes with three main directions each and a little noise in all others."""

    def __init__(self, n=2000):
        g = torch.Generator().manual_seed(0)
        self.labels = torch.arange(n) % 2
        directions, sizes = torch.randn(2, 3, 16, generator=g), torch.tensor([2.0, 1.0, 0.5])
        self.x = (torch.randn(2, 16, generator=g)[self.labels] + torch.einsum("nk,nkd->nd", torch.randn(n, 3, generator=g) * sizes, directions[self.labels])
                  + 0.1 * torch.randn(n, 16, generator=g)).view(n, *SHAPE)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], None


class Nothing(nn.Module):
    """An inner model that adds nothing, and remembers what it was shown."""

    def forward(self, x, t, cond):
        self.seen = x
        return torch.zeros_like(x[:, :1])


def fitted():
    return GaussianPrior.fit(Nothing(), SCHEDULE, Blobs(), classes=2, rank=RANK)


def test_the_fit_is_probabilistic_pca():
    """Mean, the three largest variances and the mean of the other thirteen, by an exact eigendecomposition."""
    prior, data = fitted(), Blobs()
    for k, x in enumerate([data.x[data.labels == 0], data.x[data.labels == 1], data.x]):
        x = x.flatten(1).double()
        values = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x)).flip(0)
        torch.testing.assert_close(prior.mean[k].double(), x.mean(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(prior.variance[k].double(), values[:RANK], rtol=1e-3, atol=1e-5)
        assert prior.rest[k].item() == pytest.approx(values[RANK:].mean().item(), rel=1e-3)
        torch.testing.assert_close(prior.basis[k].T @ prior.basis[k], torch.eye(RANK), rtol=0, atol=1e-5)


@pytest.mark.parametrize("t", [0, 30, 62.25, 99])
def test_v_of_the_exact_denoiser(t):
    """Per class, and as a whole for rows of zeros: x_0 = m + s C (s^2 C + n^2 I)^-1 (x_t - s m), inverted in float64."""
    prior = fitted()
    x_t, vector = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    v = prior(x_t, torch.full((3,), float(t)), Cond(vector=vector))
    s, n = SCHEDULE.alpha_bar_at(t) ** 0.5, (1 - SCHEDULE.alpha_bar_at(t)) ** 0.5
    for k in range(3):
        basis, mean = prior.basis[k].double(), prior.mean[k].double()
        c = basis @ (prior.variance[k].double() - prior.rest[k].double()).diag() @ basis.T + prior.rest[k].double() * torch.eye(16, dtype=torch.float64)
        x = x_t[k].flatten().double()
        x_0 = mean + s * c @ torch.linalg.solve(s * s * c + n * n * torch.eye(16, dtype=torch.float64), x - s * mean)
        torch.testing.assert_close(v[k].flatten().double(), s * (x - s * x_0) / n - n * x_0, rtol=0, atol=2e-3)
        torch.testing.assert_close(prior.model.seen[k].flatten().double(), torch.cat([x, x_0]), rtol=0, atol=1e-4)


def test_it_travels_in_a_file(tmp_path):
    torch.manual_seed(0)
    unet = UNet(UNetConfig(in_channels=2, out_channels=1, channels=8, mult=(1,), depth=(0,), middle=0, heads=(1,), vector=2, blocks=1, groups=4))
    prior = GaussianPrior.fit(unet, SCHEDULE, Blobs(), classes=2, rank=RANK).eval()
    save_pretrained(tmp_path / "p.safetensors", prior, SCHEDULE, "v")
    back = load_pretrained(tmp_path / "p.safetensors").model
    args = torch.randn(2, *SHAPE), torch.tensor([5, 80]), Cond(vector=torch.eye(2))
    with torch.no_grad():
        assert torch.equal(back(*args), prior(*args))


def test_bad_input():
    for rank in (0, 16, 5000):
        with refuses(DataError, "rank = ", "below both"):
            GaussianPrior.fit(Nothing(), SCHEDULE, Blobs(), classes=2, rank=rank)
    with refuses(DataError, "class 2 has 0 pictures"):
        GaussianPrior.fit(Nothing(), SCHEDULE, Blobs(), classes=3, rank=2)
    prior = fitted()
    for x, vector in ((torch.zeros(2, 1, 4, 5), torch.zeros(2, 2)), (torch.zeros(2, *SHAPE), torch.zeros(2, 3)), (torch.zeros(2, *SHAPE), None)):
        with refuses(ShapeError, r"B, 1, 4, 4", r"B, 2", "zeros for no class"):
            prior(x, torch.zeros(2), Cond(vector=vector))


# ---------------------------------------------------------------- Muon

@pytest.mark.parametrize("rows, columns", [(20, 20), (8, 50), (50, 8), (1, 30)])
def test_orthogonal_brings_every_singular_value_near_one(rows, columns):
    """Singular values spread over a factor of 20 come out between 0.65 and 1.25, in the same directions."""
    u, _, vt = torch.linalg.svd(torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)), full_matrices=False)
    out = orthogonal(u * torch.logspace(0, -1.3, len(vt)) @ vt)
    new = torch.linalg.svdvals(out)
    assert 0.65 < new.min() and new.max() < 1.25
    inside = u.T @ out @ vt.T
    assert (inside - inside.diag().diag()).abs().max() < 1e-3


def test_vectors_and_edge_layers_take_adam_steps():
    """Against torch's own AdamW, three steps; the inner matrix moves with entries of mean square about (0.2 lr)^2."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_in, self.inner = nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.inner(self.conv_in(x).tanh())
    torch.manual_seed(0)
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    a, b = Muon(ours, lr=1e-2, weight_decay=0.1), torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for i in range(3):
        x, before = torch.randn(8, 4), ours.inner.weight.clone()
        a.zero_grad()
        (ours(x) ** 2).mean().backward()
        for p, q in zip(ours.parameters(), theirs.parameters()):
            q.grad = p.grad.clone()
        a.step(), b.step()
        for name in ("conv_in.weight", "conv_in.bias", "inner.bias"):
            torch.testing.assert_close(ours.get_parameter(name), theirs.get_parameter(name), rtol=0, atol=1e-6)
        moved = ours.inner.weight - before * (1 - 1e-3)
        assert 0.1e-2 < moved.square().mean().sqrt().item() < 0.3e-2
