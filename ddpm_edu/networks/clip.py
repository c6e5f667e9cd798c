"""CLIP: pictures and texts as unit vectors of one space, near if they fit. Notebook 08.

    clip = CLIP(CLIPConfig(text), tokenizer)
    clip.similarity(x, ["a red seven", "a blue two"])      # (B, 2) cosines

Radford et al. 2021 (arXiv 2103.00020). The same class holds OpenAI's ViT-L/14 and one trained in
minutes. Its text side is the one that Stable Diffusion reads, so that a mini system is trained as
the real ones were: first CLIP, then the denoiser.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import (
    MOST_PROMPTS,
    OptionError,
    ShapeError,
    choices,
    fits,
    multiple,
    needs,
    parts,
    pixels,
    sizes,
)
from .text import CLIP_L, TextConfig, TextEncoder
from .tokenizer import Tokenizer, clean, tokenize

MOST_SCALE = 100.0  # of the cosines in the loss, so that training stays stable (section 2.5)
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of its training pictures, in [0, 1]
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP."""

    text: TextConfig  # its projection is the width P of the common space
    size: int = 32  # of the square pictures, in pixels
    patch: int = 4  # of the squares that are the vision transformer's tokens
    width: int = 64  # of that transformer; its activation is text.act
    layers: int = 2
    heads: int = 4
    hidden: int = 128  # width inside its feed-forward
    pixels: str = (
        "plain"  # [-1, 1] go in as they are; "openai": scaled as OpenAI's CLIP was trained
    )

    def __post_init__(self):
        parts(self, text=TextConfig)
        sizes(self, size=(1, 4096), patch=(1, 4096), width=(1, 8192), layers=(1, 64))
        sizes(self, heads=(1, 128), hidden=(1, 32768))
        choices(self, pixels=("plain", "openai"))
        multiple("size", self.size, "patch", self.patch)
        multiple("width", self.width, "heads", self.heads)
        if not self.text.projection:
            raise OptionError(
                f"text = {self.text}: it needs a projection above 0, the width of the common space"
            )


class CLIP(nn.Module):
    """A text and a vision transformer, a projection of each, and a learned temperature.

    The vision transformer is the one of Dosovitskiy et al. 2021. tokenizer: of the texts; None:
    CLIP's own, where vocab and length are its. Pictures x are (B, 3, size, size) in [-1, 1].
    """

    def __init__(self, config: CLIPConfig, tokenizer: Tokenizer | None = None):
        super().__init__()
        c, t = config, config.text
        with needs("transformers", "CLIP's transformers"):
            from transformers import CLIPVisionConfig, CLIPVisionModel
        if tokenizer is None and (t.vocab, t.length) == (CLIP_L.vocab, CLIP_L.length):
            tokenizer = tokenize
        if isinstance(tokenizer, Tokenizer):
            known = tokenizer.bpe.get_vocab_size(), tokenizer.length
            if known != (t.vocab, t.length):
                raise OptionError(
                    f"the tokenizer has {known[0]} tokens in rows of {known[1]}, the text side "
                    f"vocab = {t.vocab}, length = {t.length}: make them equal"
                )
        self.config, self.tokenizer = config, tokenizer
        self.text = TextEncoder(t)
        vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=c.width,
                intermediate_size=c.hidden,
                num_hidden_layers=c.layers,
                num_attention_heads=c.heads,
                image_size=c.size,
                patch_size=c.patch,
                hidden_act=t.act,
            )
        )
        self.vision = getattr(vision, "vision_model", vision)  # transformers 5.6 took one shell off
        self.projection = nn.Linear(c.width, t.projection, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """One over the temperature, at most 100."""
        return self.log_scale.exp().clamp(max=MOST_SCALE)

    def image(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, size, size) in [-1, 1] to unit vectors (B, P)."""
        size = self.config.size
        fits("x", x, ("B", 3, size, size), "this CLIP takes", "resize them by F.interpolate")
        if self.config.pixels == "openai":
            mean, std = (x.new_tensor(z)[:, None, None] for z in (OPENAI_MEAN, OPENAI_STD))
            x = ((x + 1) / 2 - mean) / std
        return F.normalize(self.projection(self.vision(x).pooler_output), dim=-1)

    def words(self, texts: Tensor | list[str]) -> Tensor:
        """Token ids (B, L) or a list of texts to unit vectors (B, P)."""
        ids = texts if isinstance(texts, Tensor) else self.ids(texts)
        return F.normalize(self.text(ids.to(self.log_scale.device)).pooled, dim=-1)

    def ids(self, texts: list[str]) -> Tensor:
        """Texts to token ids (B, L) by this CLIP's tokenizer. Raises OptionError if it has none."""
        if self.tokenizer is None:
            raise OptionError(
                "this CLIP has no tokenizer: build it with one (train_tokenizer makes one), or "
                "pass token ids"
            )
        if not isinstance(texts, (list, tuple)) or not texts:
            return self.tokenizer(texts, self.config.text.pad)
        some = (texts[k : k + MOST_PROMPTS] for k in range(0, len(texts), MOST_PROMPTS))
        return torch.cat([self.tokenizer(part, self.config.text.pad) for part in some])

    def similarity(self, x: Tensor, texts) -> Tensor:
        """Cosine of each picture with each text: (B, 3, size, size) and N texts -> (B, N)."""
        return self.image(x) @ self.words(texts).T

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(image(x), words(ids), scale): what `contrastive_loss` takes."""
        return self.image(x), self.words(ids), self.scale


# ---------------------------------------------------------------- training


def contrastive_loss(image: Tensor, text: Tensor, scale=1.0, same: Tensor | None = None) -> Tensor:
    """(CE(S, i) + CE(S^T, i)) / 2 with S = scale * image @ text^T (Radford et al. 2021, figure 3).

    Which text is picture i's, and which picture is text i's?  image, text: unit vectors (B, P),
    pair by pair.  same: (B, B) bool, True where two texts are the same; off the diagonal these are
    no wrong answers, and are left out.
    """
    fits("text", text, ("B", "P"), "the loss takes one vector a text")
    fits("image", image, text.shape, "the loss takes one picture a text")
    b = len(image)
    logits, own = scale * image @ text.T, torch.arange(b, device=image.device)
    if same is not None:
        fits("same", same, (b, b), "the loss takes bool")
        if same.dtype != torch.bool:
            raise ShapeError(f"same has type {same.dtype}: the loss takes ({b}, {b}) bool")
        logits = logits.masked_fill(same & (own[:, None] != own), -math.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def objective(clip: CLIP):
    """objective(model, (x_0, captions), generator) -> loss, for `fit`.

    Each caption is tokenized once; texts of the same tokens are the same.
    """
    known: dict[str, Tensor] = {}

    def loss(model, batch, generator=None):
        x_0, captions = batch
        if new := [c for c in dict.fromkeys(captions) if c not in known]:
            known.update(zip(new, clip.ids(new)))
        ids = torch.stack([known[c] for c in captions]).to(x_0.device)
        return contrastive_loss(*model(x_0, ids), same=(ids[:, None] == ids).all(-1))

    return loss


# ---------------------------------------------------------------- what it is good for


@torch.no_grad()
def cosines(clip: CLIP, images: Tensor, texts: list[str], size: int = 256) -> Tensor:
    """`clip.similarity` without gradients, `size` pictures or texts at a time: (B, N).

    Raises DataError for bytes, NaN, 0..255; warns of [0, 1] (see `errors.pixels`).
    """
    pixels("images", images, beyond=1.0)
    pictures = torch.cat([clip.image(x) for x in images.split(size)])
    return pictures @ torch.cat([clip.words(ids) for ids in clip.ids(texts).split(size)]).T


def zero_shot(clip: CLIP, images: Tensor, texts: list[str]) -> Tensor:
    """Index of the text with the highest cosine, (B,): a classifier of whatever the texts name.

    Radford et al. 2021, section 3.1.
    """
    return cosines(clip, images, texts).argmax(1)


def retrieval(clip: CLIP, images: Tensor, captions: list[str]) -> float:
    """The share, 0 to 1, of pictures whose own caption has the highest cosine of all captions.

    Captions of the same words count as one.
    """
    _paired(images, captions)
    texts, best = [clean(c) for c in captions], zero_shot(clip, images, captions).tolist()
    return sum(texts[i] == own for i, own in zip(best, texts)) / len(texts)


def clip_score(clip: CLIP, images: Tensor, captions: list[str]) -> Tensor:
    """100 max(cos, 0) of each picture and its caption, (B,): how well they go together.

    Hessel et al. 2021, whose own factor is 2.5.
    """
    _paired(images, captions)
    return 100 * cosines(clip, images, captions).diagonal().clamp(min=0)


def _paired(images, captions):
    if isinstance(captions, str) or len(images) != len(captions):
        raise ShapeError(
            f"{len(images)} pictures, captions = {captions!r:.60}: pass one caption a picture"
        )
