"""What a model knows of a structure besides its atoms: its charge and its spin, as `atoms.info` has them."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import InputError
from structures import STRUCTURES
from test_importers_mace import BLOCKS, as_record
from tiny import tiny_potential

from ase_equivariant import EquivariantCalculator, load_potential, save_potential
from ase_equivariant.checkpoint import from_bytes, to_bytes
from ase_equivariant.cli.main import main
from ase_equivariant.derivatives import predict
from ase_equivariant.golden import golden_probes, golden_structures, verify_golden
from ase_equivariant.graph import concatenate, from_atoms
from ase_equivariant.importers.mace import import_mace
from ase_equivariant.importers.records import ForeignFileError
from ase_equivariant.inference.lower import lower
from ase_equivariant.inference.program import EmbedAttributes
from ase_equivariant.inference.torchscript import export
from ase_equivariant.restrict import fix_attributes
from ase_equivariant.training.config import read_config
from ase_equivariant.training.train import started_from

ATTRIBUTES = (("charge", -1, 2, 0), ("spin", 0, 3, 1))


@pytest.fixture(scope="module")
def potential():
    return tiny_potential(attributes=ATTRIBUTES)


def water(**info):
    atoms = molecule("H2O")
    atoms.rattle(0.1, seed=1)
    atoms.info.update(info)
    return atoms


def graph_of(potential, atoms):
    return from_atoms(atoms, potential.atomic_numbers, potential.cutoff, attributes=potential.attributes)


def calculator(potential):
    return EquivariantCalculator(potential, device="cpu", dtype="float64", backend="eager")


def test_each_charge_and_spin_has_an_energy_and_forces_of_its_own(potential):
    calc = calculator(potential)
    cases = [{"charge": c, "spin": s} for c in (-1, 0, 2) for s in (0, 1, 3)]
    results = [(calc.get_potential_energy(water(**info)), calc.get_forces(water(**info))) for info in cases]
    for i, (energy, forces) in enumerate(results):
        for other_energy, other_forces in results[:i]:
            assert abs(energy - other_energy) > 1e-3
            assert np.abs(forces - other_forces).max() > 1e-3
    calc.calculate(water(), ["forces"])
    assert calc.results["energy"] == results[4][0]


@pytest.mark.parametrize("key", ["charge", "spin"])
def test_changing_one_number_of_the_same_atoms_is_noticed(potential, key):
    atoms, other = water(), water(**{key: 2})
    atoms.calc, other.calc = calculator(potential), calculator(potential)
    before = atoms.get_potential_energy()
    atoms.info[key] = 2
    assert atoms.get_potential_energy() == other.get_potential_energy()
    assert abs(atoms.get_potential_energy() - before) > 1e-3
    assert atoms.calc.calls == 2
    del atoms.info[key]
    assert atoms.get_potential_energy() == before
    atoms.info["name"] = "water"
    assert atoms.calc.check_state(atoms) == []
    assert atoms.calc.calls == 2


def test_a_number_that_changes_in_place_or_becomes_a_wrong_one_is_noticed(potential):
    number, atoms, other = np.array(1), water(), water(charge=2)
    atoms.info["charge"] = number
    atoms.calc, other.calc = calculator(potential), calculator(potential)
    before = atoms.get_potential_energy()
    number[...] = 2
    assert atoms.get_potential_energy() == other.get_potential_energy() != before
    atoms.info["charge"] = True
    with pytest.raises(InputError, match="needs a whole number"):
        atoms.get_potential_energy()


def test_a_model_that_does_not_know_charges_does_not_look_at_them():
    atoms = water(charge="unknown")
    atoms.calc = calculator(tiny_potential())
    before = atoms.get_potential_energy()
    atoms.info["charge"] = 1
    assert atoms.get_potential_energy() == before
    assert atoms.calc.calls == 1


MASKED = (np.ma.masked, np.ma.masked_array(1, mask=True))


@pytest.mark.parametrize("value", [0.5, 3, -2, np.nan, np.inf, None, "1", True, [1, 1], [1, [2]], [[1], []], *MASKED])
def test_a_charge_that_the_model_does_not_know_is_refused(potential, value):
    rule = "needs a whole number from -1 to 2 there, and takes 0 where it is missing"
    with pytest.raises(InputError, match=rf"atoms.info\['charge'\] is .*{rule}"):
        calculator(potential).get_potential_energy(water(charge=value))


@pytest.mark.parametrize("value", [2, 2.0, np.int64(2), np.float32(2), np.array(2), np.ma.masked_array(2)])
def test_any_kind_of_whole_number_will_do(potential, value):
    assert graph_of(potential, water(charge=value)).attributes.tolist() == 3 * [[2, 1]]


def test_structures_of_a_batch_keep_their_own_charges(potential):
    graphs = [graph_of(potential, atoms) for atoms in (water(charge=1), water(), water(charge=1, spin=2))]
    together = predict(potential, concatenate(graphs)).energy
    alone = torch.cat([predict(potential, graph).energy for graph in graphs])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert len({round(float(energy), 6) for energy in alone}) == 3


def test_an_embedding_readout_is_the_energy_of_atoms_in_their_state():
    """Without any interaction, two charges differ by what a linear map of the embedding says."""
    potential = tiny_potential(attributes=ATTRIBUTES, embedding_readout=True)
    architecture = potential.architecture
    graphs = [graph_of(potential, Atoms("Si", info={"charge": charge})) for charge in (-1, 2)]
    for graph in graphs:
        feats = architecture.embedding[3] + architecture.attributes(graph.attributes)[0]
        expected = (feats @ architecture.embedding_readout.linear.weight) / len(feats) ** 0.5
        inputs = graph.vectors(), graph.species, graph.senders, graph.receivers, graph.attributes
        share = architecture.contributions(*inputs)[0, 0]
        torch.testing.assert_close(share, expected, rtol=1e-12, atol=0)
    energies = [predict(potential, graph).energy.item() for graph in graphs]
    assert abs(energies[0] - energies[1]) > 1e-3
    plain = tiny_potential(attributes=ATTRIBUTES)
    energies = [predict(plain, graph).energy.item() for graph in graphs]
    assert energies[0] == energies[1]  # non-residual layers give an atom without neighbours nothing


def test_no_atoms_have_no_energy(potential):
    assert calculator(potential).get_potential_energy(Atoms()) == 0.0


def test_a_graph_without_the_numbers_is_refused(potential):
    graph = from_atoms(water(), potential.atomic_numbers, potential.cutoff)
    with pytest.raises(ValueError, match=r"attributes=potential\.attributes"):
        predict(potential, graph)


def test_files_and_golden_structures_keep_the_numbers(potential):
    own = tiny_potential(attributes=ATTRIBUTES)
    own.metadata["golden"] = golden_probes(own) + golden_structures(own, [water(charge=-1)])
    assert [record["info"]["charge"] for record in own.metadata["golden"]] == [1, 0, -1]
    again = from_bytes(to_bytes(own))
    assert again.attributes == ATTRIBUTES
    assert verify_golden(again)["forces"] < 1e-12
    with torch.no_grad():
        again.architecture.attributes.table[0] += 1.0  # the row of charge -1
    assert verify_golden(again)["forces"] > 1e-3


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_scripts_know_charges_and_exported_files_say_that_they_do_not(potential, tmp_path):
    atoms = STRUCTURES["triclinic"]()
    atoms.info["charge"] = 2
    graph = graph_of(potential, atoms)
    expected, found = (predict(p, graph).forces for p in (potential, torch.jit.script(potential)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    with pytest.raises(InputError, match="depends on the charge and spin of a structure"):
        export(potential, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_a_model_for_one_charge_and_spin_is_the_whole_one_there(tmp_path):
    whole = tiny_potential(attributes=ATTRIBUTES, embedding_readout=True, l_max=1, correlation=2)
    fixed = fix_attributes(whole, {"charge": 2})
    assert fixed.attributes == ()
    ions = [water(charge=charge) for charge in (2, 1)]
    expected, other = (predict(whole, graph_of(whole, atoms)) for atoms in ions)
    found = predict(fixed, graph_of(fixed, ions[1]))
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=1e-12)
    assert abs(found.forces - other.forces).max() > 1e-3
    export(fixed, tmp_path / "a.pt")
    assert not any(isinstance(stage, EmbedAttributes) for stage in lower(fixed, exact=True).stages)
    assert any(isinstance(stage, EmbedAttributes) for stage in lower(whole, exact=True).stages)


def test_convert_fixes_a_charge_and_says_so(potential, tmp_path, capsys):
    save_potential(potential, tmp_path / "whole.safetensors")
    command = ["convert", str(tmp_path / "whole.safetensors"), "-o", str(tmp_path / "ion.safetensors"), "--fix"]
    with pytest.raises(SystemExit) as end:
        main([*command, "charge=-1"])
    assert not end.value.code
    metadata = load_potential(tmp_path / "ion.safetensors").metadata
    assert metadata["provenance"]["fixed"] == "charge -1, spin 1"
    assert verify_golden(load_potential(tmp_path / "ion.safetensors"))["forces"] < 1e-10
    sentences = {
        "charge=9": "from -1 to 2",
        "mass=1": "charge and spin",
        "charge": "=1,spin=2",
        "spin=1,spin=2": "once",
    }
    for wrong, reason in sentences.items():
        with pytest.raises(SystemExit) as end:
            main([*command, wrong])
        assert end.value.code == 2
        assert reason in capsys.readouterr().err


def test_training_says_that_it_does_not_support_them(potential, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "{name: a, output: ., data: {train: a, valid: a}, architecture: mace, model: {cutoff: 4.0, attributes: []}}"
    )
    with pytest.raises(InputError, match="without attributes, such as charges of structures"):
        read_config(path)
    (tmp_path / "a.safetensors").write_bytes(to_bytes(potential))
    path.write_text("{name: a, output: ., data: {train: a, valid: a}, architecture: mace, model: {cutoff: 4.0}}")
    with pytest.raises(
        InputError, match="depends on the charge and spin of a structure; such models cannot be trained"
    ):
        started_from(tmp_path / "a.safetensors", read_config(path)[0], None)


def test_an_embedding_with_a_bias_is_refused():
    root = as_record(BLOCKS["models"]["charge and spin"]["tree"])
    root.get("joint_embedding.project.0").state["_parameters"]["bias"] = torch.ones(4)
    with pytest.raises(ForeignFileError, match="projected by something else"):
        import_mace(root)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("temperature", {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 2}),
        ("total_charge", {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 2}),
        ("total_spin", {"type": "categorical", "per": "atom", "num_classes": 3, "emb_dim": 2}),
        ("site", {"type": "categorical", "per": "graph", "num_classes": 3, "emb_dim": 2}),
    ],
)
def test_other_embeddings_of_mace_torch_are_refused_by_name(name, spec):
    root = as_record(BLOCKS["models"]["charge and spin"]["tree"])
    assert import_mace(root).attributes == (("spin", 0, 3, 1), ("charge", -2, 2, 0))
    root.get("joint_embedding").state["specs"] = {name: spec}
    with pytest.raises(ForeignFileError, match=f"depends on {name}, a {spec['type']} number per {spec['per']}"):
        import_mace(root)
