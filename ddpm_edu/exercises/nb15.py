"""Exercises: next codes, top-k, the masked bound, parallel decoding, thresholds. Notebook 15."""

import torch

from .check import Exercise


def _numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _codes(seed, below, *shape):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- 15.1  the next code's loss


def _next(shift=1, caption=False, mean=True, logs=True, first=True):
    """An answer that may look at the wrong place, count the caption, or forget the logarithm."""

    def answer(logits, codes, words):
        n = codes.shape[1]
        start = words - shift
        picked = logits[:, start : start + n]
        targets = codes[:, : picked.shape[1]]
        if not first:  # the first code is never asked for
            picked, targets = logits[:, words : words + n - 1], codes[:, 1:]
        log_p = picked.log_softmax(-1) if logs else picked
        loss = -log_p.gather(2, targets[..., None]).squeeze(2)
        if caption:
            return loss.sum() / logits.shape[0] / logits.shape[1]
        return loss.mean() if mean else loss.sum(1).mean()

    return answer


NEXT_CASES = [
    (_numbers(1, 3, 9, 7), _codes(2, 7, 3, 5), 4),
    (2 * _numbers(3, 2, 8, 4), _codes(4, 4, 2, 6), 2),
]

# ---------------------------------------------------------------- 15.2  temperature and top-k


def _probabilities(divide=True, after=False, keep="largest", normal=True, hole=-torch.inf):
    """An answer that may turn the temperature round, keep the wrong codes, or not divide again."""

    def answer(logits, temperature, top_k):
        z = logits if after else logits / temperature if divide else logits * temperature
        if keep == "smallest":
            floor = z.topk(top_k, largest=False).values[:, -1:]
            out = z > floor
        elif keep == "all":
            out = torch.zeros_like(z, dtype=torch.bool)
        else:
            out = z < z.topk(top_k).values[:, -1:]
        if not normal:
            return z.softmax(1).masked_fill(out, 0.0)
        p = z.masked_fill(out, hole).softmax(1)
        return p / temperature if after else p

    return answer


PICK_CASES = [
    (_numbers(10, 3, 8), 0.7, 3),
    (3 * _numbers(11, 2, 6), 1.6, 4),
    (_numbers(12, 4, 5), 1.3, 2),
]

# ---------------------------------------------------------------- 15.3  a term of the masked bound


def _term(all_places=False, weight="right", mean=False, sign=-1):
    """An answer that may count known places, or weigh by something else than the posterior."""

    def answer(log_p, unknown, m_prev, m):
        chance = {
            "right": (m - m_prev) / m,
            "none": 1.0,
            "rise": m - m_prev,
            "before": (m - m_prev) / m_prev if m_prev else 0.0,
            "forward": (m - m_prev) / (1 - m_prev),
        }[weight]
        count = torch.ones_like(log_p) if all_places else unknown.to(log_p)
        total = (count * log_p).sum(1)
        total = total / count.sum(1).clamp(min=1) if mean else total
        return sign * chance * total

    return answer


def _term_case(seed, m_prev, m):
    log_p = _numbers(seed, 3, 6).mul(2).sigmoid().log()
    return log_p, _numbers(seed + 1, 3, 6) > -0.3, m_prev, m


TERM_CASES = [_term_case(20, 0.3, 0.6), _term_case(30, 0.75, 1.0), _term_case(40, 0.1, 0.45)]

# ---------------------------------------------------------------- 15.4  which codes stay


def _stay(old=True, largest=True, count=lambda keep, known: keep, batch=False):
    """An answer that may drop what is known, keep the least sure ones, or count otherwise."""

    def answer(confidence, known, keep):
        score = confidence.masked_fill(known, torch.inf) if old else confidence
        score = score if largest else (-confidence).masked_fill(known, torch.inf)
        keep = count(keep, known)
        if batch:
            floor = score.flatten().topk(keep * len(score)).values[-1]
            return score >= floor
        order = score.argsort(1, descending=True)
        return torch.zeros_like(known).scatter(1, order[:, :keep], True)

    return answer


def _stay_case(seed, known, keep):
    confidence = torch.rand(3, 9, generator=torch.Generator().manual_seed(seed))
    unsure = confidence.argsort(1)[:, :known]  # known codes that are among the least sure now
    return confidence, torch.zeros(3, 9, dtype=torch.bool).scatter(1, unsure, True), keep


STAY_CASES = [_stay_case(50, 2, 5), _stay_case(51, 3, 4), _stay_case(52, 0, 3)]

# ---------------------------------------------------------------- 15.5  dynamic thresholding


def _threshold(divide=True, least=1.0, whole=False, absolute=True, static=False):
    """An answer that may clip without dividing, stretch dull pictures, or share one threshold."""

    def answer(x_0, percentile):
        if static:
            return x_0.clamp(-1, 1)
        rows = x_0.flatten() if whole else x_0.flatten(1)
        rows = rows.abs() if absolute else rows
        s = torch.quantile(rows, percentile, dim=-1).clamp(min=least)
        s = s if whole else s.view(-1, *[1] * (x_0.ndim - 1))
        clipped = x_0.clamp(-s, s)
        return clipped / s if divide else clipped

    return answer


THRESHOLD_CASES = [
    (torch.cat([3 * _numbers(60, 1, 3, 6, 6), 0.2 * _numbers(61, 1, 3, 6, 6)]), 0.95),
    (2 * _numbers(62, 3, 1, 5, 5) - 1.0, 0.9),
]


EXERCISES = {
    "15.1": Exercise(
        reference=_next(),
        cases=NEXT_CASES,
        mistakes=[
            (
                _next(shift=0),
                "You compare each code with the logits at its own place. There the network has "
                "read the code already: look one place earlier, at words - 1 + i.",
            ),
            (
                _next(first=False),
                "The first code is missing: the last word of the caption predicts it. You ask "
                "for n - 1 codes, but the picture has n.",
            ),
            (_next(shift=2), "One place too early: the logits at place j are about token j + 1."),
            (
                _next(mean=False),
                "That is the sum over the codes of a picture. Take the mean over all codes.",
            ),
            (
                _next(caption=True),
                "You divide by all places of the stream. The caption's places are not asked for: "
                "divide by the number of codes.",
            ),
            (
                _next(logs=False),
                "Logits are not logarithms of probabilities yet: log_softmax over the last axis, "
                "or F.cross_entropy, which contains it.",
            ),
        ],
        right="A mean of -log p, at the place before: that is the whole training of a GPT.",
    ),
    "15.2": Exercise(
        reference=_probabilities(),
        cases=PICK_CASES,
        mistakes=[
            (
                _probabilities(divide=False),
                "Your temperature works backwards: divide the logits by it, so that a low one "
                "makes the likely codes likelier still.",
            ),
            (
                _probabilities(after=True),
                "The temperature divides the logits, before the softmax: probabilities divided "
                "by a number no longer sum to 1.",
            ),
            (
                _probabilities(normal=False),
                "What is left does not sum to 1: put -inf into the logits before the softmax, or "
                "divide by the sum afterwards.",
            ),
            (
                _probabilities(hole=0.0),
                "A logit of 0 is no probability of 0: exp(0) = 1. Fill with -inf.",
            ),
            (_probabilities(keep="smallest"), "You keep the k least likely codes."),
            (
                _probabilities(keep="all"),
                "All codes still have a chance: only the top_k largest logits of each row stay.",
            ),
        ],
        right="The temperature shapes, top-k cuts the tail off, softmax makes them sum to 1.",
    ),
    "15.3": Exercise(
        reference=_term(),
        cases=TERM_CASES,
        mistakes=[
            (
                _term(all_places=True),
                "Known places cost nothing: there both distributions agree. Sum over the unknown "
                "places alone.",
            ),
            (
                _term(sign=1),
                "The sign: a KL divergence is never negative, and the log of a probability is.",
            ),
            (
                _term(weight="none"),
                "The weight is missing: a code becomes known in this step only with the chance "
                "(m - m_prev) / m.",
            ),
            (
                _term(weight="rise"),
                "m - m_prev is the chance that a code is lost just now. We KNOW that it is "
                "unknown at t: divide by the chance of that, m.",
            ),
            (
                _term(weight="before"),
                "You divide by m_prev. What is given is x_t, so divide by the share that is "
                "unknown at t, m.",
            ),
            (
                _term(weight="forward"),
                "(m - m_prev) / (1 - m_prev) is the forward chance, from code to [UNKNOWN]. Going "
                "back, Bayes gives (m - m_prev) / m.",
            ),
            (_term(mean=True), "Sum over the unknown places; the KL of a product is a sum."),
        ],
        right="Cross-entropy on the unknown places, times the chance that they are revealed now.",
    ),
    "15.4": Exercise(
        reference=_stay(),
        cases=STAY_CASES,
        mistakes=[
            (
                _stay(old=False),
                "Codes that were known get lost again where their confidence is low. What is "
                "known stays: give it an infinite confidence.",
            ),
            (_stay(largest=False), "You keep the codes that the network is least sure of."),
            (
                _stay(count=lambda keep, known: min(keep + int(known.sum(1)[0]), known.shape[1])),
                "`keep` counts all known codes of a picture, the old ones too; you add as many "
                "new ones.",
            ),
            (
                _stay(batch=True),
                "You rank the places of all pictures together. Each picture keeps its own `keep`.",
            ),
        ],
        right="The old ones and the surest new ones: so a picture grows from what is certain.",
    ),
    "15.5": Exercise(
        reference=_threshold(),
        cases=THRESHOLD_CASES,
        mistakes=[
            (
                _threshold(static=True),
                "That is static thresholding, a plain clip to [-1, 1]: too strong colours all "
                "become the strongest one.",
            ),
            (
                _threshold(divide=False),
                "You clip to [-s, s] and stop there: divide by s, so that the picture comes back "
                "into [-1, 1].",
            ),
            (
                _threshold(least=0.0),
                "Where s is below 1 you make a dull picture stronger: s is at least 1.",
            ),
            (
                _threshold(whole=True),
                "One s for the whole batch: each picture needs its own, or it depends on its "
                "neighbours.",
            ),
            (
                _threshold(absolute=False),
                "The percentile is that of |x_0|: too dark counts as much as too bright.",
            ),
        ],
        right="The picture's own percentile takes the place of the 1, and nothing saturates.",
    ),
}
