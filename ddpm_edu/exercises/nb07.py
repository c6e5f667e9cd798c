"""Exercises: latent diffusion. Notebook 07."""

import torch

from .check import Exercise


def _random(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------ 07.1  work on pixels against latents


def _times(conv=18, attention=4, points=lambda n: n * n):
    """An answer with these costs: conv C^2 N + attention C N^2, on N = points(n)."""

    def answer(n, f, C):
        work = lambda side: conv * C**2 * points(side) + attention * C * points(side) ** 2
        return work(n) / work(n / f)

    return answer


TIMES_CASES = [(32, 4, 64), (64, 8, 320), (512, 8, 320), (16, 2, 128)]


# ---------------------------------------------------------------- 07.2  the scale

RAW_CASES = [
    (
        2.5 * _random(1, 6, 4, 5, 5)
        + torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64).view(4, 1, 1),
    ),
    (0.2 * _random(2, 3, 8, 4, 4) + 0.3,),
]


# ---------------------------------------------------------------- 07.3  a training pair


def _encode(x):
    """Stands in for vae.encode: (mean, logvar), a quarter of the side, not of unit size, nor
    linear."""
    small = torch.nn.functional.avg_pool2d(x, 4)
    mean = torch.cat([3 * small, small[:, :1] ** 2], 1)
    return mean, mean - 4


def _pair(
    first=lambda encode, scale, x_0: scale * encode(x_0)[0],
    roots=lambda a: (a.sqrt(), (1 - a).sqrt()),
    target=lambda s, n, z_0, eps: s * eps - n * z_0,
):
    """An answer that may make z_0 otherwise, mix it otherwise, or ask for another target."""

    def answer(encode, scale, x_0, t, eps, alpha_bar):
        z_0 = first(encode, scale, x_0)
        s, n = roots(alpha_bar[t].view(-1, 1, 1, 1))
        return s * z_0 + n * eps, target(s, n, z_0, eps)

    return answer


def _noise_on_pixels(encode, scale, x_0, t, eps, alpha_bar):
    a = alpha_bar[t].view(-1, 1, 1, 1)
    noise = torch.nn.functional.interpolate(eps[:, : x_0.shape[1]], x_0.shape[2:])
    return scale * encode(a.sqrt() * x_0 + (1 - a).sqrt() * noise)[0], a.sqrt() * eps - (
        1 - a
    ).sqrt() * scale * encode(x_0)[0]


ALPHA_BAR = torch.linspace(0.99, 0.01, 10, dtype=torch.float64)
PAIR_CASES = [
    (
        _encode,
        0.4,
        _random(3, 3, 3, 16, 16),
        torch.tensor([0, 4, 9]),
        _random(4, 3, 4, 4, 4),
        ALPHA_BAR,
    ),
    (_encode, 1.7, _random(5, 2, 3, 8, 8), torch.tensor([7, 2]), _random(6, 2, 4, 2, 2), ALPHA_BAR),
]


# ---------------------------------------------------------------- 07.4  a step's picture


def _decode(z):
    """Stands in for vae.decode: twice the side, three channels, not linear."""
    return torch.tanh(
        torch.nn.functional.interpolate(z[:, :3], scale_factor=2) + 0.1 * z[:, 3:].mean()
    )


def _preview(
    hat=lambda z, v, a: a**0.5 * z - (1 - a) ** 0.5 * v, unscale=lambda z, scale: z / scale
):
    return lambda z_t, v, a, decode, scale: decode(unscale(hat(z_t, v, a), scale))


PREVIEW_CASES = [
    (_random(7, 2, 4, 4, 4), _random(8, 2, 4, 4, 4), 0.7, _decode, 0.5),
    (_random(9, 1, 4, 3, 3), _random(10, 1, 4, 3, 3), 0.1, _decode, 0.18215),
]

EXERCISES = {
    "07.1": Exercise(
        reference=_times(),
        cases=TIMES_CASES,
        mistakes=[
            (
                _times(attention=0),
                "That is the convolution alone: f squared. Add the attention's 4 C n^4 to both "
                "sides.",
            ),
            (
                _times(conv=0),
                "That is the attention alone: f to the fourth. Add the convolution's 18 C^2 n^2 "
                "to both sides.",
            ),
            (
                lambda n, f, C: f**2 + f**4,
                "Ratios cannot be added. Add the work of both layers first, then divide.",
            ),
            (
                _times(points=lambda n: n),
                "A grid of side n has n * n points: the convolution grows with n^2, the "
                "attention with n^4.",
            ),
            (
                _times(conv=9),
                "The convolution's multiply-adds count 2 each, as the attention's do: 2 * 9 * "
                "C^2 * n^2.",
            ),
            (
                _times(conv=2),
                "Each output of a 3x3 convolution sums 9 C products: the 9 is missing.",
            ),
            (
                lambda n, f, C: 1 / _times()(n, f, C),
                "Upside down: divide the work on pixels by the work on latents.",
            ),
        ],
        right="Between f^2 and f^4, and the nearer to f^4 the larger the picture.",
    ),
    "07.2": Exercise(
        reference=lambda raw: 1 / raw.std(),
        cases=RAW_CASES,
        mistakes=[
            (
                lambda raw: raw.std(),
                "That is the standard deviation itself; the scale divides by it: 1 / sigma.",
            ),
            (
                lambda raw: 1 / raw.var(),
                "One over the variance. Take the standard deviation, its square root.",
            ),
            (
                lambda raw: raw.square().mean() ** -0.5,
                "You took the root mean square, about 0. A standard deviation is taken about the "
                "mean.",
            ),
            (
                lambda raw: 1 / raw.std((0, 2, 3)),
                "One number for each channel; the scale is a single number for all of them.",
            ),
            (
                lambda raw: 1 / raw.std((0, 2, 3)).mean(),
                "The mean of the channels' own deviations leaves out that the channels have "
                "different means. Take all numbers together.",
            ),
            (
                lambda raw: 1 / raw.abs().max(),
                "One over the largest value: a single odd number would decide. Use the standard "
                "deviation.",
            ),
        ],
        right="One number, measured once, kept with the weights.",
    ),
    "07.3": Exercise(
        reference=_pair(),
        cases=PAIR_CASES,
        mistakes=[
            (
                _pair(lambda encode, scale, x_0: encode(x_0)[0]),
                "The scale is missing: z_0 = scale * mean.",
            ),
            (
                _pair(lambda encode, scale, x_0: encode(x_0)[0] / scale),
                "Divided by the scale: that is what the decoder does. Before the diffusion, "
                "multiply.",
            ),
            (
                _pair(roots=lambda a: (a, 1 - a)),
                "z_t needs square roots: sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps.",
            ),
            (
                _pair(target=lambda s, n, z_0, eps: s * z_0 - n * eps),
                "z_t is right; in v picture and noise are swapped: v = sqrt(alpha_bar_t) eps - "
                "sqrt(1 - alpha_bar_t) z_0.",
            ),
            (
                _pair(target=lambda s, n, z_0, eps: s * eps + n * z_0),
                "z_t is right; v has the wrong sign: the latent is subtracted.",
            ),
            (
                _pair(target=lambda s, n, z_0, eps: eps),
                "z_t is right, but the target is v here, not eps.",
            ),
            (
                _noise_on_pixels,
                "You put the noise on the pixels and encoded that. Encode first, then add noise "
                "to the latent.",
            ),
        ],
        right="The frozen encoder, its scale, and then Algorithm 1 as ever.",
    ),
    "07.4": Exercise(
        reference=_preview(),
        cases=PREVIEW_CASES,
        mistakes=[
            (
                _preview(unscale=lambda z, scale: z),
                "The scale is missing: decode wants z0_hat / scale.",
            ),
            (
                _preview(unscale=lambda z, scale: z * scale),
                "Multiplied by the scale: that is what the encoder's side does. Before decoding, "
                "divide.",
            ),
            (
                _preview(lambda z, v, a: z),
                "That decodes z_t with all its noise. First work out z0_hat from z_t and v.",
            ),
            (
                _preview(lambda z, v, a: a**0.5 * z + (1 - a) ** 0.5 * v),
                "A sign: z0_hat = sqrt(a) z_t - sqrt(1 - a) v.",
            ),
            (
                _preview(lambda z, v, a: a * z - (1 - a) * v),
                "Square roots are missing: z0_hat = sqrt(a) z_t - sqrt(1 - a) v.",
            ),
            (
                _preview(lambda z, v, a: (z - (1 - a) ** 0.5 * v) / a**0.5),
                "That formula is for a network that guesses eps. This one says v.",
            ),
            (
                _preview(lambda z, v, a: v),
                "That decodes v itself, which is no picture. Work out z0_hat from z_t and v.",
            ),
        ],
        right="With this line every step of any latent diffusion can be watched.",
    ),
}
