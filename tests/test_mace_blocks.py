"""Every block that a MACE may be made of: its symmetry, its smoothness, its forces, and what its formula says."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from ase import Atoms
from blocks import assert_same, generator, normal
from structures import STRUCTURES
from tiny import TINY, tiny_potential

from ase_equivariant.architectures import build_unweighted
from ase_equivariant.checkpoint import load_potential, save_potential
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import concatenate, from_atoms
from ase_equivariant.nn.pair_repulsion import ZBL, ZBLConfig
from ase_equivariant.nn.radial import RadialBasis, polynomial_envelope
from ase_equivariant.nn.transforms import DistanceTransform

RADII = (0.31, 0.76, 0.66, 1.11, 1.32)  # Å, of the tiny potential's species H C O Si Cu
NONLINEAR = {"interaction_first": "nonlinear", "interaction": "nonlinear", "apply_cutoff": False}
KINDS = {
    "densities": {"interaction_first": "density", "interaction": "density_residual"},
    "density after nonresidual": {"interaction": "density"},
    "nonlinear": {**NONLINEAR, "agnostic_product": True, "readout": "bias_mlp", "last_readout_only": True},
    "attention": {"interaction": "attention_residual", "apply_cutoff": False},
    "late cutoff": {"apply_cutoff": False},
    "Gaussians": {"radial_basis": "gaussian"},
    "Chebyshev polynomials": {"radial_basis": "chebyshev", "distance_transform": "agnesi", "covalent_radii": RADII},
    "trained frequencies": {"trainable_bessel": True, "correlation": (3, 2)},
    "Agnesi": {"distance_transform": "agnesi", "covalent_radii": RADII},
    "soft": {"distance_transform": "soft", "covalent_radii": RADII},
    "soft shift": {"distance_transform": "soft_shift", "transform_constants": (0.001, 1.0), "covalent_radii": RADII},
    "fewer channels along edges": {"edge_irreps_first": "3x0e", "edge_irreps": "2x0e+3x1o"},
    "agnostic products": {"agnostic_product": True},
    "rotations only": {"parity": False, "hidden_irreps": "6x0e+6x1e"},
    "linear readouts": {"readout_mlp": 0},
    "tanh": {"readout_activation": "tanh"},
    "absolute values": {"readout": "bias_mlp", "readout_activation": "abs"},
    "charge and spin": {"attributes": (("charge", -1, 2, 0), ("spin", 0, 3, 1)), "embedding_readout": True},
    "repulsion": {"pair_repulsion": {"radii": RADII}},
    "repulsion inside the scale": {"pair_repulsion": {"radii": RADII, "scaled": True, "envelope_power": 2}},
}
kinds = pytest.mark.parametrize("settings", KINDS.values(), ids=list(KINDS))
COMBINED = [
    ("nonlinear", "soft", "charge and spin"),
    ("densities", "Agnesi", "repulsion inside the scale", "absolute values"),
]
COMBINED += [("attention", "soft shift", "Gaussians"), ("rotations only", "Chebyshev polynomials", "tanh")]


def potential_of(settings):
    """Tiny, with random weights where the default is zero: else networks behind them would not be felt."""
    potential = tiny_potential(**settings)
    zeros = [weight for weight in potential.parameters() if not weight.any()]
    for i, weight in enumerate(zeros):
        weight.data.copy_(0.5 + 0.1 * normal(*weight.shape, seed=i))
    return potential


def graph_of(potential, *structures):
    known = {"atomic_numbers": potential.atomic_numbers, "attributes": potential.attributes}
    return concatenate([from_atoms(atoms, cutoff=potential.cutoff, **known) for atoms in structures])


def largest_difference(a, b):
    return (a - b).abs().max().item()


@kinds
def test_every_block_is_invariant_and_felt(settings, rotation):
    potential = potential_of(settings)
    atoms, turned, moved = (STRUCTURES["molecule"]() for _ in range(3))
    turned.positions[:] = atoms.positions @ rotation.numpy().T
    order = np.roll(np.arange(len(atoms)), 2)
    found, other, permuted = (predict(potential, graph_of(potential, a)) for a in (atoms, turned, moved[order]))
    assert_same(other.energy, found.energy)
    assert_same(other.forces, found.forces @ rotation.T)
    assert_same(permuted.forces, found.forces[order])
    assert found.forces.sum(0).abs().max() < 1e-12 * found.forces.abs().max()
    assert found.forces.abs().max() > 0.01
    default = predict(tiny_potential(), graph_of(potential, atoms))
    assert largest_difference(default.energy, found.energy) > 1e-4


@kinds
def test_forces_and_strain_gradients_are_derivatives_of_the_energy(settings):
    potential = potential_of(settings)
    atoms = STRUCTURES["triclinic"]()
    found = predict(potential, graph_of(potential, atoms))
    direction, strain = normal(len(atoms), 3).numpy(), normal(3, 3, seed=1).numpy()
    strain = strain + strain.T

    def energy(step, stretch):
        changed = atoms.copy()
        changed.positions += step * direction
        changed.set_cell(changed.cell @ (np.eye(3) + stretch * strain), scale_atoms=True)
        return predict(potential, graph_of(potential, changed), forces=False).energy.item()

    along = (energy(1e-4, 0) - energy(-1e-4, 0)) / 2e-4
    assert along == pytest.approx(-(found.forces.numpy() * direction).sum(), rel=1e-5, abs=1e-6)
    stretched = (energy(0, 1e-5) - energy(0, -1e-5)) / 2e-5
    assert stretched == pytest.approx((found.strain_gradient[0].numpy() * strain).sum(), rel=1e-4, abs=1e-5)
    assert abs(along) > 1e-3


@kinds
def test_a_neighbour_comes_in_smoothly_at_the_cutoff(settings):
    potential = potential_of(settings)

    def force(distance):
        atoms = Atoms("SiCC", [[0, 0, 0], [1.9, 0, 0], [0, distance, 0.0]])
        return predict(potential, graph_of(potential, atoms)).forces

    beyond = force(potential.cutoff + 1e-6)
    assert largest_difference(force(potential.cutoff - 1e-6), beyond) < 1e-8
    assert largest_difference(force(potential.cutoff - 1.0), beyond) > 1e-5


@kinds
def test_a_loss_of_forces_reaches_every_weight(settings):
    potential = potential_of(settings)
    atoms = [STRUCTURES[name]() for name in ("molecule", "triclinic", "crystal")]
    prediction = predict(potential, graph_of(potential, *atoms), create_graph=True)
    loss = prediction.forces.square().sum() + prediction.energy.square().sum()
    gradients = torch.autograd.grad(loss, list(potential.parameters()))
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("names", COMBINED, ids=", ".join)
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_scripted_saved_and_single_precision_copies_give_the_same(names, tmp_path):
    potential = potential_of({key: value for name in names for key, value in KINDS[name].items()})
    graph = graph_of(potential, STRUCTURES["molecule"](), Atoms("H"))
    expected = predict(potential, graph)
    save_potential(potential, tmp_path / "a.safetensors")
    loaded = load_potential(tmp_path / "a.safetensors")
    assert asdict(loaded.architecture.config) == asdict(potential.architecture.config)
    for name, copy in {"scripted": torch.jit.script(potential), "loaded": loaded}.items():
        with torch.jit.optimized_execution(False):
            found = predict(copy, graph)
        assert largest_difference(found.energy, expected.energy) < 1e-10, name
        assert largest_difference(found.forces, expected.forces) < 1e-10, name
    single = predict(potential.astype(torch.float32), graph)
    assert 0 < largest_difference(single.forces, expected.forces) < 1e-4 * expected.forces.abs().max()


def test_the_density_of_one_neighbour_divides_by_one_plus_it():
    """One neighbour at two distances: A is the plain one over 1 + tanh(w²)."""
    settings = {"num_interactions": 1, "correlation": 1, "readout_mlp": 0, "avg_num_neighbors": 1.0}
    plain, dense = (tiny_potential(interaction_first=kind, **settings) for kind in ("nonresidual", "density"))
    missing = dense.architecture.load_state_dict(plain.architecture.state_dict(), strict=False)
    assert missing.missing_keys == ["layers.0.count.weight"]
    for distance in (1.1, 2.3):
        atoms = Atoms("CC", [[0, 0, 0], [0, 0, distance]])
        graph = graph_of(plain, atoms)
        energies = [p.architecture(*inputs(graph)).detach()[0, 0] for p in (plain, dense)]
        basis = dense.architecture.radial(torch.tensor([distance], dtype=torch.float64))
        count = torch.tanh(dense.architecture.layers[0].count(basis)[0, 0] ** 2)
        assert energies[1].item() == pytest.approx((energies[0] / (1 + count)).item(), rel=1e-12)
        assert count > 0.001


def inputs(graph):
    return graph.vectors(), graph.species, graph.senders, graph.receivers


@pytest.mark.parametrize("kind", ["gaussian", "chebyshev", "bessel"])
def test_radial_functions_are_what_they_are_called(kind):
    basis = RadialBasis(4.0, 5, 5, kind=kind, enveloped=False)
    x = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    n = torch.arange(1, 6, dtype=torch.float64)
    expected = {
        "gaussian": torch.exp(-0.5 * (x[:, None] - (n - 1)) ** 2),  # five centres from 0 to 4 Å
        "chebyshev": torch.cos(n * torch.arccos(x)[:, None]),
        "bessel": math.sqrt(2 / 4.0) * torch.sin(n * math.pi / 4 * x[:, None]) / x[:, None],
    }[kind]
    assert_same(basis(x), expected)
    assert_same(basis(torch.full_like(x, 2.0), x), expected)
    enveloped = RadialBasis(4.0, 5, 5, kind=kind)
    assert_same(enveloped(x), expected * enveloped.envelope(x)[:, None])
    assert_same(enveloped(torch.full_like(x, 2.0), x), expected * polynomial_envelope(torch.tensor(0.5), 5))


@pytest.mark.parametrize("kind", ["agnesi", "soft", "soft_shift"])
def test_distance_transforms_are_their_formulas(kind):
    radii = (0.4, 1.1)
    lengths = torch.tensor([0.5, 1.3, 3.7], dtype=torch.float64)
    sent, received = torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0])
    found = DistanceTransform(kind, (), radii)(lengths, sent, received)

    def expected(r, total):
        if kind == "agnesi":
            x, a, q, p = 2 * r / total, 1.0805, 0.9183, 4.5791
            return 1 / (1 + a * x**q / (1 + x ** (q - p)))
        if kind == "soft":
            low, high = 3 / 4 * total, 4 / 3 * total
            return low + (r - low) * 0.5 * (1 + math.tanh(4.0 / (high - low) * (r - (low + high) / 2)))
        x = 4 * r / total
        return r + 0.5 * math.tanh(-x - 0.2 * x**3.0) + 0.5

    assert found.tolist() == pytest.approx([expected(r, t) for r, t in zip(lengths.tolist(), (1.5, 2.2, 1.5))])
    other = DistanceTransform(kind, [1.5] * {"agnesi": 3, "soft": 1, "soft_shift": 2}[kind], radii)
    assert largest_difference(other(lengths, sent, received), found) > 0.01


def test_the_repulsion_is_that_of_ziegler_biersack_and_littmark():
    zbl = ZBL(ZBLConfig(radii=(0.76, 1.11), envelope_power=5), [6, 14], cutoff=5.0)

    def expected(r, z, other, end):
        x = r * (z**0.23 + other**0.23) / 0.46853  # 0.8854 Bohr radii
        terms = zip((0.1818, 0.5099, 0.2802, 0.02817), (3.2, 0.9423, 0.4028, 0.2016))
        screening = sum(c * math.exp(-d * x) for c, d in terms)
        u = r / end
        envelope = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7
        return 14.3996 * z * other / r * screening * envelope * (u < 1)

    for r in (0.3, 1.0, 1.8, 2.5):
        vectors = torch.tensor([[0.0, r, 0.0], [0.0, -r, 0.0]], dtype=torch.float64)
        ends = torch.tensor([0, 1]), torch.tensor([1, 0])
        for species, pair in ((torch.tensor([0, 1]), (6, 14, 1.87)), (torch.tensor([1, 1]), (14, 14, 2.22))):
            found = zbl(vectors, species, *ends)
            assert found.sum().item() == pytest.approx(expected(r, *pair), rel=1e-12)
            assert found[0] == found[1]
    assert expected(1.0, 6, 14, 1.87) > 1.0


def test_the_repulsion_is_scaled_or_not_and_in_double_precision():
    plain, scaled, outside = (
        tiny_potential(**({"pair_repulsion": {"radii": RADII, "scaled": s}} if s is not None else {}))
        for s in (None, True, False)
    )
    graph = graph_of(plain, Atoms("CO", [[0, 0, 0], [0, 0, 0.9]]))
    energies = [predict(p, graph).node_energies for p in (plain, scaled, outside)]
    repulsion = outside.pair_repulsion(*inputs(graph))
    assert_same(energies[2] - energies[0], repulsion)
    assert_same(energies[1] - energies[0], repulsion * plain.scale[0, graph.species])
    single = predict(outside.astype(torch.float32), graph).node_energies
    assert_same(single - predict(plain.astype(torch.float32), graph).node_energies, repulsion)
    assert repulsion.min() > 0.5


def test_an_agnostic_product_treats_species_alike():
    potential = tiny_potential(agnostic_product=True, num_interactions=1)
    contraction = potential.architecture.layers[0].contraction
    blocks = [normal(3, 2 * ell + 1, 6, seed=ell) for ell in range(3)]
    first, second = (contraction(blocks, torch.full((3,), z))[0] for z in (0, 4))
    assert torch.equal(first, second)
    usual = tiny_potential(num_interactions=1).architecture.layers[0].contraction
    first, second = (usual(blocks, torch.full((3,), z))[0] for z in (0, 4))
    assert largest_difference(first, second) > 0.01


def test_random_weights_of_other_blocks_come_from_the_seed_as_well():
    first, second = (tiny_potential(**KINDS["nonlinear"]).architecture.state_dict() for _ in range(2))
    torch.randn(3, generator=generator())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_without_weights_takes_no_memory_for_them():
    """A file may describe any widths; none is allocated before its tensors are seen to have them."""
    settings = {**TINY["mace"], **KINDS["nonlinear"], "num_species": 2, "radial_mlp": (3, 10**8), "readout_mlp": 10**4}
    architecture = build_unweighted("mace", settings, torch.float32)
    assert {weight.device.type for weight in architecture.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in architecture.parameters()) > 10**9
