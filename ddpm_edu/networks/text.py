"""Prompts to what the denoiser is told: token ids, CLIP's text transformer, and `Cond`.

CLIP (Radford et al. 2021) trains a transformer on captions; Stable Diffusion reads its hidden states. The transformer
is the one of the `transformers` package, built from our config; the tokenizer's merges ship with the course.
"""

import functools
import gzip
import html
import re
import unicodedata
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import DataError, OptionError, checked_prompts, token_ids
from ..paths import data_folder

INSTALL = 'pip install -c constraints.txt -e ".[sd]"'


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a CLIP text transformer.

    width: of the hidden states.  layers, heads: of the transformer.  hidden: width inside the feed-forward.
    act: "quick_gelu" (x sigmoid(1.702 x), OpenAI's CLIP) or "gelu" (exact, OpenCLIP).  projection: width of the pooled
    vector after its projection (0: none).  pad: what fills a prompt up to `length`, the end token again ("eot") or
    id 0 ("!").  vocab: number of token ids; the highest one ends a prompt.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    act: str = "quick_gelu"
    projection: int = 0
    pad: str = "eot"
    vocab: int = 49408
    length: int = 77

    def __post_init__(self):
        for name in ("width", "layers", "heads", "hidden", "projection", "vocab", "length"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < (name != "projection"):
                raise OptionError(
                    f"{name} = {size!r} in {self}: sizes are whole numbers of at least 1 (projection: 0 for none)"
                )
        if self.width % self.heads:
            raise OptionError(
                f"width = {self.width} is not a multiple of heads = {self.heads}: change one of them"
            )
        for name, known in (("act", ("quick_gelu", "gelu")), ("pad", ("eot", "!"))):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"{name} = {getattr(self, name)!r}: choose one of {', '.join(known)}"
                )


CLIP_L = TextConfig()  # SD 1, and SDXL's first
OPEN_CLIP_H = TextConfig(1024, 23, 16, 4096, "gelu", pad="!")  # SD 2 leaves out layer 24 of 24
OPEN_CLIP_G = TextConfig(
    1280, 32, 20, 5120, "gelu", projection=1280, pad="!"
)  # SDXL's second, the refiner's only


class Hidden(NamedTuple):
    """What a text encoder knows of a prompt: every token twice, and the whole in one vector."""

    last: Tensor  # (B, L, width) after all layers and the final norm
    penultimate: Tensor  # (B, L, width) before the last layer, not normed
    pooled: Tensor  # (B, projection or width): `last` at the first end token, projected if there is a projection


class TextEncoder(nn.Module):
    """CLIP's causal text transformer: ids (B, L) -> Hidden. Names of its weights are those of transformers' own files."""

    def __init__(self, config: TextConfig):
        super().__init__()
        c = self.config = config
        try:
            from transformers import CLIPTextConfig, CLIPTextModel
        except ImportError as e:
            raise OptionError(
                f"text encoders need the package transformers, which is not installed: {INSTALL}"
            ) from e
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=c.vocab,
                hidden_size=c.width,
                intermediate_size=c.hidden,
                num_hidden_layers=c.layers,
                num_attention_heads=c.heads,
                max_position_embeddings=c.length,
                hidden_act=c.act,
                bos_token_id=None,
                pad_token_id=None,
                eos_token_id=c.vocab - 1,
            )
        )
        self.text_model = getattr(clip, "text_model", clip)  # transformers 5.6 took one shell off
        self.text_model.embeddings.register_buffer(
            "position_ids", None
        )  # not a weight: it would stay behind on the meta device
        self.text_projection = (
            nn.Linear(c.width, c.projection, bias=False) if c.projection else None
        )

    def forward(self, ids: Tensor) -> Hidden:
        token_ids(ids, self.config.vocab, self.config.length)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        out = self.text_model(ids, position_ids=positions, output_hidden_states=True)
        pooled = out.last_hidden_state[
            torch.arange(len(ids), device=ids.device), ids.argmax(1)
        ]  # the first of equal ones
        return Hidden(
            out.last_hidden_state,
            out.hidden_states[-2],
            self.text_projection(pooled) if self.config.projection else pooled,
        )

    def unused(self, names) -> set[str]:
        """Names in a file that this encoder can do without: SD 2's last layer, and a projection where the config has none."""
        surplus = [f"text_model.encoder.layers.{self.config.layers}."] + ["text_projection."] * (
            not self.config.projection
        )
        return {name for name in names if name.startswith(tuple(surplus))}


class Text(nn.Module):
    """The text side of one system: one or two encoders and the tokenizer.

    layer: "last", after the final norm, as in SD 1 (and in SD 2, whose encoder is cut one layer early); or "penultimate",
    the second-last layer: as it is where the last encoder has a projection (SDXL, refiner), else through the final norm
    ("clip skip" in SD 1).  tokenizer(prompts, pad) -> ids (B, L) long: `tokenize`, or a `Tokenizer` of your own.
    """

    def __init__(self, encoders: tuple[TextConfig, ...], layer: str = "last", tokenizer=None):
        super().__init__()
        if layer not in ("last", "penultimate"):
            raise OptionError(f"layer = {layer!r}: choose last or penultimate")
        if not encoders or not all(isinstance(c, TextConfig) for c in encoders):
            raise OptionError(
                f"encoders = {encoders!r}: pass a tuple of TextConfig, one for each encoder"
            )
        self.layer, self.tokenizer = layer, tokenizer or tokenize
        self.encoders = nn.ModuleList(TextEncoder(c) for c in encoders)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Cond:
        """Prompts to Cond(context (B, L, D), vector (B, P)): D is the sum of the widths; vector is None without a projection."""
        contexts, vector = [], None
        for encoder in self.encoders:
            ids = self.tokenizer(prompts, encoder.config.pad)
            hidden = encoder(ids.to(encoder.text_model.final_layer_norm.weight.device))
            contexts.append(self._context(encoder, hidden))
            vector = hidden.pooled if encoder.config.projection else None
        return Cond(torch.cat(contexts, dim=-1), vector)

    def _context(self, encoder, hidden):
        if self.layer == "last":
            return hidden.last
        raw = self.encoders[-1].config.projection
        return (
            hidden.penultimate if raw else encoder.text_model.final_layer_norm(hidden.penultimate)
        )


# ---------------------------------------------------------------- the tokenizer


class Tokenizer:
    """Text to ids by byte pair encoding (Sennrich et al. 2016): a start token, the words' pieces (see `clean`), an end token, padding.

    bpe: a `tokenizers.Tokenizer`, its JSON, or the path of its JSON file.  start, end: two tokens it knows; `end` has the highest
    id, by which encoders find it.  length: of every row of ids.
    """

    def __init__(
        self, bpe, start: str = "<|startoftext|>", end: str = "<|endoftext|>", length: int = 77
    ):
        self.bpe, self.length = _load_bpe(bpe), length
        self.start, self.end = (self.bpe.token_to_id(token) for token in (start, end))
        self.special = {start: self.start, end: self.end}
        if None in self.special.values() or self.end != self.bpe.get_vocab_size() - 1:
            raise OptionError(
                f"this tokenizer must know {start!r} and {end!r}, and {end!r} must have its highest id: add them last"
            )

    def __call__(self, prompts: list[str], pad: str = "eot") -> Tensor:
        """Prompts to ids (B, length) long. What does not fit is left out with a warning that quotes it.

        pad "eot" repeats the end token and takes the special tokens' names in a prompt for the tokens (OpenAI's CLIP in
        transformers); "!" fills up with 0 and takes them for text (OpenCLIP). Raises OptionError for what is no text.
        """
        if pad not in ("eot", "!"):
            raise OptionError(f"pad = {pad!r}: choose eot or !")
        fill = self.end if pad == "eot" else 0
        rows = []
        for text in map(clean, checked_prompts(prompts)):
            ids, places = self._pieces(text, special=pad == "eot")
            room = self.length - 2
            if len(ids) > room:
                left_out = text[
                    text.rfind(" ", 0, places[room] + 1) + 1 :
                ]  # a word cut in two is quoted whole
                left_out = left_out if len(left_out) <= 300 else left_out[:300] + " ..."
                warnings.warn(
                    f"the prompt is {len(ids)} tokens long and only {room} fit; left out: {left_out!r}",
                    stacklevel=3,
                )
            rows.append([self.start, *ids[:room], self.end] + [fill] * (room - len(ids)))
        return torch.tensor(rows)

    def _pieces(self, text, special):
        """Ids of a cleaned text, and where in it each begins."""
        ids, places, at = [], [], 0
        for part in (
            re.split("(" + "|".join(map(re.escape, self.special)) + ")", text)
            if special
            else [text]
        ):
            if special and part in self.special:
                ids.append(self.special[part])
                places.append(at)
            else:
                code = self.bpe.encode(part, add_special_tokens=False)
                ids += code.ids
                places += [at + begin for begin, _ in code.offsets]
            at += len(part)
        return ids, places


def tokenize(prompts: list[str], pad: str = "eot") -> Tensor:
    """Prompts to CLIP's token ids (B, 77) long, by the tokenizer that ships with the course; see `Tokenizer.__call__`."""
    return clip_tokenizer()(prompts, pad)


STRAIGHT = str.maketrans(dict.fromkeys("ʼ‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))
SPLIT = re.compile(
    "[ĲĳŉǄ-ǌǱ-ǳﬀ-ﬄﬆ\u3000\uff01-\uffee]"
)  # Latin ligatures; wide and half-wide forms
CONTROL = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")


def clean(text: str) -> str:
    """What CLIP does before it looks for words: plain characters, no HTML entities, single spaces, lower case.

    The originals call the package ftfy for the plain characters: curly quotes, ligatures, wide forms, control characters.
    Here these are done by the standard library; what ftfy does beyond, repairing text decoded the wrong way, is not.
    """
    try:
        text = html.unescape(html.unescape(text))
    except ValueError:  # an entity of thousands of digits
        pass
    text = text.encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    )  # a lone half of an emoji
    text = SPLIT.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text).translate(
        STRAIGHT
    )
    text = unicodedata.normalize("NFC", CONTROL.sub("", text))
    return " ".join(text.split()).lower()


@functools.cache
def clip_tokenizer() -> Tokenizer:
    """CLIP's own tokenizer, from data/tokenizer. Raises DataError if the file is missing or damaged."""
    path = data_folder() / "tokenizer" / "merges.txt.gz"
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
        merges = [tuple(line.split(" ")) for line in lines]
        if len(merges) != 48894 or any(len(pair) != 2 for pair in merges):
            raise ValueError(f"{len(merges)} merges")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; it ships with the course: `git checkout -- data/tokenizer`"
        ) from None
    except (OSError, EOFError, ValueError) as e:
        raise DataError(
            f"{path}: damaged ({e!r}); get it again: `git checkout -- data/tokenizer`"
        ) from e
    return Tokenizer(_clip_bpe(clip_vocab(merges), merges))


def clip_vocab(merges) -> dict[str, int]:
    """{token: id}: 256 bytes, the same at a word's end, one token a merge, start and end."""
    shown = [
        *range(33, 127),
        *range(161, 173),
        *range(174, 256),
    ]  # bytes that are a visible Latin-1 character stand for themselves
    bytes_ = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    tokens = [
        *bytes_,
        *(b + "</w>" for b in bytes_),
        *map("".join, merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return {token: i for i, token in enumerate(tokens)}


def _clip_bpe(vocab, merges):
    t = _tokenizers()
    bpe = t.Tokenizer(t.models.BPE(vocab, merges, end_of_word_suffix="</w>"))
    words = t.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")  # a digit is a word
    bpe.pre_tokenizer = t.pre_tokenizers.Sequence(
        [
            t.pre_tokenizers.Split(words, "removed", invert=True),
            t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe


def _load_bpe(bpe):
    t = _tokenizers()
    if isinstance(bpe, t.Tokenizer):
        return bpe
    try:
        return (
            t.Tokenizer.from_str(bpe)
            if str(bpe).startswith("{")
            else t.Tokenizer.from_file(str(bpe))
        )
    except Exception as e:  # the package raises nothing more specific
        raise DataError(
            f"{str(bpe)[:200]}: not a file of the `tokenizers` package ({e}); write one with its save()"
        ) from e


def _tokenizers():
    try:
        import tokenizers
    except ImportError as e:
        raise OptionError(
            f"prompts need the package tokenizers, which is not installed: {INSTALL}"
        ) from e
    return tokenizers
