"""Muon against the SVD it avoids, and its AdamW half against PyTorch's."""

import pytest
import torch
from torch import nn

from ddpm_edu.training.optim import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4)])
def test_orthogonal_keeps_directions_and_evens_lengths(shape):
    """U and V of the result are those of the input, every singular value ends near 1."""
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    inside = u.T @ orthogonal(g) @ v.T
    lengths = inside.diagonal()
    assert (inside - torch.diag(lengths)).abs().max() < 1e-8
    big = s / s.norm() > 0.02  # very small ones need more than five steps
    assert ((lengths[big] > 0.6) & (lengths[big] < 1.3)).all(), lengths


def test_a_stack_is_made_orthogonal_one_by_one():
    g = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonal(g), torch.stack([orthogonal(one) for one in g]))


def test_each_matrix_takes_its_own_step():
    """Two of one size and one of another: the step of each is what it would take alone."""
    nets = [
        nn.Sequential(
            nn.Linear(5, 7, bias=False), nn.Linear(7, 5, bias=False), nn.Linear(5, 7, bias=False)
        )
        for _ in range(2)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    together, alone = (
        Muon(nets[0], 1e-2, weight_decay=0.1),
        [Muon(layer, 1e-2, weight_decay=0.1) for layer in nets[1]],
    )
    for _ in range(3):
        for net, optimizers in zip(nets, ([together], alone)):
            net.zero_grad()
            net(torch.eye(5)).sin().sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        torch.testing.assert_close(a, b)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv_in, self.inner, self.conv_out = (
            nn.Conv2d(1, 6, 3),
            nn.Conv2d(6, 6, 3),
            nn.Conv2d(6, 1, 3),
        )

    def forward(self, x):
        return self.conv_out(self.inner(self.conv_in(x)).relu())


def test_only_inner_matrices_are_orthogonalized():
    net = Net()
    matrices, others = Muon(net, lr=1e-3).param_groups
    assert [p is net.inner.weight for p in matrices["params"]] == [True]
    assert len(others["params"]) == 5


def test_a_codebook_is_no_matrix():
    net = Net()
    net.codes = nn.Parameter(torch.zeros(4, 3))
    matrices, others = Muon(net, lr=1e-3).param_groups
    assert len(matrices["params"]) == 1 and any(p is net.codes for p in others["params"])


def test_the_rest_takes_the_steps_of_adamw():
    a, b = Net(), Net()
    names = [n for n, _ in a.named_parameters() if n != "inner.weight"]
    ours = Muon(a, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(
        [p for n, p in b.named_parameters() if n in names],
        lr=1e-2,
        betas=(0.9, 0.99),
        weight_decay=0.1,
    )
    x = torch.randn(4, 1, 9, 9)
    for _ in range(4):
        a.inner.weight.data.copy_(
            b.inner.weight
        )  # Muon's own weight is held, so that the gradients stay comparable
        for net, opt in ((a, ours), (b, theirs)):
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()
    for (n, p), (_, q) in zip(a.named_parameters(), b.named_parameters()):
        if n in names:
            torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4)


def test_step_size_of_a_matrix():
    """The first step is lr 0.2 sqrt(max(rows, columns)) times an almost orthogonal matrix: its entries have RMS about 0.2 lr."""
    net = Net()
    before = net.inner.weight.clone()
    optimizer = Muon(net, lr=1e-2)
    net(torch.randn(4, 1, 9, 9)).square().mean().backward()
    optimizer.step()
    rms = (net.inner.weight - before).square().mean().sqrt()
    assert 0.5 < rms / (0.2 * 1e-2) < 1.3
