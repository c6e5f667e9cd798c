"""Wrong answers of notebook 00 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers


def right_modes(x, centres):
    found = 0
    for k, centre in enumerate(centres):
        near = 0
        for point in x:
            gaps = [math.dist(point.tolist(), c.tolist()) for c in centres]
            near += min(gaps) == gaps[k] and gaps[k] < 0.4
        found += near / len(x) >= 0.03
    return found


def right_cosines(images, texts):
    return torch.tensor(
        [[(i * t).sum() / math.sqrt((i * i).sum() * (t * t).sum()) for t in texts] for i in images]
    )


RIGHT = {
    "00.1": right_modes,
    "00.2": lambda mu_a, s_a, mu_b, s_b: (
        mu_a**2 - 2 * mu_a * mu_b + mu_b**2 + s_a**2 + s_b**2 - 2 * s_a * s_b
    ),
    "00.3": right_cosines,
}


def one_point_is_enough(x, centres):
    distance, which = torch.cdist(x, centres).min(1)
    return len(set(which[distance < 0.4].tolist()))


def forgot_the_radius(x, centres):
    which = torch.cdist(x, centres).argmin(1)
    return sum((which == k).float().mean().item() >= 0.03 for k in range(len(centres)))


def counts_the_lost(x, centres):
    return len(centres) - right_modes(x, centres)


def counts_points(x, centres):
    return int((torch.cdist(x, centres).min(1).values < 0.4).sum())


def stops_at_shares(x, centres):
    distance, which = torch.cdist(x, centres).min(1)
    return torch.stack(
        [((which == k) & (distance < 0.4)).float().mean() for k in range(len(centres))]
    )


def variances_compared(mu_a, s_a, mu_b, s_b):
    return (mu_a - mu_b) ** 2 + (s_a * s_a - s_b * s_b) ** 2


def means_only(mu_a, s_a, mu_b, s_b):
    return abs(mu_a - mu_b) ** 2


def root_taken(mu_a, s_a, mu_b, s_b):
    return math.hypot(mu_a - mu_b, s_a - s_b)


def stds_as_covariances(mu_a, s_a, mu_b, s_b):
    return (mu_b - mu_a) ** 2 + (s_a**0.5 - s_b**0.5) ** 2


def no_cross_term(mu_a, s_a, mu_b, s_b):
    return (mu_a - mu_b) ** 2 + (s_a**2 + s_b**2)


def dot_products(images, texts):
    return torch.einsum("nd,md->nm", images, texts)


def normalised_columns(images, texts):
    return (
        torch.nn.functional.normalize(images, dim=0) @ torch.nn.functional.normalize(texts, dim=0).T
    )


def pictures_only(images, texts):
    return torch.nn.functional.normalize(images, dim=1) @ texts.T


def no_root(images, texts):
    return images @ texts.T / torch.outer((images**2).sum(1), (texts**2).sum(1))


def transposed(images, texts):
    return right_cosines(texts, images)


def a_distance(images, texts):
    return 1 - right_cosines(images, texts)


WRONG = [
    ("00.1", one_point_is_enough, "as soon as one point"),
    ("00.1", forgot_the_radius, "however far away"),
    ("00.1", counts_the_lost, "missing"),
    ("00.1", counts_points, "count points"),
    ("00.1", stops_at_shares, "return the share"),
    ("00.2", variances_compared, "compare the variances"),
    ("00.2", means_only, "widths matter"),
    ("00.2", root_taken, "square root at the end"),
    ("00.2", stds_as_covariances, "where the covariances stand"),
    ("00.2", no_cross_term, "2 s_a s_b is missing"),
    ("00.3", dot_products, "dot products"),
    ("00.3", normalised_columns, "columns"),
    ("00.3", pictures_only, "Only the pictures"),
    ("00.3", no_root, "squared lengths"),
    ("00.3", transposed, "swapped"),
    ("00.3", a_distance, "1 minus the cosine"),
]

TestAnswers = answers(RIGHT, WRONG)
