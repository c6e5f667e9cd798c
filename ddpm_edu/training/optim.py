"""What moves the weights: the learning rate, Muon, and the average that is sampled. Notebook 04."""

import copy
import math
from collections import defaultdict

import torch
from torch import Tensor, nn

# In the names of weights that AdamW moves: the first and last layer, and a codebook or a table of
# tokens, which are lists of vectors and no maps.
OUTSIDE = ("conv_in", "conv_out", "codes", "table", "logits")


def lr_at(step: int, progress: float, peak: float, warmup: int) -> float:
    """A straight rise over `warmup` steps, times peak (1 + cos(pi progress)) / 2, 0 at the end."""
    rise = min(1.0, (step + 1) / max(warmup, 1))
    return peak * rise * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


class EMA:
    """Exponential moving average of the weights: avg <- d avg + (1 - d) weights (DDPM appendix B).

    d = min(decay, (1 + step) / (10 + step)) starts small: the random start is soon forgotten.
    `model` is the averaged copy, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values()))
        average, new = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        torch._foreach_lerp_(average, new, 1 - d)
        for counter, value in pairs:
            if not counter.is_floating_point():  # has no average
                counter.copy_(value)


def new_optimizer(model: nn.Module, config) -> torch.optim.Optimizer:
    """The optimizer that a TrainConfig asks for."""
    kind = {"muon": Muon, "adamw": torch.optim.AdamW}[config.optimizer]
    weights = model if kind is Muon else model.parameters()
    return kind(weights, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for the inner weights; AdamW for the rest.

    A gradient step in a weight matrix is usually dominated by a few directions; Muon gives all of
    them the same length (Jordan et al. 2024, kellerjordan.github.io/posts/muon). On small UNets it
    needs about a third of AdamW's updates. The step is scaled by 0.2 sqrt(max(rows, columns)), so
    that its entries are as large as AdamW's usually are and one lr suits both (Liu et al. 2025,
    arXiv 2502.16982, eq. 4). A convolution (O, I, h, w) counts as a matrix (O, I h w);
    torch.optim.Muon takes plain matrices only.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.95,
        betas=(0.9, 0.99),  # of AdamW
        weight_decay: float = 0.0,
    ):
        inner, rest = [], []
        for name, p in model.named_parameters():
            if p.requires_grad:
                matrix = p.ndim >= 2 and not any(part in name for part in OUTSIDE)
                (inner if matrix else rest).append(p)
        groups = [{"params": inner, "matrix": True}, {"params": rest, "matrix": False}]
        options = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], options)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                change = (self._matrices if group["matrix"] else self._adam)(params, group)
                torch._foreach_add_(params, change, alpha=-group["lr"])

    def _matrices(self, params, group):
        """Matrices of one size together: many small products at once keep all cores busy."""
        grads, beta = [p.grad for p in params], group["momentum"]
        momentum = [self._kept(p, "momentum") for p in params]
        torch._foreach_lerp_(momentum, grads, 1 - beta)
        ahead = torch._foreach_lerp(grads, momentum, beta)  # Nesterov
        sizes, change = defaultdict(list), {}
        for i, g in enumerate(ahead):
            sizes[len(g), g.numel() // len(g)].append(i)
        for (rows, columns), same in sizes.items():
            steps = orthogonal(torch.stack([ahead[i].reshape(rows, columns) for i in same]))
            steps = steps * (0.2 * max(rows, columns) ** 0.5)
            change |= {i: step.reshape(params[i].shape) for i, step in zip(same, steps)}
        return [change[i] for i in range(len(params))]

    def _adam(self, params, group):
        grads, (b1, b2) = [p.grad for p in params], group["betas"]
        n = [self._kept(p, "step", ()).add_(1).item() for p in params]
        mean, square = ([self._kept(p, name) for p in params] for name in ("mean", "square"))
        torch._foreach_lerp_(mean, grads, 1 - b1)
        torch._foreach_lerp_(square, torch._foreach_mul(grads, grads), 1 - b2)
        scale = torch._foreach_sqrt(torch._foreach_div(square, [1 - b2**k for k in n]))
        torch._foreach_add_(scale, 1e-8)
        return torch._foreach_div(torch._foreach_div(mean, [1 - b1**k for k in n]), scale)

    def _kept(self, p, name, shape=None):
        """A tensor that is kept from step to step, zeros at first."""
        if name not in self.state[p]:
            self.state[p][name] = torch.zeros_like(p) if shape is None else torch.zeros(shape)
        return self.state[p][name]


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of g = U S V^T, (..., rows, columns): every singular value is driven towards 1.

    Newton-Schulz: X <- P X, P = a + b A + c A A, A = X X^T, which applies a s + b s^3 + c s^5 to
    each singular value s. With Jordan's a, b, c five steps bring all s in (0.01, 1] to between
    about 0.7 and 1.2, close enough for a step. As the P of all steps are made of the same A, only
    small square matrices are iterated, A <- P A P; the wide X is multiplied once, at the end.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).reshape(-1, *sorted(g.shape[-2:]))
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram, p, product = x @ x.mT, None, None
    for _ in range(steps):
        gram = gram if p is None else p @ gram @ p
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
    x = product @ x
    return (x.mT if tall else x).reshape(g.shape)
