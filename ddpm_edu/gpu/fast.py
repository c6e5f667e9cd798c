"""Faster sampling: the same function, computed in less time.

`speed_up` gives a twin of a model with the same weights that computes the same numbers; only rounding differs. What
is faster because it computes something else is elsewhere: 8-bit products in `float8.py`, fewer steps and other solvers
in `solvers.py`. `flops` counts the work, and with it how near to a GPU's roof one is.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion import Cond, remembered
from ..errors import OptionError
from ..networks.unet import Attention, TransformerBlock, UNet
from ..networks.vae import VAE
from ..systems.system import StableDiffusion

CHANGES = ("channels_last", "fused", "cached", "compiled", "graphed")
MODES = ("default", "max-autotune-no-cudagraphs")


def speed_up(model, *, compile: bool | str = True, changes: tuple[str, ...] = CHANGES):
    """A twin of a StableDiffusion, a UNet or a VAE that samples faster and computes the same, up to rounding.

    Call it last: after loading and after .to(device, dtype). The model given keeps working as before, so going back
    means using it; twin and model share their weights, nothing is held twice, so the model's convolutions lie channels_last
    afterwards too (time a copy to compare). The UNet's twin records no gradients.
    changes, each exact, all of them unless given:
      channels_last  convolution weights lie in memory with channels innermost, as tensor cores want them
      fused          one matrix product makes Q, K and V of a self-attention; one makes K and V of all cross-attentions
      cached         K and V of the text are computed once a prompt, not once a step; needs "fused"
      compiled       CUDA only: torch.compile writes fused kernels, which takes minutes at the first call and for each new size
      graphed        CUDA only: all kernels of a call are recorded as one CUDA graph and started at once, see `Graphed`
    compile: False leaves "compiled" out, a name of MODES says how much torch.compile tries ("max-autotune-no-cudagraphs"
    times variants of every kernel, for many more minutes). Raises OptionError for anything else.
    """
    unknown = [change for change in changes if change not in CHANGES]
    if unknown or "cached" in changes and "fused" not in changes:
        raise OptionError(
            f'changes = {tuple(changes)} is not possible: choose from {", ".join(CHANGES)}, "cached" only with "fused"'
        )
    if compile not in (True, False, *MODES):
        raise OptionError(
            f"compile = {compile!r} is not known: pass True, False or one of {', '.join(MODES)}"
        )
    mode = (
        ("default" if compile is True else compile) if compile and "compiled" in changes else None
    )
    if isinstance(model, FastUNet) or isinstance(getattr(model, "unet", None), FastUNet):
        raise OptionError(
            "this model is a fast twin already: call speed_up on the model it came from"
        )
    if isinstance(model, StableDiffusion):
        twin = copy.copy(model)
        twin._modules = dict(model._modules)
        twin.unet, twin.vae = (
            speed_up(part, compile=compile, changes=changes) for part in (model.unet, model.vae)
        )
        return twin
    if isinstance(model, UNet):
        return FastUNet(model, changes, mode)
    if isinstance(model, VAE):
        return _fast_vae(model, changes, mode)
    raise OptionError(
        f"a {type(model).__name__} cannot be sped up: pass a StableDiffusion, a UNet or a VAE"
    )


class FastUNet(UNet):
    """The twin of a UNet: the same topology, weights and state-dict keys, another order of work. See `speed_up`."""

    def __init__(self, unet: UNet, changes: tuple[str, ...] = CHANGES, mode: str | None = None):
        nn.Module.__init__(self)
        self.config, self.changes = unet.config, tuple(changes)
        for name, child in _twin(unet).named_children():
            self.add_module(name, child)
        self.train(unet.training)
        self.blocks = tuple(m for m in self.modules() if isinstance(m, TransformerBlock))
        if "fused" in changes:
            start = 0
            for block in self.blocks:
                block.attn1 = FusedSelf(block.attn1)
                if self.config.context:
                    block.attn2 = FusedCross(block.attn2, start)
                    start = block.attn2.stop
        if "channels_last" in changes:
            self.to(memory_format=torch.channels_last)
        self.mode = mode
        self._settle()

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        self._check(x_t, t, cond)
        if self._where() != self.settled:
            self._settle()
        context = cond.context
        if self.crosses:
            context = self.text(context, *(linear.weight for linear in self.crosses))
        return self.run(x_t, t, context, cond.vector)

    def _settle(self):
        """Stack the weights, and forget what was computed with those before. Needed again when weights were moved or replaced."""
        fused = "fused" in self.changes
        for block in self.blocks if fused else ():
            block.attn1.settle()
        self.crosses = (
            [linear for block in self.blocks for linear in (block.attn2.k, block.attn2.v)]
            if fused and self.config.context
            else []
        )
        if self.crosses:
            weight = _stack(self.crosses)
            project = lambda context, *weights: F.linear(
                context, weight
            )  # (B, L, K and V of every block side by side)
            self.text = remembered(project) if "cached" in self.changes else project
        self.run = _on_cuda(self.trunk, self.mode, "graphed" in self.changes)
        self.weights = list(self.parameters())
        self.settled = self._where()

    def _where(self):
        return [p.data_ptr() for p in self.weights]


class FusedSelf(nn.Module):
    """Attention of x to itself, Q, K and V out of one matrix product x [W_Q; W_K; W_V]^T: (B, N, C) -> (B, N, C)."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.heads, self.q, self.k, self.v, self.out = (
            getattr(attention, name) for name in ("heads", "q", "k", "v", "out")
        )
        self.qkv = Matrix()

    def settle(self):
        if isinstance(self.qkv, Matrix):
            self.qkv.weight = _stack([self.q, self.k, self.v])

    def forward(self, x, context=None):
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, N, d)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FusedCross(nn.Module):
    """Attention of x to the text whose K and V are ready: columns start to stop of `text` (B, L, all K and V)."""

    def __init__(self, attention: Attention, start: int):
        super().__init__()
        self.heads, self.q, self.k, self.v, self.out = (
            getattr(attention, name) for name in ("heads", "q", "k", "v", "out")
        )
        self.start, self.stop = start, start + len(self.k.weight) + len(self.v.weight)

    def forward(self, x, text):
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        k, v = (
            text[..., self.start : self.stop]
            .unflatten(-1, (2, self.heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Matrix(nn.Module):
    """x W^T with a `weight` that is no parameter of its own and no key of the state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", None, persistent=False)

    def forward(self, x):
        return F.linear(x, self.weight)


class Graphed:
    """f recorded as a CUDA graph, once for every shape of its inputs, then replayed.

    A UNet call is thousands of kernels, and a CPU that starts them one by one can be slower than the GPU that runs
    them. A graph starts them all with one command. It reads and writes fixed addresses: inputs are copied in, the
    result is copied out, so it may be kept. f must not wait for the GPU, and its weights must stay where they are.
    """

    def __init__(self, f: Callable):
        self.f, self.recorded, self.pool = f, {}, None

    def __call__(self, *inputs):
        key = tuple(x if x is None else (x.shape, x.dtype, x.device) for x in inputs)
        if key not in self.recorded:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # fixed addresses are for calls in any mode
                self.recorded[key] = self._record(inputs)
        graph, held, result = self.recorded[key]
        for fixed, x in zip(held, inputs):
            if x is not None:
                fixed.copy_(x)
        graph.replay()
        return result.clone()

    def _record(self, inputs):
        held = [x if x is None else x.clone() for x in inputs]
        with torch.cuda.device(inputs[0].device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(
                    3
                ):  # compiling, choosing kernels and first allocations are no part of the recording
                    self.f(*held)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self.pool
            ):  # graphs run one after the other, so they may share their memory
                result = self.f(*held)
            self.pool = graph.pool()
        return graph, held, result


# ---------------------------------------------------------------- counting


def flops(f: Callable, *inputs) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in f(*inputs), a multiply-add as two.

    Counted by PyTorch as f runs. On the meta device nothing is computed, so that a network of any size takes a
    second: `with torch.device("meta"): flops(UNet(SD15), torch.empty(1, 4, 64, 64), torch.empty(1), Cond(torch.empty(1, 77, 768)))`.
    """
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    on_cpu = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
            sdpa_flop_count(q, k, v)
        )
    }  # not in its list
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter, torch.no_grad():
        f(*inputs)
    return counter.get_total_flops()


# ---------------------------------------------------------------- helpers


def _twin(module: nn.Module) -> nn.Module:
    """A copy of the modules around the same parameters and buffers."""
    return copy.deepcopy(module, {id(x): x for x in (*module.parameters(), *module.buffers())})


def _stack(linears) -> Tensor:
    """The weights of some linear layers as one matrix, (sum of rows, in); each layer's weight becomes a view of its rows."""
    weights = [linear.weight.data for linear in linears]
    ends = [w.data_ptr() + w.nbytes for w in weights]
    first, rows = weights[0], sum(map(len, weights))
    if len({w.untyped_storage().data_ptr() for w in weights}) == 1 and ends[:-1] == [
        w.data_ptr() for w in weights[1:]
    ]:
        return first.as_strided((rows, first.shape[1]), first.stride())  # they are stacked already
    whole = torch.cat(weights)
    for linear, part in zip(linears, whole.split([len(w) for w in weights])):
        linear.weight.data = part
    return whole


def _on_cuda(f, mode, graphed):
    """f as it is on a CPU; on CUDA compiled in this mode (None: not) and recorded as a graph."""
    made = []

    def run(x, *rest):
        if not x.is_cuda:
            return f(x, *rest)
        if not made:
            made.append(Graphed(_compile(f, mode)) if graphed else _compile(f, mode))
        return made[0](x, *rest)

    return run


def _compile(f, mode):
    """The whole network as one piece, so that everything between two matrix products can become one kernel.

    Sizes are fixed (dynamic=False): kernels for one size are faster than kernels for any. CUDA graphs are left to
    `Graphed`, whose results may be kept, where those of torch.compile's own are overwritten by the next call.
    """
    if mode is None:
        return f
    torch._dynamo.config.recompile_limit = max(
        torch._dynamo.config.recompile_limit, 64
    )  # sizes, batches, base and refiner
    return torch.compile(f, mode=mode, fullgraph=True, dynamic=False)


def _fast_vae(vae, changes, mode):
    twin = _twin(vae)
    if "channels_last" in changes:
        twin.to(memory_format=torch.channels_last)
    for part in (
        twin.encoder,
        twin.decoder,
    ):  # few and big kernels: a graph would only hold their memory
        part.forward = _on_cuda(part.forward, mode, graphed=False)
    return twin
