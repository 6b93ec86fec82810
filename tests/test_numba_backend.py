"""The fast CPU backend: the same numbers as eager, repeatable bit for bit, and honest where it cannot serve."""

import multiprocessing
import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculatorSetupError, InputError
from graphs import assert_eager_to_the_last_digits, batch, big, same_bits
from structures import copper
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, inference, load_potential
from ase_equivariant.derivatives import Prediction, predict
from ase_equivariant.graph import from_atoms
from ase_equivariant.inference.checked import Checked, piece
from ase_equivariant.inference.estimate import memory_on_cpu
from ase_equivariant.inference.numba import Numba
from ase_equivariant.inference.numba.lanes import COUNT
from ase_equivariant.nn import threads

CPU = torch.device("cpu")
SMALL = {"num_bessel": 4, "bessel_decay": 0.5, "radial_mlp": (4,), "l_max": 1}  # kernels that compile in seconds
CONFIGS = {
    "mace": {**SMALL, "hidden_irreps": "2x0e+2x1o", "correlation": 2},
    "nequip": {
        **SMALL,
        "hidden_irreps": "3x0e+2x1o",
        "num_interactions": 2,
        "normalisation": "rms",
        "resnet": True,
        "species_neighbors": (3.0, 5.0, 2.0, 7.0, 9.0),
    },
    "botnet": {**SMALL, "hidden_irreps": "3x0e+2x1o", "num_interactions": 2, "radial": "element"},
}


@pytest.fixture(scope="module")
def potential(architecture):
    return tiny_potential(architecture, heads=("first", "second"), **CONFIGS[architecture])


@pytest.fixture(scope="module")
def mace():
    return tiny_potential("mace", **CONFIGS["mace"])


@pytest.fixture(scope="module")
def fast(mace):
    return Numba(mace, CPU)


def checked_against_eager(backend, potential):
    exact = potential.astype(torch.float64)
    return Checked(
        "numba",
        backend,
        inference.start("eager", potential, CPU),
        lambda: inference.start("eager", exact, CPU),
        potential.dtype,
    )


def test_float64_is_eager_to_the_last_digits(potential):
    assert_eager_to_the_last_digits(Numba(potential, CPU), potential)


GAUSSIAN = {"radial_basis": "gaussian", "bessel_norm": "paper", "bessel_decay": 0.0}


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("mace", {"skip": "shared", "bessel_norm": "unit"}),
        ("nequip", {"interaction": "nonresidual", **GAUSSIAN}),
        ("botnet", {"interaction": "nonresidual", "skip": "shared", **GAUSSIAN}),
    ],
)
def test_skips_may_be_shared_later_layers_nonresidual_and_radial_bases_others(architecture, settings):
    potential = tiny_potential(architecture, heads=("first", "second"), **CONFIGS[architecture] | settings)
    assert_eager_to_the_last_digits(Numba(potential, CPU), potential)


def test_linear_maps_may_hold_the_first_layer_of_a_readout():
    settings = CONFIGS["mace"] | {"hidden_irreps": "4x0e+4x1o", "readout_mlp": 1}
    potential = tiny_potential("mace", heads=("first", "second"), **settings)
    assert_eager_to_the_last_digits(Numba(potential, CPU), potential)


def test_narrower_registers_serve_as_well(mace, monkeypatch):
    monkeypatch.setitem(COUNT, "float64", 1)
    assert_eager_to_the_last_digits(Numba(mace, CPU), mace)


def test_float32_is_near_eager_in_float64(mace):
    graph = big(mace)
    found, expected = Numba(mace.astype(torch.float32), CPU)(graph, True), predict(mace, graph)
    assert (found.energy - expected.energy).abs() / graph.n_nodes < 1e-6
    assert (found.forces - expected.forces).abs().max() < 5e-6 * expected.forces.abs().max()
    assert found.energy.dtype == found.forces.dtype == torch.float64


def test_energies_alone_are_those_that_come_with_forces(mace, fast):
    graph = batch(mace)
    alone = fast(graph, False)
    assert alone.forces is None
    assert alone.node_energies.equal(fast(graph, True).node_energies)


def test_results_do_not_depend_on_the_number_of_threads(mace, fast, monkeypatch):
    graph = big(mace)
    once = fast(graph, True)
    for number in (2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        assert same_bits(fast(graph, True), once)


@pytest.fixture
def many_cpus(monkeypatch):
    """A machine of 48 CPUs, all of which torch uses."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 48)
        patch.setattr(torch, "get_num_threads", lambda: 48)
        threads._renew_pool()
        yield 48
    threads._renew_pool()


def test_all_threads_that_torch_uses_work_at_the_same_time(many_cpus):
    meeting = threading.Barrier(many_cpus)
    threads.run_blocks(lambda a, b: meeting.wait(5), [(i, i + 1) for i in range(many_cpus)])
    threads.run_rows(lambda a, b: meeting.wait(5), 1000)
    assert not meeting.broken


def test_two_threads_may_share_a_backend(mace, fast):
    graphs = [big(mace), batch(mace)] * 4
    expected = [fast(graph, True) for graph in graphs]
    with ThreadPoolExecutor(2) as pool:
        assert all(map(same_bits, pool.map(lambda graph: fast(graph, True), graphs), expected))


def test_a_forked_process_computes_the_same(mace, fast):
    graph = big(mace)
    expected = fast(graph, True)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if same_bits(fast(graph, True), expected) else 1)
        finally:  # whatever happens, it is no second test process
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_forces_are_minus_the_gradient_also_of_a_spline(mace):
    backend = Numba(mace.astype(torch.float32), CPU)
    atoms, step = copper(), 0.01

    def energy(shift):
        moved = atoms.copy()
        moved.positions[0, 0] += shift
        return backend(from_atoms(moved, mace.atomic_numbers, mace.cutoff), False).energy.item()

    found = backend(from_atoms(atoms, mace.atomic_numbers, mace.cutoff), True).forces[0, 0].item()
    differences = [(energy(-h) - energy(h)) / (2 * h) for h in (step, 2 * step)]
    extrapolated = (4 * differences[0] - differences[1]) / 3
    assert found == pytest.approx(extrapolated, abs=2e-3)
    assert abs(found) > 0.05


def test_a_lone_atom_and_no_atoms_have_results(mace, fast):
    for atoms in (molecule("CH4")[:1], molecule("CH4")[:0]):
        graph = from_atoms(atoms, mace.atomic_numbers, mace.cutoff)
        found, expected = fast(graph, True), predict(mace, graph)
        torch.testing.assert_close(found.energy, expected.energy)
        assert not found.forces.any()


def test_a_calculator_takes_it_when_asked_and_by_default(mace, monkeypatch):
    atoms = copper()
    atoms.calc = EquivariantCalculator(mace, device="cpu", dtype="float64", backend="numba")
    reference = EquivariantCalculator(mace, device="cpu", dtype="float64", backend="eager")
    np.testing.assert_allclose(atoms.get_forces(), reference.get_forces(atoms), atol=1e-10)
    np.testing.assert_allclose(atoms.get_stress(), reference.get_stress(atoms), atol=1e-10)
    forces = atoms.get_forces()
    atoms.calc.reset()
    with torch.device("meta"):  # where no tensor holds anything
        assert (atoms.get_forces() == forces).all()
    monkeypatch.setitem(inference.FASTEST_FIRST, "cpu", ("numba", "eager"))
    assert EquivariantCalculator(mace, device="cpu").parameters["backend"] == "numba"


def test_a_model_that_cannot_be_lowered_runs_on_another_backend(monkeypatch):
    potential = tiny_potential("mace", **CONFIGS["mace"] | {"interaction": "attention_residual"})
    with pytest.raises(CalculatorSetupError, match="interaction = 'attention_residual'"):
        EquivariantCalculator(potential, device="cpu", backend="numba")
    monkeypatch.setitem(inference.FASTEST_FIRST, "cpu", ("numba", "eager"))
    with pytest.warns(UserWarning, match="attention_residual.*another backend"):
        assert EquivariantCalculator(potential, device="cpu").parameters["backend"] == "eager"


def test_a_backend_that_is_wrong_on_the_first_structure_steps_aside_with_one_warning(mace):
    graph = batch(mace)

    def wrong(graph, forces):
        prediction = predict(mace, graph, forces)
        return replace(prediction, forces=prediction.forces + 0.01)

    checked = checked_against_eager(wrong, mace)
    with pytest.warns(UserWarning, match=r"eV/Å; the reference backend is used instead"):
        first = checked(graph, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(checked(graph, True), first)
    assert same_bits(first, predict(mace, graph))
    assert checked.name == "eager"


def test_the_first_of_two_threads_that_choose_at_once_decides_for_both(mace):
    graph, inside, go = batch(mace), threading.Event(), threading.Event()

    def late(graph, forces):
        inside.set()
        go.wait(20)
        return predict(mace, graph, forces)

    def wrong(graph, forces):
        prediction = predict(mace, graph, forces)
        return replace(prediction, forces=prediction.forces + 0.01)

    checked = checked_against_eager(late, mace)
    with ThreadPoolExecutor(1) as pool:
        right = pool.submit(checked, graph, True)
        assert inside.wait(20)
        checked.fast = wrong
        with pytest.warns(UserWarning, match="the reference backend is used instead"):
            checked(graph, True)
        go.set()
        assert same_bits(right.result(), predict(mace, graph))
    assert (checked.name, checked._chosen) == ("eager", checked.reference)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_process_forked_while_another_thread_chooses_does_not_wait_for_it():
    graph, inside, go = from_atoms(molecule("C2H2"), (1, 6), 3.0), threading.Event(), threading.Event()
    answer = Prediction(*(torch.zeros(shape, dtype=torch.float64) for shape in (1, 4, (4, 3), (1, 3, 3))))

    def late(graph, forces):
        inside.set()
        go.wait(20)
        return answer

    checked = Checked("numba", late, lambda graph, forces: answer, None, torch.float64)
    child = multiprocessing.get_context("fork").Process(target=lambda: go.set() or checked(graph, True))
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(checked, graph, True)
        assert inside.wait(20)
        child.start()
        child.join(10)
        go.set()
    child.kill()  # where it waits for ever
    assert child.exitcode == 0
    assert result.result() is answer


def test_atoms_without_neighbours_do_not_count_as_agreement(mace):
    def wrong(graph, forces):
        prediction = predict(mace, graph, forces)
        return replace(prediction, forces=2 * prediction.forces)

    checked = checked_against_eager(wrong, mace)
    alone = from_atoms(Atoms("C"), mace.atomic_numbers, mace.cutoff)
    assert same_bits(checked(alone, True), predict(mace, alone))
    assert checked.name == "numba"
    with pytest.warns(UserWarning, match="the reference backend is used instead"):
        checked(batch(mace), True)


def test_many_atoms_without_neighbours_have_no_piece(mace, fast):
    far = Atoms("C201", positions=20.0 * np.arange(603).reshape(-1, 3))
    graph, checked = from_atoms(far, mace.atomic_numbers, mace.cutoff), checked_against_eager(fast, mace)
    assert same_bits(checked(graph, True), predict(mace, graph))


def test_energies_of_isolated_atoms_do_not_hide_the_errors_of_bonds():
    """All-electron energies are a thousand times what a structure is about."""
    single = tiny_potential("mace", dtype=torch.float32, **CONFIGS["mace"])
    single.atomic_energies -= 70_000.0
    graph = batch(single)

    def wrong(error):
        def evaluate(graph, forces):
            prediction = predict(single, graph, forces)
            return replace(prediction, node_energies=prediction.node_energies + error)

        return evaluate

    good, bad = (checked_against_eager(wrong(error), single) for error in (1e-6, 0.1))
    good(graph, True)
    assert good.name == "numba"
    with pytest.warns(UserWarning, match="eV/atom .* the reference backend is used instead"):
        bad(graph, True)


def test_an_estimate_names_the_backend_that_was_measured(mace):
    def wrong(graph, forces):
        prediction = predict(mace, graph, forces)
        return replace(prediction, forces=prediction.forces + 0.01)

    calc = EquivariantCalculator(mace, device="cpu", dtype="float64", backend="eager")
    calc._backend, calc.parameters["backend"] = checked_against_eager(wrong, mace), "numba"
    with pytest.warns(UserWarning, match="the reference backend is used instead"):
        found = calc.estimate(copper())
    assert found.backend == calc.parameters["backend"] == "eager"


def test_an_absurd_first_structure_decides_nothing_and_the_next_one_does():
    single = load_potential("mace-mlearn").astype(torch.float32)

    def graph(distance):
        dimer = Atoms("Si2", positions=np.outer([0, 1], [0.6 * distance, 0.8 * distance, 0.0]))
        return from_atoms(dimer, single.atomic_numbers, single.cutoff)

    def wrong(graph, forces):
        prediction = predict(single, graph, forces)
        return replace(prediction, forces=prediction.forces + 0.01)

    absurd, sensible = graph(0.005), graph(2.2)
    assert predict(single, absurd).forces.abs().max() > 1e9
    good, bad = (checked_against_eager(backend, single) for backend in (Numba(single, CPU), wrong))
    for checked in (good, bad):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same_bits(checked(absurd, True), predict(single, absurd))
    assert same_bits(good(sensible, True), good.fast(sensible, True))
    assert good.name == "numba"
    with pytest.warns(UserWarning, match="the reference backend is used instead"):
        bad(sensible, True)
    assert bad.name == "eager"


def test_a_backend_may_differ_from_the_reference_by_the_rounding_of_the_reference(mace):
    graph = big(mace)

    def rounded(error):
        return lambda graph, forces: replace(exact, forces=exact.forces + error)

    exact = predict(mace, graph)
    for error, accepted in ((2e-3, True), (-2e-3, True), (5e-2, False)):
        checked = Checked("numba", rounded(error), rounded(1e-3), lambda: rounded(0.0), torch.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checked(graph, True)
        assert (checked.name == "numba") == accepted == (not caught)


FULL = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
FULL += [RuntimeError("Triton Error [CUDA]: out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]


@pytest.mark.parametrize("error", FULL)
def test_lack_of_memory_is_no_fault_of_a_backend(error, mace):
    def full(graph, forces):
        raise error

    checked = checked_against_eager(full, mace)
    with pytest.raises(type(error)):
        checked(batch(mace), True)
    assert checked.name == "numba"


def test_a_compiler_that_does_not_start_is_a_fault_of_the_backend(mace):
    def lonely(graph, forces):
        raise OSError(12, "Cannot allocate memory")

    checked = checked_against_eager(lonely, mace)
    with pytest.warns(UserWarning, match="fails with OSError"):
        checked(batch(mace), True)
    assert checked.name == "eager"


def test_a_large_structure_is_compared_on_a_piece(mace, fast):
    graph = big(mace)
    part = piece(graph, 20)
    assert 20 == part.n_nodes < graph.n_nodes
    assert part.n_edges > 20
    torch.testing.assert_close(fast(part, True).forces, predict(mace, part).forces)
    assert piece(graph, 1000) is graph


def test_a_piece_goes_on_where_a_molecule_ends(mace):
    crystal = bulk("Cu", cubic=True) * (3, 3, 3)
    crystal.pbc = False
    dimer = Atoms("C2", [[-20, 0, 0], [-18.7, 0, 0]])
    lone = Atoms("H", [[-40, 0, 0]])
    beside, apart = (
        from_atoms(lone + dimer + crystal, mace.atomic_numbers, mace.cutoff),
        from_atoms(dimer, mace.atomic_numbers, mace.cutoff),
    )
    part = piece(beside, 40)
    assert part.n_nodes == 40
    assert part.positions[:2].equal(beside.positions[1:3])
    assert part.n_edges > apart.n_edges == 2
    assert piece(beside, 110).n_nodes == 110  # all but the lone atom


def test_a_piece_has_all_elements_of_a_file_that_is_sorted_by_them(mace):
    crystal = bulk("Cu", "fcc", a=2.4, cubic=True) * (4, 4, 4)
    crystal.numbers[:] = np.repeat([6, 14, 29], [85, 85, 86])
    graph = from_atoms(crystal, mace.atomic_numbers, mace.cutoff)
    part = piece(graph, 40)
    assert graph.n_edges / graph.n_nodes > 40
    assert set(part.species.tolist()) == set(graph.species.tolist())


# at 0.5 Å the model's energies are beyond all measure, 1e11 eV: there a few roundings of single precision are right
@pytest.mark.parametrize(("distance", "roundings"), [(0.5, 20), (1.0, 0), (2.2, 0)])
def test_the_shipped_model_in_float32_is_as_near_to_float64_as_eager_is(distance, roundings):
    potential = load_potential("mace-mlearn")
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=3)
    atoms.positions[1] = atoms.positions[0] + [distance, 0, 0]
    graph = from_atoms(atoms, potential.atomic_numbers, potential.cutoff)
    exact, single = (predict(potential.astype(dtype), graph) for dtype in (torch.float64, torch.float32))
    found = Numba(potential.astype(torch.float32), CPU)(graph, True)
    for name, allowed in {"energy": 1e-6 * graph.n_nodes, "forces": 2e-5}.items():
        errors = [(getattr(p, name) - getattr(exact, name)).abs().max().item() for p in (found, single)]
        rounding = torch.finfo(torch.float32).eps * getattr(exact, name).abs().max().item()
        assert errors[0] < max(allowed, 4 * errors[1], roundings * rounding)


@pytest.mark.parametrize("backend", ["numba", "eager"])
def test_memory_is_estimated_from_a_piece(mace, backend):
    calc = EquivariantCalculator(mace, device="cpu", dtype="float64", backend=backend)
    atoms = bulk("Cu", cubic=True) * (6, 5, 5)
    atoms.rattle(0.1, seed=1)
    graph = from_atoms(atoms, mace.atomic_numbers, mace.cutoff)
    found = calc.estimate(atoms)
    assert found.edges == graph.n_edges
    measured = memory_on_cpu(lambda: EquivariantCalculator.calculate(calc, atoms, ["forces"]))
    assert 0.75 * measured < found.memory < 1.35 * measured
    assert found.memory > 20 * calc.estimate(atoms[:20]).memory
    assert found.seconds > 0.0
    assert re.fullmatch(rf"600 atoms, .* edges: .* MiB and [0-9.,]+ m?s per step \(backend {backend}\)", str(found))


def test_an_estimate_takes_any_structure_and_refuses_what_a_step_refuses(mace):
    calc = EquivariantCalculator(mace, device="cpu", backend="eager")
    assert calc.estimate(Atoms()).edges == calc.estimate(Atoms("C")).edges == 0
    primitive = calc.estimate(bulk("Cu"))
    assert (primitive.atoms, primitive.edges) == (1, from_atoms(bulk("Cu"), (29,), mace.cutoff).n_edges)
    broken = bulk("Cu", cubic=True)
    broken.positions[1] = np.nan
    with pytest.raises(InputError, match="finite"):
        calc.estimate(broken)
