"""What an autoencoder learns from: pixels, KL or codebook, features, an opponent. Notebook 06.

    model = Autoencoder(VAE(config), LossWeights(perceptual=0.1), features=classifier_features())
    for step in fit(model, dataset, TrainConfig(...), objective): ...      # then step.ema.vae

Stable Diffusion's recipe (Rombach et al. 2022, section 3.1) is that of VQGAN (Esser et al. 2021),
with a KL term or a codebook to keep the latents in order.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..diffusion import randn_like
from ..errors import DataError, OptionError, ShapeError, multiple, numbers, whole
from ..files.load import load
from ..networks.classifier import Classifier
from ..networks.vae import VAE, kl
from ..networks.vq import VectorQuantizer

# pictures (B, C, H, W) in [-1, 1] -> feature maps, each (B, C_i, H_i, W_i)
Features = Callable[[Tensor], list[Tensor]]
MOST = 1e9  # of a weight


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts in the sum; 0 switches it off, and then it is not computed either."""

    mse: float = 1.0  # of the reconstruction, the mean over all numbers
    l1: float = 0.0  # the same
    perceptual: float = 0.0  # see `perceptual`
    # Of vae.kl, the sum over a picture's latent numbers, averaged over the batch. 1e-6 is that of
    # Rombach et al.; their reconstruction is a sum as well, so that beside our mean it counts more.
    kl: float = 1e-6
    adversarial: float = 0.0  # of what the discriminator makes of the reconstruction
    codebook: float = 0.0  # of both losses of VectorQuantizer

    def __post_init__(self):
        numbers(self, mse=(0, MOST), l1=(0, MOST), perceptual=(0, MOST), kl=(0, MOST))
        numbers(self, adversarial=(0, MOST), codebook=(0, MOST))
        if not any(dataclasses.astuple(self)):
            raise OptionError(f"every weight in {self} is 0: give at least one a number")


# ---------------------------------------------------------------- what is trained


class Autoencoder(nn.Module):
    """A VAE and what only its training needs: a discriminator, or a codebook instead of the noise.

    Without codes z = mean + exp(logvar / 2) * noise, and kl keeps q(z | x) near N(0, I). With codes
    z = the nearest code to mean, and the codebook's two losses take the place of kl.

    The discriminator D tells pictures from reconstructions, the VAE is to mislead it: with the
    hinge losses of Lim and Ye 2017

        L = ... + adversarial * -mean(D(y)) + mean(relu(1 - D(x))) + mean(relu(1 + D(y)))

    One optimizer trains both on this one sum: in the second term D's weights are detached
    (functional_call with other tensors), in the last one y is, so that each loss moves only the
    weights it is meant for.

    features: a frozen network, for perceptual; no submodule, so that it is neither trained nor
    saved nor averaged. Raises OptionError where weights ask for a part that is missing.
    """

    def __init__(
        self,
        vae: VAE,
        weights: LossWeights | None = None,
        features: Features | None = None,
        codes: int = 0,  # size of the codebook
    ):
        super().__init__()
        weights = weights or LossWeights()
        whole("codes", codes, 0, 2**20, "the size of the codebook, 0 for none")
        if weights.perceptual and features is None:
            raise OptionError(
                f"perceptual = {weights.perceptual:g} needs features: "
                "pass features=classifier_features(), or switch it off"
            )
        if bool(weights.codebook) != bool(codes):
            raise OptionError(
                f"codes = {codes} and codebook = {weights.codebook:g}: "
                "give both, for example 256 and 1.0, or leave both 0"
            )
        self.vae, self.weights = vae, weights
        channels = vae.config.in_channels
        self.discriminator = PatchDiscriminator(channels) if weights.adversarial else None
        self.codebook = VectorQuantizer(codes, vae.config.latent) if codes else None
        self.features = (lambda x: features(x)) if isinstance(features, nn.Module) else features

    def reconstruct(self, x: Tensor, generator=None) -> tuple[Tensor, dict[str, Tensor]]:
        """x -> (y, the latent's own losses that are switched on); no generator, no noise in z."""
        mean, logvar = self.vae.encode(x)
        if self.codebook is not None:
            q = self.codebook(mean, generator)
            return self.vae.decode(q.z), {"codebook": q.codebook, "commitment": q.commitment}
        z = mean if generator is None else mean + (0.5 * logvar).exp() * randn_like(mean, generator)
        return self.vae.decode(z), {"kl": kl(mean, logvar).mean()} if self.weights.kl else {}

    def terms(self, x: Tensor, generator=None) -> dict[str, Tensor]:
        """{name: scalar}, unweighted, of the losses that are switched on, for pictures x."""
        y, found = self.reconstruct(x, generator)
        w, D = self.weights, self.discriminator
        if w.mse:
            found["mse"] = (y - x).square().mean()
        if w.l1:
            found["l1"] = (y - x).abs().mean()
        if w.perceptual:
            found["perceptual"] = perceptual(self.features, x, y)
        if w.adversarial:
            frozen = {name: p.detach() for name, p in D.named_parameters()}
            found["adversarial"] = -functional_call(D, frozen, (y,)).mean()
            found["discriminator"] = F.relu(1 - D(x)).mean() + F.relu(1 + D(y.detach())).mean()
        return found

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum; the discriminator's own loss counts 1: nothing else moves its weights."""
        weight = dataclasses.asdict(self.weights)
        weight |= {"commitment": self.weights.codebook, "discriminator": 1.0}
        return sum(weight[name] * value for name, value in terms.items())

    def forward(self, x: Tensor, generator=None) -> Tensor:
        return self.total(self.terms(x, generator))


def objective(model: nn.Module, batch: tuple, generator=None) -> Tensor:
    """The loss of an Autoencoder for `train.fit`; batch = (x_0, what else the dataset gives)."""
    return model(batch[0], generator)


def only_decoder(vae: VAE) -> VAE:
    """The same VAE, not a copy, of which only the decoder learns: every latent stays as it is."""
    for part in (vae.encoder, vae.quant):
        part.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant):
        part.requires_grad_(True)
    return vae


# ---------------------------------------------------------------- its parts


class PatchDiscriminator(nn.Module):
    """Real or not, patch by patch (Isola et al. 2017): (B, C, H, W) -> logits (B, 1, H/8, W/8).

    One logit sees 22 x 22 pixels through its convolutions; beyond these only GroupNorm's mean and
    variance of the whole picture reach it. GroupNorm, since statistics of a batch would mix
    pictures and differ between training and use. Sizes are rounded down; ShapeError below 8.
    """

    def __init__(self, channels: int = 3, width: int = 32, groups: int = 8):
        super().__init__()
        whole("width", width, 1, 4096, "channels after the first convolution")
        multiple("width", width, "groups", groups)
        self.channels = channels
        self.conv_in = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(groups, 2 * width)
        self.conv2 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.norm2 = nn.GroupNorm(groups, 4 * width)
        self.conv_out = nn.Conv2d(4 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.channels, 8, "this discriminator takes")
        h = F.leaky_relu(self.conv_in(x), 0.2)
        h = F.leaky_relu(self.norm1(self.conv1(h)), 0.2)
        h = F.leaky_relu(self.norm2(self.conv2(h)), 0.2)
        return self.conv_out(h)


def perceptual(features: Features, x: Tensor, y: Tensor) -> Tensor:
    """Mean over feature maps and pixels of |f(x) - f(y)|^2, each f scaled to length 1: 0 to 4.

    LPIPS (Zhang et al. 2018, eq. 1) without its learned weights. Gradients go to y only.
    """
    if x.shape != y.shape:
        raise ShapeError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: pass the same shape"
        )
    with torch.no_grad():
        real = features(x)
    unit = lambda f: F.normalize(f, eps=1e-6)
    pairs = zip(real, features(y), strict=True)
    return torch.stack([(unit(a) - unit(b)).square().sum(1).mean() for a, b in pairs]).mean()


def classifier_features(classifier: Classifier | None = None) -> Features:
    """Feature maps of our own classifier, CIFAR-10's by default: after its stem and each block."""
    classifier = copy.deepcopy(classifier or load("cifar10_classifier"))
    classifier.eval().requires_grad_(False)
    least = 2 ** len(classifier.blocks)  # every block halves the size

    def features(x: Tensor) -> list[Tensor]:
        _check(x, classifier.config.channels, least, "these features take")
        return classifier.to(x).maps(x)

    return features


def _check(x, channels, least, whose):
    if x.ndim != 4 or x.shape[1] != channels or min(x.shape[2:]) < least:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}: {whose} (B, {channels}, H, W), H and W at least {least}"
        )


# ---------------------------------------------------------------- the scale of the latents


@torch.no_grad()
def measure_scale(vae: VAE, dataset, n: int = 1024, batch_size: int = 64) -> float:
    """1 / standard deviation of the latent means of n pictures, spread evenly over the dataset.

    Rombach et al. 2022, appendix G. dataset[indices] -> (x_0, ...). Raises DataError if it is
    empty, or the latents are constant.
    """
    whole("n", n, 1, 10**9, "the pictures to measure over")
    if len(dataset) == 0:
        raise DataError("the dataset is empty: the scale is measured over at least one picture")
    index = torch.linspace(0, len(dataset) - 1, min(n, len(dataset))).round().long()
    device = next(vae.parameters()).device
    batches = (dataset[part][0].to(device) for part in index.split(batch_size))
    std = torch.cat([vae.encode(x)[0].flatten().float().cpu() for x in batches]).std().item()
    if not 1e-8 < std < math.inf:
        raise DataError(
            f"the latents have standard deviation {std:g}: this VAE tells no pictures apart, "
            "train it first"
        )
    return 1 / std


def with_scale(vae: VAE, scale: float) -> VAE:
    """The same VAE, not a copy, whose config now says this scale."""
    vae.config = replace(vae.config, scale=scale)
    return vae
