"""Wrong answers of notebook 08 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers


def spell(word, merges):
    """By rank: of all pairs that stand in the word, the one learned first, again and again, as fast tokenizers do it."""
    rank = {pair: i for i, pair in enumerate(merges)}
    symbols = list(word)
    symbols[-1] += "</w>"
    while pairs := [pair for pair in zip(symbols, symbols[1:]) if pair in rank]:
        a, b = min(pairs, key=rank.get)
        i, out = 0, []
        while i < len(symbols):
            both = symbols[i : i + 2] == [a, b]
            out.append(a + b if both else symbols[i])
            i += 1 + both
        symbols = out
    return symbols


def clip_loss(image, text, scale):
    e = torch.exp(scale * image @ text.T)
    rows, columns = e.diag() / e.sum(1), e.diag() / e.sum(0)
    return -(rows.log() + columns.log()).mean() / 2


def class_cosines(image, text):
    direction = text.sum(1)
    return (image @ direction.T) / direction.norm(dim=1)


def score(image, text):
    return 100 * torch.relu(torch.cosine_similarity(image, text))


RIGHT = {"08.1": spell, "08.2": clip_loss, "08.3": class_cosines, "08.4": score}


def forgot_the_end(word, merges):
    symbols = list(word)
    for pair in merges:
        text = "\0".join(symbols)
        symbols = text.replace("\0".join(pair), "".join(pair)).split("\0")
    return symbols


def latest_first(word, merges):
    symbols = [*word[:-1], word[-1] + "</w>"]
    for a, b in reversed(merges):
        for i in reversed(range(len(symbols) - 1)):
            if symbols[i : i + 2] == [a, b]:
                symbols[i : i + 2] = [a + b]
    return symbols


def only_the_first_place(word, merges):
    symbols = [*word[:-1], word[-1] + "</w>"]
    for a, b in merges:
        at = next((i for i in range(len(symbols) - 1) if symbols[i : i + 2] == [a, b]), None)
        if at is not None:
            symbols = symbols[:at] + [a + b] + symbols[at + 2 :]
    return symbols


def which_text(image, text, scale):
    p = torch.softmax(scale * image @ text.T, dim=1)
    return -p.diag().log().mean()


def which_picture(image, text, scale):
    p = torch.softmax(scale * image @ text.T, dim=0)
    return -p.diag().log().mean()


def both_added(image, text, scale):
    return which_text(image, text, scale) + which_picture(image, text, scale)


def temperature_mixed_up(image, text, scale):
    return clip_loss(image, text, 1 / scale)


def no_temperature(image, text, scale):
    return clip_loss(image, text, 1)


def mean_of_cosines(image, text):
    return torch.stack([image @ prompt.T for prompt in text.unbind(1)]).mean(0)


def best_prompt(image, text):
    return torch.stack([image @ prompt.T for prompt in text.unbind(1)]).max(0).values


def over_the_classes(image, text):
    direction = text.sum(0)
    return image @ (direction / direction.norm(dim=1, keepdim=True)).T


def dot_product(image, text):
    return 100 * torch.relu((image * text).sum(-1))


def below_zero(image, text):
    return 100 * torch.cosine_similarity(image, text)


def as_an_angle(image, text):
    return torch.acos(torch.cosine_similarity(image, text)) * 180 / math.pi


def a_matrix(image, text):
    unit = [z / z.norm(dim=1, keepdim=True) for z in (image, text)]
    return 100 * torch.relu(unit[0] @ unit[1].T)


WRONG = [
    ("08.1", forgot_the_end, "mark of the word's end"),
    ("08.1", latest_first, "in the order"),
    ("08.1", only_the_first_place, "every place"),
    ("08.2", which_text, "which text belongs to each picture"),
    ("08.2", which_picture, "which picture belongs to each text"),
    ("08.2", both_added, "divide by 2"),
    ("08.2", temperature_mixed_up, "multiply by it"),
    ("08.2", no_temperature, "multiplied by the scale"),
    ("08.3", mean_of_cosines, "shorter than 1"),
    ("08.3", best_prompt, "best prompt"),
    ("08.3", over_the_classes, "prompts are axis 1"),
    ("08.4", dot_product, "not of length 1"),
    ("08.4", below_zero, "counts as 0"),
    ("08.4", as_an_angle, "expected"),
    ("08.4", a_matrix, "picture i with text i"),
]

TestAnswers = answers(RIGHT, WRONG)
