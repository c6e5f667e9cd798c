"""v, Muon, t from the middle, a cosine schedule; DPM-Solver++(2M) draws. Notebook 18."""

import torch

from ddpm_edu import SAMPLERS, Schedule, class_cond, last, loss
from ddpm_edu.training.optim import EMA, Muon, lr_at

SCHEDULE = Schedule.cosine()


def train(net, data, clock):
    optimizer, average, step = Muon(net, lr=2e-2), EMA(net, 0.99), 0
    while clock.done() < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, clock.done(), 2e-2, warmup=50)
        x_0, cond = data[torch.randint(len(data), (32,))]
        t = (SCHEDULE.T * (0.3 + torch.randn(32)).sigmoid()).long()  # most often in the middle
        value = loss(net, SCHEDULE, x_0, cond, t=t, predict="v")
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        average.update(net, step)
    print(f"{step} updates, last loss {value.item():.4f}")
    return average.model


def sample(net, x_T, labels, evaluations):
    how = dict(predict="v", clip=1.0)
    cond = class_cond(labels)
    return last(SAMPLERS["dpmpp_2m"](net, SCHEDULE, x_T, evaluations, cond, **how))
