"""Wrong answers of notebook 07 as a student would write them: each must be caught, with the hint that names the mistake."""

import torch
import torch.nn.functional as F
from common import answers


def layers(points, C):
    return 2 * 9 * C * C * points + 2 * (2 * points * points * C)


def cheaper(n, f, C):
    return layers(n**2, C) / layers((n / f) ** 2, C)


def pair(encode, scale, x_0, t, eps, alpha_bar):
    mean, _ = encode(x_0)
    signal = alpha_bar[t].sqrt()[:, None, None, None]
    noise = torch.sqrt(1 - signal**2)
    z_0 = mean * scale
    return noise * eps + signal * z_0, signal * eps - noise * z_0


def preview(z_t, v, a, decode, scale):
    signal = a**0.5
    return decode((signal * z_t - (1 - signal**2) ** 0.5 * v) * (1 / scale))


RIGHT = {
    "07.1": cheaper,
    "07.2": lambda raw: 1 / (raw - raw.mean()).square().sum().div(raw.numel() - 1).sqrt(),
    "07.3": pair,
    "07.4": preview,
}


def area_only(n, f, C):
    return f**2


def side_for_area(n, f, C):
    return layers(n, C) / layers(n / f, C)


def upside_down(n, f, C):
    return layers((n / f) ** 2, C) / layers(n**2, C)


def forgot_the_kernel(n, f, C):
    work = lambda side: 2 * C * C * side**2 + 4 * C * side**4
    return work(n) / work(n / f)


def one_a_channel(raw):
    return 1 / raw.transpose(0, 1).flatten(1).std(dim=1)


def unscaled(encode, scale, x_0, t, eps, alpha_bar):
    return pair(encode, 1.0, x_0, t, eps, alpha_bar)


def scaled_the_wrong_way(encode, scale, x_0, t, eps, alpha_bar):
    return pair(encode, 1 / scale, x_0, t, eps, alpha_bar)


def answers_eps(encode, scale, x_0, t, eps, alpha_bar):
    return pair(encode, scale, x_0, t, eps, alpha_bar)[0], eps


def noise_first(encode, scale, x_0, t, eps, alpha_bar):
    a = alpha_bar[t].reshape(-1, 1, 1, 1)
    grown = F.interpolate(eps[:, :3], size=x_0.shape[-2:], mode="nearest")
    noisy = a.sqrt() * x_0 + (1 - a).sqrt() * grown
    return scale * encode(noisy)[0], pair(encode, scale, x_0, t, eps, alpha_bar)[1]


def kept_both(encode, scale, x_0, t, eps, alpha_bar):
    return pair(lambda x: (torch.cat(encode(x), 1),) * 2, scale, x_0, t, eps, alpha_bar)


def forgot_the_scale(z_t, v, a, decode, scale):
    return preview(z_t, v, a, decode, 1)


def decoded_the_noise(z_t, v, a, decode, scale):
    return decode(z_t / scale)


def as_if_eps(z_t, v, a, decode, scale):
    return decode((z_t - (1 - a) ** 0.5 * v) / (a**0.5 * scale))


def times_the_scale(z_t, v, a, decode, scale):
    return preview(z_t, v, a, decode, 1 / scale)


WRONG = [
    ("07.1", area_only, "convolution alone"),
    ("07.1", lambda n, f, C: f**4, "attention alone"),
    ("07.1", side_for_area, "n * n points"),
    ("07.1", upside_down, "Upside down"),
    ("07.1", forgot_the_kernel, "the 9 is missing"),
    ("07.2", lambda raw: torch.std(raw), "itself"),
    ("07.2", lambda raw: raw.pow(2).mean().rsqrt(), "root mean square"),
    ("07.2", one_a_channel, "single number"),
    ("07.3", unscaled, "scale is missing"),
    ("07.3", scaled_the_wrong_way, "multiply"),
    ("07.3", answers_eps, "not eps"),
    ("07.3", noise_first, "Encode first"),
    ("07.3", kept_both, "stopped with"),
    ("07.4", forgot_the_scale, "scale is missing"),
    ("07.4", decoded_the_noise, "all its noise"),
    ("07.4", as_if_eps, "guesses eps"),
    ("07.4", times_the_scale, "divide"),
]

TestAnswers = answers(RIGHT, WRONG)
