"""What every registered architecture is: scriptable, storable, and decided by its config and its seed alone."""

import json
from dataclasses import asdict, fields, replace

import pytest
import torch
from structures import STRUCTURES
from tiny import TINY, tiny_potential, unused_irreps

from ase_equivariant.architectures import ARCHITECTURES, build
from ase_equivariant.checkpoint import load_potential, save_potential
from ase_equivariant.derivatives import predict
from ase_equivariant.potential import TABLES

SHARED = ["num_species", "cutoff", "avg_num_neighbors", "num_bessel", "envelope_power", "radial_mlp", "l_max"]
SHARED += ["hidden_irreps", "num_interactions", "interaction_first", "readout_mlp", "num_heads"]
BAD = {
    "num_species": 0,
    "num_bessel": 2.0,
    "envelope_power": None,
    "num_interactions": 0,
    "num_heads": -1,
    "cutoff": 0.0,
    "avg_num_neighbors": float("nan"),
    "radial_mlp": [0],
    "l_max": -1,
    "hidden_irreps": "4x1o",
    "interaction_first": "gated",
    "readout_mlp": -1,
    "bessel_decay": -1.0,
    "bessel_norm": "none",
    "radial_basis": "Chebyshev",
    "trainable_bessel": None,
    "radial": "mlp",
    "correlation": 0,
    "update": "none",
    "interaction": "gated",
    "parity": 1,
    "embedding_channels": -1,
    "skip": "none",
    "resnet": "yes",
    "normalisation": "layer",
    "last_readout_only": None,
    "species_neighbors": [1.0],
    "pair_repulsion": {"radii": [0.3]},
}
SETTINGS = [(name, f.name) for name, kind in ARCHITECTURES.items() for f in fields(kind.Config) if f.name in BAD]


@pytest.fixture
def settings(architecture):
    return {**TINY[architecture], "num_species": 2}


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_the_scripted_potential_gives_the_eager_numbers(architecture, potential, graph_of):
    scripted = torch.jit.script(potential)
    graph = graph_of(*[make() for make in STRUCTURES.values()])
    with torch.jit.optimized_execution(False):
        found = predict(scripted, graph)
    expected = predict(potential, graph)
    for name in ("energy", "node_energies", "forces", "strain_gradient"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-10)
    assert expected.forces.abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_potential_returns_bit_for_bit(architecture, dtype, tmp_path, graph_of):
    potential = tiny_potential(architecture, dtype=dtype, heads=("pbe", "scan"))
    save_potential(potential, tmp_path / "a.safetensors")
    loaded = load_potential(tmp_path / "a.safetensors")
    assert loaded.architecture.config == potential.architecture.config
    assert loaded.heads == potential.heads
    for name in TABLES:
        assert torch.equal(getattr(loaded, name), getattr(potential, name)), name
        assert getattr(potential, name).unique().numel() == 2 * len(potential.atomic_numbers)
    graph = replace(graph_of(*2 * [STRUCTURES["triclinic"]()]), heads=torch.tensor([0, 1]))
    found, expected = predict(loaded, graph), predict(potential, graph)
    for name in ("energy", "node_energies", "forces", "strain_gradient"):
        first, second = getattr(expected, name).chunk(2)
        assert torch.equal(getattr(found, name), torch.cat([first, second])), name
        assert (first - second).abs().max() > 0.01


def test_another_precision_keeps_the_weights_and_gives_nearly_the_same_numbers(architecture, graph_of):
    single = tiny_potential(architecture, dtype=torch.float32)
    double = single.astype(torch.float64)
    for (name, weight), (_, wider) in zip(single.named_parameters(), double.named_parameters(), strict=True):
        assert torch.equal(weight.double(), wider), name
    graph = graph_of(STRUCTURES["molecule"]())
    error = (predict(single, graph).forces - predict(double, graph).forces).abs().max()
    assert 0 < error < 1e-4 * predict(double, graph).forces.abs().max()


def test_a_head_has_an_energy_of_its_own(architecture, graph_of):
    potential = tiny_potential(architecture, heads=("pbe", "hybrid", "cc"))
    graph = graph_of(STRUCTURES["triclinic"]())
    outputs = potential.architecture(graph.vectors(), graph.species, graph.senders, graph.receivers)
    assert outputs.shape == (graph.n_nodes, 3)
    assert (outputs[:, 1:] - outputs[:, :1]).abs().amax(0).min() > 0.001


def test_the_seed_and_nothing_else_decides_the_weights(architecture, settings):
    previous = torch.get_default_dtype(), torch.get_rng_state()
    first, other = (build(architecture, settings, seed=seed).state_dict() for seed in (7, 8))
    torch.set_default_dtype(torch.float64)
    try:
        second = build(architecture, settings, seed=7).state_dict()
    finally:
        torch.set_default_dtype(previous[0])
    assert torch.equal(torch.get_rng_state(), previous[1])
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert weight.dtype == second[name].dtype == torch.float32
        assert not torch.equal(weight, other[name])


def test_only_learned_weights_are_saved(architecture, settings):
    model = build(architecture, settings)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_a_config_survives_json_as_it_is(architecture, settings):
    config = ARCHITECTURES[architecture].Config(**settings)
    assert ARCHITECTURES[architecture].Config(**json.loads(json.dumps(asdict(config)))) == config
    assert isinstance(config.radial_mlp, tuple)


def test_configs_name_what_they_share_alike(architecture):
    assert {f.name for f in fields(ARCHITECTURES[architecture].Config)} >= set(SHARED)


@pytest.mark.parametrize("name", ["nequip", "botnet"])  # those of MACE are in test_mace.py
def test_every_setting_has_a_bad_value_above(name):
    assert {f.name for f in fields(ARCHITECTURES[name].Config)} == {field for kind, field in SETTINGS if kind == name}


@pytest.mark.parametrize(("architecture", "field"), SETTINGS)
def test_a_bad_setting_is_named_with_its_value_and_its_architecture(architecture, field, settings):
    with pytest.raises(ValueError, match=f"^{field} = .* in the {architecture} config: it must be "):
        build(architecture, {**settings, field: BAD[field]})


def test_unknown_settings_are_named(architecture, settings):
    with pytest.raises(ValueError, match=rf"unknown {architecture} config key\(s\) r_max: allowed are num_species,"):
        build(architecture, {**settings, "r_max": 5.0})


def test_defaults_of_every_architecture_can_be_built(architecture):
    minimal = {"num_species": 1, "cutoff": 5.0, "avg_num_neighbors": 10.0}
    assert sum(weight.numel() for weight in build(architecture, minimal).parameters()) > 1000


def test_defaults_name_no_irrep_that_no_layer_carries(architecture):
    assert unused_irreps(architecture, {}) == []
    assert unused_irreps("nequip", {"num_interactions": 2, "l_max": 1, "hidden_irreps": "2x0e+2x1o+2x1e"}) == ["2x1e"]
