"""Radial networks read from a table while training on a CPU: their cost no longer grows with the number of edges.

R depends on one number, the length of an edge. In each step the network is evaluated with its slope on a grid of
lengths, and edges take cubic Hermite interpolants of it,

    R_e = Σ_a w_a(r_e) T_{2i(e)+a}         rows of T: value and slope at knot i, value and slope at knot i+1

The result is linear in the weights w and in the table T, so gradients of every order the forces' loss needs are sums of
the same form. With 512 knots forces err by some 1e-5 of themselves, in single precision.
"""

from __future__ import annotations

from functools import cache

import numba
import torch
from torch import Tensor

from ase_equivariant.nn.radial import RadialBasis, RadialMLP
from ase_equivariant.nn.threads import run_rows

NUM_KNOTS = 512


class Knots(torch.nn.Module):
    """Where lengths lie in the table: `[n] Å → [n, 5]`, the knot's number and four Hermite weights."""

    def __init__(self, basis: RadialBasis):
        super().__init__()
        self.spacing = basis.cutoff / NUM_KNOTS

    def forward(self, lengths: Tensor) -> Tensor:
        x = lengths / self.spacing - 1.0  # no knot at zero, where the Bessel functions are a limit
        knot = x.detach().floor().clamp(0, NUM_KNOTS - 2)
        t = x - knot
        s = 1.0 - t
        value, slope = s * s * (1.0 + 2.0 * t), s * s * t * self.spacing
        next_value, next_slope = t * t * (3.0 - 2.0 * t), -t * t * s * self.spacing
        return torch.stack([knot, value, slope, next_value, next_slope], 1)


class TabulatedMLP(torch.nn.Module):
    """Same parameters as the `RadialMLP` it is made from, fed by `Knots`."""

    def __init__(self, mlp: RadialMLP, basis: RadialBasis):
        super().__init__()
        self.layers = mlp.layers
        lengths = basis.cutoff / NUM_KNOTS * torch.arange(1, NUM_KNOTS + 1, dtype=basis.frequencies.dtype)
        with torch.enable_grad():
            values = basis(lengths.requires_grad_())
            columns = [torch.autograd.grad(v.sum(), lengths, retain_graph=True)[0] for v in values.unbind(1)]
        self.basis = values.detach(), torch.stack(columns, 1)  # values and slopes at the knots

    def forward(self, knots: Tensor) -> Tensor:
        table = torch.stack(self.network(*self.basis), 1).flatten(0, 1)
        return _Interpolate.apply(knots[:, 1:], table, 2 * knots[:, 0].detach().long())

    def network(self, values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """The network and its derivative with respect to the length."""
        for i, layer in enumerate(self.layers):
            if i > 0:
                gate = values.sigmoid()
                slopes = slopes * gate * (1.0 + values * (1.0 - gate))
                values = values * gate
            values, slopes = layer(values), layer(slopes)
        return values, slopes


class _Interpolate(torch.autograd.Function):
    """R_e = Σ_a w_ea T_{row(e)+a}, the derivative with respect to g of F(g, w, T) = Σ_ea w_ea g_e · T_{row(e)+a}."""

    @staticmethod
    def forward(ctx, w, table, rows):
        ctx.save_for_backward(w, table, rows)
        return _gather(w, table, rows)

    @staticmethod
    def backward(ctx, g):
        return *_Gradients.apply(g, *ctx.saved_tensors), None


class _Gradients(torch.autograd.Function):
    """∂F/∂w and ∂F/∂T at (g, w, T)."""

    @staticmethod
    def forward(ctx, g, w, table, rows):
        ctx.save_for_backward(g, w, table, rows)
        ctx.set_materialize_grads(False)
        return _dots(g, table, rows), _scatter(g, w, table, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, tw, tt):
        g, w, table, rows = ctx.saved_tensors
        if tt is None:  # the forces depend on the table's own gradient in no loss we know, so this is the usual case
            return _gather(tw, table, rows), None, _scatter(g, tw, table, rows), None
        dg = _gather(w, tt, rows)
        dw = _dots(g, tt, rows)
        if tw is None:
            return dg, dw, None, None
        return dg + _gather(tw, table, rows), dw, _scatter(g, tw, table, rows), None


def _gather(w: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    out = table.new_empty((len(rows), table.shape[1]))
    run_rows(_kernels()[0], len(rows), *_arrays(w, table, rows, out))
    return out


def _dots(g: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    out = table.new_empty((len(rows), 4))
    run_rows(_kernels()[1], len(rows), *_arrays(g, table, rows, out))
    return out


def _scatter(g: Tensor, w: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    out = table.new_zeros(table.shape)
    _kernels()[2](*_arrays(g, w, rows, out))  # edges meet in the rows of the table: one thread
    return out


def _arrays(*tensors: Tensor) -> list:
    return [t.detach().contiguous().numpy() for t in tensors]


@cache
def _kernels() -> tuple:
    compiled = numba.njit(nogil=True, fastmath={"contract", "reassoc", "nsz"})

    @compiled
    def gather(start, end, w, table, rows, out):
        for e in range(start, end):
            i = rows[e]
            a, b, c, d = w[e, 0], w[e, 1], w[e, 2], w[e, 3]
            t0, t1, t2, t3, o = table[i], table[i + 1], table[i + 2], table[i + 3], out[e]
            for k in range(o.size):
                o[k] = a * t0[k] + b * t1[k] + c * t2[k] + d * t3[k]

    @compiled
    def dots(start, end, g, table, rows, out):
        for e in range(start, end):
            i, ge = rows[e], g[e]
            zero = ge[0] - ge[0]
            a = b = c = d = zero
            t0, t1, t2, t3 = table[i], table[i + 1], table[i + 2], table[i + 3]
            for k in range(ge.size):
                a += ge[k] * t0[k]
                b += ge[k] * t1[k]
                c += ge[k] * t2[k]
                d += ge[k] * t3[k]
            out[e, 0], out[e, 1], out[e, 2], out[e, 3] = a, b, c, d

    @compiled
    def scatter(g, w, rows, out):
        for e in range(rows.size):
            i, ge = rows[e], g[e]
            a, b, c, d = w[e, 0], w[e, 1], w[e, 2], w[e, 3]
            t0, t1, t2, t3 = out[i], out[i + 1], out[i + 2], out[i + 3]
            for k in range(ge.size):
                t0[k] += a * ge[k]
                t1[k] += b * ge[k]
                t2[k] += c * ge[k]
                t3[k] += d * ge[k]

    return gather, dots, scatter
