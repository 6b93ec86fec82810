"""Pickled torch modules as plain records: class names, arguments and state, read without running the file's code.

A pickle is a program that may name any function. Here it can name three kinds of things: containers and tensor
rebuilders, which are ours; classes of the packages that models are made of, which become inert `Record` types; and
nothing else.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any

import torch

MODEL_PACKAGES = ("mace.", "e3nn.", "torch.nn.", "torch.fx.")
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
ACTIVATIONS = ("tanh", "abs", "sigmoid", "relu")
MAX_BYTES = 4 * 2**30


class ForeignFileError(ValueError):
    """A file that asks for more than data, or a model with parts that we do not have."""


class Record:
    """What is left of a pickled object: the name of its class, its arguments, its state."""

    name = "?"

    def __new__(cls, *args: Any) -> Record:
        record = object.__new__(cls)
        object.__setattr__(record, "args", args)
        object.__setattr__(record, "state", {})
        return record

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, "state", state if isinstance(state, dict) else {"state": state})

    def __setattr__(self, name: str, value: Any) -> None:
        raise ForeignFileError(f"it sets an attribute of {self.name}")

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def get(self, path: str, default: Any = None) -> Any:
        """A submodule, parameter, buffer or plain attribute by its dotted path; a missing one gives `default`."""
        value: Any = self
        for key in path.split("."):
            tables = [value.state.get(t) or {} for t in ("_modules", "_parameters", "_buffers")] + [value.state]
            found = [table[key] for table in tables if key in table]
            if not found:
                return default
            value = found[0]
        return value.tensor if isinstance(value, _Held) else value

    def children(self) -> list[Record]:
        """Submodules in order."""
        return list((self.state.get("_modules") or {}).values())


def read_records(data: bytes) -> Record:
    """The module tree in the content of an archive that `torch.save` wrote; `ForeignFileError` for anything else."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
        if any(name.startswith("code/") for name in entries):
            raise ForeignFileError(
                "it is a compiled TorchScript model, which is code; import the .model file it was made from"
            )
        if sum(entry.file_size for entry in entries.values()) > min(MAX_BYTES, 2 * len(data)):
            raise ForeignFileError("it unpacks to far more than its size")
        if entries.keys() >= {"byteorder"} and archive.read(entries["byteorder"]) != b"little":
            raise ForeignFileError("it was written on a big-endian machine")
        program = archive.read(entries["data.pkl"])
        _check_program(program)
        root = _Reader(program, archive, entries).load()
    except ForeignFileError:
        raise
    except KeyError as error:
        raise ForeignFileError(f"it lacks {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its opcodes run into
        raise ForeignFileError(f"it is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(root, Record):
        raise ForeignFileError(f"it holds a {type(root).__name__} instead of a model")
    return root


def _check_program(program: bytes) -> None:
    """Refuse memo indices that would make the unpickler take memory without bound."""
    for opcode, argument, _ in pickletools.genops(program):
        if "PUT" in opcode.name and isinstance(argument, int) and argument > len(program):
            raise ForeignFileError("its pickle asks for an enormous table")


class _Reader(pickle.Unpickler):
    def __init__(self, program: bytes, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]):
        super().__init__(io.BytesIO(program))
        self.archive, self.entries = archive, entries
        self.storages: dict[str, _Held] = {}
        self.types: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        qualified = f"{module}.{name}"
        if qualified in _BUILDERS:
            return _BUILDERS[qualified]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if qualified == "torch._C._VariableFunctionsClass" or qualified.startswith(MODEL_PACKAGES):
            return self.types.setdefault(qualified, type("Record", (Record,), {"name": qualified}))
        raise ForeignFileError(f"it names {qualified}, which no model needs")

    def persistent_load(self, key: tuple) -> _Held:
        kind, dtype, number, _, count = key
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ForeignFileError("it refers to something that is not a tensor's storage")
        if number not in self.storages:
            raw = bytearray(self.archive.read(self.entries[f"data/{number}"]))
            if len(raw) != count * dtype.itemsize:
                raise ForeignFileError(f"storage {number} has {len(raw)} bytes instead of {count * dtype.itemsize}")
            self.storages[number] = _Held(torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype))
        return self.storages[number]


class _Held:
    """A tensor out of the pickle's reach: a tensor itself would let it call `set_` and resize."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise ForeignFileError("it sets the state of a tensor")


class _Builder:
    """A function that a pickle may call and not change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ForeignFileError("it changes a function")


def _rebuild_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> _Held:
    if not isinstance(storage, _Held):
        raise ForeignFileError("a tensor has no storage")
    if math.prod(size) > storage.tensor.numel() or min((offset, *stride)) < 0:
        raise ForeignFileError("a tensor is larger than its storage")
    return _Held(torch.as_strided(storage.tensor, size, stride, offset).clone())


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ForeignFileError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _activation(owner: Any, name: str) -> Record:
    """The one use of getattr in genuine files: an activation among torch's own functions."""
    if getattr(owner, "name", None) != "torch._C._VariableFunctionsClass" or name not in ACTIVATIONS:
        raise ForeignFileError(f"it asks for the attribute {name!r}")
    return type("Record", (Record,), {"name": f"torch.{name}"})()


_BUILDERS = {
    "torch._utils._rebuild_tensor_v2": _Builder(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Builder(_rebuild_parameter),
    "collections.OrderedDict": collections.OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
    "_codecs.encode": _Builder(_encode),
    "__builtin__.getattr": _Builder(_activation),
    "builtins.getattr": _Builder(_activation),
}
