"""A training step of ase-equivariant: forward, forces, loss, backward, optimizer."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from worker import ATOMIC_ENERGIES, ATOMIC_NUMBERS, MODEL, loss_function, serve

from ase_equivariant.architectures import build
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms
from ase_equivariant.potential import Potential
from ase_equivariant.training.acceleration import accelerated


def make(molecules: list[Atoms]):
    graph = concatenate([from_atoms(atoms, ATOMIC_NUMBERS, MODEL["cutoff"]) for atoms in molecules])
    energy = torch.tensor([atoms.get_potential_energy() for atoms in molecules], dtype=torch.float64)
    forces = torch.from_numpy(np.concatenate([atoms.get_forces() for atoms in molecules]))
    n_atoms = graph.batch.bincount()
    config = {
        **MODEL,
        "num_species": len(ATOMIC_NUMBERS),
        "interaction_first": "residual",
        "avg_num_neighbors": graph.n_edges / graph.n_nodes,
    }
    unit = [[1.0] * len(ATOMIC_NUMBERS)]
    potential = Potential(
        build("mace", config),
        atomic_numbers=ATOMIC_NUMBERS,
        atomic_energies=[ATOMIC_ENERGIES],
        scale=unit,
        shift=[[0.0] * len(ATOMIC_NUMBERS)],
    )
    twin = accelerated(potential)  # what the trainer steps on
    optimizer = torch.optim.Adam(potential.parameters(), lr=0.01, amsgrad=True, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        prediction = predict(twin, graph, create_graph=True)
        loss_function((prediction.energy - energy) / n_atoms, prediction.forces - forces).backward()
        optimizer.step()

    return step, {"parameters": sum(p.numel() for p in potential.parameters()), "edges": graph.n_edges}


serve(make, ["torch", "e3nn", "numba"])
