"""LoRA: beside a weight W that stays as it is, a thin change (alpha / r) B A learns. Notebook 17.

Hu et al. 2021 (arXiv 2106.09685): what fine-tuning adds to a weight W (out, in) has a low rank r,
so it is enough to learn A (r, in) and B (out, r). B starts at 0: at first nothing changes.

    lora = low_rank(sd, rank=4)        a new one, for every attention layer of the UNet
    attach(sd, lora)                   sd now draws with it; lora.scale = 0.5: with half of it
    detach(sd), or merge(sd)           gone without a trace, or added to the weights for good
"""

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError, in_range, whole

ATTENTION = r"\battn[12]\.(q|k|v|out)$"  # names of a UNet's layers that learn unless told otherwise


class LowRank(nn.Module):
    """The change of one layer: x -> scale (alpha / r) B A x.

    Of a Linear: A (r, in), B (out, r). Of a Conv2d: A (r, in, k, k), a convolution with the
    layer's stride and padding to r channels, and B (out, r, 1, 1), which mixes them.
    alpha: r unless given. It keeps the change of the same size when another r is tried.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float | None = None):
        super().__init__()
        self.rank, self.scale = whole("rank", rank, 1, hint="4 to 64 are usual"), 1.0
        self.alpha = float(rank) if alpha is None else in_range("alpha", alpha, -1e6, 1e6)
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)  # A
            self.up = nn.Linear(rank, layer.out_features, bias=False)  # B
        else:
            where = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
            self.down = nn.Conv2d(layer.in_channels, rank, bias=False, **where)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.down.weight.to(x.dtype), self.up.weight.to(x.dtype)
        if A.ndim == 2:
            h = F.linear(F.linear(x, A), B)
        else:
            h = F.conv2d(F.conv2d(x, A, None, self.down.stride, self.down.padding), B)
        return self.scale * self.alpha / self.rank * h

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it changes."""
        return len(self.up.weight), *self.down.weight.shape[1:]

    def matrix(self) -> Tensor:
        """scale (alpha / r) B A in the shape of the weight that it changes, float32."""
        A, B = self.down.weight.float(), self.up.weight.float()
        product = (B.flatten(1) @ A.flatten(1)).view(self.shape)
        return self.scale * self.alpha / self.rank * product


class LoRA(nn.Module):
    """The changes of some layers of a model, by the names of these layers.

    scale: the slider of them all, 1 at first; 0 is the model without them.
    """

    def __init__(self, changes: dict[str, LowRank]):
        super().__init__()
        if not changes:
            raise OptionError("a LoRA of no layers changes nothing: pass at least one")
        self.names, self.changes = tuple(changes), nn.ModuleList(changes.values())
        self.meta: dict = {}  # what its file says beside

    def items(self) -> Iterator[tuple[str, LowRank]]:
        return zip(self.names, self.changes)

    @property
    def scale(self) -> float:
        return self.changes[0].scale

    @scale.setter
    def scale(self, scale: float):
        in_range("scale", scale, -100, 100, "0 is without, 1 as it was trained")
        for change in self.changes:
            change.scale = scale


class Adapted(nn.Module):
    """A layer with changes beside it: x -> W x + b + the sum of what they add."""

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        self.layer, self.changes = layer, nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        return sum((change(x) for change in self.changes), self.layer(x))


def layers(model: nn.Module, start: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(name, Linear or Conv2d) of all that a LoRA can change, attached ones or not."""
    for name, module in model.named_children():
        if isinstance(module, (nn.Linear, nn.Conv2d, Adapted)):
            yield start + name, getattr(module, "layer", module)
        else:
            yield from layers(module, f"{start}{name}.")


def low_rank(model: nn.Module, rank: int, alpha: float | None = None, where=ATTENTION) -> LoRA:
    """A new LoRA for the layers whose name `where`, a regular expression, is found in.

    It is on the model's device, in float32, and its A and B take gradients.
    """
    try:
        found = {name: layer for name, layer in layers(model) if re.search(where, name)}
    except (re.error, TypeError) as e:
        raise OptionError(f"where = {where!r:.80} is no regular expression ({e})") from None
    if not found:
        some = ", ".join(name for name, _ in list(layers(model))[:3])
        raise OptionError(f"where = {where!r:.80} is found in no name of a layer (such as {some})")
    changes = {name: LowRank(layer, rank, alpha) for name, layer in found.items()}
    return LoRA(changes).to(next(iter(found.values())).weight.device)


def attach(model: nn.Module, lora: LoRA, scale: float = 1.0) -> None:
    """Let `lora` change what `model` computes until `detach` or `merge`; several add up.

    OptionError, before anything is changed, if it is attached already or does not fit.
    """
    if not isinstance(lora, LoRA):
        raise OptionError(f"lora is a {type(lora).__name__}: pass a LoRA, of load_lora or low_rank")
    own = dict(layers(model))
    for name, change in lora.items():
        wanted = tuple(own[name].weight.shape) if name in own else "not there"
        if wanted != change.shape:
            cause = f"{name} is {wanted}, and it changes a weight of {change.shape}"
            raise OptionError(f"lora is of another model: {cause}: load it for this one")
        if change in _changes(model.get_submodule(name)):
            raise OptionError("lora is attached already: set lora.scale, or detach it first")
    lora.scale = scale
    for name, change in lora.items():
        if not isinstance(model.get_submodule(name), Adapted):
            model.set_submodule(name, Adapted(own[name]))
        model.get_submodule(name).changes.append(change.to(own[name].weight.device))


def detach(model: nn.Module, lora: LoRA | None = None) -> None:
    """Take `lora`, or all, off again; layers without one are the very ones they were."""
    gone = set(lora.changes if lora else (m for m in model.modules() if isinstance(m, LowRank)))
    for name, layer in list(layers(model)):
        if changes := _changes(model.get_submodule(name)):
            kept = [change for change in changes if change not in gone]
            model.get_submodule(name).changes = nn.ModuleList(kept)
            if not kept:
                model.set_submodule(name, layer)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """W <- W + the sum of scale (alpha / r) B A in every layer, summed in float32; then detach.

    The same pictures up to rounding, without a product more; it cannot be undone.
    """
    for name, layer in layers(model):
        if changes := _changes(model.get_submodule(name)):
            layer.weight.copy_(sum((c.matrix() for c in changes), layer.weight.float()))
    detach(model)


def without_lora(model: nn.Module) -> nn.Module:
    """The model, for what looks at its layers themselves. OptionError where a LoRA is attached."""
    if any(isinstance(module, Adapted) for module in model.modules()):
        raise OptionError("model has a LoRA attached: merge or detach it (save_lora writes it)")
    return model


def _changes(module) -> nn.ModuleList | tuple:
    """What is attached at a place of a model."""
    return module.changes if isinstance(module, Adapted) else ()
