"""Wrong answers of notebook 03 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers


def right_distance(g, d):
    total = 0.0
    for k in range(d // 2):
        total += 4 * math.sin(g * 10000 ** (-2 * k / d) / 2) ** 2  # 2 - 2 cos x = 4 sin^2(x / 2)
    return total


def right_parameters(c_in, c_out, emb):
    norm1, conv1, time = 2 * c_in, 3 * 3 * c_in * c_out + c_out, emb * c_out + c_out
    norm2, conv2 = 2 * c_out, 3 * 3 * c_out * c_out + c_out
    return norm1 + conv1 + time + norm2 + conv2 + (0 if c_in == c_out else c_in * c_out + c_out)


def right_channels(channels, mult, blocks):
    widths = [channels * m for m in mult]
    stack = [channels]
    for above, width in zip([None] + widths, widths):
        if above:
            stack.append(above)
        stack.extend([width] * blocks)
    data, answer = widths[-1], []
    for width in widths[::-1]:
        for _ in range(blocks + 1):
            answer.append(data + stack.pop())
            data = width
    return answer


def right_attention(q, k, v):
    weights = torch.exp(torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[3]))
    return torch.einsum("bhij,bhjd->bhid", weights / weights.sum(3, keepdim=True), v)


RIGHT = {
    "03.1": right_distance,
    "03.2": right_parameters,
    "03.3": right_channels,
    "03.4": right_attention,
}


def factor_two_lost(g, d):
    return sum(1 - math.cos(10000 ** (-2 * k / d) * g) for k in range(d // 2))


def plus_instead_of_minus(g, d):
    return sum(2 * (1 + math.cos(10000 ** (-2 * k / d) * g)) for k in range(d // 2))


def speeds_too_fast(g, d):
    omega = torch.tensor([10000 ** (-k / d) for k in range(d // 2)], dtype=torch.float64)
    return (2 - 2 * torch.cos(omega * g)).sum().item()


def root_taken(g, d):
    return math.sqrt(right_distance(g, d))


def averaged(g, d):
    return (
        torch.tensor([2 - 2 * math.cos(10000 ** (-2 * k / d) * g) for k in range(d // 2)])
        .mean()
        .item()
    )


def norms_forgotten(c_in, c_out, emb):
    return (9 * c_in + 1 + 9 * c_out + 1 + emb + 1) * c_out + (c_in != c_out) * (c_in + 1) * c_out


def no_shortcut(c_in, c_out, emb):
    return 2 * (c_in + c_out) + (9 * c_in + 9 * c_out + emb + 3) * c_out


def always_a_shortcut(c_in, c_out, emb):
    return no_shortcut(c_in, c_out, emb) + (c_in + 1) * c_out


def time_forgotten(c_in, c_out, emb):
    return right_parameters(c_in, c_out, emb) - emb * c_out - c_out


def no_biases(c_in, c_out, emb):
    return (
        2 * c_in
        + 2 * c_out
        + c_out * (9 * c_in + 9 * c_out + emb)
        + (c_in * c_out if c_in != c_out else 0)
    )


def a_queue(channels, mult, blocks):
    queue, width = [channels], channels
    for level, m in enumerate(mult):
        if level > 0:
            queue.append(width)
        width = channels * m
        queue += blocks * [width]
    answer = []
    for m in mult[::-1]:
        for _ in range(blocks + 1):
            answer.append(width + queue[0])
            queue, width = queue[1:], channels * m
    return answer


def data_only(channels, mult, blocks):
    answer, data = [], channels * mult[-1]
    for m in mult[::-1]:
        for _ in range(blocks + 1):
            answer.append(data)
            data = channels * m
    return answer


def upside_down(channels, mult, blocks):
    return list(reversed(right_channels(channels, mult, blocks)))


def unscaled(q, k, v):
    return torch.softmax(torch.matmul(q, k.mT), dim=3) @ v


def divided_by_d(q, k, v):
    return torch.softmax(q @ k.mT / q.size(-1), dim=3) @ v


def softmax_over_askers(q, k, v):
    return torch.softmax(q @ k.mT / q.size(-1) ** 0.5, dim=2) @ v


def scores_as_weights(q, k, v):
    return (q @ k.mT / math.sqrt(q.size(-1))) @ v


WRONG = [
    ("03.1", factor_two_lost, "factor 2"),
    ("03.1", plus_instead_of_minus, "sign of the cosine"),
    ("03.1", speeds_too_fast, "half the length"),
    ("03.1", root_taken, "its square"),
    ("03.1", averaged, "mean over the clocks"),
    ("03.2", norms_forgotten, "norms are missing"),
    ("03.2", no_shortcut, "1x1 convolution of the shortcut is missing"),
    ("03.2", always_a_shortcut, "no 1x1 convolution when"),
    ("03.2", time_forgotten, "time is missing"),
    ("03.2", no_biases, "biases are missing"),
    ("03.3", a_queue, "first in, first out"),
    ("03.3", data_only, "data alone"),
    ("03.3", upside_down, "wrong order"),
    ("03.4", unscaled, "not divided"),
    ("03.4", divided_by_d, "the root, not by d"),
    ("03.4", softmax_over_askers, "wrong axis"),
    ("03.4", scores_as_weights, "softmax is missing"),
]

TestAnswers = answers(RIGHT, WRONG)
