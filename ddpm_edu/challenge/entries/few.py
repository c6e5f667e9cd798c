"""Few steps: a teacher first, then a student learns where its paths end. Notebook 18.

At t = T, where x_T is pure noise, the best answer of least squares is the mean of all sevens: a
blur. So that one time is taught anew: from x_T to the end of the teacher's guided path. All other
times keep what they learned. One evaluation is that jump; more evaluations begin with it, go back
to a middle noise level, as consistency sampling does, and solve the rest.
"""

import copy

import torch

from ddpm_edu import SAMPLERS, Cond, Schedule, class_cond, guided, last
from ddpm_edu.training.optim import EMA, Muon, lr_at

SCHEDULE, HOW = Schedule.cosine(), dict(predict="x_0", clip=1.0)
LAST = SCHEDULE.T - 1
TEACHER, PATHS = 0.55, 0.75  # shares of the time: until then the teacher, then its paths
BACK = 0.55  # the noise level after the jump, a share of T


def train(net, data, clock):
    teacher = descend(net, lambda: denoising(data, 32), clock, 0, TEACHER, lr=2e-2)
    pairs = [torch.cat(parts) for parts in zip(*paths(teacher, clock))]
    print(f"{len(pairs[0])} paths")
    net.load_state_dict(teacher.state_dict())
    both = lambda: map(torch.cat, zip(jumps(pairs, 24), denoising(data, 16)))
    return descend(net, both, clock, PATHS, 1, lr=1e-2)


def descend(net, batch, clock, begin, end, lr):
    """Updates on |net(x_t, t) - x_0|^2 from one share of the time to another; the averaged net."""
    optimizer, average, step = Muon(net, lr=lr), EMA(net, 0.99), 0
    while (done := (clock.done() - begin) / (end - begin)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, done, lr, warmup=50)
        x_t, t, vector, x_0 = batch()
        value = (net(x_t, t, Cond(vector=vector)) - x_0).square().mean()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        average.update(net, step)
    print(f"{step} updates, last loss {value.item():.4f}")
    return average.model


def denoising(data, n):
    """x_t, t, class, x_0: Algorithm 1, some without their class, for guidance."""
    x_0, cond = data[torch.randint(len(data), (n,))]
    t = (SCHEDULE.T * torch.randn(n).sigmoid()).long()  # most often in the middle
    vector = cond.vector * (torch.rand(n, 1) > 0.1)
    return SCHEDULE.q_sample(x_0, t, torch.randn_like(x_0)), t, vector, x_0


def jumps(pairs, n):
    """The same for whole paths: x_T, T, class, where the path ends."""
    i = torch.randint(len(pairs[0]), (n,))
    x_T, x_0, vector = (part[i] for part in pairs)
    return x_T, torch.full((n,), LAST), vector, x_0


@torch.no_grad()
def paths(teacher, clock, n=100, steps=6, guidance=2.0):
    """(x_T, x_0, class) of the teacher's paths, as many as the time allows."""
    model, labels = guided(copy.deepcopy(teacher), guidance), torch.arange(n) % 10
    while clock.done() < PATHS:
        x_T, cond = torch.randn(n, 1, 28, 28), class_cond(labels)
        yield x_T, last(SAMPLERS["dpmpp_2m"](model, SCHEDULE, x_T, steps, cond, **HOW)), cond.vector


def sample(net, x_T, labels, evaluations):
    cond, rest = class_cond(labels), evaluations - 1
    x = net(x_T, torch.full((len(x_T),), LAST), cond).clamp(-1, 1)
    if not rest:
        return x
    times = [int(BACK * SCHEDULE.T * (1 - i / rest)) for i in range(rest)]
    x = SCHEDULE.q_sample(x, times[0], torch.randn_like(x))
    return last(SAMPLERS["dpmpp_2m"](net, SCHEDULE, x, times, cond, **HOW))
