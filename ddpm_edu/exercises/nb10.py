"""Exercises: strength, blending, zero convolutions, inversion, two readings. Notebook 10."""

import torch

from .check import Exercise


def _numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ALPHA_BAR = torch.linspace(1.0, 0.0, 102)[1:-1].double() ** 2  # of T = 100 steps

# ---------------------------------------------------------------- 10.1  where the walk begins


def _begin(walked=lambda n, strength: int(n * strength), root=True, picture=1.0, rest=True):
    """An answer that may count the times otherwise, weigh wrongly or walk all of the times."""

    def answer(z_0, eps, times, alpha_bar, strength):
        left = times[len(times) - walked(len(times), strength) :]
        s, n = alpha_bar[left[0]] ** 0.5, (1 - alpha_bar[left[0]]) ** 0.5
        s, n = (s, n) if root else (s**2, n**2)
        s = picture if picture is None else s
        x = n * eps if picture == 0 else (z_0 if s is None else s * z_0) + n * eps
        return x, left if rest else times

    return answer


TIMES = [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]
BEGIN_CASES = [
    (_numbers(1, 2, 4, 3, 3), _numbers(2, 2, 4, 3, 3), TIMES, ALPHA_BAR, 0.3),
    (_numbers(3, 1, 2, 5, 4), _numbers(4, 1, 2, 5, 4), TIMES, ALPHA_BAR, 0.85),
    (_numbers(5, 1, 1, 2, 2), _numbers(6, 1, 1, 2, 2), TIMES[::2], ALPHA_BAR, 0.6),
]

# ---------------------------------------------------------------- 10.2  one step of inpainting


def _blend(new=lambda mask: mask, noisy=True, root=0.5, last=False, paste=False):
    """An answer that may swap the mask, forget the noise, or read alpha_bar[-1] as the start."""

    def answer(x, z_0, eps, mask, t, alpha_bar):
        bar = 1.0 if t < 0 and not last else alpha_bar[t]
        known = bar**root * z_0 + (1 - bar) ** root * eps if noisy else z_0
        return new(mask) * x * (not paste) + paste * x + (1 - new(mask)) * known

    return answer


def _blend_case(seed, t):
    x, z_0, eps = (_numbers(seed + k, 2, 4, 4, 5) for k in range(3))
    mask = (_numbers(seed + 3, 2, 1, 4, 5) > 0).float()
    return x, z_0, eps, mask, t, ALPHA_BAR


BLEND_CASES = [_blend_case(10, 60), _blend_case(20, 5), _blend_case(30, -1)]

# ---------------------------------------------------------------- 10.3  a zero convolution


def _added(bias=True, skip=1.0, transposed=False, inside=False):
    """An answer that may forget a part of the sum, or read the weight the wrong way round."""

    def answer(skip_, features, weight, bias_, strength):
        matrix = weight.T if transposed else weight
        seen = torch.einsum("oc,bchw->bohw", matrix, features)
        seen = seen + bias * bias_[:, None, None]
        return strength * (skip_ + seen) if inside else skip * skip_ + strength * seen

    return answer


def _control_case(seed, strength, blank=False):
    skip, features = _numbers(seed, 2, 3, 4, 4), _numbers(seed + 1, 2, 3, 4, 4)
    weight, bias = _numbers(seed + 2, 3, 3), _numbers(seed + 3, 3)
    return skip, features, weight * (not blank), bias * (not blank), strength


CONTROL_CASES = [
    _control_case(40, 0.7),
    _control_case(50, 1.5),
    _control_case(60, 1.0, blank=True),  # as training begins
]

# ---------------------------------------------------------------- 10.4  one step towards the noise


def _back(now=0, then=1, divide=True, root=0.5, scaled=True):
    """An answer that may swap the two times, or lose a root or a factor."""

    def answer(x, eps, bar, bar_next):
        a, b = (bar, bar_next)[now], (bar, bar_next)[then]
        x_0 = x - (1 - a) ** root * eps
        x_0 = x_0 / a**root if divide else x_0
        return (b**root if scaled else 1) * x_0 + (1 - b) ** root * eps

    return answer


BACK_CASES = [
    (_numbers(70, 2, 4, 3, 3), _numbers(71, 2, 4, 3, 3), 0.9, 0.6),
    (_numbers(72, 1, 1, 4, 4), _numbers(73, 1, 1, 4, 4), 0.5, 0.05),
]

# ---------------------------------------------------------------- 10.5  two readings


def _readings(view=True, back=lambda back, view: back, mean=0.5, both=True):
    """An answer that may forget a view, the way back, the mean or the second text."""

    def answer(model, x, cond_a, cond_b, view_, back_):
        seen = view_(x) if view else x
        second = model(seen, cond_b if both else cond_a)
        return mean * (model(x, cond_a) + back(back_, view_)(second))

    return answer


def _toy(x, cond):
    """A denoiser that is not the same upside down."""
    return (x.cumsum(-1) + 2 * x.cumsum(-2)).tanh() * cond


def _quarter(x):
    return x.rot90(1, (2, 3))


def _quarter_back(x):
    return x.rot90(-1, (2, 3))


def _shuffle(x):
    return x.flatten(2)[..., [3, 0, 8, 5, 1, 7, 2, 4, 6]].view_as(x)


def _shuffle_back(x):
    return x.flatten(2)[..., [1, 4, 6, 0, 7, 3, 8, 5, 2]].view_as(x)


READING_CASES = [
    (_toy, _numbers(80, 2, 1, 3, 3), 1.0, 3.0, _quarter, _quarter_back),
    (_toy, _numbers(81, 1, 2, 3, 3), -2.0, 0.5, _shuffle, _shuffle_back),
]

EXERCISES = {
    "10.1": Exercise(
        reference=_begin(),
        cases=BEGIN_CASES,
        mistakes=[
            (
                _begin(walked=lambda n, strength: n - int(n * strength)),
                "Your strength works backwards: 1 must walk all of the times, a small strength "
                "only the last few.",
            ),
            (
                _begin(rest=False),
                "x is right, but you return all of the times: it has the noise of times[k], so "
                "walk times[k:].",
            ),
            (
                _begin(root=False),
                "The weights are the square roots: sqrt(alpha_bar) for the picture, "
                "sqrt(1 - alpha_bar) for the noise.",
            ),
            (
                _begin(picture=None),
                "The picture keeps its full size in your sum: at time t only sqrt(alpha_bar_t) of "
                "it is left.",
            ),
            (
                _begin(picture=0),
                "The picture is missing: x is noise alone, and nothing of z_0 can come back.",
            ),
        ],
        right="The only new thing about image-to-image is where the walk begins.",
    ),
    "10.2": Exercise(
        reference=_blend(),
        cases=BLEND_CASES,
        mistakes=[
            (
                _blend(new=lambda mask: 1 - mask),
                "Inside and outside are swapped: where the mask is 1 the picture is painted anew.",
            ),
            (
                _blend(noisy=False),
                "You paste the clean latent: at time t the rest of x_t has noise, so the original "
                "needs the noise of t as well.",
            ),
            (
                _blend(root=1.0),
                "The weights are the square roots: sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t).",
            ),
            (
                _blend(last=True),
                "At t = -1 the picture is clean, alpha_bar = 1. Python reads alpha_bar[-1] as the "
                "LAST number, where nearly all is noise.",
            ),
            (
                _blend(paste=True),
                "Inside you are right; outside you added the original to x instead of putting it "
                "in x's place: multiply x by the mask.",
            ),
        ],
        right="Inside the new picture, outside the old one, both as noisy as t asks.",
    ),
    "10.3": Exercise(
        reference=_added(),
        cases=CONTROL_CASES,
        mistakes=[
            (_added(bias=False), "The bias is missing: one number a channel, added everywhere."),
            (
                _added(skip=0.0),
                "You replace the skip by what the ControlNet says. It is added to the skip: with "
                "zero weights the UNet must be what it was.",
            ),
            (
                _added(transposed=True),
                "The weight is (out, in): channel o of the output is the sum over c of "
                "weight[o, c] features[c].",
            ),
            (
                _added(inside=True),
                "The strength multiplies the skip too. It belongs to what is added alone: "
                "strength 0 is the plain UNet.",
            ),
        ],
        right="Weights of zero change nothing, and they still learn: their gradient is not zero.",
    ),
    "10.4": Exercise(
        reference=_back(),
        cases=BACK_CASES,
        mistakes=[
            (
                _back(now=1, then=0),
                "The two times are swapped: x has the noise of bar, and goes to bar_next.",
            ),
            (
                _back(divide=False),
                "x_0 = (x - sqrt(1 - bar) eps) / sqrt(bar): you left out the division.",
            ),
            (_back(root=1.0), "The weights are the square roots of bar and of 1 - bar."),
            (
                _back(scaled=False),
                "At the next time only sqrt(bar_next) of x_0 is left: multiply it.",
            ),
            (
                lambda x, eps, bar, bar_next: bar_next**0.5 * x + (1 - bar_next) ** 0.5 * eps,
                "You noised x as if it were clean: find x_0 first, then noise that.",
            ),
        ],
        right="DDIM's own step, with the two times the other way round.",
    ),
    "10.5": Exercise(
        reference=_readings(),
        cases=READING_CASES,
        mistakes=[
            (
                _readings(back=lambda back, view: lambda x: x),
                "The second prediction belongs to the turned picture: turn it back before the "
                "mean.",
            ),
            (
                _readings(back=lambda back, view: view),
                "You turned the prediction further instead of back. Only for flips and half turns "
                "are the two the same.",
            ),
            (_readings(view=False), "The model must see the turned picture: view(x), not x."),
            (_readings(mean=1.0), "Take the mean, not the sum: twice the noise would be removed."),
            (_readings(both=False), "Each reading has its own text: the second one is cond_b."),
        ],
        right="One picture, two questions, one answer that suits both.",
    ),
}
