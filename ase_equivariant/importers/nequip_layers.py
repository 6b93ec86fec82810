"""One layer of a NequIP file, taken apart into blocks whose meaning does not depend on any order of channels.

Blocks hold the whole factor of their map, normalisation included, in the conventions of our NequIP: our couplings,
vectors from sender to receiver, gates with our gains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.importers.compiled import activation
from ase_equivariant.importers.couplings import coupling_sign, sign_of
from ase_equivariant.importers.records import Content, irreps_of
from ase_equivariant.importers.unpickling import ForeignFileError, Record
from ase_equivariant.nn.gate import TANH_GAIN
from ase_equivariant.nn.radial import SILU_GAIN

Path = tuple[o3.Irrep, int, o3.Irrep]  # of a message: the sender's irrep, l of the harmonics, the receiver's irrep
Group = tuple[o3.Irrep, o3.Irrep]  # channels before the gate: their irrep, and what they are or gate after it
NEEDED = "0.5.6"  # e3nn, by nequip 0.7 and later, which need not say more
EVEN, ODD = o3.Irrep("0e"), o3.Irrep("0o")
# 1/√⟨f(x)²⟩ over the million normal x that e3nn draws, where a file does not say it
DEFAULT_GAINS = {"silu": 1.6791767923989418, "tanh": 1.5937334472592695}


@dataclass(frozen=True)
class Layer:
    """Effective weights; the gains are what even and odd scalars leave the gate with, relative to ours."""

    irreps_out: o3.Irreps
    norms: Tensor  # [1] or [n_species]: the sender's 1/√N̄
    linear_up: dict[o3.Irrep, Tensor]
    radial_hidden: list[Tensor]
    radial_out: dict[Path, Tensor]
    linear: dict[tuple[Path, Group], Tensor]
    skip: dict[Group, Tensor]  # [n_species, in, out]
    gains: dict[o3.Irrep, float]


def read_layer(part: Record, before: Layer | int, harmonics: o3.Irreps, embedding: Tensor, content: Content) -> Layer:
    """Take apart one `ConvNetLayer` that comes behind another, or behind so many scalars.

    `embedding` [n_species, features] is what the self-connection sees of an atom.
    """
    first = isinstance(before, int)
    irreps_in = o3.Irreps([(before, EVEN)]) if first else before.irreps_out
    gains_in = {} if first else before.gains
    hidden = [
        (mul, ir) for mul, ir in irreps_of(part.get("feature_irreps_hidden")) if _reached(ir, irreps_in, harmonics)
    ]
    irreps_out = o3.Irreps(
        [entry for entry in hidden if entry[1].l == 0] + [entry for entry in hidden if entry[1].l > 0]
    )
    _check(part, irreps_out)
    silu, tanh = _gate_gains(part, irreps_out, content)
    groups = channel_groups(irreps_out)
    paths = [  # in the order of the radial network's outputs
        (ir, edge.l, out) for _, ir in irreps_in for _, edge in harmonics for out in ir * edge if (out, out) in groups
    ]
    *radial_hidden, last = dense_network(part.get("conv.edge_mlp.mlp"), "radial network")
    widths = [irreps_in.count(path[0]) for path in paths]
    signs = [_sign(path, part, content.notes.get("e3nn_version", NEEDED)) for path in paths]
    columns = [sign * block for sign, block in zip(signs, last.split(widths, 1))]
    scale = {group: silu if group[0].l > 0 else 1.0 for group in groups}  # what is gated takes the gate's gain
    return Layer(
        irreps_out=irreps_out,
        norms=part.get("conv.avg_num_neighbors_norm.norm_const").double().reshape(-1),
        linear_up={
            ir: gains_in.get(ir, 1.0) * block for ir, block in _linear_up(part.get("conv.linear_1.weight"), irreps_in)
        },
        radial_hidden=radial_hidden,
        radial_out=dict(zip(paths, columns, strict=True)),
        linear={
            (path, group): scale[group] * block
            for (path, group), block in _linear(part.get("conv.linear_2.weight"), paths, irreps_in, groups).items()
        },
        skip={
            group: scale[group] * gains_in.get(group[0], 1.0) * block
            for group, block in _skip(part.get("conv.sc.weight"), irreps_in, groups, embedding).items()
        },
        gains={EVEN: silu, ODD: tanh},
    )


def dense_network(network: Record, name: str) -> list[Tensor]:
    """Effective matrices of a `ScalarMLPFunction`: x W √(2)/√n after each SiLU, x W/√n first."""
    if not network.name.endswith("Sequential"):
        raise ForeignFileError(f"its {name} is a {network.name}, which this version cannot rebuild")
    matrices = []
    for part in network.children():
        weight = part.get("weight")
        if weight is None and part.name.endswith(".SiLU"):
            continue
        if weight is None or part.get("bias") is not None:
            raise ForeignFileError(f"its {name} has {part.name} with a bias or unknown activation")
        factor = (math.sqrt(2.0) if matrices else 1.0) / math.sqrt(weight.shape[0])
        said = part.get("alpha", torch.tensor(factor)).item()  # in single precision, where the file is
        matrices.append(weight.double() * (factor if math.isclose(said, factor, rel_tol=1e-6) else said))
    return matrices


def _reached(ir: o3.Irrep, irreps_in: o3.Irreps, harmonics: o3.Irreps) -> bool:
    return any(ir in source * edge for _, source in irreps_in for _, edge in harmonics)


def _check(part: Record, irreps_out: o3.Irreps) -> None:
    unknown = {
        "resnet": part.get("resnet", False),
        part.get("conv").name: not part.get("conv").name.endswith(".InteractionBlock"),
        part.get("equivariant_nonlin").name: not part.get("equivariant_nonlin").name.endswith("._gate.Gate"),
        f"features {irreps_out}": irreps_out.count(EVEN) == 0 or len(irreps_out) != len({ir for _, ir in irreps_out}),
    }
    found = [name for name, present in unknown.items() if present]
    if found:
        raise ForeignFileError(f"it has parts that this version cannot rebuild: {', '.join(found)}")


def channel_groups(irreps_out: o3.Irreps) -> dict[Group, int]:
    """Channels before the gate: even scalars and the gates behind them, then the others."""
    gated = {ir: mul for mul, ir in irreps_out if ir.l > 0}
    rest = {(ir, ir): mul for mul, ir in irreps_out if ir != EVEN}
    return {(EVEN, EVEN): irreps_out.count(EVEN), **{(EVEN, ir): mul for ir, mul in gated.items()}, **rest}


def _gate_gains(part: Record, irreps_out: o3.Irreps, content: Content) -> tuple[float, float]:
    """Gains of SiLU and tanh in a gate relative to ours, where it uses them as ours does."""
    expected = {
        "act_scalars": [{1: "silu", -1: "tanh"}[ir.p] for _, ir in irreps_out if ir.l == 0],
        "act_gates": ["silu"],
    }
    found = dict(DEFAULT_GAINS)
    for name, functions in expected.items():
        activations = part.get(f"equivariant_nonlin.{name}.acts")
        for function, module in zip(functions, activations.children() if activations else []):
            said, gain = activation(module, content)
            if said != function:
                raise ForeignFileError(f"its gate uses {said} where this version knows {function}")
            found[function] = gain
    return found["silu"] / SILU_GAIN, found["tanh"] / TANH_GAIN


def _sign(path: Path, part: Record, release: str | None) -> float:
    """Their coupling and harmonics relative to ours; a file's own couplings first."""
    degrees = path[0].l, path[1], path[2].l
    theirs = part.get("conv.tp_scatter.tp._compiled_main_left_right._w3j_{}_{}_{}".format(*degrees))
    return (-1) ** path[1] * (coupling_sign(*degrees, release) if theirs is None else sign_of(theirs, *degrees))


def _pieces(flat: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """e3nn keeps all matrices of a map in one row."""
    pieces = flat.double().reshape(-1).split([math.prod(shape) for shape in shapes])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _linear_up(flat: Tensor, irreps_in: o3.Irreps) -> list[tuple[o3.Irrep, Tensor]]:
    blocks = _pieces(flat, [(mul, mul) for mul, _ in irreps_in])
    return [(ir, block / math.sqrt(mul)) for (mul, ir), block in zip(irreps_in, blocks)]


def _linear(
    flat: Tensor, paths: list[Path], irreps_in: o3.Irreps, groups: dict[Group, int]
) -> dict[tuple[Path, Group], Tensor]:
    """Matrices by sorted irrep: rows in the order of the paths to it, columns in that of its groups."""
    blocks = {}
    kinds = sorted({out for _, _, out in paths})
    rows = {out: [path for path in paths if path[2] == out] for out in kinds}
    heights = {out: [irreps_in.count(path[0]) for path in rows[out]] for out in kinds}
    columns = {out: [group for group in groups if group[0] == out] for out in kinds}
    shapes = [(sum(heights[out]), sum(groups[group] for group in columns[out])) for out in kinds]
    for out, matrix in zip(kinds, _pieces(flat, shapes)):
        for path, row in zip(rows[out], (matrix / math.sqrt(len(matrix))).split(heights[out])):
            for group, block in zip(columns[out], row.split([groups[group] for group in columns[out]], 1)):
                blocks[path, group] = block
    return blocks


def _skip(
    flat: Tensor | None, irreps_in: o3.Irreps, groups: dict[Group, int], embedding: Tensor
) -> dict[Group, Tensor]:
    """The self-connection, linear in an atom's features and in its embedding: one matrix per species."""
    if flat is None:
        return {}
    blocks = {}
    n_features = embedding.shape[1]
    columns = {ir: [group for group in groups if group[0] == ir] for _, ir in irreps_in}
    kept = [(mul, ir) for mul, ir in irreps_in if columns[ir]]
    shapes = [(mul, n_features, sum(groups[group] for group in columns[ir])) for mul, ir in kept]
    for (mul, ir), weights in zip(kept, _pieces(flat, shapes)):
        matrices = torch.einsum("uvw,zv->zuw", weights, embedding) / math.sqrt(mul * n_features)
        for group, block in zip(columns[ir], matrices.split([groups[group] for group in columns[ir]], 2)):
            blocks[group] = block
    return blocks
