"""Beginning with the weights of a model: which one `start` means, whether it fits, and its reference energies."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from ase.calculators.calculator import InputError
from ase.data import chemical_symbols

from ase_equivariant.architectures import ARCHITECTURES, build
from ase_equivariant.checkpoint import load_with_sha256
from ase_equivariant.derivatives import predict
from ase_equivariant.potential import Potential
from ase_equivariant.training import references
from ase_equivariant.training.config import Metadata, TrainConfig, check_model, with_radii
from ase_equivariant.training.sets import Sets
from ase_equivariant.zoo import available_models, resolve


def start_model(config: TrainConfig, root: Path) -> str | Path:
    """`config.start`: the name of a shipped or published model, else a path relative to `root`."""
    named = config.start in available_models(published=True)
    return config.start if named else root.resolve() / config.start  # `./name` is a file, and stays a path


def started_from(model: str | Path, config: TrainConfig, sets: Sets) -> Potential:
    """The potential of a model, if it is what the configuration describes; its pair repulsion may be another.

    Its metadata say under "start" which model it was, and what that says of its licence and data.
    """
    potential, sha256 = load_with_sha256(model)
    potential = potential.astype(getattr(torch, config.precision)).eval()
    check_trainable(model, potential, sets)
    check_model(config, sets.numbers)
    own = json.loads(json.dumps(asdict(potential.architecture.config)))
    asked = with_radii(config.model, sets.numbers)
    changed = [name for name, value in asked.items() if name != "pair_repulsion" and own.get(name) != value]
    if not isinstance(potential.architecture, ARCHITECTURES[config.architecture]) or changed:
        what = ", ".join(changed) or "architecture"
        raise InputError(f"start: {model} has another {what} than this configuration; make them equal")
    architecture = build(config.architecture, {**own, **asked}, dtype=potential.dtype)
    architecture.load_state_dict(potential.architecture.state_dict())
    if "converted_by" in potential.metadata.get("provenance", {}):
        for order in (module for module in architecture.modules() if hasattr(module, "pace")):
            order.pace = 1.0  # its weights have the size that the program has them in which the model is from
    started = Potential(
        architecture,
        atomic_numbers=potential.atomic_numbers,
        atomic_energies=potential.atomic_energies,
        scale=potential.scale,
        shift=potential.shift,
        heads=potential.heads,
        metadata={"start": {"file": resolve(model).name, "sha256": sha256, **origin(potential)}},
    )
    set_atomic_energies(started, config, sets)
    return started


def check_trainable(model: str | Path, potential: Potential, sets: Sets) -> None:
    """Raise the InputError of a model that cannot be trained on these structures."""
    if potential.attributes:
        read = " and ".join(key for key, *_ in potential.attributes)
        raise InputError(
            f"start: {model} depends on the {read} of a structure; such models cannot be trained, but those that "
            "`ase-equivariant convert --fix` makes for one charge or spin"
        )
    if len(potential.heads) > 1:
        raise InputError(
            f"start: {model} has the heads {', '.join(potential.heads)}; only models of one head can be trained, "
            "`ase-equivariant convert --head` makes them"
        )
    if potential.atomic_numbers != sets.numbers:
        known, given = (
            ", ".join(chemical_symbols[z] for z in numbers) for numbers in (potential.atomic_numbers, sets.numbers)
        )
        raise InputError(
            f"start: {model} is for {known}, the training set holds {given}; they must be the same, and "
            "`ase-equivariant convert --elements` makes a model of fewer"
        )


def origin(potential: Potential) -> dict[str, str]:
    """What a model says about itself that its heirs must say, too."""
    kept = ("name", *(f.name for f in fields(Metadata)))
    return {key: str(potential.metadata[key]) for key in kept if potential.metadata.get(key)}


def set_atomic_energies(potential: Potential, config: TrainConfig, sets: Sets) -> None:
    """Reference energies as `data.atomic_energies` has them; null leaves those of the model."""
    mode = config.data.atomic_energies
    if mode == "least_squares":
        # the model's own energies hold cohesion, which a fit without them would count twice
        rests = [
            replace(s, energy=s.energy - predict(potential, batch.graph, forces=False).energy.item())
            for s, batch in zip(sets.train, sets.batches(sets.train), strict=True)
            if s.energy is not None
        ]
        potential.atomic_energies += torch.from_numpy(references.least_squares(rests, sets.numbers))
    elif mode is not None:
        energies = references.atomic_energies(mode, sets.train, sets.isolated, sets.numbers)
        potential.atomic_energies.copy_(torch.tensor([energies], dtype=torch.float64))
