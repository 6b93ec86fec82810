"""The fast GPU backend: the same numbers as eager, repeatable bit for bit; on a GPU, or in Triton's interpreter.

Kernels run in a process of their own, in which nothing has imported triton before its interpreter is chosen.
"""

import json
import os
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest

if __name__ == "__main__":
    import interpreted
else:
    pytest.importorskip("triton")

import numpy as np
import torch
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, InputError
from graphs import assert_eager_to_the_last_digits, batch, same_bits
from structures import copper, rattled
from tiny import tiny_potential, unused_irreps

from ase_equivariant import EquivariantCalculator, device_list
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import from_atoms

SMALL = {"num_bessel": 4, "radial_mlp": (4,), "l_max": 1}
MACE = {**SMALL, "hidden_irreps": "2x0e+2x1o", "correlation": 2}
RADII = tuple(np.linspace(0.5, 1.5, 118))
CONFIGS = {
    "mace": {**MACE, "bessel_decay": 1.0, "bessel_norm": "unit"},
    "nequip": {
        **SMALL,
        "hidden_irreps": "3x0e+2x1o+2x1e+2x0o",
        "num_interactions": 6,  # as many as odd scalars need
        "normalisation": "rms",
        "resnet": True,
        "species_neighbors": (3.0, 5.0, 2.0, 7.0, 9.0),
    },
    "botnet": {
        **SMALL,
        "hidden_irreps": "3x0e+2x1o",
        "num_interactions": 2,
        "radial": "element",
        "skip": "shared",
        "readout_mlp": 3,
        "bessel_decay": 1.0,
    },
}
REPULSION = {"radii": (0.6, 1.2, 1.1, 1.6, 1.9)}
UNIVERSAL = {
    "interaction_first": "density_residual",
    "interaction": "nonlinear",
    "radial_mlp": (4, 5),
    "apply_cutoff": False,
    "radial_basis": "gaussian",
    "readout": "bias_mlp",
    "readout_mlp": 4,
    "pair_repulsion": REPULSION | {"scaled": True},
    "attributes": (("charge", -1, 2, 0), ("spin", 0, 3, 1)),
    "embedding_readout": True,
}


def backend(potential, dtype=torch.float64):
    from ase_equivariant.inference.triton import Triton

    return Triton(potential.astype(dtype).to(interpreted.DEVICE), interpreted.DEVICE)


def small(atoms, potential, cutoff=None):
    return from_atoms(atoms, potential.atomic_numbers, cutoff or potential.cutoff, attributes=potential.attributes)


def mace_is_eager_to_the_last_digits():
    architecture_is_eager("mace")


def nequip_is_eager_to_the_last_digits():
    architecture_is_eager("nequip")


def botnet_is_eager_to_the_last_digits():
    architecture_is_eager("botnet")


def architecture_is_eager(name):
    potential = tiny_potential(name, heads=("first", "second"), **CONFIGS[name])
    assert_eager_to_the_last_digits(backend(potential), potential)


def settings_of_published_models_are_eager_to_the_last_digits():
    potential = tiny_potential("mace", heads=("first", "second"), **MACE | UNIVERSAL)
    assert_eager_to_the_last_digits(backend(potential), potential)


def float32_is_near_eager_in_float64():
    # with "residual", what an atom's species says is added to the scalars of a value that has vectors too
    potential = tiny_potential("mace", **MACE | {"interaction_first": "residual"})
    graph = batch(potential)
    found, expected = backend(potential, torch.float32)(graph, True), predict(potential, graph)
    assert (found.node_energies - expected.node_energies).abs().max() < 1e-6
    assert (found.forces - expected.forces).abs().max() < 5e-6 * expected.forces.abs().max()
    assert found.energy.dtype == found.forces.dtype == torch.float64


def results_are_repeatable_whatever_ran_in_between():
    potential = tiny_potential("mace", **MACE)
    fast = backend(potential, torch.float32)
    graphs = [small(copper(), potential), small(molecule("CH3OH"), potential)]
    first = [fast(graph, True) for graph in graphs]
    alone = fast(graphs[0], False)
    assert alone.forces is None
    assert alone.node_energies.equal(first[0].node_energies)
    assert all(same_bits(fast(graph, True), found) for graph, found in zip(graphs, first, strict=True))
    assert len(fast._recorded) == 2
    fast(small(copper(), potential, 2 * potential.cutoff), True)  # needs more room, and takes the place of the first
    assert len(fast._recorded) == 2
    fast.forget()
    assert not fast._recorded


def forces_are_minus_the_gradient_also_of_a_spline():
    potential = tiny_potential("mace", **MACE)
    fast, atoms, step = backend(potential, torch.float32), copper(), 0.01

    def energy(shift):
        moved = atoms.copy()
        moved.positions[0, 0] += shift
        return fast(small(moved, potential), False).energy.item()

    found = fast(small(atoms, potential), True).forces[0, 0].item()
    differences = [(energy(-h) - energy(h)) / (2 * h) for h in (step, 2 * step)]
    assert found == pytest.approx((4 * differences[0] - differences[1]) / 3, abs=2e-3)
    assert abs(found) > 0.05


def edges_beyond_the_cutoff_change_no_bit():
    potential = tiny_potential("mace", **MACE | {"pair_repulsion": {"radii": (2.6,) * 5}, "apply_cutoff": False})
    atoms = copper()
    graph, wider = small(atoms, potential), small(atoms, potential, potential.cutoff + 0.7)
    assert wider.n_edges > graph.n_edges
    for dtype in (torch.float64, torch.float32):
        fast = backend(potential, dtype)
        assert fast.keeps_edges
        found, expected = fast(wider, True), fast(graph, True)
        for name in ("node_energies", "forces", "strain_gradient"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    moved = replace(wider, positions=wider.positions * 0.9, cell=wider.cell * 0.9)  # some come nearer
    found, expected = fast(moved, True), fast(small(atoms_of(moved), potential), True)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-4)


def steps_whose_neighbours_stay_on_the_device_are_those_of_eager():
    potential = tiny_potential("mace", **MACE)
    fast, eager = (EquivariantCalculator(potential, dtype="float64", backend=name) for name in ("triton", "eager"))
    random = np.random.default_rng(0)
    for atoms in (copper(), molecule("CH3OH")):
        for _ in range(5):
            atoms.positions += random.normal(scale=0.08, size=atoms.positions.shape)
            np.testing.assert_allclose(fast.get_forces(atoms), eager.get_forces(atoms), rtol=0, atol=1e-11)
    assert fast.parameters["backend"] == "triton"
    assert 2 < fast._neighbors[True].n_rebuilds < 9


def an_estimate_measures_steps_with_the_neighbours_that_stay_on_the_device():
    fast, atoms, sizes = EquivariantCalculator(tiny_potential("mace", **MACE), backend="triton"), copper(), []
    fast.warm_up(atoms)
    predict_ = fast._predict
    fast._predict = lambda graph, forces: sizes.append(graph.n_edges) or predict_(graph, forces)
    found = fast.estimate(atoms)
    assert found.edges == from_atoms(atoms, fast.potential.atomic_numbers, fast.potential.cutoff).n_edges
    assert sizes[-1] > found.edges


def what_the_search_on_the_device_meets_is_said():
    fast, atoms = EquivariantCalculator(tiny_potential("mace", **MACE), backend="triton"), copper()
    fast.warm_up(atoms)
    expected, meeting = fast.get_forces(atoms), atoms.copy()
    meeting.positions[2] = meeting.positions[0]
    with pytest.raises(InputError, match="Atoms 0 and 2 are at one place"):
        fast.get_forces(meeting)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_list, "sorted_by", out_of_memory)
        with pytest.raises(CalculationFailed, match=f"with {len(atoms)} atoms; use"):
            fast.get_forces(rattled(atoms, 0.5))
    fast.reset()
    np.testing.assert_array_equal(fast.get_forces(copper()), expected)


def out_of_memory(*rows):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def atoms_of(graph):
    atoms = copper()
    atoms.cell, atoms.positions = graph.cell[0].numpy(), graph.positions.numpy()
    return atoms


def a_lone_atom_and_no_atoms_have_results():
    potential = tiny_potential("mace", **MACE)
    fast = backend(potential)
    for atoms in (molecule("CH4")[:1], molecule("CH4")[:0]):
        found, expected = fast(small(atoms, potential), True), predict(potential, small(atoms, potential))
        torch.testing.assert_close(found.energy, expected.energy)
        assert found.forces.shape == (len(atoms), 3)
        assert not found.forces.any()


def what_cannot_be_served_is_refused():
    from ase_equivariant.inference import triton

    potential = tiny_potential("mace", **MACE | {"interaction": "attention_residual"})
    with pytest.raises(CalculatorSetupError, match="interaction = 'attention_residual'"):
        backend(potential)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "is_interpreted", lambda: False)
        with pytest.raises(CalculatorSetupError, match="not on cpu"):
            triton.Triton(tiny_potential("mace", **MACE), torch.device("cpu"))


CHECKS = {
    f.__name__: f
    for f in (
        mace_is_eager_to_the_last_digits,
        nequip_is_eager_to_the_last_digits,
        botnet_is_eager_to_the_last_digits,
        settings_of_published_models_are_eager_to_the_last_digits,
        float32_is_near_eager_in_float64,
        results_are_repeatable_whatever_ran_in_between,
        forces_are_minus_the_gradient_also_of_a_spline,
        edges_beyond_the_cutoff_change_no_bit,
        steps_whose_neighbours_stay_on_the_device_are_those_of_eager,
        an_estimate_measures_steps_with_the_neighbours_that_stay_on_the_device,
        what_the_search_on_the_device_meets_is_said,
        a_lone_atom_and_no_atoms_have_results,
        what_cannot_be_served_is_refused,
    )
}


@pytest.fixture(scope="module")
def failures():
    """What each check failed with, in a process that ran them all."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_triton(check, failures):
    assert not failures[check], failures[check]


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_carry_every_irrep_of_the_configs(name):
    assert unused_irreps(name, CONFIGS[name] | {"num_species": 5}) == []


def failure_of(check):
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    wanted = sys.argv[1:] or CHECKS
    print(json.dumps({name: failure_of(CHECKS[name]) for name in wanted}))
