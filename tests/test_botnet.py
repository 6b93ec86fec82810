"""BOTNet: its energy has the body order that its layers give it; and what each of its settings does."""

import re
from itertools import combinations

import pytest
import torch
from ase import Atoms
from blocks import assert_same
from structures import STRUCTURES
from tiny import tiny_potential, unused_irreps

from ase_equivariant.architectures import build
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms

GOOD = {"num_species": 2, "cutoff": 4.0, "avg_num_neighbors": 10.0}
# six atoms, each within the cutoff of all others
CLUSTER = Atoms(
    "CHOSiCuH", [[0, 0, 0], [1.1, 0.1, 0], [-0.4, 1.3, 0.2], [-0.5, -0.8, 1.5], [-0.6, -0.7, -1.9], [1.0, 1.2, 1.1]]
)


def graph_of(potential, *structures):
    return concatenate([from_atoms(atoms, potential.atomic_numbers, potential.cutoff) for atoms in structures])


def shares_of(potential, graph):
    return potential.architecture.contributions(graph.vectors(), graph.species, graph.senders, graph.receivers)


def many_body_terms(potential, atoms):
    """The largest term of each order n = 1 … 6 of the energy's many-body expansion, over all subsets of n atoms.

    V(S) = Σ over T ⊆ S of (-1)^(|S|-|T|) E(T)
    """
    subsets = [subset for n in range(1, len(atoms) + 1) for subset in combinations(range(len(atoms)), n)]
    found = predict(potential, graph_of(potential, *[atoms[list(s)] for s in subsets]), forces=False).energy
    energies = dict(zip(map(frozenset, subsets), found.tolist(), strict=True))
    terms = {n: 0.0 for n in range(1, len(atoms) + 1)}
    for subset in subsets:
        parts = [frozenset(part) for n in range(1, len(subset) + 1) for part in combinations(subset, n)]
        term = sum((-1) ** (len(subset) - len(part)) * energies[part] for part in parts)
        terms[len(subset)] = max(terms[len(subset)], abs(term))
    return terms


LINEAR = {"readout_mlp": 0, "l_max": 1, "hidden_irreps": "4x0e+3x1o"}
LINEAR_KINDS = [{}, {"radial": "element"}, {"interaction": "nonresidual", "skip": "shared"}]


@pytest.mark.parametrize("settings", LINEAR_KINDS, ids=str)
@pytest.mark.parametrize("num_interactions", [1, 2, 3, 4])
def test_the_energy_of_a_linear_botnet_has_exactly_one_body_more_than_it_has_layers(num_interactions, settings):
    potential = tiny_potential("botnet", **LINEAR, num_interactions=num_interactions, **settings)
    terms = many_body_terms(potential, CLUSTER)
    order = num_interactions + 1
    assert all(terms[n] < 1e-11 for n in terms if n > order)
    assert all(terms[n] > 1e-4 for n in terms if n <= order)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("botnet", {"readout_mlp": 5, "num_interactions": 2}),
        ("nequip", {"num_interactions": 2, "readout_mlp": 0}),
        ("mace", {}),
    ],
)
def test_readouts_gates_and_products_raise_the_body_order(architecture, settings):
    terms = many_body_terms(tiny_potential(architecture, **settings), CLUSTER)
    assert all(term > 1e-8 for term in terms.values())


def test_each_layer_of_a_botnet_adds_one_body_even_where_the_last_readout_is_not_linear():
    potential = tiny_potential("botnet", num_interactions=3)
    for weight in potential.architecture.readouts[-1].parameters():
        weight.data.zero_()
    terms = many_body_terms(potential, CLUSTER)
    assert terms[4] < 1e-11
    assert terms[3] > 1e-4


def test_the_energy_is_a_polynomial_of_the_radial_functions_of_the_degree_of_its_layers():
    """Differences of order T + 1 along a scale of all radial functions vanish, those of order T do not."""
    potential = tiny_potential("botnet", **LINEAR, num_interactions=3)
    graph, energies = graph_of(potential, CLUSTER), []
    last = [layer.radial_weights.layers[-1].weight for layer in potential.architecture.layers]
    start = [weight.clone() for weight in last]
    for scale in (0.5, 1.0, 1.5, 2.0, 2.5):
        for weight, value in zip(last, start, strict=True):
            weight.data.copy_(scale * value)
        energies.append(predict(potential, graph, forces=False).energy)
    differences = torch.cat(energies)
    for _ in range(3):
        differences = differences.diff()
    assert differences.abs().min() > 1e-4
    assert differences.diff().abs().max() < 1e-11


# Species -------------------------------------------------------------------------------------------------------------


def test_the_first_message_is_multiplied_by_weights_of_the_receiver_s_species():
    """C and O in one place among the same neighbours: they feel the same density and answer with other weights."""
    potential = tiny_potential("botnet", num_interactions=1)
    carbon, oxygen = CLUSTER.copy(), CLUSTER.copy()
    oxygen.symbols[0] = "O"
    first = potential.architecture.layers[0]
    seen = []
    hook = first.linear.register_forward_hook(lambda *args: seen.append(args[-1]))
    shares = [shares_of(potential, graph_of(potential, atoms))[0] for atoms in (carbon, oxygen)]
    assert_same(seen[0][0][0], seen[1][0][0])
    assert (shares[0] - shares[1]).abs().max() > 1e-3
    for dense in first.skip.maps:
        dense.weight.data[2] = dense.weight.data[1]  # of O, those of C
    shares = [shares_of(potential, graph_of(potential, atoms))[0] for atoms in (carbon, oxygen)]
    hook.remove()
    assert_same(shares[0], shares[1])


def test_a_first_layer_without_a_residual_gives_an_isolated_atom_nothing():
    energies = []
    for interaction_first in ("nonresidual", "residual"):
        potential = tiny_potential("botnet", interaction_first=interaction_first)
        constant = potential.atomic_energies[0, 1] + potential.shift[0, 1]
        energies.append((predict(potential, graph_of(potential, Atoms("C"))).energy[0] - constant).item())
    assert energies[0] == 0
    assert abs(energies[1]) > 1e-3


def radial_functions(potential, symbol):
    """R(r) that a sender of this element has in the first layer."""
    layer = potential.architecture.layers[0]
    seen = []
    hook = layer.convolution.register_forward_hook(lambda _, inputs, __: seen.append(inputs[2]))
    predict(potential, graph_of(potential, Atoms(["Cu", symbol], [[0, 0, 0], [0, 0, 1.7]])), forces=False)
    hook.remove()
    return seen[0][0]  # edges are sorted by receiver: this one starts at the second atom


def test_radial_functions_depend_on_the_sender_s_element_where_they_are_told_to():
    for radial, differ in (("agnostic", False), ("element", True)):
        potential = tiny_potential("botnet", radial=radial)
        hydrogen, oxygen = radial_functions(potential, "H"), radial_functions(potential, "O")
        assert ((hydrogen - oxygen).abs().max() > 0.01).item() is differ


def test_radial_functions_of_elements_are_linear_in_the_bessel_functions():
    potential = tiny_potential("botnet", radial="element")
    weight = potential.architecture.layers[0].radial_weights.weight[2]  # of O
    length = torch.tensor([1.7], dtype=torch.float64)
    expected = potential.architecture.radial(length) @ weight / 6**0.5
    assert_same(radial_functions(potential, "O"), expected[0])
    assert expected.abs().max() > 0.01


# Settings ------------------------------------------------------------------------------------------------------------

ALL_KINDS = {"num_interactions": 6, "hidden_irreps": "4x0e+1x0o+3x1o+2x1e+2x2e+1x2o"}  # 0o takes six layers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("radial", "mlp"),
        ("interaction_first", "none"),
        ("l_max", 7),
        ("hidden_irreps", "4x0e+4x3o"),
        ("num_heads", 0),
        ("bessel_decay", "1"),
        ("bessel_norm", "none"),
        ("radial_basis", "chebyshev"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field} = {value!r} in the botnet config: it must be ")):
        build("botnet", {**GOOD, "l_max": 2, field: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"radial": "element"},
        {"radial_mlp": ()},
        {"readout_mlp": 0},
        {"interaction_first": "residual"},
        {"interaction": "nonresidual"},
        {"skip": "shared"},
        {"radial_basis": "gaussian", "bessel_norm": "paper"},
        {"trainable_bessel": True, "bessel_decay": 1.0},
        {"num_interactions": 1},
        ALL_KINDS,
        {"l_max": 0, "hidden_irreps": "4x0e"},
        {"hidden_irreps": "5x0e+2x2e"},
        {"envelope_power": 2, "num_bessel": 3},
        {"radial": "element", "bessel_decay": 1.0},
    ],
    ids=str,
)
def test_every_kind_of_model_is_invariant_and_another_one(settings, rotation):
    potential = tiny_potential("botnet", **settings)
    atoms, turned = STRUCTURES["molecule"](), STRUCTURES["molecule"]()
    turned.positions[:] = -atoms.positions @ rotation.numpy().T
    prediction, other = (predict(potential, graph_of(potential, a)) for a in (atoms, turned))
    assert_same(other.energy, prediction.energy)
    assert_same(other.forces, -prediction.forces @ rotation.T)
    assert prediction.forces.abs().max() > 0.01
    default = predict(tiny_potential("botnet"), graph_of(potential, atoms))
    assert (default.energy - prediction.energy).abs().item() > 1e-4


def test_odd_scalars_take_six_layers():
    assert unused_irreps("botnet", {"l_max": 2, **ALL_KINDS}) == []
    assert unused_irreps("botnet", {"l_max": 2, **ALL_KINDS, "num_interactions": 5}) == ["1x0o"]
