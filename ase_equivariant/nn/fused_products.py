"""Products of the symmetric contraction on a CPU, node by node in cache, differentiable twice, for training.

One step from shorter to longer products is the derivative with respect to g of

    F(g, p, a) = Σ_n Σ_r Σ_k g_nrk p_n,parent(r),k a_n,last(r),k

so, as in `fused`, its gradients of every order are sums of the same kind.
"""

from __future__ import annotations

from functools import cache

import numba
import torch
from torch import Tensor

from ase_equivariant.nn.contraction import Extension
from ase_equivariant.nn.threads import run_rows


class FusedExtension(torch.nn.Module):
    """Same arguments and results as the `Extension` it is made from."""

    def __init__(self, extension: Extension):
        super().__init__()
        self.tables = [extension.parents, extension.lasts]

    def forward(self, products: Tensor, factors: Tensor) -> Tensor:
        return _Extend.apply(products, factors, *self.tables)


class _Extend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, a, parents, lasts):
        ctx.save_for_backward(p, a, parents, lasts)
        return _multiply(p, a, parents, lasts)

    @staticmethod
    def backward(ctx, g):
        return *_Gradients.apply(g, *ctx.saved_tensors), None, None


class _Gradients(torch.autograd.Function):
    """∂F/∂p and ∂F/∂a at (g, p, a)."""

    @staticmethod
    def forward(ctx, g, p, a, parents, lasts):
        ctx.save_for_backward(g, p, a, parents, lasts)
        return _collect(g, a, parents, lasts, p), _collect(g, p, lasts, parents, a)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, tp, ta):
        g, p, a, parents, lasts = ctx.saved_tensors
        dg = _multiply(tp, a, parents, lasts).add_(_multiply(p, ta, parents, lasts))
        return dg, _collect(g, ta, parents, lasts, p), _collect(g, tp, lasts, parents, a), None, None


def _multiply(p: Tensor, a: Tensor, parents: Tensor, lasts: Tensor) -> Tensor:
    """∂F/∂g."""
    out = p.new_empty((p.shape[0], len(parents), p.shape[2]))
    _run(_kernels()[0], parents, lasts, p, a, out)
    return out


def _collect(g: Tensor, x: Tensor, targets: Tensor, others: Tensor, like: Tensor) -> Tensor:
    """Σ_r g_r x_others(r) in the rows targets(r)."""
    out = like.new_zeros(like.shape)
    _run(_kernels()[1], targets, others, g, x, out)
    return out


def _run(kernel, *tensors: Tensor) -> None:
    run_rows(kernel, tensors[-1].shape[0], *[t.detach().contiguous().numpy() for t in tensors])


@cache
def _kernels() -> tuple:
    compiled = numba.njit(nogil=True)

    @compiled
    def multiply(start, end, parents, lasts, p, a, out):
        for n in range(start, end):
            for r in range(parents.size):
                left, right, o = p[n, parents[r]], a[n, lasts[r]], out[n, r]
                for k in range(o.size):
                    o[k] = left[k] * right[k]

    @compiled
    def collect(start, end, targets, others, g, x, out):
        for n in range(start, end):
            for r in range(targets.size):
                left, right, o = g[n, r], x[n, others[r]], out[n, targets[r]]
                for k in range(o.size):
                    o[k] += left[k] * right[k]

    return multiply, collect
