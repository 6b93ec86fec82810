"""Files of nequip give here what they give there: packages, checkpoints, compiled models; nothing of them runs."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import InputError

from ase_equivariant import EquivariantCalculator, load_potential
from ase_equivariant.importers import import_model
from ase_equivariant.importers.unpickling import ForeignFileError

FILES = Path(__file__).parents[2] / "shared" / "checkpoints" / "nequip"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason=f"needs the model files in {FILES}")
SMALL = json.loads((Path(__file__).parent / "nequip_models.json").read_text())
EXACT = (1e-9, 1e-8, 1e-9)  # eV/atom, eV/Å, eV/Å³
SINGLE = (1e-6, 1e-5, 1e-6)  # where the file itself holds constants in single precision


@needs_files
@pytest.mark.parametrize(
    ("name", "results", "tolerance"),
    [
        ("cuau_parity.ckpt", "results", EXACT),
        ("cuau_parity.nequip.zip", "results", EXACT),
        ("cuau_parity.nequip.pth", "results", EXACT),
        ("mol_f32.ckpt", "results_float64_upcast", EXACT),
        ("mol_f32.nequip.zip", "results_float64_upcast", SINGLE),
        ("mol_f32.nequip.pth", "results_float64_upcast", SINGLE),
    ],
)
def test_numbers_are_those_of_nequip(name, results, tolerance):
    record = json.loads((FILES / f"{name.split('.')[0]}.ref.json").read_text())
    calculator = EquivariantCalculator(
        import_model((FILES / name).read_bytes()), device="cpu", dtype="float64", backend="eager"
    )
    energy, forces, stress = tolerance
    largest = 0.0
    for label, values in record[results].items():
        atoms = Atoms(**{key: record["structures"][label][key] for key in ("numbers", "positions", "cell", "pbc")})
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(values["energy"], abs=energy * len(atoms))
        assert atoms.get_forces() == pytest.approx(np.array(values["forces"]), abs=forces)
        expected = [values["stress_voigt"]] if values.get("stress_voigt") else []
        assert [atoms.get_stress() for _ in expected] == [pytest.approx(np.array(s), abs=stress) for s in expected]
        largest = max(largest, abs(np.array(values["forces"])).max())
    assert len(record[results]) >= 8
    assert largest > 0.1


@needs_files
def test_checkpoints_are_evaluated_with_averaged_weights():
    data = (FILES / "cuau_parity.ckpt").read_bytes()
    checkpoint = torch.load(io.BytesIO(data), weights_only=True)
    checkpoint["state_dict"]["ema._extra_state"]["is_holding_ema_weights"] = False
    raw = import_model(saved(checkpoint))
    averaged = import_model(data)
    assert abs(raw.architecture.embedding - averaged.architecture.embedding).max() > 1e-3
    del checkpoint["state_dict"]["ema.ema_weight_3"]
    checkpoint["state_dict"]["ema._extra_state"]["is_holding_ema_weights"] = True
    with pytest.raises(ForeignFileError, match="it lacks 'ema.ema_weight_3'|averaged weights do not fit|layout"):
        import_model(saved(checkpoint))


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def checkpoint_of(name: str, **arguments) -> dict:
    """A small model as nequip-train saves it."""
    model = SMALL["models"][name]
    tensors = {**model["parameters"], **model["buffers"]}
    return {
        "state_dict": {
            f"model.sole_model.model.func.{key}": torch.tensor(value, dtype=torch.float64)
            for key, value in tensors.items()
        },
        "hyper_parameters": {"model": {**model["arguments"], **arguments}},
    }


def evaluate(potential):
    atoms = Atoms(**SMALL["structure"])
    atoms.calc = EquivariantCalculator(potential, device="cpu", dtype="float64", backend="eager")
    return atoms.get_potential_energy(), atoms.get_forces()


@pytest.mark.parametrize("name", SMALL["models"])
def test_small_models_of_every_kind_give_the_numbers_of_nequip(name):
    energy, forces = evaluate(import_model(saved(checkpoint_of(name))))
    expected = np.array(SMALL["models"][name]["forces"])
    assert energy == pytest.approx(SMALL["models"][name]["energy"], abs=1e-9)
    assert forces == pytest.approx(expected, abs=1e-9)
    assert abs(expected).max() > 0.01


def test_the_direction_of_edges_matters_for_models_without_parity():
    atoms = Atoms(**SMALL["structure"])
    energy, _ = evaluate(import_model(saved(checkpoint_of("rotations_only"))))
    atoms.calc = EquivariantCalculator(
        import_model(saved(checkpoint_of("rotations_only"))), device="cpu", dtype="float64", backend="eager"
    )
    atoms.positions *= -1  # which turns every edge around
    assert abs(atoms.get_potential_energy() - energy) > 1e-7  # a hundred times what the numbers agree to


def test_atom_types_keep_their_elements_in_any_order():
    potential = import_model(saved(checkpoint_of("odd_scalars")))
    assert SMALL["models"]["odd_scalars"]["arguments"]["type_names"] == ["O", "H"]
    assert potential.atomic_numbers == [1, 8]
    assert potential.shift.tolist() == [[-2.0, -1.0]]
    assert potential.scale.tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"per_edge_type_cutoff": {"H": 2.0}}, "per_edge_type_cutoff"),
        ({"convnet_resnet": True}, "convnet_resnet"),
        ({"convnet_nonlinearity_type": "norm"}, "convnet_nonlinearity_type"),
        ({"convnet_nonlinearity_scalars": {"e": "ssp", "o": "tanh"}}, "ssp"),
        ({"readout_mlp_hidden_layers_depth": 1}, "readout_mlp_hidden_layers_depth"),
        ({"polynomial_cutoff_p": 4.5}, "polynomial_cutoff_p"),
        ({"pair_potential": {"_target_": "nequip.nn.pair_potential.LennardJones"}}, "LennardJones"),
        ({"type_names": ["O", "H1"]}, "'H1' is not a chemical symbol"),
        ({"_target_": "nequip.model.ModelFromCheckpoint"}, "ModelFromCheckpoint"),
        ({"_target_": "nequip.model.modify", "modifiers": [{"modifier": "modify_PerTypeScaleShift"}]}, "modify_Per"),
        ({"type_names": ["H", "H"]}, "its atom types ['H', 'H'] have an element twice"),
        ({"_target_": "allegro.model.AllegroModel"}, "allegro.model.AllegroModel"),
        ({"num_features": 3}, "layout"),
        ({"num_layers": 10**9}, "its num_layers is 1000000000, which must be a whole number up to 20"),
        ({"l_max": 10**6}, "its l_max is 1000000"),
        ({"l_max": "1"}, "its l_max is '1'"),
        ({"r_max": -1.0}, "cutoff"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_by_name(arguments, reason):
    with pytest.raises(ForeignFileError) as error:
        import_model(saved(checkpoint_of("odd_scalars", **arguments)))
    assert reason in str(error.value)


NESTED = []  # a million entries, were it written out
for _ in range(20):
    NESTED = [NESTED, NESTED]


@pytest.mark.parametrize(
    "arguments",
    [
        {"convnet_resnet": NESTED},
        {"_target_": NESTED},
        {"_target_": "nequip.model.modify", "modifiers": [{"modifier": NESTED}]},
        {"_target_": "nequip.model.PresetNequIPGNNModel", "preset": NESTED},
        {"pair_potential": {"_target_": NESTED}},
        {"type_names": [NESTED, "H"]},
        {"num_features": [NESTED, 4]},
        {"feature_irreps_hidden": [NESTED], "irreps_edge_sh": 1},
        {"feature_irreps_hidden": ["4x0e"], "irreps_edge_sh": [[4, NESTED]]},
    ],
    ids=range(9),
)
def test_what_arguments_say_is_cut_while_it_is_written(arguments):
    with pytest.raises(ForeignFileError, match=r"\[\.\.\.\]|\(\.\.\.\)"):
        import_model(saved(checkpoint_of("odd_scalars", **arguments)))


def test_numbers_of_neighbours_are_not_unfolded():
    with pytest.raises(ForeignFileError, match=r"float\(\) argument must be .* not 'list'"):
        import_model(saved(checkpoint_of("odd_scalars", avg_num_neighbors=[NESTED])))


def test_releases_of_a_checkpoint_are_cut():
    checkpoint = checkpoint_of("odd_scalars")
    checkpoint["hyper_parameters"]["info_dict"] = {"versions": {"torch": NESTED, "e3nn": "0.5.6"}}
    provenance = import_model(saved(checkpoint)).metadata["provenance"]
    assert provenance["torch_version"] == "[[[...], [...]], [[...], [...]]]"
    assert provenance["e3nn_version"] == "0.5.6"


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"hyper_parameters": {"model": []}}, [], 3])
def test_other_checkpoints_are_refused(content):
    with pytest.raises(ForeignFileError):
        import_model(saved(content))


@needs_files
@pytest.mark.parametrize("stem", ["cuau_parity", "mol_f32"])
def test_nothing_of_a_compiled_file_or_package_is_run(stem, monkeypatch):
    def forbidden(*arguments, **options):
        raise AssertionError("the file was given to torch")

    for name in ("torch.jit.load", "torch._C.import_ir_module_from_buffer", "torch.load", "pickle.loads"):
        monkeypatch.setattr(name, forbidden)
    for kind in ("nequip.zip", "nequip.pth", "ckpt"):
        assert import_model((FILES / f"{stem}.{kind}").read_bytes()).atomic_numbers


@needs_files
def test_compiled_files_with_other_activations_are_refused():
    data = (FILES / "mol_f32.nequip.pth").read_bytes()
    files = {info.filename: zipfile.ZipFile(io.BytesIO(data)).read(info) for info in infolist(data)}
    changed = {name: content.replace(b"torch.silu(x)", b"torch.relu(x)") for name, content in files.items()}
    with pytest.raises(ForeignFileError, match="its gate uses relu"):
        import_model(zipped(changed))
    assert import_model(zipped(files)).heads == ["default"]


def infolist(data: bytes) -> list[zipfile.ZipInfo]:
    return zipfile.ZipFile(io.BytesIO(data)).infolist()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_machine_code_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "model.nequip.pt2"
    path.write_bytes(zipped({"model/archive_format": b"pt2", "model/data/aotinductor/model/x.wrapper.so": b"\x7fELF"}))
    with pytest.raises(InputError, match="compiled to machine code"):
        load_potential(path)
