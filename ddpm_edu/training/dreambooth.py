"""DreamBooth: your pictures with a rare word, and the model's own ones, which keep it. Notebook 17.

Ruiz et al. 2022 (arXiv 2208.12242), section 3: the loss on pictures of your dog, "a photo of a sks
dog", plus weight times the loss on pictures of dogs that the model drew before it learned, "a photo
of a dog": prior preservation. So "dog" goes on meaning any dog, and no other picture is forgotten.

    prior = encode(sd, prior_pictures(sd, "a photo of a dog", 100))
    data = with_prior(encode(sd, own), prior)
    for step in train_lora(sd, data, config): ...         or train(sd.unet, sd.schedule, data, ...)
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..datasets.own import Own, captioned
from ..diffusion import Cond
from ..errors import DataError, ShapeError, checked_prompts, in_range, whole
from ..systems.pipeline import draw
from ..systems.system import StableDiffusion


def prior_pictures(
    sd: StableDiffusion, captions, n: int, *, seed: int = 0, batch: int = 25, **options
) -> Own:
    """n pictures that sd draws of the class, before it learns anything.

    captions: one text, or several that are taken in turn.  batch: at once.  options: of `draw`.
    """
    captions = checked_prompts(captions)
    whole("n", n, 1, 10**6, "pictures of the class")
    texts, pieces = [captions[k % len(captions)] for k in range(n)], []
    for k in range(0, n, batch):
        some, seeds = texts[k : k + batch], list(range(seed + k, seed + min(k + batch, n)))
        pieces.append(draw(sd, some, seeds=seeds, progress=False, **options).float().cpu())
    return captioned(torch.cat(pieces), texts)


class WithPrior:
    """data[index] -> (x_0, Cond): own pictures are the first `len(own)`, those of the prior follow.

    A share weight / (1 + weight) of each batch is prior, on average over the batches exactly, so
    that the mean over a batch is (L_own + weight L_prior) / (1 + weight); both kinds are shuffled
    and gone through evenly, the shorter one several times an epoch.
    """

    def __init__(self, own, prior, weight: float):
        self.own, self.prior = own, prior
        self.share = weight / (1 + in_range("weight", weight, 0, 1000, "1 is usual, 0 none"))
        if not (len(own) and len(prior)):
            raise DataError(f"{len(own)} own and {len(prior)} of the prior: pass pictures of both")
        shapes = [tuple(data[torch.tensor([0])][0].shape[1:]) for data in (own, prior)]
        if shapes[0] != shapes[1]:
            cause = f"own pictures have shape {shapes[0]}, those of the prior {shapes[1]}"
            raise ShapeError(f"{cause}: a batch holds both, so pass them in one shape")

    def __len__(self) -> int:
        return len(self.own) + len(self.prior)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        x_0, *cond = self._both(index, _pictures)
        return x_0, Cond(*cond)

    def uncond(self, index) -> Cond:
        """What replaces a dropped condition: each kind's own."""
        return Cond(*self._both(index, _uncond))

    def _both(self, index, ask: Callable) -> list[Tensor | None]:
        """ask(dataset, indices) -> tensors or None, of both kinds, put into the order of index."""
        index, n = torch.as_tensor(index).reshape(-1), len(self.own)
        kinds = (self.own, index < n, 0), (self.prior, index >= n, n)
        found = [ask(data, index[its] - start) for data, its, start in kinds if its.any()]
        place = torch.cat([its.nonzero()[:, 0] for _, its, _ in kinds]).argsort()
        return [None if part[0] is None else torch.cat(part)[place] for part in zip(*found)]

    def order(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """An epoch: every own picture about once."""
        mine = 1 - self.share
        batches = max(1, round(len(self.own) / (batch_size * mine)))
        ends = (torch.arange(batches + 1) * batch_size * self.share + 1e-6).floor().long()
        counts = ends.diff().tolist()  # of the prior, in each batch
        prior = _shuffled(len(self.prior), sum(counts), generator) + len(self.own)
        own = _shuffled(len(self.own), batches * batch_size - sum(counts), generator)
        prior, own = prior.split(counts), own.split([batch_size - n for n in counts])
        return torch.cat([part for pair in zip(own, prior) for part in pair])


def with_prior(own, prior, weight: float = 1.0) -> WithPrior:
    """A dataset for `train` and `train_lora` whose loss is L_own + weight L_prior, up to a factor.

    own, prior: Latents of `encode`, or any dataset of (x_0, Cond), in one shape.
    """
    return WithPrior(own, prior, weight)


def _pictures(data, index: Tensor) -> tuple:
    x_0, cond = data[index]
    return x_0, *cond[:2]


def _uncond(data, index: Tensor) -> tuple:
    uncond = getattr(data, "uncond", None)
    cond = uncond(index) if callable(uncond) else uncond or data[index][1].map(torch.zeros_like)
    return cond.map(lambda part: part.expand(len(index), *part.shape[1:]))[:2]


def _shuffled(n: int, length: int, generator) -> Tensor:
    """So many of 0..n-1, each as often as the others or once more."""
    rounds = [torch.randperm(n, generator=generator) for _ in range(-(-length // n))]
    return torch.cat([*rounds, torch.empty(0, dtype=torch.long)])[:length]
