"""`train(config_path)`: from a configuration and labelled structures to a model file.

Read → reference energies, scale → graphs → Lightning's loop → best averaged weights → errors on the test sets → model file.
The same call on the same output folder resumes after the last finished epoch, with the same result as without the break.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from ase.calculators.calculator import InputError
from ase.data import chemical_symbols
from rich.console import Console

from ase_equivariant.architectures import build
from ase_equivariant.checkpoint import load_potential, save_potential
from ase_equivariant.potential import Potential
from ase_equivariant.training import references
from ase_equivariant.training.assess import Assessor
from ase_equivariant.training.config import TrainConfig, read_config
from ase_equivariant.training.data import (
    Batch,
    Draw,
    Structure,
    collate,
    element_weights,
    make_batch,
    read_structures,
    split,
)
from ase_equivariant.training.loss import Loss
from ase_equivariant.training.module import TrainingModule
from ase_equivariant.training.progress import AtomicCheckpoints, Bookkeeper
from ase_equivariant.training.provenance import describe_model


@dataclass(frozen=True)
class Sets:
    """The structures of a run and their graphs, with the atomic numbers that they contain."""

    train: list[Structure]
    valid: list[Structure]
    test: dict[str, list[Structure]]
    isolated: list[Structure]
    graphs: dict[int, Batch]  # by id of the structure
    numbers: list[int]

    def batches(self, structures: list[Structure]) -> list[Batch]:
        return [self.graphs[id(s)] for s in structures]


def train(config_path: Path | str, console: Console | None = None) -> Path:
    """Train the potential that a configuration describes, or continue; returns the path of the model file."""
    config_path, console = Path(config_path), console or Console()
    config, raw = read_config(config_path)
    folder = config_path.parent / config.output
    path = folder / f"{config.name}.safetensors"
    sets = load_sets(config, config_path.parent)
    potential = initial_potential(config, sets)
    announce(console, config, sets, potential, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output is {config.output!r}; cannot make that folder: {error.strerror}") from None
    finished = fit(config, raw, sets, potential, folder, console)
    if not finished:
        console.print(f"Stopped. The best model so far is {path}; the same command resumes.", highlight=False, soft_wrap=True)
        raise KeyboardInterrupt
    finish(config, sets, path, console)
    return path


def load_sets(config: TrainConfig, root: Path) -> Sets:
    """Read all structures, find the elements, make the graphs, set validation structures aside."""

    def read(paths: str | list[str] | None) -> list[Structure]:
        paths = [paths] if isinstance(paths, str) else paths or []
        return read_structures([root / p for p in paths], config.data.keys, config.loss)

    train, valid = read(config.data.train), read(config.data.valid)
    test = config.data.test if isinstance(config.data.test, dict) else {"test": config.data.test} if config.data.test else {}
    tests = {label: read(paths) for label, paths in test.items()}
    if config.loss.stress > 0 and all(s.stress is None for s in train):
        raise InputError(f"no training structure has a stress under the key {config.data.keys.stress!r}; set loss.stress to 0")
    numbers = sorted({int(z) for s in train for z in s.atoms.numbers})
    cutoff = config.model.get("cutoff")
    if not isinstance(cutoff, (int, float)) or cutoff <= 0:
        raise InputError(f"model.cutoff is {cutoff!r}; allowed: a positive number, Å")
    structures = [*train, *valid, *(s for label in tests for s in tests[label])]
    graphs = {id(s): make_batch(s, numbers, float(cutoff)) for s in structures}
    isolated = []
    if config.data.atomic_energies == "isolated":
        isolated = [s for s in train if len(s.atoms) == 1 and graphs[id(s)].graph.n_edges == 0]
        alone = {id(s) for s in isolated}
        train = [s for s in train if id(s) not in alone]
    if config.data.valid_fraction is not None:
        train, valid = split(train, config.data.valid_fraction, config.seed)
    if not train or not valid:
        raise InputError(f"{len(train)} training and {len(valid)} validation structures; at least one of each is needed")
    return Sets(train, valid, tests, isolated, graphs, numbers)


def initial_potential(config: TrainConfig, sets: Sets) -> Potential:
    """The architecture with random weights, and what the data say about energies, scale and shift."""
    graphs = [batch.graph for batch in sets.batches(sets.train)]
    neighbors = sum(g.n_edges for g in graphs) / sum(g.n_nodes for g in graphs)
    filled = {"num_species": len(sets.numbers), "avg_num_neighbors": max(neighbors, 1.0)}
    try:
        architecture = build(config.architecture, {**filled, **config.model}, config.seed, getattr(torch, config.precision))
    except (TypeError, ValueError) as error:
        raise InputError(f"model: {error}") from None
    e0 = references.atomic_energies(config.data.atomic_energies, sets.train, sets.isolated, sets.numbers)
    shift = references.energy_shift(sets.train, e0, sets.numbers)
    return Potential(
        architecture,
        atomic_numbers=sets.numbers,
        atomic_energies=[e0],
        scale=[references.force_scale(config.scale, sets.train, sets.numbers)],
        shift=[[shift] * len(sets.numbers)],
    )


def fit(config: TrainConfig, raw: dict, sets: Sets, potential: Potential, folder: Path, console: Console) -> bool:
    """Run Lightning's loop, from last.ckpt when there is one; False when the user interrupted it."""
    path = folder / f"{config.name}.safetensors"
    loss = Loss(config.loss)
    weights = valid_weights(config, sets.valid)
    assessor = Assessor(loss, sets.valid, weights)

    def write_model(module: TrainingModule, record: dict) -> None:
        module.average.metadata.update(describe_model(config, raw, sets, module.average, record))
        save_potential(module.average, path)

    module = TrainingModule(potential, loss, config.optimizer, config.run.max_epochs)
    identity = identify(raw)
    books = Bookkeeper(folder, assessor, write_model, identity, config.run.max_minutes, console)
    last = folder / "last.ckpt"
    if last.exists():
        check_resumable(last, identity, console)
    with quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=config.run.accelerator,
            devices=1,
            max_epochs=config.run.max_epochs,
            gradient_clip_val=config.optimizer.clip_grad,
            callbacks=[books],
            plugins=[AtomicCheckpoints()],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # forces are gradients
            use_distributed_sampler=False,
        )
        return run(trainer, module, loaders(config, sets), last if last.exists() else None)


def identify(raw: dict) -> dict:
    """What must stay as it was when a run is resumed."""
    kept = ("architecture", "model", "seed", "precision", "scale", "loss", "optimizer")
    return {**{name: raw.get(name) for name in kept}, "data": {k: v for k, v in raw["data"].items() if k != "test"}}


def run(trainer: lightning.Trainer, module: TrainingModule, data: tuple, checkpoint: Path | None) -> bool:
    """`trainer.fit`; Lightning turns Ctrl-C into an exit and leaves SIGINT ignored, which is undone here."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, *data, ckpt_path=checkpoint)
    except SystemExit:
        return False
    finally:
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            signal.signal(signal.SIGINT, handler)
    return True


def loaders(config: TrainConfig, sets: Sets) -> tuple[torch.utils.data.DataLoader, torch.utils.data.DataLoader]:
    """Batches for training, drawn anew each epoch, and for validation, always the same."""
    weights = element_weights(sets.train) if config.data.balance else np.ones(len(sets.train))
    draw = Draw(weights, config.data.epoch_structures or len(sets.train), config.seed)
    own = torch.Generator()  # spares the process's random numbers
    common = {"batch_size": config.data.batch_size, "collate_fn": collate, "generator": own}
    return (
        torch.utils.data.DataLoader(sets.batches(sets.train), sampler=draw, **common),
        torch.utils.data.DataLoader(sets.batches(sets.valid), shuffle=False, **common),
    )


def valid_weights(config: TrainConfig, structures: list[Structure]) -> np.ndarray:
    """Weight of each validation structure, as if it were drawn like the training structures."""
    weights = element_weights(structures) if config.data.balance else np.ones(len(structures))
    return weights / weights.mean()


def check_resumable(path: Path, identity: dict, console: Console) -> None:
    """Refuse to continue a run whose configuration was another one."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["callbacks"]["Bookkeeper"]
    except Exception as error:  # a damaged archive raises many types
        raise InputError(f"cannot resume from {path}: {type(error).__name__}; remove it to start anew") from None
    changed = [name for name in identity if state["identity"].get(name) != identity[name]]
    if changed:
        raise InputError(
            f"{path} belongs to a run with other values of {', '.join(changed)}; restore them, choose another output, or remove it"
        )
    console.print(f"Resuming after epoch {state['history'][-1]['epoch']}.", highlight=False, soft_wrap=True)


def announce(console: Console, config: TrainConfig, sets: Sets, potential: Potential, path: Path) -> None:
    elements = ", ".join(chemical_symbols[z] for z in sets.numbers)
    parameters = sum(p.numel() for p in potential.parameters())
    tests = sum(len(s) for s in sets.test.values())
    console.print(f"{config.name}: {config.architecture}, {parameters} parameters, {config.precision}, elements {elements}", highlight=False, soft_wrap=True)
    console.print(f"{len(sets.train)} training, {len(sets.valid)} validation, {tests} test structures; the model will be {path}", highlight=False, soft_wrap=True)


def finish(config: TrainConfig, sets: Sets, path: Path, console: Console) -> None:
    """Evaluate the written model on the test sets and add their errors to its header."""
    potential = load_potential(path)
    loss = Loss(config.loss)
    errors = {}
    for label, structures in sets.test.items():
        assessor = Assessor(loss, structures, valid_weights(config, structures))
        errors[label] = assessor.predict(potential, sets.batches(structures), config.data.batch_size)[1]
    potential.metadata["errors"] = {**potential.metadata["errors"], "test": errors}
    save_potential(potential, path)
    rows = {"validation": potential.metadata["errors"]["validation"], **errors}
    for label, groups in rows.items():
        for group, values in groups.items():
            text = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())
            console.print(f"{label:>12} {group:>6}: {text}", highlight=False, soft_wrap=True)
    console.print(f"Wrote {path}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages and the warnings that do not concern us, for as long as it runs."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
