"""Random blocks of features, what rotations and the inversion do to them, and when numbers are the same."""

import torch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def assert_same(found, expected, digits=11):
    """Equal to so many digits of the largest number, or of one."""
    tolerance = 10.0**-digits * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def blocks_of(irreps, n, seed=0):
    return [normal(n, ir.dim, mul, seed=seed + i) for i, (mul, ir) in enumerate(irreps)]


def turn(blocks, irreps, wigner):
    return [torch.einsum("ij,njk->nik", wigner(ir.l), block) for block, (_, ir) in zip(blocks, irreps, strict=True)]


def invert(blocks, irreps):
    return [block * ir.p for block, (_, ir) in zip(blocks, irreps, strict=True)]


def assert_commutes(function, irreps_in, irreps_out, n, wigner):
    """function(rotated or inverted blocks) = rotated or inverted function(blocks)."""
    blocks = blocks_of(irreps_in, n)
    out = function(blocks)
    for turned, expected in (
        (turn(blocks, irreps_in, wigner), turn(out, irreps_out, wigner)),
        (invert(blocks, irreps_in), invert(out, irreps_out)),
    ):
        for found, wanted in zip(function(turned), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert all(block.abs().max() > 0.01 for block in out)
