"""Wrong answers of notebook 09 as a student would write them: each must be caught, with the hint that names the mistake."""

import torch
import torch.nn.functional as F
from common import answers


def drop_in_a_loop(context, empty, u, p):
    return torch.stack(
        [empty[0] if chance < p else row for row, chance in zip(context, u.tolist())]
    )


RIGHT = {
    "09.1": lambda z, c, W_Q, W_K, W_V: F.scaled_dot_product_attention(
        (z @ W_Q)[None], (c @ W_K)[None], (c @ W_V)[None]
    )[0],
    "09.2": lambda x, W, bias: (
        F.linear(x, W.T, bias)[:, : len(bias) // 2]
        * F.gelu(F.linear(x, W.T, bias)[:, len(bias) // 2 :])
    ),
    "09.3": drop_in_a_loop,
    "09.4": lambda A, places, h, w: sum(A[:, :, j] for j in places).sum(0).view(h, w) / len(A),
}


def forgot_the_root(z, c, W_Q, W_K, W_V):
    return torch.softmax(torch.einsum("nd,ld->nl", z @ W_Q, c @ W_K), dim=-1) @ (c @ W_V)


def divided_by_d(z, c, W_Q, W_K, W_V):
    Q, K = z @ W_Q, c @ W_K
    return torch.softmax(Q @ K.T / Q.shape[-1], dim=-1) @ (c @ W_V)


def softmax_over_the_places(z, c, W_Q, W_K, W_V):
    Q, K = z @ W_Q, c @ W_K
    A = torch.exp(Q @ K.T / Q.shape[1] ** 0.5)
    return A / A.sum(dim=0) @ (c @ W_V)


def the_text_asks(z, c, W_Q, W_K, W_V):
    return F.scaled_dot_product_attention((c @ W_Q)[None], (z @ W_K)[None], (z @ W_V)[None])[0]


def self_attention(z, c, W_Q, W_K, W_V):
    return F.scaled_dot_product_attention((z @ W_Q)[None], (z @ W_K)[None], (z @ W_V)[None])[0]


def returned_the_map(z, c, W_Q, W_K, W_V):
    return F.softmax((z @ W_Q) @ (c @ W_K).T / W_K.shape[1] ** 0.5, dim=1)


def gated_by_the_first_half(x, W, bias):
    h = x @ W + bias
    m = h.shape[1] // 2
    return F.gelu(h[:, :m]) * h[:, m:]


def plain_glu(x, W, bias):
    return F.glu(x @ W + bias, dim=1)


def no_gate(x, W, bias):
    a, b = torch.split(x @ W + bias, W.shape[1] // 2, dim=1)
    return a * b


def did_not_split(x, W, bias):
    h = x @ W + bias
    return h * F.gelu(h)


def dropped_to_zeros(context, empty, u, p):
    out = context.clone()
    out[u < p] = 0
    return out


def kept_the_wrong_ones(context, empty, u, p):
    out = context.clone()
    out[u >= p] = empty
    return out


def one_coin_for_all(context, empty, u, p):
    return empty.repeat(len(context), 1, 1) if u[0] < p else context


def wrote_into_the_context(context, empty, u, p):
    context[u < p] = empty
    return context


def mean_of_tokens(A, places, h, w):
    return A.mean(0)[:, places].mean(-1).view(h, w)


def sum_of_heads(A, places, h, w):
    return A.sum(0)[:, places].sum(-1).view(h, w)


def column_by_column(A, places, h, w):
    return A.mean(0)[:, places].sum(-1).view(w, h).transpose(0, 1)


def flat(A, places, h, w):
    return A.mean(0)[:, places].sum(-1)


WRONG = [
    ("09.1", forgot_the_root, "root of d"),
    ("09.1", divided_by_d, "not by d itself"),
    ("09.1", softmax_over_the_places, "rows of A sum to 1"),
    ("09.1", the_text_asks, "wrong way round"),
    ("09.1", self_attention, "self-attention"),
    ("09.1", returned_the_map, "A V"),
    ("09.2", gated_by_the_first_half, "swapped"),
    ("09.2", plain_glu, "sigmoid"),
    ("09.2", no_gate, "no gate"),
    ("09.2", did_not_split, "shape"),
    ("09.3", dropped_to_zeros, "empty prompt"),
    ("09.3", kept_the_wrong_ones, "wrong way round"),
    ("09.3", one_coin_for_all, "whole batch"),
    ("09.3", wrote_into_the_context, "changes its inputs"),
    ("09.4", mean_of_tokens, "add up"),
    ("09.4", sum_of_heads, "mean over the heads"),
    ("09.4", column_by_column, "row by row"),
    ("09.4", flat, "shape"),
]

TestAnswers = answers(RIGHT, WRONG)
