"""A pickle read as data: class names, arguments and state, without running the file's code.

A pickle is a program that may name any function. Here it can name three kinds of things: containers and tensor
rebuilders, which are ours; classes of the packages that models are made of, which become inert `Record` types; and
nothing else. What it makes is bounded, too: instructions, classes, and nested tuples, whose hash a small program could
make endless. Frozen sets could do the same: they and other instructions that torch does not write are refused.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import torch

from ase_equivariant.text import shown

MODEL_PACKAGES = (
    "mace.",
    "nequip.",
    "allegro.",
    "e3nn.",
    "torch.nn.",
    "torch.fx.",
    "__torch__.",
    "<torch_package_",
)
INERT = ("torch._C._VariableFunctionsClass", "torch.device", "builtins.slice", "__builtin__.slice")
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    **{str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.float32, torch.float64)},
}
ACTIVATIONS = ("tanh", "abs", "sigmoid", "relu")
MAX_PROGRAM = 2**25  # bytes
MAX_INSTRUCTIONS = 1_000_000  # fifty times what genuine files have
MAX_NUMBER = 2**64  # longer ones could all have the same hash, and a dict of them take for ever
MAX_CLASSES = 10_000
MAX_NAME = 1000  # characters of a class with its module
MAX_GIVEN = 2**23  # entries and characters given to all calls together, which copy them
MAX_TUPLE = 10_000  # entries of a tuple with those of the tuples in it


# what torch.jit and torch.package put before and into the names of classes
_MANGLED = re.compile(r"^__torch__\.|<?_?torch_package_\d+_?>?\.|___torch_mangle_\d+\.")


class ForeignFileError(ValueError):
    """A file that asks for more than data, or a model with parts that we do not have."""


class Record:
    """What is left of a pickled object: the name of its class, its arguments, its state.

    `origin` is the name as the file says it, under which a compiled file keeps the class's code.
    """

    name = origin = "?"

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
            if not isinstance(value, Record):
                return default
            tables = [value.state.get(t) or {} for t in ("_modules", "_parameters", "_buffers")] + [value.state]
            found = [table[key] for table in tables if key in table]
            if not found:
                return default
            value = found[0]
        return tensors_out(value)

    def children(self) -> list[Record]:
        """Submodules in order."""
        return list(self.named_children().values())

    def named_children(self) -> dict[str, Record]:
        """Submodules by name, in order; a scripted module keeps them among its attributes."""
        modules = self.state.get("_modules")
        found = self.state if modules is None else modules
        return {name: module for name, module in found.items() if isinstance(module, Record)}


def record(name: str, state: dict[str, Any]) -> Record:
    """A record with a state of ours."""
    made = type("Record", (Record,), {"name": name})()
    made.__setstate__(state)
    return made


def tensors_out(value: Any) -> Any:
    """The tensor that stands for a value out of the pickle's reach; any other value as it is."""
    return value.tensor if isinstance(value, _Held) else value


def unpickle(program: bytes, storage: Callable[[Any, torch.dtype, int], torch.Tensor]) -> Any:
    """The object that one pickle describes; `storage(key, dtype, count)` gives the 1-D tensors that it refers to."""
    check_program(program)
    return tensors_out(_Reader(program, storage).load())


def check_program(program: bytes) -> int:
    """Length of the first pickle in `program`; refuses one that would take time or memory without bound."""
    stop = 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(program)):
        if isinstance(argument, int) and abs(argument) > (len(program) if "PUT" in opcode.name else MAX_NUMBER):
            raise ForeignFileError("its pickle asks for an enormous table or number")
        if count > MAX_INSTRUCTIONS or position > MAX_PROGRAM:
            raise ForeignFileError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions or {MAX_PROGRAM} bytes")
        stop = position + 1
    return stop


class _Reader(pickle._Unpickler):
    """The unpickler in Python, whose single instructions can be replaced."""

    def __init__(self, program: bytes, storage: Callable[[Any, torch.dtype, int], torch.Tensor]):
        super().__init__(io.BytesIO(program))
        self.storage = storage
        self.storages: dict[str | int, _Held] = {}
        self.types: dict[str, type] = {}
        self.given = 0
        self.tuples: dict[int, tuple[int, tuple]] = {}  # by id: entries with nested ones, and the tuple, kept alive

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > MAX_NAME:
            raise ForeignFileError(f"it names a class with more than {MAX_NAME} characters")
        qualified = f"{module}.{name}"
        if qualified in _BUILDERS:
            return _BUILDERS[qualified]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if qualified not in INERT and not qualified.startswith(MODEL_PACKAGES):
            raise ForeignFileError(f"it names {ascii(qualified)[1:-1][:200]}, which no model needs")
        if len(self.types) > MAX_CLASSES:
            raise ForeignFileError(f"it names more than {MAX_CLASSES} classes")
        if qualified not in self.types:
            names = {"name": _MANGLED.sub("", qualified), "origin": qualified}
            self.types[qualified] = type("Record", (Record,), names)
        return self.types[qualified]

    def get_extension(self, code: int) -> Any:
        raise ForeignFileError("it names an extension of another program")

    def persistent_load(self, key: Any) -> Any:
        if not isinstance(key, tuple) or len(key) < 4:
            raise ForeignFileError("it refers to something that is not a tensor's storage")
        if key[0] == "module" and isinstance(key[1], type) and issubclass(key[1], Record):
            return key[1]  # old files add the source text of the class
        kind, dtype, number, _, count, *view = key + (None,) * (5 - len(key))
        proper = isinstance(dtype, torch.dtype) and type(number) in (str, int) and type(count) is int
        if kind != "storage" or not proper:
            raise ForeignFileError("it refers to something that is not a tensor's storage")
        if number not in self.storages:
            self.storages[number] = _Held(self.storage(number, dtype, count))
        if not any(view):
            return self.storages[number]
        _, offset, length = view[0]
        return _rebuild_tensor(self.storages[number], offset, (length,), (1,))

    def measure(self) -> None:
        """Bound the tuple on top of the stack: a key of a dict is hashed through all that is nested in it."""
        made = self.stack[-1]
        size = len(made) + sum(self.tuples[id(item)][0] for item in made if id(item) in self.tuples)
        if size > MAX_TUPLE:
            raise ForeignFileError(f"it nests more than {MAX_TUPLE} entries in a tuple")
        self.tuples[id(made)] = (size, made)

    def count_given(self) -> None:
        """Bound what calls are given: a small program could give the same long list to each of many."""
        given = self.stack[-1]
        self.given += sum(map(_length, (given, *given) if isinstance(given, tuple) else (given,)))
        if self.given > MAX_GIVEN:
            raise ForeignFileError(f"its calls are given more than {MAX_GIVEN} entries and characters")

    def refuse(self) -> None:
        raise ForeignFileError("its pickle has a frozen set or an instruction that torch does not write")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | bytearray | list | tuple | dict | set) else 0


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def count_and_load(reader: _Reader) -> None:
        reader.count_given()
        load(reader)

    return count_and_load


def _measured(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_and_measure(reader: _Reader) -> None:
        load(reader)
        reader.measure()

    return load_and_measure


_Reader.dispatch = {
    **pickle._Unpickler.dispatch,
    **{code[0]: _Reader.refuse for code in (pickle.FROZENSET, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST)},
    **{code[0]: _counted(pickle._Unpickler.dispatch[code[0]]) for code in (pickle.REDUCE, pickle.NEWOBJ, pickle.BUILD)},
    **{
        code[0]: _measured(pickle._Unpickler.dispatch[code[0]])
        for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
    },
}


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
    """A view of a storage, so that a thousand tensors of one storage take no more memory than one."""
    if not isinstance(storage, _Held):
        raise ForeignFileError("a tensor has no storage")
    if not all(type(number) is int for number in (offset, *size, *stride)):
        raise ForeignFileError("a tensor's size is not of whole numbers")
    if math.prod(size) > storage.tensor.numel() or min((offset, *size, *stride)) < 0:
        raise ForeignFileError("a tensor is larger than its storage")
    return _Held(torch.as_strided(storage.tensor, size, stride, offset))


def _first(value: Any, *_: Any) -> Any:
    """Parameters are their tensor; TorchScript's typed lists and dicts are plain ones."""
    return value


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ForeignFileError(f"it encodes text as {shown(encoding)}")
    return text.encode("latin1")


def _activation(owner: Any, name: str) -> Record:
    """The one use of getattr in genuine files: an activation among torch's own functions."""
    if getattr(owner, "name", None) != "torch._C._VariableFunctionsClass" or name not in ACTIVATIONS:
        raise ForeignFileError(f"it asks for the attribute {shown(name)}")
    return type("Record", (Record,), {"name": f"torch.{name}"})()


_BUILDERS = {
    "torch._utils._rebuild_tensor_v2": _Builder(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Builder(_first),
    "torch.Size": _Builder(_first),
    "torch.jit._pickle.restore_type_tag": _Builder(_first),
    **{f"torch.jit._pickle.build_{kind}list": _Builder(_first) for kind in ("int", "tensor", "double", "bool")},
    "collections.OrderedDict": collections.OrderedDict,
    "__builtin__.set": set,
    "builtins.set": set,
    "_codecs.encode": _Builder(_encode),
    "__builtin__.getattr": _Builder(_activation),
    "builtins.getattr": _Builder(_activation),
}
