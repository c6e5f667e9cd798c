"""Prior preservation: which pictures a batch holds, and what its loss then is."""

import pytest
import torch
from helpers import refuses
from test_train_lora import CONFIG, Pictures, sd  # noqa: F401 (a fixture)

from ddpm_edu import Cond, Schedule, loss
from ddpm_edu.errors import DataError, OptionError, ShapeError
from ddpm_edu.training.dreambooth import prior_pictures, with_prior
from ddpm_edu.training.latents import encode
from ddpm_edu.training.lora import train_lora


class Numbered:
    """Picture i is i everywhere, behind `first`; its condition says so, too."""

    def __init__(self, first, n, side=2):
        self.first, self.n, self.side = first, n, side

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        x_0 = (self.first + index.float()).view(-1, 1, 1, 1).expand(-1, 1, self.side, self.side)
        return x_0, Cond(vector=x_0[:, 0, 0, :1])

    def uncond(self, index):
        return Cond(vector=-(self.first + index.float())[:, None])


@pytest.mark.parametrize("batch", (1, 3, 8, 50))
@pytest.mark.parametrize("weight", (0, 0.3, 1, 2.5))
def test_the_share_of_the_prior_is_exact_on_average(weight, batch):
    data = with_prior(Numbered(0, 7), Numbered(100, 23), weight)
    generator = torch.Generator().manual_seed(0)
    orders = [data.order(batch, generator) for _ in range(30)]
    assert len({len(order) for order in orders}) == 1 and len(orders[0]) % batch == 0
    prior = torch.stack([(order >= 7).view(-1, batch).float().mean() for order in orders]).mean()
    assert abs(prior - weight / (1 + weight)) <= 1 / len(orders[0]) + 1e-6
    counts = torch.cat([order.view(-1, batch) for order in orders]).ge(7).sum(1)
    assert counts.max() - counts.min() <= 1  # every batch alike
    own = torch.cat([order[order < 7] for order in orders]).bincount(minlength=7)
    assert own.min() > 0 and own.max() <= own.min() + len(orders)  # each as often as the others
    assert not torch.equal(orders[0], orders[1]) or batch == 1 and weight == 0


def test_pictures_conditions_and_dropped_ones_stay_together():
    data = with_prior(Numbered(0, 7), Numbered(100, 23))
    index = torch.tensor([8, 0, 29, 3, 7])
    x_0, cond = data[index]
    assert x_0[:, 0, 0, 0].tolist() == [101, 0, 122, 3, 100]
    assert torch.equal(cond.vector[:, 0], x_0[:, 0, 0, 0])
    assert torch.equal(data.uncond(index).vector, -cond.vector) and cond.context is None


def test_the_loss_is_own_plus_weight_times_prior():
    """Mean over a batch of 8 with weight 3: a quarter of it L_own, three quarters L_prior."""
    data, schedule = with_prior(Numbered(0, 7), Numbered(100, 23), 3.0), Schedule.cosine()
    index = data.order(8, torch.Generator().manual_seed(1))[:8]
    model = lambda x, t, cond: cond.vector[:, :, None, None].expand(x.shape)
    how = dict(t=torch.full((8,), 300), eps=torch.ones(8, 1, 2, 2), predict="x_0")
    wrong = lambda x, t, cond: (
        model(x, t, cond) + torch.where(cond.vector < 50, 1.0, 2.0).view(-1, 1, 1, 1)
    )
    assert loss(model, schedule, *data[index], **how) == 0
    assert loss(wrong, schedule, *data[index], **how) == pytest.approx((1 + 3 * 4) / 4)


def test_refused():
    for weight in (-1, float("nan"), "1"):
        with refuses(OptionError, "weight"):
            with_prior(Numbered(0, 7), Numbered(0, 3), weight)
    with refuses(DataError, "and 0 of the prior"):
        with_prior(Numbered(0, 7), Numbered(0, 0))
    with refuses(ShapeError, "own", "prior"):
        with_prior(Numbered(0, 7), Numbered(0, 3, side=4))


def test_a_lora_learns_beside_pictures_that_the_system_drew(sd):  # noqa: F811
    drawn = prior_pictures(sd, ["a dog", "a fox"], 5, batch=2, steps=2, size=32)
    assert len(drawn) == 5 and drawn[[0, 1, 4]][1] == ["a dog", "a fox", "a dog"]
    again = prior_pictures(sd, ["a dog", "a fox"], 5, batch=5, steps=2, size=32)
    torch.testing.assert_close(drawn[:][0], again[:][0], atol=1 / 100, rtol=0)
    assert not torch.equal(drawn[0][0], drawn[2][0])  # another seed
    data = with_prior(encode(sd, Pictures()), encode(sd, drawn), 0.5)
    *_, step = train_lora(sd, data, CONFIG, 2)
    assert step.step == CONFIG.steps and any(w.abs().max() > 0 for w in step.ema.lora.parameters())
