"""Compiled (TorchScript) modules in the layout of those that were not, so that one importer reads both.

A compiled file keeps parameters and plain attributes as data. What its functions do is code, which is read as text
where a model leaves a choice, its activations, and is never run.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from ase_equivariant.importers.records import Content, irreps_of
from ase_equivariant.importers.unpickling import ForeignFileError, Record, record, tensors_out


def activation(module: Record, content: Content) -> tuple[str, float]:
    """Name and gain of a normalised activation: attributes, or in compiled files one line of code and a constant."""
    function = module.get("f")
    if function is not None:
        return function.name.split(".")[-1], float(module.get("cst"))
    code = content.code.get(module.origin.rpartition(".")[0], "")
    line = re.search(r"torch\.mul\(torch\.(\w+)\(x\), CONSTANTS\.c(\d+)\)", code)
    if not line:
        raise ForeignFileError(f"its code of {module.name} is not that of an activation that this version knows")
    return line[1], float(content.constants[int(line[2])])


def as_modules(module: Record, content: Content) -> Record:
    """A compiled module as pickled ones are: submodules apart, irreps as text, activations by name."""
    children = {name: as_modules(child, content) for name, child in module.named_children().items()}
    state = {name: _irreps_as_text(value) for name, value in module.state.items() if name not in children}
    if module.name.endswith(".normalize2mom"):
        name, state["cst"] = activation(module, content)
        state["f"] = record(f"torch.nn.functional.{name}", {})
    tensors = {name: value for name, value in state.items() if isinstance(tensors_out(value), torch.Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    return record(module.name, {**plain, "_modules": children, "_parameters": tensors})


def _irreps_as_text(value: Any) -> Any:
    try:
        return str(irreps_of(value)) if isinstance(value, tuple) and value and isinstance(value[0], tuple) else value
    except (ValueError, TypeError, AssertionError):
        return value
