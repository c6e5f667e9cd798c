"""What an autoencoder is trained by: reconstruction, KL or a codebook, features of another network, and a critic.

    model = Autoencoder(VAE(config), LossWeights(perceptual=0.1), features=classifier_features())
    for step in fit(model, dataset, TrainConfig(...), objective): ...        # train.py; step.ema.vae is the result

Stable Diffusion's recipe (Rombach et al. 2022, section 3.1) is that of VQGAN (Esser et al. 2021), with a KL term or a
codebook to keep the latents in order.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..diffusion import randn_like
from ..errors import DataError, OptionError, ShapeError, whole
from ..files.load import load
from ..networks.classifier import Classifier
from ..networks.vae import VAE, kl
from ..networks.vq import VectorQuantizer

Features = Callable[
    [Tensor], list[Tensor]
]  # pictures (B, C, H, W) in [-1, 1] -> feature maps, each (B, C_i, H_i, W_i)


@dataclass(frozen=True)
class LossWeights:
    """What each loss counts in the sum; 0 switches it off, and then it is not computed either.

    mse, l1: of the reconstruction, means over all numbers.  perceptual: see `perceptual`.
    kl: of `vae.kl`, the sum over a picture's latent numbers, averaged over the batch: 1e-6 is the number of Rombach et
    al., whose reconstruction is a sum as well, so that beside our mean the KL counts for more.
    adversarial: of the critic's verdict on the reconstruction.  codebook: of both losses of `VectorQuantizer`.
    Raises OptionError for a weight that is negative or no number, and if all of them are 0.
    """

    mse: float = 1.0
    l1: float = 0.0
    perceptual: float = 0.0
    kl: float = 1e-6
    adversarial: float = 0.0
    codebook: float = 0.0

    def __post_init__(self):
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 <= value < math.inf
            ):
                raise OptionError(
                    f"LossWeights.{name} = {value!r} must be a finite number of at least 0; 0 switches the loss off"
                )
        if not any(values.values()):
            raise OptionError(
                f"every weight in {self} is 0: there is nothing to train for, give at least one a number"
            )


# ---------------------------------------------------------------- what is trained


class Autoencoder(nn.Module):
    """A VAE with the helpers that only its training needs: a critic, or a codebook in place of the noise.

    Without codes z = mean + exp(logvar / 2) * noise, and kl keeps q(z | x) near N(0, I). With codes z = the nearest
    code to mean, logvar is unused, and the codebook's two losses take the place of kl.

    The critic tells pictures from reconstructions, the VAE is to mislead it: with the hinge losses of Lim and Ye 2017

        L = ... + adversarial * -mean(critic(y)) + mean(relu(1 - critic(x))) + mean(relu(1 + critic(y)))

    One optimizer trains both on this one sum: in the second term the critic's weights are detached (functional_call
    with other tensors), in the last one y is, so that each of the two losses moves only the weights it is meant for.

    features: a frozen network, for perceptual (`classifier_features`, `vgg_features`); it is no submodule, so that it is
    neither trained nor saved nor averaged. Raises OptionError where weights ask for a part that is missing.
    """

    def __init__(
        self,
        vae: VAE,
        weights: LossWeights | None = None,
        features: Features | None = None,
        codes: int = 0,
    ):
        super().__init__()
        weights = weights or LossWeights()
        whole("codes", codes, 0, 2**20, "the size of the codebook, 0 for none")
        if weights.perceptual and features is None:
            raise OptionError(
                f"perceptual = {weights.perceptual:g} needs features: pass features=classifier_features(), or switch it off"
            )
        if bool(weights.codebook) != bool(codes):
            raise OptionError(
                f"codes = {codes} and codebook = {weights.codebook:g}: give both, for example 256 and 1.0, or leave both 0"
            )
        self.vae, self.weights = vae, weights
        self.critic = PatchDiscriminator(vae.config.in_channels) if weights.adversarial else None
        self.codebook = VectorQuantizer(codes, vae.config.latent) if codes else None
        self.features = (lambda x: features(x)) if isinstance(features, nn.Module) else features

    def reconstruct(self, x: Tensor, generator=None) -> tuple[Tensor, dict[str, Tensor]]:
        """x -> (y, the latent's own losses that are switched on); without a generator z has no noise, as in to_latent."""
        mean, logvar = self.vae.encode(x)
        if self.codebook is not None:
            q = self.codebook(mean, generator)
            return self.vae.decode(q.z), {"codebook": q.codebook, "commitment": q.commitment}
        z = mean if generator is None else mean + (0.5 * logvar).exp() * randn_like(mean, generator)
        return self.vae.decode(z), {"kl": kl(mean, logvar).mean()} if self.weights.kl else {}

    def terms(self, x: Tensor, generator=None) -> dict[str, Tensor]:
        """{name: scalar}, unweighted, of the losses that are switched on, for pictures x (B, C, H, W) in [-1, 1]."""
        y, found = self.reconstruct(x, generator)
        w = self.weights
        if w.mse:
            found["mse"] = (y - x).square().mean()
        if w.l1:
            found["l1"] = (y - x).abs().mean()
        if w.perceptual:
            found["perceptual"] = perceptual(self.features, x, y)
        if w.adversarial:
            frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
            found["adversarial"] = -functional_call(self.critic, frozen, (y,)).mean()
            found["critic"] = (
                F.relu(1 - self.critic(x)).mean() + F.relu(1 + self.critic(y.detach())).mean()
            )
        return found

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of `terms`; the critic's own loss counts 1, as nothing else moves its weights."""
        weight = {f.name: getattr(self.weights, f.name) for f in fields(self.weights)}
        weight |= {"commitment": self.weights.codebook, "critic": 1.0}
        return sum(weight[name] * value for name, value in terms.items())

    def forward(self, x: Tensor, generator=None) -> Tensor:
        return self.total(self.terms(x, generator))


def objective(model: nn.Module, batch: tuple, generator=None) -> Tensor:
    """The loss of an Autoencoder for `train.fit`; batch = (x_0, whatever else the dataset gives)."""
    return model(batch[0], generator)


# ---------------------------------------------------------------- its parts


class PatchDiscriminator(nn.Module):
    """Real or not, patch by patch (Isola et al. 2017): (B, channels, H, W) -> logits (B, 1, H/8, W/8), sizes rounded down.

    One logit sees 22 x 22 pixels through its convolutions; beyond these only GroupNorm's mean and variance of the whole
    picture reach it. GroupNorm, since statistics of a batch would mix pictures and differ between training and use.
    """

    def __init__(self, channels: int = 3, width: int = 32, groups: int = 8):
        super().__init__()
        whole("width", width, 1, 4096, "channels after the first convolution")
        if width % groups:
            raise OptionError(
                f"width = {width} is not a multiple of groups = {groups}: change one of them"
            )
        self.channels = channels
        self.conv_in = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.conv1 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(groups, 2 * width)
        self.conv2 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.norm2 = nn.GroupNorm(groups, 4 * width)
        self.conv_out = nn.Conv2d(4 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < 8:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}: this critic takes (B, {self.channels}, H, W), H and W at least 8"
            )
        h = F.leaky_relu(self.conv_in(x), 0.2)
        h = F.leaky_relu(self.norm1(self.conv1(h)), 0.2)
        h = F.leaky_relu(self.norm2(self.conv2(h)), 0.2)
        return self.conv_out(h)


# ---------------------------------------------------------------- pictures compared by features


def perceptual(features: Features, x: Tensor, y: Tensor) -> Tensor:
    """Mean over feature maps and their pixels of |f(x) - f(y)|^2, each pixel's f scaled to length 1: a scalar, 0 to 4.

    LPIPS (Zhang et al. 2018, eq. 1) without its learned weights. Gradients go to y only.
    """
    if x.shape != y.shape:
        raise ShapeError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: they must be the same"
        )
    with torch.no_grad():
        real = features(x)
    pairs = zip(real, features(y), strict=True)
    return torch.stack(
        [
            (F.normalize(a, eps=1e-6) - F.normalize(b, eps=1e-6)).square().sum(1).mean()
            for a, b in pairs
        ]
    ).mean()


def classifier_features(classifier: Classifier | None = None) -> Features:
    """Feature maps of our own classifier, that of CIFAR-10 unless another is given: after its stem and after each block."""
    classifier = (
        copy.deepcopy(classifier or load("cifar10_classifier")).eval().requires_grad_(False)
    )
    least = 2 ** len(classifier.blocks)  # every block halves the size

    def features(x: Tensor) -> list[Tensor]:
        _check_pictures(x, classifier.config.channels, least)
        classifier.to(x)
        return classifier.maps(x)

    return features


VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512)  # up to relu4_3
VGG16_FILE = "vgg16-397923af.pth"


def vgg_features(path=None) -> Features:
    """VGG16's relu1_2, 2_2, 3_3, 4_3 (Simonyan and Zisserman 2014), from torchvision's file of weights in torch's cache.

    Nothing is downloaded: DataError if the file is not there, or is another one.
    """
    path = Path(path or Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE)
    instead = "use classifier_features(), which needs no download, or fetch it (528 MB): torchvision.models.vgg16(weights='IMAGENET1K_V1')"
    if not path.is_file():
        raise DataError(f"there are no weights of VGG16 at {path}: {instead}")
    net, width = nn.Sequential(), 3
    for size in VGG16:
        net.extend(
            [nn.MaxPool2d(2)]
            if size == "pool"
            else [nn.Conv2d(width, size, 3, padding=1), nn.ReLU()]
        )
        width = width if size == "pool" else size
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        net.load_state_dict({name: state[f"features.{name}"].float() for name in net.state_dict()})
    except Exception as e:  # whatever a damaged file makes of torch.load
        raise DataError(
            f"{path} does not hold torchvision's VGG16 ({type(e).__name__}): remove it, then {instead}"
        ) from e
    net.eval().requires_grad_(False)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )  # ImageNet's, of [0, 1]

    def features(x: Tensor) -> list[Tensor]:
        _check_pictures(x, 3, 8)
        net.to(x)
        h, maps = ((x + 1) / 2 - mean.to(x)) / std.to(x), []
        for layer in net:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(h)  # the last ReLU before each pooling
            h = layer(h)
        return [*maps, h]

    return features


def _check_pictures(x, channels, least):
    if x.ndim != 4 or x.shape[1] != channels or min(x.shape[2:]) < least:
        raise ShapeError(
            f"pictures have shape {tuple(x.shape)}: these features take (B, {channels}, H, W), H and W at least {least}"
        )


# ---------------------------------------------------------------- the scale of the latents


@torch.no_grad()
def measure_scale(vae: VAE, dataset, n: int = 1024, batch_size: int = 64) -> float:
    """1 / standard deviation of all latent numbers (means) over n pictures, spread evenly over the dataset.

    Rombach et al. 2022, appendix G. dataset[indices] -> (x_0, ...). DataError if it is empty, or the latents are constant.
    """
    whole("n", n, 1, 10**9, "the pictures to measure over")
    if len(dataset) == 0:
        raise DataError("the dataset is empty: the scale is measured over at least one picture")
    index = torch.linspace(0, len(dataset) - 1, min(n, len(dataset))).round().long()
    device = next(vae.parameters()).device
    std = (
        torch.cat(
            [
                vae.encode(dataset[part][0].to(device))[0].flatten().float().cpu()
                for part in index.split(batch_size)
            ]
        )
        .std()
        .item()
    )
    if not 1e-8 < std < math.inf:
        raise DataError(
            f"the latents have standard deviation {std:g}: this VAE tells no pictures apart, train it first"
        )
    return 1 / std


def with_scale(vae: VAE, scale: float) -> VAE:
    """The same VAE, not a copy, whose config now says this scale."""
    vae.config = replace(vae.config, scale=scale)
    return vae
