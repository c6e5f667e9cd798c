"""A system that also follows hints, through ControlNets: a wrapped Denoiser. Notebook 10.

hint = edges(picture)
text_to_image(sd, prompt, denoiser=controlled(sd, load("painted-edges"), hint))
"""

from collections.abc import Callable

from torch import Tensor

from ..diffusion import Denoiser, check_interval
from ..errors import OptionError, ShapeError, in_range
from ..networks.controlnet import ControlNet
from .arguments import loaded
from .arguments import weight as weight_of
from .pictures import padded, picture_of
from .system import StableDiffusion

SHARED = ("channels", "mult", "blocks", "context", "vector")  # of the configs of UNet and copy


def controlled(sd: StableDiffusion, control_net, hint, weight=1.0, interval=None) -> Denoiser:
    """sd's UNet with what ControlNets add to it: eps(x_t, t, cond, sum of weight net(..., hint)).

    control_net, hint, weight, interval: one, or lists with one entry a ControlNet.
    hint: any picture, see `picture_of`, as large as what is drawn; a tensor may hold one a picture.
    weight: 0 is the plain UNet.  interval = (low, high): at low <= t <= high only; None: always.
    Guidance calls it with both halves, and both get the hint. OptionError for a ControlNet of
    another system; ShapeError, at the first step, for a hint of another size.
    """
    unet, like = loaded(sd).unet, weight_of(sd.unet)
    rows = _one_each(control_net, hint, weight, interval)
    branches = [_branch(sd, *row) for row in rows]

    def denoise(x_t: Tensor, t: Tensor, cond) -> Tensor:
        x = x_t.to(like.dtype)
        parts = [part for add in branches if (part := add(x, t, cond))]
        return unet(x, t, cond, [sum(same) for same in zip(*parts)]).float()

    denoise.__wrapped__ = unet  # where `inspect.unwrap` looks for the network
    return denoise


def _branch(sd, net, hint, weight, interval) -> Callable:
    """(x_t, t, cond) -> what one ControlNet adds, or nothing outside of its interval."""
    _made_for(sd, net)
    in_range("weight", weight, 0, 100, "1 is as it was trained")
    low, high = check_interval(interval, sd.schedule.T - 1)
    own, like = weight_of(net), weight_of(sd.unet)
    hint = padded(picture_of(hint, "hint")[0], net.config.factor).to(own)

    def add(x_t, t, cond):
        if interval and not low <= t[0].item() <= high:
            return ()
        times = len(x_t) // len(hint)
        if times * len(hint) != len(x_t):
            raise ShapeError(f"{len(hint)} hints for {len(x_t)} pictures: pass one, or as many")
        inputs = x_t.to(own), t, cond.map(lambda part: part.to(own)), hint.repeat(times, 1, 1, 1)
        return [weight * part.to(like) for part in net(*inputs)]

    return add


def _one_each(control_net, hint, weight, interval) -> list[tuple]:
    """Rows of net, hint, weight, interval; of several ControlNets a single weight is for each."""
    if not isinstance(control_net, (list, tuple)):
        return [(control_net, hint, weight, interval)]
    n = len(control_net)
    number = lambda value: isinstance(value, (int, float))
    alone = not isinstance(interval, (list, tuple)) or all(map(number, interval))
    columns = {
        "hint": hint,
        "weight": [weight] * n if number(weight) else weight,
        "interval": [interval] * n if alone else interval,
    }
    for name, column in columns.items():
        if not isinstance(column, (list, tuple)) or len(column) != n or not n:
            raise OptionError(f"{name} for {n} ControlNets: pass a list with one for each")
    return list(zip(control_net, *columns.values()))


def _made_for(sd, net) -> None:
    """OptionError unless it is a ControlNet whose residuals fit sd's UNet."""
    if not isinstance(net, ControlNet):
        it = f"{net!r:.80}".partition("\n")[0]
        raise OptionError(f'control_net = {it}: pass one, such as load("sd15-control-canny")')
    if weight_of(net).is_meta:
        raise OptionError("control_net is on the meta device, without weights: load it on the CPU")
    own, theirs = vars(sd.config.unet), vars(net.config)
    other = [
        f"{name} = {theirs[name]}, not {own[name]}" for name in SHARED if own[name] != theirs[name]
    ]
    if theirs["in_channels"] not in (sd.config.vae.latent, own["in_channels"]):
        other.append(f"in_channels = {theirs['in_channels']}")
    if net.config.hint != 3:
        other.append(f"its hint has {net.config.hint} channels, not 3")
    if net.config.factor != sd.vae.factor:
        other.append(f"its hint is {net.config.factor} times the latent, not {sd.vae.factor}")
    if other:
        raise OptionError(
            f"control_net is of another system than {sd.config.name} ({'; '.join(other)}): load "
            "one that was made for it"
        )
