"""The weights of a mace-torch model as those of our MACE: the same function, with its constants folded into ours.

Ours differs in constants only: a sum over neighbours divided by √N̄ instead of N̄, the exact gains of activations, the
sign of a coupling, a basis of independent symmetric products, and embeddings of species that are multiplied with the
matrix that meets them first. Each difference is a factor or a linear map on one weight, so nothing is fitted and
nothing is lost.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.architectures.mace import MACE, MACEConfig
from ase_equivariant.architectures.mace_layers import Layer, NonlinearLayer
from ase_equivariant.importers.couplings import coupling_sign
from ase_equivariant.importers.records import ForeignFileError, Record, irreps_of
from ase_equivariant.nn.attributes import AttributeEmbedding
from ase_equivariant.nn.coupling import symmetric_products
from ase_equivariant.nn.gate import SIGMOID_GAIN
from ase_equivariant.nn.linear import Linear, SpeciesLinear
from ase_equivariant.nn.radial import SILU_GAIN, PairMLP
from ase_equivariant.nn.readout import GAINS, BiasReadout, LinearReadout
from ase_equivariant.text import said

SILU = ("torch.nn.functional.silu", "torch.nn.modules.activation.SiLU")
ACTIVATIONS = {
    "silu": SILU,
    "tanh": ("torch.tanh", "torch.nn.modules.activation.Tanh"),
    "abs": ("torch.abs",),
}
SIGMOID = ("torch.nn.functional.sigmoid", "torch.sigmoid", "torch.nn.modules.activation.Sigmoid")
LAYER_NORM_EPSILON = 1e-5
E3NN = "0.4.4"  # with which all models of mace-torch are made


def radial_layers(interaction: Record) -> list[Tensor]:
    """Matrices [n_in, n_out] of the radial network."""
    network = interaction.get("conv_tp_weights")
    if network.get("net") is None:
        return [layer.get("weight") for layer in network.children()]
    return [layer.get("weight").T for layer in network.get("net").children() if layer.name.endswith(".Linear")]


def fill(ours: MACE, root: Record) -> None:
    """Set the weights of `ours`, whose config is that of the model at `root`."""
    config = ours.config
    embedding = root.get("node_embedding.linear.weight").double()
    ours.embedding.copy_(embedding.reshape(ours.embedding.shape) / math.sqrt(config.num_species))
    if config.attributes:
        _fill_attributes(ours.attributes, root.get("joint_embedding"))
    if config.embedding_readout:
        _fill_readout(ours.embedding_readout, root.get("embedding_readout"), config.num_heads)
    if config.trainable_bessel:
        ours.radial.frequencies.copy_(root.get("radial_embedding.bessel_fn.bessel_weights").double())
    parts = (root.get(name).children() for name in ("interactions", "products"))
    for layer, interaction, products in zip(ours.layers, *parts):
        signs = _path_signs(irreps_of(interaction.get("linear_up.irreps_out")), config)
        _fill_linear(layer.linear_up, interaction.get("linear_up.weight"))
        if isinstance(layer, NonlinearLayer):
            _fill_nonlinear(layer, interaction, signs)
        else:
            _fill_interaction(layer, interaction, signs)
        contractions = products.get("symmetric_contractions.contractions").children()
        for output, contraction in zip(layer.contraction.outputs, contractions):
            _fill_contraction(output, contraction, config)
        _fill_linear(layer.linear_out, products.get("linear.weight"))
    theirs = root.get("readouts").children()
    for readout, record in zip(list(ours.readouts)[-len(theirs) :], theirs):
        _fill_readout(readout, record, config.num_heads)


def _fill_attributes(ours: AttributeEmbedding, embedding: Record) -> None:
    """Their embeddings go one beside the other through a matrix and SiLU; each meets its part of the matrix here."""
    project = embedding.get("project")
    kinds = [layer.name for layer in project.children()]
    if kinds != ["torch.nn.modules.linear.Linear", SILU[1]] or project.get("0.bias") is not None:
        raise ForeignFileError("its joint embedding is projected by something else than a matrix without bias and SiLU")
    tables = [embedding.get(f"embedders.{name}.weight").double() for name in embedding.get("specs")]
    matrices = project.get("0.weight").double().split([table.shape[1] for table in tables], dim=1)
    ours.table.copy_(torch.cat([table @ matrix.T for table, matrix in zip(tables, matrices)]) / ours.norm)


def _fill_linear(linear: Linear, flat: Tensor, factor: float = 1.0) -> None:
    """e3nn's Linear: one matrix after the other, each divided by √(fan in) in use, as ours."""
    pieces = flat.double().split([dense.weight.numel() for dense in linear.maps])
    for dense, piece in zip(linear.maps, pieces):
        dense.weight.copy_(factor * piece.reshape(dense.weight.shape))


def _fill_skip(skip: SpeciesLinear, flat: Tensor) -> None:
    """Fully connected product with the one-hot species: [channels, species, channels] over √ of the first two."""
    pieces = flat.double().split([dense.weight.numel() for dense in skip.maps])
    for dense, piece in zip(skip.maps, pieces):
        n_species, n_in, n_out = dense.weight.shape
        dense.weight.copy_(piece.reshape(n_in, n_species, n_out).transpose(0, 1) / math.sqrt(n_species))


def _fill_interaction(layer: Layer, interaction: Record, signs: Tensor) -> None:
    gain = 1.0
    for dense, theirs in zip(layer.radial_mlp.layers, interaction.get("conv_tp_weights").children()):
        dense.weight.copy_(gain * theirs.get("weight").double())
        activation = theirs.get("act")
        gain = None if activation is None else _constant(activation, SILU) / SILU_GAIN
    layer.radial_mlp.layers[-1].weight.mul_(signs)
    _fill_linear(layer.linear, interaction.get("linear.weight"), layer.norm)
    if layer.count is not None:
        (density,) = interaction.get("density_fn").children()
        layer.count.weight.copy_(density.get("weight").double())
    if layer.attention is not None:
        layer.attention.weight.copy_(
            interaction.get("linear_down.weight").double().reshape(layer.attention.weight.shape)
        )
        _fill_skip(layer.skip, interaction.get("skip_linear.weight"))
    else:
        _fill_skip(layer.skip, interaction.get("skip_tp.weight"))


def _fill_nonlinear(layer: NonlinearLayer, interaction: Record, signs: Tensor) -> None:
    for ours, name in {layer.radial_mlp: "conv_tp_weights", layer.count: "density_fn"}.items():
        _fill_pair_mlp(ours, interaction, name)
    layer.radial_mlp.layers[-1].weight.mul_(signs)
    layer.radial_mlp.layers[-1].bias.mul_(signs)
    layer.alpha.fill_(interaction.get("alpha").item())
    layer.beta.fill_(interaction.get("beta").item())
    _fill_linear(layer.linear, interaction.get("linear_1.weight"))
    _fill_linear(layer.linear_node, interaction.get("linear_res.weight"))
    _fill_linear(layer.linear_gated, interaction.get("linear_2.weight"))
    scalar, gate = _gate_constants(interaction.get("equivariant_nonlin"))
    for i, dense in enumerate(layer.linear_gated.maps):
        dense.weight.mul_(scalar / SILU_GAIN if i == 0 else gate / SIGMOID_GAIN)
    _fill_linear(layer.skip, interaction.get("skip_tp.weight"))


def _gate_constants(gate: Record) -> tuple[float, float]:
    """The constants that multiply SiLU of the scalars and sigmoid of the gates."""
    if gate.name == "mace.modules.gate.GatedEquivariantBlock":
        if gate.get("_layout_is_ir_mul"):
            raise ForeignFileError("its gates are laid out for cuequivariance; convert it to e3nn's layout first")
        for name, known in {"_act_scalar": SILU, "_act_gate": SIGMOID}.items():
            _check_activation(gate.get(name), known)
        return gate.get("_scalar_cst"), gate.get("_gate_cst")
    if gate.name != "e3nn.nn._gate.Gate":
        raise ForeignFileError(f"it has the gate {gate.name}; known is Gate")
    kinds = {"act_scalars": SILU, "act_gates": SIGMOID}
    constants = [{_constant(a, known) for a in gate.get(f"{name}.acts").children()} for name, known in kinds.items()]
    (scalar,), (gates,) = constants[0], constants[1] or {1.0}
    return scalar, gates


def _fill_pair_mlp(ours: PairMLP, interaction: Record, name: str) -> None:
    """Their network takes the basis and embeddings of both species; its first matrix meets the embeddings here."""
    network = interaction.get(f"{name}.net").children()
    linears = [module for module in network if module.name == "torch.nn.modules.linear.Linear"]
    norms = [module for module in network if module.name == "torch.nn.modules.normalization.LayerNorm"]
    kinds = {module.name.rsplit(".", 1)[-1] for module in network}
    if kinds != {"Linear", "LayerNorm", "SiLU"} or {norm.get("eps") for norm in norms} != {LAYER_NORM_EPSILON}:
        raise ForeignFileError(f"its radial networks consist of {', '.join(sorted(kinds))}, or of another LayerNorm")
    n_species, n_basis = ours.sent.shape[0], ours.first.weight.shape[0]
    first, bias = linears[0].get("weight").double().T, linears[0].get("bias").double()
    ours.first.weight.copy_(first[:n_basis] / ours.first.norm)
    for table, end, matrix in zip(
        (ours.sent, ours.received), ("source", "target"), first[n_basis:].chunk(2), strict=True
    ):
        embedding = interaction.get(f"{end}_embedding.weight").double().reshape(n_species, -1)
        table.copy_(embedding @ matrix / math.sqrt(n_species))
    ours.received.add_(bias)
    for norm, theirs in zip(ours.norms, norms, strict=True):
        norm.weight.copy_(theirs.get("weight").double())
        norm.bias.copy_(theirs.get("bias").double())
    for dense, theirs in zip(ours.layers, linears[1:], strict=True):
        dense.weight.copy_(theirs.get("weight").double().T / dense.norm)
        dense.bias.copy_(theirs.get("bias").double())


def _constant(activation: Record, known: tuple[str, ...]) -> float:
    """What e3nn multiplies an activation with."""
    _check_activation(activation.get("f"), known)
    return float(activation.get("cst"))


def _check_activation(function: object, known: tuple[str, ...]) -> None:
    if getattr(function, "name", None) not in known:
        name = getattr(function, "name", function)
        raise ForeignFileError(f"its activation is {said(name)}; known here is {known[0].rsplit('.', 1)[-1]}")


def _path_signs(sources: o3.Irreps, config: MACEConfig) -> Tensor:
    """The sign that each path's coupling has relative to ours, one per channel of each path."""
    signs = []
    l_max = config.l_max
    for l3, (channels, ir), l2 in product(range(l_max + 1), sources, range(l_max + 1)):
        odd = (ir.l + l2 + l3) % 2 == 1
        if abs(ir.l - l2) <= l3 <= ir.l + l2 and not (odd and config.parity):
            signs += [coupling_sign(ir.l, l2, l3, E3NN)] * channels
    return torch.tensor(signs, dtype=torch.float64)


def _fill_contraction(output: torch.nn.Module, contraction: Record, config: MACEConfig) -> None:
    """Weights of mace-torch's couplings U, carried over to the independent products that span the same space."""
    correlation = len(output.orders)
    for nu, order in enumerate(output.orders, 1):
        name = "weights_max" if nu == correlation else f"weights.{correlation - 1 - nu}"
        couplings = contraction.get(f"U_matrix_{nu}").double().numpy()
        ell = (order.dim - 1) // 2
        theirs = couplings.reshape(order.dim, -1, couplings.shape[-1])  # [2L+1, factors, paths]
        monomials, ours = symmetric_products(config.l_max, nu, ell, -1 if config.parity else 1)
        change = _change_of_basis(theirs, monomials, ours, nu, (config.l_max + 1) ** 2)
        order.weight.copy_(torch.einsum("pe,zpk->zek", torch.from_numpy(change), contraction.get(name).double()))


def _change_of_basis(
    theirs: np.ndarray, monomials: list, ours: np.ndarray, correlation: int, n_components: int
) -> np.ndarray:
    """Matrix [paths, products] that expresses the symmetric part of each coupling in our products."""
    column = {monomial: i for i, monomial in enumerate(monomials)}
    polynomials = np.zeros((theirs.shape[2], theirs.shape[0], len(monomials)))
    others: dict[tuple[int, ...], np.ndarray] = {}  # monomials that no product of ours has: they must cancel
    for entry, index in enumerate(product(range(n_components), repeat=correlation)):
        monomial = tuple(sorted(index))
        if monomial in column:
            polynomials[:, :, column[monomial]] += theirs[:, entry].T
        else:
            others[monomial] = others.get(monomial, 0.0) + theirs[:, entry]
    flat = ours.reshape(len(ours), -1)
    target = polynomials.reshape(len(polynomials), -1)
    change = np.linalg.lstsq(flat.T, target.T, rcond=None)[0].T
    leftover = max((abs(value).max(initial=0.0) for value in others.values()), default=0.0)
    if max(leftover, abs(change @ flat - target).max(initial=0.0)) > 1e-5:
        raise ForeignFileError("its symmetric contraction uses couplings that are not equivariant")
    return change


def _fill_readout(readout: torch.nn.Module, theirs: Record, n_heads: int) -> None:
    if theirs.get("linear") is not None:
        readout.linear.weight.copy_(theirs.get("linear.weight").double().reshape(readout.linear.weight.shape))
        return
    first = theirs.get("linear_1.weight").double().reshape(-1, n_heads, readout_width(theirs, n_heads))
    # theirs divides by √ of all heads' hidden units, of which each head sees its own
    last = theirs.get("linear_2.weight").double().reshape(n_heads, -1, n_heads) / math.sqrt(n_heads)
    last = last.diagonal(dim1=0, dim2=2).T  # [n_heads, hidden]
    if isinstance(readout, LinearReadout):  # without an activation, the two matrices are one
        readout.linear.weight.copy_(torch.einsum("chk,hk->ch", first, last) / math.sqrt(last.shape[1]))
        return
    gain = _constant(readout_activation(theirs), ACTIVATIONS[readout.activation]) / GAINS[readout.activation]
    readout.weight.copy_(gain * last)
    inner = readout.first if isinstance(readout, BiasReadout) else readout.hidden
    inner.weight.copy_(first.flatten(1))
    if isinstance(readout, BiasReadout):
        middle = theirs.get("linear_mid.weight").double().reshape(n_heads, *last.shape[1:], n_heads, *last.shape[1:])
        readout.second.copy_(gain * middle.diagonal(dim1=0, dim2=2).movedim(2, 0) / math.sqrt(n_heads))
        readout.second_bias.copy_(theirs.get("linear_mid.bias").double().reshape(last.shape))
        readout.bias.copy_(theirs.get("linear_2.bias").double())


def readout_width(readout: Record, n_heads: int) -> int:
    """Hidden units of a head."""
    return irreps_of(readout.get("hidden_irreps")).dim // n_heads


def readout_activation(readout: Record) -> Record | None:
    """The normalised activation of a readout, None where it has none."""
    activations = readout.get("non_linearity.acts").children()
    return activations[0] if activations else None
