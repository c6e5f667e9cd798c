"""A head start for pictures: the exact denoiser of a mixture of Gaussians that fits the data, and a network for the rest.

For Gaussian data the best denoiser is a formula (a Wiener filter), and for a mixture it is the average of the
parts' formulas, each weighted by how well it explains x_t. Real pictures are no such mixture, but one already knows
the ways in which a seven is written; fitting it takes seconds. The network then learns only what it cannot know.
"""

import torch
from torch import Tensor, nn

from ..diffusion import Cond
from ..errors import DataError, OptionError, ScheduleError, ShapeError
from ..schedule import Schedule


class GaussianPrior(nn.Module):
    """v predicted as v of a mixture of Gaussians, in closed form, plus `model`'s answer to (x_t, x0_hat of the mixture).

    Every class is `parts` Gaussians N(mean_j, C_j) with C_j = V_j diag(variance_j) V_j^T in `rank` directions and rest_j
    in all others (probabilistic PCA, Tipping & Bishop 1999). With s = sqrt(alpha_bar_t), n = sqrt(1 - alpha_bar_t):

        x_t = s x_0 + n eps                      a part sees x_t as N(s mean_j, s^2 C_j + n^2 I)
        E[x_0 | x_t] = sum_j w_j(x_t) (mean_j + s C_j (s^2 C_j + n^2 I)^-1 (x_t - s mean_j))
        w_j(x_t) ~ weight_j N(x_t; s mean_j, s^2 C_j + n^2 I)          v = s eps - n x_0 = (s x_t - x_0) / n

    The sum runs over the parts of the class in cond.vector, over all parts where it is zeros. `model` takes 2 C channels
    (x_t and x0_hat) and returns C. t must be whole or fractional inside the schedule, t >= 0.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        shape: tuple[int, ...],
        classes: int,
        parts: int,
        rank: int,
    ):
        super().__init__()
        self.model, self.shape, self.classes, self.parts, self.rank = (
            model,
            tuple(shape),
            classes,
            parts,
            rank,
        )
        n, total = torch.Size(shape).numel(), classes * parts
        for name, size in (
            ("weight", (total,)),
            ("mean", (total, n)),
            ("basis", (n, total, rank)),
            ("variance", (total, rank)),
            ("rest", (total,)),
        ):
            self.register_buffer(name, torch.zeros(*size))
        self.register_buffer(
            "sigma", torch.cat([torch.zeros(1), schedule.sigma.float()]), persistent=False
        )  # index t + 1

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        model: nn.Module,
        schedule: Schedule,
        dataset,
        classes: int,
        parts: int,
        rank: int,
        most: int = 6000,
    ) -> "GaussianPrior":
        """Split every class into `parts` clusters (at most `most` pictures of it), then mean and covariance of each."""
        for name, value in (("parts", parts), ("rank", rank)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name} = {value!r}: pass a whole number of at least 1")
        shape = dataset[torch.zeros(1, dtype=torch.long)][0].shape[1:]
        prior = cls(model, schedule, shape, classes, parts, rank)
        with torch.random.fork_rng(
            devices=[]
        ):  # clusters and randomized SVD draw from the global seed
            torch.manual_seed(0)
            for k in range(classes):
                chosen = (dataset.labels == k).nonzero()[:most, 0]
                if len(chosen) < parts or rank >= len(prior.mean[0]):
                    raise DataError(
                        f"class {k} has {len(chosen)} pictures of {len(prior.mean[0])} numbers: too few for "
                        f"parts = {parts} with rank = {rank} directions each, lower them"
                    )
                x = dataset[chosen][0].flatten(1)
                for j, near in enumerate(_clusters(x, parts)):
                    if len(near):  # an empty part keeps weight 0
                        prior._fit_part(k * parts + j, x[near], len(near) / len(x))
        return prior

    def _fit_part(self, j: int, x: Tensor, weight: float) -> None:
        self.weight[j], self.mean[j] = weight, x.mean(0)
        x = x - self.mean[j]
        r = min(self.rank, len(x) - 1)
        _, size, vectors = torch.svd_lowrank(
            x, q=min(r + 16, *x.shape), niter=3
        )  # Halko et al. 2011
        variance = size[:r] ** 2 / len(x)
        self.rest[j] = ((x.square().sum() / len(x) - variance.sum()) / (x.shape[1] - r)).clamp(
            min=1e-4
        )
        self.basis[:, j, :r], self.variance[j] = (
            vectors[:, :r],
            self.rest[j],
        )  # unused directions: none, of variance rest
        self.variance[j, :r] = variance

    def x0_hat(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """(E[x_0 | x_t] under the mixture, s, n); s and n are (B, 1, ..., 1)."""
        if (
            x_t.shape[1:] != self.shape
            or cond.vector is None
            or cond.vector.shape != (len(x_t), self.classes)
        ):
            raise ShapeError(
                f"x_t has shape {tuple(x_t.shape)}: this GaussianPrior takes (B, {', '.join(map(str, self.shape))}) "
                f"and cond.vector (B, {self.classes}), zeros for no class"
            )
        if t.shape != (len(x_t),) or not ((t >= 0) & (t <= len(self.sigma) - 2)).all():
            raise ScheduleError(
                f"t = {t.flatten()[:3].tolist()}... of shape {tuple(t.shape)}: pass {len(x_t)} times from 0 to {len(self.sigma) - 2}"
            )
        if not ((cond.vector >= 0) & cond.vector.isfinite()).all():
            raise DataError(
                "cond.vector holds NaN, infinity or a negative share of a class: pass one-hot rows, zeros for no class"
            )
        low = t.long()
        sigma = torch.lerp(
            self.sigma[low + 1],
            self.sigma[(low + 2).clamp(max=len(self.sigma) - 1)],
            (t - low).to(self.sigma),
        )[:, None]
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

    def _mean_of(self, x: Tensor, s: Tensor, n: Tensor, classes: Tensor, parts: slice) -> Tensor:
        """E[x_0 | x_t], (B, N), where only `parts` of the mixture have a share."""
        mean, variance, rest = self.mean[parts], self.variance[parts], self.rest[parts]
        basis = self.basis[:, parts]
        V = basis.flatten(1)  # (N, J * rank)
        # V_j^T (x_t - s mean_j), and the variances of x_t along V_j and across it
        along = (x @ V).unflatten(1, (-1, self.rank)) - s[..., None] * (
            mean.T[..., None] * basis
        ).sum(0)
        var, var_rest = (
            s[..., None] ** 2 * variance + n[..., None] ** 2,
            s**2 * rest + n**2,
        )  # (B, J, rank), (B, J)
        w = self._share(x, s, along, var, var_rest, classes, parts)
        gain, gain_rest = s[..., None] * variance / var, s * rest / var_rest
        return (
            (w * gain_rest).sum(1, keepdim=True) * x
            + (w * (1 - s * gain_rest)) @ mean
            + (w[..., None] * (gain - gain_rest[..., None]) * along).flatten(1) @ V.T
        )

    def _share(self, x, s, along, var, var_rest, classes, parts):
        """w_j(x_t), (B, J): the posterior probability of each part, by log N(x_t; s mean_j, s^2 C_j + n^2 I)."""
        mean = self.mean[parts]
        away = x.square().sum(1, keepdim=True) - 2 * s * (x @ mean.T) + s**2 * mean.square().sum(1)
        across = (away - along.square().sum(2)).clamp(min=0)
        log_n = -0.5 * (
            across / var_rest
            + (along**2 / var).sum(2)
            + var.log().sum(2)
            + (x.shape[1] - self.rank) * var_rest.log()
        )
        allowed = torch.where(classes.sum(1, keepdim=True) > 0, classes, 1.0).repeat_interleave(
            self.parts, dim=1
        )[:, parts]
        return (log_n + (self.weight[parts] * allowed).log()).softmax(1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
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
