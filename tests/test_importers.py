"""Files of mace-torch give here what they give there, and nothing in a file is ever run."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import InputError

from ase_equivariant import EquivariantCalculator, importers, load_potential, save_potential
from ase_equivariant.importers.mace import import_mace
from ase_equivariant.importers.records import ForeignFileError, read_records

FILES = Path(__file__).parents[2] / "shared" / "checkpoints" / "mace"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason=f"needs the model files in {FILES}")
TOLERANCES = {"float64": (1e-9, 1e-8, 1e-9), "float32": (1e-6, 1e-5, 1e-5)}  # eV/atom, eV/Å, eV/Å³; by the file's dtype
SUPPORTED = {
    "off_like": "float64",
    "mp0_like": "float32",
    "mp0_like_f64": "float64",
    "plain_mace_l2": "float64",
    "multihead": "float64",
    "legacy_0.3.4": "float64",
    "trained": "float64",
}


def reference(name):
    """Per head: structures, and what mace-torch gives for them."""
    record = json.loads((FILES / f"{name}.ref.json").read_text())
    structures = record.get("structures") or json.loads((FILES / "structures.json").read_text())["structures"]
    for head, results in record["results"].items():
        for label, values in results.items():
            keys = ("numbers", "positions", "cell", "pbc")
            yield head, Atoms(**{key: structures[label][key] for key in keys}), values


@needs_files
@pytest.mark.parametrize("name", SUPPORTED)
def test_numbers_are_those_of_mace_torch(name):
    potential = load_potential(FILES / f"{name}.model")
    # releases before 0.3.5 had no heads; the reference calls the only one Default
    calculators = {
        head: EquivariantCalculator(potential, device="cpu", dtype="float64", head=head) for head in potential.heads
    }
    cases = list(reference(name))
    energy, forces, stress = TOLERANCES[SUPPORTED[name]]
    largest = 0.0
    for head, atoms, values in cases:
        atoms.calc = calculators.get(head, next(iter(calculators.values())))
        assert atoms.get_potential_energy() == pytest.approx(values["energy"], abs=energy * len(atoms))
        assert atoms.get_forces() == pytest.approx(np.array(values["forces"]), abs=forces)
        expected = [values["stress_voigt"]] if values.get("stress_voigt") else []
        assert [atoms.get_stress() for _ in expected] == [pytest.approx(np.array(s), abs=stress) for s in expected]
        largest = max(largest, abs(np.array(values["forces"])).max())
    assert len(cases) >= 6
    assert largest > 0.1


@needs_files
def test_heads_differ():
    cases = {head: atoms for head, atoms, _ in reference("multihead")}
    atoms = next(iter(cases.values()))
    energies = [
        EquivariantCalculator(FILES / "multihead.model", head=head).get_potential_energy(atoms) for head in cases
    ]
    assert abs(energies[0] - energies[1]) > 0.01
    with pytest.raises(InputError, match="choose one of pt_head, dft"):
        EquivariantCalculator(FILES / "multihead.model")


@needs_files
def test_imported_model_becomes_a_safe_file(tmp_path):
    potential = load_potential(FILES / "off_like.model")
    assert potential.dtype == torch.float64
    save_potential(potential, tmp_path / "off.safetensors")
    again = load_potential(tmp_path / "off.safetensors")
    assert again.metadata["name"] == "off_like"
    assert all((a == b).all() for a, b in zip(potential.parameters(), again.parameters(), strict=True))


@needs_files
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("density_agnesi_zbl", ["RealAgnosticDensityInteractionBlock", "AgnesiTransform", "ZBLBasis"]),
        ("nonlinear_mh1_like", ["RealAgnosticResidualNonLinearInteractionBlock", "NonLinearBiasReadoutBlock"]),
        ("trained_compiled", ["TorchScript"]),
    ],
)
def test_parts_that_are_not_rebuilt_yet_are_named(name, parts):
    with pytest.raises(InputError, match="cannot import") as error:
        load_potential(FILES / f"{name}.model")
    assert [part for part in parts if part not in str(error.value)] == []


@needs_files
def test_trained_frequencies_are_not_taken_for_the_usual_ones():
    root = read_records((FILES / "trained.model").read_bytes())
    import_mace(root)
    root.get("radial_embedding.bessel_fn.bessel_weights")[2] *= 1.01
    with pytest.raises(ForeignFileError, match="trained frequencies of the Bessel functions"):
        import_mace(root)


@needs_files
@pytest.mark.parametrize(("key", "value"), [("heads", []), ("r_max", {}), ("r_max", 0.0), ("interactions", None)])
def test_a_model_without_its_usual_layout_is_refused(key, value, monkeypatch):
    root = read_records((FILES / "trained.model").read_bytes())
    monkeypatch.setattr(importers, "read_records", lambda data: root)
    assert importers.import_model(b"").heads
    table = next(table for table in (root.state["_modules"], root.state["_buffers"], root.state) if key in table)
    monkeypatch.setitem(table, key, value)
    with pytest.raises(ForeignFileError):
        importers.import_model(b"")


def archive(program: bytes, **files: bytes) -> bytes:
    """A zip as torch.save writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {"data.pkl": program, "byteorder": b"little", **files}.items():
            file.writestr(f"model/{name}", content)
    return buffer.getvalue()


def program(module: str, name: str, *arguments) -> bytes:
    """A pickle that calls module.name(*arguments)."""
    call = f"c{module}\n{name}\n".encode()
    return b"\x80\x02" + call + pickle.dumps(arguments, 2)[2:-1] + b"R."


class Touch:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("malicious", "message"),
    [
        (pickle.dumps(Touch(), 2), "it names pathlib"),
        (program("os", "system", "touch executed"), "it names os.system"),
        (program("posix", "system", "touch executed"), "it names posix.system"),
        (program("__builtin__", "eval", "open('executed', 'w')"), "it names __builtin__.eval"),
        (program("builtins", "exec", "open('executed', 'w')"), "it names builtins.exec"),
        (program("__builtin__", "getattr", {}, "clear"), "it asks for the attribute 'clear'"),
        (program("torch", "load", "executed"), "it names torch.load"),
        (program("torch.jit", "load", "executed"), "it names torch.jit.load"),
        (program("_codecs", "encode", "text", "rot13"), "it encodes text as 'rot13'"),
        (program("torch._utils", "_rebuild_tensor_v2", torch.float32, 0, (10**12,), (0,)), "it names torch.float32"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "an enormous table"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x0c\x00\x00\x00__defaults__)sb.", "it changes a function"),
        (program("collections", "OrderedDict"), "it holds a OrderedDict instead of a model"),
        (b"\x80\x02}q", "it is damaged"),
        (b"", "it is damaged"),
    ],
)
def test_malicious_pickles_are_refused_by_name_and_do_nothing(malicious, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.model").write_bytes(archive(malicious))
    with pytest.raises(InputError, match="cannot import bad.model") as error:
        load_potential("bad.model")
    assert message in str(error.value)
    assert "nothing in it was executed" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.model"]


def test_control_the_same_pickle_runs_code_when_it_is_simply_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(program("os", "system", "touch executed"))
    assert (tmp_path / "executed").exists()


def test_classes_of_the_file_become_inert_records():
    build = b"cmace.modules.models\nMACE\n)\x81}q\x00(X\x01\x00\x00\x00aK\x01ub."
    record = read_records(archive(b"\x80\x02" + build))
    assert record.name == "mace.modules.models.MACE"
    assert record.get("a") == 1
    with pytest.raises(ForeignFileError, match="sets an attribute"):
        record.a = 2


def test_zip_bombs_are_refused():
    with pytest.raises(ForeignFileError, match="unpacks to far more than its size"):
        read_records(archive(program("collections", "OrderedDict"), **{"data/0": bytes(10**7)}))


@needs_files
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
def test_truncated_files_are_named(keep, tmp_path):
    data = (FILES / "trained.model").read_bytes()
    (tmp_path / "half.model").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(InputError, match=r"cannot import .*half\.model: it is damaged"):
        load_potential(tmp_path / "half.model")
