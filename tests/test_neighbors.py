"""Neighbour lists: equal to ASE's own for any cell, and a Verlet list equal to a fresh one at every step.

Those of a device are searched on the CPU here; test_cuda_calculator.py has runs with lists on a GPU.
"""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbor_list

from ase_equivariant import device_list
from ase_equivariant.device_list import DeviceList
from ase_equivariant.neighbors import CoincidentAtomsError, VerletList, neighbor_list

PBC_MASKS = list(itertools.product([False, True], repeat=3))
PERIODIC = np.array([True, True, True])
MOLECULE = np.array([False, False, False])


def random_cell(rng, smallest=0.8, largest=6.0):
    """Any orientation and handedness, triclinic, edges from much below to above the cutoff."""
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    shear = np.eye(3) + np.tril(rng.uniform(-0.6, 0.6, (3, 3)), k=-1)
    return np.exp(rng.uniform(np.log(smallest), np.log(largest), 3))[:, None] * shear @ rotation


def random_structure(rng, pbc):
    """Up to six atoms inside and outside the cell, some far from the origin, some without the unused cell vectors."""
    cell = random_cell(rng)
    positions = rng.uniform(-1.5, 2.5, (rng.integers(1, 7), 3)) @ cell + rng.choice([0.0, 1e3]) * rng.normal(size=3)
    cell[~pbc] *= rng.integers(0, 2)
    return positions, cell


def canonical(senders, receivers, shifts):
    order = np.lexsort((*shifts.T[::-1], senders, receivers))
    return senders[order], receivers[order], shifts[order]


def assert_same_edges(found, expected):
    for one, other, dtype in zip(found, expected, (np.int64, np.int64, np.float64), strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("pbc", PBC_MASKS)
def test_random_structures_have_the_edges_of_ase_in_canonical_order(pbc):
    pbc = np.array(pbc)
    rng = np.random.default_rng(int(pbc @ [1, 2, 4]))
    n_edges = 0
    for _ in range(280):
        positions, cell = random_structure(rng, pbc)
        cutoff = rng.uniform(0.8, 2.4)
        expected = ase_neighbor_list("ijS", Atoms(f"H{len(positions)}", positions, cell=cell, pbc=pbc), cutoff)
        assert_same_edges(neighbor_list(positions, cell, pbc, cutoff), canonical(*expected))
        n_edges += len(expected[0])
    assert n_edges > 100


def test_vectors_point_from_sender_to_receiver():
    positions = np.array([[0.2, 0.0, 0.0], [3.9, 0.0, 0.0]])
    senders, receivers, shifts = neighbor_list(positions, np.diag([4.0, 9.0, 9.0]), PERIODIC, 1.0)
    assert senders.tolist() == [1, 0]
    assert receivers.tolist() == [0, 1]
    assert shifts.tolist() == [[1, 0, 0], [-1, 0, 0]]  # 0.2 - 3.9 + 4 = 0.3: from atom 1 up to the image of atom 0


@pytest.mark.parametrize(("cutoff", "n_edges"), [(2.0, 26), (2.0 + 1e-9, 32)])
def test_atoms_exactly_at_the_cutoff_are_not_neighbours(cutoff, n_edges):
    assert len(neighbor_list(np.zeros((1, 3)), np.eye(3), PERIODIC, cutoff)[0]) == n_edges


def test_an_atom_alone_in_a_cell_far_smaller_than_the_cutoff_sees_its_images():
    cell = 0.4 * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    grid = np.array(list(itertools.product(range(-12, 13), repeat=3)))
    lengths = np.linalg.norm(grid @ cell, axis=1)
    senders, receivers, shifts = neighbor_list(np.array([[9.0, -7.0, 3.0]]), cell, PERIODIC, 2.05)
    np.testing.assert_array_equal(shifts, grid[(lengths < 2.05) & (lengths > 0)])
    assert not senders.any()
    assert not receivers.any()


@pytest.mark.parametrize("positions", [np.zeros((0, 3)), np.zeros((1, 3)), np.array([[0, 0, 0], [0, 0, 5.0]])])
@pytest.mark.parametrize(("cell", "pbc"), [(np.zeros((3, 3)), MOLECULE), (10.0 * np.eye(3), PERIODIC)])
def test_structures_without_neighbours_have_no_edges(positions, cell, pbc):
    none = neighbor_list(positions, cell, pbc, 4.9)
    assert [array.shape for array in none] == [(0,), (0,), (0, 3)]
    assert_same_edges(none, VerletList(4.9).update(positions, cell, pbc))


def test_a_pair_just_within_the_cutoff_has_two_edges():
    assert len(neighbor_list(np.array([[0, 0, 0], [0, 0, 5.0]]), np.zeros((3, 3)), MOLECULE, 5.1)[0]) == 2


@pytest.mark.parametrize("far", [1.5e3, 1e5, 1e8])
@pytest.mark.parametrize("flat", [[1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
def test_fragments_any_distance_apart_keep_their_edges(far, flat):
    pair = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    positions = np.concatenate((pair, pair + far * np.array(flat)))
    for edge in (0.0, 150.0):  # of a cell that is not periodic
        assert neighbor_list(positions, edge * np.eye(3), MOLECULE, 5.0)[0].tolist() == [1, 0, 3, 2]
    chain = np.diag([0.0, 0.0, 8.0]), np.array([False, False, True])
    assert neighbor_list(positions % [np.inf, np.inf, 8.0], *chain, 5.0)[0].tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("flat", [[0, 1, 1], [1, 0, 1], [1, 1, 0]])
def test_flat_and_huge_periodic_cells_are_searched(flat):
    cell = np.diag(4e3 * np.array(flat) + 6.0)
    positions = np.array([[0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]) + cell.diagonal() * [[0, 0, 0], [1, 1, 1]]
    senders, _, shifts = neighbor_list(positions, cell, PERIODIC, 5.0)
    assert senders.tolist() == [1, 0]
    assert shifts.tolist() == [[1, 1, 1], [-1, -1, -1]]


def test_vectors_of_directions_that_are_not_periodic_play_no_role():
    rng = np.random.default_rng(0)
    pbc = np.array([True, False, True])
    cell, positions = random_cell(rng, smallest=2.0), rng.uniform(0, 5, (6, 3))
    other = cell.copy()
    other[1] = other[0]
    assert_same_edges(neighbor_list(positions, other, pbc, 4.0), neighbor_list(positions, cell, pbc, 4.0))


@pytest.mark.parametrize("gap", [0.0, 1e-4])
def test_two_atoms_at_one_place_are_named(gap):
    positions = np.array([[0, 0, 0], [2.0, 0, 0], [2.0, gap, 0]])
    with pytest.raises(CoincidentAtomsError, match=r"Atoms 1 and 2 are at one place \(distance"):
        neighbor_list(positions, np.zeros((3, 3)), MOLECULE, 3.0)


def test_an_atom_at_the_place_of_an_image_is_named_with_the_image():
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    with pytest.raises(
        CoincidentAtomsError, match=r"Atoms 0 and 1 \(its periodic image \[0, 0, -1\]\) are at one place"
    ):
        neighbor_list(positions, 4.0 * np.eye(3), PERIODIC, 3.0)


@pytest.mark.parametrize(("cutoff", "skin"), [(0.0, 0.5), (-1.0, 0.5), (np.nan, 0.5), (5.0, -0.1)])
def test_a_cutoff_that_is_not_positive_or_a_negative_skin_is_refused(cutoff, skin):
    with pytest.raises(ValueError, match="the cutoff must be positive and the skin not negative"):
        VerletList(cutoff, skin)


# -- Verlet list ------------------------------------------------------------------------------------------------------


def jiggle(rng, positions, cell, pbc):
    return positions + rng.normal(scale=0.03, size=positions.shape), cell, pbc


def strain(rng, positions, cell, pbc):
    deformation = np.eye(3) + rng.uniform(-0.01, 0.01, (3, 3))
    return positions @ deformation, cell @ deformation, pbc


def change_cell_only(rng, positions, cell, pbc):
    return positions, cell @ (np.eye(3) + rng.uniform(-0.005, 0.005, (3, 3))), pbc


def drift(rng, positions, cell, pbc):
    return positions + rng.normal(size=3), cell, pbc


def swap(rng, positions, cell, pbc):
    return rng.permutation(positions), cell, pbc


def wrap(rng, positions, cell, pbc):
    lattice = np.where(pbc[:, None], cell, 0.0)
    return positions + rng.integers(-2, 3, positions.shape) @ lattice, cell, pbc


def add_atom(rng, positions, cell, pbc):
    return np.concatenate((positions, positions[:1] + rng.uniform(0.5, 1.0, 3))), cell, pbc


def remove_atom(rng, positions, cell, pbc):
    return np.delete(positions, rng.integers(len(positions)), axis=0), cell, pbc


def flip_pbc(rng, positions, cell, pbc):
    return positions, cell, pbc ^ (np.arange(3) == rng.integers(3))


def edges_within(verlet, positions, cell, pbc):
    """What a backend makes of a list: its edges that are shorter than the cutoff; and how many are longer.

    The list has each edge in both directions, which backends rely on.
    """
    senders, receivers, shifts = (tensor.numpy() for tensor in verlet.update(positions, cell, pbc))
    assert_same_edges((senders, receivers, shifts), canonical(receivers, senders, 0.0 - shifts))
    vectors = positions[receivers] - positions[senders] + (shifts[:, :, None] * cell).sum(axis=1)
    near = np.square(vectors).sum(axis=1) < verlet.cutoff**2
    return (senders[near], receivers[near], shifts[near]), (~near).sum()


def device_verlet(cutoff, skin=0.5):
    return DeviceList(cutoff, torch.device("cpu"), skin)


KINDS = {  # of lists: how they are made, and their edges within the cutoff
    "CPU": (VerletList, VerletList.update),
    "device": (device_verlet, lambda *structure: edges_within(*structure)[0]),
}


@pytest.mark.parametrize("pbc", PBC_MASKS)
@pytest.mark.parametrize(("make", "edges"), KINDS.values(), ids=KINDS)
def test_verlet_list_equals_a_fresh_list_at_every_step_of_a_walk(make, edges, pbc):
    pbc = np.array(pbc)
    rng = np.random.default_rng(int(pbc @ [1, 2, 4]))
    cell, positions = random_cell(rng, smallest=3.0), rng.uniform(0, 6, (12, 3))
    events = [swap, wrap, add_atom, remove_atom, flip_pbc]
    steps = [jiggle, strain, jiggle, change_cell_only, jiggle, drift]
    verlet = make(2.5, skin=0.6)
    n_steps = 180
    for step in range(n_steps):
        move = events[step // 9 % 5] if step % 9 == 8 else steps[step % 6]
        positions, cell, pbc = move(rng, positions, cell, pbc)
        assert_same_edges(edges(verlet, positions, cell, pbc), neighbor_list(positions, cell, pbc, 2.5))
    assert n_steps / 20 < verlet.n_rebuilds < n_steps / 2


@pytest.mark.parametrize("shrink", [0.90, 0.97, 1.0, 1.05])
@pytest.mark.parametrize("closer", [0.0, 0.1, 0.2, 0.24, 0.249, 0.26, 0.3, 0.4])
def test_pairs_that_enter_from_within_or_beyond_the_skin_are_not_missed(closer, shrink):
    """Pairs approach head-on while the space between them contracts: the worst case of the bound."""
    cutoff, skin = 3.0, 0.5
    gaps = np.linspace(0.0, 0.7, 36) + 1e-9
    starts = 7.0 * np.arange(36)[:, None] * [0.0, 1.0, 0.0]
    positions = np.concatenate((starts, starts + (cutoff + gaps)[:, None] * [1.0, 0.0, 0.0]))
    towards = closer * np.repeat([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], 36, axis=0)
    cell, deformation = np.diag([20.0, 252.0, 20.0]), np.diag([shrink, 1.0, 1.0])
    for pbc in (MOLECULE, PERIODIC):
        verlet = VerletList(cutoff, skin)
        assert len(verlet.update(positions, cell, pbc)[0]) == 0
        now = positions @ deformation + towards, cell @ deformation, pbc
        assert_same_edges(verlet.update(*now), neighbor_list(*now, cutoff))


def crystal(repeat=3, a=2.5):
    grid = np.array(list(itertools.product(range(repeat), repeat=3)), dtype=float)
    return a * grid, a * repeat * np.eye(3)


REUSED = {
    "small displacements": lambda x, h: (x + 0.1 * np.sin(np.arange(x.size).reshape(x.shape)), h),
    "drift of everything": lambda x, h: (x + 100.0, h),
    "strain": lambda x, h: (x @ (np.eye(3) + 0.03), h @ (np.eye(3) + 0.03)),
    "isotropic expansion": lambda x, h: (1.5 * x, 1.5 * h),
    "small compression": lambda x, h: (0.95 * x, 0.95 * h),
    "rotation by a right angle": lambda x, h: (x[:, [1, 0, 2]], h[:, [1, 0, 2]]),
}
REBUILT = {
    "one far displacement": lambda x, h: (x + 0.6 * np.eye(len(x), 3), h),
    "compression": lambda x, h: (0.8 * x, 0.8 * h),
    "cell without its atoms": lambda x, h: (x, 0.8 * h),
    "one atom fewer": lambda x, h: (x[:-1], h),
    "wrapped atom": lambda x, h: (x + h[0] * np.eye(len(x), 1), h),
}


@pytest.mark.parametrize(
    ("change", "n_rebuilds"),
    [pytest.param(c, 1, id=name) for name, c in REUSED.items()]
    + [pytest.param(c, 2, id=n) for n, c in REBUILT.items()],
)
def test_pairs_are_searched_again_only_when_one_could_be_missed(change, n_rebuilds):
    positions, cell = crystal()
    verlet = VerletList(4.0, skin=0.8)
    verlet.update(positions, cell, PERIODIC)
    now = *change(positions, cell), PERIODIC
    assert_same_edges(verlet.update(*now), neighbor_list(*now, 4.0))
    assert verlet.n_rebuilds == n_rebuilds


def test_pairs_are_searched_again_when_pbc_changes():
    positions, cell = crystal()
    verlet = VerletList(4.0)
    periodic = verlet.update(positions, cell, PERIODIC)
    slab = verlet.update(positions, cell, np.array([True, True, False]))
    assert verlet.n_rebuilds == 2
    assert 0 < len(slab[0]) < len(periodic[0])


def test_atoms_that_meet_between_two_searches_are_refused():
    cell, verlet = np.zeros((3, 3)), VerletList(3.0, skin=2.0)
    positions = np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0], [2.0, 0.0, 0.0]])
    verlet.update(positions, cell, MOLECULE)
    verlet.update(positions + np.array([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), cell, MOLECULE)
    with pytest.raises(CoincidentAtomsError, match="Atoms 0 and 1 are at one place"):
        verlet.update(positions + np.array([[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0], [0.0, 0.0, 0.0]]), cell, MOLECULE)
    assert verlet.n_rebuilds == 1


def test_positions_moved_in_place_are_noticed():
    positions, cell = crystal()
    verlet = VerletList(4.0)
    verlet.update(positions, cell, PERIODIC)
    positions[0] += 1.0
    assert_same_edges(verlet.update(positions, cell, PERIODIC), neighbor_list(positions, cell, PERIODIC, 4.0))
    assert verlet.n_rebuilds == 2


def test_results_that_the_caller_overwrites_do_not_spoil_the_next_step():
    positions, cell = crystal()
    verlet = VerletList(4.0)
    for array in verlet.update(positions, cell, PERIODIC):
        array[:] = -7
    assert_same_edges(verlet.update(positions, cell, PERIODIC), neighbor_list(positions, cell, PERIODIC, 4.0))


@pytest.mark.parametrize(
    ("make", "where", "what"),
    [(VerletList, np, "lexsort"), (device_verlet, device_list, "sorted_by")],
    ids=KINDS,
)
def test_a_search_that_is_interrupted_halfway_leaves_nothing_behind(make, where, what, monkeypatch):
    def interrupted(*keys):
        raise KeyboardInterrupt

    rng = np.random.default_rng(0)
    cell, positions, pbc = 8.0 * np.eye(3), rng.uniform(0, 8, (20, 3)), np.ones(3, dtype=bool)
    verlet = make(2.5, skin=0.6)
    first = [np.asarray(array) for array in verlet.update(positions, cell, pbc)]
    with monkeypatch.context() as patch:
        patch.setattr(where, what, interrupted)
        with pytest.raises(KeyboardInterrupt):
            verlet.update(rng.permutation(positions), cell, pbc)
    assert_same_edges([np.asarray(array) for array in verlet.update(positions, cell, pbc)], first)
    assert verlet.n_rebuilds == 2


# -- lists of a device ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "candidates"), [(4, 64), (device_list.MOST_CELLS, device_list.CANDIDATES)], ids=["in pieces", "at once"]
)
@pytest.mark.parametrize("pbc", PBC_MASKS)
def test_a_device_finds_the_same_edges_in_the_same_order_and_some_beyond_the_cutoff(
    pbc, cells, candidates, monkeypatch
):
    monkeypatch.setattr(device_list, "CANDIDATES", candidates)
    monkeypatch.setattr(device_list, "MOST_CELLS", cells)
    pbc = np.array(pbc)
    rng = np.random.default_rng(int(pbc @ [1, 2, 4]))
    n_edges = n_beyond = 0
    for _ in range(50):
        positions, cell = random_structure(rng, pbc)
        cutoff = rng.uniform(0.8, 2.4)
        found, beyond = edges_within(device_verlet(cutoff, skin=1.0), positions, cell, pbc)
        assert_same_edges(found, neighbor_list(positions, cell, pbc, cutoff))
        n_edges, n_beyond = n_edges + len(found[0]), n_beyond + beyond
    assert n_edges > 10
    assert n_beyond > 5


@pytest.mark.parametrize("pbc", PBC_MASKS)
def test_a_device_finds_the_same_edges_through_many_search_cells(pbc):
    rng = np.random.default_rng(7)
    cell = 3.0 * random_cell(rng, smallest=3.0)
    positions = rng.uniform(-0.2, 1.2, (300, 3)) @ cell
    found, beyond = edges_within(device_verlet(2.0), positions, cell, np.array(pbc))
    assert_same_edges(found, neighbor_list(positions, cell, np.array(pbc), 2.0))
    assert len(found[0]) > 300
    assert beyond > 100


@pytest.mark.parametrize("far", [1.5e3, 1e5, 1e8])
@pytest.mark.parametrize("flat", [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
def test_a_device_finds_fragments_any_distance_apart(far, flat):
    pair = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    positions = np.concatenate((pair, pair + far * np.array(flat)))
    for edge, pbc in itertools.product((0.0, 150.0), (MOLECULE, [False, False, True])):
        cell = edge * np.eye(3)
        cell[2, 2] = 4e3
        verlet = device_verlet(5.0)
        expected = neighbor_list(positions, cell, np.array(pbc), 5.0)
        assert_same_edges(edges_within(verlet, positions, cell, np.array(pbc))[0], expected)
        assert len(expected[0]) == 4


@pytest.mark.parametrize("shrink", [0.9, 0.8, 0.65, 0.55])
def test_a_shortest_pair_at_the_end_of_the_skin_does_not_hide_those_that_enter(shrink):
    """Of a crystal that is compressed, whose first neighbours are exactly at cutoff + skin."""
    verlet, structure = device_verlet(5.0), (np.zeros((1, 3)), 5.5 * np.eye(3), PERIODIC)
    assert len(edges_within(verlet, *structure)[0][0]) == 0
    now = np.zeros((1, 3)), shrink * 5.5 * np.eye(3), PERIODIC
    expected = neighbor_list(*now, 5.0)
    assert len(expected[0]) >= 6
    assert_same_edges(edges_within(verlet, *now)[0], expected)


def test_a_list_of_a_device_is_the_same_tensors_until_the_next_search():
    positions, cell = crystal()
    verlet = device_verlet(4.0, skin=0.8)
    first = verlet.update(positions, cell, PERIODIC)
    again = verlet.update(positions + 0.1 * np.sin(np.arange(81.0).reshape(27, 3)), cell, PERIODIC)
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert verlet.n_rebuilds == 1
    positions[0] += 1.0
    assert verlet.update(positions, cell, PERIODIC)[0] is not first[0]


def test_a_list_of_a_device_refuses_atoms_that_are_or_come_to_one_place():
    cell = np.zeros((3, 3))
    positions = np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0], [2.0, 0.0, 0.0]])
    meeting = positions + np.array([[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    moved = device_verlet(3.0, skin=2.0)
    moved.update(positions, cell, MOLECULE)
    for verlet in (moved, device_verlet(3.0)):
        with pytest.raises(CoincidentAtomsError, match="Atoms 0 and 1 are at one place"):
            verlet.update(meeting, cell, MOLECULE)
        edges_within(verlet, positions, cell, MOLECULE)  # and goes on


@pytest.mark.parametrize("positions", [np.zeros((0, 3)), np.zeros((1, 3)), np.array([[0, 0, 0], [0, 0, 9.0]])])
@pytest.mark.parametrize(("cell", "pbc"), [(np.zeros((3, 3)), MOLECULE), (20.0 * np.eye(3), PERIODIC)])
def test_a_list_of_a_device_may_be_empty(positions, cell, pbc):
    found = device_verlet(4.9).update(positions, cell, pbc)
    assert [tuple(tensor.shape) for tensor in found] == [(0,), (0,), (0, 3)]


def test_a_device_refuses_a_cell_far_too_small():
    with pytest.raises(CoincidentAtomsError, match="so short"):
        device_verlet(5.0).update(np.zeros((1, 3)), 1e-3 * np.eye(3), PERIODIC)
