"""Less of a model: some of its elements, some of its heads, one charge, with the same numbers for what is left.

Nothing is fitted and nothing is computed: weights that have an axis of species or of heads lose the entries that are
not wanted. Which weights these are is declared by each architecture, see `architectures`; one that is not declared is
an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict

import torch
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols
from torch import Tensor

from ase_equivariant.architectures import build_unweighted, name_of
from ase_equivariant.graph import attribute_values
from ase_equivariant.potential import TABLES, Potential


def choose_head(potential: Potential, head: str | None) -> str:
    """The head called `head`, or the file's default one."""
    heads = potential.heads
    chosen = head
    if head is None:
        chosen = heads[0] if len(heads) == 1 else potential.metadata.get("default_head")
    if chosen in heads:
        return chosen
    given = f"unknown head {chosen!r}" if chosen is not None else "this model has several heads and no default"
    raise InputError(f"{given}; choose one of {', '.join(heads)}")


def restricted(
    potential: Potential, elements: Iterable[str] | None = None, heads: Iterable[str] | None = None
) -> Potential:
    """The same potential for fewer elements, given by their symbols, or with fewer heads; None keeps all.

    Energies and forces of what is left are those of the whole. Golden structures that do not fit any more are dropped,
    a default head as well. Raises `InputError` for elements and heads that the model does not have.
    """
    species = _chosen_species(potential, elements)
    names = [choose_head(potential, head) for head in dict.fromkeys(potential.heads if heads is None else heads)]
    if not names:
        raise InputError(f"a model needs a head; choose one or more of {', '.join(potential.heads)}")
    kept = [potential.heads.index(name) for name in names]
    whole = potential.architecture
    kind = name_of(whole)
    if not hasattr(whole, "SPECIES_WEIGHTS"):
        raise InputError(f"this version cannot restrict {kind} models: nothing says which weights have species")
    config = asdict(whole.config)
    architecture = build_unweighted(kind, _smaller(config, species, kept, whole.SPECIES_TABLES), potential.dtype)
    weights = {}
    for name, value in whole.state_dict().items():
        shape = architecture.state_dict()[name].shape
        weights[name] = _selected(whole, name, value, shape, species, kept)
        if weights[name].shape != shape:
            raise InputError(f"this version cannot restrict {kind} models with weights called {name}")
    architecture.load_state_dict(weights, assign=True)
    numbers = [potential.atomic_numbers[i] for i in species]
    return Potential(
        architecture,
        atomic_numbers=numbers,
        heads=names,
        metadata=_metadata(potential, numbers, names),
        **{key: getattr(potential, key)[kept][:, species] for key in TABLES},
    ).train(potential.training)


def fix_attributes(potential: Potential, info: Mapping[str, int]) -> Potential:
    """The same potential for structures of one charge and spin, say, which it then does not read any more.

    `info` has what `Atoms.info` would; what it lacks takes its usual value. What the model makes of the numbers becomes
    part of the embedding of each species. Golden structures are dropped. Raises `InputError` for keys that the model
    does not read, and for values that it does not know.
    """
    known = [key for key, *_ in potential.attributes]
    if not known or not set(info) <= set(known):
        raise InputError(f"this model reads {' and '.join(known) or 'nothing'} from atoms.info, not {', '.join(info)}")
    values = attribute_values(Atoms(info=dict(info)), potential.attributes)
    whole = potential.architecture
    weights = {name: value for name, value in whole.state_dict().items() if not name.startswith("attributes.")}
    weights["embedding"] = (whole.embedding + whole.attributes(torch.tensor([values]))).detach()
    kind = name_of(whole)
    architecture = build_unweighted(kind, {**asdict(whole.config), "attributes": ()}, potential.dtype)
    architecture.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    return Potential(
        architecture,
        atomic_numbers=potential.atomic_numbers,
        heads=potential.heads,
        metadata={key: value for key, value in potential.metadata.items() if key != "golden"},
        **{key: getattr(potential, key) for key in TABLES},
    ).train(potential.training)


def _chosen_species(potential: Potential, elements: Iterable[str] | None) -> list[int]:
    """Indices of the species to keep, in the model's order."""
    known = potential.atomic_numbers
    if elements is None:
        return list(range(len(known)))
    wanted = list(elements)
    missing = [symbol for symbol in wanted if number_of.get(symbol) not in known]
    if missing or not wanted:
        names = " ".join(chemical_symbols[z] for z in known)
        given = f"this model does not know {', '.join(missing)}" if missing else "no elements are given"
        raise InputError(f"{given}; choose from {names}")
    return sorted({known.index(number_of[symbol]) for symbol in wanted})


def _smaller(config: dict, species: list[int], heads: list[int], tables: tuple[str, ...]) -> dict:
    """The config of the restricted architecture; tables of species in it lose their entries."""
    smaller = {**config, "num_species": len(species), "num_heads": len(heads)}
    for table in tables:
        if config[table]:
            smaller[table] = [config[table][i] for i in species]
    if config.get("pair_repulsion"):
        smaller["pair_repulsion"] = {
            **config["pair_repulsion"],
            "radii": [config["pair_repulsion"]["radii"][i] for i in species],
        }
    return smaller


def _selected(
    whole: torch.nn.Module, name: str, value: Tensor, shape: torch.Size, species: list[int], heads: list[int]
) -> Tensor:
    if re.fullmatch(whole.SPECIES_WEIGHTS, name) and value.shape[0] != shape[0]:
        value = value[species]
    for pattern, axis in whole.HEAD_WEIGHTS.items():
        if re.fullmatch(pattern, name):
            blocks = value.unflatten(axis, (whole.config.num_heads, -1)).movedim(axis, 0)
            value = blocks[heads].movedim(0, axis).flatten(axis, axis + 1)
    return value.detach().clone(memory_format=torch.contiguous_format)


def _metadata(potential: Potential, numbers: list[int], heads: list[str]) -> dict:
    """All that the model says of itself, less golden structures and a default head that are not in it any more."""
    metadata = dict(potential.metadata)
    try:
        golden = [
            record
            for record in metadata.pop("golden", [])
            if record["head"] in heads and set(record["numbers"]) <= set(numbers)
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"the golden structures of this model are malformed: {error!r}") from error
    if golden:
        metadata["golden"] = golden
    if metadata.get("default_head") not in heads:
        metadata.pop("default_head", None)
    return metadata
