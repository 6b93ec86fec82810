"""The steps of a program on the arrays of one shape, recorded when they first run and replayed from then on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ase_equivariant.graph import Graph
from ase_equivariant.inference.triton.compile import Kernel
from ase_equivariant.inference.triton.run import Run
from ase_equivariant.nn.threads import RECORDING


class Recorded:
    def __init__(self, run: Run, stages: Sequence[Kernel]):
        self.run, self.stages = run, stages
        self.on_gpu = run.device.type == "cuda"
        for stage in stages:
            stage.prepare(run)
        self._inputs, self._outputs = (
            torch.zeros(x.shape, dtype=x.dtype, pin_memory=self.on_gpu) for x in (run.inputs, run.outputs)
        )
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}  # by whether there are forces

    def set_edges(self, graph: Graph) -> None:
        """Copy the list of edges, where it is not the last one."""
        if not self.run.has_edges_of(graph):
            self.run.edges = ()  # until all is there: Ctrl-C or a lack of memory may end this halfway
            self.run.set_edges(graph)
            self.run.edges = graph.senders, graph.receivers, graph.shifts

    def __call__(self, graph: Graph, forces: bool) -> Tensor:
        """Energies of atoms without constants, forces and strain gradients, one after the other, on the CPU."""
        size = 3 * graph.n_nodes
        self._inputs[:size], self._inputs[size:] = graph.positions.flatten(), graph.cell.flatten()
        if forces:
            self.run.with_gradients()
        self.run.inputs.copy_(self._inputs, non_blocking=True)
        if self.on_gpu:
            with torch.cuda.device(self.run.device):
                self._replay(forces)
        else:
            self._steps(forces)
        self._outputs.copy_(self.run.outputs, non_blocking=True)
        if self.on_gpu:
            torch.cuda.current_stream(self.run.device).synchronize()
        return self._outputs.clone()

    def _replay(self, forces: bool) -> None:
        if forces not in self._graphs:
            self._graphs[forces] = self._record(forces)
        self._graphs[forces].replay()

    def _record(self, forces: bool) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._steps(forces)  # compiles what is new
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with RECORDING, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._steps(forces)
        return graph

    @torch.no_grad()
    def _steps(self, forces: bool) -> None:
        run = self.run
        run.clear()
        for stage in self.stages:
            stage.forward(run)
        if forces:
            run.clear_gradients()
            for stage in reversed(self.stages):
                stage.backward(run)
