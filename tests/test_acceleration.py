"""The faster twin of a potential, for training: the same numbers and gradients, the same weights."""

import pytest
import torch
from ase import Atoms
from blocks import assert_same, generator, normal
from structures import STRUCTURES
from tiny import tiny_potential

from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms
from ase_equivariant.nn import tabulated
from ase_equivariant.nn.contraction import Extension
from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.fused import FusedConvolution
from ase_equivariant.nn.fused_products import FusedExtension
from ase_equivariant.nn.irreps import harmonics_irreps, parse_irreps
from ase_equivariant.nn.radial import RadialBasis, RadialMLP
from ase_equivariant.training.acceleration import accelerated

MODELS = [
    ("mace", {"hidden_irreps": "8x0e", "bessel_decay": 1.0}),
    ("mace", {"hidden_irreps": "8x0e+8x1o", "radial_mlp": ()}),
    ("nequip", {}),
    ("nequip", {"parity": False, "hidden_irreps": "3x0e+4x1e", "num_interactions": 2}),
    ("botnet", {"num_interactions": 2}),
]
UNTABULATED = [
    ("nequip", {"trainable_bessel": True, "bessel_norm": "paper", "num_interactions": 2}),
    ("botnet", {"radial": "element", "num_interactions": 2}),
    (
        "mace",
        {"interaction_first": "density", "interaction": "density_residual", "pair_repulsion": {"radii": [1] * 5}},
    ),
    ("mace", {"distance_transform": "agnesi", "covalent_radii": [0.5, 0.7, 0.7, 1, 1], "apply_cutoff": False}),
]


def batch_of(potential):
    """Five species, periodic and not, more atoms than one thread takes, one atom without neighbours."""
    large = [STRUCTURES[name]().repeat(2) for name in ("triclinic", "crystal")]
    structures = [STRUCTURES["molecule"](), *large, Atoms("H")]
    return concatenate([from_atoms(atoms, potential.atomic_numbers, potential.cutoff) for atoms in structures])


def numbers(potential, graph):
    """Energies, forces, strain gradients, and the gradient of a loss of all three for every weight."""
    prediction = predict(potential, graph, create_graph=True)
    results = (prediction.energy, prediction.forces, prediction.strain_gradient)
    loss = sum(result.square().mean() for result in results)
    gradients = torch.autograd.grad(loss, list(potential.parameters()))
    names = ["energy", "forces", "strain_gradient", *(name for name, _ in potential.named_parameters())]
    return dict(zip(names, [result.detach().double() for result in (*results, *gradients)], strict=True))


def errors(found, expected):
    assert list(found) == list(expected)
    return {name: ((found[name] - value).norm() / value.norm()).item() for name, value in expected.items()}


@pytest.mark.parametrize(("architecture", "settings"), MODELS + UNTABULATED)
def test_in_float64_the_twin_gives_the_same_to_rounding(architecture, settings):
    potential = tiny_potential(architecture, **settings)
    graph = batch_of(potential)
    expected = numbers(potential, graph)
    assert max(errors(numbers(accelerated(potential), graph), expected).values()) < 1e-12
    assert all(value.abs().max() > 1e-6 for value in expected.values())


def test_the_twin_of_every_architecture_has_its_numbers_and_gradients(architecture):
    """What a new one inherits: no table and no kernel may stand for something else that it does with its edges."""
    potential = tiny_potential(architecture, dtype=torch.float32, num_interactions=2)
    graph = batch_of(potential)
    expected = numbers(potential.astype(torch.float64), graph)
    assert max(errors(numbers(accelerated(potential), graph), expected).values()) < 1e-3
    assert all(value.abs().max() > 1e-6 for value in expected.values())


@pytest.mark.parametrize(("architecture", "settings"), [MODELS[0], *MODELS[3:]])
def test_in_float32_tables_cost_little_more_than_the_precision_itself(architecture, settings):
    potential = tiny_potential(architecture, **settings, dtype=torch.float32)
    graph = batch_of(potential)
    expected = numbers(potential.astype(torch.float64), graph)
    twin, plain = (errors(numbers(p, graph), expected) for p in (accelerated(potential), potential))
    assert twin["energy"] < 2e-5
    assert max(twin["forces"], twin["strain_gradient"]) < 2e-4
    assert max(twin.values()) < 1e-3
    assert max(plain.values()) > 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_twin_shares_every_weight_and_its_name(dtype):
    potential = tiny_potential(hidden_irreps="8x0e", dtype=dtype)
    twin = accelerated(potential)
    pairs = zip(potential.named_parameters(), twin.named_parameters(), strict=True)
    assert all(name == other and weight is shared for (name, weight), (other, shared) in pairs)
    assert list(twin.state_dict()) == list(potential.state_dict())


def test_a_step_on_the_twin_is_a_step_on_the_potential():
    potential = tiny_potential(hidden_irreps="8x0e")
    twin, graph = accelerated(potential), batch_of(potential)
    before = predict(potential, graph).energy
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    predict(twin, graph, create_graph=True).forces.square().mean().backward()
    optimizer.step()
    after = predict(potential, graph).energy
    assert (after - before).abs().max() > 1e-4
    assert_same(predict(twin, graph).energy, after)


@pytest.mark.parametrize("architecture", ["mace", "nequip", "botnet"])
@pytest.mark.parametrize(("dtype", "tables"), [(torch.float32, 2), (torch.float64, 0)])
def test_tables_are_for_float32_alone(architecture, dtype, tables):
    twin = accelerated(tiny_potential(architecture, num_interactions=2, dtype=dtype))
    assert sum(isinstance(module, tabulated.TabulatedMLP) for module in twin.modules()) == tables


@pytest.mark.parametrize(("architecture", "settings"), UNTABULATED)
def test_radial_functions_that_no_table_can_hold_are_evaluated_themselves(architecture, settings):
    potential = tiny_potential(architecture, dtype=torch.float32, **settings)
    graph = batch_of(potential)
    twin = accelerated(potential)
    assert not any(isinstance(module, (tabulated.TabulatedMLP, tabulated.Knots)) for module in twin.modules())
    assert sum(isinstance(module, FusedConvolution) for module in twin.modules()) == 2
    assert max(errors(numbers(twin, graph), numbers(potential, graph)).values()) < 1e-4


def test_making_a_twin_leaves_the_potential_as_it_was():
    potential = tiny_potential(hidden_irreps="8x0e", dtype=torch.float32)
    graph = batch_of(potential)
    before = predict(potential, graph)
    kinds = [type(module) for module in potential.modules()]
    accelerated(potential)
    assert [type(module) for module in potential.modules()] == kinds
    assert torch.equal(predict(potential, graph).forces, before.forces)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_twin_knows_graphs_without_edges(dtype):
    potential = tiny_potential(hidden_irreps="8x0e", dtype=dtype)
    graph = from_atoms(Atoms("HC", [[0, 0, 0], [9, 0, 0]]), potential.atomic_numbers, potential.cutoff)
    found, expected = predict(accelerated(potential), graph), predict(potential, graph)
    assert torch.equal(found.energy, expected.energy)
    assert (found.forces == 0).all()


# Kernels one by one --------------------------------------------------------------------------------------------------


def convolutions():
    convolution = Convolution(parse_irreps("3x0e+2x1o"), 1, harmonics_irreps(1))
    senders = torch.randint(80, (300,), generator=generator(1))
    receivers = torch.randint(79, (300,), generator=generator(2)).sort().values

    def apply(module):
        return lambda h0, h1, y, r: torch.cat([b.flatten(1) for b in module([h0, h1], y, r, senders, receivers)], 1)

    inputs = [normal(80, 1, 3), normal(80, 3, 2), normal(300, 4), normal(300, convolution.num_weights)]
    return apply(convolution), apply(FusedConvolution(convolution)), inputs


def extensions():
    extension = Extension([(0,), (1,), (2,)], [(0, 0), (0, 2), (1, 1), (1, 2), (1, 3)])
    return extension, FusedExtension(extension), [normal(80, 3, 5), normal(80, 4, 5, seed=1)]


KERNELS = {"convolution": convolutions, "products": extensions}


def derivatives(function, inputs, wanted):
    """The function, its gradients for the wanted inputs, and gradients of these for the wanted inputs."""
    inputs = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    leaves = [inputs[i] for i in wanted]
    out = function(*inputs)
    first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [out.detach(), *(g.detach() for g in first), *second]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        *[("convolution", wanted) for wanted in ([0, 1, 2, 3], [2], [3], [0, 2], [2, 3], [0, 1])],
        *[("products", wanted) for wanted in ([0, 1], [0], [1])],
    ],
)
def test_a_kernel_and_two_orders_of_its_derivatives_are_those_of_the_plain_brick(name, wanted):
    plain, fused, inputs = KERNELS[name]()
    pairs = zip(derivatives(fused, inputs, wanted), derivatives(plain, inputs, wanted), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())
        assert expected.abs().max() > 0.01


@pytest.fixture
def set_threads():
    previous = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(previous)


def interpolations():
    table, rows = normal(40, 7), torch.randint(37, (300,), generator=generator(3))
    return None, lambda w, t: tabulated._Interpolate.apply(w, t, rows), [normal(300, 4, seed=2), table]


@pytest.mark.parametrize("name", ["convolution", "products", "table"])
def test_the_number_of_threads_does_not_change_a_bit(name, set_threads):
    _, fused, inputs = {**KERNELS, "table": interpolations}[name]()
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(derivatives(fused, inputs, range(len(inputs))))
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


# Tables --------------------------------------------------------------------------------------------------------------


def interpolated(mlp, basis, lengths):
    """R and dR/dr from a table, and the gradient of a loss of both for every weight."""
    return radials(lambda r: tabulated.TabulatedMLP(mlp, basis)(tabulated.Knots(basis)(r)), mlp, lengths)


def radials(function, mlp, lengths):
    lengths = lengths.clone().requires_grad_()
    values = function(lengths)
    (slopes,) = torch.autograd.grad(values.sum(), lengths, create_graph=True)
    weights = torch.autograd.grad(values.square().sum() + slopes.square().sum(), list(mlp.parameters()))
    return [values.detach(), slopes.detach(), *weights]


def test_the_error_of_a_table_falls_with_the_distance_of_its_knots(monkeypatch):
    """Cubic Hermite interpolants: fourth order in the value, third in the slope."""
    mlp, basis = RadialMLP((6, 16, 16, 8), generator()), RadialBasis(4.0, 6, 5)
    lengths = torch.linspace(0.7, 4.0, 1000, dtype=torch.float64)[:-1]
    exact = radials(lambda r: mlp(basis(r)), mlp, lengths)
    found = []
    for knots in (128, 512, 2048):
        monkeypatch.setattr(tabulated, "NUM_KNOTS", knots)
        table = interpolated(mlp, basis, lengths)
        found.append([((a - b).norm() / b.norm()).item() for a, b in zip(table, exact, strict=True)])
    coarse, usual, fine = found
    assert max(coarse) < 1e-2
    assert usual[0] < 1e-6
    assert max(usual[1:]) < 3e-5
    for i, order in enumerate([4, 3]):
        assert coarse[i] / usual[i] == pytest.approx(4**order, rel=0.3)
        assert usual[i] / fine[i] == pytest.approx(4**order, rel=0.3)
    assert max(fine[2:]) < 0.2 * max(usual[2:]) < 0.04 * max(coarse[2:])


def test_a_table_ends_at_zero_where_the_network_does():
    mlp, basis = RadialMLP((6, 16, 8), generator()), RadialBasis(4.0, 6, 5)
    values, slopes, *_ = interpolated(mlp, basis, torch.tensor([3.0, 4.0 - 1e-9], dtype=torch.float64))
    assert values[1].abs().max() < 1e-12
    assert abs(slopes[1]) < 1e-6
    assert values[0].abs().max() > 0.01
