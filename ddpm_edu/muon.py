"""Muon: momentum whose step is made orthogonal. On small UNets it needs about a third of AdamW's updates.

A gradient step in a weight matrix is usually dominated by a few directions; Muon gives all of them the same length
(Jordan et al. 2024, kellerjordan.github.io/posts/muon). Vectors, codebooks, and the first and last layer, take AdamW steps
(Kingma & Ba 2014, Loshchilov & Hutter 2017). PyTorch's own torch.optim.Muon takes plain matrices only, no convolutions.
"""
import torch
from torch import Tensor, nn

OUTSIDE = ("conv_in", "conv_out", "codes")  # in the names of weights that AdamW takes: a codebook is a list of vectors, no map


class Muon(torch.optim.Optimizer):
    """One optimizer over a whole model: Muon for the inner weights, AdamW for the rest, one learning rate for both.

    The orthogonal step is scaled by 0.2 sqrt(max(rows, columns)), so that its entries are as large as AdamW's usually
    are and the same lr suits both (Liu et al. 2025, arXiv 2502.16982, eq. 4). A convolution (O, I, h, w) counts as a
    matrix (O, I h w).
    """

    def __init__(self, model: nn.Module, lr: float, momentum: float = 0.95, betas=(0.9, 0.99), weight_decay: float = 0.0):
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        inner = [p for name, p in trained if p.ndim >= 2 and not any(part in name for part in OUTSIDE)]
        ids = {id(p) for p in inner}
        groups = [{"params": inner, "matrix": True}, {"params": [p for _, p in trained if id(p) not in ids], "matrix": False}]
        super().__init__([g for g in groups if g["params"]],
                         {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                change = self._matrix if group["matrix"] else self._adam
                p.sub_(change(p, group), alpha=group["lr"])

    def _matrix(self, p, group):
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        m, beta = state["momentum"], group["momentum"]
        m.lerp_(p.grad, 1 - beta)
        look_ahead = p.grad.lerp(m, beta)  # Nesterov
        rows, columns = len(p), p.numel() // len(p)
        return orthogonal(look_ahead.reshape(rows, columns)).reshape(p.shape) * 0.2 * max(rows, columns) ** 0.5

    def _adam(self, p, group):
        state = self.state[p]
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(p), square=torch.zeros_like(p))
        (b1, b2), n = group["betas"], state["step"].add_(1).item()
        state["mean"].lerp_(p.grad, 1 - b1)
        state["square"].lerp_(p.grad ** 2, 1 - b2)
        return state["mean"] / (1 - b1 ** n) / ((state["square"] / (1 - b2 ** n)).sqrt() + 1e-8)


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of g = U S V^T, (rows, columns), without the SVD: every singular value is driven towards 1.

    Newton-Schulz: X <- P X, P = a + b A + c A A, A = X X^T, which applies a s + b s^3 + c s^5 to each singular value s. With
    Jordan's a, b, c five steps bring all s in (0.01, 1] to between about 0.7 and 1.2, close enough for a step. As the P of all
    steps are made of the same A, only small square matrices are iterated, A <- P A P; the wide X is multiplied once, at the end.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if len(g) > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    gram, product = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(steps):
        p = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal().add_(a)
        product, gram = p @ product, p @ gram @ p
    x = product @ x
    return x.T if len(g) > g.shape[1] else x
