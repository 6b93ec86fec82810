"""Less of a model gives the numbers of the whole for what is left."""

import re
from dataclasses import asdict

import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import InputError
from tiny import TINY, tiny_potential

from ase_equivariant.architectures import ARCHITECTURES, build_unweighted
from ase_equivariant.checkpoint import from_bytes, to_bytes
from ase_equivariant.derivatives import predict
from ase_equivariant.golden import golden_structures, verify_golden
from ase_equivariant.graph import from_atoms
from ase_equivariant.restrict import _smaller, restricted

HEADS = ("pbe", "scan", "hse")
RADII = (0.3, 0.8, 0.7, 1.1, 1.3)  # Å, one per species
TABLES = {"distance_transform": "agnesi", "covalent_radii": RADII, "pair_repulsion": {"radii": RADII}}
VARIANTS = {
    **{name: (name, {}) for name in TINY},
    "density": ("mace", {"interaction_first": "density", "interaction": "density_residual", **TABLES}),
    "attention": ("mace", {"interaction": "attention_residual", "readout_mlp": 0, "skip": "shared"}),
    "nonlinear": (
        "mace",
        {
            "interaction_first": "nonlinear",
            "interaction": "nonlinear",
            "agnostic_product": True,
            "apply_cutoff": False,
            "readout": "bias_mlp",
            "last_readout_only": True,
        },
    ),
    "charge": ("mace", {"attributes": (("charge", -1, 1, 0),), "embedding_readout": True}),
    "shared": ("nequip", {"skip": "shared"}),
    "element": ("botnet", {"radial": "element", "skip": "shared"}),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.fixture
def potential(variant):
    return tiny_potential(variant[0], heads=HEADS, **variant[1])


def results(potential, atoms, head):
    asked = {"head": potential.heads.index(head), "attributes": potential.attributes}
    graph = from_atoms(atoms, potential.atomic_numbers, potential.cutoff, **asked)
    prediction = predict(potential, graph)
    return torch.cat([prediction.node_energies.unsqueeze(1), prediction.forces], 1)


@pytest.mark.parametrize("heads", [None, ["scan"], ["hse", "pbe"]])
def test_fewer_elements_and_heads_give_the_same_energies_and_forces(potential, heads):
    water, copper = molecule("H2O"), bulk("Cu", cubic=True)
    water.rattle(0.1, seed=1)
    copper.rattle(0.1, seed=1)
    less = restricted(potential, ["Cu", "O", "H"], heads)
    assert less.atomic_numbers == [1, 8, 29]
    assert less.heads == list(heads or HEADS)
    for atoms in (water, copper):
        for head in less.heads:
            found, expected = results(less, atoms, head), results(potential, atoms, head)
            assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
            assert expected[:, 1:].abs().max() > 1e-3
    assert (results(potential, water, "scan") - results(potential, water, "hse")).abs().max() > 1e-3


def test_a_restricted_model_is_a_smaller_file_that_loads(potential):
    less = restricted(potential, ["H", "O"], ["scan"])
    assert len(to_bytes(less)) < len(to_bytes(potential))
    water = molecule("H2O")
    assert torch.equal(results(from_bytes(to_bytes(less)), water, "scan"), results(less, water, "scan"))


def changed(kind, config, other):
    """Names of weights whose shape depends on what differs between two configs."""
    shapes = [
        {name: value.shape for name, value in build_unweighted(kind, settings, torch.float64).state_dict().items()}
        for settings in (config, other)
    ]
    return {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}


def test_weights_of_species_and_of_heads_are_all_declared(variant, potential):
    kind, config = variant[0], asdict(potential.architecture.config)
    architecture, names = ARCHITECTURES[kind], potential.architecture.state_dict()
    of_species = changed(kind, config, _smaller(config, [0, 3], [0, 1, 2], architecture.SPECIES_TABLES))
    assert of_species <= {name for name in names if re.fullmatch(architecture.SPECIES_WEIGHTS, name)}
    assert "embedding" in of_species
    declared = {name for name in names if any(re.fullmatch(p, name) for p in architecture.HEAD_WEIGHTS)}
    assert changed(kind, config, config | {"num_heads": 4}) == declared


def test_a_weight_that_is_not_declared_is_an_error_and_not_a_guess(monkeypatch):
    monkeypatch.setattr(ARCHITECTURES["mace"], "SPECIES_WEIGHTS", "embedding")
    with pytest.raises(InputError, match=r"cannot restrict mace models with weights called layers\.0"):
        restricted(tiny_potential(), ["H"])


def test_an_architecture_that_declares_nothing_is_not_restricted(monkeypatch):
    monkeypatch.delattr(ARCHITECTURES["botnet"], "SPECIES_WEIGHTS")
    with pytest.raises(InputError, match="cannot restrict botnet models"):
        restricted(tiny_potential("botnet"), ["H"])


def test_tables_of_species_in_the_config_lose_the_same_entries():
    config = restricted(tiny_potential(**TABLES), ["Cu", "O"]).architecture.config
    assert config.covalent_radii == config.pair_repulsion.radii == (0.7, 1.3)


def test_what_a_model_says_of_itself_stays_as_far_as_it_is_true():
    potential = tiny_potential(heads=HEADS)
    structures = [molecule("H2O"), bulk("Cu", cubic=True), molecule("H2O")]
    potential.metadata.update(license="MIT", default_head="pbe")
    potential.metadata["golden"] = golden_structures(potential, structures, ["pbe", "pbe", "scan"])
    less = restricted(potential, ["H", "O"], ["pbe", "hse"])
    assert less.metadata["license"] == "MIT"
    assert less.metadata["default_head"] == "pbe"
    assert [record["numbers"] for record in less.metadata["golden"]] == [[8, 1, 1]]
    assert verify_golden(less)["forces"] < 1e-12
    other = restricted(potential, ["Cu"], ["scan"])
    assert set(other.metadata) == {"license"}
    assert len(potential.metadata["golden"]) == 3


def test_the_whole_stays_as_it_was():
    potential = tiny_potential(heads=HEADS)
    before = to_bytes(potential)
    less = restricted(potential, ["H"], ["scan"])
    with torch.no_grad():
        for parameter in less.parameters():
            parameter.zero_()
    assert to_bytes(potential) == before


@pytest.mark.parametrize(
    ("elements", "heads", "message"),
    [
        (["H", "Au"], None, "does not know Au; choose from H C O Si Cu"),
        (["water"], None, "does not know water; choose from H C O Si Cu"),
        ([], None, "no elements are given; choose from"),
        (None, ["b3lyp"], "unknown head 'b3lyp'; choose one of pbe, scan, hse"),
        (None, [], "needs a head; choose one or more of pbe, scan, hse"),
    ],
)
def test_elements_and_heads_that_the_model_lacks_are_named(elements, heads, message):
    with pytest.raises(InputError, match=message):
        restricted(tiny_potential(heads=HEADS), elements, heads)


def test_malformed_golden_structures_are_refused():
    potential = tiny_potential()
    potential.metadata["golden"] = [7]
    with pytest.raises(InputError, match="malformed"):
        restricted(potential, ["H"])
