"""Every check of errors.py: what passes, what is refused with which error, and that it is named."""

import math
from dataclasses import dataclass

import pytest
import torch

from ddpm_edu.errors import (
    MOST,
    DataError,
    OptionError,
    ShapeError,
    check_device,
    check_writable,
    checked_prompts,
    choices,
    fits,
    in_range,
    multiple,
    numbers,
    one_of,
    parts,
    pixels,
    sizes,
    token_ids,
    whole,
)


@dataclass(frozen=True)
class Inner:
    width: int = 4

    def __post_init__(self):
        sizes(self, width=1)


@dataclass(frozen=True)
class Config:
    width: int = 8
    mult: tuple[int, ...] = (1, 2)
    interval: tuple[int, int] | None = None
    scale: float = 0.5
    act: str = "gelu"
    inner: Inner = Inner()
    many: tuple[Inner, ...] = (Inner(),)

    def __post_init__(self):
        sizes(self, width=1, mult=(1, 64), interval=0)
        numbers(self, scale=(1e-6, math.inf))
        choices(self, act=("gelu", "quick_gelu"))
        parts(self, inner=Inner, many=Inner)


def test_what_comes_out_of_json_is_the_config():
    read = Config(mult=[1, 4], interval=[0, 5], inner={"width": 2}, many=[{"width": 3}, {}])
    assert read == Config(mult=(1, 4), interval=(0, 5), inner=Inner(2), many=(Inner(3), Inner()))
    assert Config(width=MOST, mult=(64,), scale=math.inf).width == MOST


@pytest.mark.parametrize(
    "field, value",
    [
        ("width", 0),
        ("width", MOST + 1),
        ("width", 2.0),
        ("width", True),
        ("width", "8"),
        ("width", None),
        ("width", (8,)),
        ("mult", ()),
        ("mult", 2),
        ("mult", "12"),
        ("mult", (1, 0)),
        ("mult", (1, 65)),
        ("mult", [1, 2.5]),
        ("interval", (0, -1)),
        ("interval", 5),
        ("scale", 0),
        ("scale", math.nan),
        ("scale", "1"),
        ("act", "relu"),
        ("act", ["gelu"]),
        ("inner", 3),
        ("inner", {"length": 2}),
        ("many", ()),
        ("many", (Inner(), 3)),
        ("many", Inner()),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(OptionError, match=rf"Config\.{field}"):
        Config(**{field: value})


def test_a_bad_field_of_a_part_is_named():
    with pytest.raises(OptionError, match=r"Inner\.width"):
        Config(many=({"width": 0},))


@pytest.mark.parametrize(
    "check, good, bad",
    [
        (in_range, [(0, 0, 1), (1, 0, 1), (math.inf, 0, math.inf)], [(2, 0, 1), (math.nan, 0, 1)]),
        (in_range, [(0.5, 0, 1)], [(math.inf, 0, 9), (True, 0, 1), ("1", 0, 1), (None, 0, 1)]),
        (whole, [(1, 1, 3), (3, 1, 3), (MOST, 1)], [(0, 1, 3), (4, 1, 3), (1.0, 1, 3), (True, 1)]),
        (one_of, [("a", ("a", "b"))], [("c", ("a", "b")), (["a"], ("a", "b")), (None, ("a",))]),
        (multiple, [(8, "heads", 4)], [(9, "heads", 4)]),
    ],
)
def test_one_value(check, good, bad):
    for args in good:
        assert check("thing", *args) == args[0]
    for args in bad:
        with pytest.raises(OptionError, match="thing"):
            check("thing", *args)


def test_prompts():
    assert checked_prompts("a") == ["a"] and checked_prompts(("a", "")) == ["a", ""]
    for bad in (None, 3, [], ["a"] * 1025, ["a", 3], ["a", None], {"a"}):
        with pytest.raises(OptionError, match="prompt"):
            checked_prompts(bad)


def test_device_and_place(tmp_path):
    assert check_device("cpu") == "cpu"
    for bad in ("cuda:77", "gpu", 3.5):
        with pytest.raises(OptionError, match="device"):
            check_device(bad)
    assert check_writable(tmp_path / "new.txt") == tmp_path / "new.txt"
    for bad in (tmp_path, tmp_path / "no" / "new.txt"):
        with pytest.raises(OptionError, match=bad.name):
            check_writable(bad)


def test_shapes():
    fits("x", torch.zeros(2, 4, 5), ("B", 4, "W"), "this takes")
    for bad in (None, [1.0], torch.zeros(2, 4), torch.zeros(2, 3, 5), torch.zeros(4)):
        with pytest.raises(ShapeError, match="x .*B, 4, W"):
            fits("x", bad, ("B", 4, "W"), "this takes")


@pytest.mark.filterwarnings("error")
def test_pixels():
    x = torch.linspace(-1, 1, 3 * 48).view(3, 3, 4, 4)
    pixels("pictures", x), pixels("pictures", x * 1.9, beyond=1)
    bad = x.clone()
    bad[1, 0, 0, 0] = math.nan
    for wrong, named in ((x[:0], "pictures"), ((x * 127).byte(), "pictures"), (bad, r"\[1\]")):
        with pytest.raises(DataError, match=named):
            pixels("pictures", wrong, beyond=1)
    with pytest.raises(DataError, match=r"pictures\[0\]"):
        pixels("pictures", x * 1.01)
    with pytest.warns(UserWarning, match=r"\[0, 1\]"):
        pixels("pictures", (x + 1) / 2)


@pytest.mark.parametrize(
    "ids, error, named",
    [
        (torch.tensor([[0, 9, 10]]), DataError, "10"),
        (torch.tensor([[0, -1]]), DataError, "-1"),
        (torch.zeros(1, 5, dtype=torch.long), ShapeError, "5"),
        (torch.zeros(3, dtype=torch.long), ShapeError, "ids"),
        (torch.zeros(1, 3), ShapeError, "float32"),
        (torch.zeros(1, 3, dtype=torch.int32), ShapeError, "int32"),
    ],
)
def test_token_ids(ids, error, named):
    token_ids(torch.tensor([[0, 9]]), 10, 4)
    with pytest.raises(error, match=named):
        token_ids(ids, 10, 4)
