"""The fast backend of a GPU: the stages of a program as Triton's kernels, recorded once and replayed.

A step copies positions and cell to the device, replays a CUDA graph of all kernels, and copies energies, forces and
strain gradient back. The graph belongs to arrays of one shape: the same atoms with room for some more edges. No sum is
made with atomic additions, so results are repeatable bit for bit.
"""

from __future__ import annotations

import logging
import threading

import torch
from ase.calculators.calculator import CalculatorSetupError
from torch import Tensor

from ase_equivariant.derivatives import Prediction
from ase_equivariant.graph import Graph
from ase_equivariant.inference.lower import lower
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
from ase_equivariant.inference.triton.compile import Compiler, is_interpreted
from ase_equivariant.inference.triton.contract import ContractKernel
from ase_equivariant.inference.triton.convolve import ConvolveKernel
from ase_equivariant.inference.triton.geometry import HIGHEST, GeometryKernel
from ase_equivariant.inference.triton.linear import EmbedAttributesKernel, EmbedKernel, LinearKernel
from ase_equivariant.inference.triton.pointwise import DivideKernel, GateKernel, NormKernel
from ase_equivariant.inference.triton.readout import ReadoutKernel
from ase_equivariant.inference.triton.recorded import Recorded
from ase_equivariant.inference.triton.repel import RepelKernel
from ase_equivariant.inference.triton.run import Run
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
_log = logging.getLogger("ase_equivariant")
KEPT = 3  # shapes whose arrays and recordings stay on the device


class Triton:
    """The backend; float64 keeps the radial networks, float32 takes splines through them."""

    keeps_edges = True  # edges beyond the cutoff may be in the list: they contribute nothing

    def __init__(self, potential: Potential, device: torch.device):
        if device.type != "cuda" and not is_interpreted():
            raise CalculatorSetupError(f"backend 'triton' runs on a GPU with CUDA, not on {device}")
        self.device = device
        self.potential = potential.astype(potential.dtype).cpu()
        try:
            program = lower(self.potential, exact=potential.dtype == torch.float64)
            if len(program.harmonics) > HIGHEST:
                raise CannotLowerError(f"l_max = {len(program.harmonics)}")
            compiler = Compiler(program, potential.dtype, device)
            self.stages = [GeometryKernel(program.harmonics, compiler)]
            self.stages += [KERNELS[type(stage)](stage, compiler) for stage in program.stages]
        except CannotLowerError as error:
            raise CalculatorSetupError(f"backend 'triton' does not know this model's {error}") from None
        if compiler.is_new:
            _log.warning("compiling kernels for this model when they first run, once on this machine; up to a minute")
        self._layout = program.widths, compiler.num_harmonics
        self._recorded: list[Recorded] = []  # the last one used first
        self._lock = threading.Lock()

    def __call__(self, graph: Graph, forces: bool) -> Prediction:
        n = graph.n_nodes
        if n == 0:
            empty = torch.zeros(0, dtype=torch.float64)
            return _prediction(graph, empty, empty.view(0, 3), torch.zeros((graph.n_graphs, 3, 3)).double(), forces)
        with self._lock:
            recorded = self._find(graph)
            recorded.set_edges(graph)
            found = recorded(graph, forces)
            constants = recorded.run.constants
        node_energies, rest = constants + found[:n], found[n:]
        return _prediction(graph, node_energies, rest[: 3 * n].view(n, 3), rest[3 * n :].view(-1, 3, 3), forces)

    def forget(self) -> None:
        """Free all arrays and recordings."""
        with self._lock:
            self._recorded.clear()

    def _find(self, graph: Graph) -> Recorded:
        """The arrays of the graph's shape."""
        for recorded in self._recorded:
            if recorded.run.fits(graph):
                self._recorded.remove(recorded)
                break
        else:
            others = [recorded for recorded in self._recorded if not recorded.run.is_of(graph)]
            self._recorded = others[: KEPT - 1]  # those of the same atoms have too little room for edges
            recorded = Recorded(Run(graph, self.potential, *self._layout, self.device), self.stages)
        self._recorded.insert(0, recorded)
        return recorded


def _prediction(graph: Graph, node_energies: Tensor, forces: Tensor, strain: Tensor, wanted: bool) -> Prediction:
    energy = node_energies.new_zeros(graph.n_graphs).index_add(0, graph.batch, node_energies)
    return Prediction(energy, node_energies, forces, strain) if wanted else Prediction(energy, node_energies)
