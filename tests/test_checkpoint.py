"""Model files: exact, safe, atomic, and clear about what is wrong with them."""

import errno
import json
import os
import pickle
import resource
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import InputError
from tiny import tiny_potential

from ase_equivariant import available_models, checkpoint, golden, zoo
from ase_equivariant.checkpoint import (
    from_bytes,
    load_potential,
    read_header,
    save_potential,
    to_bytes,
)
from ase_equivariant.derivatives import predict
from ase_equivariant.golden import golden_structures, verify_golden
from ase_equivariant.graph import from_atoms
from ase_equivariant.header import KEY
from ase_equivariant.potential import TABLES


@pytest.fixture
def potential():
    potential = tiny_potential()
    potential.metadata.update(name="tiny", license="MIT", errors={"energy": 0.1 + 0.2})
    return potential


@pytest.fixture
def path(potential, tmp_path):
    save_potential(potential, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def edited(potential, header=(), tensors=(), drop=()) -> bytes:
    """The file of a potential with parts of it replaced, its checksum made good again."""
    data = to_bytes(potential)
    length = int.from_bytes(data[:8], "little")
    values = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY]) | dict(header)
    weights = safetensors.torch.load(data) | dict(tensors)
    for name in drop:
        values.pop(name, None)
        weights.pop(name, None)
    if "checksum" in values:
        values["checksum"] = checkpoint._checksum(values, weights)
    return safetensors.torch.save(weights, {KEY: json.dumps(values)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_round_trip_keeps_every_bit(dtype, tmp_path):
    potential = tiny_potential(dtype=dtype, heads=("pbe", "scan"))
    potential.metadata.update(name="pair", default_head="scan")
    save_potential(potential, tmp_path / "a.safetensors")
    loaded = load_potential(tmp_path / "a.safetensors")
    assert loaded.dtype == dtype
    assert loaded.metadata == potential.metadata
    assert (loaded.heads, loaded.atomic_numbers) == (potential.heads, potential.atomic_numbers)
    assert loaded.architecture.config == potential.architecture.config
    assert not loaded.training
    before, after = potential.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value)
    graph = from_atoms(bulk("Cu", cubic=True), potential.atomic_numbers, potential.cutoff)
    assert torch.equal(predict(loaded, graph).forces, predict(potential, graph).forces)
    save_potential(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_the_header_tells_what_the_model_is_without_its_tensors(path, potential, monkeypatch):
    monkeypatch.setattr(safetensors.torch, "load", None)
    header = read_header(path)
    assert header["format_version"] == 1
    assert header["architecture"] == "mace"
    assert header["atomic_numbers"] == [1, 6, 8, 14, 29]
    assert header["atomic_energies"] == potential.atomic_energies.tolist()
    assert header["default_head"] == "default"
    assert header["errors"] == {"energy": 0.1 + 0.2}


def test_a_disk_that_is_full_leaves_the_old_file_as_it_was(path, potential, monkeypatch):
    before = path.read_bytes()

    def full(fileno):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    potential.metadata["name"] = "other"
    with pytest.raises(InputError, match="No space left on device; nothing was changed"):
        save_potential(potential, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    monkeypatch.undo()
    save_potential(potential, path)
    assert path.read_bytes() != before


def test_an_interrupt_while_saving_leaves_the_old_file_as_it_was(path, potential, monkeypatch):
    before = path.read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_potential(tiny_potential(atomic_numbers=(1, 8)), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_saving_where_there_is_no_folder_is_an_input_error(potential, tmp_path):
    with pytest.raises(InputError, match="cannot write .*No such file or directory"):
        save_potential(potential, tmp_path / "none" / "a.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write .*Not a directory"):
        save_potential(potential, tmp_path / "file" / "a.safetensors")


def test_only_a_regular_file_is_ever_replaced(potential, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # stands for /dev/null, which root could replace
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match=f"cannot write .*{name}: it is not a regular file"):
            save_potential(potential, tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, np.float32(1.0)])
def test_metadata_that_json_cannot_hold_is_refused(potential, value):
    potential.metadata["errors"] = value
    with pytest.raises(InputError, match="finite numbers, strings"):
        to_bytes(potential)


def test_metadata_cannot_replace_the_model_itself(potential):
    potential.metadata["config"] = {}
    with pytest.raises(InputError, match="cannot hold config"):
        to_bytes(potential)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    for read in (load_potential, read_header):
        with pytest.raises(InputError, match=r"tiny.safetensors is (empty|not a safetensors file|truncated)"):
            read(path)


def test_any_changed_byte_is_noticed(path):
    data = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (int(position) % 8)
        with pytest.raises(InputError):
            from_bytes(bytes(damaged))
    assert from_bytes(data).metadata["name"] == "tiny"


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_is_named_as_such_and_never_opened(tmp_path, protocol, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(pickle.dumps(Malicious(), protocol))
    for read in (load_potential, read_header):
        with pytest.raises(InputError, match="is a Python pickle.*does not unpickle"):
            read("model.safetensors")
    assert not Path("executed").exists()
    pickle.loads(Path("model.safetensors").read_bytes())
    assert Path("executed").exists()


def test_a_torch_archive_without_a_model_is_named_as_such(tmp_path):
    torch.save({"weights": torch.ones(3)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="cannot import .*model.pt: it is a checkpoint without the arguments"):
        load_potential(tmp_path / "model.pt")
    with pytest.raises(InputError, match="is a zip archive as PyTorch writes it, without a header"):
        read_header(tmp_path / "model.pt")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a text file, long enough to have a header length")
    with pytest.raises(InputError, match="is not a safetensors file"):
        load_potential(tmp_path / "a.txt")
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="not of ase-equivariant"):
        load_potential(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((50).to_bytes(8, "little") + b"{" + b"[" * 100)
    with pytest.raises(InputError, match="header cannot be read"):
        load_potential(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{" + b" " * 100)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_header(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format_version": 2}, "format_version 2; this version reads 1"),
        ({"architecture": "gap"}, "architecture 'gap'; known are mace"),
        ({"architecture": ["mace"]}, "architecture .*; known are mace"),
        ({"config": {"num_species": 5}}, "can be built: .*cutoff"),
        ({"config": {"width": 7}}, "can be built: .*width"),
        ({"config": 7}, "does not describe a model that can be built"),
        ({"config": None}, "does not describe a model that can be built"),
        ({"scale": [[1.0, 1.0]]}, r"can be built: scale has shape \(1, 2\)"),
        ({"shift": "none"}, "does not describe a model that can be built"),
        ({"heads": ["a", "b"]}, "does not describe a model that can be built"),
        ({"atomic_numbers": [1, 6, 8, 29, 14]}, "sorted, unique and in 1..118"),
        ({"atomic_numbers": [0, 6, 8, 14, 29]}, "sorted, unique and in 1..118"),
        ({"atomic_numbers": [6, 6, 8, 14, 29]}, "sorted, unique and in 1..118"),
        ({"atomic_energies": [[float("nan")] * 5]}, "header cannot be read"),
        ({"atomic_numbers": None}, "does not describe a model that can be built"),
        ({"heads": [7]}, r"has heads \[7\]; they must be names"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(potential, header, message):
    assert from_bytes(edited(potential)).heads == ["default"]
    with pytest.raises(InputError, match=message):
        from_bytes(edited(potential, header), "a.safetensors")


def test_a_header_nested_without_end_is_refused(potential):
    deep = json.loads("[" * 100 + "]" * 100)
    with pytest.raises(InputError, match="nested more than 20 levels deep"):
        from_bytes(edited(potential, {"provenance": deep}))
    assert from_bytes(edited(potential, {"provenance": [[["shallow"]]]})).metadata["provenance"]


def test_a_header_that_lacks_something_names_it(potential):
    with pytest.raises(InputError, match="header lacks atomic_energies, checksum"):
        from_bytes(edited(potential, drop=["atomic_energies", "checksum"]))


def test_tensors_that_do_not_fit_are_named(potential):
    name, value = next(iter(potential.architecture.state_dict().items()))
    with pytest.raises(InputError, match=f"{name} is missing"):
        from_bytes(edited(potential, drop=[name]))
    with pytest.raises(InputError, match="extra is not part of the model"):
        from_bytes(edited(potential, tensors={"extra": torch.ones(2, dtype=torch.float64)}))
    with pytest.raises(InputError, match=rf"{name} is torch.float64 \[1\] instead of torch.float64"):
        from_bytes(edited(potential, tensors={name: torch.ones(1, dtype=torch.float64)}))
    with pytest.raises(InputError, match="all must be float32 or all float64"):
        from_bytes(edited(potential, tensors={name: value.float()}))
    with pytest.raises(InputError, match=f"{name} is torch.int64"):
        from_bytes(edited(potential, tensors={name: value.long()}))


def test_a_config_of_another_number_of_species_is_refused(potential):
    other = tiny_potential(atomic_numbers=(1, 6, 8, 14))
    header = {name: getattr(other, name).tolist() for name in TABLES} | {"atomic_numbers": [1, 6, 8, 14]}
    with pytest.raises(InputError, match="does not fit its atomic_numbers"):
        from_bytes(edited(potential, header))


def test_names_resolve_to_shipped_files_and_typos_get_a_hint(path, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "MODELS", tmp_path)
    assert available_models() == ["tiny"]
    assert load_potential("tiny").metadata["name"] == "tiny"
    with pytest.raises(InputError, match=r"unknown model 'tinny'; did you mean tiny\? .shipped: tiny; or"):
        load_potential("tinny")
    with pytest.raises(InputError, match=r"unknown model 'TINNY'; did you mean tiny\?"):
        load_potential("TINNY")
    with pytest.raises(InputError, match=r"there is no model file tiny.safetensors; did you mean the shipped model"):
        load_potential("tiny.safetensors")
    with pytest.raises(InputError, match=r"there is no model file .*; did you mean tiny.safetensors\?"):
        load_potential(tmp_path / "tinny.safetensor")
    with pytest.raises(InputError, match="none is not a directory"):
        load_potential(tmp_path / "none" / "tiny.safetensors")
    with pytest.raises(InputError, match="is a directory"):
        load_potential(tmp_path)
    with pytest.raises(InputError, match="by its name or by the path"):
        load_potential(7)


def test_every_shipped_model_loads_and_proves_itself():
    proven = set()
    for name in available_models():
        errors = verify_golden(load_potential(name).astype(torch.float64))
        assert set(errors) >= {"energy", "forces"}
        assert max(errors.values()) < 1e-7
        proven.update(errors)
    assert "stress" in proven  # of those whose structures have a volume


def test_golden_structures_prove_a_good_model_and_expose_a_changed_one(potential):
    structures = [molecule("H2O"), bulk("Cu", cubic=True)]
    structures[0].rattle(0.1, seed=1)
    structures[1].rattle(0.1, seed=1)
    potential.metadata["golden"] = golden_structures(potential, structures)
    loaded = from_bytes(to_bytes(potential))
    assert verify_golden(loaded) == pytest.approx({"energy": 0.0, "forces": 0.0, "stress": 0.0}, abs=1e-13)
    assert "stress" not in loaded.metadata["golden"][0]
    assert np.abs(loaded.metadata["golden"][1]["stress"]).max() > 1e-4
    single = verify_golden(loaded.astype(torch.float32))
    assert 0 < single["forces"] < 1e-3
    with torch.no_grad():
        next(loaded.architecture.parameters()).mul_(1.01)
    assert verify_golden(loaded)["forces"] > 1e-3
    with torch.no_grad():
        next(loaded.architecture.parameters()).fill_(torch.nan)
    assert np.isnan(verify_golden(loaded)["energy"])


def test_golden_structures_without_a_volume_have_no_stress(potential):
    flat, full = molecule("CH4"), molecule("CH4")
    flat.cell[:] = [[5, 0, 0], [0, 5, 0], [5, 5, 0]]
    full.cell[:] = np.diag([5, 5, 5])
    records = golden_structures(potential, [flat, full])
    assert ["stress" in record for record in records] == [False, True]
    assert all(np.isfinite(record["forces"]).all() for record in records)


def test_golden_structures_are_computed_in_float64_and_leave_the_model_alone():
    potential = tiny_potential(dtype=torch.float32)
    potential.metadata["golden"] = golden_structures(potential, [molecule("CH4")])
    assert potential.dtype == torch.float32
    assert verify_golden(potential.astype(torch.float64))["forces"] < 1e-13
    assert verify_golden(potential)["forces"] > 1e-9


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_irreps": "1000000000x0e"},
        {"hidden_irreps": "100000x0e"},
        {"num_species": 10**9},
        {"num_heads": 10**9},
        {"radial_mlp": [10**6] * 3},
        {"num_interactions": 10**6},
        {"num_bessel": 10**9},
        {"cutoff": 1e300},
        {"l_max": 11, "correlation": 4},
    ],
)
def test_a_config_of_a_gigantic_model_is_refused_before_any_memory_is_taken(potential, config):
    settings = asdict(potential.architecture.config)
    assert from_bytes(edited(potential, {"config": settings})).cutoff == potential.cutoff
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="can be built|do not fit|does not fit"):
        from_bytes(edited(potential, {"config": settings | config}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": (1e-3 * np.eye(3)).tolist()}, "Cu4 of this model is too large"),
        ({"cell": (0.2 * np.eye(3)).tolist()}, "too large to be verified; keep fewer"),
    ],
    ids=["tiny cell", "small cell"],
)
def test_golden_structures_that_would_take_minutes_are_refused(potential, change, message):
    potential.metadata["golden"] = golden_structures(potential, [bulk("Cu", cubic=True)])
    assert verify_golden(potential)["energy"] == pytest.approx(0, abs=1e-12)
    potential.metadata["golden"][0].update(change)
    with pytest.raises(InputError, match=message):
        verify_golden(potential)


def test_too_many_golden_structures_are_refused_when_made_and_when_verified(potential, monkeypatch):
    structures = [bulk("Cu")] * 5
    potential.metadata["golden"] = golden_structures(potential, structures)
    monkeypatch.setattr(golden, "MAX_GOLDEN", 4000)
    for attempt in (lambda: verify_golden(potential), lambda: golden_structures(potential, structures)):
        with pytest.raises(InputError, match="too many or too large"):
            attempt()
    assert len(golden_structures(potential, structures[:2])) == 2


@pytest.mark.parametrize(
    "golden", [7, None, {}, [7], [{}], [{"numbers": [1], "positions": [[0]], "cell": 1, "pbc": 1}]]
)
def test_malformed_golden_structures_are_refused(potential, golden):
    potential.metadata["golden"] = golden
    with pytest.raises(InputError, match="golden structures of this model are malformed"):
        verify_golden(from_bytes(to_bytes(potential)))
