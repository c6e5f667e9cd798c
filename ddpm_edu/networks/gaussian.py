"""A head start: the exact denoiser of a mixture of Gaussians, plus a network. Notebook 04.

For Gaussian data the best denoiser is a formula (a Wiener filter), and for a mixture it is the
average of the parts' formulas, each weighted by how well it explains x_t. Real pictures are no such
mixture, but one already holds the ways in which a seven is written; fitting it takes seconds. The
network then learns only the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import DataError, ScheduleError, fits, whole
from ..schedule import Schedule


class GaussianPrior(nn.Module):
    """v of a mixture of Gaussians, in closed form, plus model([x_t, x0_hat of the mixture]).

    Every class is `parts` Gaussians N(mean_j, C_j), with C_j = V_j diag(variance_j) V_j^T in `rank`
    directions and rest_j in all others (probabilistic PCA, Tipping & Bishop 1999). With
    s = sqrt(alpha_bar_t), n = sqrt(1 - alpha_bar_t):

        x_t = s x_0 + n eps             a part sees x_t as N(s mean_j, s^2 C_j + n^2 I)
        E[x_0 | x_t] = sum_j w_j(x_t) (mean_j + s C_j (s^2 C_j + n^2 I)^-1 (x_t - s mean_j))
        w_j(x_t) ~ weight_j N(x_t; s mean_j, s^2 C_j + n^2 I)
        v = s eps - n x_0 = (s x_t - x_0) / n

    The sum runs over the parts of the class in cond.vector, over all parts where it is zeros.
    `model` takes 2 C channels (x_t and x0_hat) and returns C. t is whole or fractional, t >= 0.
    """

    def __init__(self, model, schedule: Schedule, shape, classes: int, parts: int, rank: int):
        super().__init__()
        self.model, self.shape = model, tuple(shape)
        self.classes, self.parts, self.rank = classes, parts, rank
        n, total = torch.Size(shape).numel(), classes * parts
        self.register_buffer("weight", torch.zeros(total))
        self.register_buffer("mean", torch.zeros(total, n))
        self.register_buffer("basis", torch.zeros(n, total, rank))
        self.register_buffer("variance", torch.zeros(total, rank))
        self.register_buffer("rest", torch.zeros(total))
        self.register_buffer("mean_along", torch.zeros(total, rank), persistent=False)
        self.register_load_state_dict_post_hook(lambda prior, _: prior._settle())
        sigma = schedule.sigma.float().clamp(max=1e6)  # may end in infinity, pure noise
        sigma = F.pad(sigma, (1, 0))  # index t + 1
        self.register_buffer("sigma", sigma, persistent=False)

    @classmethod
    @torch.no_grad()
    def fit(
        cls, model, schedule: Schedule, dataset, classes: int, parts: int, rank: int, most=6000
    ):
        """Split every class (`most` pictures of it) into `parts` clusters, fit a Gaussian to each.

        Returns a GaussianPrior. Raises OptionError, and DataError for a class of too few pictures.
        """
        whole("parts", parts, 1)
        whole("rank", rank, 1)
        shape = dataset[torch.zeros(1, dtype=torch.long)][0].shape[1:]
        prior = cls(model, schedule, shape, classes, parts, rank)
        with torch.random.fork_rng(devices=[]):  # clusters and randomized SVD draw from it
            torch.manual_seed(0)
            for k in range(classes):
                chosen = (dataset.labels == k).nonzero()[:most, 0]
                if len(chosen) < parts or rank >= len(prior.mean[0]):
                    raise DataError(
                        f"class {k} has {len(chosen)} pictures of {len(prior.mean[0])} numbers: "
                        f"too few for parts = {parts} with rank = {rank} directions, lower them"
                    )
                x = dataset[chosen][0].flatten(1)
                for j, near in enumerate(_clusters(x, parts)):
                    if len(near):  # an empty part keeps weight 0
                        prior._fit_part(k * parts + j, x[near], len(near) / len(x))
        prior._settle()
        return prior

    @torch.no_grad()
    def _settle(self) -> None:
        """V_j^T mean_j of each part: the same for every x_t."""
        self.mean_along = (self.mean.T[..., None] * self.basis).sum(0)

    def _fit_part(self, j: int, x: Tensor, weight: float) -> None:
        self.weight[j], self.mean[j] = weight, x.mean(0)
        x = x - self.mean[j]
        r = min(self.rank, len(x) - 1)
        _, size, V = torch.svd_lowrank(x, q=min(r + 16, *x.shape), niter=3)  # Halko et al. 2011
        variance = size[:r] ** 2 / len(x)
        rest = (x.square().sum() / len(x) - variance.sum()) / (x.shape[1] - r)
        self.rest[j] = rest.clamp(min=1e-4)
        self.basis[:, j, :r] = V[:, :r]
        self.variance[j] = self.rest[j]  # an unused direction has the variance of the rest
        self.variance[j, :r] = variance

    def x0_hat(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """(E[x_0 | x_t] under the mixture, s, n); s and n are (B, 1, ..., 1)."""
        self._check(x_t, t, cond)
        low = t.long()
        high = (low + 2).clamp(max=len(self.sigma) - 1)
        sigma = torch.lerp(self.sigma[low + 1], self.sigma[high], (t - low).to(self.sigma))[:, None]
        s = (1 + sigma**2).rsqrt()  # (B, 1)
        n = s * sigma
        x, x_0, classes = x_t.flatten(1), torch.empty_like(x_t).flatten(1), cond.vector
        kinds, kind = (classes > 0).unique(dim=0, return_inverse=True)
        for i, used in enumerate(kinds):  # the pictures of one class need its own parts only
            rows, k = kind == i, int(used.byte().argmax())
            parts = slice(k * self.parts, (k + 1) * self.parts) if used.sum() == 1 else slice(None)
            x_0[rows] = self._mean_of(x[rows], s[rows], n[rows], classes[rows], parts)
        ones = [1] * len(self.shape)
        return x_0.view_as(x_t), s.view(-1, *ones), n.view(-1, *ones)

    def _check(self, x_t, t, cond):
        fits("x_t", x_t, ("B", *self.shape), "this GaussianPrior takes")
        b, T = len(x_t), len(self.sigma) - 1
        shape = b, self.classes
        fits("cond.vector", cond.vector, shape, "this GaussianPrior takes", "zeros for no class")
        if t.shape != (b,) or not ((t >= 0) & (t <= T - 1)).all():
            raise ScheduleError(
                f"t = {t.flatten()[:3].tolist()}..., {tuple(t.shape)}: pass {b} from 0 to {T - 1}"
            )
        if not ((cond.vector >= 0) & cond.vector.isfinite()).all():
            raise DataError(
                "cond.vector holds NaN, infinity or a share below 0: pass one-hot rows, or zeros"
            )

    def _mean_of(self, x: Tensor, s: Tensor, n: Tensor, classes: Tensor, parts: slice) -> Tensor:
        """E[x_0 | x_t], (B, N), where only `parts` of the mixture have a share."""
        mean, variance, rest = self.mean[parts], self.variance[parts], self.rest[parts]
        V = self.basis[:, parts].flatten(1)  # (N, J * rank)
        # V_j^T (x_t - s mean_j), and the variances of x_t along V_j and across it
        along = (x @ V).unflatten(1, (-1, self.rank))  # (B, J, rank)
        along = along - s[..., None] * self.mean_along[parts]
        var = s[..., None] ** 2 * variance + n[..., None] ** 2  # (B, J, rank)
        var_rest = s**2 * rest + n**2  # (B, J)
        w = self._share(x, s, along, var, var_rest, classes, parts)
        gain, gain_rest = s[..., None] * variance / var, s * rest / var_rest
        return (
            (w * gain_rest).sum(1, keepdim=True) * x
            + (w * (1 - s * gain_rest)) @ mean
            + (w[..., None] * (gain - gain_rest[..., None]) * along).flatten(1) @ V.T
        )

    def _share(self, x, s, along, var, var_rest, classes, parts):
        """w_j(x_t), (B, J): each part's probability, from log N(x_t; s mean_j, s^2 C_j + n^2 I)."""
        mean = self.mean[parts]
        away = x.square().sum(1, keepdim=True) - 2 * s * (x @ mean.T) + s**2 * mean.square().sum(1)
        across = (away - along.square().sum(2)).clamp(min=0)
        log_n = -0.5 * (
            across / var_rest
            + (along**2 / var).sum(2)
            + var.log().sum(2)
            + (x.shape[1] - self.rank) * var_rest.log()
        )
        allowed = torch.where(classes.sum(1, keepdim=True) > 0, classes, 1.0)
        allowed = allowed.repeat_interleave(self.parts, dim=1)[:, parts]
        return (log_n + (self.weight[parts] * allowed).log()).softmax(1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        with torch.autocast(x_t.device.type, enabled=False):  # its distances need float32
            x_0, s, n = self.x0_hat(x_t, t, cond)
        return (s * x_t - x_0) / n + self.model(torch.cat([x_t, x_0], dim=1), t, cond)


def _clusters(x: Tensor, parts: int, rounds: int = 15) -> list[Tensor]:
    """Row numbers of `parts` groups, a few perhaps empty: k-means (Lloyd 1982) from random rows."""
    centres = x[torch.randperm(len(x))[:parts]]
    for _ in range(rounds if parts > 1 else 1):
        near = torch.cdist(x, centres).argmin(1)
        centres = torch.stack(
            [x[near == j].mean(0) if (near == j).any() else centres[j] for j in range(parts)]
        )
    return [(near == j).nonzero()[:, 0] for j in range(parts)]
