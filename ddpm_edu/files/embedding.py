"""Files of a learned word (textual inversion), in and out. Notebook 17.

    word = load_embedding("my-cat.safetensors", sd)       "<my-cat>"
    draw(sd, f"a photo of {word} on a sofa")

A file holds a vector (width,) or some (n, width) for each text encoder: {"<my-cat>": rows} as
diffusers writes it, {"emb_params": rows} as AUTOMATIC1111 does, {"clip_l": ..., "clip_g": ...} for
the two encoders of SDXL.
"""

from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError, DataError, OptionError, ShapeError
from ..networks.tokenizer import Tokenizer
from ..systems.system import StableDiffusion
from ..systems.words import add_word, vectors_of
from .load import check_finite
from .names import TEXTS, looks_like
from .tensors import inside, load_tensors, save_tensors

UNNAMED = ("emb_params", "clip_l", "clip_g")  # names of tensors that are no words
CONVERT = (  # a .pt of AUTOMATIC1111, or a .bin of diffusers
    'python -c "import torch, safetensors.torch as s; '
    "x = torch.load('IN.pt', map_location='cpu', weights_only=True); "
    "x = list(x.get('string_to_param', x).values())[0]; "
    "s.save_file({'emb_params': x.detach()}, 'WORD.safetensors')\""
)
PAIRS = ("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")  # for the two of SDXL


def load_embedding(path, sd: StableDiffusion, word: str | None = None) -> str:
    """Add the word of a .safetensors file, or of the folder that diffusers saved it in, to sd, and
    return it: prompts may use it now.

    word: what to call it; else as the file says, or as the file is called. CheckpointError for a
    damaged file and for vectors that are not as wide as sd's text encoders; then sd is as it was.
    """
    said, vectors = read_embedding(path)
    word, name = word or said, sd.config.name
    widths = [encoder.config.width for encoder in sd.text.encoders]
    if len(vectors) == 2 and len(widths) == 1 and sd.config.vector:
        vectors = vectors[1:]  # a refiner's only encoder is the second of its base
    got = [rows.shape[1] for rows in vectors]
    if got != widths:
        made = " and ".join(f"{width} ({TEXTS.get(width, 'of no known model')})" for width in got)
        wanted = " and ".join(map(str, widths))
        cause = f"its vectors are {made} wide, the text encoders of {name} {wanted}"
        raise CheckpointError(f"{path}: {cause}: use one that was trained on {name}")
    try:
        add_word(sd, word, vectors)
    except (ShapeError, DataError, OptionError) as e:
        raise CheckpointError(f"{path}: {e} (load_embedding takes another word)") from None
    return word


def read_embedding(path) -> tuple[str, list[Tensor]]:
    """(word, [(n, width), ...]) of a file, one tensor an encoder."""
    if Path(path).suffix in (".pt", ".bin") and Path(path).is_file():
        cause = "a pickle, which can run any code when it is read, and is refused"
        remedy = f"use the .safetensors of the same word, or convert one that you trust: {CONVERT}"
        raise CheckpointError(f"{path}: {cause}; {remedy}")
    path = inside(path, "learned_embeds.safetensors")
    views, meta = load_tensors(path)
    keys = next((pair for pair in PAIRS if set(pair) == views.keys()), tuple(views))
    rows = [w[None] if w.ndim == 1 else w for w in map(views.get, keys)]
    usable = all(w.ndim == 2 and w.numel() and w.is_floating_point() for w in rows)
    if not usable or len(keys) != 1 and keys not in PAIRS:
        cause = f"no embedding of one word, it looks like {looks_like(views)}"
        raise CheckpointError(f"{path}: {cause}: pass one with a tensor (n, width) an encoder")
    check_finite(views, path)
    named = len(keys) == 1 and keys[0] not in UNNAMED
    word = meta.get("word", keys[0] if named else Path(path).stem)
    return word, [w.float() for w in rows]


def save_embedding(path, sd: StableDiffusion, word: str, meta: dict | None = None) -> None:
    """Write a word that was added to sd, and `meta` (JSON-able), to a .safetensors file that
    diffusers reads too; all or nothing. OptionError for a word that was not added."""
    if not isinstance(sd.text.tokenizer, Tokenizer):
        raise OptionError(f"word = {word!r:.80} was not added to {sd.config.name}: add it first")
    vectors = vectors_of(sd, sd.text.tokenizer.ids_of(word))
    tensors = dict(zip((word,) if len(vectors) == 1 else PAIRS[0], vectors))
    check_finite(tensors, path)
    save_tensors(path, tensors, {**(meta or {}), "word": word})
