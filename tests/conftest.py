"""What several test files share: every registered architecture, tiny and in float64, and graphs for it."""

import os
from functools import cache

import pytest
import torch
from e3nn import o3
from tiny import TINY, tiny_potential

from ase_equivariant import EquivariantCalculator, inference, save_potential
from ase_equivariant.graph import concatenate, from_atoms

# Tests are of the CPU on any machine, in their child processes too, but for those of `make test-cuda`.
if os.environ.get("ASE_EQUIVARIANT_TEST_DEVICE") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def _no_test_uses_the_user_s_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASE_EQUIVARIANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _kernels_are_compiled_only_where_they_are_tested():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(inference.FASTEST_FIRST, "cpu", ("eager",))
        yield


@pytest.fixture(params=TINY, scope="session")
def architecture(request):
    return request.param


@pytest.fixture(scope="session")
def potential(architecture):
    return tiny_potential(architecture)


@pytest.fixture(scope="session")
def graph_of(potential):
    """Structures to one batch, for the tiny potential."""
    return lambda *structures: concatenate(
        [from_atoms(atoms, potential.atomic_numbers, potential.cutoff) for atoms in structures]
    )


@pytest.fixture(scope="session")
def rotation():
    """A proper rotation about no special axis."""
    normal = torch.randn((3, 3), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    orthogonal = torch.linalg.qr(normal).Q
    return orthogonal * torch.linalg.det(orthogonal)


@pytest.fixture(scope="session")
def wigner(rotation):
    """l → matrix that turns harmonics with the rotation, read off e3nn's harmonics: its own has single precision."""
    points = torch.randn((200, 3), generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def matrix(ell):
        before, after = (o3.spherical_harmonics(ell, p, normalize=True) for p in (points, points @ rotation.T))
        return torch.linalg.lstsq(before, after).solution.T

    return cache(matrix)


@pytest.fixture
def calc(potential):
    """A calculator of the test file's potential, in float64."""
    return EquivariantCalculator(potential, device="cpu", dtype="float64")


@pytest.fixture
def path(potential, tmp_path):
    """A model file of the test file's potential."""
    save_potential(potential, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"
