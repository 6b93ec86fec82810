"""Where ASE speaks: `Atoms` in, results in eV, Å and Voigt order out. First and last stop of a force call."""

from __future__ import annotations

import copy
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorError,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress

from ase_equivariant import inference
from ase_equivariant.checkpoint import from_bytes, load_with_sha256, to_bytes
from ase_equivariant.derivatives import Prediction
from ase_equivariant.device_list import lists_for
from ase_equivariant.graph import Graph, attribute_values, edges_of, from_atoms, has_volume
from ase_equivariant.inference import background
from ase_equivariant.inference.checked import lacks_memory
from ase_equivariant.inference.estimate import Estimate, estimate
from ase_equivariant.inference.verified import start_fastest, start_verified
from ase_equivariant.neighbors import VerletList
from ase_equivariant.potential import Potential
from ase_equivariant.restrict import choose_head
from ase_equivariant.zoo import available_models

DTYPES = {"float32": torch.float32, "float64": torch.float64}

_PROCESS = os.getpid()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Whatever the caller has switched off, gradients work, and tensors are made on the CPU but where we say otherwise.

    In a forked process torch keeps to one thread: those of the parent do not exist in its child, which would wait for
    them for ever.
    """
    threads = torch.get_num_threads()
    forked = threads > 1 and os.getpid() != _PROCESS
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.device("cpu") if elsewhere else nullcontext():
        try:
            if forked:
                torch.set_num_threads(1)
            yield
        except RuntimeError as error:
            if isinstance(error, CalculatorError) or "fork" not in str(error):
                raise
            raise CalculatorSetupError(
                f"after a fork from a process that used a GPU, torch cannot go on: {error}; start processes with "
                "multiprocessing.get_context('spawn')"
            ) from error
        finally:
            if forked:
                torch.set_num_threads(threads)


RECENT = 16  # structures whose results are kept


class EquivariantCalculator(Calculator):
    """ASE calculator of an equivariant potential; threads need one each, as it remembers its last atoms.

    Many `Atoms` may share one. But ASE's `write("frames.xyz", [a, b])` stores the results of the last atoms with every
    frame: first give each its own, `SinglePointCalculator(a, forces=a.get_forces(), energy=a.get_potential_energy())`.

    Parameters
    ----------
    model : name of a shipped or published model, path of a model file of this package or another, or a `Potential`
        (which is copied)
    device : "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:0", "cuda:1", …
    dtype : "float32" or "float64", precision of the network; geometry and energy sums are always float64
    backend : "auto", or one of `inference.BACKENDS`; kept for the calculator's life
    head : name of the head that answers; the file's default one by default
    background_compile : with backend "auto", whether a model whose kernels have never been compiled on this machine
        is served by another backend while a process in the background compiles them for the next calculator

    Attributes
    ----------
    calls : number of model calls so far, without those of `estimate`
    extras : after a call for forces or stress: "strain_gradient", dE/dε [3, 3] eV
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
    nolabel = True

    @_undisturbed()
    def __init__(
        self,
        model: str | os.PathLike | Potential,
        device: str = "auto",
        dtype: str = "float32",
        backend: str = "auto",
        head: str | None = None,
        background_compile: bool = False,
    ):
        super().__init__()
        _require("dtype", dtype, DTYPES)
        _require("backend", backend, ("auto", *inference.BACKENDS))
        self._device = _find_device(device)
        self._options = {
            "device": device,
            "dtype": dtype,
            "backend": backend,
            "head": head,
            "background_compile": background_compile,
        }
        self._model, potential, sha256 = _find_model(model)
        self._head = choose_head(potential, head)
        with self._memory_for("the model alone", "a smaller model"):
            # astype copies, so that the calculator's potential is its own
            self.potential = potential.astype(DTYPES[dtype]).to(self._device).eval().requires_grad_(False)
            if backend == "auto":
                backend, self._backend = start_fastest(self.potential, self._device, background_compile)
            else:
                self._backend = start_verified(backend, self.potential, self._device)
        self._neighbors = lists_for(potential.cutoff, self._device)
        self._info: list[int] = []  # what the model read from the info of the last atoms, which may change in place
        self.calls = 0
        self.extras: dict[str, Any] = {}
        self._recent: OrderedDict[bytes, tuple[dict, dict]] = OrderedDict()  # results and extras, the newest last
        self.parameters.update(  # what Trajectory and ase.db write: strings, or None
            model=self._model or str(potential.metadata.get("name", "unnamed potential")),
            sha256=sha256,
            device=str(self._device),
            dtype=dtype,
            backend=backend,
            head=self._head,
        )

    @_undisturbed()
    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """One model call: energies alone, or everything at once when forces or stress are asked for.

        None at all for one of the last structures seen, so that images of a path may share a calculator.
        """
        if atoms is not None:
            _require_atoms(atoms)
        super().calculate(atoms, properties, system_changes)
        if system_changes:
            self.results, self.extras = {}, {}
        if self.atoms is None:
            raise InputError("there are no atoms to calculate; give some")
        self._info = attribute_values(self.atoms, self.potential.attributes)
        key = _fingerprint(self.atoms) + repr(self._info).encode()
        results, extras = self._recent.pop(key, ({}, {}))
        if not results.keys() >= set(properties):
            results, extras = self._evaluate("forces" in properties or "stress" in properties, "stress" in properties)
        self._recent[key] = results, extras
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        self.results, self.extras = copy.deepcopy((results, extras))

    @_undisturbed()
    def warm_up(self, atoms: Atoms) -> None:
        """Return when no later step of these atoms has to wait for anything that happens once.

        The backend has compared itself with the reference, its arrays exist, and what is compiled in the background is
        on disk; the results of `atoms` are known.
        """
        background.wait()
        self.get_forces(atoms)
        if self.keeps_edges:  # the first list had none beyond the cutoff
            self._evaluate(True, False)

    @property
    def keeps_edges(self) -> bool:
        """Whether the backend keeps neighbour lists from step to step, see `DeviceList`."""
        return getattr(self._backend, "keeps_edges", False)

    @_undisturbed()
    def estimate(self, atoms: Atoms) -> Estimate:
        """Memory and time of a step with forces, measured on a piece of the atoms: ask before a large run.

        `print(calc.estimate(atoms))` says it in a line; nothing of the whole is computed but the number of its edges.
        """

        def make_step(piece: Atoms) -> Callable[[], int]:
            neighbors = lists_for(self.potential.cutoff, self._device)
            getattr(self._backend, "forget", lambda: None)()  # arrays that are there would count for nothing

            def step() -> int:
                graph = self._graph(piece, neighbors[self.keeps_edges])
                self._predict(graph, True)
                return graph.n_edges

            return step

        def kept() -> int:
            return edges_of(atoms, cutoff + self._neighbors[True].skin) if self.keeps_edges else edges

        _require_atoms(atoms)
        cutoff = self.potential.cutoff
        edges = edges_of(atoms, cutoff)
        return estimate(make_step, atoms, edges, kept, lambda: self.parameters["backend"], self._device)

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What results depend on and has changed since the last call, by however little; `tol` plays no role.

        "info" stands for a number that the model reads there.
        """
        _require_atoms(atoms)
        if self.atoms is None:
            return list(all_changes)
        pairs = [(name, getattr(self.atoms, name), getattr(atoms, name)) for name in ("positions", "numbers", "pbc")]
        pairs.append(("cell", self.atoms.cell.array, atoms.cell.array))
        changes = [name for name, old, new in pairs if not np.array_equal(old, new)]
        try:
            same = attribute_values(atoms, self.potential.attributes) == self._info
        except InputError:  # said when it is calculated
            same = False
        return changes if same else [*changes, "info"]

    def reset(self) -> None:
        """Forget all results."""
        super().reset()
        self.extras = {}
        self._recent.clear()

    def _evaluate(self, forces: bool, stress: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Results and extras of the calculator's atoms, from one model call."""
        cell = self.atoms.cell
        with self._memory_for(f"{len(self.atoms)} atoms"):
            graph = self._graph(self.atoms, self._neighbors[self.keeps_edges])
        spans = has_volume(cell)
        if stress and not spans:
            raise PropertyNotImplementedError("stress needs a cell with three lattice vectors; this one has no volume")
        self.calls += 1
        prediction = self._predict(graph, forces)
        energy = float(prediction.energy[0])
        results = {"energy": energy, "free_energy": energy, "energies": _array(prediction.node_energies)}
        extras = {}
        if forces:
            results["forces"] = _array(prediction.forces)
            extras["strain_gradient"] = _array(prediction.strain_gradient[0])
        if forces and spans:
            results["stress"] = np.ascontiguousarray(
                full_3x3_to_voigt_6_stress(extras["strain_gradient"] / cell.volume)
            )
        bad = [name for name, value in results.items() if not np.isfinite(value).all()]
        if bad:
            raise CalculationFailed(
                f"the model gives NaN or infinite {', '.join(bad)} for {self.atoms.get_chemical_formula()}; "
                "look for atoms that are much too close"
            )
        return results, extras

    def _graph(self, atoms: Atoms, neighbors: VerletList) -> Graph:
        known, head = self.potential, self.potential.heads.index(self._head)
        return from_atoms(atoms, known.atomic_numbers, known.cutoff, neighbors, head, known.attributes)

    def _predict(self, graph: Graph, forces: bool) -> Prediction:
        _wake(self._device)
        with self._memory_for(f"{graph.n_nodes} atoms and {graph.n_edges} edges"):
            prediction = self._backend(graph, forces)
        self.parameters["backend"] = getattr(self._backend, "name", self.parameters["backend"])
        return prediction

    @contextmanager
    def _memory_for(self, what: str, less: str = "fewer atoms") -> Iterator[None]:
        """Say what is too large, where memory does not suffice."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            raise CalculationFailed(
                f"out of memory on {self._device} with {what}; use {less}, dtype='float32', or a device with more "
                "memory"
            ) from error

    def set(self, **kwargs) -> dict:
        """Refused: a calculator keeps its model, device, dtype, backend and head for its life."""
        if kwargs:
            raise InputError(f"cannot change {', '.join(kwargs)} of a calculator; make a new EquivariantCalculator")
        return {}

    def __repr__(self) -> str:
        options = [f"{key}={self.parameters[key]!r}" for key in ("device", "dtype", "backend")]
        return f"{type(self).__name__}({', '.join([repr(self.parameters['model']), *options])})"

    def __deepcopy__(self, memo: dict) -> EquivariantCalculator:
        """A calculator of its own that shares the weights, which never change."""
        twin = memo[id(self)] = object.__new__(type(self))
        shared = ("potential", "_backend")
        twin.__dict__ = {k: v if k in shared else copy.deepcopy(v, memo) for k, v in self.__dict__.items()}
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """A file's name and sha256, or a potential as the bytes of our own file; no tensors, no code."""
        state = {name: getattr(self, name) for name in ("atoms", "results", "extras", "calls", "_info")}
        return {
            "model": self._model or to_bytes(self.potential),
            "sha256": self.parameters["sha256"],
            "options": self._options,
            "state": state,
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        model = saved["model"]
        self.__init__(from_bytes(model) if isinstance(model, bytes) else model, **saved["options"])
        if self.parameters["sha256"] != saved["sha256"]:
            raise InputError(f"the model file {model} has changed since this calculator was pickled")
        self.__dict__.update(saved["state"])


def _require_atoms(atoms: Atoms) -> None:
    if not isinstance(atoms, Atoms):  # a list has a copy() too, which ASE would keep as the atoms
        raise InputError(f"a calculator takes one Atoms at a time, not a {type(atoms).__name__}; call it for each")


def _fingerprint(atoms: Atoms) -> bytes:
    """What energy, forces and stress depend on."""
    digest = hashlib.blake2b(atoms.numbers.tobytes())
    for part in (atoms.positions, atoms.cell.array, atoms.pbc):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


def _find_model(model: str | os.PathLike | Potential) -> tuple[str | None, Potential, str | None]:
    """Name or absolute path (None for a Potential), the potential, and the file's sha256."""
    if isinstance(model, Potential):
        return None, model, None
    potential, sha256 = load_with_sha256(model)
    name = os.fspath(model)
    known = name in available_models(published=True)
    return name if known else str(Path(name).expanduser().resolve()), potential, sha256


def _find_device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["auto", "cpu", *["cuda"][:count], *(f"cuda:{i}" for i in range(count))]
    _require("device", name, allowed, " on this machine")
    device = torch.device(("cuda" if count else "cpu") if name == "auto" else name)
    _wake(device)
    return device


def _wake(device: torch.device) -> None:
    """Let torch say now, and clearly, whether CUDA can be used in this process: it does not survive a fork."""
    if device.type == "cuda":
        torch.cuda.init()


def _require(what: str, value: str, allowed, where: str = "") -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{what} {value!r} is not available{where}; choose one of {', '.join(allowed)}")


def _array(values: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.float64)
