"""Forces and stress from one gradient with respect to the edge vectors.

With g_e = ∂E/∂r_e for the vector r_e from sender to receiver,

    F_i = Σ_{e: i sends} g_e − Σ_{e: i receives} g_e          ∂E/∂ε = Σ_e r_e ⊗ g_e   (symmetric part)

which holds for any mix of periodic directions without a strained copy of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ase_equivariant.graph import Graph
from ase_equivariant.potential import Potential


@dataclass(frozen=True)
class Prediction:
    energy: Tensor  # [n_graphs] eV
    node_energies: Tensor  # [n_nodes] eV
    forces: Tensor | None = None  # [n_nodes, 3] eV/Å
    strain_gradient: Tensor | None = None  # [n_graphs, 3, 3] dE/dε, eV


def predict(potential: Potential, graph: Graph, forces: bool = True, create_graph: bool = False) -> Prediction:
    """Evaluate a batch: one model call, and one reverse pass when `forces` are asked.

    `create_graph` keeps the result differentiable with respect to the weights, for training.
    """
    vectors = graph.vectors().detach().requires_grad_(forces)
    with torch.set_grad_enabled(forces or create_graph):
        heads = graph.heads[graph.batch]
        node_energies = potential(vectors, graph.species, graph.senders, graph.receivers, heads, graph.attributes)
        energy = node_energies.new_zeros(graph.n_graphs).index_add(0, graph.batch, node_energies)
        if not forces:
            return Prediction(energy, node_energies)
        gradients = edge_gradients(node_energies, vectors, create_graph)
        return Prediction(
            energy=energy if create_graph else energy.detach(),
            node_energies=node_energies if create_graph else node_energies.detach(),
            forces=sum_forces(gradients, graph.senders, graph.receivers, graph.n_nodes),
            strain_gradient=sum_strain(gradients, vectors.detach(), graph.batch[graph.receivers], graph.n_graphs),
        )


def edge_gradients(node_energies: Tensor, vectors: Tensor, create_graph: bool = False) -> Tensor:
    """∂(Σ_i E_i)/∂r_e, [n_edges, 3] eV/Å."""
    gradients = torch.autograd.grad([node_energies.sum()], [vectors], create_graph=create_graph)[0]
    assert gradients is not None  # for TorchScript, where the gradient is Optional
    return gradients


def sum_forces(gradients: Tensor, senders: Tensor, receivers: Tensor, n_nodes: int) -> Tensor:
    """Forces [n_nodes, 3] eV/Å from edge gradients."""
    zeros = torch.zeros((n_nodes, 3), dtype=gradients.dtype, device=gradients.device)
    return zeros.index_add(0, senders, gradients).index_add(0, receivers, -gradients)


def sum_strain(gradients: Tensor, vectors: Tensor, edge_batch: Tensor, n_graphs: int) -> Tensor:
    """Symmetric strain gradient dE/dε [n_graphs, 3, 3] eV from edge gradients."""
    products = vectors.unsqueeze(-1) * gradients.unsqueeze(-2)
    zeros = torch.zeros((n_graphs, 3, 3), dtype=gradients.dtype, device=gradients.device)
    return zeros.index_add(0, edge_batch, 0.5 * (products + products.transpose(-1, -2)))
