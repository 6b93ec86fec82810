"""TorchScript: a potential that runs without Python code, inside a calculator or from a file anywhere.

`TorchScript` is the backend: the scripted potential in place of the eager one. `export` writes a file that
`torch.jit.load` runs, with forces and stress, in a process that never imports this package. An exported file is an
executor; a model is stored by `checkpoint`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ase.calculators.calculator import CalculatorSetupError, InputError
from ase.data import chemical_symbols
from torch import Tensor

from ase_equivariant import __version__
from ase_equivariant.derivatives import Prediction, edge_gradients, predict, sum_forces, sum_strain
from ase_equivariant.graph import Graph, edge_vectors
from ase_equivariant.potential import Potential
from ase_equivariant.restrict import choose_head
from ase_equivariant.storage import write_atomically

FORMAT = "ase-equivariant torchscript"
FORMAT_VERSION = 1
UNITS = {
    "positions": "Å",
    "cell": "Å, rows are lattice vectors",
    "shifts": "whole numbers of lattice vectors; vector = positions[receiver] - positions[sender] + shift @ cell",
    "energy": "eV",
    "energies": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å³, Voigt order xx yy zz yz xz xy, positive under tension; NaN without a volume",
}


class TorchScript:
    """The backend: `predict` with the scripted potential."""

    def __init__(self, potential: Potential, device: torch.device):
        self.potential = _script(potential)
        self.device = device

    def __call__(self, graph: Graph, forces: bool) -> Prediction:
        # Without the optimising executor, which compiles anew when the number of edges changes and then rounds
        # differently: the first step and the last follow the same potential. The switch is the calling thread's own.
        with torch.jit.optimized_execution(False):
            return predict(self.potential, graph.to(self.device), forces)


def export(potential: Potential, path: str | os.PathLike, device: str = "cpu", head: str | None = None) -> None:
    """Write a scripted potential, or leave what was there untouched.

    The file holds the precision of `potential` and one head, the potential's default one if `head` is None. Its
    `forward` is that of `ExportedPotential`; its extra file `metadata.json` says what it is. `torch.jit.load(path,
    map_location=…)` puts it on any device, whatever `device` it was written for. Run under
    `torch.jit.optimized_execution(False)`, as the backend does, it spends no time on compiling.
    """
    head = choose_head(potential, head)
    if potential.attributes:
        read = " and ".join(key for key, *_ in potential.attributes)
        raise InputError(
            f"this model depends on the {read} of a structure, which exported files do not ask for; `ase-equivariant "
            "convert --fix` makes a model file for one charge or spin, which can be exported"
        )
    try:
        own = potential.astype(potential.dtype).to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"cannot put the model on device {device!r} on this machine; export for 'cpu': "
            "torch.jit.load(path, map_location=...) then puts it on any device"
        ) from error
    scripted = _script(ExportedPotential(own, potential.heads.index(head)).to(device))
    buffer = io.BytesIO()
    with _quiet():
        torch.jit.save(scripted, buffer, {"metadata.json": json.dumps(_describe(potential, head))})
    write_atomically(buffer.getvalue(), path)


class ExportedPotential(torch.nn.Module):
    """What an exported file runs: a structure and its neighbour list in, energy, forces and stress out."""

    def __init__(self, potential: Potential, head: int):
        super().__init__()
        self.potential = potential
        self.head = head
        self.elements = ", ".join(f"{chemical_symbols[z]} ({z})" for z in potential.atomic_numbers)
        self.register_buffer("atomic_numbers", torch.tensor(potential.atomic_numbers))

    def forward(
        self,
        positions: Tensor,
        cell: Tensor,
        atomic_numbers: Tensor,
        senders: Tensor,
        receivers: Tensor,
        shifts: Tensor,
    ) -> dict[str, Tensor]:
        """Energy (eV), energies [n] (eV), forces [n, 3] (eV/Å) and stress [6] (eV/Å³, Voigt), all float64.

        Parameters
        ----------
        positions : [n, 3] float64 Å
        cell : [3, 3] float64 Å, rows are lattice vectors, zero for a molecule
        atomic_numbers : [n] int64
        senders, receivers : [n_edges] int64, each pair in both directions; those beyond the cutoff play no role
        shifts : [n_edges, 3] float64 whole numbers of lattice vectors
        """
        species = self.find_species(atomic_numbers)
        positions, cell, shifts = positions.double(), cell.double(), shifts.double()
        gradients_on = torch.is_grad_enabled()
        torch.set_grad_enabled(True)  # scripts have no `with torch.enable_grad()`
        vectors = edge_vectors(positions, cell, senders, receivers, shifts).detach().requires_grad_()
        node_energies = self.potential(vectors, species, senders, receivers, torch.full_like(species, self.head))
        gradients = edge_gradients(node_energies, vectors)
        torch.set_grad_enabled(gradients_on)
        energies = node_energies.detach()
        strain_gradient = sum_strain(gradients, vectors.detach(), torch.zeros_like(receivers), 1)[0]
        return {
            "energy": energies.sum(),
            "energies": energies,
            "forces": sum_forces(gradients, senders, receivers, positions.shape[0]),
            "stress": voigt_stress(strain_gradient, cell),
        }

    @torch.jit.export
    def find_species(self, atomic_numbers: Tensor) -> Tensor:
        """Index of each atom's element in the model's sorted elements, [n]."""
        numbers = atomic_numbers.contiguous()
        species = torch.searchsorted(self.atomic_numbers, numbers).clamp(max=self.atomic_numbers.numel() - 1)
        unknown = torch.nonzero(self.atomic_numbers[species] != numbers).flatten()
        if unknown.numel() > 0:
            atom = int(unknown[0])
            raise ValueError(
                f"atom {atom} has atomic number {int(numbers[atom])}, which this model does not know; "
                f"its elements are {self.elements}"
            )
        return species


def voigt_stress(strain_gradient: Tensor, cell: Tensor) -> Tensor:
    """Stress [6] eV/Å³ in ASE's order xx yy zz yz xz xy; NaN for a cell without a volume."""
    volume = torch.dot(cell[0], torch.linalg.cross(cell[1], cell[2])).abs()
    flat = volume <= 1e-12 * torch.linalg.vector_norm(cell, dim=1).prod()
    (xx, xy, xz), (_, yy, yz), (_, _, zz) = [row.unbind() for row in strain_gradient.unbind()]
    stress = torch.stack([xx, yy, zz, yz, xz, xy]) / volume
    return torch.where(flat, torch.full_like(stress, float("nan")), stress)


def _describe(potential: Potential, head: str) -> dict[str, Any]:
    """What `metadata.json` says: the free keys of the model file, but for its golden structures, and the essentials."""
    return {
        **{key: value for key, value in potential.metadata.items() if key not in ("golden", "default_head")},
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "ase_equivariant_version": __version__,
        "elements": [chemical_symbols[z] for z in potential.atomic_numbers],
        "atomic_numbers": potential.atomic_numbers,
        "cutoff": potential.cutoff,
        "dtype": str(potential.dtype).removeprefix("torch."),
        "heads": potential.heads,
        "head": head,
        "units": UNITS,
    }


def _script(module: torch.nn.Module) -> torch.jit.ScriptModule:
    if sys.version_info >= (3, 14):
        raise CalculatorSetupError(
            "TorchScript is not available: torch does not support it on Python 3.14 and later; "
            "use backend='eager', or an older Python"
        )
    with _quiet():
        return torch.jit.script(module)


def _renew_lock() -> None:
    global _SCRIPTING
    _SCRIPTING = threading.Lock()


_renew_lock()
if hasattr(os, "register_at_fork"):  # a forked child may have the lock, and not the thread that would release it
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings that TorchScript is deprecated, which `_script` answers for.

    One thread at a time: neither torch's compiler nor filters of warnings are made for several.
    """
    with _SCRIPTING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        yield
