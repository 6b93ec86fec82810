"""Settings of published models on the fast CPU backend: the same numbers as eager."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from graphs import assert_eager_to_the_last_digits, batch, big, same_bits
from test_program import RADIAL, RADII
from tiny import tiny_potential

from ase_equivariant import load_potential
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import from_atoms
from ase_equivariant.inference.lower import lower
from ase_equivariant.inference.numba import Numba
from ase_equivariant.inference.numba.compile import Compiler
from ase_equivariant.inference.numba.radial import radial_functions
from ase_equivariant.inference.program import Convolve

CPU = torch.device("cpu")
FILES = Path(__file__).parents[2] / "shared" / "checkpoints" / "mace"
NEARLY = (1.0, 0.999, 1.001, 1.002)  # factors on a structure
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason=f"needs the model files in {FILES}")
REPULSION = {"radii": (0.6, 1.2, 1.1, 1.6, 1.9)}
SMALL = {"num_bessel": 4, "radial_mlp": (4,), "l_max": 1, "hidden_irreps": "2x0e+2x1o", "correlation": 2}
MODELS = {
    "foundation": {
        "hidden_irreps": "2x0e",
        "interaction_first": "density",
        "interaction": "density_residual",
        "distance_transform": "agnesi",
        "covalent_radii": RADII,
        "pair_repulsion": REPULSION | {"scaled": True},
    },
    "other settings": {
        "interaction_first": "density_residual",
        "interaction": "density",
        "apply_cutoff": False,
        "radial_basis": "gaussian",
        "distance_transform": "soft",
        "covalent_radii": RADII,
        "edge_irreps_first": "1x0e",
        "edge_irreps": "3x0e",
        "agnostic_product": True,
        "last_readout_only": True,
        "readout": "bias_mlp",
        "readout_activation": "tanh",
        "readout_mlp": 4,
        "pair_repulsion": REPULSION,
    },
    "universal": {
        "interaction_first": "nonlinear",
        "interaction": "nonlinear",
        "radial_mlp": (4, 5),
        "distance_transform": "agnesi",
        "covalent_radii": RADII,
        "apply_cutoff": False,
        "agnostic_product": True,
        "last_readout_only": True,
        "readout": "bias_mlp",
        "pair_repulsion": REPULSION,
    },
    "charged": {
        "hidden_irreps": "2x0e",
        "interaction": "nonlinear",
        "edge_irreps": "3x0e",
        "attributes": (("charge", -1, 2, 0), ("spin", 0, 3, 1)),
        "embedding_readout": True,
    },
}


def made(settings):
    """A tiny MACE with biases, norms that are not one, and several heads."""
    potential = tiny_potential("mace", heads=("first", "second"), **SMALL | settings)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in potential.architecture.named_parameters():
        change = 0.3 * torch.randn(parameter.shape, generator=generator)
        parameter.data += change * any(part in name for part in ("bias", "beta", "norms"))
    return potential


@pytest.fixture(scope="module", params=MODELS)
def potential(request):
    return made(MODELS[request.param])


def test_float64_is_eager_to_the_last_digits(potential):
    assert_eager_to_the_last_digits(Numba(potential, CPU), potential)


def test_float32_is_near_eager_in_float64_for_every_composition_in_turn(potential):
    backend = Numba(potential.astype(torch.float32), CPU)
    graphs = [big(potential), batch(potential), big(potential)]
    found = [backend(graph, True) for graph in graphs]
    for graph, prediction in zip(graphs[:2], found[:2], strict=True):
        exact, single = predict(potential, graph), predict(potential.astype(torch.float32), graph)
        for name, allowed in {"node_energies": 1e-6, "forces": 2e-5}.items():
            errors = [(getattr(p, name) - getattr(exact, name)).abs().max().item() for p in (prediction, single)]
            assert errors[0] < max(allowed, 4 * errors[1])
    assert same_bits(found[0], found[2])


def test_the_repulsion_matters_here():
    with_it, without = (made(MODELS["foundation"] | change) for change in ({}, {"pair_repulsion": None}))
    graph = batch(with_it)
    assert (predict(with_it, graph).forces - predict(without, graph).forces).abs().max() > 0.1


@pytest.mark.parametrize("case", ["chebyshev", "soft shift"])  # others are in MODELS
def test_kernels_of_radial_networks_are_the_networks(case):
    potential = tiny_potential("mace", **SMALL | RADIAL[case])
    network = next(s.radial for s in lower(potential, exact=True).stages if isinstance(s, Convolve))
    functions = radial_functions(network, np.dtype("float64"))
    compiled = Compiler("float64")(functions.source)["radial"]
    kinds, *arrays = functions.arrays(np.arange(5))
    found = np.empty((2, network.num_weights))
    for length in (0.5, 1.7, 3.9, 4.0):
        for kind in (0, int(kinds.max())):
            compiled(length, kind, *arrays, *found, 0)
            expected = [row[0] for row in network.evaluate(np.array([length]), kind)]
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_charges_are_felt_and_asked_for():
    potential = made(MODELS["charged"])
    backend, graph = Numba(potential, CPU), batch(potential)
    other = replace(graph, attributes=graph.attributes.flip(0))
    assert (backend(graph, True).forces - backend(other, True).forces).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"attributes=potential\.attributes"):
        backend(replace(graph, attributes=graph.attributes[:, :0]), True)


def errors_of_file(name):
    """For each structure the errors of node energies and forces in float32, of the backend and of eager.

    By luck, of which processors differ, eager may err by little: its error is the largest of four structures, almost
    the same.
    """
    potential = load_potential(FILES / f"{name}.model").astype(torch.float64)
    single = potential.astype(torch.float32)
    backend = Numba(single, CPU)
    structures = json.loads((FILES / "structures.json").read_text())["structures"].values()
    structures = [Atoms(**{key: s[key] for key in ("numbers", "positions", "cell", "pbc")}) for s in structures]
    structures = [atoms for atoms in structures if set(atoms.numbers) <= set(potential.atomic_numbers)]
    largest, errors = 0.0, []
    for atoms in structures:
        graphs = [from_atoms(stretched(atoms, factor), potential.atomic_numbers, potential.cutoff) for factor in NEARLY]
        exact = [predict(potential, graph) for graph in graphs]
        eager = [predict(single, graph) for graph in graphs]
        found = backend(graphs[0], True)
        for name in ("node_energies", "forces"):
            usual = max(largest_error(name, *pair) for pair in zip(eager, exact, strict=True))
            errors.append([largest_error(name, found, exact[0]), usual])
        largest = max(largest, exact[0].forces.abs().max().item())
    assert largest > 0.1
    assert len(structures) >= 6
    return np.array(errors).reshape(-1, 2, 2)


def stretched(atoms, factor):
    return Atoms(atoms.numbers, atoms.positions * factor, cell=atoms.cell * factor, pbc=atoms.pbc)


def largest_error(name, found, expected):
    return (getattr(found, name) - getattr(expected, name)).abs().max().item()


@needs_files
@pytest.mark.parametrize("name", ["density_agnesi_zbl", "legacy_0.3.9_density_zbl"])
def test_files_of_mace_torch_in_single_precision(name):
    """Against eager in float64; kernels of float64 are compiled for MODELS."""
    single, eager = errors_of_file(name).transpose(2, 0, 1)
    assert (single < np.maximum((1e-6, 2e-5), 4 * eager)).all()


@needs_files
def test_a_file_of_mace_torch_with_nonlinear_interactions():
    """Its random weights make tens of eV in some structures, where rounding is beyond 1e-6 eV in eager too."""
    single, eager = errors_of_file("nonlinear_mh1_like").transpose(2, 0, 1)
    assert (single.max(0) < np.maximum((1e-6, 2e-5), 2 * eager.max(0))).all()
    assert (np.median(single, 0) < np.maximum((1e-6, 2e-5), 2 * np.median(eager, 0))).all()
