"""Faster sampling: the same numbers in less time. Notebook 14.

`speed_up` gives a twin of a model: the same weights, the same results up to rounding, another order
of work. What computes something else is elsewhere: 8-bit products in `float8.py`, fewer steps and
other solvers in `samplers.py`.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..diffusion import Cond, remembered
from ..errors import OptionError
from ..networks import unet, vae
from ..networks.lora import without_lora
from ..networks.unet import TransformerBlock, UNet
from ..networks.vae import VAE
from ..systems.system import StableDiffusion

CHANGES = ("channels_last", "fused", "cached", "transposed", "products", "compiled", "graphed")
# What torch.compile is told. "gemm": time every variant of the matrix products, for some minutes
# more; without the last entry it would do so for the convolutions too, for many more.
MODES = {
    "default": {"mode": "default"},
    "gemm": {
        "options": {
            "max_autotune_gemm": True,
            "max_autotune_gemm_backends": "ATEN,TRITON",
            "max_autotune_conv_backends": "ATEN",
        }
    },
}
# First choice of an attention kernel, then what takes the types and widths that it does not.
KERNELS = {
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}
WIDEST_HEAD = 256  # flash and cuDNN attention take no wider heads


def speed_up(
    model,
    *,
    compile: bool | str = True,
    changes: tuple[str, ...] = CHANGES,
    cross: str | None = None,
):
    """A twin of a StableDiffusion, a UNet or a VAE: faster, the same up to rounding, no gradients.

    Call it last, after loading and .to(device, dtype). Twin and model share their weights (only
    "transposed" adds some, 1 % of SDXL), so the model's convolutions lie channels_last afterwards
    too; it works as before. `changes`, each exact:
      channels_last  convolution weights lie with channels innermost, as tensor cores want them
      fused          one product makes Q, K and V of a self-attention; one makes K, V of the text
      cached         K and V of the text are computed once a prompt, not once a step; needs "fused"
      transposed     doubling a picture and convolving it is one transposed convolution: `Doubling`
      products       CUDA: the VAE's attention, one wide head, is two matrix products: `by_products`
      compiled       CUDA: torch.compile writes fused kernels, minutes at the first call of a size
      graphed        CUDA: all kernels of a call are recorded and started at once: `Graphed`
    compile: False leaves "compiled" out, "gemm" times variants of each matrix product first.
    cross: kernel of the UNet's attention to the text, "flash" or "cudnn"; None is PyTorch's choice.
    Raises OptionError for other values.
    """
    _check(model, compile, changes, cross)
    mode = ("gemm" if compile == "gemm" else "default") if compile and "compiled" in changes else ""
    if isinstance(model, StableDiffusion):
        twin = copy.copy(model)
        twin._modules = dict(model._modules)
        twin.unet = FastUNet(model.unet, changes, mode, cross)
        twin.vae = _fast_vae(model.vae, changes, mode)
        return twin
    if isinstance(model, VAE):
        return _fast_vae(model, changes, mode)
    return FastUNet(model, changes, mode, cross)


def _check(model, compile, changes, cross):
    unknown = [change for change in changes if change not in CHANGES]
    if unknown or "cached" in changes and "fused" not in changes:
        raise OptionError(
            f"changes = {tuple(changes)} is not possible: choose from {', '.join(CHANGES)}, "
            'and "cached" only with "fused"'
        )
    if compile not in (True, False, *MODES):
        raise OptionError(f'compile = {compile!r} is not known: pass True, False or "gemm"')
    if cross not in (None, *KERNELS):
        raise OptionError(f'cross = {cross!r} is not known: pass None, "flash" or "cudnn"')
    if not isinstance(model, (StableDiffusion, UNet, VAE)):
        raise OptionError(
            f"model is a {type(model).__name__}: pass a StableDiffusion, a UNet or a VAE"
        )
    without_lora(model)
    if isinstance(getattr(model, "unet", model), FastUNet):
        raise OptionError("model is a fast twin already: pass the model that it came from")


class FastUNet(UNet):
    """The twin of a UNet: its weights, its state-dict keys, another order of work: `speed_up`."""

    def __init__(self, model: UNet, changes=CHANGES, mode: str = "", cross: str | None = None):
        nn.Module.__init__(self)
        self.config, self.changes, self.mode = model.config, tuple(changes), mode
        for name, child in _twin(model, changes, cross).named_children():
            self.add_module(name, child)
        self.train(model.training)
        self.blocks = tuple(m for m in self.modules() if isinstance(m, TransformerBlock))
        self.doublings = tuple(m for m in self.modules() if isinstance(m, Doubling))
        # with assign=True a state dict brings tensors of its own, and those stacked are not used
        self.register_load_state_dict_post_hook(lambda twin, _: twin._settle())
        self._settle()

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = Cond(), residuals=()) -> Tensor:
        x = self._input(x_t, t, cond)
        if self._where() != self.settled:
            self._settle()
        for doubling in self.doublings:
            doubling.settle()
        context = cond.context
        if self.crosses:
            context = self.text(context, *(linear.weight for linear in self.crosses))
        return self.run(x, t, context, cond.vector, *residuals)

    def _settle(self):
        """Stack the weights, now and when they were moved or replaced; forget what used others."""
        fused = "fused" in self.changes
        for block in self.blocks if fused else ():
            block.attn1.settle()
        crossed = self.blocks if fused and self.config.context else ()
        self.crosses = [linear for block in crossed for linear in (block.attn2.k, block.attn2.v)]
        if self.crosses:
            weight = _stack(self.crosses)
            # (B, L, D) -> (B, L, K and V of every block side by side)
            project = lambda context, *weights: F.linear(context, weight)
            self.text = remembered(project) if "cached" in self.changes else project
        self.run = _on_cuda(self.trunk, self.mode, "graphed" in self.changes)
        self.weights = list(self.parameters())
        self.settled = self._where()

    def _where(self):
        return [p.data_ptr() for p in self.weights]


# ---------------------------------------------------------------- quicker layers


class Replacement(nn.Module):
    """Takes the place of another layer, with its parts, so that the weights keep their names."""

    def __init__(self, layer: nn.Module):
        nn.Module.__init__(self)
        self.heads = getattr(layer, "heads", 1)
        for name, child in layer.named_children():
            self.add_module(name, child)


class FusedSelf(Replacement):
    """Self-attention with Q, K, V out of one product x [W_Q; W_K; W_V]^T: (B, N, C) -> the same."""

    def __init__(self, layer: unet.Attention):
        super().__init__(layer)
        self.qkv = Matrix()

    def settle(self):
        if isinstance(self.qkv, Matrix):  # and not 8-bit
            self.qkv.weight = _stack([self.q, self.k, self.v])

    def forward(self, x, context=None):
        q, k, v = _heads(self.qkv(x), 3, self.heads)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FusedCross(Replacement):
    """Attention to the text, whose K and V are columns start to stop of `text` (B, L, all K, V)."""

    def __init__(self, layer: unet.Attention, start: int, kernel: list | None):
        super().__init__(layer)
        self.start, self.stop = start, start + len(self.k.weight) + len(self.v.weight)
        self.kernel = kernel

    def forward(self, x, text):
        (q,) = _heads(self.q(x), 1, self.heads)
        k, v = _heads(text[..., self.start : self.stop], 2, self.heads)
        if self.kernel:
            with sdpa_kernel(self.kernel):
                h = F.scaled_dot_product_attention(q, k, v)
        else:
            h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2))


def _heads(x, parts, heads):
    """(B, N, parts C) -> (parts, B, heads, N, C / heads)."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


class Matrix(nn.Module):
    """x W^T with a `weight` that is no parameter of its own and no key of the state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", None, persistent=False)

    def forward(self, x):
        return F.linear(x, self.weight)


class Doubling(Replacement, unet.Upsample):
    """Every pixel repeated, then a 3x3 convolution, as one transposed 4x4 one: stride 2, padding 1.

    Along a row the pixels 2i and 2i+1 of the double are both x_i: a kernel k sees x_{i-1}, x_i, x_i
    at 2i and x_i, x_i, x_{i+1} at 2i+1. So w = [k_2, k_1 + k_2, k_0 + k_1, k_0], along each axis:
    4/9 of the operations, and the doubled picture is never written. (B, C, H, W) -> (B, C, 2H, 2W).
    """

    def __init__(self, layer: nn.Module):
        super().__init__(layer)
        self.register_buffer("weight", None, persistent=False)
        self.seen = None
        self.settle()

    @torch.inference_mode(False)
    @torch.no_grad()
    def settle(self):
        """Sum the weights anew if they were moved, replaced or written to."""
        k = self.conv.weight
        seen = k.data_ptr(), k.dtype, k.device, 0 if k.is_inference() else k._version
        if seen == self.seen:
            return
        wide = k.to(torch.promote_types(k.dtype, torch.float32))
        w = _summed(_summed(wide, 2), 3).to(k.dtype).transpose(0, 1)  # (C_in, C_out, 4, 4)
        if self.weight is not None and self.seen[:3] == seen[:3]:
            self.weight.copy_(w)  # where it was: a CUDA graph reads it there
        else:
            last = k.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            self.weight = w.contiguous(memory_format=layout)
        self.seen = seen

    def forward(self, x, size=None):
        if size is not None and tuple(size) != (2 * x.shape[2], 2 * x.shape[3]):
            return super().forward(x, size)
        return F.conv_transpose2d(x, self.weight, self.conv.bias, stride=2, padding=1)


def _summed(k, axis):
    k_0, k_1, k_2 = k.unbind(axis)
    return torch.stack([k_2, k_1 + k_2, k_0 + k_1, k_0], axis)


class WideAttention(Replacement, vae.Attention):
    """The VAE's attention `by_products` on CUDA, where its head is wider than fast kernels take."""

    def forward(self, x):
        if not _too_wide(x):
            return super().forward(x)
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        h = self.out(by_products(self.q(h), self.k(h), self.v(h)))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


def _too_wide(x):
    return x.is_cuda and x.shape[1] > WIDEST_HEAD


def by_products(q: Tensor, k: Tensor, v: Tensor, rows: int = 4096) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for one head, `rows` queries at a time: (B, N, d) each -> one.

    Scores and softmax are float32 where q is 16-bit on CUDA, else of q's type.
    """
    wide = {"out_dtype": torch.float32} if q.is_cuda and q.element_size() == 2 else {}
    scale, out = q.shape[2] ** -0.5, []
    for part in q.split(rows, dim=1):
        scores = torch.bmm(part, k.mT, **wide) * scale  # (B, rows, N)
        out.append(torch.bmm(scores.softmax(-1).to(v.dtype), v))
    return torch.cat(out, 1)


# ---------------------------------------------------------------- one start for all kernels


class Graphed:
    """f recorded as a CUDA graph, once for every shape of its inputs, then replayed.

    A UNet call is thousands of kernels; a CPU that starts them one by one can be slower than the
    GPU that runs them. A graph starts them all with one command. It reads and writes fixed
    addresses: inputs are copied in (those that are not the last call's), and the result is copied
    out, so it may be kept. f must not wait for the GPU, and its weights must stay where they are.
    """

    def __init__(self, f: Callable):
        self.f, self.recorded, self.pool = f, {}, None

    def __call__(self, *inputs):
        key = tuple(x if x is None else (x.shape, x.dtype, x.device) for x in inputs)
        if key not in self.recorded:
            # fixed addresses are for calls in any mode
            with torch.inference_mode(False), torch.no_grad():
                self.recorded[key] = *self._record(inputs), [None] * len(inputs)
        graph, held, result, last = self.recorded[key]
        for i, (fixed, x) in enumerate(zip(held, inputs)):
            if x is not None and not (last[i] and _unchanged(x, *last[i])):
                fixed.copy_(x)
                # inference tensors do not tell when they are written to
                last[i] = None if x.is_inference() else (x, x._version, x.data_ptr())
        graph.replay()
        return result.clone()

    def _record(self, inputs):
        held = [x if x is None else x.clone() for x in inputs]
        with torch.cuda.device(inputs[0].device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):  # compiling and choosing kernels are no part of the recording
                    self.f(*held)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # graphs run one after the other, so they may share their memory
            with torch.cuda.graph(graph, pool=self.pool):
                result = self.f(*held)
            self.pool = graph.pool()
        return graph, held, result


def _unchanged(x, last, version, address):
    return x is last and x._version == version and x.data_ptr() == address


# ---------------------------------------------------------------- helpers


def _twin(model: nn.Module, changes, cross=None) -> nn.Module:
    """A copy of the modules around the same parameters, quicker layers in the place of some."""
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    twin, start = copy.deepcopy(model, shared), 0
    # No tensor cores on mps, and convolutions that were wrong (github.com/pytorch 180984)
    if "channels_last" in changes and not any(p.is_mps for p in model.parameters()):
        twin.to(memory_format=torch.channels_last)
    for parent in list(twin.modules()):
        for name, layer in parent.named_children():
            if "fused" in changes and isinstance(layer, TransformerBlock):
                layer.attn1 = FusedSelf(layer.attn1)
                if hasattr(layer, "attn2"):
                    layer.attn2 = FusedCross(layer.attn2, start, KERNELS.get(cross))
                    start = layer.attn2.stop
            if "transposed" in changes and isinstance(layer, (unet.Upsample, vae.Upsample)):
                setattr(parent, name, Doubling(layer))
            if "products" in changes and isinstance(layer, vae.Attention):
                setattr(parent, name, WideAttention(layer))
    return twin


def _fast_vae(model: VAE, changes, mode) -> VAE:
    twin = _twin(model, changes)
    doublings = [m for m in twin.modules() if isinstance(m, Doubling)]

    def settle(*_):
        for doubling in doublings:
            doubling.settle()

    twin.decoder.register_forward_pre_hook(settle)
    for part in (twin.encoder, twin.decoder):  # few and big kernels: a graph would only hold memory
        part.forward = _on_cuda(part.forward, mode, graphed=False)
    return twin


def _stack(linears) -> Tensor:
    """Weights of linear layers as one matrix, (sum of rows, in); each layer's becomes a view."""
    weights = [linear.weight.data for linear in linears]
    ends = [w.data_ptr() + w.nbytes for w in weights]
    first, rows = weights[0], sum(map(len, weights))
    one_storage = len({w.untyped_storage().data_ptr() for w in weights}) == 1
    if one_storage and ends[:-1] == [w.data_ptr() for w in weights[1:]]:
        return first.as_strided((rows, first.shape[1]), first.stride())  # they are stacked already
    whole = torch.cat(weights)
    for linear, part in zip(linears, whole.split([len(w) for w in weights])):
        linear.weight.data = part
    return whole


def _on_cuda(f, mode, graphed):
    """f as it is elsewhere; on CUDA compiled in this mode ("": not) and recorded as a graph."""
    made = []

    def run(x, *rest):
        if not x.is_cuda:
            return f(x, *rest)
        if not made:
            # cuDNN's attention crashes under graphs before 9.15.2
            if graphed and (torch.backends.cudnn.version() or 0) <= 91501:
                torch.backends.cuda.enable_cudnn_sdp(False)
            quick = _compile(f, mode) if mode else f
            made.append(Graphed(quick) if graphed else quick)
        return made[0](x, *rest)

    return run


def _compile(f, mode):
    """The whole network as one piece, so that all between two products can become one kernel.

    Sizes are fixed (dynamic=False): kernels for one size are faster than kernels for any. CUDA
    graphs are left to `Graphed`: torch.compile's own overwrite a result at the next call.
    """
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 64)  # sizes, batches, base and refiner
    return torch.compile(f, fullgraph=True, dynamic=False, **MODES[mode])
