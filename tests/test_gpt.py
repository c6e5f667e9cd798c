"""GPT: the cache against none, what each place can see, what a new one finds, refusals; Muon's share."""

import pytest
import torch
from helpers import refuses

from ddpm_edu import DataError, OptionError, ShapeError
from ddpm_edu.networks.gpt import GPT, GPTConfig, turned
from ddpm_edu.training.optim import Muon

SMALL = GPTConfig(11, 9, 7, 5, width=16, layers=3, heads=4, columns=3, vectors=2)


def shaken(causal=True, dtype=torch.float32):
    """A GPT whose every weight is random, also those that start at 0."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**vars(SMALL), "causal": causal})).to(dtype).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.know(torch.randn(11, 2, dtype=dtype))
    return model.requires_grad_(False)


def batch(n=9, length=5):
    gen = torch.Generator().manual_seed(1)
    codes = torch.randint(11, (3, n), generator=gen)
    return codes, torch.randint(7, (3, length), generator=gen)


@pytest.mark.parametrize("length", [5, 1])
@pytest.mark.parametrize("strides", [[1] * 9, [4, 1, 3, 1]])
def test_the_cache_changes_nothing(strides, length):
    model, (codes, text) = shaken(dtype=torch.float64), batch(length=length)
    cache, done, parts = model.new_cache(), 0, []
    for stride in strides:
        done += stride
        parts.append(model(codes[:, :done], text, cache=cache))
        assert parts[-1].shape == (3, stride, 11) and len(cache) == length + done
    whole = model(codes, text)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)


def test_the_cache_changes_nothing_in_float32():
    model, (codes, text) = shaken(), batch()
    cache = model.new_cache()
    parts = [model(codes[:, : i + 1], text, cache=cache) for i in range(9)]
    torch.testing.assert_close(torch.cat(parts, 1), model(codes, text), rtol=0, atol=1e-5)


def test_the_cache_reads_no_token_twice():
    model, (codes, text) = shaken(), batch()
    rows, cache = [], model.new_cache()
    model.blocks[0].q.register_forward_hook(lambda _, inputs, out: rows.append(out.shape[1]))
    for i in range(9):
        model(codes[:, : i + 1], text, cache=cache)
    assert rows == [6, *[1] * 8]


def changes(model, codes, text, place=None, word=None):
    """Which places' logits change when one code, or one word, is another."""
    other, others = codes.clone(), text.clone()
    if place is not None:
        other[:, place] = (other[:, place] + 1) % 11
    if word is not None:
        others[:, word] = (others[:, word] + 1) % 7
    difference = (model(other, others) - model(codes, text)).abs().amax((0, 2))
    return (difference > 1e-6).tolist()


def test_a_causal_place_sees_the_text_and_what_is_before_it():
    model, (codes, text) = shaken(), batch()
    for place in range(9):
        assert changes(model, codes, text, place=place) == [i > place for i in range(9)]
    for word in range(5):
        assert all(changes(model, codes, text, word=word))


def test_a_place_that_is_not_causal_sees_everything():
    model, (codes, text) = shaken(causal=False), batch()
    for place in range(9):
        assert all(changes(model, codes, text, place=place))
    assert all(changes(model, codes, text, word=4))


def test_unknown_is_an_input_and_no_answer():
    model, (codes, text) = shaken(causal=False), batch()
    assert model.unknown == 11 and model(torch.full_like(codes, 11), text).shape == (3, 9, 11)


def test_a_new_one_finds_all_codes_equally_likely():
    codes, text = batch()
    vectors = torch.randn(11, 2)
    assert torch.equal(GPT(SMALL).know(vectors)(codes, text), torch.zeros(3, 9, 11))


def test_attention_knows_how_far_apart_places_are():
    """Turned queries and keys: their product is the same wherever both are moved, and differs else."""
    model = shaken(dtype=torch.float64)
    turn = model._turn(5, 9)
    gen = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, dtype=torch.float64, generator=gen)
    products = turned(q.expand(14, 4), turn) @ turned(k.expand(14, 4), turn).T
    of = lambda a, b: products[5 + a, 5 + b].item()  # of two places, 0 to 8 in rows of 3
    assert abs(of(4, 0) - of(8, 4)) < 1e-6 and abs(of(1, 0) - of(5, 4)) < 1e-6
    assert abs(of(3, 0) - of(1, 0)) > 1e-3 and abs(of(4, 0) - of(0, 4)) > 1e-3
    # a column to the right of the end of a row is not the beginning of the next
    assert abs(of(3, 2) - of(1, 0)) > 1e-3


def test_what_is_known_of_one_code_holds_for_its_equals():
    """Two codes with one vector, and no tables: the same inputs, the same logits."""
    model, (codes, text) = shaken(causal=False), batch()
    vectors = torch.randn(11, 2)
    vectors[7] = vectors[4]
    model.know(vectors)
    for p in (model.code_table.weight, model.logits.weight, model.logits.bias):
        p.zero_()
    logits = model(codes, text)
    assert torch.equal(logits[..., 7], logits[..., 4])
    assert not torch.equal(logits[..., 7], logits[..., 5])
    swapped = torch.where(codes == 4, 7, codes)
    assert (swapped != codes).any() and torch.equal(model(swapped, text), logits)
    with refuses(ShapeError, "vectors", "11"):
        model.know(torch.zeros(10, 2))


def test_muon_moves_the_blocks_and_adamw_the_tables():
    model = GPT(SMALL)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for p in Muon(model, 0.01).param_groups[0]["params"]}
    assert {name for name in matrices if not name.startswith("blocks.")} == {
        "book_in.weight",
        "book_out.weight",
    }
    assert len(matrices) == 3 * 6 + 2


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(codes=torch.full((3, 9), 12)), OptionError, ["codes", "0 to 11", "book"]),
        (dict(codes=torch.full((3, 9), -1)), OptionError, ["codes"]),
        (dict(codes=torch.zeros(3, 10, dtype=torch.long)), ShapeError, ["codes", "9"]),
        (dict(codes=torch.zeros(3, 9)), ShapeError, ["codes", "int64"]),
        (dict(codes=torch.zeros(2, 9, dtype=torch.long)), ShapeError, ["codes"]),
        (dict(text=torch.zeros(3, 6, dtype=torch.long)), ShapeError, ["ids", "5"]),
        (dict(text=torch.full((3, 5), 7)), DataError, ["7", "vocabulary"]),
    ],
)
def test_refusals(change, error, words):
    codes, text = batch()
    with refuses(error, *words):
        shaken()(**{"codes": codes, "text": text, **change})


def test_a_cache_of_another_stream_is_refused():
    model, (codes, text) = shaken(), batch()
    cache = model.new_cache()
    model(codes, text, cache=cache)
    with refuses(OptionError, "cache", "new"):
        model(codes[:, :4], text, cache=cache)
    with refuses(OptionError, "cache", "causal"):
        shaken(causal=False)(codes, text, cache=model.new_cache())


def test_heads_must_divide_the_width():
    with refuses(OptionError, "width", "heads"):
        GPTConfig(width=20, heads=4)
    with refuses(OptionError, "places", "columns"):
        GPTConfig(places=64, columns=7)
