"""emoji.py: pictures, names and categories belong together, and a damaged sheet is refused."""

import gzip
import json
import shutil

import pytest
import torch
from helpers import refuses

from ddpm_edu.datasets import emoji as module
from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.errors import DataError, OptionError
from ddpm_edu.paths import data_folder


@pytest.fixture(scope="module")
def dataset():
    return emoji()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A private copy of the files that a test may damage."""
    folder = shutil.copytree(data_folder() / "emoji", tmp_path / "emoji")
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path))
    return folder


def test_all_are_there(dataset):
    assert (
        len(dataset) == 1911
        and dataset.images.shape == (1911, 3, 64, 64)
        and dataset.images.dtype == torch.uint8
    )
    for column in (dataset.names, dataset.chinese, dataset.characters):
        assert len(column) == len(set(column)) == 1911 and all(column)
    assert len(set(dataset.categories)) == len(set(dataset.chinese_categories)) == 10
    assert (
        dataset.categories.count("Flags") == 270 and dataset.categories.count("Food & Drink") == 131
    )  # counts of the source


def test_names_belong_together(dataset):
    k = dataset.find("red apple")
    assert dataset.find("🍎") == dataset.find("红苹果") == k and dataset.characters[k] == "🍎"
    assert (dataset.categories[k], dataset.chinese_categories[k]) == (
        "Food & Drink",
        "食物与饮料",
    ) and "fruit" in dataset.tags[k]
    assert dataset.captions([k, 0]) == ["red apple", "grinning face"] and dataset.captions(
        k, "zh"
    ) == ["红苹果"]


@pytest.mark.parametrize(
    "name, bright, dark",
    [
        ("red apple", [0], [1, 2]),
        ("red heart", [0], [1, 2]),
        ("green heart", [1], [0, 2]),
        ("blue heart", [2], [0]),
        ("green square", [1], [0, 2]),
        ("yellow square", [0, 1], [2]),
        ("blue square", [2], [0]),
        ("black large square", [], [0, 1, 2]),
        ("white large square", [0, 1, 2], []),
    ],
)
def test_pictures_show_their_names(dataset, name, bright, dark):
    """In the middle of the ink, where a name says the colour, these channels are bright and those
    dark."""
    middle = dataset.images[dataset.find(name), :, 26:42, 20:44].flatten(1).float().median(1).values
    assert (middle[bright] > 140).all() and (middle[dark] < 140).all(), middle
    if bright and dark:
        assert middle[bright].min() > middle[dark].max() + 40, middle


def test_pictures_are_on_white_and_in_place(dataset):
    corners = dataset.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].amin((1, 2))
    assert (corners > 250).float().mean() > 0.95  # a tile cut a pixel off would show its neighbour
    assert (
        dataset.images.flatten(1).unique(dim=0).shape[0] == 1897
    )  # some flags and signs share one
    assert len(dataset.images.unique()) == 32


def test_batches(dataset):
    x_0, names = dataset[torch.tensor([728, 5])]
    assert (
        x_0.dtype == torch.float32
        and x_0.shape == (2, 3, 64, 64)
        and names == [dataset.names[728], dataset.names[5]]
    )
    assert torch.allclose(x_0, dataset.images[[728, 5]].float() / 127.5 - 1)
    assert (
        dataset[728][0].equal(x_0[:1])
        and dataset[[728, 5]][1] == names
        and len(dataset[:3][1]) == 3
    )
    with pytest.raises(IndexError):
        dataset[1911]


def test_subsets(dataset):
    food = dataset.subset("Food & Drink")
    assert len(food) == 131 and set(food.categories) == {"Food & Drink"}
    k, whole = food.find("red apple"), dataset.find("red apple")
    assert (
        food.images[k].equal(dataset.images[whole])
        and food.tags[k] == dataset.tags[whole]
        and food.chinese[k] == "红苹果"
    )
    assert (
        dataset.subset([3, 1]).names == (dataset.names[3], dataset.names[1])
        and len(dataset.subset(slice(10))) == 10
    )


def test_wrong_words(dataset):
    with refuses(OptionError, "no emoji is called 'red aple'", "did you mean 'red apple'"):
        dataset.find("red aple")
    with refuses(OptionError, "no emoji is called 'qqqq'", "names"):
        dataset.find("qqqq")
    with refuses(OptionError, "category = 'Food' is not known", "Food & Drink"):
        dataset.subset("Food")
    with refuses(OptionError, "language = 'de'", "en, zh"):
        dataset.captions([0], "de")
    with refuses(OptionError, "subset of no emoji"):
        dataset.subset([])


@pytest.mark.parametrize("name", sorted(module.SHA256))
def test_damaged_files(copy, name):
    path = copy / name
    whole = path.read_bytes()
    for content in (
        whole[:-100],
        whole[:5000] + b"x" * 50 + whole[5050:],
        b"",
        gzip.compress(json.dumps({"emoji": []}).encode()),
    ):
        path.write_bytes(content)
        with refuses(DataError, f"emoji/{name} ", "git checkout -- data/emoji", "DDPM_EDU_DATA"):
            emoji()
    path.unlink()
    with refuses(DataError, f"emoji/{name} is missing", "restore it"):
        emoji()
    path.mkdir()
    with refuses(DataError, f"emoji/{name} cannot be read"):
        emoji()


def test_emoji_take_at_most_3_MB():
    assert sum(f.stat().st_size for f in (data_folder() / "emoji").iterdir()) <= 3e6
