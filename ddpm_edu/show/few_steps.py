"""Few-step models side by side: what each draws in 1, 2, 4 and 8 steps. Notebook 16."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..datasets.painted import prompts
from ..errors import whole
from ..files.load import load
from ..metrics.obedience import fidelity
from ..systems.pipeline import draw
from ..systems.system import StableDiffusion
from . import plot

MODELS = {  # what a table calls them
    "painted": "DPM-Solver++(2M), guided",
    "painted-few": "its student",
    "painted-meanflow": "MeanFlow, from nothing",
}


class FewSteps(NamedTuple):
    """What `few_steps` measured."""

    texts: list[str]
    obeyed: dict  # {model: {steps: share of pictures with all five words right}}
    pictures: dict  # {model: {steps: (n, 3, 32, 32) in [-1, 1]}}

    def table(self) -> plot.Table:
        """A row a model; a guided step asks the network twice, with the text and without."""
        rows = [
            {"model": MODELS.get(name, name), "calls a step": calls(load(name))}
            | {f"{k} step{'s' * (k > 1)}": share for k, share in shares.items()}
            for name, shares in self.obeyed.items()
        ]
        columns = [name for name in rows[0] if "step" in name and "calls" not in name]
        text = f"Share of {len(self.texts)} pictures that show all five words of their captions."
        formats, best = dict.fromkeys(columns, ".0%"), dict.fromkeys(columns, max)
        return plot.table(rows, caption=text, formats=formats, best=best)


def few_steps(
    n: int = 60, steps: tuple[int, ...] = (1, 2, 4, 8), models=tuple(MODELS), seed: int = 3
) -> FewSteps:
    """n captions drawn by each model, from the same noise, in each number of steps."""
    whole("n", n, 1, 10_000, "captions")
    texts, obeyed, pictures = prompts(n, seed), {}, {}
    for name in models:
        sd = load(name)
        pictures[name] = {k: drawn(sd, texts, k) for k in steps}
        obeyed[name] = {k: fidelity(x, texts)["all"] for k, x in pictures[name].items()}
    return FewSteps(texts, obeyed, pictures)


def drawn(sd: StableDiffusion, texts: list[str], steps: int, size: int = 100) -> Tensor:
    """Pictures (N, 3, H, W), some at a time; picture i from the noise of seed i."""
    parts = []
    for k in range(0, len(texts), size):
        part = texts[k : k + size]
        seeds = list(range(k, k + len(part)))
        parts.append(draw(sd, part, seeds=seeds, steps=steps, progress=False))
    return torch.cat(parts)


def calls(sd: StableDiffusion) -> int:
    """How often the network is asked in a step: twice where guidance is not built in."""
    return 2 if sd.config.guidance > 1 else 1
