"""The MLP for points: shapes, what it depends on, and that it can learn."""

import pytest
import torch
from helpers import gaussian_eps, refuses

from ddpm_edu import Cond, Schedule, ShapeError, loss
from ddpm_edu.networks.mlp import MLP


@pytest.mark.parametrize(
    "dim, hidden, layers, vector", [(2, 128, 3, 0), (1, 32, 1, 0), (3, 33, 0, 4), (2, 16, 2, 10)]
)
def test_shapes_and_gradients(dim, hidden, layers, vector):
    torch.manual_seed(0)
    model = MLP(dim, hidden, layers, vector)
    out = model(
        torch.randn(7, dim),
        torch.arange(7),
        Cond(vector=torch.randn(7, vector)) if vector else Cond(),
    )
    assert out.shape == (7, dim)
    out.square().sum().backward()
    live = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    unused = {
        n for n, _ in model.named_parameters() if layers == 0 and n.startswith(("time", "vector"))
    }  # no layer to enter
    assert live == {n for n, _ in model.named_parameters()} - unused


@torch.no_grad()
def test_every_input_matters_and_rows_do_not_mix():
    torch.manual_seed(0)
    model, x, t, vector = (
        MLP(vector=3),
        torch.randn(4, 2),
        torch.tensor([0.0, 1, 500, 999]),
        torch.zeros(4, 3),
    )
    base = model(x, t, Cond(vector=vector))
    for moved in (
        model(x + 0.1, t, Cond(vector=vector)),
        model(x, t + 0.5, Cond(vector=vector)),
        model(x, t, Cond(vector=vector + 1)),
    ):
        assert ((moved - base).abs().amax(1) > 1e-4).all()
    torch.testing.assert_close(
        torch.cat(
            [model(x[i : i + 1], t[i : i + 1], Cond(vector=vector[i : i + 1])) for i in range(4)]
        ),
        base,
    )


def test_it_learns_the_exact_answer():
    """Data N(0.5, 0.3^2): after 400 steps the mean squared distance from the exact eps is under a
    tenth of what it was."""
    torch.manual_seed(0)
    schedule, model = Schedule.linear(100, 1e-3, 0.1), MLP(dim=1, hidden=32, layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x_T, exact = torch.randn(200, 1), gaussian_eps(schedule, 0.5, 0.3)

    def distance():
        with torch.no_grad():
            return sum(
                ((model(x_T, torch.full((200,), t)) - exact(x_T, torch.tensor([t]), None)) ** 2)
                .mean()
                .item()
                for t in (30.0, 60.0, 99.0)
            )

    before = distance()
    for _ in range(400):
        optimizer.zero_grad()
        loss(model, schedule, 0.5 + 0.3 * torch.randn(128, 1)).backward()
        optimizer.step()
    assert distance() < before / 10


@pytest.mark.parametrize(
    "x, t, vector, name",
    [
        ((4, 3), (4,), (4, 5), "x_t"),
        ((4,), (4,), (4, 5), "x_t"),
        ((4, 2), (1,), (4, 5), "^t "),
        ((4, 2), (4, 1), (4, 5), "^t "),
        ((4, 2), (4,), (4, 4), "cond.vector"),
        ((4, 2), (4,), (1, 5), "cond.vector"),
        ((4, 2), (4,), None, "cond.vector"),
    ],
)
def test_wrong_shapes(x, t, vector, name):
    with refuses(ShapeError, name):
        MLP(vector=5)(torch.zeros(x), torch.zeros(t), Cond(vector=vector and torch.zeros(vector)))
