"""What `pipeline` edits with: what a UNet sees beside x_t, and what stays as it is. Notebook 10."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion import Denoiser, Step
from ..schedule import Schedule


def hollow(encode: Callable, x: Tensor, mask: Tensor) -> Tensor:
    """Beside x_t of an inpainting UNet, (B, 1 + 4, h, w): the mask, the picture with grey in it.

    x (B, 3, H, W) in [-1, 1], mask (B, 1, H, W) of 0 and 1; encode: pictures to latents.
    """
    z = encode(x * (mask < 0.5))
    return torch.cat([on_grid(mask, z).expand(len(z), -1, -1, -1), z], 1)


def on_grid(mask: Tensor, z: Tensor) -> Tensor:
    """The mask of 0 and 1 for latents z: of each square of pixels the one at the top left."""
    return F.interpolate(mask, z.shape[2:]).to(z)


def enlarged(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W) by cubic curves (Keys 1981), within [-1, 1]."""
    return F.interpolate(x, scale_factor=2, mode="bicubic").clamp(-1, 1)


def with_noise(z: Tensor, noise, eps: Tensor) -> Tensor:
    """sqrt(1 - noise^2) z + noise eps; noise in [0, 1], one number or one a picture."""
    noise = torch.as_tensor(noise, dtype=z.dtype, device=z.device).view(-1, 1, 1, 1)
    return (1 - noise**2).sqrt() * z + noise * eps


BICUBIC = 0.3  # standard deviation of an enlarged picture's latent from the true one


def sharpening(model: Denoiser, schedule: Schedule) -> Denoiser:
    """v of a model that starts from what is known of z_0, and adds the rest.

    Known are x_t = s z_0 + n eps and z = cond.picture, about z_0 + c eps', c = BICUBIC. By both
    together z_0 is Gaussian, D = s^2 c^2 + n^2:

        mean (s c^2 x_t + n^2 z) / D      standard deviation c n / sqrt(D)

    x0_hat is that mean and model(x_t, t, cond) times that deviation (preconditioning, as Karras et
    al. 2022, table 1, do it for x_t alone); v = (s x_t - x0_hat) / n.
    """

    def denoise(x_t, t, cond):
        pairs = torch.tensor([schedule.signal_noise(time) for time in t.tolist()])
        s, n = pairs.to(x_t).T[..., None, None, None]
        D = s**2 * BICUBIC**2 + n**2
        known = n * (s * (1 - BICUBIC**2) * x_t - cond.picture.to(x_t)) / D
        return known - BICUBIC / D.sqrt() * model(x_t, t, cond)

    return denoise


def noised(schedule: Schedule, z_0: Tensor, eps: Tensor, t: float) -> Tensor:
    """q_sample(z_0, t, eps) at any time, whole or not."""
    s, n = schedule.signal_noise(t)
    return s * z_0 + n * eps


class Kept(NamedTuple):
    """A latent that stays outside of a mask; at each time it has the same noise eps, scaled."""

    schedule: Schedule
    z_0: Tensor
    eps: Tensor
    mask: Tensor  # (B or 1, 1, h, w) of 0 and 1

    def blend(self, x_t: Tensor, t: float) -> Tensor:
        """x_t inside, the kept latent at time t outside."""
        return self.mask * x_t + (1 - self.mask) * noised(self.schedule, self.z_0, self.eps, t)

    def around(self, first: float) -> Callable:
        """A wrapper of Denoisers that blends what they see, after the first time.

        A solver moves each number by itself: what it makes of those outside is never looked at, and
        those inside go as if x_t had been blended after every step (Lugmayr et al. 2022, eq. 8).
        """

        def wrapper(model):
            def denoise(x_t, t, cond=None):
                now = t[0].item()
                return model(self.blend(x_t, now) if now < first else x_t, t, cond)

            return denoise

        return wrapper

    def steps(self, steps: Iterator[Step], times: list[float]) -> Iterator[Step]:
        """The Steps as they look blended; the last ends at z_0 itself."""
        for step, t, t_next in zip(steps, times, [*times[1:], -1]):
            x_t = self.blend(step.x_t, t) if t < times[0] else step.x_t
            x_prev, x0_hat = self.blend(step.x_prev, t_next), self.blend(step.x0_hat, -1)
            yield step._replace(x_t=x_t, x0_hat=x0_hat, x_prev=x_prev)


def faithful(y: Tensor, small: Tensor) -> Tensor:
    """y (B, 3, 2 H, 2 W) plus what it lacks to be `small` (B or 1, 3, H, W) in means of 2 x 2."""
    lacks = small - F.avg_pool2d(y, 2)
    return (y + F.interpolate(lacks, scale_factor=2)).clamp(-1, 1)
