"""CLIP: features and loss against transformers' own, closed forms, the trained tokenizer, files."""

import copy
import json
import math
from collections import Counter

import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from folder_writer import write_tokenizer
from helpers import refuses

from ddpm_edu import CheckpointError, DataError, OptionError, ShapeError
from ddpm_edu.files import folder
from ddpm_edu.files.load import load, save
from ddpm_edu.networks.clip import (
    CLIP,
    OPENAI_MEAN,
    OPENAI_STD,
    CLIPConfig,
    clip_score,
    contrastive_loss,
    cosines,
    objective,
    retrieval,
    zero_shot,
)
from ddpm_edu.networks.text import TextConfig
from ddpm_edu.networks.tokenizer import (
    Tokenizer,
    clean,
    known_words,
    learn_merges,
    split_words,
    train_tokenizer,
    unseen,
)
from ddpm_edu.training.optim import EMA

COLOURS = {"red": (1.0, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1)}
CAPTIONS = [f"a {colour} square" for colour in COLOURS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 600, 8)


def tiny(tokenizer, **more):
    torch.manual_seed(0)
    text = TextConfig(
        16, 1, 2, 32, projection=12, vocab=tokenizer.bpe.get_vocab_size(), length=tokenizer.length
    )
    return CLIP(
        CLIPConfig(
            text, **{**dict(size=8, patch=4, width=16, layers=1, heads=2, hidden=32), **more}
        ),
        tokenizer,
    )


def squares(n=4, size=8):
    """n pictures of one colour, the colours in turn, and their captions."""
    x = torch.tensor(list(COLOURS.values()))[torch.arange(n) % 4]
    return x[:, :, None, None].expand(n, 3, size, size).clone(), [CAPTIONS[i % 4] for i in range(n)]


# ---------------------------------------------------------------- the loss


def test_loss_closed_forms():
    eye = torch.eye(5)
    assert contrastive_loss(eye, eye, 3.0).item() == pytest.approx(
        math.log(1 + 4 * math.exp(-3)), abs=1e-6
    )  # own e^3, four others e^0
    alike = F.normalize(torch.ones(5, 7), dim=1)
    assert contrastive_loss(alike, alike, 100.0).item() == pytest.approx(
        math.log(5), abs=1e-5
    )  # no telling apart


def test_loss_is_symmetric_and_transformers_own():
    torch.manual_seed(1)
    image, text = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    logits = 7 * text @ image.T
    theirs = transformers.models.clip.modeling_clip
    theirs = getattr(theirs, "image_text_contrastive_loss", None) or theirs.clip_loss
    assert contrastive_loss(image, text, 7.0).item() == pytest.approx(
        theirs(logits).item(), abs=1e-6
    )
    assert contrastive_loss(text, image, 7.0).item() == pytest.approx(
        contrastive_loss(image, text, 7.0).item(), abs=1e-6
    )


def test_the_same_text_twice_is_no_wrong_answer():
    eye = torch.eye(3)[[0, 1, 1]]  # pictures and texts 1 and 2 are the same
    same = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1]], dtype=torch.bool)
    other, twin = math.log(1 + 2 * math.exp(-2)), math.log(1 + math.exp(-2))
    assert contrastive_loss(eye, eye, 2.0, same).item() == pytest.approx(
        (other + 2 * twin) / 3, abs=1e-6
    )
    assert contrastive_loss(eye, eye, 2.0, torch.eye(3, dtype=torch.bool)).item() == pytest.approx(
        contrastive_loss(eye, eye, 2.0).item()
    )
    everything = torch.ones(3, 3, dtype=torch.bool)
    lone = torch.randn(3, 4, requires_grad=True)
    loss = contrastive_loss(lone, lone, 2.0, everything)
    loss.backward()
    assert loss.item() == 0 and lone.grad.isfinite().all()


def test_loss_refuses_what_is_no_pair():
    with refuses(ShapeError, r"\(3, 4\)", r"\(2, 4\)"):
        contrastive_loss(torch.ones(3, 4), torch.ones(2, 4))
    for same in (torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 3)):
        with refuses(ShapeError, r"same", r"bool"):
            contrastive_loss(torch.ones(3, 4), torch.ones(3, 4), same=same)


# ---------------------------------------------------------------- the model


def test_unit_vectors_and_cosines(tokenizer):
    clip, (x, captions) = tiny(tokenizer), squares()
    image, words = clip.image(x), clip.words(captions)
    for z in (image, words):
        assert z.shape == (4, 12)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(
        clip.similarity(x, captions[:2]),
        F.cosine_similarity(image[:, None], words[None, :2], dim=-1),
    )
    assert torch.equal(clip.words(clip.ids(captions)), words) and clip.words(
        "a red square"
    ).shape == (1, 12)
    many = clip.ids(["a red square"] * 1500)  # more than a tokenizer takes at a time
    assert many.shape == (1500, 8) and torch.equal(many[1400], clip.ids("a red square")[0])


def test_the_temperature_stays_above_a_hundredth(tokenizer):
    clip = tiny(tokenizer)
    assert clip.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        clip.log_scale.fill_(9.0)
    assert clip.scale.item() == 100


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 8, 12), (1, 1, 8, 8), (1, 3, 32, 32)])
def test_wrong_pictures_are_refused(tokenizer, shape):
    with refuses(ShapeError, r"\(B, 3, 8, 8\)", "resize"):
        tiny(tokenizer).image(torch.zeros(shape))


def test_bad_configs_are_refused(tokenizer):
    text = TextConfig(16, 1, 2, 32, projection=12, vocab=600, length=8)
    for bad, words in (
        (dict(text=TextConfig()), "projection above 0"),
        (dict(text={"widht": 3}), "widht"),
        (dict(text=None), "TextConfig"),
        (dict(patch=5), "size = 32 is not a multiple of patch = 5"),
        (dict(heads=3), "width = 64.*heads = 3"),
        (dict(layers=0), "layers = 0"),
        (dict(size=True), "size = True"),
        (dict(pixels="raw"), "plain, openai"),
    ):
        with refuses(OptionError, words):
            CLIPConfig(**{"text": text, **bad})
    with refuses(OptionError, "700", "length = 8", "make them equal"):
        CLIP(CLIPConfig(TextConfig(16, 1, 2, 32, projection=12, vocab=700, length=8)), tokenizer)
    with refuses(OptionError, "no tokenizer"):
        CLIP(CLIPConfig(text)).words(["a"])
    with refuses(OptionError, "list of strings"):
        tiny(tokenizer).words(None)


def test_it_learns_and_knows_doubles(tokenizer):
    """32 pictures of 4 colours: without the mask the loss could not fall below log 8."""
    clip, batch = tiny(tokenizer), squares(32)
    loss, optimizer = objective(clip), torch.optim.Adam(clip.parameters(), 1e-2)
    for _ in range(40):
        value = loss(clip, batch, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < 0.1
    x, captions = squares()
    assert retrieval(clip, x, captions) == 1 and zero_shot(clip, x, captions[::-1]).tolist() == [
        3,
        2,
        1,
        0,
    ]
    good, bad = clip_score(clip, x, captions), clip_score(clip, x, captions[1:] + captions[:1])
    assert (good > bad + 10).all() and (bad >= 0).all()
    averaged = EMA(clip, 0.9).model  # as training copies it, its tokenizer too
    assert torch.equal(averaged.words(captions), clip.words(captions))


def test_captions_are_tokenized_once(tokenizer):
    clip, batch, calls = tiny(tokenizer), squares(), []
    clip.tokenizer = lambda prompts, pad: calls.append(list(prompts)) or tokenizer(prompts, pad)
    loss = objective(clip)
    assert loss(clip, batch).item() == loss(clip, batch).item() and calls == [CAPTIONS]


def test_measures_by_hand(tokenizer):
    clip, (x, captions) = tiny(tokenizer), squares()
    cos = clip.similarity(x, captions).detach()
    torch.testing.assert_close(cosines(clip, x, captions, size=3), cos)
    torch.testing.assert_close(clip_score(clip, x, captions), 100 * cos.diagonal().clamp(min=0))
    assert torch.equal(zero_shot(clip, x, captions), cos.argmax(1))
    assert retrieval(clip, x, captions) == (cos.argmax(1) == torch.arange(4)).double().mean()
    assert (
        retrieval(clip, x, ["A red square", "a red  square"] * 2) == 1
    )  # one caption in two spellings
    for measure in (retrieval, clip_score):
        with refuses(ShapeError, "4 pictures", "one caption a picture"):
            measure(clip, x, captions[:3])
    with refuses(DataError, "images"):
        zero_shot(clip, x[:0], captions)


def test_pictures_of_another_range_have_no_score(tokenizer):
    """Reported at github.com/alwaysuu/CLIPDenoising#6 and others: scores of bytes or NaN, without
    a word."""
    clip, (x, captions) = tiny(tokenizer), squares()
    bad = x.clone()
    bad[1, 0, 0, 0] = math.nan
    for wrong, words in (
        (((x + 1) * 127.5).byte(), "uint8"),
        ((x + 1) * 127.5, r"\[0\]"),
        (bad, r"nan.*\[1\]"),
        (x[:0], "images"),
        (x.numpy(), "float32"),
    ):
        with refuses(DataError, "images", words):
            clip_score(clip, wrong, captions[: len(wrong)])
    with pytest.warns(UserWarning, match=r"\[0, 1\] instead of \[-1, 1\]"):
        clip_score(clip, (x + 1) / 2, captions)


# ---------------------------------------------------------------- the tokenizer


def test_every_text_can_be_written_and_read_again(tokenizer):
    long = Tokenizer(tokenizer.bpe, length=400)
    alphabet = {
        chr(i + 256 * (not (33 <= i < 127 or 161 <= i < 173 or i >= 174))): i for i in range(256)
    }
    hidden = iter(i for i in range(256) if not (33 <= i < 127 or 161 <= i < 173 or i >= 174))
    alphabet = {
        k: v for k, v in alphabet.items() if v not in {*range(33), *range(127, 161), 173}
    } | {chr(256 + n): i for n, i in enumerate(hidden)}
    for text in ("a red square", "zürich quiz, x!", "红苹果", "🍎 q", "0123 don't"):
        ids, _ = long.pieces(clean(text), special=True)
        tokens = [tokenizer.bpe.id_to_token(i) for i in ids]
        spelt = bytes(alphabet[c] for t in tokens for c in t.replace("</w>", "")).decode()
        assert spelt == clean(text).replace(" ", "")


def test_words_of_the_captions_are_one_token_each(tokenizer):
    assert [tokenizer.bpe.id_to_token(i) for i in tokenizer(["a red square"])[0].tolist()] == [
        "<|startoftext|>",
        "a</w>",
        "red</w>",
        "square</w>",
    ] + ["<|endoftext|>"] * 4
    chinese = train_tokenizer(["红苹果", "绿苹果"] * 3, 1024)
    assert (chinese(["红苹果"])[0] == chinese.end).sum() == 14  # start, one piece, ends


def test_merges_of_the_paper():
    """Sennrich et al. 2016, algorithm 1: its words and its first merges; the joined ends come
    first."""
    words = Counter({"low": 5, "lower": 2, "newest": 6, "widest": 3})
    merges = learn_merges(words, 100)
    assert merges[:2] == [("s", "t</w>"), ("e", "st</w>")]  # 9 times each
    assert (
        ("l", "o") in merges
        and [("".join(m)) for m in merges].count("newest</w>") == 1
        and len(merges) < 100
    )
    assert (
        learn_merges(words, 3) == merges[:3]
        and learn_merges(Counter(dict(reversed(words.items()))), 100) == merges
    )
    assert learn_merges(Counter({"aaaa": 1}), 9) == [("a", "a"), ("aa", "a"), ("aaa", "a</w>")]


def test_the_vocabulary_stays_in_bounds():
    captions = [f"{a}{b}{c}" for a in "abcdef" for b in "ghijkl" for c in "mnop"]
    for vocab in (514, 540, 600):
        assert train_tokenizer(captions, vocab).bpe.get_vocab_size() <= vocab
    assert train_tokenizer(captions, 540).bpe.get_vocab_size() == 540
    assert train_tokenizer(captions).bpe.to_str() == train_tokenizer(captions).bpe.to_str()
    for bad, words in ((dict(vocab=513), "vocab = 513.*514"), (dict(length=2), "length = 2")):
        with refuses(OptionError, words):
            train_tokenizer(captions, **bad)
    for captions in ([], "a red square"):
        with refuses(OptionError, "list of texts"):
            train_tokenizer(captions)


def test_tokenizers_survive_files(tokenizer, tmp_path):
    again = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.bpe.to_str()), length=8)
    write_tokenizer(tmp_path, "eot", tokenizer)
    texts = ["a red square", "Qüx 红 <|endoftext|> !"]
    config = TextConfig(vocab=tokenizer.bpe.get_vocab_size(), length=8)
    read = folder.tokenizer(folder.Folder(tmp_path), ".", config)
    for other in (again, read, copy.deepcopy(tokenizer)):
        for pad in ("eot", "!"):
            with pytest.warns(UserWarning, match="left out"):
                assert torch.equal(
                    other(texts, pad), Tokenizer(tokenizer.bpe, length=8)(texts, pad)
                )


def test_unseen_words():
    words = known_words([*CAPTIONS, "红苹果"])
    assert words == {"a", "red", "green", "blue", "white", "square", "红", "苹", "果"}
    assert unseen("A  purple red SQUARE, a purple 7!", words) == ["purple", ",", "7", "!"]
    assert (
        unseen("红果", words) == []
        and unseen("", words) == []
        and unseen("绿苹果x", words) == ["绿", "x"]
    )
    assert split_words("top-left 42") == ["top", "-", "left", "4", "2"]
    with refuses(OptionError, "list of strings"):
        unseen(None, words)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("eight_bits", [True, False])
def test_saved_and_loaded(tokenizer, tmp_path, eight_bits):
    clip, (x, captions) = tiny(tokenizer), squares()
    save(tmp_path / "c.safetensors", clip, {"seconds": 3}, dtype=torch.int8 if eight_bits else None)
    again = load(tmp_path / "c.safetensors")
    assert again.meta == {"seconds": 3} and again.config == clip.config and not again.training
    torch.testing.assert_close(
        again.similarity(x, captions),
        clip.similarity(x, captions),
        atol=2e-2 if eight_bits else 0,
        rtol=0,
    )
    assert not any(p.requires_grad for p in again.parameters())


def test_by_name(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path))
    save(tmp_path / "weights" / "my_clip.safetensors", tiny(tokenizer))
    assert load("my_clip").config.size == 8
    with refuses(CheckpointError, "your_clip", "no such file", "my_clip"):
        load("your_clip")


def test_damaged_files_are_refused(tokenizer, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path, clip = tmp_path / "c.safetensors", tiny(tokenizer)
    save(path, clip)
    with safe_open(path, "pt") as f:
        meta = json.loads(f.metadata()["ddpm_edu"])
    config, state = meta["config"], clip.state_dict()
    for change in (
        {"class": "none"},
        {"config": None},
        {"config": {"text": 3}},
        {"tokenizer": "{}"},
        {"tokenizer": 7},
        {"tokenizer": {**meta["tokenizer"], "end": "a"}},
        {"config": {**config, "width": 17}},
        {"config": {**config, "layers": 60}},
    ):
        changed = {**meta, **change}
        save_file(state, path, metadata={"ddpm_edu": json.dumps(changed)})
        with refuses(CheckpointError, "c.safetensors"):
            load(path)
    for broken, words in (
        ({k: v for k, v in state.items() if k != "log_scale"}, "missing"),
        ({**state, "log_scale": torch.tensor(math.nan)}, "NaN"),
    ):
        save_file(broken, path, metadata={"ddpm_edu": json.dumps(meta)})
        with refuses(CheckpointError, "c.safetensors", words):
            load(path)
    path.write_bytes(path.read_bytes()[:-10])
    with refuses(CheckpointError, "cut short"):
        load(path)


def transformers_clip(act, end=2):
    torch.manual_seed(0)
    text = dict(
        vocab_size=100,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=10,
        hidden_act=act,
        eos_token_id=end,
        bos_token_id=98,
    )
    vision = dict(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=12,
        patch_size=4,
        hidden_act=act,
    )
    model = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    ).eval()
    for p in model.parameters():  # its own start is too small to tell one activation from another
        torch.nn.init.normal_(p, std=0.3) if p.ndim else torch.nn.init.constant_(p, 3.0)
    return model


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [2, 99])
def test_transformers_folder(tmp_path, act, end):
    theirs = transformers_clip(act, end)
    theirs.save_pretrained(tmp_path)
    clip = load(tmp_path)
    x, ids = torch.rand(3, 3, 12, 12) * 2 - 1, torch.randint(3, 98, (5, 10))
    ids[:, 0], ids[torch.arange(5), torch.tensor([9, 4, 5, 6, 2])] = 98, 99
    mean, std = (torch.tensor(z).view(3, 1, 1) for z in (OPENAI_MEAN, OPENAI_STD))
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=((x + 1) / 2 - mean) / std)
        torch.testing.assert_close(clip.image(x), out.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(clip.words(ids), out.text_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            clip.similarity(x, ids) * clip.scale, out.logits_per_image, atol=1e-4, rtol=0
        )
    processor = transformers.CLIPImageProcessor()
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (OPENAI_MEAN, OPENAI_STD)


def test_a_damaged_folder_is_refused(tmp_path):
    transformers_clip("gelu").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    sound = json.loads(config.read_text())
    for part, name, value in (
        ("vision_config", "hidden_act", "quick_gelu"),
        ("vision_config", "hidden_size", 36),
        ("vision_config", "patch_size", 0),
        ("text_config", "hidden_act", "relu"),
        ("text_config", "eos_token_id", 50),
        ("text_config", "num_hidden_layers", 3),
        ("vision_config", "layer_norm_eps", 1e-6),
        ("text_config", "vocab_size", "many"),
    ):
        config.write_text(json.dumps({**sound, part: {**sound[part], name: value}}))
        with refuses(CheckpointError, str(tmp_path.name)):
            load(tmp_path)
    config.write_text("[")
    with refuses(CheckpointError, "config.json", "JSON"):
        load(tmp_path)
    config.write_text(json.dumps(sound))
    (tmp_path / "model.safetensors").unlink()
    with refuses(CheckpointError, "no weights"):
        load(tmp_path)
