"""Couplings: coefficients as e3nn's, whatever its signs; all symmetric products, none twice; their contraction."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from blocks import assert_commutes, blocks_of, generator, normal
from e3nn import o3

from ase_equivariant.nn.contraction import SymmetricContraction
from ase_equivariant.nn.coupling import clebsch_gordan, symmetric_products
from ase_equivariant.nn.irreps import harmonics_irreps

DEGREES = [ls for ls in itertools.product(range(4), repeat=3) if abs(ls[0] - ls[1]) <= ls[2] <= ls[0] + ls[1]]
PRODUCTS = [
    *[(l_max, nu, ell) for l_max in range(4) for nu in (1, 2, 3) for ell in range(min(l_max, 2) + 1)],
    *[(1, 4, 0), (1, 4, 1), (2, 4, 0), (2, 4, 1), (2, 4, 2), (3, 4, 0)],
]


def wigner_3j(l1, l2, l3):
    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()


@pytest.mark.parametrize("degrees", DEGREES)
def test_coefficients_are_those_of_e3nn_up_to_a_sign(degrees):
    found, expected = clebsch_gordan(*degrees), wigner_3j(*degrees)
    assert found.dtype == np.float64
    assert min(np.abs(found - expected).max(), np.abs(found + expected).max()) < 1e-14
    assert (found**2).sum() == pytest.approx(1.0, abs=1e-14)
    assert found.flat[np.flatnonzero(found)[0]] > 0


@pytest.mark.parametrize("degrees", DEGREES)
def test_coefficients_are_unchanged_when_all_three_irreps_rotate(degrees, wigner):
    coefficients = clebsch_gordan(*degrees)
    d1, d2, d3 = (wigner(ell) for ell in degrees)
    rotated = np.einsum("ijk,il,jm,kn->lmn", coefficients, d1, d2, d3)
    np.testing.assert_allclose(rotated, coefficients, atol=1e-12)


@pytest.fixture
def fresh_coefficients():
    """Nothing remembered from before, nothing left for later."""
    clebsch_gordan.cache_clear()
    yield
    clebsch_gordan.cache_clear()


def test_signs_of_another_release_of_e3nn_change_nothing(fresh_coefficients, monkeypatch):
    degrees = [ls for ls in DEGREES if max(ls) <= 2]
    before = {ls: clebsch_gordan(*ls) for ls in degrees}
    products = symmetric_products(2, 3, 1)
    signs = {ls: random.Random(repr(ls)).choice([-1.0, 1.0]) for ls in itertools.product(range(7), repeat=3)}
    original = o3.wigner_3j
    monkeypatch.setattr(o3, "wigner_3j", lambda *ls, **kwargs: signs[ls] * original(*ls, **kwargs))
    clebsch_gordan.cache_clear()
    assert any(np.abs(wigner_3j(*ls) - original(*ls, dtype=torch.float64).numpy()).max() > 0.1 for ls in degrees)
    for ls in degrees:
        np.testing.assert_array_equal(clebsch_gordan(*ls), before[ls])
    again = symmetric_products(2, 3, 1)
    assert again[0] == products[0]
    np.testing.assert_array_equal(again[1], products[1])


@pytest.mark.parametrize("default", [torch.float16, torch.float32])
def test_the_default_dtype_costs_no_digit(default, fresh_coefficients):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = clebsch_gordan(2, 2, 2)
    finally:
        torch.set_default_dtype(previous)
    assert (found**2).sum() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(("ell", "linear", "quadratic", "cubic"), [(0, 1, 16, 77), (1, 3, 35, 278), (2, 5, 74, 398)])
def test_monomials_are_as_few_as_counted_elsewhere(ell, linear, quadratic, cubic):
    """Of each component of each L; a dense coupling tensor of three factors has 16³."""
    counts = [np.count_nonzero(symmetric_products(3, nu, ell)[1].any(0)) for nu in (1, 2, 3)]
    assert counts == [linear, quadratic, cubic]


def evaluate(monomials, coefficients, factors):
    """The products [n_products, 2L+1] of one channel's factors A [(l_max+1)²]."""
    return coefficients @ np.array([np.prod(factors[list(monomial)]) for monomial in monomials])


@pytest.mark.parametrize(("l_max", "nu", "ell"), PRODUCTS)
def test_products_turn_with_their_factors(l_max, nu, ell, wigner):
    monomials, coefficients = symmetric_products(l_max, nu, ell)
    factors = np.random.default_rng(0).normal(size=(l_max + 1) ** 2)
    turned = torch.block_diag(*map(wigner, range(l_max + 1))).numpy() @ factors
    products = evaluate(monomials, coefficients, factors)
    expected = products @ wigner(ell).numpy().T
    np.testing.assert_allclose(evaluate(monomials, coefficients, turned), expected, atol=1e-10 * np.abs(products).max())


@pytest.mark.parametrize(("l_max", "nu", "ell"), PRODUCTS)
def test_products_have_the_parity_of_their_irrep(l_max, nu, ell):
    monomials, _ = symmetric_products(l_max, nu, ell)
    degrees = [sum(math.isqrt(component) for component in monomial) for monomial in monomials]
    assert {degree % 2 for degree in degrees} == {ell % 2}


@pytest.mark.parametrize(("l_max", "nu", "ell"), PRODUCTS)
def test_products_are_orthonormal_symmetric_tensors(l_max, nu, ell):
    monomials, coefficients = symmetric_products(l_max, nu, ell)
    orderings = [len(set(itertools.permutations(monomial))) for monomial in monomials]
    gram = np.einsum("pmi,qmi,i->pq", coefficients, coefficients, 1 / np.array(orderings))
    np.testing.assert_allclose(gram, (2 * ell + 1) * np.eye(len(coefficients)), atol=1e-12)


@pytest.mark.parametrize(("l_max", "nu", "ell"), PRODUCTS)
def test_there_are_as_many_products_as_group_theory_counts(l_max, nu, ell):
    assert len(symmetric_products(l_max, nu, ell)[1]) == multiplicity(l_max, nu, ell)


def multiplicity(l_max, nu, ell):
    """How often the irrep (L, (-1)^L) occurs in the symmetric power of the harmonics, from characters of O(3)."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)  # exact for these trigonometric polynomials
    total = 0.0
    for sign in (1, -1):  # rotations, and rotations times the inversion

        def character(degree, power, sign=sign):
            turns = sum(np.cos(m * power * angles) for m in range(-degree, degree + 1))
            return sign ** (degree * power) * turns

        powers = [sum(character(degree, k) for degree in range(l_max + 1)) for k in range(1, nu + 1)]
        symmetric = [np.ones_like(angles)]
        for n in range(1, nu + 1):  # Newton's identity for complete symmetric polynomials
            symmetric.append(sum(powers[k - 1] * symmetric[n - k] for k in range(1, n + 1)) / n)
        total += np.mean(symmetric[nu] * character(ell, 1) * (1 - np.cos(angles))) / 2
    assert total == pytest.approx(round(total), abs=1e-9)
    return round(total)


# Symmetric contraction -----------------------------------------------------------------------------------------------


def coupling_trees(l_max, nu, ell):
    """Every way to couple nu factors, in any order of their l, with e3nn: symmetrised [n, S, …, S, 2L+1]."""
    start = np.cumsum([0] + [2 * degree + 1 for degree in range(l_max + 1)])
    dense = []
    for degrees in itertools.product(range(l_max + 1), repeat=nu):
        trees = {degrees[0]: [np.eye(2 * degrees[0] + 1)]}
        for degree in degrees[1:]:
            grown = {}
            for inner, outer in itertools.product(trees, range(2 * l_max * nu + 1)):
                if abs(inner - degree) <= outer <= inner + degree:
                    coupling = o3.wigner_3j(inner, degree, outer, dtype=torch.float64).numpy()
                    grown.setdefault(outer, []).extend(np.tensordot(tree, coupling, 1) for tree in trees[inner])
            trees = grown
        for tree in trees.get(ell, []) if sum(degrees) % 2 == ell % 2 else []:
            tensor = np.zeros([start[-1]] * nu + [2 * ell + 1])
            tensor[tuple(slice(start[degree], start[degree + 1]) for degree in degrees)] = tree
            orders = itertools.permutations(range(nu))
            dense.append(sum(tensor.transpose(*order, nu) for order in orders) / math.factorial(nu))
    return np.array(dense)


def dense_products(l_max, nu, ell):
    """Our products as dense symmetric tensors [n, S, …, S, 2L+1]."""
    monomials, coefficients = symmetric_products(l_max, nu, ell)
    dense = np.zeros([len(coefficients)] + [(l_max + 1) ** 2] * nu + [2 * ell + 1])
    for monomial, values in zip(monomials, coefficients.transpose(2, 0, 1), strict=True):
        orders = set(itertools.permutations(monomial))
        for order in orders:
            dense[(slice(None), *order)] = values / len(orders)
    return dense


@pytest.mark.parametrize(("l_max", "ell"), [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1)])
def test_the_contraction_is_the_symmetrised_tensor_product_with_every_coupling(l_max, ell):
    """Any weights of MACE's redundant dense form are weights of ours, and give the same features."""
    num_species, channels, n_nodes = 2, 3, 4
    contraction = SymmetricContraction(l_max, o3.Irreps([(channels, (ell, (-1) ** ell))]), 3, num_species, generator())
    factors = normal(n_nodes, (l_max + 1) ** 2, channels)
    species = torch.tensor([1, 0, 0, 1])
    expected = torch.zeros(n_nodes, 2 * ell + 1, channels, dtype=torch.float64)
    for nu, order in enumerate(contraction.outputs[0].orders, 1):
        trees, ours = coupling_trees(l_max, nu, ell), dense_products(l_max, nu, ell)
        flat_trees, flat = trees.reshape(len(trees), -1), ours.reshape(len(ours), -1)
        change = np.linalg.lstsq(flat.T, flat_trees.T, rcond=None)[0]  # [n_ours, n_trees]
        np.testing.assert_allclose(flat.T @ change, flat_trees.T, atol=1e-12)
        assert np.linalg.matrix_rank(flat_trees, tol=1e-8) == len(ours)
        weight = normal(num_species, len(trees), channels, seed=nu)
        order.weight.data = torch.einsum("ot,ztk->zok", torch.from_numpy(change), weight)
        product = torch.einsum("t...m,ztk->zk...m", torch.from_numpy(trees), weight)[species]
        for _ in range(nu):
            product = torch.einsum("nks...,nsk->nk...", product, factors)
        expected += product.transpose(1, 2)
    blocks = list(factors.split([2 * degree + 1 for degree in range(l_max + 1)], 1))
    torch.testing.assert_close(contraction(blocks, species)[0], expected, rtol=0, atol=1e-10)
    assert expected.abs().max() > 1
    assert (contraction(blocks, 1 - species)[0] - expected).abs().max() > 0.1


@pytest.mark.parametrize("correlation", [1, 2, 3, 4])
def test_the_contraction_is_a_polynomial_of_its_correlation(correlation):
    contraction = SymmetricContraction(2, o3.Irreps("2x0e+2x1o"), correlation, 1, generator())
    start, step = (blocks_of(harmonics_irreps(2, 2), 3, seed=seed) for seed in (0, 10))

    def difference(order):
        """The finite difference of this order along a line, zero for polynomials of lower degree."""
        return sum(
            (-1) ** (order - i) * math.comb(order, i) * torch.cat(contraction([a + i * b for a, b in line], species), 1)
            for i in range(order + 1)
        )

    line, species = list(zip(start, step, strict=True)), torch.zeros(3, dtype=torch.int64)
    assert difference(correlation).abs().amax(0).min() > 1e-3
    assert difference(correlation + 1).abs().max() < 1e-9
    zeros = contraction([torch.zeros_like(block) for block in start], species)
    assert all((block == 0).all() for block in zeros)


@pytest.mark.parametrize("correlation", [1, 2, 3, 4])
def test_the_contraction_commutes_with_rotations_and_the_inversion(correlation, wigner):
    irreps_in, irreps_out = harmonics_irreps(2, 2), o3.Irreps("2x0e+2x1o+2x2e")
    contraction = SymmetricContraction(2, irreps_out, correlation, 3, generator())
    species = torch.tensor([0, 2, 1, 1, 0])
    assert_commutes(lambda blocks: contraction(blocks, species), irreps_in, irreps_out, 5, wigner)
