"""Files of Nequix give here what they give there; what is not such a file is refused in one sentence."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import InputError

from ase_equivariant import EquivariantCalculator, importers, save_potential
from ase_equivariant.checkpoint import from_bytes
from ase_equivariant.importers.nequix import import_nequix
from ase_equivariant.importers.unpickling import ForeignFileError

FILES = Path(__file__).parents[2] / "shared" / "checkpoints" / "nequix"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason=f"needs the model files in {FILES}")
NAMES = ("nequix-mp-1.nqx", "nequix-omat-1.nqx")
SETTINGS = {
    "cutoff": 4.0,
    "atomic_numbers": [1, 8],
    "atom_energies": {"1": -1.0, "8": -2.0},
    "avg_n_neighbors": 3.5,
    "scale": 0.5,
    "shift": 0.1,
    "hidden_irreps": "4x0e + 3x1o",
    "lmax": 1,
    "n_layers": 2,
    "radial_basis_size": 4,
    "radial_mlp_size": 5,
    "radial_mlp_layers": 1,
    "radial_polynomial_p": 6.0,
    "index_weights": False,
    "layer_norm": True,
    "learning_rate": 0.01,
}
SHAPES = [  # energies; layer of 2 species: radial, before, after, skip, norm; layer of 4x0e+3x1o; readout
    *[(2,), (4, 5), (5, 4), (2, 2), (2, 7), (2, 3), (2, 7), (7,), (3,)],
    *[(4, 5), (5, 7), (4, 4), (3, 3), (7, 4), (4, 4), (4,), (4, 1)],
]


def reference(name, labels):
    record = json.loads((FILES / "reference.json").read_text())[name]
    for label in labels:
        values = record[label]
        yield Atoms(**{key: values[key] for key in ("numbers", "positions", "cell", "pbc")}), values


def tiny_file(changes=None, shapes=SHAPES, dtype="<f4", spoil=None) -> bytes:
    """The content of a small file of random weights."""
    random = np.random.default_rng(0)
    file = io.BytesIO()
    settings = {key: value for key, value in {**SETTINGS, **(changes or {})}.items() if value != "left out"}
    file.write(json.dumps(settings).encode() + b"\n")
    for i, shape in enumerate(shapes):
        array = random.normal(size=shape).astype(dtype)
        array.flat[0] = np.nan if i == spoil else array.flat[0]
        np.save(file, array)
    return file.getvalue()


@needs_files
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_nequix(name):
    potential = importers.import_model((FILES / name).read_bytes())
    assert (len(potential.atomic_numbers), potential.dtype) == (89, torch.float32)
    calculator = EquivariantCalculator(potential, device="cpu", dtype="float64", backend="eager")
    largest = 0.0
    for atoms, values in reference(name, ("h2o_molecule", "cu1_primitive", "fe4_triclinic")):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(values["energy"], abs=1e-5 * len(atoms))
        assert atoms.get_forces() == pytest.approx(np.array(values["forces"]), abs=2e-5)
        expected = [values["stress"]] if values["stress"] else []
        assert [atoms.get_stress() for _ in expected] == [pytest.approx(np.array(s), abs=1e-6) for s in expected]
        largest = max(largest, abs(np.array(values["forces"])).max())
    assert largest > 0.1


@needs_files
def test_the_control_another_file_gives_other_numbers():
    energies = [next(reference(name, ["cu1_primitive"]))[1]["energy"] for name in NAMES]
    assert abs(energies[0] - energies[1]) > 0.1


def test_a_small_file_is_imported_saved_and_turned_without_a_change_of_its_energy(tmp_path, rotation):
    potential = import_nequix(tiny_file())
    save_potential(potential, tmp_path / "small.safetensors")
    water = Atoms("OH2", [[0, 0, 0], [0.9, 0.2, 0], [-0.3, 0.9, 0.1]])
    turned = water.copy()
    turned.positions = water.positions @ rotation.numpy().T
    energies = []
    for atoms, model in ((water, potential), (water, tmp_path / "small.safetensors"), (turned, potential)):
        atoms.calc = EquivariantCalculator(model, dtype="float64", device="cpu", backend="eager")
        energies.append(atoms.get_potential_energy())
    assert energies[1] == energies[0]
    assert energies[2] == pytest.approx(energies[0], abs=1e-9)
    forces = water.get_forces()
    water.positions[1, 0] += 1e-4
    assert (water.get_potential_energy() - energies[0]) / 1e-4 == pytest.approx(-forces[1, 0], rel=1e-2)
    assert abs(forces[1, 0]) > 1e-3


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_the_end_of_a_line_may_follow_and_double_precision_is_read(end):
    assert import_nequix(tiny_file() + end).atomic_numbers == [1, 8]
    assert import_nequix(tiny_file(dtype="<f8") + end).atomic_numbers == [1, 8]


def test_arrays_in_column_order_mean_the_same():
    """The second array of a file stored by columns."""
    data = tiny_file()
    array = np.lib.format.read_array(io.BytesIO(data[data.index(b"\x93NUMPY", data.index(b"(2,)")) :]))
    assert array.shape == (4, 5)
    column_order = io.BytesIO()
    np.save(column_order, np.asfortranarray(array))
    row_order = io.BytesIO()
    np.save(row_order, array)
    other = data.replace(row_order.getvalue(), column_order.getvalue())
    assert other != data
    weights = [import_nequix(each).architecture.layers[0].radial_mlp.layers[0].weight for each in (data, other)]
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lmax": "left out", "scale": "left out"}, "it lacks the settings scale, lmax of a Nequix model"),
        ({"format_version": 3}, "it has settings that this version does not know: format_version"),
        ({"zbl": True}, "settings that this version does not know: zbl"),
        ({"scale": float("nan")}, "its setting scale is nan, which must be a finite float"),
        ({"shift": float("-inf")}, "its setting shift is -inf, which must be a finite float"),
        ({"shift": 10**400}, "OverflowError"),
        ({"lmax": 1.5}, "its setting lmax is 1.5, which must be a finite int"),
        ({"lmax": 9}, "l_max = 9 in the nequip config"),
        ({"n_layers": 10**6}, "num_interactions = 1000000 in the nequip config"),
        ({"cutoff": -1.0}, "cutoff = -1.0 in the nequip config"),
        ({"radial_mlp_layers": 10**9}, "at most 10 radial_mlp_layers"),
        ({"radial_mlp_size": 10**15}, "array 2 is float32"),
        ({"hidden_irreps": "all"}, "'all' is not a list of irreps"),
        ({"hidden_irreps": "4x0e+3x1e"}, "hidden_irreps of parity"),
        ({"atomic_numbers": [8, 1]}, "its atomic_numbers must be sorted, unique and in 1..118"),
        ({"atomic_numbers": [1, 6, 8]}, r"its array 1 is float32 \[2\] instead of float32 \[3\]"),
        ({"index_weights": True}, "with index_weights false only"),
        ({"layer_norm": False}, "with layer_norm true only"),
        ({"radial_polynomial_p": 6.5}, "a whole radial_polynomial_p"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        importers.import_model(tiny_file(changes))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"cutoff": 6.0', "its first line is not complete JSON"),
        (b'{"' + b"[" * 100_000, "its first line is not complete JSON"),
        (b'{"title": "not a model"}', "it lacks the settings cutoff"),
        (tiny_file()[:-3], "it is truncated: array 17 is not complete"),
        (tiny_file()[:-600], r"it is truncated( or damaged)?: array 1\d"),
        (tiny_file(shapes=SHAPES[:-1]), "it is truncated or damaged: array 17 cannot be read"),
        (tiny_file() + b"more", "it has 4 bytes after the last array"),
        (tiny_file(shapes=[*SHAPES, (2,)]), "it has 136 bytes after the last array"),
        (tiny_file(shapes=[(2,), (4, 6), *SHAPES[2:]]), r"its array 2 is float32 \[4, 6\] instead of float32 \[4, 5\]"),
        (tiny_file(dtype="<i4"), r"its array 1 is int32 \[2\] instead of float32 \[2\]"),
        (tiny_file(spoil=4), "its array 5 has numbers that are not finite"),
        (tiny_file().replace(b"\x93NUMPY\x01", b"\x93NUMPY\x03"), "its array 1 is of npy format 3.0"),
    ],
    ids=range(12),
)
def test_what_is_not_a_whole_model_is_refused_in_one_sentence(data, message):
    with pytest.raises(ForeignFileError, match=message) as error:
        importers.import_model(data)
    assert "\n" not in str(error.value)


def test_an_array_of_objects_is_not_unpickled():
    file = io.BytesIO()
    np.save(file, np.array([print, print], dtype=object), allow_pickle=True)
    header = tiny_file().partition(b"\n")[0] + b"\n"
    with pytest.raises(
        InputError, match=r"array 1 is object \[2\] instead of float32 \[2\]; nothing in it was executed"
    ):
        from_bytes(header + file.getvalue(), "bad.nqx")
