"""The reference backend: the modules as they were trained, with autograd."""

import torch

from ase_equivariant.derivatives import Prediction, predict
from ase_equivariant.graph import Graph
from ase_equivariant.potential import Potential


class Eager:
    def __init__(self, potential: Potential, device: torch.device):
        self.potential = potential
        self.device = device

    def __call__(self, graph: Graph, forces: bool) -> Prediction:
        return predict(self.potential, graph.to(self.device), forces)
