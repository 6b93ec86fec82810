"""Checkpoints of nequip-train: plain tensors beside the arguments of the model, put back into a module tree.

With an exponential moving average nequip evaluates the averages, which are kept without names in the order of the
model's parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.importers.records import irreps_of
from ase_equivariant.importers.unpickling import ForeignFileError, Record, record, tensors_out
from ase_equivariant.text import said, shown

BUILDERS = ("nequip.model.NequIPGNNModel", "nequip.model.FullNequIPGNNModel", "nequip.model.PresetNequIPGNNModel")
ZBL = "nequip.nn.pair_potential.ZBL"
PREFIX = "model.sole_model.model.func."
# what the arguments say and the tensors do not; anything else an argument may be is refused by name
KNOWN = {
    "convnet_nonlinearity_type": "gate",
    "convnet_nonlinearity_scalars": {"e": "silu", "o": "tanh"},
    "convnet_nonlinearity_gates": {"e": "silu", "o": "tanh"},
    "readout_mlp_hidden_layers_depth": 0,
    "categorical_graph_field_embed": None,
    "per_edge_type_cutoff": None,
    "convnet_resnet": False,
}
PRESETS = {  # layers, l_max, features of each l
    "S": (2, 1, [128, 64]),
    "M": (4, 2, [128, 64, 32]),
    "L": (6, 3, [128, 64, 32, 32]),
    "XL": (6, 4, [320, 96, 64, 32, 32]),
}
MAX_WHOLE = 20
CLASSES = {
    "": "nequip.nn._graph_mixin.SequentialGraphNetwork",
    "type_embed": "nequip.nn.embedding.node.NodeTypeEmbed",
    "spharm": "nequip.nn.embedding._edge.SphericalHarmonicEdgeAttrs",
    "edge_norm": "nequip.nn.embedding._edge.EdgeLengthNormalizer",
    "bessel_encode": "nequip.nn.embedding._edge.BesselEdgeLengthEncoding",
    "factor": "nequip.nn.misc.ApplyFactor",
    "per_atom_energy_readout": "nequip.nn.mlp.ScalarMLP",
    "per_type_energy_scale_shift": "nequip.nn.atomwise.PerTypeScaleShift",
    "total_energy_sum": "nequip.nn.atomwise.AtomwiseReduce",
    "pair_potential": ZBL,
    "convnet": "nequip.nn.convnetlayer.ConvNetLayer",
    "conv": "nequip.nn.interaction_block.InteractionBlock",
    "equivariant_nonlin": "e3nn.nn._gate.Gate",
    "mlp": "torch.nn.modules.container.Sequential",
}


def checkpoint_records(checkpoint: dict[str, Any]) -> Record:
    """The module tree of a checkpoint, as a package of the same model would hold it."""
    hyper = checkpoint.get("hyper_parameters")
    if not isinstance(hyper, dict) or not isinstance(hyper.get("model"), dict):
        raise ForeignFileError("it is a checkpoint without the arguments of a model; import the packaged model instead")
    arguments = _arguments(hyper["model"])
    state = {name: tensors_out(value) for name, value in checkpoint["state_dict"].items()}
    tensors = {name[len(PREFIX) :]: value for name, value in state.items() if name.startswith(PREFIX)}
    tensors |= _averages(state, tensors, arguments)
    harmonics, features = _irreps(arguments)
    attributes: dict[str, Any] = {
        "spharm.irreps_edge_sh": harmonics,
        "edge_norm.r_max": arguments["r_max"],
        "bessel_encode.cutoff.p": arguments.get("polynomial_cutoff_p", 6),
        "factor.factor": 2 * math.pi / arguments["r_max"] ** 2,
        "total_energy_sum.constant": 1.0,
    }
    for i, irreps in enumerate(features):
        attributes[f"layer{i}_convnet.feature_irreps_hidden"] = irreps
        attributes[f"layer{i}_convnet.equivariant_nonlin.known"] = True
        attributes[f"layer{i}_convnet.conv.avg_num_neighbors_norm.norm_const"] = _norms(arguments)
    for name in ("scales", "shifts"):  # absent where the model has none
        attributes[f"per_type_energy_scale_shift.{name}"] = torch.zeros(0)
    if arguments.get("pair_potential"):
        attributes["pair_potential.cutoff.p"] = arguments["pair_potential"].get("polynomial_cutoff_p", 6)
    return module_tree(attributes | tensors, arguments["type_names"])


def checkpoint_releases(checkpoint: dict[str, Any]) -> dict[str, str]:
    """Releases of the packages that wrote a checkpoint, as far as it names them."""
    hyper = checkpoint.get("hyper_parameters")
    versions = hyper.get("info_dict", {}).get("versions", {}) if isinstance(hyper, dict) else {}
    return {f"{said(package)}_version": said(release) for package, release in versions.items()}


def module_tree(values: dict[str, Any], type_names: list[str]) -> Record:
    """A model of parts and their tensors by dotted path, as a package would hold it."""
    output = record("nequip.nn.grad_output.ForceStressOutput", {"func": _tree(values)})
    return record("nequip.nn.graph_model.GraphModel", {"type_names": type_names, "model": output})


def _arguments(model: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the builder call, presets filled in; modifiers that only choose other kernels are looked through."""
    target = model.get("_target_")
    if target == "nequip.model.modify":
        modifiers = [said(each.get("modifier")) for each in model.get("modifiers", [])]
        changing = [each for each in modifiers if not each.startswith("enable_")]
        if changing:
            raise ForeignFileError(f"its model was changed by {', '.join(changing)}; import the packaged model instead")
        return _arguments(model["model"])
    if target not in BUILDERS:
        raise ForeignFileError(
            f"its model was built by {said(target)}, whose arguments are not in the file; import the packaged model "
            "instead"
        )
    arguments = dict(model)
    if target.endswith("PresetNequIPGNNModel"):
        layers, l_max, features = PRESETS[said(model["preset"]).upper()]
        preset = {"num_layers": layers, "l_max": l_max, "num_features": features, "parity": False}
        arguments = {**preset, **arguments}
    unknown = [
        f"{name} = {shown(arguments[name])}" for name in KNOWN if arguments.get(name, KNOWN[name]) != KNOWN[name]
    ]
    pair = arguments.get("pair_potential") or {"_target_": ZBL}
    unknown += [] if pair.get("_target_") == ZBL else [said(pair.get("_target_"))]
    if unknown:
        raise ForeignFileError(f"it has parts that this version cannot rebuild: {', '.join(unknown)}")
    return arguments


def _irreps(arguments: dict[str, Any]) -> tuple[str, list[str]]:
    """Irreps of the harmonics and of each layer's features."""
    if "feature_irreps_hidden" in arguments:
        harmonics = arguments["irreps_edge_sh"]
        if isinstance(harmonics, int):
            harmonics = str(o3.Irreps.spherical_harmonics(_whole(arguments, "irreps_edge_sh", 0)))
        return harmonics, list(arguments["feature_irreps_hidden"])
    l_max, features = _whole(arguments, "l_max", 1), arguments.get("num_features", 32)
    features = [features] * (l_max + 1) if isinstance(features, int) else features
    parities = {ell: (1, -1) if arguments.get("parity", True) else ((-1) ** ell,) for ell in range(l_max + 1)}
    hidden = irreps_of([(features[ell], (ell, p)) for ell in range(l_max + 1) for p in parities[ell]])
    n_layers = _whole(arguments, "num_layers", 4)
    return str(o3.Irreps.spherical_harmonics(l_max)), [str(hidden)] * (n_layers - 1) + [f"{features[0]}x0e"]


def _whole(arguments: dict[str, Any], name: str, default: int) -> int:
    """A degree or a number of layers, before anything is made that large."""
    value = arguments.get(name, default)
    if type(value) is not int or not 0 <= value <= MAX_WHOLE:
        raise ForeignFileError(f"its {name} is {shown(value)}, which must be a whole number up to {MAX_WHOLE}")
    return value


def _norms(arguments: dict[str, Any]) -> Tensor:
    neighbors = arguments["avg_num_neighbors"]
    if isinstance(neighbors, dict):
        neighbors = [neighbors[name] for name in arguments["type_names"]]
    numbers = neighbors if isinstance(neighbors, list) else [neighbors]
    return torch.tensor([float(number) for number in numbers], dtype=torch.float64) ** -0.5


def _averages(state: dict[str, Any], tensors: dict[str, Tensor], arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The averaged weights by name, where the file has them aside."""
    extra = state.get("ema._extra_state")
    if not isinstance(extra, dict) or not extra.get("is_holding_ema_weights"):
        return {}
    trained = [name for name, tensor in tensors.items() if _is_trained(name, arguments) and tensor.numel()]
    averages = [state[f"ema.ema_weight_{i}"] for i in range(sum(name.startswith("ema.ema_weight_") for name in state))]
    if [tensors[name].shape for name in trained] != [average.shape for average in averages]:
        raise ForeignFileError("its averaged weights do not fit its parameters; import the packaged model instead")
    return dict(zip(trained, averages))


def _is_trained(name: str, arguments: dict[str, Any]) -> bool:
    """Whether a tensor is a parameter; those of the basis and of the last step only if asked for."""
    module, _, last = name.rpartition(".")
    if last == "bessel_weights":
        return bool(arguments.get("bessel_trainable"))
    if module == "per_type_energy_scale_shift":
        return bool(arguments.get(f"per_type_energy_{last}_trainable"))
    return last == "weight"


def _tree(values: dict[str, Any], path: str = "") -> Record:
    """Nested records of values by dotted path, with the classes that a package would name."""
    state: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(first, {})[rest] = value
        else:
            state[first] = value
    state |= {first: _tree(inner, first) for first, inner in nested.items()}
    kind = "convnet" if path.endswith("_convnet") else path
    return record(CLASSES.get(kind, f"nequip.{path}"), state)
