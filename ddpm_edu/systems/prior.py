"""Embeddings drawn from captions by unCLIP's prior, and the pictures nearest to them. Notebook 15.

prior, clip = load("painted-prior"), load("painted_clip")
z = draw_embeddings(prior, clip, ["a large red seven on a blue ground, top left"])   # (1, 64)
nearest(z, clip.image(pictures))                                        # (1,): which of them
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion import Cond, guided, last, noise
from ..errors import OptionError, fits, in_range, one_of, whole
from ..networks.clip import CLIP
from ..networks.prior import Prior
from ..samplers import SAMPLERS
from .arguments import one_each

STEPS, GUIDANCE = 10, 1.0


@torch.no_grad()
def caption_cond(clip: CLIP, prompts: list[str]) -> Cond:
    """What a prior reads: every token's state (B, L, D), and the caption's embedding (B, P)."""
    hidden = clip.text(clip.ids(prompts).to(clip.log_scale.device))
    return Cond(hidden.last, F.normalize(hidden.pooled, dim=-1))


@torch.no_grad()
def draw_embeddings(
    prior,
    clip: CLIP,
    prompts,
    *,
    seeds=0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    best_of: int = 2,
    sampler: str = "dpmpp_2m",
) -> Tensor:
    """CLIP embeddings of pictures that fit the prompts, unit vectors (B, P), from noise.

    prior: what `load` gives.  best_of: of so many draws the one with the highest cosine to the
    caption's own embedding is kept; unCLIP draws two (section 2.2).  prompts, seeds: see
    `text_to_image`. OptionError for a prior of another CLIP.
    """
    texts, _, seeds = one_each(prompts, "", seeds)
    whole("best_of", best_of, 1, 1000, "draws a caption")
    whole("steps", steps, 1, 10_000, "one evaluation each")
    one_of("sampler", sampler, SAMPLERS)
    in_range("guidance", guidance, 0, 100, "1 is none")
    net = made_for(prior, clip)
    cond, uncond = caption_cond(clip, texts), caption_cond(clip, [""])
    model = guided(net, guidance, uncond) if guidance != 1 else net
    draws = []
    for k in range(best_of):
        x_T = noise((net.config.size,), [seed + k * 1_000_003 for seed in seeds]).to(cond.vector)
        run = SAMPLERS[sampler](model, prior.schedule, x_T, steps, cond, predict=prior.predict)
        draws.append(net.embedding(last(run)))
    z = torch.stack(draws)  # (best_of, B, P)
    return z[(z * cond.vector).sum(-1).argmax(0), torch.arange(len(texts))]


def made_for(prior, clip) -> Prior:
    """The prior's network; OptionError unless both fit each other."""
    net = getattr(prior, "model", None)
    if not isinstance(net, Prior) or not isinstance(clip, CLIP):
        kinds = f"a {type(net or prior).__name__} and a {type(clip).__name__}"
        raise OptionError(f'{kinds}: pass load("painted-prior") and load("painted_clip")')
    size, c = clip.config.text.projection, net.config
    if (c.size, c.vector, c.context) != (size, size, clip.config.text.width):
        raise OptionError(
            f"the prior draws {c.size} numbers from texts {c.context} wide, this CLIP has {size} "
            f"and {clip.config.text.width}: they are of two models"
        )
    return net


def nearest(z: Tensor, gallery: Tensor) -> Tensor:
    """Which row of the gallery (N, P) has the highest cosine with each z (B, P): (B,)."""
    fits("gallery", gallery, ("N", z.shape[-1]), "these embeddings take")
    return (z @ gallery.T).argmax(1)
