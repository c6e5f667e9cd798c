"""Systems of codes on the painted digits: the book first, then the transformer. Notebook 15.

1. VQ: encoder and decoder of a system that ships, a book between them       (autoencoder.py)
2. every picture to its codes, once
3. GPT: the next code, or the unknown ones                                   (discrete.py)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..datasets.painted import painted_digits
from ..discrete import cosine_counts, masked_loss, next_code_loss
from ..errors import DataError
from ..files.load import load, load_state
from ..networks.gpt import GPTConfig
from ..networks.tokenizer import Tokenizer
from ..networks.vq import VQVAE, VQConfig
from ..paths import beside
from ..systems.codes import CodeConfig, CodeSystem
from . import autoencoder
from .autoencoder import Autoencoder, LossWeights
from .latents import distinct
from .recipes import MUON
from .train import TrainConfig, fit
from .whole_system import last_step


@dataclass(frozen=True, eq=False)
class Codes:
    """codes[index] -> (codes (B, places), token ids (B, length)): what a GPT learns from."""

    codes: Tensor  # (N, places)
    texts: Tensor  # (M, length): a caption that several pictures share stands once
    row: Tensor  # (N,): which of the texts is a picture's

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index) -> tuple[Tensor, Tensor]:
        return self.codes[index], self.texts[self.row[index]]


@torch.no_grad()
def encode(system: CodeSystem, dataset, n: int | None = None, batch: int = 250) -> Codes:
    """The first n pictures of `dataset` (None: all) and their captions as numbers.

    dataset[index] -> (x_0, captions). DataError for no pictures.
    """
    n = len(dataset) if n is None else min(n, len(dataset))
    if n < 1:
        raise DataError("there are no pictures to encode: the dataset is empty, or n is below 1")
    device = next(system.parameters()).device
    codes, captions = [], []
    for part in torch.arange(n).split(batch):
        x_0, own = dataset[part]
        codes.append(system.encode(x_0.to(device)).cpu())
        captions += own
    texts, row = distinct(captions)
    ids = [system.ids(texts[k : k + 1000]).cpu() for k in range(0, len(texts), 1000)]
    return Codes(torch.cat(codes), torch.cat(ids), row)


def objective(system: CodeSystem, p_uncond: float) -> Callable:
    """objective(gpt, (codes, text), generator) -> loss, for `fit`: the system's own.

    In p_uncond of the cases the text is the empty one, for guidance.
    """
    empty = system.ids([""])

    def loss(gpt, batch, generator):
        codes, text = batch
        dropped = torch.rand(len(text), 1, generator=generator) < p_uncond
        text = torch.where(dropped.to(text.device), empty, text)
        if system.config.gpt.causal:
            return next_code_loss(gpt, codes, text)
        count = cosine_counts(*codes.shape, generator)
        return masked_loss(gpt, codes, text, count=count, generator=generator)

    return loss


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True)
class CodeRecipe:
    """What a system of codes starts from, its GPT, the runs, and how it draws."""

    name: str
    start: str  # a source of `load`: a StableDiffusion, whose VAE gets a book, or a CodeSystem
    gpt: GPTConfig  # its captions and length become what the start's tokenizer needs
    train: TrainConfig
    train_vq: TrainConfig | None = None  # None: the start has a book
    losses: LossWeights = LossWeights(kl=0.0, codebook=1.0)
    dataset: Callable = painted_digits  # () -> dataset[index] -> (x_0, captions)
    n: int = 40_000  # pictures
    base: str | None = None  # see `save`
    goes_on: bool = False  # the GPT from that of the start, which knows captions and strokes
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    steps: int = 8


def train_vq(
    recipe: CodeRecipe, checkpoint=None, log: Callable = iter, device="cpu"
) -> tuple[VQVAE, Tokenizer]:
    """Part 1: the VAE of the start goes on with a book in its middle; and the start's tokenizer."""
    start = load(recipe.start)
    if isinstance(start, CodeSystem):
        return start.vq, start.tokenizer
    torch.manual_seed(recipe.train_vq.seed)
    vae = start.vae.requires_grad_(True)
    model = Autoencoder(vae, recipe.losses, codes=recipe.gpt.codes).to(device)
    run = fit(
        model, recipe.dataset(), recipe.train_vq, autoencoder.objective, checkpoint=checkpoint
    )
    trained = last_step(log(run)).ema.cpu()
    vq = VQVAE(VQConfig(trained.vae.config, recipe.gpt.codes))
    vq.load_state_dict(
        {k: v for k, v in trained.state_dict().items() if k.startswith(("vae.", "codebook."))}
    )
    return vq.eval().requires_grad_(False), start.tokenizer


def assemble(recipe: CodeRecipe, vq: VQVAE, tokenizer: Tokenizer) -> CodeSystem:
    """A trained book and a GPT with random weights."""
    words = dict(captions=tokenizer.bpe.get_vocab_size(), length=tokenizer.length)
    words["vectors"] = vq.config.vae.latent
    config = CodeConfig(
        recipe.name,
        vq.config,
        replace(recipe.gpt, **words),
        steps=recipe.steps,
        temperature=recipe.temperature,
        top_k=recipe.top_k,
        guidance=recipe.guidance,
    )
    torch.manual_seed(recipe.train.seed)
    system = CodeSystem(config, tokenizer)
    system.vq.load_state_dict(vq.state_dict())
    system.gpt.know(vq.codebook.codes)
    return system


def train_codes(
    recipe: CodeRecipe,
    checkpoint=None,
    log: Callable = iter,
    device="cpu",
    log_vq: Callable | None = None,
) -> CodeSystem:
    """All parts. checkpoint: a file, the book's is beside it; log: as in whole_system.py."""
    book = checkpoint and beside(checkpoint, "-vq")
    system = assemble(recipe, *train_vq(recipe, book, log_vq or iter, device)).to(device)
    system.vq.requires_grad_(False)
    if recipe.goes_on:
        load_state(system.gpt, load(recipe.start).gpt.state_dict(), recipe.start)
    data = encode(system, recipe.dataset(), recipe.n)
    loss = objective(system, recipe.train.p_uncond)
    step = last_step(log(fit(system.gpt, data, recipe.train, loss, checkpoint=checkpoint)))
    system.gpt.load_state_dict(step.ema.state_dict())
    return system.cpu().eval().requires_grad_(False)


DALLE = CodeRecipe(
    "painted-dalle",
    "painted",
    GPTConfig(codes=256, places=64, width=96, layers=4, heads=4, columns=8),
    TrainConfig(steps=16_000, batch_size=16, ema=0.998, **MUON),
    train_vq=TrainConfig(
        steps=1000, batch_size=16, ema=0.99, warmup=20, clip_norm=100.0, **{**MUON, "lr": 5e-3}
    ),
    guidance=2.0,
    temperature=0.3,
)
MASKGIT = replace(
    DALLE,
    name="painted-maskgit",
    start="painted-dalle",
    base="painted-dalle",
    goes_on=True,
    gpt=replace(DALLE.gpt, causal=False),
    train=replace(DALLE.train, steps=12_000, lr=7e-3),
    train_vq=None,
)
CODE_RECIPES = {recipe.name: recipe for recipe in (DALLE, MASKGIT)}
