"""MACE `.model` files (mace-torch) as our MACE: what such a file holds, and which of our configs it is.

Everything is read off classes, attributes and shapes; `mace_weights` carries the weights over. A part that our MACE
does not have is refused by its name.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ase_equivariant.architectures.mace import MACEConfig
from ase_equivariant.architectures.mace_layers import ATTENTION_WIDTHS
from ase_equivariant.importers.building import build_for
from ase_equivariant.importers.mace_weights import (
    ACTIVATIONS,
    fill,
    radial_layers,
    readout_activation,
    readout_width,
)
from ase_equivariant.importers.records import ForeignFileError, Record, irreps_of
from ase_equivariant.nn.pair_repulsion import ZBLConfig
from ase_equivariant.potential import Potential
from ase_equivariant.text import said, shown

MODELS = ("mace.modules.models.MACE", "mace.modules.models.ScaleShiftMACE")
WITHOUT_ENERGY = ("AtomicDipolesMACE", "AtomicDielectricMACE")
INTERACTIONS = {
    "mace.modules.blocks.RealAgnosticInteractionBlock": "nonresidual",
    "mace.modules.blocks.RealAgnosticResidualInteractionBlock": "residual",
    "mace.modules.blocks.RealAgnosticDensityInteractionBlock": "density",
    "mace.modules.blocks.RealAgnosticDensityResidualInteractionBlock": "density_residual",
    "mace.modules.blocks.RealAgnosticAttResidualInteractionBlock": "attention_residual",
    "mace.modules.blocks.RealAgnosticResidualNonLinearInteractionBlock": "nonlinear",
}
READOUTS = {
    "mace.modules.blocks.LinearReadoutBlock": "linear",
    "mace.modules.blocks.NonLinearReadoutBlock": "mlp",
    "mace.modules.blocks.NonLinearBiasReadoutBlock": "bias_mlp",
}
BASES = {
    "mace.modules.radial.BesselBasis": ("bessel", "bessel_weights"),
    "mace.modules.radial.GaussianBasis": ("gaussian", "gaussian_weights"),
    "mace.modules.radial.ChebychevBasis": ("chebyshev", "n"),
}
TRANSFORMS = {  # by class and the constants it has
    ("mace.modules.radial.AgnesiTransform", "a q p"): "agnesi",
    ("mace.modules.radial.SoftTransform", "alpha"): "soft",
    ("mace.modules.radial.SoftTransform", "a b"): "soft_shift",  # until release 0.3.9
}
OTHERS = [  # all other classes that such a model is made of
    f"mace.modules.{name}"
    for name in (
        "blocks.LinearNodeEmbeddingBlock",
        "embeddings.GenericJointEmbedding",
        "blocks.RadialEmbeddingBlock",
        "blocks.AtomicEnergiesBlock",
        "blocks.EquivariantProductBasisBlock",
        "blocks.ScaleShiftBlock",
        "gate.GatedEquivariantBlock",
        "irreps_tools.reshape_irreps",
        "radial.PolynomialCutoff",
        "radial.RadialMLP",
        "radial.ZBLBasis",
        "symmetric_contraction.Contraction",
        "symmetric_contraction.SymmetricContraction",
    )
]
# numbers of a structure that an embedding may know: the key in Atoms.info from which they are read, the usual value
ATTRIBUTES = {"total_charge": ("charge", 0), "total_spin": ("spin", 1)}
KNOWN = {*MODELS, *INTERACTIONS, *READOUTS, *BASES, *(name for name, _ in TRANSFORMS), *OTHERS}
AVERAGED = ("nonresidual", "residual", "attention_residual")  # the kinds whose sum over neighbours is divided by N̄
MAX_COUPLINGS = 10**6  # components of a product; a file must not be able to ask for hours of work
BOHR = 0.529  # Å, as mace-torch has it


def import_mace(root: Record) -> Potential:
    """The potential in the module tree that a file holds; `ForeignFileError` names parts we lack."""
    _check_parts(root)
    heads = list(root.get("heads", ["default"]))
    if not all(isinstance(head, str) for head in heads) or len(set(heads)) < len(heads):
        raise ForeignFileError(f"its heads are {shown(heads)}, which must be names that differ")
    numbers = root.get("atomic_numbers").tolist()
    if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(1, 119)):
        raise ForeignFileError(f"its atomic_numbers are {shown(numbers)}, which must differ and be in 1..118")
    config = MACEConfig(
        num_species=len(numbers),
        num_heads=len(heads),
        **_radial_settings(root, numbers),
        **_layer_settings(root),
        **_readout_settings(root, len(heads)),
        attributes=_attributes(root),
        embedding_readout=root.get("embedding_readout") is not None,
        pair_repulsion=_pair_repulsion(root, numbers),
    )
    if (config.l_max + 1) ** (2 * max(config.correlations)) > MAX_COUPLINGS:
        raise ForeignFileError(f"its products of {config.correlation} factors up to l = {config.l_max} are too many")
    tables = {
        name: root.get(f"scale_shift.{name}", torch.tensor(float(name == "scale"))).double().reshape(-1, 1)
        for name in ("scale", "shift")
    }
    architecture = build_for("mace", config, root)
    with torch.no_grad():
        fill(architecture, root)
        if config.embedding_readout:  # its energies stand outside the scale
            architecture.embedding_readout.linear.weight.div_(tables["scale"].T)
    shape = (len(heads), len(numbers))
    return Potential(
        architecture.to(root.get("node_embedding.linear.weight").dtype),
        atomic_numbers=numbers,
        atomic_energies=root.get("atomic_energies_fn.atomic_energies").double().reshape(-1, len(numbers)).expand(shape),
        **{name: table.expand(shape) for name, table in tables.items()},
        heads=heads,
        metadata={"provenance": {"source_package": "mace-torch"}},
    )


def _check_parts(root: Record) -> None:
    """Name every part that our MACE does not have."""
    if root.name.rsplit(".", 1)[-1] in WITHOUT_ENERGY:
        raise ForeignFileError(f"it holds {root.name}, which is not an energy model")
    unknown = [name for name in _classes(root) if name.startswith("mace.") and name not in KNOWN]
    unknown += [] if root.name in MODELS else [root.name]
    parts = ["node_embedding", "radial_embedding", "atomic_energies_fn", "spherical_harmonics", "interactions"]
    parts += ["products", "readouts", "scale_shift", "pair_repulsion_fn", "joint_embedding", "embedding_readout"]
    unknown += [name for name in root.state["_modules"] if name not in parts]
    interactions = root.get("interactions").children()
    varying = {
        "kinds of interactions": [block.name for block in interactions[1:]],
        "edge_irreps": [str(irreps_of(block.get("linear_up.irreps_out"))) for block in interactions[1:]],
        "avg_num_neighbors": [b.get("avg_num_neighbors") for b in interactions if INTERACTIONS.get(b.name) in AVERAGED],
    }
    unknown += [f"{name} that change from layer to layer" for name, values in varying.items() if len(set(values)) > 1]
    unknown += ["keep_last_layer_irreps"] if root.get("keep_last_layer_irreps", False) else []
    if unknown:
        raise ForeignFileError(f"it has parts that this version cannot rebuild: {', '.join(dict.fromkeys(unknown))}")


def _classes(part: Record) -> list[str]:
    """Names of the classes of a module and of all within it."""
    inner = [name for child in part.children() if isinstance(child, Record) for name in _classes(child)]
    return [part.name, *inner]


def _radial_settings(root: Record, numbers: list[int]) -> dict[str, Any]:
    radial = root.get("radial_embedding")
    cutoff = float(root.get("r_max"))
    kind, name = BASES[radial.get("bessel_fn").name]
    numerals = radial.get("bessel_fn").get(name)
    count = numerals.numel()
    usual = {
        "bessel": math.pi / cutoff * torch.arange(1, count + 1, dtype=torch.float64),
        "gaussian": torch.linspace(0.0, cutoff, count, dtype=torch.float64),
        "chebyshev": torch.arange(1, count + 1, dtype=torch.float64),
    }[kind]
    precision = torch.finfo(numerals.dtype if numerals.is_floating_point() else torch.float64).eps
    usual_ones = (numerals.double().flatten() - usual).abs().max() <= 4 * precision * usual.max()
    trained = not usual_ones  # nor are they the usual ones if they are NaN
    if trained and kind != "bessel":
        raise ForeignFileError(f"it has a {kind} basis with other numbers than the usual ones")
    settings = {
        "cutoff": cutoff,
        "num_bessel": count,
        "envelope_power": int(radial.get("cutoff_fn.p")),
        "radial_basis": kind,
        "trainable_bessel": trained,
        "apply_cutoff": bool(radial.get("apply_cutoff", True)),
    }
    transform = radial.get("distance_transform")
    if transform is not None:
        settings |= _transform_settings(transform, numbers)
    return settings


def _transform_settings(transform: Record, numbers: list[int]) -> dict[str, Any]:
    for (name, constants), kind in TRANSFORMS.items():
        values = [transform.get(constant) for constant in constants.split()]
        if name == transform.name and None not in values:
            return {
                "distance_transform": kind,
                "transform_constants": tuple(float(value) for value in values),
                "covalent_radii": tuple(transform.get("covalent_radii").double()[numbers].tolist()),
            }
    raise ForeignFileError(f"its {transform.name} has other constants than those known")


def _layer_settings(root: Record) -> dict[str, Any]:
    interactions, products = root.get("interactions").children(), root.get("products").children()
    hidden = irreps_of(products[0].get("linear.irreps_out"))
    harmonics = irreps_of(root.get("spherical_harmonics.irreps_out"))
    l_max = math.isqrt(harmonics.dim) - 1
    parity = l_max == 0 or harmonics[1].ir.p == -1
    if any(ir.p != (-1 if parity else 1) ** ir.l for _, ir in hidden):
        raise ForeignFileError(
            f"its features {hidden} have irreps of both parities; this version knows those of parity (-1)^l, "
            "as published models have"
        )
    if [ir.l for _, ir in hidden] != sorted(ir.l for _, ir in hidden):
        raise ForeignFileError(f"its features {hidden} do not come in the order of l")
    kinds = [INTERACTIONS[block.name] for block in interactions]
    widths: dict[bool, set] = {
        True: set(),
        False: set(),
    }  # hidden widths of radial networks, with attention and without
    for block, kind in zip(interactions, kinds):
        widths[kind == "attention_residual"].add(tuple(layer.shape[1] for layer in radial_layers(block)[:-1]))
    if len(widths[False]) > 1 or not widths[True] <= {ATTENTION_WIDTHS}:
        raise ForeignFileError(f"its radial networks have the hidden widths {sorted(widths[True] | widths[False])}")
    averaged = [block for block, kind in zip(interactions, kinds) if kind in AVERAGED] or interactions
    orders = tuple(
        1 + len(block.get(_CONTRACTIONS).children()[0].get("weights").state["_parameters"]) for block in products
    )
    return {
        "avg_num_neighbors": float(averaged[0].get("avg_num_neighbors")),
        "radial_mlp": next(iter(widths[False]), ()),
        "l_max": l_max,
        "hidden_irreps": str(hidden),
        "num_interactions": len(interactions),
        "correlation": orders[0] if len(set(orders)) == 1 else orders,
        "interaction_first": kinds[0],
        "interaction": kinds[-1],
        "edge_irreps_first": _sent(interactions[0]),
        "edge_irreps": _sent(interactions[-1]) if len(interactions) > 1 else "",
        "agnostic_product": bool(root.get("use_agnostic_product", False)),
        "parity": parity,
    }


_CONTRACTIONS = "symmetric_contractions.contractions"


def _sent(interaction: Record) -> str:
    """Irreps along edges, where they are not those of the nodes."""
    node, edge = irreps_of(interaction.get("linear_up.irreps_in")), irreps_of(interaction.get("linear_up.irreps_out"))
    return "" if node == edge else str(edge)


def _readout_settings(root: Record, n_heads: int) -> dict[str, Any]:
    readouts = root.get("readouts").children()
    last_only = bool(root.get("use_last_readout_only", False))
    kinds = [READOUTS[block.name] for block in readouts]
    expected = 1 if last_only else len(root.get("interactions").children())
    if len(kinds) != expected or set(kinds[:-1]) - {"linear"}:
        raise ForeignFileError(f"it has the readouts {', '.join(kinds) or 'none'} for {expected} layers")
    linear = {"last_readout_only": last_only, "readout_mlp": 0}
    if kinds[-1] == "linear":
        return linear
    activation = readout_activation(readouts[-1])
    if activation is None and kinds[-1] == "mlp":
        return linear
    function = getattr(activation.get("f"), "name", "none") if activation else "none"
    known = [name for name, functions in ACTIVATIONS.items() if function in functions]
    if not known:
        raise ForeignFileError(f"its readout has the activation {function}; known are {', '.join(ACTIVATIONS)}")
    width = readout_width(readouts[-1], n_heads)
    return linear | {"readout": kinds[-1], "readout_mlp": width, "readout_activation": known[0]}


def _attributes(root: Record) -> tuple[tuple[str, int, int, int], ...]:
    """The numbers of a structure that the model knows, of which it counts `num_classes` from -offset on."""
    specs = root.get("joint_embedding.specs", {})
    for name, spec in specs.items():
        kind = spec["type"], spec["per"]
        if name not in ATTRIBUTES or kind != ("categorical", "graph"):
            raise ForeignFileError(
                f"it depends on {said(name)}, a {said(kind[0])} number per {said(kind[1])}; this version knows "
                f"{' and '.join(ATTRIBUTES)}, categorical and per graph"
            )
    rows = [(*ATTRIBUTES[name], int(spec["num_classes"]), int(spec.get("offset", 0))) for name, spec in specs.items()]
    return tuple((key, -offset, count - 1 - offset, usual) for key, usual, count, offset in rows)


def _pair_repulsion(root: Record, numbers: list[int]) -> ZBLConfig | None:
    zbl = root.get("pair_repulsion_fn")
    if zbl is None:
        return None
    return ZBLConfig(
        radii=tuple(zbl.get("covalent_radii").double()[numbers].tolist()),
        envelope_power=int(zbl.get("p")),
        scaled=True,
        length=BOHR * float(zbl.get("a_prefactor")),
        exponent=float(zbl.get("a_exp")),
        coefficients=tuple(zbl.get("c").double().tolist()),
    )
