"""Atoms to Graph: direction, species, batches, and a clear sentence for structures that have no graph."""

import tracemalloc

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import InputError
from ase.neighborlist import neighbor_list as ase_neighbor_list

from ase_equivariant.graph import concatenate, edges_of, from_atoms
from ase_equivariant.neighbors import VerletList

ATOMIC_NUMBERS = (1, 6, 8, 14, 29)
CUTOFF = 4.0


def structures():
    slab = fcc111("Cu", (2, 2, 2))  # periodic in the plane, no third vector
    left_handed = bulk("Si").copy()
    left_handed.set_cell(left_handed.cell[[1, 0, 2]])
    triclinic = bulk("Si")
    triclinic.set_cell(triclinic.cell @ [[1.0, 0.1, 0.0], [0.0, 0.9, 0.2], [0.0, 0.0, 1.1]], scale_atoms=True)
    lone = Atoms("H")
    return {
        "molecule": molecule("CH3CH2OH"),
        "slab": slab,
        "left-handed": left_handed,
        "triclinic": triclinic,
        "one atom": lone,
        "no atoms": Atoms(),
        "tiny cell": Atoms("Cu", cell=1.3 * np.eye(3), pbc=True),
    }


@pytest.mark.parametrize("name", structures())
def test_vectors_are_those_of_ase(name):
    atoms = structures()[name]
    graph = from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF)
    i, j, shifts, vectors = ase_neighbor_list("ijSD", atoms, CUTOFF)
    order = np.lexsort((*shifts.T[::-1], i, j))
    np.testing.assert_array_equal(graph.senders, i[order])
    np.testing.assert_array_equal(graph.receivers, j[order])
    np.testing.assert_allclose(graph.vectors(), vectors[order], atol=1e-12)
    assert {graph.positions.dtype, graph.cell.dtype, graph.shifts.dtype, graph.vectors().dtype} == {torch.float64}
    integers = (graph.senders, graph.receivers, graph.species, graph.batch, graph.heads)
    assert {tensor.dtype for tensor in integers} == {torch.int64}


def test_species_index_the_elements_of_the_model():
    graph = from_atoms(Atoms("SiOCuHC", 3.0 * np.arange(15).reshape(5, 3)), ATOMIC_NUMBERS, CUTOFF, head=2)
    assert graph.species.tolist() == [3, 2, 4, 0, 1]
    assert graph.heads.tolist() == [2]


def test_a_batch_holds_each_structure_unchanged():
    graphs = [from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF, head=k) for k, atoms in enumerate(structures().values())]
    batch = concatenate(graphs)
    assert (batch.n_graphs, batch.n_nodes) == (len(graphs), sum(graph.n_nodes for graph in graphs))
    assert batch.heads.tolist() == list(range(len(graphs)))
    for k, graph in enumerate(graphs):
        nodes = torch.nonzero(batch.batch == k)[:, 0]
        edges = batch.batch[batch.receivers] == k
        assert torch.equal(batch.positions[nodes], graph.positions)
        assert torch.equal(batch.species[nodes], graph.species)
        assert torch.equal(batch.senders[edges], nodes[graph.senders])
        assert torch.equal(batch.receivers[edges], nodes[graph.receivers])
        torch.testing.assert_close(batch.vectors()[edges], graph.vectors(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_positions_may_have_any_real_dtype(dtype):
    exact, other = molecule("CH3CH2OH"), molecule("CH3CH2OH")
    other.arrays["positions"] = (2 * exact.positions).astype(dtype)
    exact.positions = other.arrays["positions"]
    graph = from_atoms(other, ATOMIC_NUMBERS, CUTOFF)
    assert graph.n_edges == edges_of(other, CUTOFF) > 0
    assert graph.positions.dtype == torch.float64
    torch.testing.assert_close(graph.vectors(), from_atoms(exact, ATOMIC_NUMBERS, CUTOFF).vectors(), rtol=0, atol=0)
    assert other.positions.dtype == dtype


def test_the_users_atoms_are_neither_modified_nor_aliased():
    atoms = structures()["triclinic"]
    atoms.info["charge"] = 1
    before = atoms.copy()
    graph = from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF, VerletList(CUTOFF))
    assert atoms == before
    assert atoms.info == before.info
    assert atoms.arrays.keys() == before.arrays.keys()
    positions, cell = graph.positions.clone(), graph.cell.clone()
    atoms.positions += 1.0
    atoms.cell[:] *= 2.0
    assert torch.equal(graph.positions, positions)
    assert torch.equal(graph.cell, cell)


def test_a_verlet_list_is_reused_over_steps_and_changes_of_species():
    atoms = bulk("Si", cubic=True) * 2
    neighbors = VerletList(CUTOFF)
    rng = np.random.default_rng(0)
    for step in range(10):
        atoms.positions += rng.normal(scale=0.01, size=(len(atoms), 3))
        atoms.set_cell(atoms.cell * 1.001, scale_atoms=True)
        atoms.numbers[step] = 6
        reused, fresh = (from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF, which) for which in (neighbors, None))
        assert torch.equal(reused.species, fresh.species)
        assert torch.equal(reused.senders, fresh.senders)
        assert torch.equal(reused.vectors(), fresh.vectors())
    assert neighbors.n_rebuilds == 1


def test_a_list_with_another_cutoff_is_refused():
    with pytest.raises(ValueError, match=r"has cutoff 5.0 Å and the graph needs 4.0 Å"):
        from_atoms(Atoms("H"), ATOMIC_NUMBERS, CUTOFF, VerletList(5.0))


def test_unknown_elements_are_named_with_their_atoms_and_the_models_elements():
    atoms = Atoms("SiS12Au", 3.0 * np.arange(42).reshape(14, 3))
    with pytest.raises(InputError) as caught:
        from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF)
    assert str(caught.value) == (
        "The model does not know S (Z=16, atoms 1, 2, 3, 4, 5, 6, 7, 8 and 4 more), Au (Z=79, atoms 13); "
        "its elements are H, C, O, Si, Cu."
    )


@pytest.mark.parametrize("number", [-500, -1, 0, 130, 2 * 10**8])
def test_atomic_numbers_outside_the_periodic_table_are_unknown_elements(number):
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"X \(Z={number}, atoms 1\); its elements are H, C, O, Si, Cu"):
        from_atoms(Atoms([1, number], positions=[[0, 0, 0], [0, 0, 1]]), ATOMIC_NUMBERS, CUTOFF)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e15])
def test_positions_and_cells_that_are_not_finite_are_refused(value):
    atoms = bulk("Si") * 2
    atoms.positions[[3, 5], 1] = value
    with pytest.raises(InputError, match=r"Positions must be finite numbers .* atoms 3, 5 are not"):
        from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF, VerletList(CUTOFF))
    atoms = bulk("Si")
    atoms.cell[2, 0] = value
    with pytest.raises(InputError, match="The cell must hold finite numbers"):
        from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF, VerletList(CUTOFF))


@pytest.mark.parametrize("neighbors", [None, VerletList(CUTOFF)])
def test_two_atoms_at_one_place_are_refused(neighbors):
    atoms = bulk("Si") * 2
    from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF, neighbors)
    atoms.positions[4] = atoms.positions[9] + atoms.cell[0]
    with pytest.raises(InputError, match=r"Atoms 4 and 9 \(its periodic image .*\) are at one place"):
        from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF, neighbors)


@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        (np.zeros((3, 3)), True, r"pbc is \[True, True, True\] but there is no cell vector a, b, c; set it"),
        ([4, 4, 0], [True, False, True], r"there is no cell vector c;"),
        ([[4, 0, 0], [0, 4, 0], [4, 4, 0]], True, r"The periodic cell vectors .* are linearly dependent"),
        ([[4, 0, 0], [-4, 1e-7, 0], [0, 0, 4]], [True, True, False], "linearly dependent"),
    ],
)
def test_cells_that_do_not_span_the_periodic_directions_are_refused(cell, pbc, message):
    with pytest.raises(InputError, match=message):
        from_atoms(Atoms("H", cell=cell, pbc=pbc), ATOMIC_NUMBERS, CUTOFF)


@pytest.mark.parametrize("pbc", [True, [True, True, False]])
def test_a_cell_so_small_that_its_list_would_fill_the_memory_is_refused(pbc):
    atoms = Atoms("H", cell=0.02 * np.eye(3), pbc=pbc)
    with pytest.raises(InputError, match=r"vectors .* are so short that each atom meets about .* of its own images"):
        from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF)
    atoms.set_cell(0.5 * np.eye(3))
    assert from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF).n_edges > 100


def test_the_same_vectors_are_fine_where_they_are_not_periodic():
    atoms = Atoms("H", cell=[[4, 0, 0], [0, 3, 0], [4, 4, 0]], pbc=[True, True, False])
    assert from_atoms(atoms, ATOMIC_NUMBERS, CUTOFF).n_edges == 2
