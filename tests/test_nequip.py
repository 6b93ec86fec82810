"""NequIP: what each of its settings does, what parity means, and what an atom without neighbours has."""

import re

import pytest
import torch
from ase import Atoms
from blocks import assert_same
from graphs import assert_eager_to_the_last_digits, batch
from structures import STRUCTURES
from tiny import tiny_potential, unused_irreps

from ase_equivariant.architectures import build
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms
from ase_equivariant.inference.numba import Numba
from ase_equivariant.inference.torchscript import TorchScript

GOOD = {"num_species": 2, "cutoff": 4.0, "avg_num_neighbors": 10.0}
DEEP = {"num_interactions": 6, "hidden_irreps": "4x0e+2x0o+3x1o+2x1e"}
CHIRAL = Atoms("CHOSiCu", [[0, 0, 0], [1.1, 0.1, 0], [-0.4, 1.3, 0.2], [-0.5, -0.8, 1.5], [-0.6, -0.7, -1.9]])


def graph_of(potential, *structures):
    return concatenate([from_atoms(atoms, potential.atomic_numbers, potential.cutoff) for atoms in structures])


def mirrored(atoms):
    other = atoms.copy()
    other.positions *= -1
    return other


def features_of(potential, graph):
    """Features after each layer, as blocks."""
    found = []
    hooks = [
        layer.register_forward_hook(lambda *args: found.append(args[-1])) for layer in potential.architecture.layers
    ]
    predict(potential, graph, forces=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("skip", "none"),
        ("normalisation", "layer"),
        ("parity", 1),
        ("resnet", "yes"),
        ("trainable_bessel", None),
        ("bessel_decay", -1.0),
        ("bessel_norm", "none"),
        ("radial_basis", "chebyshev"),
        ("readout_mlp", 1.5),
        ("l_max", 7),
        ("embedding_channels", -1),
        ("embedding_channels", 20000),
        *[("species_neighbors", given) for given in ([1.0], [1.0, 0.0], [1.0, float("inf")], [1.0, None], 2.0, None)],
        *[
            ("pair_repulsion", given)
            for given in ({}, {"radii": [0.3]}, {"decay": 1.0, "radii": [0.3, 0.7]}, 0.3, True)
        ],
        *[("hidden_irreps", text) for text in ("4x0o", "4x0e+4x3o", "4x0e+4x0e", "99999x0e", "all", "", None)],
    ],
)
def test_a_bad_setting_is_named_with_its_value(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field} = {value!r} in the nequip config: it must be ")):
        build("nequip", {**GOOD, field: value})


def test_without_parity_all_irreps_are_even():
    with pytest.raises(ValueError, match=r"hidden_irreps = '4x0e\+4x1o' .* all even"):
        build("nequip", {**GOOD, "parity": False, "hidden_irreps": "4x0e+4x1o"})


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_irreps": "4x0e"},
        {"hidden_irreps": "4x0e+3x1o"},
        {"hidden_irreps": "5x0e+2x1e+3x1o"},
        {"l_max": 0, "hidden_irreps": "4x0e"},
        {"l_max": 2, "hidden_irreps": "4x0e+3x1o+2x2e+1x2o"},
        {"parity": False, "hidden_irreps": "4x0e+5x1e"},
        {"num_interactions": 1},
        {"num_interactions": 2},
        {"num_interactions": 5},
        {"interaction_first": "residual"},
        {"interaction": "nonresidual"},
        {"skip": "shared"},
        {"radial_basis": "gaussian", "bessel_norm": "paper"},
        {"resnet": True},
        {"normalisation": "rms"},
        {"normalisation": "nequix"},
        {"embedding_channels": 7},
        {"embedding_channels": 2, "interaction_first": "residual", "resnet": True},
        {"normalisation": "rms", "resnet": True, "skip": "shared", "interaction_first": "residual"},
        {"readout_mlp": 0},
        {"radial_mlp": ()},
        {"envelope_power": 2, "num_bessel": 3},
        {"bessel_decay": 1.5, "trainable_bessel": True},
    ],
    ids=str,
)
def test_every_kind_of_model_is_invariant_and_another_one(settings, rotation):
    potential = tiny_potential("nequip", **settings)
    atoms, turned = STRUCTURES["molecule"](), STRUCTURES["molecule"]()
    turned.positions[:] = atoms.positions @ rotation.numpy().T
    prediction, other = (predict(potential, graph_of(potential, a)) for a in (atoms, turned))
    assert_same(other.energy, prediction.energy)
    assert_same(other.forces, prediction.forces @ rotation.T)
    assert prediction.forces.abs().max() > 0.01
    default = predict(tiny_potential("nequip"), graph_of(potential, atoms))
    assert (default.energy - prediction.energy).abs().item() > 1e-4


# Parity --------------------------------------------------------------------------------------------------------------


def test_with_parity_mirror_images_have_one_energy_and_odd_scalars_of_opposite_sign():
    potential = tiny_potential("nequip", **DEEP)
    image, other = graph_of(potential, CHIRAL), graph_of(potential, mirrored(CHIRAL))
    assert_same(predict(potential, image).energy, predict(potential, other).energy)
    layers = list(zip(features_of(potential, image), features_of(potential, other), strict=True))
    even, odd = layers[2][0][:2], layers[2][1][:2]  # the first layer where odd scalars are: 1o × 1o × 1o
    assert [block.shape[1:] for block in even] == [(1, 4), (1, 2)]
    assert_same(odd[0], even[0])
    assert_same(odd[1], -even[1])
    assert even[1].abs().max() > 1e-3


def test_without_parity_mirror_images_differ_in_energy():
    """The triple product of three neighbours' directions tells them apart: 1 × 1 → 1 with itself is no path of O(3)."""
    differences = {}
    for parity, hidden_irreps in ((False, "4x0e+4x1e"), (True, "4x0e+4x1o")):
        potential = tiny_potential("nequip", parity=parity, hidden_irreps=hidden_irreps)
        energies = predict(potential, graph_of(potential, CHIRAL, mirrored(CHIRAL))).energy
        differences[parity] = energies.diff().abs().item()
    assert differences[False] > 1e-4
    assert differences[True] < 1e-10


def test_layers_carry_no_irrep_that_cannot_change_the_energy():
    layers = tiny_potential("nequip", **DEEP).architecture.layers
    kinds = [{(ir.l, ir.p) for _, ir in layer.gate.irreps_in} for layer in layers]
    natural, axial, pseudoscalar = {(0, 1), (1, -1)}, {(1, 1)}, {(0, -1)}
    assert kinds == [natural, natural | axial, natural | axial | pseudoscalar, natural | axial, natural, {(0, 1)}]


# Settings ------------------------------------------------------------------------------------------------------------


def test_a_trainable_basis_is_learned_and_starts_where_the_fixed_one_is():
    fixed, trainable = (tiny_potential("nequip", trainable_bessel=flag) for flag in (False, True))
    frequencies = trainable.architecture.radial.frequencies
    assert torch.equal(frequencies, fixed.architecture.radial.frequencies)
    graph = graph_of(fixed, STRUCTURES["molecule"]())
    energy = predict(trainable, graph, create_graph=True).energy
    assert torch.equal(energy.detach(), predict(fixed, graph).energy)
    (gradient,) = torch.autograd.grad(energy.sum(), frequencies)
    assert gradient.abs().min() > 1e-4
    assert "architecture.radial.frequencies" in dict(trainable.named_parameters())
    assert "architecture.radial.frequencies" not in dict(fixed.named_parameters())


@pytest.mark.parametrize(("skip", "matrices"), [("species", 5), ("shared", 1)])
def test_self_connections_have_matrices_per_species_or_one(skip, matrices):
    layers = tiny_potential("nequip", skip=skip).architecture.layers
    assert {dense.weight.shape[0] for layer in layers for dense in layer.skip.maps} == {matrices}


def test_a_resnet_adds_the_input_of_later_layers_where_channels_agree():
    """Without weights in its last layer the net's last features are those of the layer before, or nothing."""
    features = {}
    for resnet in (True, False):
        potential = tiny_potential("nequip", resnet=resnet, hidden_irreps="4x0e+3x1o")
        last = potential.architecture.layers[-1]
        for weight in (*last.linear.parameters(), *last.skip.parameters()):
            weight.data.zero_()
        features[resnet] = features_of(potential, graph_of(potential, CHIRAL))
    assert torch.equal(features[True][3][0], features[True][2][0])
    assert (features[False][3][0] == 0).all()
    assert features[True][2][0].abs().max() > 0.01


def test_normalised_features_have_unit_mean_square_whatever_the_scale_of_the_messages():
    potential = tiny_potential("nequip", normalisation="rms")
    graph = graph_of(potential, CHIRAL)
    seen = []
    hook = potential.architecture.layers[1].gate.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    predict(potential, graph, forces=False)
    for weight in potential.architecture.layers[1].linear.parameters():
        weight.data.mul_(100.0)
    predict(potential, graph, forces=False)
    hook.remove()
    for blocks in seen:
        squares = torch.stack([block.square().mean((1, 2)) for block in blocks]).mean(0)
        torch.testing.assert_close(squares, torch.ones_like(squares), rtol=0.01, atol=0)
    assert (seen[0][0] - seen[1][0]).abs().max() > 0.01


def test_the_norm_of_nequix_sums_over_channels_and_divides_by_the_square_of_the_degree():
    """1/√(ε + mean over irreps of Σ_km x²/(2l+1)²)."""
    potential = tiny_potential("nequip", normalisation="nequix", hidden_irreps="4x0e+3x1o")
    norm = potential.architecture.layers[1].norms[0]
    generator = torch.Generator().manual_seed(0)
    scalars, vectors = (torch.randn(5, *shape, generator=generator, dtype=torch.float64) for shape in ((1, 7), (3, 3)))
    factor = ((scalars**2).sum((1, 2), keepdim=True) / 2 + (vectors**2).sum((1, 2), keepdim=True) / 9 / 2).rsqrt()
    for found, block in zip(norm([scalars, vectors]), (scalars, vectors), strict=True):
        torch.testing.assert_close(found, block * factor, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("channels", "expected"), [(0, 4), (1, 1), (9, 9)])
def test_an_atom_begins_with_as_many_channels_as_the_embedding_has(channels, expected):
    architecture = tiny_potential("nequip", embedding_channels=channels).architecture
    assert architecture.embedding.shape == (5, expected)
    assert architecture.layers[0].linear_up.maps[0].weight.shape == (expected, expected)
    assert architecture.layers[1].linear_up.maps[0].weight.shape == (4, 4)


# Repulsion -----------------------------------------------------------------------------------------------------------

RADII = (0.6, 1.2, 1.1, 1.6, 1.9)  # Å


def zbl(r):
    """Of C and O, which ends at the sum of their radii, in eV."""
    x = r * (6**0.23 + 8**0.23) / 0.46853
    screening = 0.1818 * (-3.2 * x).exp() + 0.5099 * (-0.9423 * x).exp()
    screening = screening + 0.2802 * (-0.4028 * x).exp() + 0.02817 * (-0.2016 * x).exp()
    y = (r / (RADII[1] + RADII[2])).clamp(max=1)
    return 14.3996 * 6 * 8 / r * screening * (1 - 28 * y**6 + 48 * y**7 - 21 * y**8)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_repulsion_of_nuclei_is_added_to_what_the_layers_say(scaled):
    with_it = tiny_potential("nequip", pair_repulsion={"radii": RADII, "scaled": scaled})
    without = tiny_potential("nequip")
    lengths = torch.tensor([0.3, 0.7, 1.5, 2.29, 2.31], dtype=torch.float64, requires_grad=True)
    graph = graph_of(without, *[Atoms("CO", [[0, 0, 0], [r, 0, 0]]) for r in lengths.tolist()])
    found, network = predict(with_it, graph), predict(without, graph)
    factor = without.scale[0, [1, 2]].mean() if scaled else 1.0  # each atom takes half
    repulsion = zbl(lengths) * factor
    (slopes,) = torch.autograd.grad(repulsion.sum(), lengths)
    assert_same(found.energy - network.energy, repulsion.detach())
    assert_same(found.forces[1::2, 0] - network.forces[1::2, 0], -slopes)
    assert repulsion[0] > 500
    assert repulsion[3] > 0
    assert (found.forces[-2:] == network.forces[-2:]).all()


# Backends ------------------------------------------------------------------------------------------------------------

RICH = {
    **{"num_bessel": 4, "radial_mlp": (4,), "readout_mlp": 0, "normalisation": "rms"},
    **{"num_interactions": 6, "hidden_irreps": "2x0e+2x0o+2x1o+2x1e", "pair_repulsion": {"radii": RADII}},
}


def rich(**settings):
    return tiny_potential("nequip", heads=("first", "second"), **RICH | settings)


@pytest.mark.parametrize("backend", [Numba, TorchScript])
def test_backends_know_odd_scalars_and_repulsion(backend):
    assert_eager_to_the_last_digits(backend(rich(), torch.device("cpu")), rich())


def test_odd_scalars_and_repulsion_are_felt_there():
    assert unused_irreps("nequip", {"l_max": 1, **RICH, "pair_repulsion": None}) == []
    potential, mute = rich(), rich()
    mute.architecture.layers[2].gate.odd_gain = 0.0
    expected, *others = (predict(p, batch(p)).forces for p in (potential, mute, rich(pair_repulsion=None)))
    assert all((other - expected).abs().max() > 0.1 for other in others)


# Atoms without neighbours --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"resnet": True}, {"normalisation": "rms"}, {"l_max": 0, "resnet": True}])
def test_an_isolated_atom_has_exactly_e0_and_shift(settings):
    settings = {**settings, "hidden_irreps": "4x0e"}
    potential = tiny_potential("nequip", **settings)
    energy = predict(potential, graph_of(potential, Atoms("C"))).energy[0]
    assert energy == potential.atomic_energies[0, 1] + potential.shift[0, 1]


def test_with_a_residual_first_layer_as_in_the_paper_it_has_a_learned_energy():
    potential = tiny_potential("nequip", interaction_first="residual")
    energy = predict(potential, graph_of(potential, Atoms("C"))).energy[0]
    assert (energy - potential.atomic_energies[0, 1] - potential.shift[0, 1]).abs() > 1e-3


@pytest.mark.parametrize("num_interactions", [1, 2, 4, 6])
def test_energies_start_at_order_one_for_any_number_of_layers(num_interactions):
    settings = {"num_species": 1, "cutoff": 4.0, "num_interactions": num_interactions, "hidden_irreps": "16x0e+16x1o"}
    atoms = STRUCTURES["crystal"]()
    graph = from_atoms(atoms, (29,), 4.0)
    model = build("nequip", {**settings, "avg_num_neighbors": graph.n_edges / graph.n_nodes}, dtype=torch.float64)
    energies = model(graph.vectors(), graph.species, graph.senders, graph.receivers)
    assert 1e-3 < energies.square().mean().sqrt() < 10
