"""Prompts to the denoiser's `Cond`: CLIP's text transformer on token ids. Notebooks 08, 11.

CLIP (Radford et al. 2021) trains a transformer on captions; Stable Diffusion reads its hidden
states. The transformer is the one of the `transformers` package, built from our config.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import OptionError, choices, multiple, needs, one_of, sizes, token_ids
from .tokenizer import tokenize


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a CLIP text transformer. The defaults are CLIP-L's."""

    width: int = 768  # of the hidden states
    layers: int = 12
    heads: int = 12
    hidden: int = 3072  # width inside the feed-forward
    act: str = "quick_gelu"  # x sigmoid(1.702 x), OpenAI's CLIP; or "gelu", exact, OpenCLIP
    projection: int = 0  # width of the pooled vector after its projection; 0: none
    pad: str = "eot"  # fills a prompt up: the end token again; or "!", the id 0
    vocab: int = 49408  # token ids
    length: int = 77  # tokens of a prompt
    end: int | None = None  # the id that ends a prompt; None: the highest one

    def __post_init__(self):
        sizes(self, width=(1, 8192), layers=(1, 64), heads=(1, 128), hidden=(1, 32768))
        sizes(self, projection=(0, 8192), vocab=(3, 2**20), length=(3, 4096), end=(1, 2**20))
        choices(self, act=("quick_gelu", "gelu"), pad=("eot", "!"))
        multiple("width", self.width, "heads", self.heads)


CLIP_L = TextConfig()  # SD 1, and SDXL's first
OPEN_CLIP_H = TextConfig(1024, 23, 16, 4096, "gelu", pad="!")  # SD 2 leaves out layer 24 of 24
OPEN_CLIP_G = TextConfig(1280, 32, 20, 5120, "gelu", 1280, "!")  # SDXL's second, the refiner's


class Hidden(NamedTuple):
    """What a text encoder makes of a prompt: every token twice, and the whole in one vector."""

    last: Tensor  # (B, L, width) after all layers and the final norm
    penultimate: Tensor  # (B, L, width) before the last layer, not normed
    pooled: Tensor  # (B, projection or width): `last` at the first end token, projected if it can


class TextEncoder(nn.Module):
    """CLIP's causal text transformer: ids (B, L) -> Hidden. The weights' names are transformers'.

    Raises ShapeError for ids of another shape, DataError for ids outside the vocabulary.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        c = self.config = config
        with needs("transformers", "text encoders"):
            from transformers import CLIPTextConfig, CLIPTextModel
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
        # No weight: on the meta device it would stay behind when the weights are loaded.
        self.text_model.embeddings.register_buffer("position_ids", None)
        project = nn.Linear(c.width, c.projection, bias=False) if c.projection else None
        self.text_projection = project

    def forward(self, ids: Tensor) -> Hidden:
        token_ids(ids, self.config.vocab, self.config.length)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        out = self.text_model(ids, position_ids=positions, output_hidden_states=True)
        last = self.config.end
        end = (ids if last is None else (ids == last).byte()).argmax(1)  # the first of equal ones
        pooled = out.last_hidden_state[torch.arange(len(ids), device=ids.device), end]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        return Hidden(out.last_hidden_state, out.hidden_states[-2], pooled)

    def add_rows(self, ids: list[int], rows: Tensor, end: int) -> None:
        """Token embeddings (n, width) for these ids, new ones or not.  end: the id that ends a
        prompt, which is no longer the highest."""
        table = self.text_model.embeddings.token_embedding
        old, size = table.weight.detach(), max(table.num_embeddings, max(ids) + 1)
        new = torch.cat([old, old.new_zeros(size - len(old), self.config.width)])
        new[ids] = rows.detach().to(new)
        table.weight, table.num_embeddings = nn.Parameter(new, table.weight.requires_grad), size
        self.config = replace(self.config, vocab=size, end=end)

    def unused(self, names) -> set[str]:
        """Names in a file that are not needed: SD 2's last layer, a projection without use."""
        surplus = [f"text_model.encoder.layers.{self.config.layers}."]
        surplus += [] if self.config.projection else ["text_projection."]
        return {name for name in names if name.startswith(tuple(surplus))}


class Text(nn.Module):
    """The text side of one system: one or two encoders and the tokenizer.

    layer: "last", after the final norm, as in SD 1 (and in SD 2, whose encoder is cut one layer
    early); or "penultimate", the second-last layer: as it is where the last encoder has a
    projection (SDXL, refiner), else through the final norm ("clip skip" in SD 1).
    tokenizer(prompts, pad) -> ids (B, L) long: `tokenize`, or a `Tokenizer` of your own.
    """

    def __init__(self, encoders: tuple[TextConfig, ...], layer: str = "last", tokenizer=None):
        super().__init__()
        if not encoders or not all(isinstance(c, TextConfig) for c in encoders):
            raise OptionError(f"encoders = {encoders!r:.80}: pass a tuple of TextConfig")
        self.layer = one_of("layer", layer, ("last", "penultimate"))
        self.tokenizer = tokenizer or tokenize
        self.encoders = nn.ModuleList(TextEncoder(c) for c in encoders)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Cond:
        """Prompts to Cond(context (B, L, D), vector (B, P)), see `read`."""
        return self.read(self.ids(prompts))

    def ids(self, prompts: list[str]) -> list[Tensor]:
        """Token ids (B, L) for each encoder: they may differ in what fills a row up."""
        return [self.tokenizer(prompts, encoder.config.pad) for encoder in self.encoders]

    def read(self, ids: list[Tensor]) -> Cond:
        """Ids to Cond(context (B, L, D), vector (B, P)), with gradients.

        D is the sum of the widths; vector is None without a projection.
        """
        contexts, vector = [], None
        for encoder, own in zip(self.encoders, ids):
            hidden = encoder(own.to(encoder.text_model.final_layer_norm.weight.device))
            contexts.append(self._context(encoder, hidden))
            vector = hidden.pooled if encoder.config.projection else None
        return Cond(torch.cat(contexts, dim=-1), vector)

    def _context(self, encoder, hidden):
        if self.layer == "last":
            return hidden.last
        if self.encoders[-1].config.projection:
            return hidden.penultimate
        return encoder.text_model.final_layer_norm(hidden.penultimate)
