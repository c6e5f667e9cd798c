"""Notebook 14: wrong answers as a student would write them."""

import torch
from common import answers

# ---------------------------------------------------------------- exercises


def least(kernels, peak, bandwidth):
    total = 0.0
    for work, moved in kernels:
        total += work / peak if work / moved > peak / bandwidth else moved / bandwidth
    return total


def qkv(x, W, heads):
    B, N, C = x.shape
    parts = torch.nn.functional.linear(x, W).split(C, dim=2)
    return tuple(p.view(B, N, heads, C // heads).transpose(1, 2) for p in parts)


def there_and_back(x):
    scale = 448 / x.abs().max(dim=1, keepdim=True).values
    return (x * scale).to(torch.float8_e4m3fn).to(torch.float32) / scale


def price(times, low, high, before):
    total = 0
    for t in times:
        passes = 1 + (low <= t <= high)
        total += passes * (7.29 if t < before else 6.76)
    return total


RIGHT = {"14.1": least, "14.2": qkv, "14.3": there_and_back, "14.4": price}


def whole_run_at_once(kernels, peak, bandwidth):
    F, M = map(sum, zip(*kernels))
    return max(F / peak, M / bandwidth)


def both_added(kernels, peak, bandwidth):
    return sum(a / peak for a, _ in kernels) + sum(b / bandwidth for _, b in kernels)


def only_flops(kernels, peak, bandwidth):
    return sum(k[0] for k in kernels) / peak


def heads_first(x, W, heads):
    B, N, C = x.shape
    y = (x @ W.T).view(B, N, heads, 3, C // heads)
    return tuple(y[:, :, :, i].transpose(1, 2) for i in range(3))


def blind_reshape(x, W, heads):
    B, N, C = x.shape
    q, k, v = (x @ W.T).split(C, -1)
    return q.reshape(B, heads, N, -1), k.reshape(B, heads, N, -1), v.reshape(B, heads, N, -1)


def heads_not_split(x, W, heads):
    return torch.nn.functional.linear(x, W).split(x.shape[-1], dim=-1)


def forgot_transpose(x, W, heads):
    B, N, C = x.shape
    return tuple(
        (x @ W[i * C : (i + 1) * C]).view(B, N, heads, -1).transpose(1, 2) for i in range(3)
    )


def one_scale(x):
    s = x.abs().max() / 448
    return (x / s).to(torch.float8_e4m3fn).float() * s


def stays_scaled(x):
    s = x.abs().amax(dim=-1, keepdim=True) / 448
    return (x / s).to(torch.float8_e4m3fn).float()


def only_to_one(x):
    s = x.abs().amax(dim=-1, keepdim=True)
    return (x / s).to(torch.float8_e4m3fn).float() * s


def swapped_networks(times, low, high, before):
    return sum((7.29 if t >= before else 6.76) * (2 if low <= t <= high else 1) for t in times)


def open_ends(times, low, high, before):
    return sum((6.76 if t >= before else 7.29) * (2 if low < t < high else 1) for t in times)


def always_guided(times, low, high, before):
    return sum(2 * (6.76 if t >= before else 7.29) for t in times)


def only_passes(times, low, high, before):
    return len(times) + sum(low <= t <= high for t in times)


WRONG = [
    ("14.1", whole_run_at_once, "maximum of the sums"),
    ("14.1", both_added, "not their sum"),
    ("14.1", only_flops, "arithmetic alone"),
    ("14.2", heads_first, "stacked the other way"),
    ("14.2", blind_reshape, "mixes pixels with heads"),
    ("14.2", heads_not_split, "split into heads"),
    ("14.2", forgot_transpose, "transpose is missing"),
    ("14.3", one_scale, "whole matrix"),
    ("14.3", stays_scaled, "still scaled"),
    ("14.3", only_to_one, "up to 448"),
    ("14.4", swapped_networks, "swapped"),
    ("14.4", open_ends, "ends of the interval"),
    ("14.4", always_guided, "one pass is enough"),
    ("14.4", only_passes, "Those are passes"),
]

TestAnswers = answers(RIGHT, WRONG)
