"""A new word for a system: one row more, or a few, in the table of token embeddings. Notebook 17.

Gal et al. 2022 (textual inversion, arXiv 2208.01618): nothing else of the model changes, and all
that is learned of a thing is one vector for each of the tokens that its word stands for.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import DataError, OptionError, ShapeError
from ..networks.tokenizer import Tokenizer, clip_tokenizer, split_words, tokenize
from .system import StableDiffusion


def add_word(sd: StableDiffusion, word: str, vectors: list[Tensor]) -> list[int]:
    """Let prompts use `word`; returns the ids of its tokens.

    vectors: (n, width), one an encoder; n tokens, one after the other, stand for the word. Before
    anything is changed: ShapeError for vectors of another width, DataError for NaN, OptionError
    for a word that cannot be one.
    """
    tokenizer = clip_tokenizer() if sd.text.tokenizer is tokenize else sd.text.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        raise OptionError(f"tokenizer = {tokenizer!r:.80} learns no words: use a Tokenizer")
    encoders = sd.text.encoders
    if len(vectors) != len(encoders):
        name = f"{sd.config.name} has {len(encoders)} text encoders"
        raise ShapeError(f"{len(vectors)} kinds of vectors: {name}, pass as many")
    for rows, encoder in zip(vectors, encoders):
        wanted = len(vectors[0]), encoder.config.width
        if rows.shape != wanted or not rows.is_floating_point():
            takes = f"{sd.config.name} takes floats {wanted} here"
            raise ShapeError(f"vectors are {tuple(rows.shape)} of {rows.dtype}: {takes}")
        if not rows.is_meta and not rows.isfinite().all():
            raise DataError(f"vectors of {word!r:.80} hold NaN or infinity: use others")
    tokenizer = tokenizer.with_word(word, len(vectors[0]))
    ids = tokenizer.ids_of(word)
    for rows, encoder in zip(vectors, encoders):
        encoder.add_rows(ids, rows, tokenizer.end)
    sd.text.tokenizer = tokenizer
    sd.config = replace(sd.config, text=tuple(encoder.config for encoder in encoders))
    if "words" in sd.meta:  # those that it was trained on: no warning for this one
        sd.meta = {**sd.meta, "words": [*sd.meta["words"], *split_words(word)]}
    return ids


def vectors_of(sd: StableDiffusion, ids: list[int]) -> list[Tensor]:
    """Copies of the token embeddings (n, width) of these ids, one an encoder: those of a word's
    tokens, or of other words, which a new one may start from."""
    index = torch.tensor(ids)
    tables = (encoder.text_model.embeddings.token_embedding for encoder in sd.text.encoders)
    return [table.weight.detach()[index.to(table.weight.device)].clone() for table in tables]
