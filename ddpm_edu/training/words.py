"""Textual inversion: of a whole system only the vectors of one new word learn. Notebook 17.

Gal et al. 2022 (arXiv 2208.01618, eq. 2): the loss is the UNet's own, and its gradient runs through
the UNet and the text encoder, which stay as they are, back to the rows of the new word.

    for step in train_word(sd, pictures, "<my-cat>", config, start="cat"):
        ...                                                          # each caption says <my-cat>
    draw(sd, "a <my-cat> at night"), save_embedding("my-cat.safetensors", sd, "<my-cat>")
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..diffusion import Cond, loss
from ..errors import DataError, OptionError
from ..networks.tokenizer import clean
from ..systems.pipeline import unet_of
from ..systems.system import StableDiffusion
from ..systems.words import add_word, vectors_of
from .latents import conditions, through_vae
from .train import TrainConfig, TrainStep, fit


class LearningWord(nn.Module):
    """A system that stays as it is, with the vectors of a word that learn; called like its UNet."""

    def __init__(self, sd: StableDiffusion, ids: list[int]):
        super().__init__()
        self.vectors = nn.ParameterList(rows.float() for rows in vectors_of(sd, ids))
        self.ids, self.frozen = ids, [sd]  # in a list: its weights do not learn, nor are they saved
        self.rest = conditions(sd, [""]).vector  # SDXL's: pooled text, then numbers of the size

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return unet_of(self.frozen[0])(x_t, t, cond)

    def cond(self, ids: list[Tensor]) -> Cond:
        """What the UNet gets of token ids (B, L), one an encoder, with gradients to the vectors."""
        text, handles = self.frozen[0].text, []
        for encoder, rows in zip(text.encoders, self.vectors):
            table = encoder.text_model.embeddings.token_embedding
            handles.append(table.register_forward_hook(partial(self._put, rows)))
        try:
            cond = text.read(ids)
        finally:
            for handle in handles:
                handle.remove()
        if self.rest is None:
            return cond._replace(vector=None)
        numbers = self.rest[:, cond.vector.shape[1] :].expand(len(cond.vector), -1)
        return cond._replace(vector=torch.cat([cond.vector, numbers], dim=1))

    def _put(self, rows, table, args, out):
        """Of the table's output (B, L, width): the word's rows in the places of its ids."""
        for number, row in zip(self.ids, rows):
            out = torch.where((args[0] == number)[..., None], row.to(out), out)
        return out

    def __deepcopy__(self, memo):
        """An average of it needs vectors of its own, and shares the system."""
        twin = LearningWord(self.frozen[0], self.ids)
        twin.load_state_dict(self.state_dict())
        return twin


@dataclass(frozen=True, eq=False)
class Tokens:
    """tokens[index] -> (z_0 (B, latent, h, w), ids (B, L) an encoder): latents, worked out once."""

    z_0: Tensor
    ids: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.z_0)

    def __getitem__(self, index):
        return self.z_0[index], tuple(ids[index] for ids in self.ids)


def train_word(
    sd: StableDiffusion,
    dataset,
    word: str,
    config: TrainConfig,
    *,
    start: str,
    tokens: int = 1,
    checkpoint=None,
) -> Iterator[TrainStep]:
    """Add `word` to sd and learn its vectors; one TrainStep an update. At the end sd has the
    averaged ones, and nothing else of it has changed.

    dataset: dataset[index] -> (x_0 (B, 3, H, W), captions that hold the word).  start: a known
    word that comes near; the vectors begin as its own.  tokens: vectors that stand for the word.
    """
    sd.requires_grad_(False)
    z_0, captions = through_vae(sd, dataset, batch=max(1, 50 * 64**2 // sd.config.size**2))
    if without := [text for text in captions if clean(word) not in clean(text)]:
        raise DataError(f"caption {without[0]!r:.80} does not hold the new word: put {word} in")
    begin = sd.tokenizer([start])[0].tolist()
    pieces = begin[1 : begin.index(sd.text.ids([""])[0][0, 1].item())]
    if not pieces:
        raise OptionError(f"start = {start!r:.40}: pass a word that comes near, such as 'cat'")
    like = vectors_of(sd, [pieces[k % len(pieces)] for k in range(tokens)])
    ids = add_word(sd, word, like)
    data, model = Tokens(z_0, tuple(sd.text.ids(captions))), LearningWord(sd, ids)

    def objective(model, batch, generator):
        z_0, prompts = batch
        t = torch.randint(sd.schedule.T, (len(z_0),), generator=generator)
        eps = torch.randn(z_0.shape, generator=generator).to(z_0)
        cond = model.cond(list(prompts))
        return loss(model, sd.schedule, z_0, cond, t=t, eps=eps, predict=sd.predict)

    for step in fit(model, data, config, objective, checkpoint=checkpoint):
        yield step
    for encoder, rows in zip(sd.text.encoders, step.ema.vectors):
        encoder.add_rows(ids, rows, encoder.config.end)
