"""NequIP packages, checkpoints and compiled files as our NequIP: the same function, with its constants in our weights.

Each difference is a factor, a sign or an order of channels: NequIP's edges point from receiver to sender, which gives
harmonics (-1)^l; it divides sums by √N̄; its gates have e3nn's own gain. Irreps that cannot change the energy are left
out, and what other layers have more of is filled with zeros, which gates keep zero. Nothing is fitted or lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable
from itertools import accumulate

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.architectures.nequip import NequIP, NequIPConfig
from ase_equivariant.importers.building import build_for
from ase_equivariant.importers.nequip_layers import EVEN, Layer, channel_groups, dense_network, read_layer
from ase_equivariant.importers.records import Content, irreps_of
from ase_equivariant.importers.unpickling import ForeignFileError, Record
from ase_equivariant.nn.irreps import harmonics_irreps
from ase_equivariant.nn.pair_repulsion import ZBLConfig
from ase_equivariant.potential import Potential
from ase_equivariant.text import shown

PARTS = {
    "type_embed": "NodeTypeEmbed",
    "spharm": "SphericalHarmonicEdgeAttrs",
    "edge_norm": "EdgeLengthNormalizer",
    "bessel_encode": "BesselEdgeLengthEncoding",
    "factor": "ApplyFactor",
    "per_atom_energy_readout": "ScalarMLP",
    "per_type_energy_scale_shift": "PerTypeScaleShift",
    "total_energy_sum": "AtomwiseReduce",
}
SYMBOLS = re.findall(
    "[A-Z][a-z]?",
    "HHeLiBeBCNOFNeNaMgAlSiPSClArKCaScTiVCrMnFeCoNiCuZnGaGeAsSeBrKrRbSrYZrNbMoTcRuRhPdAgCdInSnSbTeIXeCsBaLaCeP"
    "rNdPmSmEuGdTbDyHoErTmYbLuHfTaWReOsIrPtAuHgTlPbBiPoAtRnFrRaAcThPaUNpPuAmCmBkCfEsFmMdNoLrRfDbSgBhHsMtDsRgCn"
    "NhFlMcLvTsOg",
)


def import_nequip(content: Content) -> Potential:
    """The potential in a NequIP file that `read_content` opened; `ForeignFileError` names parts we lack."""
    graph_model = content.root.get("sole_model", content.root)
    parts = graph_model.get("model.func").named_children()
    _check_parts(parts)
    names = graph_model.get("type_names") or parts["per_type_energy_scale_shift"].get("type_names")
    numbers = [_atomic_number(name) for name in names]
    if len(set(numbers)) < len(numbers):  # before tables are made that have a row for each
        raise ForeignFileError(f"its atom types {shown(names)} have an element twice")
    order = torch.tensor(numbers).argsort()
    embedding = parts["type_embed"].get("embed_module.weight").double()[order]
    seen = parts["type_embed"].get("one_hot")  # by self-connections, in releases before 0.7
    seen = embedding if seen is None else seen[order]
    harmonics = irreps_of(parts["spharm"].get("irreps_edge_sh"))
    layers: list[Layer] = []
    for part in parts.values():
        if part.name.endswith(".ConvNetLayer"):
            before = layers[-1] if layers else embedding.shape[1]
            layers.append(read_layer(part, before, harmonics, seen, content))
    releases = {name: said for name, said in content.notes.items() if name.endswith("_version") and said}
    architecture = build_for("nequip", _config(parts, layers, embedding, harmonics, numbers), content.root)
    with torch.no_grad():
        _fill(architecture, parts, layers, embedding)
    return Potential(
        architecture,  # in float64: constants folded into single-precision weights would be rounded once more
        atomic_numbers=sorted(numbers),
        atomic_energies=torch.zeros(1, len(numbers)),
        scale=_table(parts, "scales", 1.0, len(numbers))[:, order],
        shift=_table(parts, "shifts", 0.0, len(numbers))[:, order],
        metadata={"provenance": {"source_package": "nequip", **releases}},
    )


def _atomic_number(name: str) -> int:
    if name not in SYMBOLS:
        raise ForeignFileError(
            f"its atom type {shown(name)} is not a chemical symbol, so it is unclear which atoms it means"
        )
    return SYMBOLS.index(name) + 1


def _table(parts: dict[str, Record], name: str, default: float, n_species: int) -> Tensor:
    """[1, n_species] from one number per type, one for all, or none."""
    values = parts["per_type_energy_scale_shift"].get(name).double().reshape(1, -1)
    return (values if values.numel() else torch.tensor([[default]]).double()).expand(1, n_species)


def _check_parts(parts: dict[str, Record]) -> None:
    """Name every part that our NequIP does not have."""
    n_layers = sum(name.startswith("layer") for name in parts)
    expected = {
        **PARTS,
        **({"pair_potential": "ZBL"} if "pair_potential" in parts else {}),
        **{f"layer{i}_convnet": "ConvNetLayer" for i in range(n_layers)},
    }
    unknown = [part.name for name, part in parts.items() if part.name.split(".")[-1] != expected.get(name)]
    unknown += [f"no {name}" for name in expected if name not in parts]
    if not unknown:
        kinds = ("edge_norm", "bessel_encode", "spharm", "total_energy_sum")
        edges, basis, sphere, total = (parts[name] for name in kinds)
        flags = {
            "per_edge_type_cutoff": edges.get("_rmax_recip").numel() > 1,
            "categorical_graph_field_embed": parts["type_embed"].get("do_categorical_graph_field_embed", False),
            f"polynomial_cutoff_p = {shown(basis.get('cutoff.p'))}": not float(basis.get("cutoff.p")).is_integer(),
            "harmonics of another normalisation": sphere.get("sh.normalization", "component") != "component"
            or not sphere.get("sh.normalize", True),
            "an energy that is not a sum": total.get("reduce", "sum") != "sum" or total.get("constant", 1.0) != 1.0,
        }
        unknown = [name for name, present in flags.items() if present]
    if unknown:
        raise ForeignFileError(f"it has parts that this version cannot rebuild: {', '.join(unknown)}")


def _config(
    parts: dict[str, Record], layers: list[Layer], embedding: Tensor, harmonics: o3.Irreps, numbers: list[int]
) -> NequIPConfig:
    most: dict[o3.Irrep, int] = {}  # channels of each irrep in the layer that has most
    for mul, ir in (entry for layer in layers for entry in layer.irreps_out):
        most[ir] = max(mul, most.get(ir, 0))
    widths = [[matrix.shape[1] for matrix in layer.radial_hidden] for layer in layers]
    parity = harmonics == harmonics_irreps(harmonics.lmax)
    unknown = {
        "radial networks of different depths": len({len(each) for each in widths}) > 1,
        f"harmonics {harmonics}": not parity and harmonics != harmonics_irreps(harmonics.lmax, parity=1),
        "another avg_num_neighbors in each layer": any(
            not torch.equal(layer.norms, layers[0].norms) for layer in layers
        ),
    }
    found = [name for name, present in unknown.items() if present]
    if found:
        raise ForeignFileError(f"it has parts that this version cannot rebuild: {', '.join(found)}")
    frequencies = _frequencies(parts)
    neighbors = layers[0].norms ** -2
    mean = neighbors.mean()
    order = torch.tensor(numbers).argsort()
    return NequIPConfig(
        num_species=len(embedding),
        cutoff=float(parts["edge_norm"].get("r_max")),
        avg_num_neighbors=mean.item(),
        num_bessel=frequencies.numel(),
        trainable_bessel=not torch.equal(frequencies, torch.arange(1, frequencies.numel() + 1).double()),
        envelope_power=int(parts["bessel_encode"].get("cutoff.p")),
        radial_mlp=tuple(max(each) for each in zip(*widths)),
        l_max=harmonics.lmax,
        parity=parity,
        hidden_irreps="+".join(f"{mul}x{ir}" for ir, mul in most.items()),
        embedding_channels=embedding.shape[1],
        num_interactions=len(layers),
        interaction_first="residual",  # with weights of zero where the file has no self-connection in the first layer
        readout_mlp=0,
        # theirs divides by √N_z, ours by what stands here, after weights that are √N̄ larger
        species_neighbors=tuple((neighbors * mean).sqrt()[order].tolist()) if len(neighbors) > 1 else (),
        pair_repulsion=_pair_repulsion(parts, numbers),
    )


def _pair_repulsion(parts: dict[str, Record], numbers: list[int]) -> ZBLConfig | None:
    """ZBL of LAMMPS' constants, which ends at the cutoff for all pairs."""
    zbl = parts.get("pair_potential")
    if zbl is None:
        return None
    if zbl.get("atomic_numbers").round().long().tolist() != numbers:
        raise ForeignFileError("its pair repulsion is between other elements than its atom types")
    power = float(zbl.get("cutoff.p"))
    if not power.is_integer():
        raise ForeignFileError(f"it has parts that this version cannot rebuild: ZBL with polynomial_cutoff_p = {power}")
    return ZBLConfig(
        radii=(0.5 * float(parts["edge_norm"].get("r_max")),) * len(numbers),
        envelope_power=int(power),
        scaled=False,
        coulomb=2.0 * zbl.get("_qqr2exesquare").item(),
        length=0.46850,
        exponent=0.23,
        coefficients=(0.02817, 0.28022, 0.50986, 0.18175),
        decays=(0.20162, 0.40290, 0.94229, 3.19980),
    )


def _frequencies(parts: dict[str, Record]) -> Tensor:
    return parts["bessel_encode"].get("bessel_weights").double().reshape(-1)


def _fill(ours: NequIP, parts: dict[str, Record], layers: list[Layer], embedding: Tensor) -> None:
    config = ours.config
    harmonics = harmonics_irreps(config.l_max, parity=-1 if config.parity else 1)
    features = config.features
    ours.embedding.copy_(embedding)
    if config.trainable_bessel:
        ours.radial.frequencies.copy_(_frequencies(parts) * (math.pi / config.cutoff))
    # theirs: sin(nπr/r_c) r_c/(πr) times a factor; ours: √(2/r_c) sin(nπr/r_c)/r
    bessel = parts["factor"].get("factor") * config.cutoff / (math.pi * math.sqrt(2.0 / config.cutoff))
    for t, layer in enumerate(layers):
        _fill_layer(ours.layers[t], layer, features[t], features[t + 1], harmonics, bessel)
    readout = dense_network(parts["per_atom_energy_readout"].get("mlp_module.mlp"), "readout")
    if len(readout) > 1:
        raise ForeignFileError("it has parts that this version cannot rebuild: hidden layers of the readout")
    _place(ours.readout.linear, {(0, 0): layers[-1].gains[EVEN] * readout[0]})


def _fill_layer(
    ours: torch.nn.Module,
    theirs: Layer,
    irreps_in: o3.Irreps,
    irreps_out: o3.Irreps,
    harmonics: o3.Irreps,
    bessel: float,
) -> None:
    """Each block to its place among ours; what only we have stays zero, what only they have changes nothing."""
    norm = (theirs.norms**-2).mean().item() ** -0.5 / ours.norm
    for dense, (_, ir) in zip(ours.linear_up.maps, irreps_in):
        _place(dense, {(0, 0): norm * theirs.linear_up[ir]} if ir in theirs.linear_up else {})
    gated = ours.gate.irreps_in
    paths = [(ir, edge.l, out) for _, out in gated for _, ir in irreps_in for _, edge in harmonics if out in ir * edge]
    factors = [bessel, *[1.0] * len(theirs.radial_hidden)]
    for dense, matrix, factor in zip(ours.radial_mlp.layers, theirs.radial_hidden, factors):
        _place(dense, {(0, 0): factor * matrix})
    starts = _starts(paths, [irreps_in.count(path[0]) for path in paths])
    found = {(0, starts[path]): factors[-1] * block for path, block in theirs.radial_out.items() if path in starts}
    _place(ours.radial_mlp.layers[-1], found)
    skips = {gated[target].ir: dense for dense, target in zip(ours.skip.maps, ours.skip.targets)}
    for dense, (_, out) in zip(ours.linear.maps, gated):
        groups = {group: mul for group, mul in channel_groups(irreps_out).items() if group[0] == out}
        columns = _starts(groups, groups.values())
        there = [path for path in paths if path[2] == out]
        rows = _starts(there, [irreps_in.count(path[0]) for path in there])
        blocks = {key: block for key, block in theirs.linear.items() if key[0] in rows and key[1] in columns}
        _place(dense, {(rows[path], columns[group]): block for (path, group), block in blocks.items()})
        if out in skips:
            _place(skips[out], {(0, columns[g]): block for g, block in theirs.skip.items() if g in columns})


def _starts(keys: Iterable[Hashable], widths: Iterable[int]) -> dict:
    """Where each of a row of blocks begins."""
    return dict(zip(keys, accumulate(widths, initial=0)))


def _place(dense: torch.nn.Module, blocks: dict[tuple[int, int], Tensor]) -> None:
    """Give a dense map these blocks at (row, column), and zero elsewhere; its own normalisation comes on top."""
    dense.weight.zero_()
    for (row, column), block in blocks.items():
        rows, columns = block.shape[-2:]
        dense.weight[..., row : row + rows, column : column + columns] = block / dense.norm
