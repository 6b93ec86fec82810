"""The arrays of one evaluation: values and gradients of nodes, geometry of edges, and who neighbours whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Run:
    # nodes
    species: np.ndarray  # [n_nodes]
    heads: np.ndarray  # [n_nodes]
    attributes: np.ndarray  # [n_nodes, n_attributes]
    rows: np.ndarray  # [n_nodes] 0, 1, 2, …
    zeros: np.ndarray  # [n_nodes]
    order: np.ndarray  # [n_nodes] the nodes of each block, those of one species together
    scales: np.ndarray  # [n_nodes] of ε_i in the energy, float64
    energies: np.ndarray  # [n_nodes] eV, float64, without constants
    values: dict[str, np.ndarray]  # [n_nodes, width]
    gradients: dict[str, np.ndarray]  # the same, none where no forces are asked
    # edges, in the graph's order: by receiver
    first: np.ndarray  # [n_nodes + 1] where each receiver's edges begin
    senders: np.ndarray  # [n_edges]
    offsets: np.ndarray  # [n_edges, 3] Å, lattice vectors between the two images
    positions: np.ndarray  # [n_nodes, 3] Å
    lengths: np.ndarray  # [n_edges] Å, float64
    vectors: np.ndarray  # [n_edges, 3] Å, float64
    harmonics: np.ndarray  # [n_edges, (l_max+1)²]
    radial: dict[object, tuple[np.ndarray, ...]]  # arrays of each convolution's radial functions
    # of the reversed edge, each where its edge stands
    harmonics_gradient: np.ndarray
    lengths_gradient: np.ndarray  # [n_edges] eV/Å, float64
    vectors_gradient: np.ndarray  # [n_edges, 3] eV/Å, float64
