"""A head start for pictures: the exact denoiser of the Gaussian that fits the data, and a network for the rest.

For Gaussian data the best denoiser is a formula (a Wiener filter). Real pictures are not Gaussian, but a Gaussian a
class already knows the average 7 and the main ways in which sevens differ; fitting it takes a second. The network
then learns only what no Gaussian can know.
"""
import torch
from torch import Tensor, nn

from .diffusion import Cond
from .errors import DataError, ShapeError
from .schedule import Schedule


class GaussianPrior(nn.Module):
    """v predicted as v of a class's Gaussian, in closed form, plus `model`'s answer to (x_t, x0_hat of the Gaussian).

    Data of class k as N(mean_k, C_k), C_k = V_k diag(variance_k) V_k^T in `rank` directions and rest_k in all others
    (probabilistic PCA, Tipping & Bishop 1999). With s = sqrt(alpha_bar_t), n = sqrt(1 - alpha_bar_t), x_t = s x_0 + n eps:

        E[x_0 | x_t] = mean + s C (s^2 C + n^2 I)^-1 (x_t - s mean)     v = s eps - n x_0 = (s x_t - x_0) / n

    `model` takes 2 C channels (x_t and x0_hat) and returns C. Class K, one past the last, is the data as a whole, for
    rows of zeros in cond.vector. t must be whole or fractional inside the schedule, t >= 0.
    """

    def __init__(self, model: nn.Module, schedule: Schedule, shape: tuple[int, ...], classes: int, rank: int):
        super().__init__()
        self.model, self.shape, self.rank, self.classes = model, tuple(shape), rank, classes
        n = torch.Size(shape).numel()
        for name, size in (("mean", (n,)), ("basis", (n, rank)), ("variance", (rank,)), ("rest", (1,))):
            self.register_buffer(name, torch.zeros(classes + 1, *size))
        self.register_buffer("sigma", torch.cat([torch.zeros(1), schedule.sigma.float()]), persistent=False)  # index t + 1

    @classmethod
    @torch.no_grad()
    def fit(cls, model: nn.Module, schedule: Schedule, dataset, classes: int, rank: int, most: int = 6000) -> "GaussianPrior":
        """Fit mean and covariance of every class, and of all together, on at most `most` pictures each."""
        shape = dataset[torch.zeros(1, dtype=torch.long)][0].shape[1:]
        prior = cls(model, schedule, shape, classes, rank)
        everything = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        for k in range(classes + 1):
            chosen = everything if k == classes else (dataset.labels == k).nonzero()[:, 0]
            if not 0 < rank < min(len(chosen), prior.mean.shape[1]):
                raise DataError(f"class {k} has {len(chosen)} pictures of {prior.mean.shape[1]} numbers: rank = {rank} must be below both")
            x = dataset[chosen[:most]][0].flatten(1)
            prior.mean[k] = x.mean(0)
            centred = x - prior.mean[k]
            with torch.random.fork_rng(devices=[]):  # the randomized SVD (Halko et al. 2011) draws from the global seed
                torch.manual_seed(k)
                _, size, vectors = torch.svd_lowrank(centred, q=min(rank + 16, *centred.shape), niter=3)
            prior.basis[k], prior.variance[k] = vectors[:, :rank], size[:rank] ** 2 / len(x)
            left = centred.square().sum() / len(x) - prior.variance[k].sum()
            prior.rest[k] = (left / (centred.shape[1] - rank)).clamp(min=1e-4)
        return prior

    def x0_hat(self, x_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """(E[x_0 | x_t] under the Gaussian, s, n); s and n are (B, 1, ..., 1)."""
        if x_t.shape[1:] != self.shape or cond.vector is None or cond.vector.shape != (len(x_t), self.classes):
            raise ShapeError(f"x_t has shape {tuple(x_t.shape)}: this GaussianPrior takes (B, {', '.join(map(str, self.shape))}) "
                             f"and cond.vector (B, {self.classes}), zeros for no class")
        k = torch.where(cond.vector.sum(1) > 0, cond.vector.argmax(1), self.classes)
        low = t.long()
        sigma = torch.lerp(self.sigma[low + 1], self.sigma[(low + 2).clamp(max=len(self.sigma) - 1)], (t - low).float())[:, None]
        s = (1 + sigma ** 2).rsqrt()
        n = s * sigma

        def gain(variance):
            return s * variance / (s ** 2 * variance + n ** 2)

        away = x_t.flatten(1) - s * self.mean[k]
        along = torch.bmm(away[:, None], self.basis[k])                                          # (B, 1, rank)
        along = along * (gain(self.variance[k]) - gain(self.rest[k]))[:, None]
        x_0 = self.mean[k] + gain(self.rest[k]) * away + torch.bmm(along, self.basis[k].transpose(1, 2))[:, 0]
        ones = [1] * len(self.shape)
        return x_0.view_as(x_t), s.view(-1, *ones), n.view(-1, *ones)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        x_0, s, n = self.x0_hat(x_t, t, cond)
        return (s * x_t - x_0) / n + self.model(torch.cat([x_t, x_0], dim=1), t, cond)
