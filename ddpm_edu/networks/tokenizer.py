"""Words of one's own: a tokenizer trained on the captions of a small dataset, and which words of a prompt it never saw."""

from collections import Counter, defaultdict

from ..errors import OptionError, checked_prompts
from .text import Tokenizer, _clip_bpe, _tokenizers, clean, clip_vocab


def train_tokenizer(captions: list[str], vocab: int = 1024, length: int = 16) -> Tokenizer:
    """CLIP's tokenizer with merges learned from these captions (byte pair encoding, Sennrich et al. 2016).

    vocab: at most so many tokens: 256 bytes, the same at a word's end, start and end, and the rest merges (fewer, if the
    captions hold no more). Every text can be written: what was never seen comes in single bytes.  length: of a row of ids.
    """
    basic = list(clip_vocab([]))  # bytes, bytes at a word's end, start, end
    if isinstance(vocab, bool) or not isinstance(vocab, int) or vocab < len(basic):
        raise OptionError(
            f"vocab = {vocab!r}: pass at least {len(basic)}, of which {len(basic)} are bytes, start and end"
        )
    if isinstance(length, bool) or not isinstance(length, int) or length < 3:
        raise OptionError(f"length = {length!r}: pass at least 3, for a start, a piece and an end")
    if isinstance(captions, str) or not (captions := list(captions)):
        raise OptionError(f"captions = {captions!r:.80}: pass a list of texts, at least one")
    split = _clip_bpe({}, []).pre_tokenizer
    words = Counter(
        word for caption in captions for word, _ in split.pre_tokenize_str(clean(caption))
    )
    merges = learn_merges(words, vocab - len(basic))
    tokens = dict.fromkeys(
        [*basic[:-2], *map("".join, merges), *basic[-2:]]
    )  # two merges may spell the same
    return Tokenizer(_clip_bpe({token: i for i, token in enumerate(tokens)}, merges), length=length)


def learn_merges(words: Counter, most: int) -> list[tuple[str, str]]:
    """Byte pair encoding, algorithm 1 of Sennrich et al. 2016: join the most frequent pair of neighbours, again and again.

    words: {word: how often}. At most `most` merges, in their order; of equally frequent pairs the last in the alphabet,
    so that the same captions always give the same ids (the trainer of the `tokenizers` package does not promise that).
    """
    spelt = [([*word[:-1], word[-1] + "</w>"], n) for word, n in words.items()]
    count, where, merges = (
        Counter(),
        defaultdict(set),
        [],
    )  # of each pair: how often, and in which words

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
            spelt[i] = _joined(spelt[i][0], pair), spelt[i][1]
            note(i, 1)
    return merges


def _joined(symbols, pair):
    out = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def split_words(text: str) -> list[str]:
    """The words of a text as CLIP cleans it: runs of letters, single digits, runs of other signs, single Chinese characters."""
    tokenizers = _tokenizers()
    words = tokenizers.Regex(r"\p{Han}|(?:(?!\p{Han})\p{L})+|\p{N}|[^\s\p{L}\p{N}]+")
    return [
        word
        for word, _ in tokenizers.pre_tokenizers.Split(
            words, "removed", invert=True
        ).pre_tokenize_str(clean(text))
    ]


def known_words(captions) -> frozenset[str]:
    """Every word of the captions."""
    return frozenset(word for caption in dict.fromkeys(captions) for word in split_words(caption))


def unseen(prompt: str, words) -> list[str]:
    """The words of a prompt that are not in `words`, in their order, each once: those that a model trained on `words` never saw."""
    return [
        word for word in dict.fromkeys(split_words(checked_prompts(prompt)[0])) if word not in words
    ]
