"""Linear maps, as products of matrices, and embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from ase_equivariant.inference.program import Embed, EmbedAttributes, Linear, Map
from ase_equivariant.inference.triton.compile import Compiler, Kernel
from ase_equivariant.inference.triton.run import Run
from ase_equivariant.nn.attributes import require_attributes


class LinearKernel(Kernel):
    """Products of a `Linear`: atoms of one species stand together."""

    def __init__(self, stage: Linear, compiler: Compiler):
        self.source, self.target = stage.source, stage.target
        self._maps = [(m, compiler.constant(m.weights)) for m in stage.maps]

    def forward(self, run: Run) -> None:
        for m, weights in self._maps:
            self._add(run, m, weights, run.values[self.source], run.values[self.target])

    def backward(self, run: Run) -> None:
        for m, weights in self._maps:
            back = Map(m.dim, m.start_out, m.start_in, m.weights)
            self._add(run, back, weights.mT, run.gradients[self.target], run.gradients[self.source])

    def _add(self, run: Run, m: Map, weights: Tensor, x: Tensor, y: Tensor) -> None:
        for z, start, end in [(0, 0, run.n_nodes)] if len(weights) == 1 else run.ranges:
            a, b = _block(x, m.start_in, m.dim, weights.shape[1]), _block(y, m.start_out, m.dim, weights.shape[2])
            w = weights[z].expand(m.dim, -1, -1)
            b[:, start:end].baddbmm_(a[:, start:end], w)


def _block(x: Tensor, start: int, dim: int, channels: int) -> Tensor:
    """Columns of an irrep, as [dim, n_nodes, channels]."""
    return x[:, start : start + dim * channels].unflatten(1, (dim, channels)).transpose(0, 1)


class EmbedKernel(Kernel):
    """Rows of an `Embed`; they depend on the species alone."""

    def __init__(self, stage: Embed, compiler: Compiler):
        self.target, self.table = stage.target, compiler.constant(stage.table)

    def prepare(self, run: Run) -> None:
        run.data[self] = self.table[run.species.long()]

    def forward(self, run: Run) -> None:
        rows = run.data[self]
        run.values[self.target][:, : rows.shape[1]].add_(rows)

    def backward(self, run: Run) -> None:
        """Nothing depends on positions here."""


class EmbedAttributesKernel(EmbedKernel):
    """Rows of an `EmbedAttributes`."""

    def __init__(self, stage: EmbedAttributes, compiler: Compiler):
        super().__init__(stage, compiler)
        self.starts = torch.as_tensor(stage.starts, device=compiler.device)

    def prepare(self, run: Run) -> None:
        require_attributes(run.attributes.shape[1], len(self.starts))
        run.data[self] = torch.nn.functional.silu(self.table[run.attributes + self.starts].sum(1))
