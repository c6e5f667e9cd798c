"""Text: the official encoders' names and sizes, parity with the original, the tokenizer's ids."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import warnings

import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from helpers import read_json, read_tensors, refuses
from safetensors.torch import load_file, save_file
from weight_formula import tiny_weights, weight

from ddpm_edu import CheckpointError, DataError, OptionError, ShapeError, paths
from ddpm_edu.files.load import load_state
from ddpm_edu.files.names import to_ours
from ddpm_edu.networks.text import CLIP_L, OPEN_CLIP_G, OPEN_CLIP_H, Text, TextConfig, TextEncoder
from ddpm_edu.networks.tokenizer import Tokenizer, clean, clip_tokenizer, tokenize

KEYS = read_json("text_keys.json.gz")
CASES = read_json("tokenizer_cases.json.gz")
OFFICIAL = {
    "sd15": CLIP_L,
    "sd21": OPEN_CLIP_H,
    "sdxl_1": CLIP_L,
    "sdxl_2": OPEN_CLIP_G,
    "refiner": OPEN_CLIP_G,
}
SMALL_L = TextConfig(32, 3, 4, 64, length=77)  # the official vocabulary, everything else small
SMALL_G = TextConfig(48, 2, 4, 96, "gelu", projection=40, pad="!")


# ------------------------------------------------ the official ones, without their weights


@functools.cache
def on_meta(config):
    with torch.device("meta"):
        return TextEncoder(config)


def shapes_of(state):
    return {k: list(v.shape) for k, v in state.items()}


def meta_state(shapes):
    return {k: torch.empty(s, device="meta") for k, s in shapes.items()}


@pytest.mark.parametrize(
    "config, parameters", [(CLIP_L, 123_060_480), (OPEN_CLIP_G, 694_659_840)], ids=["L", "bigG"]
)
def test_parameter_counts_are_exact(config, parameters):
    assert sum(p.numel() for p in on_meta(config).parameters()) == parameters
    assert list(on_meta(config).buffers()) == []  # what is no weight would stay on the meta device


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "stripped"])
def test_original_keys_fit_one_to_one(name, prefix):
    own = shapes_of(on_meta(OFFICIAL[name]).state_dict())
    state = {
        k if prefix else k.replace("conditioner.embedders.", "").split(".", 1)[1]: s
        for k, s in KEYS["original"][name].items()
    }
    ours = shapes_of(to_ours("text", meta_state(state)))
    surplus = ours.keys() - own.keys()
    if (
        name == "sd21"
    ):  # the last of 24 layers (16 tensors) and the projection, which SD 2 does not use
        assert len(surplus) == 17 and all(
            "layers.23." in k or k == "text_projection.weight" for k in surplus
        )
    else:
        assert surplus == set()
    assert {k: s for k, s in ours.items() if k not in surplus} == own
    load_state(on_meta(OFFICIAL[name]), meta_state(state))


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("prefix", [True, False], ids=["text_model", "flat"])
def test_folder_keys_fit_one_to_one_and_back(name, prefix):
    official = KEYS["folder"][name]
    state = {k if prefix else k.removeprefix("text_model."): s for k, s in official.items()}
    extra = {"text_model.embeddings.position_ids" if prefix else "embeddings.position_ids": [1, 77]}
    ours = to_ours("text", meta_state(state | extra))
    assert shapes_of(ours) == shapes_of(on_meta(OFFICIAL[name]).state_dict())
    assert shapes_of(ours) == official
    load_state(on_meta(OFFICIAL[name]), meta_state(state | extra))


def test_every_tensor_of_open_clip_goes_where_the_map_says():
    """Small tensors with distinct numbers under all 390 names, against the key map of the truth."""
    rows = {
        k: [6, 5] if k.endswith("in_proj_weight") else [6] if k.endswith("in_proj_bias") else [4, 4]
        for k in KEYS["bigG_map"]
    }
    state = {k: torch.randn(s) for k, s in rows.items()}
    ours, left = to_ours("text", state), set()
    for key, row in KEYS["bigG_map"].items():
        if row["op"] == "copy":
            expected = {row["to"]: state[key]}
        elif row["op"] == "transpose":
            expected = {row["to"]: state[key].T}
        else:
            expected = dict(
                zip(row["to"] or [], state[key].split(2))
            )  # thirds, or nothing where it is dropped
        assert all(torch.equal(ours[to], value) for to, value in expected.items()), key
        left |= expected.keys()
    assert left == ours.keys() and len(ours) == 517


def test_two_encoders_at_once_are_refused():
    with refuses(CheckpointError, "two text encoders", "split_single_file"):
        to_ours("text", meta_state(KEYS["original"]["sdxl_1"] | KEYS["original"]["sdxl_2"]))


def test_only_what_a_system_leaves_out_may_be_left_out():
    encoder = TextEncoder(SMALL_L)
    state = encoder.state_dict()
    deeper = {k.replace("layers.2.", "layers.4."): v for k, v in state.items() if "layers.2." in k}
    with refuses(CheckpointError, "16 unexpected", "layers.4."):
        load_state(encoder, state | deeper)
    with refuses(CheckpointError, "1 missing", "final_layer_norm.bias"):
        load_state(
            encoder, {k: v for k, v in state.items() if k != "text_model.final_layer_norm.bias"}
        )
    load_state(
        encoder, state | {"text_projection.weight": torch.zeros(32, 32)}
    )  # CLIP-L with its projection, unused here


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_parity_with_the_original_clip(device):
    io = read_tensors("clip_text_tiny.io.safetensors")
    weights, digest = tiny_weights("tiny_clip_l", KEYS["tiny"])
    assert digest == KEYS["tiny_sha256"]
    with torch.device(device):
        encoder = TextEncoder(TextConfig(32, 3, 4, 128, vocab=64, length=10))
    load_state(encoder, weights | {"text_model.embeddings.position_ids": torch.arange(10)[None]})
    with torch.no_grad():
        hidden = encoder(io["in/input_ids"])
    for ours, theirs in zip(hidden, ("last_hidden_state", "hidden_states_2", "pooler_output")):
        torch.testing.assert_close(ours, io[f"out/{theirs}"], atol=1e-5, rtol=0)


def open_clip(state, ids, heads, layers):
    """OpenCLIP's text transformer in its own names and plain torch: hidden states before each
    layer and at the end; pooled."""
    h = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
    n, width = ids.shape[1], h.shape[2]
    mask = torch.full((n, n), -torch.inf).triu(1)
    states = [h]
    for i in range(layers):
        p = {k.split(f"resblocks.{i}.")[1]: v for k, v in state.items() if f"resblocks.{i}." in k}
        x = F.layer_norm(h, (width,), p["ln_1.weight"], p["ln_1.bias"]).transpose(0, 1)
        h = h + F.multi_head_attention_forward(
            x,
            x,
            x,
            width,
            heads,
            p["attn.in_proj_weight"],
            p["attn.in_proj_bias"],
            None,
            None,
            False,
            0.0,
            p["attn.out_proj.weight"],
            p["attn.out_proj.bias"],
            attn_mask=mask,
            need_weights=False,
        )[0].transpose(0, 1)
        x = F.layer_norm(h, (width,), p["ln_2.weight"], p["ln_2.bias"])
        h = h + F.linear(
            F.gelu(F.linear(x, p["mlp.c_fc.weight"], p["mlp.c_fc.bias"])),
            p["mlp.c_proj.weight"],
            p["mlp.c_proj.bias"],
        )
        states.append(h)
    last = F.layer_norm(h, (width,), state["ln_final.weight"], state["ln_final.bias"])
    pooled = torch.stack([row[int((i == i.max()).nonzero()[0])] for row, i in zip(last, ids)])
    return states, last, pooled @ state["text_projection"]


def open_clip_weights(config, layers, name):
    """Formula weights under OpenCLIP's names for a small text transformer."""
    block = {
        "ln_1.weight": 1,
        "ln_1.bias": 1,
        "ln_2.weight": 1,
        "ln_2.bias": 1,
        "attn.out_proj.bias": 1,
        "mlp.c_proj.bias": 1,
    }
    w, wide = config.width, config.hidden
    shapes = {f"transformer.resblocks.{i}.{k}": [w] for i in range(layers) for k in block}
    for i in range(layers):
        shapes |= {
            f"transformer.resblocks.{i}.{k}": s
            for k, s in {
                "attn.in_proj_weight": [3 * w, w],
                "attn.in_proj_bias": [3 * w],
                "attn.out_proj.weight": [w, w],
                "mlp.c_fc.weight": [wide, w],
                "mlp.c_fc.bias": [wide],
                "mlp.c_proj.weight": [w, wide],
            }.items()
        }
    shapes |= {
        "ln_final.weight": [w],
        "ln_final.bias": [w],
        "positional_embedding": [config.length, w],
        "logit_scale": [],
        "token_embedding.weight": [config.vocab, w],
        "text_projection": [w, config.projection or w],
    }
    return {k: torch.as_tensor(weight(f"{name}.{k}", s)) for k, s in shapes.items()}


def test_open_clip_from_its_own_names_gives_its_own_numbers():
    state = open_clip_weights(SMALL_G, 2, "small_g")
    encoder = TextEncoder(SMALL_G)
    load_state(encoder, {f"conditioner.embedders.1.model.{k}": v for k, v in state.items()})
    ids = tokenize(["a cat!", "a photograph of an astronaut riding a horse"], "!")
    with torch.no_grad():
        hidden = encoder(ids)
    states, last, pooled = open_clip(state, ids, 4, 2)
    torch.testing.assert_close(hidden.penultimate, states[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.last, last, atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.pooled, pooled, atol=1e-5, rtol=0)


def test_sd2_takes_the_second_last_layer_through_the_final_norm():
    """The single file holds one layer more than the encoder; what comes before it, normed, is SD
    2's context."""
    config = TextConfig(48, 2, 4, 96, "gelu", pad="!")
    state = open_clip_weights(config, 3, "small_h")
    sd2 = Text((config,))
    load_state(sd2.encoders[0], {f"cond_stage_model.model.{k}": v for k, v in state.items()})
    cond = sd2.encode(["a cat"])
    states, _, _ = open_clip(state, tokenize(["a cat"], "!"), 4, 3)
    expected = F.layer_norm(states[2], (48,), state["ln_final.weight"], state["ln_final.bias"])
    torch.testing.assert_close(cond.context, expected, atol=1e-5, rtol=0)
    assert cond.vector is None


# ------------------------------------------------ transformers' own classes and files


def client(config, eos=2):
    """What diffusers saves: transformers' class, random weights; official configs say
    eos_token_id 2, which is wrong."""
    kind = (
        transformers.CLIPTextModelWithProjection
        if config.projection
        else transformers.CLIPTextModel
    )
    return kind(
        transformers.CLIPTextConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            hidden_act=config.act,
            eos_token_id=eos,
            projection_dim=config.projection or config.width,
        )
    ).eval()


@pytest.mark.parametrize("flat", [False, True], ids=["text_model", "flat"])
@pytest.mark.parametrize("config", [SMALL_L, SMALL_G], ids=["plain", "projection"])
def test_a_clients_files_load_and_agree(config, flat, tmp_path):
    theirs = client(config)
    theirs.save_pretrained(tmp_path)
    state = {
        k.removeprefix("text_model."): v
        for k, v in load_file(tmp_path / "model.safetensors").items()
    }
    if not flat:
        state = {
            k if k.startswith("text_projection") else f"text_model.{k}": v for k, v in state.items()
        }
    ours = TextEncoder(config)
    load_state(ours, state)
    ids = tokenize(["", "a cat", "naïve café <|endoftext|> more"], config.pad)
    with torch.no_grad():
        a, b = ours(ids), theirs(ids, output_hidden_states=True)
    torch.testing.assert_close(a.last, b.last_hidden_state, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.penultimate, b.hidden_states[-2], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        a.pooled, b.text_embeds if config.projection else b.pooler_output, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("config", [SMALL_L, SMALL_G], ids=["plain", "projection"])
def test_transformers_loads_what_we_save(config, tmp_path):
    torch.manual_seed(0)
    ours, theirs = TextEncoder(config), client(config)
    theirs.save_pretrained(tmp_path)  # for its config.json
    save_file(ours.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = type(theirs).from_pretrained(tmp_path).eval()
    ids = tokenize(["a cat"], config.pad)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).last, loaded(ids).last_hidden_state, atol=1e-6, rtol=0)
        if config.projection:
            torch.testing.assert_close(ours(ids).pooled, loaded(ids).text_embeds, atol=1e-6, rtol=0)


def test_the_act_matters():
    """quick_gelu and exact GELU are told apart well above the tolerance."""
    a = TextEncoder(SMALL_L)
    b = TextEncoder(TextConfig(32, 3, 4, 64, "gelu"))
    weights = {
        k: torch.as_tensor(weight(f"act.{k}", list(v.shape))) for k, v in a.state_dict().items()
    }
    for encoder in (a, b):
        load_state(encoder, weights)
    ids = tokenize(["a cat"])
    with torch.no_grad():
        assert (a(ids).last - b(ids).last).abs().max() > 1e-3


# ---------------------------------------------------------------- Text: what the denoiser is told


def test_sd1_takes_the_last_layer_or_the_second_last_through_the_final_norm():
    prompts = ["a cat", "a lighthouse at dusk"]
    last, skip = Text((SMALL_L,)), Text((SMALL_L,), layer="penultimate")
    skip.load_state_dict(last.state_dict())
    encoder = last.encoders[0]
    with torch.no_grad():
        hidden = encoder(tokenize(prompts))
        normed = encoder.text_model.final_layer_norm(hidden.penultimate)
    assert (
        torch.equal(last.encode(prompts).context, hidden.last)
        and last.encode(prompts).vector is None
    )
    assert torch.equal(skip.encode(prompts).context, normed) and not torch.allclose(
        normed, hidden.last
    )


def test_sdxl_puts_both_second_last_layers_side_by_side():
    sdxl = Text((SMALL_L, SMALL_G), layer="penultimate")
    prompts = ["a cat!", ""]
    cond = sdxl.encode(prompts)
    first, second = sdxl.encoders
    with torch.no_grad():
        h1, h2 = first(tokenize(prompts, "eot")), second(tokenize(prompts, "!"))
    assert torch.equal(
        cond.context, torch.cat([h1.penultimate, h2.penultimate], dim=2)
    ) and cond.context.shape == (2, 77, 80)
    at = [
        tokenize(prompts, "!")[i].tolist().index(49407) for i in range(2)
    ]  # [4, 1]: start, a, cat, !, end
    by_hand = torch.stack([h2.last[i, at[i]] for i in range(2)]) @ second.text_projection.weight.T
    assert at == [4, 1] and cond.vector.shape == (2, 40)
    torch.testing.assert_close(cond.vector, by_hand, atol=1e-6, rtol=0)
    assert not cond.context.requires_grad and not cond.vector.requires_grad


def test_the_refiner_takes_the_big_one_alone_without_the_norm():
    refiner = Text((SMALL_G,), layer="penultimate")
    cond = refiner.encode(["a cat"])
    with torch.no_grad():
        hidden = refiner.encoders[0](tokenize(["a cat"], "!"))
    assert torch.equal(cond.context, hidden.penultimate) and torch.equal(cond.vector, hidden.pooled)


def test_a_prompt_does_not_depend_on_its_batch():
    model = Text((SMALL_L, SMALL_G), layer="penultimate")
    together, alone = model.encode(["a cat", "x", "a dog " * 30]), model.encode(["x"])
    torch.testing.assert_close(together.context[1:2], alone.context, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.vector[1:2], alone.vector, atol=1e-6, rtol=0)
    assert torch.equal(model.encode(["x"]).context, alone.context)


def test_half_precision_stays_half():
    assert Text((SMALL_G,)).to(torch.bfloat16).encode(["a cat"]).context.dtype == torch.bfloat16


# ---------------------------------------------------------------- the tokenizer


@pytest.mark.parametrize("pad, column", [("eot", "ids_clip_l_pad_eot"), ("!", "ids_open_clip")])
@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: ascii(case["text"][:20]))
@pytest.mark.filterwarnings("ignore:the prompt is")
def test_ids_are_the_original_ones(case, pad, column):
    """SD 1's tokenizer (transformers with ftfy), and OpenCLIP's, which SD 2 and SDXL's second
    encoder came with."""
    assert tokenize([case["text"]], pad).tolist() == [case[column]]


def test_where_other_tokenizers_differ():
    """diffusers' SDXL takes every "!" for padding; transformers 5 leaves entities, ligatures,
    curly quotes and NUL alone."""

    def others(column, ours):
        return {case["text"] for case in CASES["cases"] if case[column] != case[ours]}

    endings = {"<|endoftext|>", "<|startoftext|> hi <|endoftext|>"}
    assert others("ids_clip_g_hf_pad_0", "ids_open_clip") == endings | {"...!!!???"}
    assert others("transformers5_ids_clip_l", "ids_clip_l_pad_eot") == {
        "&lt;b&gt; html &amp; entities",
        "ﬁ ligature ½ ²",
        "\x00null",
        "“smart quotes” — em dash",
    }


def test_the_official_files_come_out_byte_for_byte():
    tokenizer = clip_tokenizer()
    vocab = (
        json.dumps(tokenizer.bpe.get_vocab(), sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    )
    assert hashlib.sha256(vocab.encode()).hexdigest() == CASES["vocab_json_sha256"]
    model = json.loads(tokenizer.bpe.to_str())["model"]
    merges = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
    assert hashlib.sha256(merges.encode()).hexdigest() == CASES["merges_txt_sha256"]


def test_cleaning():
    assert clean("  A\tB\n C ") == "a b c"
    assert clean("fish &amp;amp; chips") == "fish & chips"
    assert clean("“ﬁne” ‘tis Ａｂ！\u3000ｶﾞ") == '"fine" \'tis ab! ガ'
    assert (
        clean("\ud83d\ude00 \ud83d") == "\U0001f600 \ufffd"
    )  # a pair of surrogates, and a lone one
    assert clean("e\u0301") == "\u00e9"


def test_what_does_not_fit_is_quoted():
    with pytest.warns(
        UserWarning, match=r"79 tokens long and only 75 fit; left out: 'w75 w77'"
    ) as caught:
        ids = tokenize(
            ["a " * 73 + "w75 w77"]
        )  # a digit is a token of its own: w 7 5, w 7 7 and 73 a's are 79
    assert len(caught) == 1 and ids.shape == (1, 77) and ids[0, -1] == 49407
    with pytest.warns(UserWarning, match=r"300 tokens .* left out: 'dog( dog)+ +\.\.\.'$"):
        tokenize(["dog " * 300])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(["dog " * 75])


@pytest.mark.parametrize("prompt", ["", "\0", "🐱👍🏽", "   ", "\ud83d", "a" * 10_000])
@pytest.mark.filterwarnings("ignore:the prompt is")
def test_odd_prompts_work(prompt):
    for pad in ("eot", "!"):
        ids = tokenize([prompt], pad)
        assert (
            ids.shape == (1, 77) and ids.dtype == torch.long and ids[0, 0] == 49406 and 49407 in ids
        )


@pytest.mark.parametrize(
    "prompts, words",
    [
        (None, "None.*list of strings"),
        (b"a cat", "b'a cat'.*list of strings"),
        (7, "7.*list"),
        ([], "0 prompts"),
        (["x"] * 1025, "1025 prompts.*1024"),
        ([1, 2], "prompt 0 is 1, a int"),
        (["a", None], "prompt 1 is None"),
        ([b"a"], "a bytes.*pass a string"),
        ({"a": 1}, "list of strings"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, words):
    with refuses(OptionError, words):
        tokenize(prompts)
    with refuses(OptionError, words):
        Text((SMALL_L,)).encode(prompts)


def test_one_string_is_one_prompt():
    assert torch.equal(tokenize("a cat"), tokenize(["a cat"]))


def test_bad_options_are_refused():
    with refuses(OptionError, "pad = 'zero'", "eot"):
        tokenize(["a"], "zero")
    with refuses(OptionError, "layer = 'first'", "penultimate"):
        Text((SMALL_L,), layer="first")
    with refuses(OptionError, "tuple of TextConfig"):
        Text(())
    for bad, words in (
        (dict(width=30, heads=4), "multiple of heads"),
        (dict(layers=0), "layers = 0"),
        (dict(heads=True), "heads = True"),
        (dict(act="relu"), "quick_gelu, gelu"),
        (dict(pad="0"), "eot, !"),
        (dict(projection=-1), "projection = -1"),
    ):
        with refuses(OptionError, words):
            TextConfig(**bad)


@pytest.mark.parametrize(
    "ids, error, words",
    [
        (torch.zeros(77, dtype=torch.long), ShapeError, ("ids", "77")),
        (torch.zeros(1, 78, dtype=torch.long), ShapeError, ("ids", "77")),
        (torch.zeros(1, 77), ShapeError, ("ids", "float32")),
        (torch.tensor([[49406, 49408]]), DataError, ("49408", "0 to 49407", "vocabulary")),
        (torch.tensor([[49406, -1]]), DataError, ("-1", "0 to 49407", "vocabulary")),
    ],
)
def test_bad_ids_are_refused_before_the_first_layer(ids, error, words):
    encoder, reached = TextEncoder(SMALL_L), []
    for layer in encoder.modules():
        if layer is not encoder:
            layer.register_forward_pre_hook(lambda layer, _: reached.append(layer))
    with refuses(error, *words):
        encoder(ids)
    assert not reached


def test_a_tokenizer_larger_than_the_vocabulary_is_named():
    small = TextConfig(16, 1, 2, 32, vocab=100)
    with refuses(DataError, "token id 49406", "0 to 99", "tokenizer"):
        Text((small,)).encode(["a cat"])


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path))
    load = clip_tokenizer.__wrapped__
    with refuses(DataError, "merges.txt.gz", "is missing", "git checkout"):
        load()
    file = tmp_path / "tokenizer" / "merges.txt.gz"
    monkeypatch.delenv("DDPM_EDU_DATA")
    shutil.copytree(paths.data_folder() / "tokenizer", tmp_path / "tokenizer")
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    with refuses(DataError, "merges.txt.gz", "is cut short", "git checkout"):
        load()


def test_an_own_tokenizer_and_a_small_vocabulary(tmp_path):
    words = ["[pad]", "red", "blue", "square", "circle", "<|startoftext|>", "<|endoftext|>"]
    bpe = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[pad]")
    )
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    bpe.save(str(tmp_path / "tokenizer.json"))
    config = TextConfig(16, 2, 2, 32, vocab=7, length=6, pad="!")
    model = Text((config,), tokenizer=Tokenizer(tmp_path / "tokenizer.json", length=6))
    assert model.tokenizer(["red square", "blue"], "!").tolist() == [
        [5, 1, 3, 6, 0, 0],
        [5, 2, 6, 0, 0, 0],
    ]
    assert model.encode(["red square", "blue"]).context.shape == (2, 6, 16)
    with refuses(OptionError, "highest id"):
        Tokenizer(bpe, end="circle")
    with refuses(DataError, "not a file of the `tokenizers` package"):
        Tokenizer(tmp_path / "nothing.json")


def test_the_first_prompt_is_quick():
    """Loading the tokenizer takes less than 0.3 s of processor time, and neither it nor
    tokenizer.py loads transformers."""
    code = (
        "import sys, time, torch\nstart = time.process_time()\n"
        "from ddpm_edu.networks.tokenizer import tokenize\ntokenize(['a cat'])\n"
        "assert 'transformers' not in sys.modules\nprint(time.process_time() - start)"
    )
    command = [sys.executable, "-c", code]
    once = lambda: float(subprocess.run(command, capture_output=True, check=True).stdout)
    assert once() < 0.3 or once() < 0.3  # once more, as a neighbour may have been in the way
