"""MACE: what its config accepts, what each of its settings does, and how its weights come to be."""

import math
import re
from dataclasses import asdict

import pytest
import torch
from ase import Atoms
from blocks import assert_same
from structures import STRUCTURES
from tiny import TINY, tiny_potential

from ase_equivariant.architectures import ARCHITECTURES, build
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms

GOOD = {"num_species": 2, "cutoff": 4.0, "avg_num_neighbors": 10.0}
BAD = {
    **dict.fromkeys(["num_species", "num_bessel", "envelope_power", "num_interactions"], [0, -1, 2.0, "2", None, True]),
    "num_heads": [0, -1, 2.0, "2", None, True],
    "readout_mlp": [-1, 2.0, "2", None, True],
    **dict.fromkeys(["cutoff", "avg_num_neighbors"], [0, -1.0, math.nan, math.inf, "4", None]),
    "bessel_decay": [-0.5, 10.5, math.nan, "1", True, None],
    "bessel_norm": ["Paper", "", 1.0, None],
    "radial_mlp": [64, "64", [0], [16, 1.5], None],
    "l_max": [-1, 12, 2.0, "2", None],
    "correlation": [0, 5, 2.0, "3", [2, 2, 2], [3, 0], []],
    **dict.fromkeys(["trainable_bessel", "apply_cutoff", "agnostic_product", "parity", "last_readout_only"], [1, None]),
    **dict.fromkeys(["radial_basis", "distance_transform", "readout", "readout_activation"], ["Bessel", "", None]),
    **dict.fromkeys(["radial", "update", "skip", "normalisation"], ["element", "gate", "rms", "", None]),
    "transform_constants": [[1.0], "none", None],
    "covalent_radii": [[0.3, 0.7], 1.0, None],  # there is no transform that would need them
    "edge_irreps_first": ["4x0e+4x1o", "4x1o", "all", None],
    "edge_irreps": ["4x1o", "4x0e+4x2e", "all", None],
    "pair_repulsion": [{}, {"radii": [0.3]}, {"decay": 1.0, "radii": [0.3, 0.7]}, [0.3, 0.7], True],
    "attributes": [
        7,
        [7],
        [["charge", -1, 1]],
        [["charge", -1, 1, 2]],
        [["charge", 0, 10000, 0]],
        [["q", 0, 1, 0]] * 2,
    ],
    "embedding_readout": [1, "no", None],
    "interaction_first": ["Residual", "", None],
    "interaction": ["gated", []],
    "hidden_irreps": [
        "",
        "4x1o",
        "4x1o+4x0e",
        "4x0e+8x1o",
        "4x0e+4x0e",
        "4x0e+4x1e",
        "4x0e+4x4e",
        "0x0e",
        "all",
        4,
        None,
    ],
}


def graph_of(potential, *structures, head=0):
    graphs = [from_atoms(atoms, potential.atomic_numbers, potential.cutoff, head=head) for atoms in structures]
    return concatenate(graphs)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_setting_is_named_with_its_value(field, value):
    message = f"{field} = {value!r} in the mace config: it must be "
    with pytest.raises(ValueError, match=re.escape(message)):
        build("mace", {**GOOD, field: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"num_interactions": 11},
        {"radial_mlp": [1] * 11},
        {"num_bessel": 1001},
        {"envelope_power": 101},
        {"cutoff": 100.1},
        {"cutoff": True},
        {"l_max": 11, "correlation": 4},
        {"l_max": 6, "correlation": 4, "hidden_irreps": "4x0e"},
        {"l_max": 11, "correlation": 3, "hidden_irreps": "4x0e+4x1o"},
    ],
)
def test_settings_that_no_machine_could_hold_are_refused_at_once(settings):
    with pytest.raises(ValueError, match="in the mace config: it must be"):
        ARCHITECTURES["mace"].Config(**{**GOOD, **settings})
    for possible in ({"l_max": 11, "correlation": 2}, {"l_max": 4, "correlation": 4, "hidden_irreps": "4x0e+4x1o"}):
        ARCHITECTURES["mace"].Config(**{**GOOD, **possible})


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("bessel_decay", {"bessel_decay": 1.0, "radial_basis": "gaussian"}),
        ("bessel_norm", {"bessel_norm": "unit", "radial_basis": "chebyshev"}),
        ("trainable_bessel", {"trainable_bessel": True, "radial_basis": "gaussian"}),
        ("readout_mlp", {"readout": "bias_mlp", "readout_mlp": 0}),
        ("readout_activation", {"readout_activation": "tanh", "readout_mlp": 0}),
        ("readout", {"readout": "linear"}),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(field, settings):
    with pytest.raises(ValueError, match=f"^{field} = .* in the mace config: it must be .*(radial_basis|readout)"):
        ARCHITECTURES["mace"].Config(**{**GOOD, **settings})


def test_every_setting_has_its_bad_values_above():
    assert set(BAD) == set(asdict(ARCHITECTURES["mace"].Config(**GOOD)))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mcae", GOOD, "unknown architecture 'mcae': known are mace"),
        ("mace", {**GOOD, "r_max": 5.0}, r"unknown mace config key\(s\) r_max: allowed are num_species, cutoff,"),
        ("mace", {"cutoff": 4.0}, "num_species"),
    ],
)
def test_unknown_names_and_missing_settings_are_named(name, config, message):
    with pytest.raises(ValueError, match=message):
        build(name, config)


def test_a_config_survives_json_as_it_is():
    config = ARCHITECTURES["mace"].Config(**{**GOOD, "radial_mlp": [16, 8]})
    assert ARCHITECTURES["mace"].Config(**asdict(config)) == config
    assert config.radial_mlp == (16, 8)


@pytest.mark.parametrize(
    "settings",
    [
        *[{"correlation": nu} for nu in (1, 2, 4)],
        *[{"l_max": l_max, "hidden_irreps": "4x0e"} for l_max in (0, 1, 3)],
        {"hidden_irreps": "4x0e+4x2e"},
        {"hidden_irreps": "4x0e+4x1o+4x2e"},
        {"interaction_first": "residual"},
        {"interaction": "nonresidual"},
        {"skip": "shared"},
        {"readout_mlp": 0},
        {"num_interactions": 1},
        {"num_interactions": 3},
        {"radial_mlp": ()},
        {"num_bessel": 1, "envelope_power": 2, "readout_mlp": 1},
        {"bessel_decay": 1.0},
    ],
    ids=str,
)
def test_every_kind_of_model_is_invariant_smooth_and_felt(settings, rotation):
    """Each setting makes another model, of the same symmetry, with forces that sum to zero."""
    potential = tiny_potential(**settings)
    atoms, turned = STRUCTURES["molecule"](), STRUCTURES["molecule"]()
    turned.positions[:] = atoms.positions @ rotation.numpy().T
    prediction, other = (predict(potential, graph_of(potential, a)) for a in (atoms, turned))
    assert_same(other.energy, prediction.energy)
    assert_same(other.forces, prediction.forces @ rotation.T)
    assert prediction.forces.sum(0).abs().max() < 1e-12 * prediction.forces.abs().max()
    assert prediction.forces.abs().max() > 0.01
    default = predict(tiny_potential(), graph_of(potential, atoms))
    assert (default.energy - prediction.energy).abs().item() > 1e-4


def test_angles_are_felt_with_harmonics_or_with_more_than_pairs_only():
    """Scalars of the first order know distances to neighbours; harmonics squared know the angle between them."""

    def bent(angle, **settings):
        positions = [[0, 0, 0], [1.5, 0, 0], [1.5 * math.cos(angle), 1.5 * math.sin(angle), 0]]
        potential = tiny_potential(num_interactions=1, cutoff=2.0, hidden_irreps="4x0e", **settings)
        return predict(potential, graph_of(potential, Atoms("OHH", positions))).energy.item()

    for settings in ({"l_max": 0, "correlation": 4}, {"l_max": 3, "correlation": 1}):
        assert bent(1.6, **settings) == pytest.approx(bent(2.4, **settings), abs=1e-12)
    assert abs(bent(1.6, l_max=1, correlation=2) - bent(2.4, l_max=1, correlation=2)) > 1e-6


@pytest.mark.parametrize("number", [1, 6, 29])
def test_an_isolated_atom_has_exactly_e0_and_shift_when_the_first_layer_is_nonresidual(number):
    potential = tiny_potential()
    index = potential.atomic_numbers.index(number)
    constant = potential.atomic_energies[0, index] + potential.shift[0, index]
    assert predict(potential, graph_of(potential, Atoms([number]))).energy[0] == constant


def test_an_isolated_atom_has_a_constant_of_its_own_when_the_first_layer_is_residual():
    potential = tiny_potential(interaction_first="residual")
    prediction = predict(potential, graph_of(potential, Atoms("C"), Atoms("C", [[1, 2, 3]])))
    constant = potential.atomic_energies[0, 1] + potential.shift[0, 1]
    assert (prediction.energy[0] - constant).abs() > 0.01
    assert prediction.energy[0] == prediction.energy[1]
    assert (prediction.forces == 0).all()


def test_a_head_selects_its_column_its_reference_energies_and_its_scale():
    potential = tiny_potential(heads=("pbe", "hybrid", "cc"))
    atoms = STRUCTURES["triclinic"]()
    graph = concatenate([graph_of(potential, atoms, head=head) for head in (2, 0)])
    outputs = potential.architecture(graph.vectors(), graph.species, graph.senders, graph.receivers)
    assert outputs.shape == (2 * len(atoms), 3)
    found = predict(potential, graph).node_energies
    for part, head in ((slice(0, 4), 2), (slice(4, 8), 0)):
        species = graph.species[part]
        expected = potential.scale[head, species] * outputs[part, head]
        expected = expected + potential.atomic_energies[head, species] + potential.shift[head, species]
        assert_same(found[part], expected)
    assert (outputs[:, 0] - outputs[:, 2]).abs().max() > 0.01


def test_training_one_head_leaves_the_readouts_of_the_others_alone():
    potential = tiny_potential(heads=("pbe", "hybrid"))
    prediction = predict(potential, graph_of(potential, STRUCTURES["molecule"](), head=1), create_graph=True)
    prediction.forces.square().sum().backward()
    readouts = potential.architecture.readouts
    columns = [
        readouts[0].linear.weight.grad.T,
        readouts[1].weight.grad,
        readouts[1].hidden.weight.grad.T.reshape(2, -1),
    ]
    for column in columns:
        assert (column[0] == 0).all()
        assert column[1].abs().max() > 0


def test_weights_of_a_species_matter_for_its_atoms_only():
    potential = tiny_potential()
    atoms = {
        "water": Atoms("OHH", [[0, 0, 0], [0.9, 0, 0.3], [-0.9, 0, 0.3]]),
        "carbon": Atoms("CC", [[0] * 3, [1.3] * 3]),
    }
    graph = graph_of(potential, *atoms.values())
    before = predict(potential, graph).energy
    tables = {name: weight for name, weight in potential.named_parameters() if weight.shape[0] == 5}  # species first
    assert (
        len(tables) == 1 + 3 + 3 * 2 + 3 + 1
    )  # embedding; skips of l 0 to 2, products of L 0 and 1; products of L 0, skip
    for name, weight in tables.items():
        weight.data[1] += 0.5
        after = predict(potential, graph).energy
        assert after[0] == before[0], name
        assert (after[1] - before[1]).abs() > 1e-11, name
        weight.data[1] -= 0.5


def test_the_average_number_of_neighbours_divides_under_a_root():
    """With the same weights, four times the number halves the density, hence a product of two by four."""
    atoms = Atoms("CC", [[0, 0, 0], [0, 0, 1.4]])
    settings = {"num_interactions": 1, "correlation": 2}
    weights = tiny_potential(**settings).state_dict()

    def quadratic(number):
        potential = tiny_potential(avg_num_neighbors=number, **settings)
        potential.load_state_dict(weights)
        for output in potential.architecture.layers[0].contraction.outputs:
            output.orders[0].weight.data.zero_()
        potential.architecture.readouts[0].hidden.weight.data.mul_(1e-4)  # SiLU(x) is x/2 near zero
        return predict(potential, graph_of(potential, atoms)).energy - potential.atomic_energies[0, 1] * 2

    base = 2 * tiny_potential().shift[0, 1]
    assert ((quadratic(4.0) - base) / (quadratic(16.0) - base)).item() == pytest.approx(4, rel=1e-3)


def test_products_of_many_factors_start_where_those_of_the_mean_over_neighbours_would():
    """The paper divides by N̄ and we by √N̄: weights drawn N̄^(ν/2) smaller give its products at the start."""
    few, many = (tiny_potential(avg_num_neighbors=n).architecture.layers[0].contraction.outputs[0] for n in (4.0, 16.0))
    for nu, (wide, narrow) in enumerate(zip(few.orders, many.orders, strict=True), 1):
        torch.testing.assert_close(narrow.weight * 2.0**nu, wide.weight, rtol=1e-12, atol=0)


def test_the_seed_and_nothing_else_decides_the_weights():
    torch.manual_seed(1)
    first = build("mace", GOOD, seed=7).state_dict()
    torch.manual_seed(2)
    second, other = build("mace", GOOD, seed=7).state_dict(), build("mace", GOOD, seed=8).state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert not torch.equal(weight, other[name])


@pytest.mark.parametrize("default", [torch.float16, torch.float64])
def test_building_neither_uses_nor_touches_global_state(default):
    expected = tiny_potential(dtype=torch.float32)
    previous, state = torch.get_default_dtype(), torch.get_rng_state()
    torch.set_default_dtype(default)
    try:
        potential = tiny_potential(dtype=torch.float32)
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(previous)
    assert torch.equal(torch.get_rng_state(), state)
    for found, wanted in ((potential.parameters(), expected.parameters()), (potential.buffers(), expected.buffers())):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, wanted, strict=True))


def test_only_learned_weights_are_saved():
    state = build("mace", {**GOOD, **TINY["mace"]}).state_dict()
    assert set(state) == {name for name, _ in build("mace", {**GOOD, **TINY["mace"]}).named_parameters()}


def test_another_precision_keeps_the_weights_and_derives_the_constants_anew():
    single = tiny_potential(dtype=torch.float32)
    double, fresh = single.astype(torch.float64), tiny_potential()
    for (name, weight), (_, wider) in zip(single.named_parameters(), double.named_parameters(), strict=True):
        assert torch.equal(weight.double(), wider), name
    for (name, buffer), (_, exact) in zip(double.named_buffers(), fresh.named_buffers(), strict=True):
        assert torch.equal(buffer, exact), name
    rounded = dict(single.named_buffers())["architecture.radial.frequencies"].double()
    assert not torch.equal(rounded, double.architecture.radial.frequencies)
    again = double.astype(torch.float32)
    graph = graph_of(single, STRUCTURES["molecule"]())
    for found, wanted in zip(again.state_dict().values(), single.state_dict().values(), strict=True):
        assert torch.equal(found, wanted)
    energies = [predict(potential, graph).energy for potential in (single, double, again)]
    assert torch.equal(energies[0], energies[2])
    assert 0 < (energies[0] - energies[1]).abs() < 1e-5 * energies[1].abs()
    assert {energy.dtype for energy in energies} == {torch.float64}


def test_a_copy_of_another_precision_shares_nothing_with_the_original():
    potential = tiny_potential()
    copy = potential.astype(torch.float64)
    state = {name: tensor.clone() for name, tensor in potential.state_dict().items()}
    for tensor in copy.state_dict().values():
        tensor += 1.0
    copy.metadata["name"] = "changed"
    assert all(torch.equal(tensor, state[name]) for name, tensor in potential.state_dict().items())
    assert potential.metadata == {}


def test_tables_of_a_wrong_shape_are_refused():
    potential = tiny_potential()
    tables = {"atomic_energies": [[0.0] * 5], "scale": [[1.0] * 5], "shift": [[0.0] * 4]}
    with pytest.raises(ValueError, match=r"shift has shape \(1, 4\); it must be \(heads, species\) = \(1, 5\)"):
        type(potential)(potential.architecture, atomic_numbers=potential.atomic_numbers, **tables)


def test_energies_are_summed_in_float64_whatever_the_precision_of_the_network():
    """E0s of a million electronvolts cost no digit of the interaction."""
    potential = tiny_potential(dtype=torch.float32)
    heavy = tiny_potential(dtype=torch.float32)
    heavy.atomic_energies -= 2.0**20
    graph = graph_of(potential, STRUCTURES["molecule"]())
    difference = predict(potential, graph).energy - predict(heavy, graph).energy
    assert difference.item() == pytest.approx(6 * 2.0**20, abs=1e-8)
