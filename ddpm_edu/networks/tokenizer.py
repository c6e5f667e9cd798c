"""Text to token ids: byte pair encoding, CLIP's own and one trained on your captions. Notebook 08.

Sennrich et al. 2016 (arXiv 1508.07909). The merges of CLIP's tokenizer ship with the course.
"""

import functools
import html
import itertools
import re
import unicodedata
import warnings
from collections import Counter, defaultdict

import torch
from torch import Tensor

from ..errors import DataError, OptionError, checked_prompts, needs, one_of, whole
from ..paths import shipped

MERGES_SHA256 = "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"


class Tokenizer:
    """Text to ids: the start token, the pieces of the cleaned words, the end token, padding."""

    def __init__(self, bpe, start="<|startoftext|>", end="<|endoftext|>", length: int = 77):
        self.bpe = read_bpe(bpe)  # a `tokenizers.Tokenizer`, its JSON, or the path of that
        self.length = length  # of every row of ids
        self.special = {token: self.bpe.token_to_id(token) for token in (start, end)}
        self.start, self.end = self.special.values()
        trained = self.bpe.get_vocab_size(with_added_tokens=False)  # new words may come after
        if None in self.special.values() or self.end < trained - 1:
            raise OptionError(
                f"{start!r} and {end!r} must be tokens, {end!r} with the highest id: add them last"
            )
        self.longer = _longer(self.bpe)  # {id of a new word of several tokens: their ids}

    def __call__(self, prompts: list[str], pad: str = "eot") -> Tensor:
        """Prompts to ids (B, length) long. What does not fit is left out, with a warning.

        pad "eot" repeats the end token, and reads the names of the special tokens in a prompt as
        these tokens (OpenAI's CLIP); "!" fills up with 0 and reads them as text (OpenCLIP).
        """
        one_of("pad", pad, ("eot", "!"))
        fill, room, rows = self.end if pad == "eot" else 0, self.length - 2, []
        for text in map(clean, checked_prompts(prompts)):
            ids, places = self.pieces(text, special=pad == "eot")
            if len(ids) > room:
                rest = text[text.rfind(" ", 0, places[room] + 1) + 1 :]  # from a word's beginning
                rest = rest if len(rest) <= 300 else rest[:300] + " ..."
                warnings.warn(
                    f"the prompt is {len(ids)} tokens long and only {room} fit; left out: {rest!r}",
                    stacklevel=3,
                )
            rows.append([self.start, *ids[:room], self.end] + [fill] * (room - len(ids)))
        return torch.tensor(rows)

    def pieces(self, text: str, special: bool) -> tuple[list[int], list[int]]:
        """(ids of a cleaned text, where in it each begins)."""
        names = "|".join(map(re.escape, self.special))
        ids, places, at = [], [], 0
        for part in re.split(f"({names})", text) if special else [text]:
            if special and part in self.special:
                ids.append(self.special[part])
                places.append(at)
            else:
                code = self.bpe.encode(part, add_special_tokens=False)
                for number, (begin, _) in zip(code.ids, code.offsets):
                    its = self.longer.get(number, [number])
                    ids += its
                    places += [at + begin] * len(its)
            at += len(part)
        return ids, places

    def with_word(self, word: str, tokens: int = 1) -> "Tokenizer":
        """One that knows a new word too: its tokens, one after the other, have the next ids.

        They are called word, word_1, word_2, ..., as in diffusers. OptionError for a word with
        spaces in it, or one that is a token already.
        """
        whole("tokens", tokens, 1, self.length - 2, "a prompt has room for no more")
        plain = clean(word) if isinstance(word, str) else ""
        if not plain or " " in plain:
            raise OptionError(f"word = {word!r:.80}: pass one without spaces, such as '<my-cat>'")
        names = [plain, *(f"{plain}_{k}" for k in range(1, tokens))]
        ends = [f"{name}</w>" for name in names]  # as it is at the end of a word
        ids = {name: self.bpe.token_to_id(name) for name in (*names, *ends)}
        if known := [name.removesuffix("</w>") for name, k in ids.items() if k is not None]:
            raise OptionError(f"word = {word!r:.80}: {known[0]} is a token already: take another")
        bpe = read_bpe(self.bpe.to_str())
        bpe.add_tokens(names)
        return Tokenizer(bpe, *self.special, length=self.length)

    def ids_of(self, word: str) -> list[int]:
        """The ids of a word's tokens that `with_word` added. OptionError if it did not."""
        number = self.bpe.token_to_id(clean(word)) if isinstance(word, str) else None
        if number not in self.bpe.get_added_tokens_decoder() or number in self.special.values():
            raise OptionError(f"word = {word!r:.80} was not added to this tokenizer: add it first")
        return self.longer.get(number, [number])


def tokenize(prompts: list[str], pad: str = "eot") -> Tensor:
    """Prompts to CLIP's token ids (B, 77) long; see `Tokenizer.__call__`."""
    return clip_tokenizer()(prompts, pad)


@functools.cache
def clip_tokenizer() -> Tokenizer:
    """CLIP's own, from data/tokenizer. Raises DataError if the file is missing or damaged."""
    lines = shipped("tokenizer/merges.txt.gz", MERGES_SHA256).decode().splitlines()
    merges = [tuple(line.split(" ")) for line in lines]
    return Tokenizer(_bpe(vocabulary(merges), merges))


# ---------------------------------------------------------------- plain characters

STRAIGHT = str.maketrans(dict.fromkeys("ʼ‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))
LIGATURES = re.compile("[ĲĳŉǄ-ǌǱ-ǳﬀ-ﬄﬆ\u3000\uff01-\uffee]")  # and wide and half-wide forms
CONTROL = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")


def clean(text: str) -> str:
    """What CLIP does first: plain characters, no HTML entities, single spaces, lower case.

    The original calls the package ftfy for the plain characters: curly quotes, ligatures, wide
    forms, control characters. ftfy also repairs text decoded the wrong way; this does not.
    """
    try:
        text = html.unescape(html.unescape(text))
    except ValueError:  # an entity of thousands of digits
        pass
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half an emoji
    text = LIGATURES.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFC", CONTROL.sub("", text.translate(STRAIGHT)))
    return " ".join(text.split()).lower()


def split_words(text: str) -> list[str]:
    """The cleaned text's runs of letters, single digits, runs of other signs, Chinese signs."""
    with needs("tokenizers", "prompts"):
        from tokenizers import Regex, pre_tokenizers
    words = Regex(r"\p{Han}|(?:(?!\p{Han})\p{L})+|\p{N}|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, "removed", invert=True)
    return [word for word, _ in split.pre_tokenize_str(clean(text))]


def known_words(captions) -> frozenset[str]:
    """Every word of the captions."""
    return frozenset(word for caption in dict.fromkeys(captions) for word in split_words(caption))


def unseen(prompt: str, words) -> list[str]:
    """The words of a prompt that are not in `words`, each once: a model trained on `words` never
    saw them."""
    found = dict.fromkeys(split_words(checked_prompts(prompt)[0]))
    return [word for word in found if word not in words]


# ---------------------------------------------------------------- training


def train_tokenizer(captions: list[str], vocab: int = 1024, length: int = 16) -> Tokenizer:
    """CLIP's tokenizer with merges learned from these captions.

    vocab: at most so many tokens: 256 bytes, the same at a word's end, start and end; the rest is
    merges. What was never seen comes in single bytes.  length: of a row of ids.
    """
    *basic, start, end = vocabulary([])
    whole("vocab", vocab, len(basic) + 2, hint="bytes, start and end come first")
    whole("length", length, 3, hint="a start, a piece and an end")
    if isinstance(captions, str) or not (captions := list(captions)):
        raise OptionError(f"captions = {captions!r:.80}: pass a list of texts, at least one")
    split = _bpe({}, []).pre_tokenizer.pre_tokenize_str
    words = Counter(word for caption in captions for word, _ in split(clean(caption)))
    merges = learn_merges(words, vocab - len(basic) - 2)
    tokens = dict.fromkeys([*basic, *map("".join, merges), start, end])  # two may spell the same
    return Tokenizer(_bpe({token: i for i, token in enumerate(tokens)}, merges), length=length)


def learn_merges(words: Counter, most: int) -> list[tuple[str, str]]:
    """Algorithm 1 of Sennrich et al. 2016: join the most frequent pair of neighbours, repeat.

    words: {word: how often}. Of equally frequent pairs the last in the alphabet, so that the same
    captions always give the same ids (the trainer of `tokenizers` does not promise that).
    """
    spelt = [([*word[:-1], word[-1] + "</w>"], n) for word, n in words.items()]
    count, where, merges = Counter(), defaultdict(set), []  # of a pair: how often, in which words

    def note(i, sign):
        symbols, n = spelt[i]
        for pair in zip(symbols, symbols[1:]):
            count[pair] += sign * n
            if not count[pair]:
                del count[pair]
            where[pair].add(i)

    for i in range(len(spelt)):
        note(i, 1)
    while len(merges) < most and count:
        most_often = max(count.values())
        pair = max(p for p, n in count.items() if n == most_often)
        merges.append(pair)
        for i in tuple(where[pair]):
            note(i, -1)
            spelt[i] = joined(spelt[i][0], pair), spelt[i][1]
            note(i, 1)
    return merges


def joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with every `pair` of neighbours, from the left, made one."""
    out = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


# ---------------------------------------------------------------- with the package `tokenizers`


def vocabulary(merges) -> dict[str, int]:
    """{token: id}: 256 bytes, the same at a word's end, one token a merge, start and end."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # visible Latin-1 signs: as such
    signs = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    ends = [sign + "</w>" for sign in signs]
    tokens = [*signs, *ends, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def _bpe(vocab, merges):
    with needs("tokenizers", "prompts"):
        from tokenizers import Regex, Tokenizer, models
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    bpe = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>"))
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")  # a digit is a word
    bytes_ = ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = Sequence([Split(words, "removed", invert=True), bytes_])
    return bpe


def _longer(bpe) -> dict[int, list[int]]:
    """Of added words that go on: cat, cat_1, cat_2, ..."""
    numbers = {token.content: i for i, token in bpe.get_added_tokens_decoder().items()}
    found = {}
    for word, number in numbers.items():
        more = (numbers.get(f"{word}_{k}") for k in itertools.count(1))
        its = [number, *itertools.takewhile(lambda i: i is not None, more)]
        found |= {number: its} if len(its) > 1 else {}
    return found


def read_bpe(bpe):
    """A `tokenizers.Tokenizer`, from itself, its JSON, or the path of that. Raises DataError."""
    with needs("tokenizers", "prompts"):
        from tokenizers import Tokenizer
    if isinstance(bpe, Tokenizer):
        return bpe
    try:
        is_json = str(bpe).lstrip().startswith("{")
        bpe = Tokenizer.from_str(bpe) if is_json else Tokenizer.from_file(str(bpe))
        bpe.no_padding(), bpe.no_truncation()  # written by transformers, if it has been used
        return bpe
    except Exception as e:  # the package raises nothing more specific
        raise DataError(
            f"{str(bpe)[:200]}: not a file of the `tokenizers` package ({e}): use its save()"
        ) from e
