"""Golden structures: reference results in a model file, so that each load on each machine can prove itself.

They are computed in float64 when the file is made; a calculator recomputes them with its own backend and precision
before it answers for the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.data import covalent_radii
from ase.stress import full_3x3_to_voigt_6_stress

from ase_equivariant.derivatives import Prediction, predict
from ase_equivariant.graph import Graph, attribute_values, from_atoms, has_volume
from ase_equivariant.neighbors import count_images
from ase_equivariant.potential import Potential
from ase_equivariant.restrict import choose_head

MAX_GOLDEN = 500_000  # edges in all golden structures, each of which counts as 1000 more: seconds of work


def golden_structures(
    potential: Potential, structures: Sequence[Atoms], heads: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Reference results in float64 for `metadata["golden"]`: energy (eV), forces (eV/Å), stress (eV/Å³, Voigt).

    `heads` has one for each structure; the potential's default head answers by default.
    """
    exact = potential.astype(torch.float64).cpu().eval()
    records, effort = [], 0
    for atoms, head in zip(structures, heads or [choose_head(potential, None)] * len(structures)):
        graph = _golden_graph(exact, atoms, head)
        effort = _spend(effort, graph)
        records.append(
            {
                "numbers": atoms.numbers.tolist(),
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell.tolist(),
                "pbc": atoms.pbc.tolist(),
                "head": head,
                **_read(exact, atoms),
                **{name: value.tolist() for name, value in _results(predict(exact, graph), atoms).items()},
            }
        )
    return records


def golden_probes(potential: Potential) -> list[dict[str, Any]]:
    """Golden structures for a model that comes without any: a molecule and a crystal of its own elements, every head.

    Bonds are of the length that covalent radii suggest, so that forces are ordinary for any model.
    """
    numbers, heads = potential.atomic_numbers, potential.heads
    ions = {key: min(usual + 1, highest) for key, _, highest, usual in potential.attributes}
    structures = [_chain(numbers[:: 1 + (len(numbers) - 1) // 8]), _crystal(numbers[0], numbers[-1])]
    structures[0].info.update(ions)
    count = max(len(structures), len(heads))
    return golden_structures(
        potential, [structures[i % 2] for i in range(count)], [heads[i % len(heads)] for i in range(count)]
    )


def _chain(numbers: Sequence[int]) -> Atoms:
    """A zigzag of single bonds that does not lie in a plane."""
    positions = [np.zeros(3)]
    for i, pair in enumerate(pairwise(numbers)):
        direction = np.array([0.8, 0.6 * (-1) ** i, 0.1 * i])
        positions.append(positions[-1] + _bond(*pair) * direction / np.linalg.norm(direction))
    return Atoms(numbers, positions)


def _crystal(first: int, second: int) -> Atoms:
    """The structure of caesium chloride, sheared, with one atom out of its place."""
    a = 2 / 3**0.5 * max(_bond(first, second), 2.5)  # at least the volume that a copper atom has
    atoms = Atoms([first, second], scaled_positions=[[0, 0, 0], [0.5, 0.48, 0.53]], cell=a * np.eye(3), pbc=True)
    atoms.set_cell(atoms.cell @ np.array([[1, 0.05, 0], [0, 1, 0.02], [0, 0, 1.03]]), scale_atoms=True)
    return atoms


def _bond(first: int, second: int) -> float:
    return max(1.1 * (covalent_radii[first] + covalent_radii[second]), 1.8)


def _read(potential: Potential, atoms: Atoms) -> dict[str, dict[str, int]]:
    """What the model reads of a structure besides its atoms, as an entry of its record."""
    keys = [key for key, *_ in potential.attributes]
    return {"info": dict(zip(keys, attribute_values(atoms, potential.attributes)))} if keys else {}


def _golden_graph(potential: Potential, atoms: Atoms, head: str) -> Graph:
    """The graph of a golden structure, unless a file's cutoff and structure would make it gigantic."""
    if len(atoms) ** 2 * count_images(atoms.cell.array, atoms.pbc, potential.cutoff) > 100 * MAX_GOLDEN:
        raise InputError(f"the golden structure {atoms.get_chemical_formula()} of this model is too large to verify")
    asked = {"head": potential.heads.index(head), "attributes": potential.attributes}
    return from_atoms(atoms, potential.atomic_numbers, potential.cutoff, **asked)


def _spend(effort: int, graph: Graph) -> int:
    """The effort with one more golden structure, while it is small enough for every start of a calculator."""
    effort += 1000 + graph.n_edges
    if effort > MAX_GOLDEN:
        raise InputError("the golden structures of this model are too many or too large to be verified; keep fewer")
    return effort


def verify_golden(
    potential: Potential, evaluate: Callable[[Graph, bool], Prediction] | None = None
) -> dict[str, float]:
    """Largest errors on the golden structures: energy (eV/atom), forces (eV/Å), stress (eV/Å³); empty without any.

    Errors of forces count per 10 eV/Å where forces are larger than that, as single precision is relative.
    `evaluate(graph, forces)` is the backend to verify; the potential itself by default.
    """
    evaluate = evaluate or (lambda graph, forces: predict(potential, graph, forces))
    errors: dict[str, list[float]] = {}
    effort = 0
    try:
        for record in potential.metadata.get("golden", []):
            atoms = Atoms(
                **{key: record[key] for key in ("numbers", "positions", "cell", "pbc")}, info=record.get("info")
            )
            graph = _golden_graph(potential, atoms, record["head"])
            effort = _spend(effort, graph)
            for name, value in _results(evaluate(graph, True), atoms).items():
                golden = np.array(record[name])
                per = {"energy": len(atoms), "forces": max(1.0, np.abs(record["forces"]).max() / 10)}.get(name, 1)
                errors.setdefault(name, []).append(np.abs(value - golden).max() / per)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the golden structures of this model are malformed: {error!r}") from error
    return {name: float(np.max(values)) for name, values in errors.items()}  # np.max keeps NaN


def _results(prediction: Prediction, atoms: Atoms) -> dict[str, np.ndarray]:
    results = {
        "energy": prediction.energy[0].cpu().numpy(),
        "forces": prediction.forces.cpu().numpy(),
    }
    if has_volume(atoms.cell):
        strain_gradient = prediction.strain_gradient[0].cpu().numpy()
        results["stress"] = full_3x3_to_voigt_6_stress(strain_gradient / atoms.cell.volume)
    return results
