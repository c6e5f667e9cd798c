"""Exercises: CLIP. Notebook 08."""

import torch
import torch.nn.functional as F

from ..networks.tokenizer import joined
from .check import Exercise


def _spell(word, merges, end="</w>"):
    symbols = [*word[:-1], word[-1] + end]
    for pair in merges:
        symbols = joined(symbols, pair)
    return symbols


def _spell_backwards(word, merges):
    return _spell(word, merges[::-1])


def _spell_no_end(word, merges):
    return _spell(word, merges, "")


def _spell_loose_end(word, merges):
    symbols = [*word, "</w>"]
    for pair in merges:
        symbols = joined(symbols, pair)
    return symbols


def _spell_once(word, merges):
    symbols = [*word[:-1], word[-1] + "</w>"]
    for a, b in merges:
        for i in range(len(symbols) - 1):
            if (symbols[i], symbols[i + 1]) == (a, b):
                symbols[i : i + 2] = [a + b]
                break
    return symbols


def _spell_one_merge(word, merges):
    return _spell(word, merges[:1])


def _loss(image, text, scale):
    logits, own = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _loss_rows(image, text, scale):
    return F.cross_entropy(scale * image @ text.T, torch.arange(len(image)))


def _loss_columns(image, text, scale):
    return _loss_rows(text, image, scale)


def _loss_sum(image, text, scale):
    return 2 * _loss(image, text, scale)


def _loss_unscaled(image, text, scale):
    return _loss(image, text, 1.0)


def _loss_divided(image, text, scale):
    return _loss(image, text, 1 / scale)


def _loss_over_pictures(image, text, scale):
    return len(image) * _loss(image, text, scale)


def _loss_two_softmaxes(image, text, scale):
    logits, own = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits.softmax(1), own) + F.cross_entropy(logits.T.softmax(1), own)) / 2


def _classes(image, text):
    return image @ F.normalize(text.mean(1), dim=-1).T


def _classes_unnormed(image, text):
    return image @ text.mean(1).T


def _classes_first(image, text):
    return image @ text[:, 0].T


def _classes_best(image, text):
    return torch.einsum("bp,ctp->bct", image, text).amax(2)


def _classes_wrong_axis(image, text):
    return image @ F.normalize(text.mean(0), dim=-1).T


def _classes_turned(image, text):
    return _classes(image, text).T


def _cos(image, text):
    return (F.normalize(image, dim=1) * F.normalize(text, dim=1)).sum(1)


def _score(image, text):
    return 100 * _cos(image, text).clamp(min=0)


def _score_raw(image, text):
    return 100 * (image * text).sum(1).clamp(min=0)


def _score_negative(image, text):
    return 100 * _cos(image, text)


def _score_size(image, text):
    return 100 * _cos(image, text).abs()


def _score_no_hundred(image, text):
    return _cos(image, text).clamp(min=0)


def _score_every_pair(image, text):
    return 100 * (F.normalize(image, dim=1) @ F.normalize(text, dim=1).T).clamp(min=0)


def _score_mean(image, text):
    return _score(image, text).mean()


def _vectors(seed, *shape, unit=True):
    z = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(z, dim=-1) if unit else z


MERGES = [
    ("r", "e"),
    ("e", "n</w>"),
    ("re", "d</w>"),
    ("s", "e"),
    ("g", "re"),
    ("v", "en</w>"),
    ("gre", "en</w>"),
    ("o", "o"),
]
SPELL_CASES = [
    ("green", MERGES),
    ("red", MERGES),
    ("seven", MERGES),
    ("rere", MERGES),
    ("ooook", MERGES),
    ("en", MERGES),
    ("ren", MERGES),
]
LOSS_CASES = [
    (_vectors(1, 5, 4), _vectors(2, 5, 4), 7.0),
    (_vectors(3, 3, 6), _vectors(4, 3, 6), 20.0),
]
CLASS_CASES = [(_vectors(5, 4, 6), _vectors(6, 3, 5, 6)), (_vectors(7, 2, 8), _vectors(8, 6, 2, 8))]
SCORE_CASES = [
    (_vectors(9, 6, 5, unit=False), _vectors(10, 6, 5, unit=False)),
    (_vectors(11, 3, 8, unit=False), _vectors(12, 3, 8, unit=False)),
]

EXERCISES = {
    "08.1": Exercise(
        reference=_spell,
        cases=SPELL_CASES,
        mistakes=[
            (
                _spell_no_end,
                'The last letter carries the mark of the word\'s end: "n</w>", not "n".',
            ),
            (
                _spell_loose_end,
                'The mark "</w>" is glued to the last letter from the start; it is no symbol of '
                "its own.",
            ),
            (
                _spell_backwards,
                "The merges must be applied in the order in which they were learned: the first "
                "one first.",
            ),
            (_spell_once, "A merge joins every place where its pair stands, not only the first."),
            (_spell_one_merge, "You applied only the first merge: go through all of them."),
        ],
        right="That is all a BPE tokenizer does with a word; after that, each piece is looked "
        "up in a table of ids.",
    ),
    "08.2": Exercise(
        reference=_loss,
        cases=LOSS_CASES,
        mistakes=[
            (
                _loss_rows,
                "You asked only one question, which text belongs to each picture. Ask also which "
                "picture belongs to each text, and take the mean.",
            ),
            (
                _loss_columns,
                "You asked only one question, which picture belongs to each text. Ask also which "
                "text belongs to each picture, and take the mean.",
            ),
            (_loss_sum, "Twice too large: the two questions are averaged, so divide by 2."),
            (_loss_unscaled, "The cosines must be multiplied by the scale before the softmax."),
            (
                _loss_divided,
                "You divided by the scale. The scale is one over the temperature: multiply by it.",
            ),
            (_loss_over_pictures, "You added over the pictures; cross entropy takes the mean."),
            (
                _loss_two_softmaxes,
                "F.cross_entropy has its own softmax inside: give it the scaled cosines as they "
                "are.",
            ),
        ],
        right="These three lines are the whole training signal of CLIP.",
    ),
    "08.3": Exercise(
        reference=_classes,
        cases=CLASS_CASES,
        mistakes=[
            (
                _classes_unnormed,
                "The mean of unit vectors is shorter than 1: normalise it, or classes whose "
                "prompts disagree are punished.",
            ),
            (
                _classes_first,
                "You used only the first prompt of each class: take the mean over all of them.",
            ),
            (
                _classes_best,
                "You took the best prompt of each class; here their mean direction is asked for.",
            ),
            (
                _classes_wrong_axis,
                "You averaged over the classes. text is (C, T, P): the prompts are axis 1.",
            ),
            (
                _classes_turned,
                "One row a picture, one column a class: yours is the other way round.",
            ),
        ],
        right="Radford et al. gained several points on ImageNet with the mean of 80 prompts a "
        "class.",
    ),
    "08.4": Exercise(
        reference=_score,
        cases=SCORE_CASES,
        mistakes=[
            (_score_raw, "These vectors are not of length 1: divide by both lengths."),
            (_score_negative, "A negative cosine counts as 0."),
            (
                _score_size,
                "The absolute value would reward the opposite of the caption: a negative cosine "
                "counts as 0.",
            ),
            (_score_no_hundred, "Right up to the factor 100."),
            (
                _score_every_pair,
                "That is every picture with every text. Only picture i with text i is asked for.",
            ),
            (_score_mean, "Return one score a pair; the mean over a test set comes later."),
        ],
        right="A measure in one line. What it misses is in the next section.",
    ),
}
