"""Programs: what lowering makes of a potential, what it refuses, and how good the radial splines are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from test_mace_blocks import potential_of
from tiny import tiny_potential

from ase_equivariant import load_potential
from ase_equivariant.derivatives import predict
from ase_equivariant.graph import from_atoms
from ase_equivariant.inference import fold
from ase_equivariant.inference.lower import lower
from ase_equivariant.inference.numba import Numba
from ase_equivariant.inference.numba.radial import Interpolated
from ase_equivariant.inference.program import CannotLowerError, Convolve, Embed, Linear
from ase_equivariant.inference.radial import Basis, Layer, Network
from ase_equivariant.inference.splines import TOLERANCE, Splines, _error, interpolated
from ase_equivariant.nn.radial import RadialBasis, RadialMLP

RADII = (0.31, 0.76, 0.66, 1.11, 1.32)  # Å
RADIAL = {
    "bessel": {},
    "falling amplitudes": {"bessel_decay": 1.0},
    "amplitudes of unit mean square": {"bessel_norm": "unit"},
    "no network": {"radial_mlp": (), "bessel_decay": 1.0},
    "gaussian": {"radial_basis": "gaussian"},
    "chebyshev": {"radial_basis": "chebyshev", "distance_transform": "agnesi", "covalent_radii": RADII},
    "late envelope": {"apply_cutoff": False},
    "agnesi": {"distance_transform": "agnesi", "covalent_radii": RADII},
    "soft": {"distance_transform": "soft", "covalent_radii": RADII, "transform_constants": (3.0,)},
    "soft shift": {"distance_transform": "soft_shift", "covalent_radii": RADII},
    "density": {"interaction_first": "density", "interaction": "density_residual", "bessel_decay": 0.5},
    "late density": {"interaction_first": "density", "interaction": "density", "apply_cutoff": False},
    "pairs": {"interaction_first": "nonlinear", "interaction": "nonlinear", "apply_cutoff": False},
    "pairs, agnesi": {"interaction_first": "nonlinear", "apply_cutoff": False, "distance_transform": "agnesi"},
}
RADIAL["pairs, agnesi"] |= {"interaction": "nonlinear", "covalent_radii": RADII, "bessel_decay": 0.5}


def network(widths=(6, 16, 5), cutoff=4.0):
    mlp = RadialMLP(widths, torch.Generator().manual_seed(2))
    layers = tuple(
        Layer((dense.weight * dense.norm).detach().numpy()[None], np.zeros((1, width)))
        for dense, width in zip(mlp.layers, widths[1:], strict=True)
    )
    frequencies = RadialBasis(cutoff, widths[0], 5).frequencies.numpy()
    return Network(Basis("bessel", cutoff, 5, frequencies, True), None, layers, np.zeros((1, 1), int))


@pytest.mark.parametrize("case", RADIAL)
def test_radial_networks_and_their_slopes_are_those_of_the_modules(case):
    """Of each pair of species, from near contact to beyond the cutoff."""
    potential = potential_of(RADIAL[case])
    model = potential.architecture
    functions = [s.radial for s in lower(potential, exact=True).stages if isinstance(s, Convolve)]
    layer = model.layers[0]
    ends = torch.cartesian_prod(*2 * [torch.arange(5)]).repeat(8, 1)
    lengths = torch.linspace(0.3, 4.1, len(ends), dtype=torch.float64, requires_grad=True)
    sent, received = ends.T
    feats = model.radial(lengths, model.transform and model.transform(lengths, sent, received))
    envelope = [torch.ones(()), model.radial.envelope(lengths).unsqueeze(1)][model.late_envelope]
    seen = (feats, sent, received)[: 1 + 2 * case.startswith("pairs")]
    expected = [layer.radial_mlp(*seen) * envelope]
    expected += [torch.tanh(count(*seen).square()) * envelope for count in [layer.count] if count is not None]
    assert len(functions) == len(expected) * 2
    # the count of a layer, if any, comes behind its convolution
    for lowered, values in zip(functions, expected, strict=False):
        found = [
            lowered.evaluate(np.array([r]), lowered.kinds[to, by])
            for r, by, to in zip(lengths.tolist(), sent, received, strict=True)
        ]
        np.testing.assert_allclose(np.concatenate([v for v, _ in found]), values.detach(), atol=1e-12)
        (slopes,) = torch.autograd.grad(values.sum(), lengths, retain_graph=True)
        np.testing.assert_allclose([s.sum() for _, s in found], slopes, atol=1e-11, rtol=1e-11)
        assert values.abs().max() > 0.01
        assert not values[-1].any()  # beyond the cutoff


def test_a_spline_is_as_near_to_its_network_as_it_says():
    lowered = network()
    splines, error = interpolated(lowered)
    lengths = np.random.default_rng(0).uniform(0.0, 4.0, 1000)
    worst = max(
        np.abs(found - exact).max() / np.abs(exact).max()
        for found, exact in zip(splines.fit(0)[0].evaluate(lengths), lowered.evaluate(lengths, 0), strict=True)
    )
    assert 0 < worst < 2 * error
    assert error < TOLERANCE


def test_splines_that_were_sampled_are_not_made_again():
    splines, _ = interpolated(network())
    assert splines.fit(0)[0] is splines.fit(0)[0]


def test_the_slope_of_a_spline_is_its_own():
    spline, _ = interpolated(network())[0].fit(0)
    lengths, step = np.linspace(0.5, 3.5, 50), 1e-5
    central = (spline.evaluate(lengths + step)[0] - spline.evaluate(lengths - step)[0]) / (2 * step)
    np.testing.assert_allclose(spline.evaluate(lengths)[1], central, atol=1e-7)


def test_networks_that_vary_faster_have_splines_with_more_knots():
    slow = network()
    fast = replace(slow, basis=replace(slow.basis, frequencies=3 * slow.basis.frequencies))
    (few, _), (many, error) = (interpolated(lowered)[0].fit(0) for lowered in (slow, fast))
    assert few.n_intervals < many.n_intervals
    assert error < TOLERANCE


def test_a_network_that_no_spline_follows_is_kept():
    lowered = network()
    wild = replace(lowered, basis=replace(lowered.basis, frequencies=1000 * lowered.basis.frequencies))
    assert interpolated(wild) == (wild, 0.0)


def test_functions_that_are_zero_or_not_numbers_are_told_apart():
    lowered = network()
    *first, last = lowered.layers
    for factor, error in ((0.0, 0.0), (np.inf, None)):
        with np.errstate(invalid="ignore"):
            changed = replace(lowered, layers=(*first, replace(last, weights=factor * last.weights)))
            radial, found = interpolated(changed)
        assert (radial is not changed, found) == (error is not None, 0.0)


def test_slopes_that_are_not_numbers_are_noticed_behind_values_that_are(monkeypatch):
    lowered = network()
    exact, (spline, error) = Network.evaluate, interpolated(lowered)[0].fit(0)
    assert _error(lowered, 0, spline) == error < TOLERANCE
    monkeypatch.setattr(Network, "evaluate", lambda *given: (exact(*given)[0], np.nan * exact(*given)[1]))
    assert np.isnan(_error(lowered, 0, spline))


def test_only_elements_that_are_new_get_splines_and_bad_ones_are_announced():
    bases = network().basis, replace(network().basis, frequencies=1000 * network().basis.frequencies)
    good, bad = (Interpolated(Splines(replace(network(), basis=basis)), np.dtype("float32")) for basis in bases)
    first, again = good.arrays(np.array([0])), good.arrays(np.array([0, 0]))
    assert all(a is b for a, b in zip(first[1:], again[1:], strict=True))
    with pytest.warns(UserWarning, match="interpolated with a relative error of .* backend='eager'"):
        bad.arrays(np.array([0]))


def first_layer(program, inputs):
    """Of the last readout, for one atom of the first species: [n_heads, width] for what its linear maps read."""
    *_, readout = program.stages
    value = np.zeros(program.widths[readout.source])
    for stage in (s for s in program.stages if s.target == readout.source):
        for m in stage.maps:
            end = m.start_out + m.weights.shape[2]
            value[m.start_out : end] += (
                inputs[stage.source][m.start_in : m.start_in + m.weights.shape[1]] @ m.weights[0]
            )
    return value @ readout.hidden[0][0] + readout.hidden[0][1]


@pytest.mark.parametrize(("hidden", "width"), [(2, 4), (3, 6)])  # of two heads, beside six channels
def test_linear_maps_take_in_the_first_layer_of_a_readout_where_it_is_narrower(hidden, width, monkeypatch):
    potential = tiny_potential("mace", heads=("first", "second"), readout_mlp=hidden)
    early = lower(potential, exact=True)
    monkeypatch.setattr(fold, "_read_early", lambda stages, widths: stages)
    late = lower(potential, exact=True)
    random = np.random.default_rng(0)
    inputs = {name: random.normal(size=columns) for name, columns in late.widths.items()}
    expected = first_layer(late, inputs)
    np.testing.assert_allclose(first_layer(early, inputs), expected, rtol=1e-12)
    assert early.widths[early.stages[-1].source] == width
    assert np.abs(expected[0] - expected[1]).max() > 0.1


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


@pytest.mark.parametrize(("species", "channels"), [((14,), 4), ((14, 29), 8)])
def test_a_first_layer_of_few_species_sums_what_its_radial_network_mixes(species, channels):
    """The same function to rounding, in fewer channels; with more species they would be more."""
    settings = {"radial_mlp": (4,), "hidden_irreps": "8x0e+8x1o", "bessel_norm": "unit"}
    potential = tiny_potential("mace", atomic_numbers=species, **settings)
    convolution = next(s for s in lower(potential, exact=True).stages if isinstance(s, Convolve))
    assert convolution.radial.num_weights == 4
    assert convolution.table.shape == (len(species), channels)
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.numbers[::2] = species[-1]
    graph = from_atoms(atoms, potential.atomic_numbers, potential.cutoff)
    found, expected = Numba(potential, torch.device("cpu"))(graph, True), predict(potential, graph)
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-10, atol=1e-12)
    assert expected.forces.abs().max() > 0.01


def test_a_first_layer_of_many_species_stays():
    potential = tiny_potential("mace", radial_mlp=(4,))
    convolution = next(s for s in lower(potential, exact=True).stages if isinstance(s, Convolve))
    assert convolution.radial.num_weights == 3 * 6


def test_the_shipped_model_has_splines():
    program = lower(load_potential("mace-mlearn"), exact=False)
    assert 0 < program.radial_error < TOLERANCE


def test_an_unknown_setting_is_refused_by_name():
    potential = tiny_potential("mace", interaction="attention_residual")
    with pytest.raises(CannotLowerError, match="^interaction = 'attention_residual'$"):
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
