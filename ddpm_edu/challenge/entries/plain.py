"""DDPM without a trick: eps, AdamW, uniform t, linear schedule; DDIM draws. Notebook 18."""

import torch

from ddpm_edu import Schedule, class_cond, last, loss
from ddpm_edu import sample as ddim
from ddpm_edu.training.optim import EMA, lr_at

SCHEDULE = Schedule.linear()


def train(net, data, clock):
    optimizer, average, step = torch.optim.AdamW(net.parameters(), lr=2e-3), EMA(net, 0.99), 0
    while clock.done() < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, clock.done(), 2e-3, warmup=50)
        x_0, cond = data[torch.randint(len(data), (32,))]
        value = loss(net, SCHEDULE, x_0, cond, predict="eps")  # Algorithm 1
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        step += 1
        average.update(net, step)
    print(f"{step} updates, last loss {value.item():.4f}")
    return average.model


def sample(net, x_T, labels, evaluations):
    cond = class_cond(labels)
    return last(ddim(net, SCHEDULE, x_T, evaluations, cond, predict="eps", clip=1.0))
