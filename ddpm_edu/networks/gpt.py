"""GPT: one transformer reads a caption, then the codes of a picture, as in DALL-E. Notebook 15.

GPT = Radford et al. 2018, 2019; a picture as codes behind its caption = Ramesh et al. 2021
(arXiv 2102.12092); all places at once, for masked generation = Chang et al. 2022 (MaskGIT, arXiv
2202.04200).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError, code_numbers, fits, multiple, sizes, token_ids


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT. As an input the number `codes` stands for a code that is not known."""

    codes: int = 512  # in the book
    places: int = 64  # codes of a picture, row by row
    captions: int = 640  # token ids of a text
    length: int = 16  # tokens of a caption
    width: int = 128  # D, numbers a token
    layers: int = 4
    heads: int = 4  # of attention
    causal: bool = True  # a place sees what comes before it; False: all that is known, [MASK]s too
    columns: int = 0  # codes a row of the picture; 0: all in one row
    vectors: int = 0  # numbers of the book's vectors e, which say how codes are alike; 0: not given

    def __post_init__(self):
        sizes(self, codes=(1, 2**20), places=(1, 4096), captions=(1, 2**20), length=(1, 4096))
        sizes(self, columns=(0, 4096), vectors=(0, 4096))
        sizes(self, width=(1, 2**15), layers=(1, 512), heads=(1, 1024))
        multiple("GPTConfig.width", self.width, "4 heads", 4 * self.heads)
        multiple("GPTConfig.places", self.places, "columns", self.columns or self.places)


class Cache:
    """Keys and values of what a causal GPT has read, one pair (B, heads, n, D / heads) a layer.

    What comes later changes nothing of them: the next token costs one row, not the whole stream.
    """

    def __init__(self):
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}  # {layer: (K, V)}

    def __len__(self) -> int:
        """Tokens that were read."""
        return self.pairs[0][0].shape[2] if self.pairs else 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The new keys and values behind those that are there."""
        if layer in self.pairs:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.pairs[layer], (k, v)))
        self.pairs[layer] = k, v
        return k, v


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of numbers turned by an angle each, x (B, heads, n, d), turn (2, n, d / 2) cos and sin.

    The product of a turned query and a turned key depends on the difference of their angles, so on
    how far apart they are: rotary positions (Su et al. 2021, arXiv 2104.09864, eq. 34).
    """
    (a, b), (cos, sin) = x.chunk(2, -1), turn
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (B, n, D) -> (B, n, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, turn, mask, extend=lambda k, v: (k, v)):
        """turn: of queries and keys, see `turned`; mask (n, N): which of all N tokens each new one
        sees, None for all; extend: the cache."""
        h = self.norm1(x)
        q, k, v = (
            z.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, n, D / heads)
            for z in (self.q(h), self.k(h), self.v(h))
        )
        q, k = turned(q, turn), turned(k, turn)
        h = F.scaled_dot_product_attention(q, *extend(k, v), attn_mask=mask)
        x = x + self.out(h.transpose(1, 2).flatten(2))  # (B, n, D)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Logits of the code at every place, softmax(logits[:, i]) = p(code i | ...); see `GPTConfig`.

    causal, the order of reading:  p(code i | text, codes before i). The stream is the caption,
    [UNKNOWN], then the codes but the last: at place i it is code i - 1 that goes in. Code i itself
    is never read, so codes[:, : i + 1] with anything at place i gives its logits.
    Not causal, any order:  p(code i | text, all codes that are not [UNKNOWN]).
    With the book's vectors e a code goes in as table[code] + A e[code], and its logit has a part
    that is linear in e, e . B h: what is learned of one code holds for those that look like it.
    A new GPT finds all codes equally likely.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        c = self.config = config
        self.code_table = nn.Embedding(c.codes + 1, c.width)  # the last one is [UNKNOWN]
        self.text_table = nn.Embedding(c.captions, c.width)
        self.place_table = nn.Embedding(c.length + c.places, c.width)
        for table in (self.code_table, self.text_table, self.place_table):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(c.width, c.heads) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.logits = nn.Linear(c.width, c.codes)
        last = [self.logits]
        if c.vectors:
            self.register_buffer("book", torch.zeros(c.codes + 1, c.vectors))
            self.book_in = nn.Linear(c.vectors, c.width, bias=False)
            self.book_out = nn.Linear(c.width, c.vectors, bias=False)
            last.append(self.book_out)
        for p in (p for layer in last for p in layer.parameters()):
            nn.init.zeros_(p)

    @property
    def unknown(self) -> int:
        """The number of [UNKNOWN], one above the book's."""
        return self.config.codes

    @torch.no_grad()
    def know(self, vectors: Tensor) -> "GPT":
        """Itself, with the book's vectors (codes, vectors), scaled to a spread of 1."""
        fits("vectors", vectors, (self.config.codes, self.config.vectors), "this GPT's book holds")
        self.book[:-1] = (vectors - vectors.mean(0)) / vectors.std()
        return self

    def new_cache(self) -> Cache:
        return Cache()

    def forward(self, codes: Tensor, text: Tensor, cache: Cache | None = None) -> Tensor:
        """codes (B, n), text (B, S) token ids -> logits (B, n, codes), n up to `places`.

        cache: of a causal GPT, from its calls with fewer of the same codes; then only the places
        that are new have logits. ShapeError, DataError or OptionError for what does not fit.
        """
        read = self._check(codes, text, cache)
        c, n, total = self.config, codes.shape[1], text.shape[1] + codes.shape[1]
        if c.causal:
            codes = torch.cat([torch.full_like(codes[:, :1], self.unknown), codes[:, :-1]], 1)
        places = self.place_table.weight[c.length :][:n]
        words = self.text_table(text) + self.place_table.weight[: text.shape[1]]
        x = torch.cat([words, self._inputs(codes) + places], 1)[:, read:]  # (B, new, D)
        turn, mask = self._turn(text.shape[1], n).to(x)[:, read:], None
        if c.causal:
            mask = torch.ones(total - read, total, dtype=torch.bool, device=x.device).tril(read)
        for i, block in enumerate(self.blocks):
            extend = () if cache is None else (lambda k, v: cache.extend(i, k, v),)
            x = block(x, turn, mask, *extend)
        return self._outputs(self.norm(x[:, max(0, text.shape[1] - read) :]))

    def _turn(self, words, places):
        """Cosines and sines (2, words + places, D / heads / 2): half by row, half by column.

        The words of the caption go before the first place, along both.
        """
        c = self.config
        quarter = c.width // c.heads // 4
        before = torch.arange(-words, 0)
        place, columns = torch.arange(places), c.columns or c.places
        row, column = (torch.cat([before, at]) for at in (place // columns, place % columns))
        speed = 100 ** -(torch.arange(quarter) / quarter)
        angle = torch.cat([row[:, None] * speed, column[:, None] * speed], 1)
        return torch.stack([angle.cos(), angle.sin()])

    def _inputs(self, codes):
        x = self.code_table(codes)
        return x + self.book_in(self.book[codes]) if self.config.vectors else x

    def _outputs(self, h):
        alike = self.book_out(h) @ self.book[:-1].T if self.config.vectors else 0
        return self.logits(h) + alike

    def _check(self, codes, text, cache) -> int:
        """How many tokens of the stream the cache has."""
        c = self.config
        token_ids(text, c.captions, c.length)
        code_numbers(codes, (len(text), "n"), c.codes + 1, c.places)
        if cache is None:
            return 0
        if not c.causal:
            raise OptionError("cache: a GPT that is not causal reads everything anew: pass none")
        if 0 < len(cache) < text.shape[1] or len(cache) >= text.shape[1] + codes.shape[1]:
            raise OptionError(
                f"cache: it has read {len(cache)} tokens of a stream of {text.shape[1]} tokens of "
                f"text and {codes.shape[1]} codes: pass a new Cache() for another stream"
            )
        return len(cache)
