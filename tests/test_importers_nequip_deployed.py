"""Models that nequip 0.6 deployed give here what they give there, whatever release of e3nn they were made with."""

import io
import json
import zipfile
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from ase_equivariant import EquivariantCalculator, load_potential
from ase_equivariant.importers import import_model
from ase_equivariant.importers.couplings import coupling_sign
from ase_equivariant.importers.nequip import import_nequip
from ase_equivariant.importers.nequip_deployed import as_packaged
from ase_equivariant.importers.records import read_content
from ase_equivariant.importers.unpickling import ForeignFileError

ARCHIVE = zipfile.ZipFile(Path(__file__).parent / "nequip_deployed.zip")  # written by make_nequip_deployed.py
RESULTS = json.loads(ARCHIVE.read("results.json"))
PACKAGES = Path(__file__).parents[2] / "shared" / "checkpoints" / "nequip"
models = pytest.mark.parametrize("name", RESULTS["models"])


def file_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for entry in ARCHIVE.namelist():
            if entry.startswith(f"{name}/"):
                out.writestr(entry, ARCHIVE.read(entry))
    return buffer.getvalue()


def evaluate(potential):
    atoms = Atoms(**RESULTS["structure"])
    atoms.calc = EquivariantCalculator(potential, device="cpu", dtype="float64", backend="eager")
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()


@models
def test_numbers_are_those_of_nequip(name):
    energy, forces, stress = evaluate(import_model(file_of(name)))
    expected = RESULTS["models"][name]
    assert energy == pytest.approx(expected["energy"], abs=1e-9)
    assert forces == pytest.approx(np.array(expected["forces"]), abs=1e-10)
    assert stress == pytest.approx(np.array(expected["stress"]), abs=1e-11)
    assert np.abs(expected["forces"]).max() > 0.01


def test_the_elements_of_the_file_come_in_another_order():
    potential = import_model(file_of("parity"))
    assert ARCHIVE.read("parity/extra/type_names") == b"H O"
    assert potential.atomic_numbers == [1, 8]
    assert potential.scale[0, 1] != potential.scale[0, 0]


def without_couplings(name: str, **notes: str):
    """The potential of a file that keeps its couplings as code, and says of itself what `notes` say."""
    content = read_content(file_of(name))
    parts = content.root.get("model.model.func").named_children()
    for layer in (part for name, part in parts.items() if name.startswith("layer")):
        state = layer.get("conv.tp._compiled_main_left_right").state
        for key in [key for key in state if key.startswith("_w3j")]:
            del state[key]
    return import_nequip(as_packaged(replace(content, notes={"type_names": "H O", **notes})))


@models
def test_without_couplings_in_the_file_the_release_tells_their_signs(name):
    expected = RESULTS["models"][name]["energy"]
    assert evaluate(without_couplings(name, e3nn_version="0.5.9"))[0] == pytest.approx(expected, abs=1e-9)
    assert evaluate(without_couplings(name, e3nn_version="0.6.0+local"))[0] == pytest.approx(expected, abs=1e-9)
    for unknown in ({}, {"e3nn_version": ""}):
        with pytest.raises(ForeignFileError, match="does not say which release of e3nn made it"):
            without_couplings(name, **unknown)


def test_signs_of_an_old_release_give_other_numbers():
    expected = RESULTS["models"]["rotations_only"]["energy"]
    assert abs(evaluate(without_couplings("rotations_only", e3nn_version="0.4.4"))[0] - expected) > 1e-6


# what e3nn gives, compared entry by entry: couplings of odd sum up to l = 4 that are minus ours
NEGATIVE = {
    "0.4.4": {"212", "232", "243", "313", "324", "342", "414", "434"},
    "0.5.0": {"122", "133", "144", "221", "232", "243", "324", "331", "342", "434", "441"},
}


@pytest.mark.parametrize("release", NEGATIVE)
def test_signs_of_couplings_are_those_of_the_release(release):
    triples = [(a, b, c) for a in range(5) for b in range(5) for c in range(abs(a - b), min(a + b, 4) + 1)]
    odd = {f"{a}{b}{c}" for a, b, c in triples if (a + b + c) % 2 and coupling_sign(a, b, c, release) < 0}
    assert odd == NEGATIVE[release]
    assert all(coupling_sign(*order, release) == coupling_sign(*order, "") for order in permutations((1, 2, 3)))


def test_signs_that_nobody_compared_are_not_guessed():
    with pytest.raises(ForeignFileError, match=r"couples l > 4 with the signs of e3nn 0\.4\.4"):
        coupling_sign(1, 5, 5, "0.4.4")
    assert abs(coupling_sign(1, 5, 5, "0.5.0")) == abs(coupling_sign(1, 4, 5, "0.4.4")) == 1


@pytest.mark.parametrize(
    ("place", "key", "value", "reason"),
    [
        ("model", "has_shift", True, "a shift of the total energy"),
        ("model.model.func.total_energy_sum", "constant", 0.5, "an energy that is not a sum"),
        ("model.model.func.total_energy_sum", "reduce", "mean", "an energy that is not a sum"),
        ("model.model.func.layer1_convnet", "resnet", True, "resnet"),
        ("model.model.func.radial_basis.cutoff", "p", 4.5, "polynomial_cutoff_p = 4.5"),
    ],
)
def test_settings_that_cannot_be_rebuilt_are_named(place, key, value, reason):
    content = read_content(file_of("parity"))
    content.root.get(place).state[key] = value
    with pytest.raises(ForeignFileError, match=f"cannot rebuild: .*{reason}"):
        import_nequip(as_packaged(content))


@pytest.mark.parametrize(("count", "names"), [(20_000, "H O"), (20_000, " ".join(map(str, range(20_000)))), (2, "H H")])
def test_types_without_a_name_of_their_own_are_refused(count, names):
    content = read_content(file_of("parity"))
    content.root.get("model.model.func.one_hot").state["num_types"] = count
    with pytest.raises(ForeignFileError, match=f"{count} types of atoms, with the names"):
        as_packaged(replace(content, notes={**content.notes, "type_names": names}))


@pytest.mark.parametrize("place", ["radial_basis.basis", "radial_basis.cutoff", "one_hot", "per_species_rescale"])
def test_parts_that_cannot_be_rebuilt_are_named(place, monkeypatch):
    content = read_content(file_of("parity"))
    monkeypatch.setattr(type(content.root.get(f"model.model.func.{place}")), "name", "allegro.nn.Another")
    with pytest.raises(ForeignFileError, match=r"cannot rebuild: allegro\.nn\.Another"):
        as_packaged(content)


def test_another_activation_of_the_radial_network_is_refused():
    data, other = file_of("parity"), io.BytesIO()
    with zipfile.ZipFile(other, "w") as out:
        for entry in zipfile.ZipFile(io.BytesIO(data)).infolist():
            text = zipfile.ZipFile(io.BytesIO(data)).read(entry)
            out.writestr(entry.filename, text.replace(b"torch.silu(x)", b"torch.tanh(x)"))
    with pytest.raises(ForeignFileError, match="uses tanh where this version knows silu"):
        import_model(other.getvalue())


def test_provenance_has_the_releases_that_the_file_names():
    expected = {"source_package": "nequip", "nequip_version": "0.6.2", "e3nn_version": "0.5.9"}
    said = import_model(file_of("parity")).metadata["provenance"]
    assert said.items() >= expected.items()
    assert set(said) == {*expected, "torch_version"}


@pytest.mark.skipif(not PACKAGES.is_dir(), reason=f"needs the model files in {PACKAGES}")
@pytest.mark.parametrize("name", ["cuau_parity.nequip.zip", "cuau_parity.ckpt"])
def test_provenance_of_packages_and_checkpoints_has_them_too(name):
    provenance = load_potential(PACKAGES / name).metadata["provenance"]
    assert (provenance["nequip_version"], provenance["e3nn_version"]) == ("0.19.1", "0.6.0")
