"""Pictures drawn as codes: a VQ autoencoder, a transformer over its codes, captions. Notebook 15.

    system = load("painted-dalle")                      in order; "painted-maskgit": many at once
    pictures = system.draw(["a large red seven on a blue ground, top left"], seed=0)

DALL-E = Ramesh et al. 2021 (arXiv 2102.12092), MaskGIT = Chang et al. 2022 (arXiv 2202.04200).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion import generators
from ..discrete import CodeStep, autoregressive, masked
from ..errors import OptionError, checked_prompts, fits, numbers, parts, sizes, whole
from ..networks.clip import CLIP, cosines
from ..networks.gpt import GPT, GPTConfig
from ..networks.text import TextConfig
from ..networks.tokenizer import Tokenizer
from ..networks.vq import VQVAE, VQConfig


@dataclass(frozen=True)
class CodeConfig:
    """The plan of a system of codes. The last four fields say how it draws unless told."""

    name: str
    vq: VQConfig
    gpt: GPTConfig
    size: int = 32  # pixels of a side
    steps: int = 8  # of masked generation; a causal gpt takes one step a code
    temperature: float = 1.0
    top_k: int = 0  # of a causal gpt, 0: all codes
    guidance: float = 1.0  # 1: none

    def __post_init__(self):
        parts(self, vq=VQConfig, gpt=GPTConfig)
        sizes(self, size=1, steps=(1, 4096), top_k=(0, self.gpt.codes))
        numbers(self, temperature=(0, 100), guidance=(0, 100))
        if self.vq.codes != self.gpt.codes:
            cause = f"{self.name}: the book has {self.vq.codes} codes, the gpt {self.gpt.codes}"
            raise OptionError(f"{cause}: make them equal")
        side, rest = divmod(self.size, self.vq.vae.factor)
        if rest or side**2 != self.gpt.places:
            cause = f"a picture of {self.size} pixels a side has {side} x {side} codes"
            raise OptionError(f"{self.name}: {cause}, gpt.places = {self.gpt.places}: change one")

    @property
    def side(self) -> int:
        """Codes a side."""
        return self.size // self.vq.vae.factor

    @property
    def text(self) -> TextConfig:
        """What the tokenizer must fit."""
        return TextConfig(vocab=self.gpt.captions, length=self.gpt.length)


class CodeSystem(nn.Module):
    """.vq and .gpt of a `config`, and the tokenizer of the captions."""

    def __init__(self, config: CodeConfig, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.meta: dict = {}  # what its file says beside
        self.vq, self.gpt = VQVAE(config.vq), GPT(config.gpt)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, size, size) in [-1, 1] -> codes (B, places), row by row."""
        side = self.config.size
        channels = self.config.vq.vae.in_channels
        fits("pictures", pictures, ("B", channels, side, side), "this system has codes for")
        return self.vq.encode(pictures).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, places) -> pictures, not clamped."""
        fits("codes", codes, ("B", self.config.gpt.places), "this system decodes")
        return self.vq.decode(codes.unflatten(1, (self.config.side, -1)))

    def ids(self, prompts) -> Tensor:
        """Texts to token ids (B, length)."""
        if self.tokenizer is None:
            raise OptionError("tokenizer: this system has none, build it with one")
        return self.tokenizer(checked_prompts(prompts)).to(self.gpt.code_table.weight.device)

    def generate(
        self,
        prompts,
        *,
        steps: int | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_k: int | None = None,
        guidance: float | None = None,
        **more,
    ) -> Iterator[CodeStep]:
        """The codes of one picture a prompt as they appear, then `decode` the last ones.

        seed: of the first picture, the others count up: each depends on its own seed and prompt
        alone.  steps: of a masked system only.  more: see `autoregressive` and `masked`.
        """
        text, c = self.ids(prompts), self.config
        pick = lambda given, usual: usual if given is None else given
        how = dict(temperature=pick(temperature, c.temperature))
        how |= dict(guidance=pick(guidance, c.guidance), empty=self.ids([""]))
        how["generator"] = generators(range(seed, whole("seed", seed, 0, 2**62) + len(text)))
        if not c.gpt.causal:
            if top_k:
                raise OptionError(f"top_k = {top_k}: a masked system takes all codes, leave it out")
            return masked(self.gpt, text, pick(steps, c.steps), **how, **more)
        if steps not in (None, c.gpt.places):
            raise OptionError(
                f"steps = {steps}: a causal system takes {c.gpt.places}, one a code: leave it out"
            )
        return autoregressive(self.gpt, text, top_k=pick(top_k, c.top_k), **how, **more)

    @torch.no_grad()
    def draw(self, prompts, **options) -> Tensor:
        """One picture a prompt, (B, 3, size, size) in [-1, 1]; options: see `generate`."""
        for step in self.generate(prompts, **options):
            pass
        return self.decode(step.codes).clamp(-1, 1)


def rerank(pictures: Tensor, prompts, clip: CLIP) -> tuple[Tensor, Tensor]:
    """Of n pictures a prompt the one that CLIP finds nearest to it (Ramesh et al. 2021, 2.6).

    pictures (B, n, 3, H, W), prompts: B -> (pictures (B, 3, H, W), which of the n (B,)).
    """
    prompts = checked_prompts(prompts)
    shape = (len(prompts), "n", "C", "H", "W")
    fits("pictures", pictures, shape, f"{len(prompts)} prompts come with")
    cosine = cosines(clip, pictures.flatten(0, 1), prompts).unflatten(0, pictures.shape[:2])
    best = cosine.diagonal(dim1=0, dim2=2).T.argmax(1)  # (B, n) of the own prompts
    return pictures[torch.arange(len(prompts)), best], best
