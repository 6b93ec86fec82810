"""The same training step with mace-torch, in its own environment."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from ase import Atoms
from worker import ATOMIC_ENERGIES, ATOMIC_NUMBERS, MODEL, loss_function, serve

sys.path.append(str(Path(__file__).resolve().parents[1]))
from mace_model import make_mace  # noqa: E402


def make(molecules: list[Atoms]):
    from mace import data  # here, because it greets on stdout
    from mace.tools import AtomicNumberTable, torch_geometric

    torch.set_default_dtype(torch.float32)
    for atoms in molecules:  # the labels where mace-torch looks for them
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
    table = AtomicNumberTable(ATOMIC_NUMBERS)
    keys = data.KeySpecification(info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"})
    graphs = [
        data.AtomicData.from_config(data.config_from_atoms(atoms, keys), z_table=table, cutoff=MODEL["cutoff"])
        for atoms in molecules
    ]
    batch = next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs))))
    n_nodes, n_edges = len(batch.positions), batch.edge_index.shape[1]
    settings = {**MODEL, "avg_num_neighbors": n_edges / n_nodes}
    model = make_mace(settings, ATOMIC_NUMBERS, ATOMIC_ENERGIES)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True)
    n_atoms = batch.ptr[1:] - batch.ptr[:-1]

    def step() -> None:
        optimizer.zero_grad()
        prediction = model(batch.to_dict(), training=True, compute_force=True)
        loss_function((prediction["energy"] - batch.energy) / n_atoms, prediction["forces"] - batch.forces).backward()
        optimizer.step()

    return step, {"parameters": sum(p.numel() for p in model.parameters()), "edges": n_edges}


serve(make, ["torch", "e3nn", "mace-torch"])
