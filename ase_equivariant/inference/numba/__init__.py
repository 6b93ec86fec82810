"""The fast backend of a CPU: the stages of a program as compiled kernels, driven over blocks of atoms.

Blocks are the same for any number of threads and each row is written by the kernel call of its own block, so results
are repeatable bit for bit. Threads meet only before a stage that reads rows of other atoms: a convolution.
"""

from __future__ import annotations

import numpy as np
import torch
from ase.calculators.calculator import CalculatorSetupError

from ase_equivariant.derivatives import Prediction
from ase_equivariant.graph import Graph
from ase_equivariant.inference import background
from ase_equivariant.inference.lower import lower
from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.contract import ContractKernel
from ase_equivariant.inference.numba.convolve import ConvolveKernel
from ase_equivariant.inference.numba.geometry import HIGHEST, GeometryKernel
from ase_equivariant.inference.numba.lanes import empty
from ase_equivariant.inference.numba.linear import EmbedAttributesKernel, EmbedKernel, LinearKernel
from ase_equivariant.inference.numba.pointwise import DivideKernel, GateKernel, NormKernel
from ase_equivariant.inference.numba.readout import ReadoutKernel
from ase_equivariant.inference.numba.repel import RepelKernel
from ase_equivariant.inference.numba.run import Run
from ase_equivariant.inference.program import (
    CannotLowerError,
    Contract,
    Convolve,
    Divide,
    Embed,
    EmbedAttributes,
    Gate,
    Linear,
    Norm,
    Readout,
    Repel,
)
from ase_equivariant.inference.sources import warn
from ase_equivariant.nn.threads import run_blocks
from ase_equivariant.potential import Potential

KERNELS = {
    Embed: EmbedKernel,
    EmbedAttributes: EmbedAttributesKernel,
    Convolve: ConvolveKernel,
    Linear: LinearKernel,
    Contract: ContractKernel,
    Gate: GateKernel,
    Norm: NormKernel,
    Divide: DivideKernel,
    Readout: ReadoutKernel,
    Repel: RepelKernel,
}
DTYPES = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64")}
SMALL, LARGE = 48, 64  # atoms: up to SMALL they are one block, and no block has more than LARGE


class Numba:
    """The backend; float64 keeps the radial networks, float32 takes splines through them.

    Kernels that were never compiled on this machine are compiled now, or without `wait` in the background for later.
    """

    def __init__(self, potential: Potential, device: torch.device, wait: bool = True):
        if device.type != "cpu":
            raise CalculatorSetupError(f"backend 'numba' runs on the CPU, not on {device}")
        self.potential, self.dtype = potential, DTYPES[potential.dtype]
        self._spare: list[dict[str, np.ndarray]] = []  # arrays of finished calls, one set per thread that has called
        try:
            self.program = lower(potential, exact=potential.dtype == torch.float64)
            if len(self.program.harmonics) > HIGHEST:
                raise CannotLowerError(f"l_max = {len(self.program.harmonics)}")
        except CannotLowerError as error:
            raise CalculatorSetupError(f"backend 'numba' does not know this model's {error}") from None
        try:
            self._compile(Compiler(self.dtype), wait)
        except (CalculatorSetupError, MemoryError):
            raise
        except Exception as error:  # a compiler may fail in any way; others can still answer
            raise CalculatorSetupError(f"backend 'numba' fails with {type(error).__name__}: {error}") from error

    def _compile(self, compiler: Compiler, wait: bool = True) -> None:
        """Kernels of all stages, which have run once; in memory where their cache on disk fails."""
        try:
            self.geometry = GeometryKernel(self.program.harmonics, compiler)
            self.stages = [self.geometry, *(KERNELS[type(stage)](stage, compiler) for stage in self.program.stages)]
            self._phases = [self._plan(forces) for forces in (False, True)]
            if not wait and compiler.on_disk and not compiler.is_sealed():
                background.start(self.potential)
                raise CalculatorSetupError("backend 'numba' is being compiled in the background for later calculators")
            with compiler.compiling():
                self(_dimer(self.potential), True)
        except (CalculatorSetupError, MemoryError):
            raise
        except Exception as error:
            if not compiler.on_disk:
                raise
            compiler.discard()
            self._compile(Compiler(self.dtype, on_disk=False))
            warn(error)

    def __call__(self, graph: Graph, forces: bool) -> Prediction:
        try:
            arrays = self._spare.pop()
        except IndexError:  # not asked beforehand, as another thread may be faster
            arrays = {}
        blocks = _blocks(graph.n_nodes)
        run = self._prepare(graph, forces, arrays, blocks)
        for steps in self._phases[forces]:
            run_blocks(lambda a, b, steps=steps: [step(run, a, b) for step in steps], blocks)
        self._spare.append(arrays)
        potential, heads = self.potential, graph.heads[graph.batch]
        constants = (potential.atomic_energies + potential.shift)[heads, graph.species]
        node_energies = constants + torch.from_numpy(run.energies)
        energy = node_energies.new_zeros(graph.n_graphs).index_add(0, graph.batch, node_energies)
        if not forces:
            return Prediction(energy, node_energies)
        return Prediction(energy, node_energies, *self._derivatives(run, graph, blocks))

    def _plan(self, forces: bool) -> list[list]:
        """Steps that a block of atoms may take without waiting for the others, one list after the other."""
        phases, written, reached = [[]], set(), set()
        for stage in self.stages:
            if isinstance(stage, ConvolveKernel) and stage.reads:
                phases.append([])
            if stage.target and stage.target not in written:
                written.add(stage.target)
                phases[-1].append(_clear("values", stage.target))
            phases[-1].append(stage.forward)
        for stage in reversed(self.stages) if forces else ():
            if isinstance(stage, ConvolveKernel):
                phases.append([])
            phases[-1] += [_clear("gradients", value) for value in stage.reads if value not in reached]
            reached.update(stage.reads)
            phases[-1].append(stage.backward)
        return phases

    def _prepare(self, graph: Graph, forces: bool, arrays: dict[str, np.ndarray], blocks: list[tuple[int, int]]) -> Run:
        n, e, real = graph.n_nodes, graph.n_edges, self.dtype
        species, heads = graph.species.numpy(), graph.heads[graph.batch]
        receivers, present = graph.receivers.numpy(), np.flatnonzero(np.bincount(species))
        cell = (graph.cell[graph.batch[graph.receivers]] if graph.n_graphs > 1 else graph.cell).numpy()
        shifts = graph.shifts.numpy()
        block_of = np.repeat(np.arange(len(blocks)), [b - a for a, b in blocks])
        widths, size = self.program.widths.items(), (len(self.program.harmonics) + 1) ** 2
        kept = widths if forces else ()
        return Run(
            species=species,
            heads=heads.numpy(),
            attributes=graph.attributes.contiguous().numpy(),
            rows=np.arange(n),
            zeros=np.zeros(n, np.int64),
            order=np.lexsort((species, block_of)),
            scales=self.potential.scale[heads, graph.species].numpy(),
            energies=np.zeros(n),
            values={name: _reuse(arrays, name, (n, width), real) for name, width in widths},
            gradients={name: _reuse(arrays, f"gradient of {name}", (n, width), real) for name, width in kept},
            first=np.concatenate([[0], np.bincount(receivers, minlength=n).cumsum()]),
            senders=graph.senders.numpy(),
            offsets=shifts[:, :1] * cell[:, 0] + shifts[:, 1:2] * cell[:, 1] + shifts[:, 2:] * cell[:, 2],
            positions=graph.positions.numpy(),
            lengths=np.empty(e),
            vectors=np.empty((e, 3)),
            harmonics=np.empty((e, size), real),
            radial={s: s.radial.arrays(present) for s in self.stages if isinstance(s, ConvolveKernel)},
            harmonics_gradient=np.zeros((e * forces, size), real),
            lengths_gradient=np.zeros(e * forces),
            vectors_gradient=np.empty((e * forces, 3)),
        )

    def _derivatives(self, run: Run, graph: Graph, blocks: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Forces and strain gradient from the gradients of the reversed edges."""
        forces, strain = np.zeros((graph.n_nodes, 3)), np.zeros((graph.n_nodes, 3, 3))
        arrays = run.first, run.vectors, run.vectors_gradient, strain
        run_blocks(lambda a, b: self.geometry.strain(a, b, *arrays), blocks)
        self.geometry.forces(run.first, run.senders, run.vectors_gradient, forces)
        summed = torch.zeros((graph.n_graphs, 3, 3), dtype=torch.float64)
        summed = summed.index_add(0, graph.batch, torch.from_numpy(strain))
        return torch.from_numpy(forces), 0.5 * (summed + summed.transpose(1, 2))


def _dimer(potential: Potential) -> Graph:
    """Two atoms at half the cutoff."""
    ends, usual = torch.tensor([0, 1]), [usual for *_, usual in potential.attributes]
    return Graph(
        positions=torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.3, 0.3]], dtype=torch.float64) * potential.cutoff,
        cell=torch.zeros((1, 3, 3), dtype=torch.float64),
        species=torch.zeros(2, dtype=torch.int64),
        senders=1 - ends,
        receivers=ends,
        shifts=torch.zeros((2, 3), dtype=torch.float64),
        batch=torch.zeros(2, dtype=torch.int64),
        heads=torch.zeros(1, dtype=torch.int64),
        attributes=torch.tensor([usual, usual], dtype=torch.int64),
    )


def _reuse(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """The array of the last call, or a new one: fresh memory costs more than what is computed in it."""
    if name not in arrays or arrays[name].shape != shape:
        arrays[name] = empty(shape, dtype)
    return arrays[name]


def _clear(kind: str, name: str):
    def clear(run: Run, a: int, b: int) -> None:
        getattr(run, kind)[name][a:b] = 0.0

    return clear


def _blocks(n_nodes: int) -> list[tuple[int, int]]:
    """Ranges of nodes, a function of their number alone."""
    size = n_nodes if n_nodes <= SMALL else min(LARGE, -(-n_nodes // 8))
    return [(a, min(a + size, n_nodes)) for a in range(0, n_nodes, max(size, 1))]
