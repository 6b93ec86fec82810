"""Files of other packages: converted once, kept with their origin, and remade when the kept copy is not sound."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import InputError
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, __version__, checkpoint, load_potential, save_potential
from ase_equivariant.checkpoint import from_bytes, to_bytes
from ase_equivariant.cli.main import main
from ase_equivariant.convert import convert
from ase_equivariant.golden import verify_golden

MACE = Path(__file__).parents[2] / "shared" / "checkpoints" / "mace"
NEQUIX = MACE.parent / "nequix"
MARK = b"a model of another package: "


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch):
    """A package whose files begin with a mark; the list tells how many were converted."""
    done = []

    def import_model(data):
        done.append(data)
        return from_bytes(data.removeprefix(MARK))

    monkeypatch.setattr(checkpoint, "recognises", lambda data: data.startswith(MARK))
    monkeypatch.setattr(checkpoint, "import_model", import_model)
    return done


@pytest.fixture
def foreign(tmp_path):
    (tmp_path / "my.model").write_bytes(MARK + to_bytes(tiny_potential(heads=("pbe", "scan"))))
    return tmp_path / "my.model"


def test_a_file_is_converted_once(foreign, cache, conversions):
    first, second = load_potential(foreign), load_potential(foreign)
    assert len(conversions) == 1
    assert to_bytes(first) == to_bytes(second)
    EquivariantCalculator(foreign, backend="eager", head="scan").get_forces(bulk("Si"))
    assert len(conversions) == 1
    assert len(list(cache.rglob("*.safetensors"))) == 1
    foreign.write_bytes(MARK + to_bytes(tiny_potential()))
    assert load_potential(foreign).heads == ["default"]
    assert len(conversions) == 2


def test_the_copy_of_another_version_is_not_used(foreign, cache, conversions, monkeypatch):
    load_potential(foreign)
    monkeypatch.setattr(checkpoint, "_converter", lambda: "other")
    load_potential(foreign)
    assert len(conversions) == 2


def test_a_copy_is_named_after_the_file_that_is_asked_for(foreign, tmp_path, cache, conversions):
    load_potential(foreign)
    foreign.rename(tmp_path / "other.model")
    metadata = load_potential(tmp_path / "other.model").metadata
    assert len(conversions) == 1
    assert metadata["name"] == "other"
    assert metadata["provenance"]["source_file"] == "other.model"


@pytest.mark.parametrize("content", [b"", b"damaged", None, MARK + b"again"])
def test_a_damaged_copy_is_noticed_and_made_again(content, foreign, cache, conversions):
    expected = to_bytes(load_potential(foreign))
    copy = next(cache.rglob("*.safetensors"))
    good = copy.read_bytes()
    flipped = good[:-100] + bytes([good[-100] ^ 1]) + good[-99:]
    copy.write_bytes(flipped if content is None else content)
    assert to_bytes(load_potential(foreign)) == expected
    assert len(conversions) == 2
    assert copy.read_bytes() == good


def test_without_a_cache_folder_everything_works(foreign, tmp_path, conversions, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASE_EQUIVARIANT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert load_potential(foreign).heads == ["pbe", "scan"]
    assert len(conversions) == 2


def test_a_full_disk_means_no_cache_and_no_failure(foreign, cache, conversions, monkeypatch):
    def full(fileno):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert load_potential(foreign).heads == ["pbe", "scan"]
    assert not [path for path in cache.rglob("*") if path.is_file()]
    monkeypatch.undo()


def test_an_imported_model_proves_itself_with_every_head(foreign, cache, conversions):
    potential = load_potential(foreign)
    golden = potential.metadata["golden"]
    assert {record["head"] for record in golden} == {"pbe", "scan"}
    assert {z for record in golden for z in record["numbers"]} == {1, 6, 8, 14, 29}
    assert set(verify_golden(potential)) == {"energy", "forces", "stress"}
    assert max(verify_golden(potential).values()) < 1e-10
    with torch.no_grad():
        next(potential.parameters()).mul_(1.01)
    assert max(verify_golden(potential).values()) > 1e-3


def test_a_file_whose_weights_are_not_numbers_is_refused(foreign, cache, conversions):
    potential = tiny_potential()
    with torch.no_grad():
        next(potential.parameters()).fill_(torch.nan)
    foreign.write_bytes(MARK + to_bytes(potential))
    with pytest.raises(InputError, match=r"my\.model gives energies that are not numbers"):
        load_potential(foreign)
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("numbers", [[1, 6, 8, 14, 14], [1, 6, 8, 29, 14], [-1, 6, 8, 14, 29], [1, 6, 8, 14, 10**9]])
def test_a_file_of_elements_that_do_not_exist_or_are_there_twice_is_refused(numbers, foreign, cache, monkeypatch):
    potential = tiny_potential()
    potential.atomic_numbers = numbers
    monkeypatch.setattr(checkpoint, "recognises", lambda data: True)
    monkeypatch.setattr(checkpoint, "import_model", lambda data: potential)
    with pytest.raises(InputError, match=r"my\.model has atomic_numbers .*; they must be sorted, unique and in 1..118"):
        load_potential(foreign)
    assert not list(cache.rglob("*.safetensors"))


def test_golden_structures_of_eighty_nine_elements_are_small(tmp_path):
    potential = tiny_potential(atomic_numbers=(*range(1, 84), *range(89, 95)))
    save_potential(potential, tmp_path / "a.safetensors")
    golden = convert(tmp_path / "a.safetensors").metadata["golden"]
    assert [len(record["numbers"]) for record in golden] == [8, 2]
    assert max(abs(x) for record in golden for row in record["forces"] for x in row) > 1e-3


def test_a_converted_file_tells_where_it_comes_from(foreign, tmp_path, cache, conversions):
    about = {"license": "MIT", "level_of_theory": "PBE", "name": None}
    potential = convert(foreign, ["Si", "O"], ["pbe"], **about)
    save_potential(potential, tmp_path / "a.safetensors")
    metadata = load_potential(tmp_path / "a.safetensors").metadata
    assert (metadata["license"], metadata["level_of_theory"], metadata["name"]) == ("MIT", "PBE", "my")
    assert metadata["provenance"] == {
        "source_file": "my.model",
        "source_sha256": hashlib.sha256(foreign.read_bytes()).hexdigest(),
        "converted_by": f"ase-equivariant {__version__}",
        "restricted_to": "O Si of 5 elements",
        "restricted_to_heads": "pbe of pbe, scan",
    }
    again = convert(tmp_path / "a.safetensors", ["Si"]).metadata["provenance"]
    assert again["source_file"] == "my.model"
    assert again["restricted_to"] == "Si of 2 elements"


def test_info_tells_of_a_foreign_file_what_a_conversion_would_say(foreign, cache, conversions, capsys):
    with pytest.raises(SystemExit) as end:
        main(["info", str(foreign), "--verify"])
    assert not end.value.code
    out = capsys.readouterr().out
    sha256 = hashlib.sha256(foreign.read_bytes()).hexdigest()
    assert all(word in out for word in ("name: my", "source file: my.model", f"source sha256: {sha256}", "Verified"))


def test_a_default_head_answers_where_none_is_asked_for(foreign, tmp_path, cache, conversions):
    with pytest.raises(InputError, match="several heads and no default"):
        EquivariantCalculator(foreign)
    save_potential(convert(foreign, default_head="scan"), tmp_path / "a.safetensors")
    assert EquivariantCalculator(tmp_path / "a.safetensors", backend="eager").parameters["head"] == "scan"
    with pytest.raises(InputError, match="unknown head 'hse'"):
        convert(foreign, default_head="hse")


def test_a_model_without_golden_structures_gets_some_and_others_keep_theirs(tmp_path):
    save_potential(tiny_potential(), tmp_path / "a.safetensors")
    assert "golden" not in load_potential(tmp_path / "a.safetensors").metadata
    potential = convert(tmp_path / "a.safetensors")
    assert verify_golden(potential)["forces"] < 1e-10
    potential.metadata["golden"] = potential.metadata["golden"][:1]
    save_potential(potential, tmp_path / "b.safetensors")
    assert convert(tmp_path / "b.safetensors").metadata["golden"] == potential.metadata["golden"]


@pytest.mark.skipif(not MACE.is_dir(), reason=f"needs the model files in {MACE}")
def test_a_mace_file_for_fewer_elements_gives_its_own_energies(tmp_path, cache):
    save_potential(convert(MACE / "multihead.model", ["Cu"], ["dft"]), tmp_path / "cu.safetensors")
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.1, seed=1)
    results = []
    for file in (MACE / "multihead.model", tmp_path / "cu.safetensors"):
        copper.calc = EquivariantCalculator(file, dtype="float64", backend="eager", head="dft")
        results.append((copper.get_potential_energy(), copper.get_forces()))
    provenance = load_potential(tmp_path / "cu.safetensors").metadata["provenance"]
    assert (provenance["source_package"], provenance["source_file"]) == ("mace-torch", "multihead.model")
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-11)
    assert abs(results[0][1] - results[1][1]).max() < 1e-11
    assert (tmp_path / "cu.safetensors").stat().st_size < (MACE / "multihead.model").stat().st_size / 3


@pytest.mark.skipif(not NEQUIX.is_dir(), reason=f"needs the model files in {NEQUIX}")
def test_a_universal_model_from_a_mirror_for_four_elements_gives_its_own_energies(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("ASE_EQUIVARIANT_MIRROR", str(NEQUIX))
    save_potential(convert("nequix-mp-1", ["H", "C", "N", "O"]), tmp_path / "organic.safetensors")
    acetamide = molecule("CH3CONH2")
    results = []
    for name in ("nequix-mp-1", tmp_path / "organic.safetensors"):
        acetamide.calc = EquivariantCalculator(name, dtype="float64", backend="eager")
        results.append((acetamide.get_potential_energy(), acetamide.get_forces()))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-11)
    assert abs(results[0][1] - results[1][1]).max() < 1e-11 < abs(results[0][1]).max()
    metadata = load_potential(tmp_path / "organic.safetensors").metadata
    assert (metadata["name"], metadata["license"]) == ("nequix-mp-1", "MIT")
    assert metadata["provenance"]["restricted_to"] == "H C N O of 89 elements"
