"""`train(config_path)`: from a configuration and labelled structures to a model file.

Read → reference energies, scale → graphs → Lightning's loop → best averaged weights → errors on the test sets → file.
The same call on the same output folder resumes after the last finished epoch, on a CPU with the same result as without
a break, unless the schedule follows the time.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning
import torch
from ase.calculators.calculator import InputError
from ase.data import chemical_symbols
from rich.console import Console

from ase_equivariant.architectures import build
from ase_equivariant.checkpoint import load_potential, save_potential
from ase_equivariant.nn.irreps import parse_irreps
from ase_equivariant.potential import Potential
from ase_equivariant.training import references
from ase_equivariant.training.assess import Assessor
from ase_equivariant.training.config import TrainConfig, building, check_model, read_config, with_radii
from ase_equivariant.training.loss import Loss
from ase_equivariant.training.module import TrainingModule
from ase_equivariant.training.progress import AtomicCheckpoints, Bookkeeper, tell
from ase_equivariant.training.provenance import describe_model
from ase_equivariant.training.sets import Sets, load_sets, loaders, structure_weights
from ase_equivariant.training.start import start_model, started_from
from ase_equivariant.zoo import resolve


def train(config_path: Path | str, console: Console | None = None) -> Path:
    """Train the potential that a configuration describes, or continue; returns the path of the model file.

    Raises KeyboardInterrupt after Ctrl-C; the best model and the state of the last finished epoch are then on disk.
    """
    config, raw = read_config(Path(config_path))
    return train_as(config, raw, Path(config_path).parent, console or Console())


def train_as(config: TrainConfig, raw: dict, root: Path, console: Console) -> Path:
    """`train` with a configuration that was read before, as `raw` and parsed; its paths are relative to `root`."""
    folder = root / config.output
    path = folder / f"{config.name}.safetensors"
    if config.start is not None and resolve(start_model(config, root)).resolve() == path.resolve():
        raise InputError(f"start is {config.start!r}, the very file that is written; give it another name")
    check_model(config)
    sets = load_sets(config, root)
    potential = initial_potential(config, sets, root)
    announce(console, config, sets, potential)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output is {config.output!r}; cannot make that folder: {error.strerror}") from None
    if not fit(config, raw, sets, potential, folder, console):
        best = f"the best model so far is {path}" if path.exists() else "no epoch was finished"
        tell(console, f"Stopped: {best}; the same command continues.")
        raise KeyboardInterrupt
    finish(config, sets, path, console)
    return path


def initial_potential(config: TrainConfig, sets: Sets, root: Path) -> Potential:
    """The potential of `config.start`; else random weights, and what the data say about energies, scale and shift."""
    if config.start is not None:
        return started_from(start_model(config, root), config, sets)
    graphs = [batch.graph for batch in sets.batches(sets.train)]
    neighbors = sum(g.n_edges for g in graphs) / sum(g.n_nodes for g in graphs)
    statistics = {"num_species": len(sets.numbers), "avg_num_neighbors": max(neighbors, 1.0)}
    settings = statistics | with_radii(config.model, sets.numbers)
    with building():
        architecture = build(config.architecture, settings, config.seed, getattr(torch, config.precision))
    mode = config.data.atomic_energies or "least_squares"
    e0 = references.atomic_energies(mode, sets.train, sets.isolated, sets.numbers)
    shift = references.energy_shift(sets.train, e0, sets.numbers)
    return Potential(
        architecture,
        atomic_numbers=sets.numbers,
        atomic_energies=[e0],
        scale=[references.force_scale(config.scale or "rms_forces", sets.train, sets.numbers)],
        shift=[[shift] * len(sets.numbers)],
    )


def fit(config: TrainConfig, raw: dict, sets: Sets, potential: Potential, folder: Path, console: Console) -> bool:
    """Run Lightning's loop, from last.ckpt when there is one; False when the user interrupted it."""
    loss = Loss(config.loss, sets.numbers)
    assessor = Assessor(loss, sets.valid, structure_weights(config.data, sets.valid))

    def write_model(module: TrainingModule, record: dict) -> None:
        module.average.metadata.update(describe_model(config, raw, sets, module.average, record))
        save_potential(module.average, folder / f"{config.name}.safetensors")

    identity = identify(raw)
    last = folder / "last.ckpt"
    start = None  # what the model that the run starts from does: to be kept if no epoch does better
    if last.exists():
        tell(console, f"Resuming after epoch {check_resumable(last, identity)}.")
    elif config.start is not None:
        start = assessor.predict(potential.eval(), sets.batches(sets.valid), config.data.batch_size)
    module = TrainingModule(potential, loss, config.optimizer, config.data.batch_size)
    books = Bookkeeper(folder, assessor, write_model, identity, config.run.max_minutes, console, start)
    with quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=available(config.run.accelerator),
            devices=1,
            max_epochs=config.run.max_epochs,
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


def available(accelerator: str) -> str:
    """`accelerator`, if this machine has it."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("run.accelerator is 'gpu', but torch finds none on this machine; choose auto or cpu")
    return accelerator


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


def identify(raw: dict) -> dict:
    """What must stay as it was when a run is resumed."""
    kept = ("architecture", "model", "start", "seed", "precision", "scale", "loss", "optimizer")
    return {**{name: raw.get(name) for name in kept}, "data": {k: v for k, v in raw["data"].items() if k != "test"}}


def check_resumable(path: Path, identity: dict) -> int:
    """The last finished epoch of a checkpoint; refuses one of a run whose configuration was another."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state = checkpoint["callbacks"]["Bookkeeper"]
        checkpoint["state_dict"]["steps"]  # which earlier versions did not count
    except Exception as error:  # a damaged archive raises many types
        raise InputError(f"cannot resume from {path}: {type(error).__name__}; remove it to start anew") from None
    changed = [name for name in identity if state["identity"].get(name) != identity[name]]
    if changed:
        remedy = "restore them, choose another output, or remove the file"
        raise InputError(f"{path} is of a run with other values of {', '.join(changed)}; {remedy}")
    return state["history"][-1]["epoch"]


def finish(config: TrainConfig, sets: Sets, path: Path, console: Console) -> None:
    """Evaluate the written model on the test sets and add their errors to its header."""
    potential = load_potential(path)
    errors = {}
    for label, structures in sets.test.items():
        assessor = Assessor(Loss(config.loss, sets.numbers), structures, structure_weights(config.data, structures))
        errors[label] = assessor.predict(potential, sets.batches(structures), config.data.batch_size)[1]
    potential.metadata["errors"] = {**potential.metadata["errors"], "test": errors}
    save_potential(potential, path)
    for label, groups in {"validation": potential.metadata["errors"]["validation"], **errors}.items():
        for group, values in groups.items():
            text = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())
            tell(console, f"{label:>12} {group:>6}: {text}")
    if potential.metadata["provenance"]["epoch"] == "start":
        tell(console, "No epoch did better than the model in `start`, which is kept; lower optimizer.lr")
    tell(console, f"Wrote {path}")


def announce(console: Console, config: TrainConfig, sets: Sets, potential: Potential) -> None:
    elements = ", ".join(chemical_symbols[z] for z in sets.numbers)
    parameters = sum(p.numel() for p in potential.parameters())
    tests = sum(len(s) for s in sets.test.values())
    tell(console, f"{config.name}: {config.architecture}, {parameters} parameters, {config.precision}, for {elements}")
    tell(console, f"{len(sets.train)} training, {len(sets.valid)} validation and {tests} test structures")
    if unused := unused_irreps(potential.architecture.config):
        tell(console, f"hidden_irreps: no layer carries {unused}, through which no path leads to the energy")


def unused_irreps(config: object) -> str:
    """Those of `hidden_irreps` that no layer carries, where the architecture says what its layers carry."""
    hidden = parse_irreps(config.hidden_irreps)
    carried = {ir for irreps in getattr(config, "features", [hidden]) for _, ir in irreps}
    return "+".join(str(block) for block in hidden if block.ir not in carried)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages and the warnings that do not concern us, for as long as it runs."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*capturable=True")  # the first step of a size is not recorded
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
