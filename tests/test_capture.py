"""Training steps as CUDA graphs: what surrounds the recording, which runs everywhere."""

import pytest
import torch
from ase import Atoms
from structures import STRUCTURES
from test_training import labelled
from tiny import tiny_potential

from ase_equivariant.derivatives import predict
from ase_equivariant.training.acceleration import capturable
from ase_equivariant.training.capture import ALIGNED, arrays_of, packed, rounded, viewed
from ase_equivariant.training.config import Keys, LossConfig
from ase_equivariant.training.data import collate, make_batch, read_labels
from ase_equivariant.training.loss import Loss, cut, residuals

LOSS = LossConfig(energy=2.0, forces=3.0, stress=100.0, forces_factors={"Cu": 3.0}, huber_delta=0.05)
MODELS = [
    ("mace", {}),
    ("mace", {"interaction_first": "density", "interaction": "density_residual", "apply_cutoff": False}),
    ("mace", {"interaction": "attention_residual"}),
    ("nequip", {"interaction_first": "residual", "normalisation": "rms"}),
    ("nequip", {"interaction_first": "residual", "skip": "shared"}),
    ("botnet", {"radial": "element"}),
]


@pytest.fixture
def batch():
    """Two crystals, of which one has no stress, and a lone atom."""
    frames = [labelled("Cu", 1), labelled("Ni", 2, 2), Atoms("Cu", info={"energy": -3.0})]
    del frames[1].calc.results["stress"]
    return collate([make_batch(read_labels(atoms, Keys(), LOSS, "test"), (28, 29), 4.0) for atoms in frames])


def padded(batch, n_graphs, cutoff):
    return viewed(*packed(batch, n_graphs, cutoff), batch)


def step(potential, batch):
    """Loss, its gradient for each parameter, and residuals."""
    found = residuals(predict(potential, batch.graph, create_graph=True), batch)
    loss = Loss(LOSS, potential.atomic_numbers)(found)
    return loss, torch.autograd.grad(loss, list(potential.parameters()), materialize_grads=True), found


@pytest.mark.parametrize(("architecture", "settings"), MODELS)
def test_padding_changes_neither_the_loss_nor_its_gradient(architecture, settings, batch):
    potential = tiny_potential(architecture, atomic_numbers=(28, 29), **settings)
    wide = padded(batch, 5, 4.0)
    expected, gradient, found = step(potential, batch)
    loss, same, rows = step(capturable(potential), wide)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert max((a - b).norm() / (a.norm() + 1e-8) for a, b in zip(gradient, same, strict=True)) < 1e-9
    kept = vars(cut(rows, batch.graph))
    assert all(torch.allclose(kept[name], values, rtol=1e-10, atol=1e-12) for name, values in vars(found).items())
    assert wide.graph.n_nodes > batch.graph.n_nodes
    assert wide.graph.n_edges > batch.graph.n_edges


@pytest.mark.parametrize("make", [STRUCTURES["molecule"], STRUCTURES["crystal"]])
def test_padding_keeps_edges_sorted_by_receiver_and_sizes_few(make):
    structure = read_labels(make(), Keys(), LossConfig(energy=0.0, forces=0.0, stress=1.0), "test")
    wide = padded(make_batch(structure, (1, 6, 8, 14, 29), 4.0), 2, 4.0)
    receivers = wide.graph.receivers
    assert (receivers[1:] >= receivers[:-1]).all()
    assert wide.graph.n_graphs == 3
    assert {rounded(n) for n in range(1000, 1120)} == {1024, 1152}
    assert all(n <= rounded(n) <= n + max(8, n / 8) for n in range(1, 3000))


def test_a_padded_batch_lies_in_one_piece_of_memory(batch):
    memory, shapes = packed(batch, 3, 4.0)
    before, after = arrays_of(batch), arrays_of(viewed(memory, shapes, batch))
    assert list(before) == list(after)
    for name, array in before.items():
        assert torch.equal(after[name][: len(array)], array)
        assert after[name].dtype == array.dtype
        assert after[name].untyped_storage().data_ptr() == memory.data_ptr()
        assert after[name].storage_offset() % ALIGNED == 0
    assert (after["positions"][0] != 0).any()
