"""Equivariant bricks that architectures share.

Features are lists of blocks, one per irrep of an `e3nn.o3.Irreps` without repeats: `[n, 2l+1, channels]`, channels last
and contiguous. Constants are built in float64 and are not saved with a model: they follow from its config.
"""
