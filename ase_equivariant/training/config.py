"""CONFIG.yaml as frozen dataclasses: every key is known, every value has its type and a possible size.

Anything else is an `InputError` that names the field, what was given and what is allowed. Paths are relative to the folder of
the configuration file, so that a committed configuration works in every clone.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from ase.calculators.calculator import InputError
from ase.data import chemical_symbols


def require(condition: object, name: str, value: object, allowed: str) -> None:
    """Raise the `InputError` of an impossible value."""
    if not condition:
        raise InputError(f"{name} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True)
class Keys:
    """Names of the labels: among the calculator's results, else in `info` or `arrays`; null: this label is not read."""

    energy: str | None = "energy"
    forces: str | None = "forces"
    stress: str | None = "stress"


@dataclass(frozen=True)
class DataConfig:
    """Structures and how they are drawn.

    Parameters
    ----------
    train, valid, test : a path or a list of them; `test` may map a label to a path
    valid_fraction : share of the training structures set aside for validation, of each chemical system, when `valid` is null
    atomic_energies : "isolated" (one-atom structures without neighbours), {symbol: eV}, or "least_squares"
    balance : "elements" draws structures so that each element contributes the same expected number of atoms
    epoch_structures : structures per epoch; null: as many as the training set has
    batch_size : structures per step
    """

    train: str | list[str]
    valid: str | list[str] | None = None
    valid_fraction: float | None = None
    test: str | list[str] | dict[str, str] = field(default_factory=dict)
    keys: Keys = Keys()
    atomic_energies: str | dict[str, float] = "least_squares"
    balance: Literal["elements"] | None = None
    epoch_structures: int | None = None
    batch_size: int = 5

    def __post_init__(self):
        require((self.valid is None) != (self.valid_fraction is None), "data.valid", self.valid, "exactly one of valid, valid_fraction")
        require(self.valid_fraction is None or 0 < self.valid_fraction < 1, "data.valid_fraction", self.valid_fraction, "0 to 1")
        require(self.epoch_structures is None or self.epoch_structures > 0, "data.epoch_structures", self.epoch_structures, "1 or more")
        require(self.batch_size > 0, "data.batch_size", self.batch_size, "1 or more")
        if isinstance(self.atomic_energies, str):
            allowed = '"isolated", "least_squares" or a table {symbol: eV}'
            known = self.atomic_energies in ("isolated", "least_squares")
            require(known, "data.atomic_energies", self.atomic_energies, allowed)
        else:
            for symbol in self.atomic_energies:
                require(symbol in chemical_symbols[1:], "data.atomic_energies", symbol, "chemical symbols")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of `loss.Loss`; `huber_delta` null means squared errors."""

    energy: float = 1.0
    forces: float = 10.0
    stress: float = 0.0
    huber_delta: float | None = None

    def __post_init__(self):
        for name in ("energy", "forces", "stress"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "0 or more")
        require(self.energy + self.forces + self.stress > 0, "loss", asdict(self), "at least one weight above 0")
        require(self.huber_delta is None or self.huber_delta > 0, "loss.huber_delta", self.huber_delta, "above 0, or null")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam and what surrounds it.

    Parameters
    ----------
    lr : learning rate at the start
    amsgrad : the AMSGrad variant of Adam
    weight_decay : on the weights of the symmetric contractions only
    ema : decay of the averaged weights that are validated and written
    clip_grad : largest norm of the gradient
    schedule : "plateau": lr is multiplied by `factor` after `patience` epochs without a better validation loss;
        "cosine": lr falls to zero over `max_epochs`, better where the time to train is given
    """

    lr: float = 0.01
    amsgrad: bool = True
    weight_decay: float = 5e-7
    ema: float = 0.99
    clip_grad: float = 10.0
    schedule: Literal["plateau", "cosine"] = "plateau"
    patience: int = 50
    factor: float = 0.8

    def __post_init__(self):
        require(self.lr > 0, "optimizer.lr", self.lr, "above 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.ema < 1, "optimizer.ema", self.ema, "0 to 1, without 1")
        require(self.clip_grad > 0, "optimizer.clip_grad", self.clip_grad, "above 0")
        require(self.patience >= 0, "optimizer.patience", self.patience, "0 or more")
        require(0 < self.factor < 1, "optimizer.factor", self.factor, "between 0 and 1")


@dataclass(frozen=True)
class RunConfig:
    """How long and where; these may change when a run is resumed."""

    max_epochs: int = 1000
    max_minutes: float | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self):
        require(self.max_epochs > 0, "run.max_epochs", self.max_epochs, "1 or more")
        require(self.max_minutes is None or self.max_minutes > 0, "run.max_minutes", self.max_minutes, "above 0, or null")


@dataclass(frozen=True)
class Metadata:
    """What the written model file says about where it comes from."""

    level_of_theory: str = ""
    training_data: str = ""
    training_data_license: str = ""
    license: str = ""
    citation: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run; `golden` is the number of small structures stored in the model file with their energies."""

    name: str
    output: str
    data: DataConfig
    architecture: str
    model: dict[str, Any]
    seed: int = 0
    precision: Literal["float32", "float64"] = "float32"
    scale: Literal["rms_forces", "per_species_rms_forces"] = "rms_forces"
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    metadata: Metadata = Metadata()
    golden: int = 3

    def __post_init__(self):
        require(self.name and not set(self.name) & set("/\\"), "name", self.name, "a file name without folder")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.golden >= 0, "golden", self.golden, "0 or more")


def read_config(path: Path) -> tuple[TrainConfig, dict]:
    """Read CONFIG.yaml; also returns the plain dictionary it holds, which goes into the model file."""
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return parse(TrainConfig, raw, ""), raw
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse(kind: type, value: object, name: str) -> Any:
    """`value`, read from YAML, as the annotated type `kind`; InputError naming the field otherwise."""
    if is_dataclass(kind):
        return parse_section(kind, value, name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return parse_union(arguments, value, name)
    if origin is Literal and value in arguments:
        return value
    if origin is list and isinstance(value, list) and value:
        return [parse(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: parse(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is Any or (isinstance(kind, type) and type(value) is kind):
        return value
    if kind is float and type(value) in (int, str):  # YAML reads 1e-3 as a word
        try:
            return float(value)
        except ValueError:
            pass
    raise InputError(f"{name} is {value!r}; allowed: {describe(kind)}")


def parse_section(kind: type, value: object, name: str) -> Any:
    """A mapping as the dataclass `kind`."""
    title = name or "the configuration"
    if not isinstance(value, Mapping):
        raise InputError(f"{title} is {value!r}; allowed: a section with the keys {', '.join(f.name for f in fields(kind))}")
    known = {f.name: f for f in fields(kind)}
    for key in value:
        if key not in known:
            raise InputError(f"unknown key {key!r} in {title}; allowed: {', '.join(known)}")
    for key, f in known.items():
        if key not in value and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{title} lacks the key {key!r}")
    hints = get_type_hints(kind)
    prefix = f"{name}." if name else ""
    return kind(**{key: parse(hints[key], item, prefix + key) for key, item in value.items()})


def parse_union(kinds: tuple[type, ...], value: object, name: str) -> Any:
    """`value` as the first of several types that takes it."""
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if (get_origin(kind) or kind) is type(value) or get_origin(kind) is Literal or kind is float:
            try:
                return parse(kind, value, name)
            except InputError:
                if isinstance(value, (dict, list)):
                    raise
    raise InputError(f"{name} is {value!r}; allowed: {describe(Union[kinds])}")


def describe(kind: type) -> str:
    """A type in words."""
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(k) for k in arguments)
    if origin is Literal:
        return " or ".join(f'"{a}"' for a in arguments)
    if origin is list:
        return f"a list, each item {describe(arguments[0])}"
    if origin is dict:
        return "a table of names and values"
    return names.get(kind, str(kind))
