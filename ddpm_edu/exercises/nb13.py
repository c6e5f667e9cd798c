"""Exercises: how SDXL was trained. Notebook 13."""

import torch

from ..datasets.buckets import buckets
from ..datasets.originals import excess
from ..schedule import Schedule
from .check import Exercise

# ---------------------------------------------------------------- 13.1  what resizing leaves over


def _excess(scale=max, swapped=False, part=lambda n: n):
    """An answer that may scale by the other side, swap the sides or crop to the middle."""

    def answer(original, target):
        shrink = scale(t / o for t, o in zip(target, original))
        over = [part(round(shrink * o) - t) for t, o in zip(target, original)]
        return tuple(over[::-1] if swapped else over)

    return answer


def _stretched(original, target):
    return tuple(t - t for t in target)


EXCESS_CASES = [
    ((48, 64), (32, 32)),
    ((20, 12), (32, 32)),
    ((96, 60), (28, 36)),
    ((512, 768), (1024, 1024)),
    ((64, 64), (32, 32)),
]

# ---------------------------------------------------------------- 13.2  the list of buckets


def _buckets(height=lambda area, w, step: area // (w * step) * step, both=True, limit=True):
    """An answer that may round otherwise, forget the wide ones or the limit of the aspect."""

    def answer(side, step, widest):
        tall = [(height(side * side, w, step), w) for w in range(step, side + 1, step)]
        tall = [(h, w) for h, w in tall if h <= widest * w or not limit]
        wide = [(w, h) for h, w in tall] if both else []
        return sorted({*tall, *wide}, reverse=True)

    return answer


def _all_below(side, step, widest):
    sides = range(step, side * side // step + 1, step)
    fits = [(h, w) for h in sides for w in sides if h * w <= side * side]
    return sorted((p for p in fits if max(p) <= widest * min(p)), reverse=True)


BUCKET_CASES = [(32, 4, 2.7), (1024, 64, 4), (64, 8, 2)]

# ---------------------------------------------------------------- 13.3  one bucket a batch


def _batches(whole=True, first_only=False):
    """An answer that may keep half-filled batches, or take one batch a bucket."""

    def answer(bucket, batch_size):
        out = []
        for k in sorted(set(bucket)):
            own = [i for i, b in enumerate(bucket) if b == k]
            rows = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
            rows = [row for row in rows if len(row) == batch_size] if whole else rows
            out += rows[:1] if first_only else rows
        return out

    return answer


def _in_a_row(bucket, batch_size):
    return [
        list(range(i, i + batch_size)) for i in range(0, len(bucket) - batch_size + 1, batch_size)
    ]


def _sorted_first(bucket, batch_size):
    order = sorted(range(len(bucket)), key=lambda i: bucket[i])
    return [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]


def _bucket_numbers(bucket, batch_size):
    return [[bucket[i] for i in row] for row in _batches()(bucket, batch_size)]


BATCH_CASES = [
    ([0, 1, 0, 2, 1, 0, 0, 1, 2, 0], 2),
    ([3, 3, 1, 1, 1, 3, 1, 3, 3, 1, 1], 3),
    ([5] * 7 + [2] * 4, 2),
]

# ---------------------------------------------------------------- 13.5  zero terminal SNR


def _rescaled(alpha_bar):
    return Schedule.from_alpha_bar(alpha_bar).zero_terminal_snr().alpha_bar


def _roots(alpha_bar):
    s = alpha_bar.sqrt()
    return (s - s[-1]) * s[0] / (s[0] - s[-1])


def _not_roots(alpha_bar):
    return (alpha_bar - alpha_bar[-1]) * alpha_bar[0] / (alpha_bar[0] - alpha_bar[-1])


def _shift_only(alpha_bar):
    return (alpha_bar.sqrt() - alpha_bar[-1].sqrt()) ** 2


def _to_one(alpha_bar):
    s = alpha_bar.sqrt()
    return ((s - s[-1]) / (s[0] - s[-1])) ** 2


def _last_only(alpha_bar):
    return torch.cat([alpha_bar[:-1], torch.zeros(1, dtype=alpha_bar.dtype)])


SNR_CASES = [(Schedule.sqrt_linear().alpha_bar,), (Schedule.linear(100, 1e-3, 0.05).alpha_bar,)]

# ---------------------------------------------------------------- 13.4  offset noise


def _offset(eps, shared, strength):
    return eps + strength * shared[:, :, None, None]


def _numbers(seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, 6, 5, generator=g), torch.randn(3, 4, generator=g)


OFFSET_CASES = [(*_numbers(1), 0.1), (*_numbers(2), 0.5), (*_numbers(3), 0.0)]

EXERCISES = {
    "13.1": Exercise(
        reference=excess,
        cases=EXCESS_CASES,
        tolerance=1e-12,
        mistakes=[
            (
                _excess(scale=min),
                "You made the original fit inside the target, which leaves an empty border. It "
                "must cover the target: take the larger of the two scales.",
            ),
            (
                lambda original, target: tuple(o - t for o, t in zip(original, target)),
                "You cropped without resizing first: scale the original so that it just covers "
                "the target, then count what hangs over.",
            ),
            (
                _excess(swapped=True),
                "Rows and columns are swapped: everything here is (vertical, horizontal).",
            ),
            (
                _excess(part=lambda n: n // 2),
                "That is the crop to the middle. Asked is all that hangs over, the largest crop.",
            ),
            (
                _stretched,
                "You stretched each side by its own scale: nothing hangs over then, but the "
                "picture is distorted. Use one scale for both sides.",
            ),
        ],
        right="One of the two is always 0: a picture that just covers its target hangs over on "
        "one side only.",
    ),
    "13.2": Exercise(
        reference=buckets,
        cases=BUCKET_CASES,
        tolerance=1e-12,
        mistakes=[
            (
                _buckets(height=lambda area, w, step: round(area / (w * step)) * step),
                "Some areas are larger than side x side: round the height down to a multiple of "
                "step, never up.",
            ),
            (
                _buckets(height=lambda area, w, step: area // w),
                "Some heights are no multiple of step.",
            ),
            (_buckets(both=False), "The wide ones are missing: with (h, w) also (w, h)."),
            (
                _buckets(limit=False),
                "Some are narrower than 1 : widest. Keep those with h <= widest w.",
            ),
            (
                _all_below,
                "Those are all shapes that fit. For each width take only the tallest, so that "
                "all areas are nearly equal.",
            ),
        ],
        right="Areas nearly equal, so a batch costs the same in every bucket.",
    ),
    "13.3": Exercise(
        reference=_batches(),
        cases=BATCH_CASES,
        tolerance=1e-12,
        mistakes=[
            (
                _in_a_row,
                "Your batches mix buckets: pictures of different shapes do not stack into one "
                "tensor.",
            ),
            (
                _sorted_first,
                "Sorting by bucket is not enough: where one bucket ends inside a batch, the next "
                "begins in it. Cut each bucket into batches of its own.",
            ),
            (
                _batches(whole=False),
                "Some batches are not full: leave what remains of a bucket out this epoch.",
            ),
            (
                _batches(first_only=True),
                "Each bucket gives as many batches as it can fill, not one.",
            ),
            (_bucket_numbers, "Return the numbers of the pictures, not of their buckets."),
        ],
        right="Shuffle inside the buckets, then shuffle the batches, and training sees all shapes "
        "in turn.",
    ),
    "13.5": Exercise(
        reference=_rescaled,
        cases=SNR_CASES,
        tolerance=1e-9,
        mistakes=[
            (
                _not_roots,
                "Shift and stretch the roots, sqrt(alpha_bar), which multiply the picture; "
                "then square.",
            ),
            (_roots, "Those are the roots. Asked is alpha_bar itself: square them at the end."),
            (
                _shift_only,
                "After the shift the first value has moved too: stretch by s_1 / (s_1 - s_T), so "
                "that the start is what it was.",
            ),
            (
                _to_one,
                "Your first value is 1: a schedule that begins without noise. Stretch back to s_1.",
            ),
            (
                _last_only,
                "Only the last value moved: that makes one huge step at the end. Shift all of "
                "them.",
            ),
        ],
        right="The start stays, the end is pure noise, and the steps between shrink evenly.",
    ),
    "13.4": Exercise(
        reference=_offset,
        cases=OFFSET_CASES,
        mistakes=[
            (
                lambda eps, shared, strength: eps + strength * shared[:, :1, None, None],
                "All channels got the same number: each channel has one of its own.",
            ),
            (
                lambda eps, shared, strength: eps + strength**2 * shared[:, :, None, None],
                "You squared the strength: it multiplies the shared number, not its variance.",
            ),
            (
                lambda eps, shared, strength: (
                    (eps + strength * shared[:, :, None, None]) / (1 + strength**2) ** 0.5
                ),
                "You scaled the sum back to variance 1. Offset noise leaves each pixel's noise as "
                "it was and adds to it.",
            ),
            (
                lambda eps, shared, strength: eps + strength,
                "The same offset every time teaches the model that offset: add strength times the "
                "random numbers in `shared`.",
            ),
            (
                lambda eps, shared, strength: (
                    (1 - strength) * eps + strength * shared[:, :, None, None]
                ),
                "You mixed the two: eps itself keeps its weight of 1.",
            ),
        ],
        right="Pixel by pixel it hardly shows; in the mean of a channel it is most of the noise.",
    ),
}
