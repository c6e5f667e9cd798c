"""CLIP: pictures and texts as unit vectors of one space, where what belongs together lies together (Radford et al. 2021, arXiv 2103.00020).

    clip = CLIP(CLIPConfig(text), tokenizer);  clip.similarity(x, ["a red seven", "a blue two"])      # (B, 2) cosines

The same class holds OpenAI's ViT-L/14 and one trained in minutes; only the config grows. Its text side is the one
that Stable Diffusion reads, so a mini system is trained as the real ones were: first CLIP, then the denoiser.
"""

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MOST_PROMPTS, DataError, OptionError, ShapeError
from ..files.checkpoint import load_state
from ..files.config_json import reading, text_config
from ..files.folder import pad, read_json, read_tokenizer, weight_files
from ..files.int8 import pack, squeeze, unpack
from ..files.tensors import load_tensors, save_tensors
from ..paths import data_folder
from .text import CLIP_L, INSTALL, TextConfig, TextEncoder, Tokenizer, _tokenizers, clean, tokenize

MOST_SCALE = 100.0  # of the cosines in the loss, so that training stays stable (section 2.5)
OPENAI_MEAN, OPENAI_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # of its training pictures, in [0, 1]


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a CLIP.

    text: of the text side; its projection is the width P of the common space.  size: of the square pictures, in pixels.
    patch: of the squares that are the vision transformer's tokens.  width, layers, heads, hidden: of that transformer, whose
    activation is text.act.  pixels: "plain", [-1, 1] go in as they are; "openai", first scaled as OpenAI's CLIP was trained.
    """

    text: TextConfig
    size: int = 32
    patch: int = 4
    width: int = 64
    layers: int = 2
    heads: int = 4
    hidden: int = 128
    pixels: str = "plain"

    def __post_init__(self):
        if isinstance(self.text, dict):  # as out of JSON
            try:
                object.__setattr__(self, "text", TextConfig(**self.text))
            except TypeError as e:
                raise OptionError(f"text = {self.text!r:.200} is no TextConfig ({e})") from None
        if not isinstance(self.text, TextConfig) or not self.text.projection:
            raise OptionError(
                f"text = {self.text!r}: pass a TextConfig with projection above 0, the width of the space that both sides share"
            )
        for name in ("size", "patch", "width", "layers", "heads", "hidden"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(
                    f"{name} = {value!r} in {self}: sizes are whole numbers of at least 1"
                )
        for whole, part in (("size", "patch"), ("width", "heads")):
            if getattr(self, whole) % getattr(self, part):
                raise OptionError(
                    f"{whole} = {getattr(self, whole)} is not a multiple of {part} = {getattr(self, part)}: change one of them"
                )
        if self.pixels not in ("plain", "openai"):
            raise OptionError(f"pixels = {self.pixels!r}: choose plain or openai")


class CLIP(nn.Module):
    """A text transformer, a vision transformer (Dosovitskiy et al. 2021), a projection of each, and a learned temperature.

    tokenizer: of the words; None: CLIP's own, where the sizes are its. Pictures x are (B, 3, size, size) in [-1, 1].
    """

    def __init__(self, config: CLIPConfig, tokenizer: Tokenizer | None = None):
        super().__init__()
        c, t = config, config.text
        try:
            from transformers import CLIPVisionConfig, CLIPVisionModel
        except ImportError as e:
            raise OptionError(
                f"CLIP needs the package transformers, which is not installed: {INSTALL}"
            ) from e
        if tokenizer is None and (t.vocab, t.length) == (CLIP_L.vocab, CLIP_L.length):
            tokenizer = tokenize
        if isinstance(tokenizer, Tokenizer) and (
            tokenizer.bpe.get_vocab_size(),
            tokenizer.length,
        ) != (t.vocab, t.length):
            raise OptionError(
                f"the tokenizer has {tokenizer.bpe.get_vocab_size()} tokens in rows of {tokenizer.length}, the text side "
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
        if x.ndim != 4 or x.shape[1:] != (3, size, size):
            raise ShapeError(
                f"pictures have shape {tuple(x.shape)}: this CLIP takes (B, 3, {size}, {size}); resize them, "
                f"as by F.interpolate(x, {size}, mode='bicubic', antialias=True)"
            )
        if self.config.pixels == "openai":
            mean, std = (
                torch.tensor(z, device=x.device, dtype=x.dtype)[:, None, None]
                for z in (OPENAI_MEAN, OPENAI_STD)
            )
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
                "this CLIP has no tokenizer: build it with one (see words.train_tokenizer), or pass token ids"
            )
        texts = [texts] if isinstance(texts, str) else texts
        pieces = (
            [texts[k : k + MOST_PROMPTS] for k in range(0, len(texts), MOST_PROMPTS)]
            if isinstance(texts, (list, tuple))
            else []
        )
        return torch.cat(
            [self.tokenizer(piece, self.config.text.pad) for piece in pieces or [texts]]
        )

    def similarity(self, x: Tensor, texts) -> Tensor:
        """Cosine of each picture with each text: (B, 3, size, size) and N texts -> (B, N)."""
        return self.image(x) @ self.words(texts).T

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(image(x), words(ids), scale): what `contrastive_loss` takes."""
        return self.image(x), self.words(ids), self.scale


# ---------------------------------------------------------------- training


def contrastive_loss(image: Tensor, text: Tensor, scale=1.0, same: Tensor | None = None) -> Tensor:
    """(CE(S, i) + CE(S^T, i)) / 2 with S = scale * image @ text^T: which text is picture i's, and which picture text i's?

    Radford et al. 2021, figure 3.  image, text: unit vectors (B, P), pair by pair.  same: (B, B) bool, True where two
    texts are the same; off the diagonal these are no wrong answers, and are left out.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ShapeError(
            f"image has shape {tuple(image.shape)}, text {tuple(text.shape)}: both must be (B, P), one text a picture"
        )
    b = len(image)
    logits, own = scale * image @ text.T, torch.arange(b, device=image.device)
    if same is not None:
        if same.shape != (b, b) or same.dtype != torch.bool:
            raise ShapeError(
                f"same has shape {tuple(same.shape)} and type {same.dtype}: it must be ({b}, {b}) bool"
            )
        logits = logits.masked_fill(same & (own[:, None] != own), -math.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def objective(clip: CLIP):
    """objective(model, (x_0, captions), generator) -> loss, for `fit`. Each caption is tokenized once; texts of the
    same tokens are the same."""
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
    """`clip.similarity` without gradients, `size` pictures or texts at a time: (B, N)."""
    if len(images) == 0:
        raise DataError("there are no pictures to look at")
    return (
        torch.cat([clip.image(x) for x in images.split(size)])
        @ torch.cat([clip.words(ids) for ids in clip.ids(texts).split(size)]).T
    )


def zero_shot(clip: CLIP, images: Tensor, texts: list[str]) -> Tensor:
    """Index of the text with the highest cosine, (B,): a classifier of whatever the texts name (Radford et al. 2021, section 3.1)."""
    return cosines(clip, images, texts).argmax(1)


def retrieval(clip: CLIP, images: Tensor, captions: list[str]) -> float:
    """The share, 0 to 1, of pictures whose own caption, or one of the same words, has the highest cosine of all captions given."""
    _paired(images, captions)
    said = [clean(c) for c in captions]
    return sum(
        said[best] == own for best, own in zip(zero_shot(clip, images, captions).tolist(), said)
    ) / len(said)


def clip_score(clip: CLIP, images: Tensor, captions: list[str]) -> Tensor:
    """100 max(cos, 0) of each picture and its caption, (B,): how well they go together (Hessel et al. 2021, whose own factor is 2.5)."""
    _paired(images, captions)
    return 100 * cosines(clip, images, captions).diagonal().clamp(min=0)


def _paired(images, captions):
    if isinstance(captions, str) or len(images) != len(captions):
        raise ShapeError(
            f"{len(images)} pictures came with captions {captions!r:.60}: pass a list of one caption a picture"
        )


# ---------------------------------------------------------------- files


def save_clip(path, clip: CLIP, meta: dict | None = None, eight_bits: bool = True) -> None:
    """Write weights, config, tokenizer and `meta` (JSON-able) to one safetensors file, see `load_clip`. eight_bits: a quarter
    of its size, with weights a little rounded (int8.py); False: as they are."""
    own = clip.tokenizer if isinstance(clip.tokenizer, Tokenizer) else None
    plan = {
        "config": dataclasses.asdict(clip.config),
        "tokenizer": own and own.bpe.to_str(),
        "special": own and list(own.special),
    }
    state = clip.state_dict()
    save_tensors(
        path, squeeze(pack(state)) if eight_bits else state, {**(meta or {}), "clip": plan}
    )


def load_clip(path) -> CLIP:
    """A CLIP: from a file of `save_clip`, or one that ships with the course by name ("painted_clip", "emoji_clip"), or from a
    folder in transformers' layout (config.json, model.safetensors), such as openai/clip-vit-large-patch14.

    Ready to use; `clip.meta` is what the file says beside. Raises CheckpointError for what is missing, damaged or of other sizes.
    """
    if os.path.isdir(path):
        clip = _from_folder(Path(path))
    else:
        clip = _from_file(
            Path(path)
            if str(path).endswith(".safetensors")
            else data_folder() / "weights" / f"{path}.safetensors"
        )
    return clip.eval().requires_grad_(False)


def _from_file(path):
    state, meta = load_tensors(path)
    with reading(path):
        plan = meta["clip"]
        tokenizer = plan["tokenizer"] and Tokenizer(
            _bpe(plan["tokenizer"]), *plan["special"], CLIPConfig(**plan["config"]).text.length
        )
        clip = CLIP(CLIPConfig(**plan["config"]), tokenizer)
    load_state(clip, unpack(state, path), path)
    clip.meta = {k: v for k, v in meta.items() if k != "clip"}
    return clip


def _bpe(text):
    tokenizers = _tokenizers()
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the package raises nothing more specific
        raise DataError(f"its tokenizer is none of the `tokenizers` package: {e}") from e


def _from_folder(folder):
    source, entries = folder / "config.json", read_json(folder / "config.json")
    with reading(source):
        said, vision = entries.get("text_config") or {}, entries.get("vision_config") or {}
        text = text_config(
            {**said, "projection_dim": entries.get("projection_dim", 512)},
            source,
            projects=True,
            pad=pad(folder),
        )
        config = CLIPConfig(
            text,
            **{
                ours: vision.get(theirs, default)
                for ours, theirs, default in (
                    ("size", "image_size", 224),
                    ("patch", "patch_size", 32),
                    ("width", "hidden_size", 768),
                    ("layers", "num_hidden_layers", 12),
                    ("heads", "num_attention_heads", 12),
                    ("hidden", "intermediate_size", 3072),
                )
            },
            pixels="openai",
        )
        if (act := vision.get("hidden_act", "quick_gelu")) != text.act or vision.get(
            "layer_norm_eps", 1e-5
        ) != 1e-5:
            raise ValueError(
                f"a vision side with {act} and layer_norm_eps = {vision.get('layer_norm_eps', 1e-5)} beside a text side with {text.act}"
            )
        if (end := said.get("eos_token_id", text.vocab - 1)) not in (
            2,
            text.vocab - 1,
        ):  # 2: what old files say, and do not mean
            raise ValueError(
                f"eos_token_id = {end}, where the end of a text must be the highest id, {text.vocab - 1}"
            )
        own = (text.vocab, text.length) != (CLIP_L.vocab, CLIP_L.length) and (
            folder / "tokenizer.json"
        ).is_file()
        clip = CLIP(config, read_tokenizer(folder, text.length) if own else None)
    state = {}
    for file in weight_files(folder):
        state.update(load_tensors(file)[0])
    load_state(
        clip, {_ours(k): v for k, v in state.items() if not k.endswith("position_ids")}, folder
    )
    clip.meta = {}
    return clip


def _ours(name):
    """transformers' name of a weight -> ours."""
    for theirs, ours in (
        (r"^(?=text_model\.|text_projection\.)", "text."),
        (r"^vision_model\.", "vision."),
        (r"^visual_projection\.", "projection."),
        (r"^logit_scale$", "log_scale"),
    ):
        name = re.sub(theirs, ours, name)
    return name
