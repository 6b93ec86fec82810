"""MACE `.model` files (mace-torch) as our MACE: the same function, with its constants folded into our weights.

Ours differs from mace-torch in constants only: Bessel functions times √(r_c³/3), a sum over neighbours divided by √N̄
instead of N̄, the exact gain of SiLU, the sign of a coupling, and a basis of independent symmetric products. Each
difference is a factor or a linear map on one weight, so nothing is fitted and nothing is lost.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.architectures.mace import MACE, MACEConfig
from ase_equivariant.importers.records import ForeignFileError, Record
from ase_equivariant.nn.coupling import clebsch_gordan, symmetric_products
from ase_equivariant.nn.irreps import parse_irreps
from ase_equivariant.nn.radial import SILU_GAIN
from ase_equivariant.potential import Potential

MODELS = ("mace.modules.models.MACE", "mace.modules.models.ScaleShiftMACE")
INTERACTIONS = {
    "mace.modules.blocks.RealAgnosticInteractionBlock": "nonresidual",
    "mace.modules.blocks.RealAgnosticResidualInteractionBlock": "residual",
}
READOUTS = ("mace.modules.blocks.LinearReadoutBlock", "mace.modules.blocks.NonLinearReadoutBlock")
MAX_COUPLINGS = 10**6  # components of a product; a file must not be able to ask for hours of work
SILU = ("torch.nn.functional.silu", "torch.nn.modules.activation.SiLU")


def import_mace(root: Record) -> Potential:
    """The potential in a module tree that `read_records` gave; `ForeignFileError` names parts we lack."""
    _check_parts(root)
    interactions, products = root.get("interactions").children(), root.get("products").children()
    heads = [str(head) for head in root.get("heads", ["default"])]
    numbers = root.get("atomic_numbers").tolist()
    hidden = _irreps(products[0].get("linear.irreps_out"))
    network = interactions[0].get("conv_tp_weights").children()
    config = MACEConfig(
        num_species=len(numbers),
        cutoff=float(root.get("r_max")),
        avg_num_neighbors=float(interactions[0].get("avg_num_neighbors")),
        num_bessel=root.get("radial_embedding.bessel_fn.bessel_weights").numel(),
        envelope_power=int(root.get("radial_embedding.cutoff_fn.p")),
        radial_mlp=tuple(layer.get("weight").shape[1] for layer in network[:-1]),
        l_max=math.isqrt(_irreps(root.get("spherical_harmonics.irreps_out")).dim) - 1,
        hidden_irreps=str(hidden),
        num_interactions=len(interactions),
        correlation=1 + len(products[0].get("symmetric_contractions.contractions.0.weights").state["_parameters"]),
        interaction_first=INTERACTIONS[interactions[0].name],
        interaction=INTERACTIONS[interactions[-1].name],
        readout_mlp=root.get("readouts").children()[-1].get("linear_1.weight").numel()
        // len(heads)
        // hidden.count("0e"),
        num_heads=len(heads),
    )
    if (config.l_max + 1) ** (2 * config.correlation) > MAX_COUPLINGS:
        raise ForeignFileError(f"its products of {config.correlation} factors up to l = {config.l_max} are too many")
    architecture = MACE(config)
    with torch.no_grad():
        _fill(architecture, root)
    shape = (len(heads), len(numbers))
    tables = {
        name: root.get(f"scale_shift.{name}", torch.tensor(float(name == "scale"))) for name in ("scale", "shift")
    }
    return Potential(
        architecture.to(root.get("node_embedding.linear.weight").dtype),
        atomic_numbers=numbers,
        atomic_energies=root.get("atomic_energies_fn.atomic_energies").double().reshape(-1, len(numbers)).expand(shape),
        **{name: table.double().reshape(-1, 1).expand(shape) for name, table in tables.items()},
        heads=heads,
    )


def _check_parts(root: Record) -> None:
    """Name every part that our MACE does not have."""
    unknown = [] if root.name in MODELS else [root.name]
    expected = {"interactions": tuple(INTERACTIONS), "readouts": READOUTS}
    for name, known in expected.items():
        unknown += [block.name for block in root.get(name).children() if block.name not in known]
    if root.get("radial_embedding.bessel_fn").name != "mace.modules.radial.BesselBasis":
        unknown.append(root.get("radial_embedding.bessel_fn").name)
    weights = root.get("radial_embedding.bessel_fn.bessel_weights").double()
    fixed = math.pi / float(root.get("r_max")) * torch.arange(1, weights.numel() + 1, dtype=torch.float64)
    unknown += [] if torch.allclose(weights, fixed, rtol=1e-5) else ["trained frequencies of the Bessel functions"]
    for path in ("radial_embedding.distance_transform", "pair_repulsion_fn", "joint_embedding", "embedding_readout"):
        part = root.get(path)
        unknown += [getattr(part, "name", path)] if part is not None else []
    flags = {"use_agnostic_product": False, "use_last_readout_only": False, "apply_cutoff": True}
    unknown += [f"{name}={root.get(name)}" for name, usual in flags.items() if root.get(name, usual) != usual]
    kinds = [block.name for block in root.get("interactions").children()]
    unknown += ["interactions of more than two kinds"] if len(set(kinds[1:])) > 1 else []
    counts = {float(block.get("avg_num_neighbors")) for block in root.get("interactions").children()}
    unknown += ["another avg_num_neighbors in each layer"] if len(counts) > 1 else []
    if unknown:
        raise ForeignFileError(f"it has parts that this version cannot rebuild: {', '.join(dict.fromkeys(unknown))}")


def _irreps(value: Record | str) -> o3.Irreps:
    if isinstance(value, str):
        return o3.Irreps(value)
    return o3.Irreps([(mul, irrep.args[0]) for mul, irrep in (entry.args[0] for entry in value.args[0])])


def _fill(ours: MACE, root: Record) -> None:
    config = ours.config
    channels = parse_irreps(config.hidden_irreps).count("0e")
    embedding = root.get("node_embedding.linear.weight").double()
    ours.embedding.copy_(embedding.reshape(config.num_species, channels) / math.sqrt(config.num_species))
    parts = (root.get(name).children() for name in ("interactions", "products", "readouts"))
    for layer, readout, interaction, product_block, theirs in zip(ours.layers, ours.readouts, *parts):
        _fill_linear(layer.linear_up, interaction.get("linear_up.weight"))
        _fill_radial(layer, interaction, config)
        _fill_linear(layer.linear, interaction.get("linear.weight"), config.avg_num_neighbors**-0.5)
        _fill_skip(layer.skip, interaction.get("skip_tp.weight"))
        for output, contraction in zip(
            layer.contraction.outputs, product_block.get("symmetric_contractions.contractions").children()
        ):
            _fill_contraction(output, contraction, config)
        _fill_linear(layer.linear_out, product_block.get("linear.weight"))
        _fill_readout(readout, theirs, config.num_heads)


def _fill_linear(linear: torch.nn.Module, flat: Tensor, factor: float = 1.0) -> None:
    """e3nn's Linear: one matrix after the other, each divided by √(fan in) in use, as ours."""
    pieces = flat.double().split([dense.weight.numel() for dense in linear.maps])
    for dense, piece in zip(linear.maps, pieces):
        dense.weight.copy_(factor * piece.reshape(dense.weight.shape))


def _fill_skip(skip: torch.nn.Module, flat: Tensor) -> None:
    """Fully connected product with the one-hot species: [channels, species, channels] over √ of the first two."""
    pieces = flat.double().split([dense.weight.numel() for dense in skip.maps])
    for dense, piece in zip(skip.maps, pieces):
        n_species, n_in, n_out = dense.weight.shape
        dense.weight.copy_(piece.reshape(n_in, n_species, n_out).transpose(0, 1) / math.sqrt(n_species))


def _fill_radial(layer: torch.nn.Module, interaction: Record, config: MACEConfig) -> None:
    """The radial network; its first layer meets larger Bessel functions here, its last one couplings of our sign."""
    gain = 1.0
    network = interaction.get("conv_tp_weights").children()
    for dense, theirs in zip(layer.radial_mlp.layers, network):
        dense.weight.copy_(gain * theirs.get("weight").double())
        activation = theirs.get("act")
        gain = None if activation is None else _silu_constant(activation) / SILU_GAIN
    layer.radial_mlp.layers[0].weight.div_(math.sqrt(config.cutoff**3 / 3.0))
    sources = _irreps(interaction.get("node_feats_irreps"))
    layer.radial_mlp.layers[-1].weight.mul_(_path_signs(sources, config.l_max))


def _silu_constant(activation: Record) -> float:
    function = activation.get("f")
    if getattr(function, "name", None) not in SILU:
        raise ForeignFileError(f"its activation is {function}; known is SiLU")
    return float(activation.get("cst"))


def _path_signs(sources: o3.Irreps, l_max: int) -> Tensor:
    """e3nn's sign of each path's coupling relative to ours, one per channel of each path."""
    signs = []
    for l3, (channels, ir), l2 in product(range(l_max + 1), sources, range(l_max + 1)):
        if abs(ir.l - l2) <= l3 <= ir.l + l2 and (ir.l + l2 + l3) % 2 == 0:
            theirs = o3.wigner_3j(ir.l, l2, l3, dtype=torch.float64).numpy()
            signs += [np.sign((theirs * clebsch_gordan(ir.l, l2, l3)).sum())] * channels
    return torch.tensor(signs)


def _fill_contraction(output: torch.nn.Module, contraction: Record, config: MACEConfig) -> None:
    """Weights of mace-torch's couplings U, carried over to the independent products that span the same space."""
    for nu, order in enumerate(output.orders, 1):
        is_last = nu == config.correlation
        weights = contraction.get("weights_max" if is_last else f"weights.{config.correlation - 1 - nu}").double()
        couplings = contraction.get(f"U_matrix_{nu}").double().numpy()
        ell = (order.dim - 1) // 2
        theirs = couplings.reshape(order.dim, -1, couplings.shape[-1])  # [2L+1, factors, paths]
        monomials, ours = symmetric_products(config.l_max, nu, ell)
        change = _change_of_basis(theirs, monomials, ours, (config.l_max + 1) ** 2)
        order.weight.copy_(torch.einsum("pe,zpk->zek", torch.from_numpy(change), weights))


def _change_of_basis(theirs: np.ndarray, monomials: list, ours: np.ndarray, n_components: int) -> np.ndarray:
    """Matrix [paths, products] that expresses the symmetric part of each coupling in our products."""
    nu = len(monomials[0])
    column = {monomial: i for i, monomial in enumerate(monomials)}
    polynomials = np.zeros((theirs.shape[2], theirs.shape[0], len(monomials)))
    leftover = 0.0
    for entry, index in enumerate(product(range(n_components), repeat=nu)):
        where = column.get(tuple(sorted(index)))
        if where is None:
            leftover = max(leftover, abs(theirs[:, entry]).max(initial=0.0))
        else:
            polynomials[:, :, where] += theirs[:, entry].T
    flat = ours.reshape(len(ours), -1)
    target = polynomials.reshape(len(polynomials), -1)
    change = np.linalg.lstsq(flat.T, target.T, rcond=None)[0].T
    if abs(change @ flat - target).max(initial=0.0) > 1e-5:
        raise ForeignFileError("its symmetric contraction uses couplings that are not equivariant")
    return change


def _fill_readout(readout: torch.nn.Module, theirs: Record, n_heads: int) -> None:
    if theirs.name.endswith(".LinearReadoutBlock"):
        readout.linear.weight.copy_(theirs.get("linear.weight").double().reshape(readout.linear.weight.shape))
        return
    readout.hidden.weight.copy_(theirs.get("linear_1.weight").double().reshape(readout.hidden.weight.shape))
    hidden = readout.weight.shape[1]
    outputs = theirs.get("linear_2.weight").double().reshape(n_heads, hidden, n_heads)
    gain = _silu_constant(theirs.get("non_linearity").get("acts").children()[0]) / SILU_GAIN
    # theirs divides by √ of all heads' hidden units, of which each head sees its own
    readout.weight.copy_(gain * outputs.diagonal(dim1=0, dim2=2).T / math.sqrt(n_heads))
