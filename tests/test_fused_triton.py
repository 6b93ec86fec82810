"""The convolution's kernels for a GPU: the same numbers as torch's operations, through two derivatives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from blocks import generator, normal
from e3nn import o3

pytest.importorskip("triton")

from ase_equivariant.nn import fused_triton
from ase_equivariant.nn.convolution import Convolution
from ase_equivariant.nn.fused import FusedConvolution
from ase_equivariant.nn.irreps import harmonics_irreps

CASES = {  # features, l_max, wanted irreps
    "scalars": ("4x0e", 3, harmonics_irreps(3)),
    "vectors": ("2x0e+2x1o", 2, harmonics_irreps(2)),
    "widths": ("5x0e+3x1o", 1, o3.Irreps("1x0e+1x1o+1x1e")),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def derivatives(convolution, tensors, edges):
    """Result, gradients for features, harmonics and weights, and the gradients of a loss of those."""
    *feats, y, r = [t.clone().requires_grad_() for t in tensors]
    out = convolution(feats, y, r, *edges)
    probes = [normal(*block.shape, seed=seed).to(block) for seed, block in enumerate(out, 50)]
    first = torch.autograd.grad(sum((o * p).sum() for o, p in zip(out, probes)), [*feats, y, r], create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), [*feats, y, r])
    return [*out, *first, *second]


def compare(name):
    features, l_max, targets = CASES[name]
    convolution = Convolution(o3.Irreps(features), l_max, targets).double().to(DEVICE)
    n_nodes, n_edges = 4, 9
    senders = torch.randint(n_nodes, (n_edges,), generator=generator(1))
    receivers = torch.randint(n_nodes - 1, (n_edges,), generator=generator(2)).sort()[0]  # one receives nothing
    shapes = [(n_nodes, ir.dim, mul) for mul, ir in o3.Irreps(features)]
    shapes += [(n_edges, (l_max + 1) ** 2), (n_edges, convolution.num_weights)]
    tensors = [normal(*shape, seed=seed).to(DEVICE) for seed, shape in enumerate(shapes)]
    edges = senders.to(DEVICE), receivers.to(DEVICE)
    expected = derivatives(convolution, tensors, edges)
    found = derivatives(FusedConvolution(convolution, fused_triton.TritonKernels), tensors, edges)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)
    assert all(b.abs().max() > 1e-3 for b in expected)


def compare_all():
    fused_triton.REGISTERS = 8  # so that a convolution takes several kernels
    for name in CASES:
        compare(name)


def test_kernels_give_what_torch_gives_through_two_derivatives():
    """In a process of its own, where Triton's interpreter stands in for a GPU that is not there."""
    code = "from test_fused_triton import compare_all; compare_all()"
    variables = {**os.environ, "TRITON_INTERPRET": str(int(DEVICE == "cpu")), "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
