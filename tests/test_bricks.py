"""The bricks against oracles: e3nn and integrals; and what rotations do to each of them."""

import math

import numpy as np
import pytest
import torch
from blocks import assert_commutes, blocks_of, generator, invert, normal, turn
from e3nn import o3

from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.coupling import clebsch_gordan
from ase_equivariant.nn.gate import TANH_GAIN, Gate
from ase_equivariant.nn.harmonics import SphericalHarmonics
from ase_equivariant.nn.irreps import harmonics_irreps, layer_irreps, parse_irreps
from ase_equivariant.nn.linear import Linear, SpeciesLinear
from ase_equivariant.nn.norm import RMSNorm
from ase_equivariant.nn.radial import SILU_GAIN, RadialBasis, RadialMLP

# Linear maps ---------------------------------------------------------------------------------------------------------


def test_linear_maps_commute_with_rotations_and_the_inversion(wigner):
    irreps_in, irreps_out = parse_irreps("4x0e+3x1o+2x2e+2x1e"), parse_irreps("2x1o+5x0e+1x1e")
    assert_commutes(Linear(irreps_in, irreps_out, generator()), irreps_in, irreps_out, 7, wigner)


def test_linear_maps_of_a_species_commute_with_rotations_and_the_inversion(wigner):
    irreps_in, irreps_out = parse_irreps("4x0e+3x1o+2x2e"), parse_irreps("5x0e+2x1o")
    species = torch.tensor([0, 2, 1, 1, 0, 2, 2])
    linear = SpeciesLinear(3, irreps_in, irreps_out, generator())
    assert_commutes(lambda blocks: linear(blocks, species), irreps_in, irreps_out, 7, wigner)


def test_each_species_has_its_own_linear_map_wherever_its_atoms_stand():
    irreps = parse_irreps("4x0e+3x1o")
    linear = SpeciesLinear(3, irreps, irreps, generator())
    blocks = blocks_of(irreps, 6)
    species = torch.tensor([2, 0, 2, 1, 0, 2])
    mixed = linear(blocks, species)
    alone = [linear(blocks, torch.full((6,), z)) for z in range(3)]
    for i, z in enumerate(species):
        for block, expected in zip(mixed, alone[z], strict=True):
            torch.testing.assert_close(block[i], expected[i], rtol=0, atol=1e-14)
    assert (alone[0][0] - alone[1][0]).abs().max() > 0.1


def test_an_irrep_that_only_one_side_has_gets_no_map():
    linear = SpeciesLinear(2, parse_irreps("4x0e"), parse_irreps("4x0e+4x1o"), generator())
    assert (linear.sources, linear.targets) == ([0], [0])


# Spherical harmonics -------------------------------------------------------------------------------------------------


def test_harmonics_are_those_of_e3nn_whatever_the_length():
    vectors = normal(50, 3)
    expected = o3.spherical_harmonics(list(range(7)), vectors, normalize=True, normalization="component")
    harmonics = SphericalHarmonics(6)
    torch.testing.assert_close(harmonics(vectors), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(harmonics(1e-3 * vectors), expected, rtol=0, atol=1e-11)
    assert (harmonics(-vectors) - expected).abs().max() > 1.0


def test_harmonics_turn_with_the_vectors(rotation, wigner):
    vectors = normal(20, 3)
    expected = SphericalHarmonics(4)(vectors) @ torch.block_diag(*map(wigner, range(5))).T
    torch.testing.assert_close(SphericalHarmonics(4)(vectors @ rotation.T), expected, rtol=0, atol=1e-11)


def test_harmonics_can_be_differentiated_twice():
    assert torch.autograd.gradgradcheck(SphericalHarmonics(3), normal(2, 3).requires_grad_())


# Radial functions ----------------------------------------------------------------------------------------------------


def derivatives(function, x, order):
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    values = [function(x)]
    for _ in range(order):
        values.append(torch.autograd.grad(values[-1], x, create_graph=True)[0])
    return [value.item() for value in values]


@pytest.mark.parametrize("power", [2, 5, 6])
def test_the_envelope_and_two_derivatives_vanish_at_the_cutoff_as_powers_of_the_distance(power):
    envelope = RadialBasis(4.0, 8, power).envelope
    near, nearer = (np.array(derivatives(envelope, 4.0 - d, 2)) for d in (2e-3, 1e-3))
    np.testing.assert_allclose(near / nearer, [8, 4, 2], rtol=1e-2)
    assert derivatives(envelope, 4.0, 2) == [0, 0, 0]
    assert derivatives(envelope, 4.5, 2) == [0, 0, 0]
    assert all(abs(value) > 0.01 for value in derivatives(envelope, 2.0, 2))
    assert derivatives(envelope, 1e-9, 1) == pytest.approx([1, 0], abs=1e-6)


def test_bessel_functions_have_unit_mean_square_in_the_cutoff_sphere():
    basis = RadialBasis(4.0, 6, 5, norm="unit")
    x, weights = np.polynomial.legendre.leggauss(200)
    lengths = torch.tensor(2 * (x + 1) * (1 - 1e-6))
    bessel = (basis(lengths) / basis.envelope(lengths).unsqueeze(-1)).numpy()
    squares = np.einsum("rn,r,r->n", bessel**2, 2 * weights, 3 * lengths.numpy() ** 2 / 4.0**3)
    np.testing.assert_allclose(squares, 1, atol=1e-4)
    np.testing.assert_allclose(bessel[100], [bessel_function(n, lengths[100].item()) for n in range(1, 7)], rtol=1e-10)


def test_amplitudes_of_bessel_functions_fall_as_told_and_keep_their_mean_square():
    even, falling = RadialBasis(4.0, 6, 5), RadialBasis(4.0, 6, 5, decay=1.5)
    length = torch.tensor([1.3], dtype=torch.float64)
    ratios = (falling(length) / even(length))[0].numpy()
    np.testing.assert_allclose(ratios / ratios[0], np.arange(1.0, 7.0) ** -1.5, rtol=1e-12)
    assert np.mean(ratios**2) == pytest.approx(1, 1e-12)
    assert ratios[0] > 2 > 0.5 > ratios[5]


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_bessel_functions_of_the_papers_are_smaller_all_alike(decay):
    ours, theirs = (RadialBasis(4.0, 6, 5, decay=decay, norm=norm) for norm in ("unit", "paper"))
    length = torch.tensor([1.3], dtype=torch.float64)
    np.testing.assert_allclose((ours(length) / theirs(length))[0], [math.sqrt(4.0**3 / 3)] * 6, rtol=1e-12)
    first = math.sqrt(2 / 4.0) * math.sin(math.pi * 1.3 / 4.0) / 1.3 * theirs.envelope(length).item()
    assert RadialBasis(4.0, 6, 5, norm="paper")(length)[0, 0].item() == pytest.approx(first, rel=1e-12)


def bessel_function(n, r, cutoff=4.0):
    return math.sqrt(2 / cutoff) * math.sin(n * math.pi * r / cutoff) / r * math.sqrt(cutoff**3 / 3)


def test_a_radial_network_is_smoothly_zero_at_the_cutoff():
    mlp, basis = RadialMLP((6, 16, 16, 3), generator()), RadialBasis(4.0, 6, 5)
    jump = torch.tensor([4.0 - 1e-3, 4.0, 5.0, 2.0], dtype=torch.float64)
    values = mlp(basis(jump)).abs().amax(1)
    assert values[0] < 1e-7
    assert values[1] == values[2] == 0
    assert values[3] > 0.01


def test_the_gain_of_silu_keeps_the_variance_of_a_normal_variable():
    x = torch.linspace(-12, 12, 100001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    assert torch.trapezoid(torch.nn.functional.silu(x) ** 2 * density, x).rsqrt().item() == pytest.approx(
        SILU_GAIN, 1e-9
    )


# Convolution ---------------------------------------------------------------------------------------------------------

GRAPHS = {
    "scalars": ("4x0e", 3, "4x0e+4x1o+4x2e+4x3o"),
    "vectors": ("4x0e+4x1o", 2, "4x0e+4x1o+4x2e"),
    "unequal channels": ("3x0e+2x1o+1x2e", 2, "3x0e+3x1o+3x2e"),
    "both parities": ("2x0e+3x1o+2x1e", 2, "2x0e+2x0o+2x1o+2x1e"),
}


def random_graph(n_nodes=5, n_edges=17):
    senders = torch.randint(n_nodes, (n_edges,), generator=generator(1))
    receivers = torch.randint(n_nodes - 1, (n_edges,), generator=generator(2))  # nobody sends to the last node
    return senders, receivers.sort().values


def e3nn_convolution(convolution, irreps_in, l_max, blocks, vectors, weights, senders, receivers):
    """The same with e3nn's tensor product: one instruction per path, its sign that of this e3nn's coefficients."""
    harmonics = harmonics_irreps(l_max)
    paths = [
        (source, edge, target)
        for target, (_, out) in enumerate(convolution.irreps_out)
        for source, (_, ir) in enumerate(irreps_in)
        for edge, (_, eir) in enumerate(harmonics)
        if out in ir * eir
    ]
    kinds = [(irreps_in[s].ir, harmonics[e].ir, convolution.irreps_out[t].ir) for s, e, t in paths]
    product = o3.TensorProduct(
        irreps_in,
        harmonics,
        [(irreps_in[s].mul, out) for (s, _, _), (_, _, out) in zip(paths, kinds, strict=True)],
        [(s, e, i, "uvu", True) for i, (s, e, _) in enumerate(paths)],
        irrep_normalization="component",
        path_normalization="none",
        shared_weights=False,
        internal_weights=False,
    )
    signs = []
    for (s, _, _), (a, b, c) in zip(paths, kinds, strict=True):
        theirs = o3.wigner_3j(a.l, b.l, c.l, dtype=torch.float64).numpy()
        signs += [np.sign((theirs * clebsch_gordan(a.l, b.l, c.l)).sum())] * irreps_in[s].mul
    flat = torch.cat([block.transpose(1, 2).flatten(1) for block in blocks], 1)  # e3nn: channels first
    edge_attrs = o3.spherical_harmonics(harmonics, vectors, normalize=True, normalization="component")
    messages = product(flat[senders], edge_attrs, weights * torch.tensor(signs))
    summed = torch.zeros(len(flat), messages.shape[1], dtype=torch.float64).index_add(0, receivers, messages)
    parts = summed.split([mul * ir.dim for mul, ir in product.irreps_out], 1)
    outs = [
        p.unflatten(1, (mul, ir.dim)).transpose(1, 2) for p, (mul, ir) in zip(parts, product.irreps_out, strict=True)
    ]
    targets = [target for _, _, target in paths]
    return [torch.cat([o for o, t in zip(outs, targets, strict=True) if t == i], -1) for i in sorted(set(targets))]


@pytest.fixture
def double():
    """e3nn compiles its coefficients in the default precision."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_convolution_is_the_tensor_product_of_e3nn_summed_at_the_receivers(name, double):
    irreps_in, l_max, targets = GRAPHS[name]
    irreps_in = parse_irreps(irreps_in)
    convolution = Convolution(irreps_in, l_max, parse_irreps(targets))
    senders, receivers = random_graph()
    vectors, weights = normal(17, 3), normal(17, convolution.num_weights, seed=3)
    blocks = blocks_of(irreps_in, 5, seed=4)
    found = convolution(blocks, SphericalHarmonics(l_max)(vectors), weights, senders, receivers)
    expected = e3nn_convolution(convolution, irreps_in, l_max, blocks, vectors, weights, senders, receivers)
    for block, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(block, wanted, rtol=0, atol=1e-11)
        assert block[:4].abs().max() > 0.1
        assert (block[4] == 0).all()


def test_the_convolution_turns_with_features_and_edges(rotation, wigner):
    irreps_in = parse_irreps("3x0e+2x1o+1x2e")
    convolution = Convolution(irreps_in, 2, harmonics_irreps(2))
    senders, receivers = random_graph()
    vectors, weights = normal(17, 3), normal(17, convolution.num_weights, seed=3)
    blocks = blocks_of(irreps_in, 5, seed=4)
    out = convolution(blocks, SphericalHarmonics(2)(vectors), weights, senders, receivers)
    edge_attrs = SphericalHarmonics(2)(vectors @ rotation.T)
    found = convolution(turn(blocks, irreps_in, wigner), edge_attrs, weights, senders, receivers)
    for block, wanted in zip(found, turn(out, convolution.irreps_out, wigner), strict=True):
        torch.testing.assert_close(block, wanted, rtol=0, atol=1e-10)
    inverted = convolution(invert(blocks, irreps_in), SphericalHarmonics(2)(-vectors), weights, senders, receivers)
    for block, wanted in zip(inverted, invert(out, convolution.irreps_out), strict=True):
        torch.testing.assert_close(block, wanted, rtol=0, atol=1e-12)


def test_without_parity_the_convolution_has_the_paths_of_rotations_alone(rotation, wigner):
    natural = Convolution(parse_irreps("3x0e+2x1o"), 1, parse_irreps("3x0e+3x1o"))
    irreps_in = parse_irreps("3x0e+2x1e")
    convolution = Convolution(irreps_in, 1, parse_irreps("3x0e+3x1e"), parity=1)
    assert convolution.num_weights == natural.num_weights + 2  # of the cross product 1 × 1 → 1
    senders, receivers = random_graph()
    vectors, weights = normal(17, 3), normal(17, convolution.num_weights, seed=3)
    blocks = blocks_of(irreps_in, 5, seed=4)
    out = convolution(blocks, SphericalHarmonics(1)(vectors), weights, senders, receivers)
    edge_attrs = SphericalHarmonics(1)(vectors @ rotation.T)
    found = convolution(turn(blocks, irreps_in, wigner), edge_attrs, weights, senders, receivers)
    for block, wanted in zip(found, turn(out, convolution.irreps_out, wigner), strict=True):
        torch.testing.assert_close(block, wanted, rtol=0, atol=1e-10)


# Gate and norm -------------------------------------------------------------------------------------------------------


def test_the_gate_commutes_with_rotations_and_the_inversion(wigner):
    irreps_out = parse_irreps("4x0e+2x0o+3x1o+1x1e+2x2e")
    gate = Gate(irreps_out)
    assert gate.irreps_in == parse_irreps("10x0e+2x0o+3x1o+1x1e+2x2e")
    assert_commutes(gate, gate.irreps_in, irreps_out, 7, wigner)


def test_the_gate_is_silu_and_tanh_on_scalars_and_a_factor_of_its_own_on_each_vector():
    gate = Gate(parse_irreps("1x0e+1x0o+2x1o"))
    blocks = blocks_of(gate.irreps_in, 50)
    scalars, odd, vectors = gate(blocks)
    silu = SILU_GAIN * torch.nn.functional.silu(blocks[0])
    torch.testing.assert_close(scalars, silu[..., :1])
    torch.testing.assert_close(odd, TANH_GAIN * torch.tanh(blocks[1]))
    torch.testing.assert_close(vectors, silu[..., 1:] * blocks[2])


def test_the_gain_of_tanh_keeps_the_variance_of_a_normal_variable():
    x = torch.linspace(-12, 12, 100001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    assert torch.trapezoid(x.tanh() ** 2 * density, x).rsqrt().item() == pytest.approx(TANH_GAIN, 1e-9)


def test_the_norm_commutes_with_rotations_and_the_inversion_and_keeps_zeros(wigner):
    irreps = parse_irreps("4x0e+2x0o+3x1o")
    norm = RMSNorm(irreps)
    for weight in norm.weights:
        weight.data = normal(*weight.shape)
    assert_commutes(norm, irreps, irreps, 7, wigner)
    assert all((block == 0).all() for block in norm([torch.zeros_like(b) for b in blocks_of(irreps, 7)]))


def test_the_norm_makes_the_mean_over_irreps_of_mean_squares_one():
    irreps = parse_irreps("64x0e+2x1o")
    blocks = [100 * block for block in blocks_of(irreps, 7)]
    squares = torch.stack([block.square().mean((1, 2)) for block in RMSNorm(irreps)(blocks)])
    torch.testing.assert_close(squares.mean(0), torch.ones(7, dtype=torch.float64), rtol=1e-6, atol=0)
    assert (squares - 1).abs().max() > 0.05


# Irreps of layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "parity", "num_layers", "expected"),
    [
        ("4x0e", -1, 3, ["4x0e"] * 4),
        ("3x1o+4x0e", -1, 1, ["4x0e", "4x0e"]),
        ("3x1o+4x0e+2x1e", -1, 2, ["4x0e", "4x0e+3x1o", "4x0e"]),
        ("3x1o+4x0e+2x1e", -1, 4, ["4x0e", "4x0e+3x1o", "4x0e+2x1e+3x1o", "4x0e+3x1o", "4x0e"]),
        ("3x1e+4x0e", 1, 2, ["4x0e", "4x0e+3x1e", "4x0e"]),
        ("4x0e+3x2e", -1, 3, ["4x0e"] * 4),  # harmonics up to l = 1 take two steps to 2e, by way of 1o
        ("4x0e+3x1o+3x2e", -1, 3, ["4x0e", "4x0e+3x1o", "4x0e+3x1o", "4x0e"]),
        ("4x0e+3x1o+3x2e", -1, 4, ["4x0e", "4x0e+3x1o", "4x0e+3x1o+3x2e", "4x0e+3x1o", "4x0e"]),
    ],
)
def test_layers_have_the_irreps_that_come_from_scalars_and_lead_to_scalars(hidden, parity, num_layers, expected):
    layers = layer_irreps(parse_irreps(hidden), harmonics_irreps(1, parity=parity), num_layers)
    assert layers == [parse_irreps(text) for text in expected]
