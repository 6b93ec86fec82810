"""The validation loss, and errors of all structures and of each element."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ase_equivariant.derivatives import predict
from ase_equivariant.potential import Potential
from ase_equivariant.training.data import Batch, Structure, collate
from ase_equivariant.training.loss import Loss, Residuals, errors, join, residuals, select
from ase_equivariant.training.module import TrainingModule


class Assessor:
    """Turns the residuals of a fixed list of structures into a loss and a table of errors.

    In the table "all" stands for all structures, "Cu" for those of copper alone and "Cu-Ni" for those of both elements.
    """

    def __init__(self, loss: Loss, structures: list[Structure], weights: np.ndarray):
        self.loss = loss
        self.weights = torch.tensor(weights)
        self.node_graph = torch.repeat_interleave(torch.tensor([len(s.atoms) for s in structures]))
        self.systems = [s.system for s in structures]

    def __call__(self, module: TrainingModule) -> tuple[float, dict[str, dict[str, float]]]:
        return self.assess(module.validation)

    def assess(self, r: Residuals) -> tuple[float, dict[str, dict[str, float]]]:
        """Weighted loss, and {group: errors}."""
        r = Residuals(**{name: None if value is None else value.cpu() for name, value in vars(r).items()})
        groups = {"all": errors(r)}
        for system in sorted(set(self.systems)):
            mask = torch.tensor([s == system for s in self.systems])
            groups[system] = errors(select(r, mask, mask[self.node_graph]))
        return self.loss(self.weighted(r)).item(), groups

    def weighted(self, r: Residuals) -> Residuals:
        def times(weights: Tensor | None, factors: Tensor) -> Tensor | None:
            return None if weights is None else weights * factors

        return replace(
            r,
            energy_weights=times(r.energy_weights, self.weights),
            forces_weights=times(r.forces_weights, self.weights[self.node_graph]),
            stress_weights=times(r.stress_weights, self.weights),
        )

    def predict(self, potential: Potential, batches: list[Batch], batch_size: int) -> tuple[float, dict]:
        """Evaluate a potential on the structures and assess it."""
        chunks = [collate(batches[i : i + batch_size]) for i in range(0, len(batches), batch_size)]
        return self.assess(join([residuals(predict(potential, chunk.graph), chunk) for chunk in chunks]))
