"""One safe file per model: safetensors, with everything else in one JSON header.

The tensors are the architecture's weights in their own precision; reference energies, scale and shift stand in the
header as exact JSON doubles. Nothing in a file is ever executed: no pickle, no class names, only a registry key and
numbers. A checksum over header and tensors tells a damaged file from a good one.

A file can carry *golden structures*, see `golden`.
"""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from dataclasses import asdict
from functools import cache
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from ase.calculators.calculator import InputError
from safetensors import SafetensorError
from torch import Tensor

from ase_equivariant import __version__
from ase_equivariant.architectures import ARCHITECTURES, build_unweighted, name_of
from ase_equivariant.golden import golden_probes
from ase_equivariant.header import FORMAT_VERSION, KEY, STRUCTURE, parse_header
from ase_equivariant.importers import import_model, recognises
from ase_equivariant.potential import TABLES, Potential
from ase_equivariant.published import facts
from ase_equivariant.storage import cache_folder, keep, read_file, write_atomically
from ase_equivariant.text import shown
from ase_equivariant.zoo import resolve

MAX_REASON = 1000  # characters, of why a file is not imported: what it says itself may be of any size


def save_potential(potential: Potential, path: str | os.PathLike) -> None:
    """Write a potential to one file, or leave what was there untouched.

    `potential.metadata` goes into the header and must be JSON-able.
    """
    write_atomically(to_bytes(potential), path)


def load_potential(path_or_name: str | os.PathLike) -> Potential:
    """Read a potential from a file, or one by its name; in eval mode, in the precision it was saved in."""
    return load_with_sha256(path_or_name)[0]


def load_with_sha256(path_or_name: str | os.PathLike) -> tuple[Potential, str]:
    """What `load_potential` gives, and the sha256 of the file it was read from."""
    path = resolve(path_or_name)
    data = read_file(path)
    potential = from_bytes(data, str(path))
    potential.metadata.update(facts(os.fspath(path_or_name)))
    return potential, hashlib.sha256(data).hexdigest()


def read_header(path_or_name: str | os.PathLike) -> dict[str, Any]:
    """What a model file says about itself, without loading its tensors."""
    path = resolve(path_or_name)
    try:
        with open(path, "rb") as file:
            return parse_header(file, path.stat().st_size, str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def to_bytes(potential: Potential) -> bytes:
    """The content of a model file; equal potentials give equal bytes."""
    weights = potential.architecture.state_dict()
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in weights.items()}
    header = describe(potential)
    header["checksum"] = _checksum(header, tensors)
    return safetensors.torch.save(tensors, {KEY: json.dumps(header)})


def describe(potential: Potential) -> dict[str, Any]:
    """The header that a potential's file has: what it is, and all that its metadata say."""
    name = name_of(potential.architecture)
    if name is None:
        raise InputError(f"cannot save {type(potential.architecture).__name__}; known are {_listed(ARCHITECTURES)}")
    clash = sorted(set(potential.metadata) & set(STRUCTURE))
    if clash:
        raise InputError(f"metadata cannot hold {_listed(clash)}: the file keeps this itself")
    header = {
        "format_version": FORMAT_VERSION,
        "architecture": name,
        "config": asdict(potential.architecture.config),
        "atomic_numbers": potential.atomic_numbers,
        "heads": potential.heads,
        **{name: getattr(potential, name).tolist() for name in TABLES},
        "default_head": potential.heads[0] if len(potential.heads) == 1 else None,
        **potential.metadata,
    }
    try:
        return json.loads(json.dumps(header, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"the header must consist of finite numbers, strings, lists and dicts: {error}") from error


def from_bytes(data: bytes, source: str = "model data") -> Potential:
    """The potential in the content of a model file, ours or one that `importers` knows; `source` names it in errors."""
    return _import(data, source) if recognises(data) else _parse(data, source)


def _parse(data: bytes, source: str) -> Potential:
    """The potential in a file of our own format."""
    header = parse_header(BytesIO(data), len(data), source)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{source} is damaged: {error}") from error
    if header["checksum"] != _checksum(header, tensors):
        raise InputError(f"{source} is damaged: its checksum does not match its content; get the file again")
    return _assemble(header, tensors, source)


def _import(data: bytes, source: str) -> Potential:
    """A model of another package, converted once: the cache keeps it as a file of ours, which proves itself."""
    digest = hashlib.sha256(data).hexdigest()
    copy = cache_folder("converted") / f"{digest}-{_converter()}.safetensors"
    try:
        potential = _parse(copy.read_bytes(), str(copy))
    except (InputError, OSError):  # there is none, or it is damaged
        potential = _convert(data, source)
        potential.metadata["provenance"] = {
            **potential.metadata.get("provenance", {}),
            "source_sha256": digest,
            "converted_by": f"ase-equivariant {__version__}",
        }
        keep(to_bytes(potential), copy)
    potential.metadata["name"] = Path(source).stem
    potential.metadata["provenance"]["source_file"] = Path(source).name
    return potential


def _convert(data: bytes, source: str) -> Potential:
    try:
        potential = import_model(data).eval()
    except ValueError as error:
        reason = textwrap.shorten(str(error), MAX_REASON)
        raise InputError(f"cannot import {source}: {reason}; nothing in it was executed") from error
    _check_numbers(potential.atomic_numbers, source)
    golden = golden_probes(potential)
    if not all(isfinite(record["energy"]) for record in golden):
        raise InputError(f"{source} gives energies that are not numbers; its weights are damaged, get the file again")
    potential.metadata["golden"] = golden
    return potential


@cache
def _converter() -> str:
    """What a conversion depends on besides the file: this version, and its code while that is being worked on."""
    digest = hashlib.sha256(__version__.encode())
    for pattern in ("importers/*.py", "architectures/*.py", "nn/*.py", "golden.py"):
        for file in sorted(Path(__file__).parent.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _assemble(header: dict[str, Any], tensors: dict[str, Tensor], source: str) -> Potential:
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if dtypes not in ({torch.float32}, {torch.float64}):
        raise InputError(f"{source} has weights of {_listed(dtypes)}; all must be float32 or all float64")
    try:
        architecture = build_unweighted(header["architecture"], header["config"], dtypes.pop())
        potential = Potential(
            architecture,
            **{key: header[key] for key in ("atomic_numbers", "heads", *TABLES)},
            metadata={key: value for key, value in header.items() if key not in STRUCTURE},
        )
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise InputError(f"{source} does not describe a model that can be built: {error}") from error
    numbers, config = potential.atomic_numbers, architecture.config
    if not all(isinstance(head, str) for head in potential.heads) or len(set(potential.heads)) < len(potential.heads):
        raise InputError(f"{source} has heads {potential.heads}; they must be names that differ")
    if (config.num_species, config.num_heads) != (len(numbers), len(potential.heads)):
        raise InputError(f"the config of {source} does not fit its atomic_numbers {numbers} or heads {potential.heads}")
    _check_numbers(numbers, source)
    _check_tensors(architecture.state_dict(), tensors, source)
    architecture.load_state_dict({name: value.clone() for name, value in tensors.items()}, assign=True)
    return potential.eval()


def _check_numbers(numbers: list[int], source: str) -> None:
    if numbers != sorted(set(numbers)) or not all(0 < z < 119 for z in numbers):
        raise InputError(f"{source} has atomic_numbers {shown(numbers)}; they must be sorted, unique and in 1..118")


def _check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], source: str) -> None:
    faults = [f"{name} is missing" for name in expected.keys() - found.keys()]
    faults += [f"{name} is not part of the model" for name in found.keys() - expected.keys()]
    faults += [
        f"{name} is {found[name].dtype} {list(found[name].shape)} instead of {value.dtype} {list(value.shape)}"
        for name, value in expected.items()
        if name in found and (found[name].shape, found[name].dtype) != (value.shape, value.dtype)
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(f"the tensors of {source} do not fit its config: {'; '.join(sorted(faults)[:3])}{more}")


def _checksum(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    rest = {key: value for key, value in header.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _listed(names) -> str:
    return ", ".join(str(name) for name in names)
