"""Programs: what lowering makes of a potential, what it refuses, and how good the radial splines are."""

import numpy as np
import pytest
import torch
from tiny import tiny_potential

from ase_equivariant import load_potential
from ase_equivariant.inference.lower import lower
from ase_equivariant.inference.program import CannotLowerError, Convolve, Embed, Linear
from ase_equivariant.inference.radial import Basis, Network
from ase_equivariant.inference.splines import TOLERANCE, interpolated
from ase_equivariant.nn.radial import RadialBasis, RadialMLP


def network(widths=(6, 16, 5), cutoff=4.0):
    mlp = RadialMLP(widths, torch.Generator().manual_seed(2))
    layers = tuple((dense.weight * dense.norm).detach().numpy()[None] for dense in mlp.layers)
    basis = RadialBasis(cutoff, widths[0], 5)
    return Network(cutoff, 5, basis.frequencies.numpy(), layers), lambda r: mlp(basis(r))


def test_the_radial_network_and_its_slope_are_those_of_the_modules():
    lowered, modules = network()
    lengths = torch.linspace(0.3, 4.5, 30, dtype=torch.float64, requires_grad=True)
    values, slopes = lowered.evaluate(lengths.detach().numpy(), 0)
    expected = modules(lengths)
    np.testing.assert_allclose(values, expected.detach(), atol=1e-12)
    for column in range(values.shape[1]):
        (slope,) = torch.autograd.grad(expected[:, column].sum(), lengths, retain_graph=True)
        np.testing.assert_allclose(slopes[:, column], slope, atol=1e-11)
    assert np.abs(values[0]).max() > 0.01
    assert not values[-1].any()  # beyond the cutoff


def test_a_spline_is_as_near_to_its_network_as_it_says():
    lowered, _ = network()
    table, error = interpolated(lowered)
    lengths = np.random.default_rng(0).uniform(0.2, 4.0, 1000)
    worst = max(
        np.abs(found - exact).max() / np.abs(exact).max()
        for found, exact in zip(table.evaluate(lengths, 0), lowered.evaluate(lengths, 0), strict=True)
    )
    assert 0 < worst < 2 * error
    assert error < TOLERANCE


def test_the_slope_of_a_spline_is_its_own():
    table, _ = interpolated(network()[0])
    lengths, step = np.linspace(0.5, 3.5, 50), 1e-5
    central = (table.evaluate(lengths + step, 0)[0] - table.evaluate(lengths - step, 0)[0]) / (2 * step)
    np.testing.assert_allclose(table.evaluate(lengths, 0)[1], central, atol=1e-7)


def test_a_network_that_no_spline_follows_is_kept():
    lowered, _ = network()
    wild = Network(lowered.cutoff, lowered.power, 1000 * lowered.frequencies, lowered.layers)
    assert interpolated(wild) == (wild, 0.0)


def test_what_depends_on_species_alone_is_a_table():
    stages = lower(tiny_potential("mace"), exact=True).stages
    convolutions = [stage for stage in stages if isinstance(stage, Convolve)]
    assert [stage.table is None for stage in convolutions] == [False, True]
    assert not [stage for stage in stages if isinstance(stage, Embed)]


def test_linear_maps_that_follow_each_other_are_one():
    stages = lower(tiny_potential("mace"), exact=True).stages
    first = next(stage for stage in stages if isinstance(stage, Linear))  # after the convolution, and by species
    assert {len(m.weights) for m in first.maps} == {5}
    targets = [stage.target for stage in stages if isinstance(stage, Linear)]
    assert first.target == targets[0]
    assert targets.count(first.target) == 1


def test_the_shipped_model_has_splines():
    program = lower(load_potential("mace-mlearn"), exact=False)
    assert 0 < program.radial_error < TOLERANCE


def test_an_unknown_setting_is_refused_by_name():
    potential = tiny_potential("mace", interaction="density_residual")
    with pytest.raises(CannotLowerError, match="interaction = 'density_residual'"):
        lower(potential, exact=True)


def test_an_unknown_module_is_refused_by_name():
    potential = tiny_potential("mace")
    potential.architecture.layers[0].extra = torch.nn.Dropout()
    with pytest.raises(CannotLowerError, match=r"extra \(Dropout\)"):
        lower(potential, exact=True)


def test_an_unknown_architecture_is_refused_by_name():
    potential = tiny_potential("mace")
    potential.architecture = torch.nn.Identity()
    with pytest.raises(CannotLowerError, match="Identity"):
        lower(potential, exact=True)
