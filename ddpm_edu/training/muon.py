"""Muon: momentum whose step is made orthogonal. On small UNets it needs about a third of AdamW's updates.

A gradient step in a weight matrix is usually dominated by a few directions; Muon gives all of them the same length
(Jordan et al. 2024, kellerjordan.github.io/posts/muon). Vectors, codebooks, and the first and last layer, take AdamW steps
(Kingma & Ba 2014, Loshchilov & Hutter 2017). PyTorch's own torch.optim.Muon takes plain matrices only, no convolutions.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

OUTSIDE = (
    "conv_in",
    "conv_out",
    "codes",
)  # in the names of weights that AdamW takes: a codebook is a list of vectors, no map


class Muon(torch.optim.Optimizer):
    """One optimizer over a whole model: Muon for the inner weights, AdamW for the rest, one learning rate for both.

    The orthogonal step is scaled by 0.2 sqrt(max(rows, columns)), so that its entries are as large as AdamW's usually
    are and the same lr suits both (Liu et al. 2025, arXiv 2502.16982, eq. 4). A convolution (O, I, h, w) counts as a
    matrix (O, I h w).
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.95,
        betas=(0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        inner = [
            p for name, p in trained if p.ndim >= 2 and not any(part in name for part in OUTSIDE)
        ]
        ids = {id(p) for p in inner}
        groups = [
            {"params": inner, "matrix": True},
            {"params": [p for _, p in trained if id(p) not in ids], "matrix": False},
        ]
        super().__init__(
            [g for g in groups if g["params"]],
            {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay},
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                change = (self._matrices if group["matrix"] else self._adam)(params, group)
                torch._foreach_add_(params, change, alpha=-group["lr"])

    def _matrices(self, params, group):
        """Those of one size are made orthogonal together: many small products at once keep all cores busy."""
        grads, beta = [p.grad for p in params], group["momentum"]
        momentum = [self._kept(p, "momentum") for p in params]
        torch._foreach_lerp_(momentum, grads, 1 - beta)
        ahead = torch._foreach_lerp(grads, momentum, beta)  # Nesterov
        sizes, change = defaultdict(list), {}
        for i, g in enumerate(ahead):
            sizes[len(g), g.numel() // len(g)].append(i)
        for (rows, columns), same in sizes.items():
            steps = orthogonal(torch.stack([ahead[i].reshape(rows, columns) for i in same])) * (
                0.2 * max(rows, columns) ** 0.5
            )
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
    """About U V^T of g = U S V^T, (..., rows, columns), without the SVD: every singular value is driven towards 1.

    Newton-Schulz: X <- P X, P = a + b A + c A A, A = X X^T, which applies a s + b s^3 + c s^5 to each singular value s. With
    Jordan's a, b, c five steps bring all s in (0.01, 1] to between about 0.7 and 1.2, close enough for a step. As the P of all
    steps are made of the same A, only small square matrices are iterated, A <- P A P; the wide X is multiplied once, at the end.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = (g.mT if tall else g).reshape(-1, *sorted(g.shape[-2:]))
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram, product = x @ x.mT, None
    for _ in range(steps):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product, gram = p if product is None else p @ product, p @ gram @ p
    x = product @ x
    return (x.mT if tall else x).reshape(g.shape)
