"""Attention maps: recording changes nothing, they are the real attention and sum to one."""

import pytest
import torch
import torch.nn.functional as F
from helpers import refuses

from ddpm_edu import Cond, OptionError
from ddpm_edu.networks.tokenizer import tokenize, train_tokenizer
from ddpm_edu.networks.unet import Attention, UNet, UNetConfig
from ddpm_edu.systems.attention_maps import (
    AttentionMap,
    attention_weights,
    recording,
    shared_attention,
    token_words,
    word_maps,
)

CONFIG = UNetConfig(
    in_channels=3,
    channels=8,
    mult=(1, 2),
    depth=(0, 1),
    middle=2,
    heads=(1, 2),
    context=6,
    blocks=1,
    groups=4,
)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(CONFIG).eval()


def inputs(b=2, h=8, w=12, tokens=5):
    torch.manual_seed(1)
    return torch.randn(b, 3, h, w), torch.full((b,), 7.0), Cond(torch.randn(b, tokens, 6))


@pytest.mark.parametrize("heads", [1, 4])
def test_weights_times_values_is_the_attention(heads):
    torch.manual_seed(0)
    attention, x, context = Attention(16, 6, heads), torch.randn(2, 9, 16), torch.randn(2, 5, 6)
    weights = attention_weights(attention, x, context)
    assert weights.shape == (2, heads, 9, 5)
    v = attention.v(context).unflatten(-1, (heads, -1)).transpose(1, 2)
    torch.testing.assert_close(
        attention.out((weights @ v).transpose(1, 2).flatten(2)), attention(x, context)
    )


def test_recording_changes_nothing_and_leaves_nothing(unet):
    x, t, cond = inputs()
    before = unet(x, t, cond)
    with recording(unet) as maps:
        assert torch.equal(unet(x, t, cond), before)  # bit for bit
    recorded = len(maps)
    assert torch.equal(unet(x, t, cond), before) and len(maps) == recorded
    with pytest.raises(ZeroDivisionError), recording(unet) as maps:
        1 / 0  # noqa: B018
    unet(x, t, cond)
    assert not maps and not any(m._forward_pre_hooks for m in unet.modules())
    with recording(unet) as maps:
        unet(x, t, cond).sum().backward()  # training goes on beside it
    assert not any(m.weights.requires_grad for m in maps)
    unet.zero_grad()


def test_every_cross_attention_of_every_pass(unet):
    """One in `down`, two in `up` at the second level, two in the middle; half-size grids."""
    x, t, cond = inputs()
    with recording(unet) as maps:
        unet(x, t, cond)
        unet(x.transpose(2, 3), t, cond)
    assert (
        len(maps) == 2 * 5
        and len({m.layer for m in maps}) == 5
        and [m.layer for m in maps[:5]] == [m.layer for m in maps[5:]]
    )
    assert {m.size for m in maps[:5]} == {(4, 6)} and {m.size for m in maps[5:]} == {(6, 4)}
    for m in maps:
        assert m.weights.shape == (2, 24, 5) and isinstance(unet.get_submodule(m.layer), Attention)
        torch.testing.assert_close(m.weights.sum(2), torch.ones(2, 24))


def test_a_map_is_of_its_layers_own_inputs(unet):
    """The last map against the same attention run by hand on what the layer was given."""
    x, t, cond = inputs()
    seen = {}
    last = [m for name, m in unet.named_modules() if name.endswith("attn2")][-1]
    with recording(unet) as maps:
        handle = last.register_forward_hook(lambda m, args, out: seen.update(args=args, out=out))
        unet(x, t, cond)
        handle.remove()
    own = next(m for m in maps if unet.get_submodule(m.layer) is last)
    weights = attention_weights(last, *seen["args"])
    torch.testing.assert_close(own.weights, weights.mean(1))
    v = last.v(cond.context).unflatten(-1, (last.heads, -1)).transpose(1, 2)
    torch.testing.assert_close(last.out((weights @ v).transpose(1, 2).flatten(2)), seen["out"])


def test_word_maps_by_hand():
    """The left half looks at token 0 alone, the right one at token 1; a second layer is even."""
    left = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])[None]  # 2 x 2 grid, row by row
    even = torch.full((1, 8, 2), 0.5)  # 2 x 4 grid
    maps = [AttentionMap("a", (2, 2), left), AttentionMap("b", (2, 4), even)]
    heat = word_maps(maps, (2, 2))
    torch.testing.assert_close(heat, torch.tensor([[[0.75, 0.25]] * 2, [[0.25, 0.75]] * 2]))
    large = word_maps(maps[:1], (4, 6))
    assert large.shape == (2, 4, 6) and large[0, :, 0].eq(1).all() and large[0, :, -1].eq(0).all()
    torch.testing.assert_close(large.sum(0), torch.ones(4, 6))
    torch.testing.assert_close(
        large[0], F.interpolate(left[0, :, 0].view(1, 1, 2, 2), (4, 6), mode="bilinear")[0, 0]
    )


def test_rows_of_a_guided_batch(unet):
    """[with the prompt, without]: the first row is what the prompt alone gives."""
    x, t, cond = inputs(1)
    both = Cond(torch.cat([cond.context, torch.zeros_like(cond.context)]))
    with recording(unet) as alone:
        unet(x, t, cond)
    with recording(unet) as guided:
        unet(x.expand(2, -1, -1, -1), t.expand(2), both)
    torch.testing.assert_close(word_maps(guided, 8), word_maps(alone, 8))
    torch.testing.assert_close(
        word_maps(guided, 8, 1), torch.full((5, 8, 8), 0.2)
    )  # all tokens are the same nothing


def test_refusals(unet):
    with refuses(OptionError, "no maps", "recording"):
        word_maps([], 8)
    for row in (2, -1):
        with refuses(OptionError, f"row = {row}", "2 rows"):
            word_maps([AttentionMap("a", (1, 1), torch.ones(2, 1, 1))], 8, row)
    with (
        refuses(OptionError, "no cross-attention"),
        recording(
            UNet(UNetConfig(3, channels=8, mult=(1,), depth=(1,), heads=(1,), groups=4, blocks=1))
        ),
    ):
        pass


# ---------------------------------------------------------------- words


def test_words_of_clips_own_tokens():
    words = token_words("A photo of  a dachshund, 42 🍎")
    assert words[0] == ("<|startoftext|>", [0])
    assert [w for w, _ in words[1:-1]] == [
        "a",
        "photo",
        "of",
        "a",
        "dachshund",
        ",",
        "4",
        "2",
        "🍎",
    ]
    places = [p for _, ps in words for p in ps]
    assert places == list(range(77))
    ids = tokenize("A photo of  a dachshund, 42 🍎")[0]
    assert ids[words[-1][1][0]] == 49407 and ids[words[-2][1][-1]] != 49407
    for word, at in words[1:-1]:  # each word alone has the same tokens
        assert ids[at].tolist() == tokenize(word)[0, 1 : len(at) + 1].tolist()
    assert token_words("") == [("<|startoftext|>", [0]), ("<|endoftext|>", list(range(1, 77)))]


def test_words_of_an_own_tokenizer():
    own = train_tokenizer(["a red square", "红苹果"], length=8)
    assert token_words("a red square", own) == [
        ("<|startoftext|>", [0]),
        ("a", [1]),
        ("red", [2]),
        ("square", [3]),
        ("<|endoftext|>", [4, 5, 6, 7]),
    ]
    assert [w for w, _ in token_words("红苹果 red", own)[1:-1]] == ["红苹果", "red"]
    word, places = token_words("a zebrazebra red", own)[
        2
    ]  # cut in the middle: only five tokens are left for it
    assert (
        word == "zebrazebra"
        and places == [2, 3, 4, 5, 6]
        and token_words("a zebrazebra red", own)[-1] == ("<|endoftext|>", [7])
    )


class TestSharedAttention:
    @torch.no_grad()
    def test_switched_off_it_changes_nothing_and_on_only_every_second_picture(self, unet):
        x, t, cond = inputs(b=4)
        plain = unet(x, t, cond)
        with shared_attention(unet) as switch:
            shared = unet(x, t, cond)
            switch.on = False
            torch.testing.assert_close(unet(x, t, cond), plain, atol=1e-5, rtol=1e-5)
        assert torch.equal(unet(x, t, cond), plain)
        torch.testing.assert_close(shared[0::2], plain[0::2], atol=1e-5, rtol=1e-5)
        assert all((shared[k] - plain[k]).abs().max() > 1e-3 for k in (1, 3))

    @torch.no_grad()
    def test_the_second_one_reads_its_own_text_where_the_first_one_looks(self, unet):
        """softmax(Q_0 K_0^T / sqrt(d)) V_1, written out."""
        layer = unet.mid[1].blocks[0].attn2
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(2, 6, 16, generator=generator)
        context = torch.randn(2, 5, 6, generator=generator)
        with shared_attention(unet, ("attn2",)):
            _, second = layer(x, context)
        A = attention_weights(layer, x[:1], context[:1])[0]  # (heads, N, L)
        v = layer.v(context[1]).unflatten(-1, (layer.heads, -1)).transpose(0, 1)
        torch.testing.assert_close(second, layer.out((A @ v).transpose(0, 1).flatten(1)))

    @torch.no_grad()
    def test_equal_prompts_and_noise_give_equal_pictures(self, unet):
        x, t, cond = inputs(b=1)
        twice = Cond(cond.context.repeat(2, 1, 1))
        with shared_attention(unet):
            first, second = unet(x.repeat(2, 1, 1, 1), t.repeat(2), twice)
        torch.testing.assert_close(first, second)

    def test_an_error_inside_leaves_the_unet_as_it_was(self, unet):
        with pytest.raises(RuntimeError), shared_attention(unet):
            raise RuntimeError
        assert not [m for m in unet.modules() if "forward" in vars(m)]

    def test_a_unet_without_attention_is_refused(self):
        plain = UNet(UNetConfig(channels=8, mult=(1,), depth=(0,), middle=0, heads=(1,), groups=4))
        with refuses(OptionError, "attn1"), shared_attention(plain):
            pass
