"""What several test files share: fixtures, exact denoisers, error checks. Nothing here comes from the code under test
except the schedule's numbers, which test_schedule.py holds against other sources."""

import gzip
import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FIXTURES = Path(__file__).parent / "fixtures"
torch.set_num_threads(1)  # small work: threads only wait for each other


def read_json(name):
    path = FIXTURES / name
    return json.loads(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text()
    )


def read_tensors(name):
    return load_file(FIXTURES / name)


@contextmanager
def refuses(error, *words):
    """The block must raise exactly this error, and its message must hold each of these words (as regular expressions)."""
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error, f"{type(caught.value).__name__} instead of {error.__name__}"
    message = str(caught.value)
    missing = [w for w in words if not re.search(w, message, re.IGNORECASE)]
    assert not missing, f"{missing} not in: {message}"


def gaussian_eps(schedule, mean, std):
    """The exact E[eps | x_t] for data N(mean, std^2 I): x_t ~ N(s mean, s^2 std^2 + n^2), jointly normal with eps.
    Like samplers do, it takes one time for the whole batch."""

    def model(x_t, t, cond):
        ab = schedule.alpha_bar_at(t[0].item())
        return (1 - ab) ** 0.5 * (x_t - ab**0.5 * mean) / (ab * std**2 + 1 - ab)

    return model


def mixture_eps(schedule, means, weights, std):
    """The exact E[eps | x_t] for a mixture of round Gaussians, as the truth files define it (sigma coordinates)."""

    def model(x_t, t, cond):
        sigma = schedule.sigma_at(t[0].item())
        x = x_t * (1 + sigma**2) ** 0.5
        v = std**2 + sigma**2
        r = (weights.log() - ((x[:, None] - means) ** 2).sum(-1) / (2 * v)).softmax(-1)
        x_0 = (r[..., None] * (std**2 * x[:, None] + sigma**2 * means) / v).sum(1)
        return (x - x_0) / sigma

    return model


def in_turn(noises):
    """A `generator` that hands out these tensors one after the other."""
    noises = iter(noises)
    return lambda x: next(noises)


def affine_map(sampler, schedule, timesteps, model, steps, skip=0, **options):
    """(offset, slope, noise variance) of the map from x_T to each x_prev, exact where the model is affine in x.

    One batch row starts at 0, one at 1, and one a step at 0 with a single unit of noise in that step
    (the first `skip` steps draw none).
    """
    x_T = torch.zeros(steps + 2, 1, dtype=torch.float64)
    x_T[1] = 1
    unit = torch.eye(steps + 2, dtype=torch.float64)[2:, :, None]
    x = torch.cat(
        [
            s.x_prev
            for s in sampler(
                model, schedule, x_T, timesteps, generator=in_turn(unit[skip:]), **options
            )
        ],
        dim=1,
    )
    return x[0], x[1] - x[0], ((x[2:] - x[0]) ** 2).sum(0)
