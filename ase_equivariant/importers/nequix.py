"""Nequix `.nqx` files (Koker and Smidt, arXiv 2508.16067) as our NequIP: the same function in our constants.

A file is one line of JSON, the settings, and then the model's arrays as `.npy` blocks: the atoms' energies; for each
layer the radial network, the maps before and after the convolution, the skip connection and the norm's weights; the
readout. It holds no code. Nequix feeds a one-hot species into its first layer, divides sums by √N̄, has Bessel functions
2/r_c sin(nπr/r_c)/r and the gain of SiLU below, all of which are factors of our weights. Its vectors point from
receiver to sender, which changes nothing for features of parity (-1)^l. The numbers agree with Nequix 0.4.5 to the
precision of its single-precision graph.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.architectures import build_unweighted
from ase_equivariant.architectures.nequip import NequIP, NequIPConfig
from ase_equivariant.importers.unpickling import ForeignFileError
from ase_equivariant.nn.coupling import clebsch_gordan
from ase_equivariant.nn.irreps import parse_irreps
from ase_equivariant.nn.radial import SILU_GAIN
from ase_equivariant.potential import Potential
from ase_equivariant.text import shown

START = b'{"'  # a safetensors file begins with the length of its header, a multiple of 8, and so never like this
GAIN = (
    1.676564  # of SiLU in e3nn-jax, a mean over samples; found from energies and forces, which are in proportion to it
)
MODEL = {  # settings that make the model, and what they can be
    "cutoff": float,
    "atomic_numbers": list,
    "avg_n_neighbors": float,
    "scale": float,
    "shift": float,
    "hidden_irreps": str,
    "lmax": int,
    "n_layers": int,
    "radial_basis_size": int,
    "radial_mlp_size": int,
    "radial_mlp_layers": int,
    "radial_polynomial_p": float,
    "index_weights": bool,
    "layer_norm": bool,
}
ELSEWHERE = {"atom_energies", "kernel"}  # among the arrays too; how Nequix computes
TRAINING = re.compile(  # words in the names of settings that make no difference to the trained model
    r"(^|_)(path|dir|resume|state|cache|train|valid|val|wandb|seed|nodes|edges|init|optimizer|learning|lr|warmup|grad|"
    r"decay|batch|epochs|steps|loss|weight|log|ema|every|freeze|finetune|hessian|phonon|pft|cotrain)(_|$)"
)


def import_nequix(data: bytes) -> Potential:
    """The potential in the content of an `.nqx` file; `ForeignFileError` or `ValueError` says why not."""
    line, newline, _ = data.partition(b"\n")
    settings = _settings(line)
    numbers = settings["atomic_numbers"]
    config = _config(settings)
    architecture = build_unweighted("nequip", asdict(config), torch.float32)  # shapes first, memory for what fits
    arrays = _Arrays(data, len(line) + len(newline))
    energies = arrays.take(len(numbers))
    weights = {name: value.float() for name, value in _weights(architecture, arrays)}
    arrays.finish()
    architecture.load_state_dict(weights, assign=True)
    ones = torch.ones(1, len(numbers), dtype=torch.float64)
    return Potential(
        architecture,
        atomic_numbers=numbers,
        atomic_energies=energies.unsqueeze(0),
        scale=settings["scale"] * ones,
        shift=settings["shift"] * ones,
        metadata={"provenance": {"source_package": "nequix"}},
    )


def _settings(line: bytes) -> dict[str, Any]:
    """The JSON of the first line, complete and of the right types."""
    try:
        settings = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ForeignFileError("it begins like a Nequix model, but its first line is not complete JSON") from error
    missing = [name for name in MODEL if name not in settings]
    if missing:
        raise ForeignFileError(f"it lacks the settings {', '.join(missing)} of a Nequix model")
    unknown = [name for name in settings.keys() - MODEL.keys() - ELSEWHERE if not TRAINING.search(name)]
    if unknown:
        raise ForeignFileError(f"it has settings that this version does not know: {', '.join(sorted(unknown))[:200]}")
    for name, kind in MODEL.items():
        value = settings[name]
        if kind is float and type(value) is int:
            settings[name] = value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ForeignFileError(f"its setting {name} is {shown(value)}, which must be a finite {kind.__name__}")
    numbers = settings["atomic_numbers"]
    if not numbers or not all(type(z) is int and 0 < z < 119 for z in numbers) or numbers != sorted(set(numbers)):
        raise ForeignFileError("its atomic_numbers must be sorted, unique and in 1..118")
    return settings


def _config(settings: dict[str, Any]) -> NequIPConfig:
    hidden = parse_irreps(settings["hidden_irreps"])
    wanted = {
        "index_weights false": not settings["index_weights"],
        "layer_norm true": settings["layer_norm"],
        "a whole radial_polynomial_p": settings["radial_polynomial_p"].is_integer(),
        "hidden_irreps of parity (-1)^l": all(ir.p == (-1) ** ir.l for _, ir in hidden),
        "at most 10 radial_mlp_layers": settings["radial_mlp_layers"] <= 10,
    }
    lacking = [name for name, given in wanted.items() if not given]
    if lacking:
        raise ForeignFileError(f"this version rebuilds Nequix models with {', '.join(lacking)} only")
    return NequIPConfig(
        num_species=len(settings["atomic_numbers"]),
        cutoff=settings["cutoff"],
        avg_num_neighbors=settings["avg_n_neighbors"],
        num_bessel=settings["radial_basis_size"],
        envelope_power=int(settings["radial_polynomial_p"]),
        radial_mlp=(settings["radial_mlp_size"],) * settings["radial_mlp_layers"],
        l_max=settings["lmax"],
        hidden_irreps=str(hidden),
        embedding_channels=len(settings["atomic_numbers"]),
        num_interactions=settings["n_layers"],
        interaction_first="residual",
        skip="shared",
        normalisation="nequix",
        readout_mlp=0,
    )


def _weights(ours: NequIP, arrays: _Arrays) -> Iterator[tuple[str, Tensor]]:
    """Names and values of our weights, in the order of the file."""
    config = ours.config
    yield "embedding", torch.eye(config.num_species, dtype=torch.float64)
    # theirs: 2/r_c sin(nπr/r_c)/r; ours: √(2/r_c) sin(nπr/r_c)/r
    bessel = math.sqrt(2.0 / config.cutoff)
    features = config.features
    gain = 1.0  # of the features before this layer
    for t, layer in enumerate(ours.layers):
        radial = layer.radial_mlp.layers
        factors = [bessel, *[1.0] * (len(radial) - 1)]
        signs = _path_signs(features[t], layer.gate.irreps_in, config.l_max)
        for i, (dense, factor) in enumerate(zip(radial, factors)):
            value = arrays.take(*dense.weight.shape) * (factor / dense.norm)  # theirs has no factors of its own
            yield f"layers.{t}.radial_mlp.layers.{i}.weight", value * signs if i == len(radial) - 1 else value
        maps = {"linear_up": gain, "linear": math.sqrt(config.avg_num_neighbors), "skip": gain}
        for name, factor in maps.items():
            for i, dense in enumerate(getattr(layer, name).maps):
                value = factor * arrays.take(*dense.weight.shape[-2:])
                yield f"layers.{t}.{name}.maps.{i}.weight", value.reshape(dense.weight.shape)
        for i, weight in enumerate(layer.norms[0].weights):
            yield f"layers.{t}.norms.0.weights.{i}", arrays.take(*weight.shape)
        gain = GAIN / SILU_GAIN
    yield "readout.linear.weight", gain * arrays.take(*ours.readout.linear.weight.shape)


def _path_signs(sources: o3.Irreps, targets: o3.Irreps, l_max: int) -> Tensor:
    """e3nn's sign of each path's coupling relative to ours, one per channel of each path."""
    signs = []
    for _, out in targets:
        for channels, ir in sources:
            for ell in range(l_max + 1):
                if out in ir * o3.Irrep(ell, (-1) ** ell):
                    theirs = o3.wigner_3j(ir.l, ell, out.l, dtype=torch.float64).numpy()
                    signs += [np.sign((theirs * clebsch_gordan(ir.l, ell, out.l)).sum())] * channels
    return torch.tensor(signs, dtype=torch.float64)


class _Arrays:
    """The arrays of a file one after the other, each checked before it takes memory."""

    def __init__(self, data: bytes, start: int):
        self.file = io.BytesIO(data)
        self.file.seek(start)
        self.count = 0

    def take(self, *shape: int) -> Tensor:
        """The next array in float64, which must have this shape."""
        self.count += 1
        try:
            version = np.lib.format.read_magic(self.file)
            if version != (1, 0):
                raise ForeignFileError(f"its array {self.count} is of npy format {version[0]}.{version[1]}, not 1.0")
            found, fortran, dtype = np.lib.format.read_array_header_1_0(self.file)
        except ForeignFileError:
            raise
        except ValueError as error:
            raise ForeignFileError(f"it is truncated or damaged: array {self.count} cannot be read") from error
        if found != shape or dtype not in (np.dtype("<f4"), np.dtype("<f8")):
            given = f"{dtype} {list(found)}"
            raise ForeignFileError(f"its array {self.count} is {given} instead of float32 {list(shape)}")
        raw = self.file.read(math.prod(shape) * dtype.itemsize)
        if len(raw) < math.prod(shape) * dtype.itemsize:
            raise ForeignFileError(f"it is truncated: array {self.count} is not complete")
        values = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").astype(np.float64)
        if not np.isfinite(values).all():
            raise ForeignFileError(f"its array {self.count} has numbers that are not finite")
        return torch.from_numpy(np.ascontiguousarray(values))

    def finish(self) -> None:
        """Nothing may follow, but for the end of a line, which one of the published files has."""
        rest = self.file.read()
        if rest not in (b"", b"\n"):
            raise ForeignFileError(f"it has {len(rest)} bytes after the last array of the model that it describes")
