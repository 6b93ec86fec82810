"""CONFIG.yaml as frozen dataclasses: every key is known, every value has its type and a possible size.

Anything else is an `InputError` that names the field, what was given and what is allowed. Paths are relative to the
folder of the configuration file, so that a committed configuration works in every clone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from ase.calculators.calculator import InputError
from ase.data import chemical_symbols, covalent_radii

from ase_equivariant.architectures import ARCHITECTURES, build_unweighted
from ase_equivariant.architectures.validation import MAX_CUTOFF
from ase_equivariant.text import shown
from ase_equivariant.training.parsing import parse, with_numbers

MAX_DRAWN = 10**8  # structures per epoch; an epoch's draws are an array in memory
MAX_NAME = 200  # bytes; file systems take 255, and temporary files have longer names
BY_DATA = "a model without num_species and num_heads, which the data decide"
DECIDED = {  # settings of a model that a configuration cannot make, and why
    "num_species": BY_DATA,
    "num_heads": BY_DATA,
    "attributes": "a model without attributes, such as charges of structures, which training does not support",
}


def check(config: object, section: str, **rules: tuple[object, str]) -> None:
    """Raise the `InputError` of an impossible value; `rules` are name=(condition, what is allowed)."""
    for name, (condition, allowed) in rules.items():
        if not condition:
            prefix = f"{section}." if section else ""
            raise InputError(f"{prefix}{name} is {shown(getattr(config, name))}; allowed: {allowed}")


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
    valid_fraction : where `valid` is null, the share of each chemical system's structures set aside for validation
    stress_offset : {symbol: eV}, κ of the Pulay stress that a finite plane-wave basis leaves in the stress labels:
        Σ κ / V over a structure's atoms is subtracted from the three normal components
    atomic_energies : "isolated" (one-atom structures without neighbours), {symbol: eV}, or "least_squares"; null: those
        of the model in `start`, else "least_squares". With `start`, "least_squares" adds to its own what fits the
        energies best
    balance : "elements" draws structures so that each element contributes the same expected number of atoms
    config_type_weights : {config_type: weight}, how often structures are drawn by the word under `config_type` in their
        `info`, relative to those that are not named here
    epoch_structures : structures per epoch; null: as many as the training set has
    batch_size : structures per step
    """

    train: str | list[str]
    valid: str | list[str] | None = None
    valid_fraction: float | None = None
    test: str | list[str] | dict[str, str] | None = None
    keys: Keys = Keys()
    stress_offset: dict[str, float] = field(default_factory=dict)
    atomic_energies: str | dict[str, float] | None = None
    balance: Literal["elements"] | None = None
    config_type_weights: dict[str, float] = field(default_factory=dict)
    epoch_structures: int | None = None
    batch_size: int = 5

    def __post_init__(self):
        fraction, energies = self.valid_fraction, self.atomic_energies
        check(
            self,
            "data",
            valid=((self.valid is None) != (fraction is None), "structures, or null with a valid_fraction"),
            valid_fraction=(fraction is None or 0 < fraction < 1, "between 0 and 1, or null"),
            epoch_structures=(
                self.epoch_structures is None or 0 < self.epoch_structures <= MAX_DRAWN,
                f"1 to {MAX_DRAWN}, or null",
            ),
            batch_size=(self.batch_size > 0, "1 or more"),
            config_type_weights=(
                all(w > 0 for w in self.config_type_weights.values()),
                "a table {config_type: above 0}",
            ),
            stress_offset=(set(self.stress_offset) <= set(chemical_symbols[1:]), "a table {symbol: eV}"),
            atomic_energies=(
                set(energies) <= set(chemical_symbols[1:])
                if isinstance(energies, dict)
                else energies in (None, "isolated", "least_squares"),
                '"isolated", "least_squares", a table {symbol: eV} or null',
            ),
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of `loss.Loss`.

    Parameters
    ----------
    forces_factors : {symbol: factor} on the force errors of an element, 1 for those that are not named: about the
        inverse of the errors to be reached, so that elements with large forces do not drown the others
    huber_delta : errors count as squares up to here and linearly beyond; null: as squares everywhere
    """

    energy: float = 1.0
    forces: float = 10.0
    stress: float = 0.0
    forces_factors: dict[str, float] = field(default_factory=dict)
    huber_delta: float | None = None

    def __post_init__(self):
        check(
            self,
            "loss",
            energy=(self.energy >= 0, "0 or more"),
            forces=(self.forces >= 0, "0 or more"),
            stress=(self.stress >= 0, "0 or more"),
            forces_factors=(
                all(symbol in chemical_symbols[1:] and f > 0 for symbol, f in self.forces_factors.items()),
                "a table {symbol: above 0}",
            ),
            huber_delta=(self.huber_delta is None or self.huber_delta > 0, "above 0, or null"),
        )
        if self.energy == self.forces == self.stress == 0:
            raise InputError("loss.energy, loss.forces and loss.stress are 0; allowed: one weight above 0")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam or SOAP, and what surrounds it.

    Parameters
    ----------
    algorithm : "adam", or "soap": Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv:2409.11321);
        its steps take longer
    lr : learning rate at the start; weights of a MACE's products of order ν have N̄^(-ν/2) of it
    amsgrad : the AMSGrad variant of "adam"
    weight_decay : on the weights of the symmetric contractions only; "soap" decouples it from the gradient
    ema : decay of the averaged weights that are validated and written
    clip_grad : largest norm of the gradient
    schedule : "plateau": lr is multiplied by `factor` after `patience` epochs without a better validation loss;
        "cosine": lr falls to zero over `max_epochs`, or `max_minutes` where they end sooner; better where the time to
        train is given
    """

    algorithm: Literal["adam", "soap"] = "adam"
    lr: float = 0.01
    amsgrad: bool = True
    weight_decay: float = 5e-7
    ema: float = 0.99
    clip_grad: float = 10.0
    schedule: Literal["plateau", "cosine"] = "plateau"
    patience: int = 50
    factor: float = 0.8

    def __post_init__(self):
        check(
            self,
            "optimizer",
            lr=(self.lr > 0, "above 0"),
            weight_decay=(self.weight_decay >= 0, "0 or more"),
            ema=(0 <= self.ema < 1, "0 or more, below 1"),
            clip_grad=(self.clip_grad > 0, "above 0"),
            patience=(self.patience >= 0, "0 or more"),
            factor=(0 < self.factor < 1, "between 0 and 1"),
        )


@dataclass(frozen=True)
class RunConfig:
    """How long and where; these may change when a run is resumed."""

    max_epochs: int = 1000
    max_minutes: float | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self):
        check(
            self,
            "run",
            max_epochs=(self.max_epochs > 0, "1 or more"),
            max_minutes=(self.max_minutes is None or self.max_minutes > 0, "above 0, or null"),
        )


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
    """A whole training run.

    `start` is a model of the same architecture, a name or a file: the run begins with its weights, scale and shift, and
    with its reference energies unless `data.atomic_energies` says otherwise. Its pair repulsion may be another, as that
    has no weights. `scale` is "rms_forces" if it is null and there is no start.
    `golden` is the number of small structures stored in the model file with their energies.
    """

    name: str
    output: str
    data: DataConfig
    architecture: str
    model: dict[str, Any]
    start: str | None = None
    seed: int = 0
    precision: Literal["float32", "float64"] = "float32"
    scale: Literal["rms_forces", "per_species_rms_forces"] | None = None
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    metadata: Metadata = Metadata()
    golden: int = 3

    def __post_init__(self):
        check(
            self,
            "",
            name=(
                _names_a_file(self.name),
                f"a file name without folder and unprintable characters, at most {MAX_NAME} bytes",
            ),
            output=(_is_path(self.output), "the path of a folder"),
            start=(self.start is None or _is_path(self.start), "a model's name, the path of its file, or null"),
            architecture=(self.architecture in ARCHITECTURES, ", ".join(ARCHITECTURES)),
            scale=(self.scale is None or self.start is None, "null with start, whose own is kept"),
            seed=(0 <= self.seed < 2**63, "0 or more, below 2**63"),
            golden=(self.golden >= 0, "0 or more"),
        )
        settings = ARCHITECTURES[self.architecture].Config
        object.__setattr__(self, "model", with_numbers(settings, self.model))
        check_settings(self.model, [f.name for f in fields(settings)])


def _names_a_file(name: str) -> bool:
    printable = bool(name) and name.isprintable() and not set(name) & set("/\\")
    return printable and len(name.encode()) <= MAX_NAME


def _is_path(text: str) -> bool:
    """Whether the system can be asked for it at all; surrogates, say, cannot be encoded."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def check_settings(model: dict, known: Sequence[str]) -> None:
    """Raise the InputError of unknown settings, of those that a configuration cannot make, and of a wrong cutoff."""
    for name, value in model.items():
        if name in DECIDED:
            raise InputError(f"model.{name} is {shown(value)}; allowed: {DECIDED[name]}")
        if name not in known:
            allowed = ", ".join(key for key in known if key not in DECIDED)
            raise InputError(f"unknown key {shown(name)} in model; allowed: {allowed}")
    rule = f"a number above 0, at most {MAX_CUTOFF:g}, in Å"
    if "cutoff" not in model:
        raise InputError(f"model lacks the key 'cutoff'; allowed: {rule}")
    cutoff = model["cutoff"]
    if type(cutoff) not in (int, float) or not 0 < cutoff <= MAX_CUTOFF:
        raise InputError(f"model.cutoff is {shown(cutoff)}; allowed: {rule}")


def check_model(config: TrainConfig, numbers: Sequence[int] | None = None) -> None:
    """Raise the InputError of a model that cannot be made of these elements, or of any where no data are read yet.

    What a configuration with a start leaves open is as in the start, with which the rest is compared when that is read;
    only its pair repulsion may be another.
    """
    free = config.model if config.start is None else ("cutoff", "pair_repulsion")
    settings = {name: value for name, value in config.model.items() if name in free}
    with building():
        build_unweighted(config.architecture, with_stand_ins(settings, numbers), torch.float32)


@contextmanager
def building() -> Iterator[None]:
    """Turn what a model says that cannot be made into an `InputError`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"model: {error}") from None
    except (RuntimeError, MemoryError) as error:  # what torch says of weights that do not fit into memory
        raise InputError(f"model: it cannot be made, take fewer channels or narrower networks: {error}") from None


def with_stand_ins(model: dict, numbers: Sequence[int] | None) -> dict:
    """A model's settings with others in place of what the data decide, and as many species as its tables have if the
    elements are not known."""
    repulsion = model.get("pair_repulsion")
    radii = repulsion.get("radii") if isinstance(repulsion, dict) else None
    tables = [table for table in (radii, model.get("covalent_radii"), model.get("species_neighbors")) if table]
    count = max([1, *(len(table) for table in tables if isinstance(table, list))])
    numbers = [1] * count if numbers is None else numbers
    return {"num_species": len(numbers), "avg_num_neighbors": 10.0, **with_radii(model, numbers)}


def with_radii(model: dict, numbers: Sequence[int]) -> dict:
    """Settings of a model with ASE's covalent radii where a distance transform or a pair repulsion is left without."""
    radii, filled = [float(covalent_radii[z]) for z in numbers], dict(model)
    if model.get("distance_transform", "none") != "none":
        filled.setdefault("covalent_radii", radii)
    if isinstance(model.get("pair_repulsion"), dict):
        filled["pair_repulsion"] = {"radii": radii, **model["pair_repulsion"]}
    return filled


def read_config(path: Path) -> tuple[TrainConfig, dict]:
    """Read CONFIG.yaml; also returns the plain dictionary it holds, which goes into the model file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    raw = read_yaml(text, str(path))
    try:
        return parse(TrainConfig, raw, ""), raw
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_yaml(text: str | bytes, name: str) -> Any:
    """YAML as plain data; the InputError of what is none calls it `name`."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise InputError(f"{name} is nested too deeply for a configuration") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, and says where a value is that cannot be converted."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                problem = f"the key {shown(key.value)} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # conversions raise whatever they stumble over
            problem = f"{shown(node.value)} is no value: {error}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
