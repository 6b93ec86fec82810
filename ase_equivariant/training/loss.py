"""The loss, the residuals it is made of, and the errors people read.

    L = w_E ⟨φ((E − E*) / n)⟩ + w_F ⟨φ(c_z (F − F*))⟩ + w_S ⟨φ(σ − σ*)⟩

with n the atoms of a structure, E in eV, F in eV/Å, σ in eV/Å³ and ⟨⟩ the mean over the structures or components that
have the label. φ(x) = x², or with `huber_delta` δ: x² for |x| ≤ δ and δ (2|x| − δ) beyond. c_z is the element's entry
in `forces_factors`, else 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from ase.data import chemical_symbols
from torch import Tensor

from ase_equivariant.derivatives import Prediction
from ase_equivariant.graph import Graph
from ase_equivariant.training.config import LossConfig
from ase_equivariant.training.data import Batch


@dataclass(frozen=True)
class Residuals:
    """Prediction minus label, and the weight of each (0: no label)."""

    energy: Tensor  # [n_graphs] eV/atom
    energy_weights: Tensor  # [n_graphs]
    forces: Tensor | None = None  # [n_nodes, 3] eV/Å
    forces_weights: Tensor | None = None  # [n_nodes]
    species: Tensor | None = None  # [n_nodes], of the forces
    stress: Tensor | None = None  # [n_graphs, 3, 3] eV/Å³
    stress_weights: Tensor | None = None  # [n_graphs]


OF_NODES = ("forces", "forces_weights", "species")


def residuals(prediction: Prediction, batch: Batch) -> Residuals:
    """Compare a prediction with the labels of its batch."""
    energy = (prediction.energy - batch.energy) / batch.n_atoms
    if prediction.forces is None:
        return Residuals(energy, batch.energy_weights)
    return Residuals(
        energy,
        batch.energy_weights,
        prediction.forces - batch.forces,
        batch.forces_weights,
        batch.graph.species,
        prediction.strain_gradient / batch.volume[:, None, None] - batch.stress,
        batch.stress_weights,
    )


def join(parts: list[Residuals]) -> Residuals:
    """Residuals of several batches as one."""
    columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Residuals)}
    return Residuals(**{name: None if column[0] is None else torch.cat(column) for name, column in columns.items()})


def cut(r: Residuals, graph: Graph) -> Residuals:
    """Copies of the first rows: those of a graph's structures and nodes."""
    counts = {name: graph.n_nodes if name in OF_NODES else graph.n_graphs for name in vars(r)}
    return Residuals(**{name: None if x is None else x[: counts[name]].clone() for name, x in vars(r).items()})


class Loss:
    """The scalar to minimise, for a model of these `atomic_numbers`; the formula is at the head of this module."""

    def __init__(self, config: LossConfig, atomic_numbers: Sequence[int]):
        factors = [config.forces_factors.get(chemical_symbols[z], 1.0) for z in atomic_numbers]
        self.factors = {torch.device("cpu"): torch.tensor(factors, dtype=torch.float64)}
        self.weights = {"energy": config.energy, "forces": config.forces, "stress": config.stress}
        self.delta = config.huber_delta
        self.needs_gradient = config.forces > 0 or config.stress > 0

    def __call__(self, r: Residuals) -> Tensor:
        total = r.energy.new_zeros(())
        for name, weight in self.weights.items():
            if weight > 0:
                x = self.scaled(r) if name == "forces" else getattr(r, name)
                total = total + weight * self.mean(x, getattr(r, f"{name}_weights"))
        return total

    def scaled(self, r: Residuals) -> Tensor:
        """Each atom's force residual times its element's factor."""
        device = r.forces.device
        if device not in self.factors:  # kept, since a CUDA graph cannot fetch them
            self.factors[device] = self.factors[torch.device("cpu")].to(device)
        return r.forces * self.factors[device][r.species].unsqueeze(1)

    def mean(self, x: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean of φ over the first axis and plain mean over the others."""
        per_item = self.phi(x).flatten(1).mean(1) if x.ndim > 1 else self.phi(x)
        total = weights.sum()
        return (weights * per_item).sum() / torch.where(total > 0, total, 1.0)  # no label at all: no loss, no gradient

    def phi(self, x: Tensor) -> Tensor:
        if self.delta is None:
            return x.square()
        return 2 * torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none", delta=self.delta)


UNITS = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}


def errors(r: Residuals) -> dict[str, float]:
    """RMSE and MAE of the labelled entries: meV/atom, meV/Å, meV/Å³ (the six Voigt components)."""
    out = {}
    for name in UNITS:
        x, weights = getattr(r, name), getattr(r, f"{name}_weights")
        if x is None or not (weights > 0).any():
            continue
        x = x[weights > 0]
        if name == "stress":
            x = x[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        out[f"{name}_rmse"] = 1000 * x.square().mean().sqrt().item()
        out[f"{name}_mae"] = 1000 * x.abs().mean().item()
    return out


def select(r: Residuals, graphs: Tensor, nodes: Tensor) -> Residuals:
    """The residuals of some graphs and some nodes, given as masks."""
    masks = {f.name: nodes if f.name in OF_NODES else graphs for f in fields(Residuals)}
    return Residuals(**{k: None if getattr(r, k) is None else getattr(r, k)[mask] for k, mask in masks.items()})
