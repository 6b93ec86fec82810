"""What the user sees and what stays in the output folder: a line per epoch, log.jsonl, last.ckpt and the best model.

After each epoch, in this order: the log, the model file if the epoch was the best, the checkpoint. Each is replaced as
a whole, so a kill between any two leaves complete files, and the resumed run repeats the epoch and writes the same.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning
import torch
from ase.calculators.calculator import CalculationFailed
from lightning.fabric.plugins import TorchCheckpointIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ase_equivariant.storage import write_atomically
from ase_equivariant.training.module import TrainingModule

COLUMNS = (
    ("epoch", 6), ("lr", 9), ("train loss", 11), ("valid loss", 11), ("E meV/atom", 11),
    ("F meV/Å", 9), ("S meV/Å³", 9), ("s/epoch", 8), ("left", 8),
)  # fmt: skip


def tell(console: Console, text: str) -> None:
    """Print a line as it is, never folded."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, replaced as a whole and read as tensors, numbers and text only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(buffer.getvalue(), path)

    def load_checkpoint(self, path: Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class Bookkeeper(lightning.Callback):
    """Ends each epoch: schedule, log, best model, checkpoint, line on the console.

    Parameters
    ----------
    folder : the output folder
    assess : (module) -> validation loss, {group: errors}
    write_model : (module, record of the epoch), called after each best epoch
    identity : what must not change between a run and its resumption, kept in the checkpoint
    max_minutes : stop after the epoch in which this time, over all resumptions, is spent
    start : validation loss and errors of a model that the run starts from, the best until an epoch does better
    """

    def __init__(
        self,
        folder: Path,
        assess: Callable[[TrainingModule], tuple[float, dict]],
        write_model: Callable[[TrainingModule, dict], None],
        identity: dict,
        max_minutes: float | None,
        console: Console,
        start: tuple[float, dict] | None = None,
    ):
        self.folder = folder
        self.assess = assess
        self.write_model = write_model
        self.identity = identity
        self.max_minutes = max_minutes
        self.console = console
        self.start = start
        self.history: list[dict] = []
        self.best = float("inf")
        self.bar: Progress | None = None

    @property
    def seconds(self) -> float:
        """Time spent on finished epochs."""
        return sum(record["seconds"] for record in self.history)

    def share_done(self, max_epochs: int) -> float:
        """How much of its epochs, or of its time where that ends sooner, the run has behind it."""
        shares = [len(self.history) / max_epochs]
        if self.max_minutes is not None:
            shares.append(self.seconds / (60 * self.max_minutes))
        return min(max(shares), 1.0)

    def on_train_start(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        trainer.should_stop = self.share_done(trainer.max_epochs) == 1  # resumed, and nothing is left
        self.print_cells([title for title, _ in COLUMNS], style="bold")
        if self.start is not None:
            self.best, errors = self.start
            record = {"epoch": "start", "valid_loss": self.best, "best": True, "valid": errors}
            self.write_model(module, record)
            self.print_line(record)

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        self.started = time.perf_counter()
        columns = (TextColumn("epoch {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(str(trainer.current_epoch), total=trainer.num_training_batches)
        self.bar.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: TrainingModule, *args: Any) -> None:
        self.bar.advance(self.task)

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: TrainingModule) -> None:
        self.bar.stop()
        valid_loss, errors = self.assess(module)
        epoch = trainer.current_epoch
        if not math.isfinite(valid_loss):
            raise CalculationFailed(f"training diverged: the loss of epoch {epoch} is {valid_loss}; lower optimizer.lr")
        record = {"epoch": epoch, "lr": module.lr, "train_loss": (module.train_loss[0] / module.train_loss[1]).item()}
        record |= {"valid_loss": valid_loss, "best": valid_loss < self.best, "valid": errors}
        record["seconds"] = time.perf_counter() - self.started
        record["device"] = torch.cuda.get_device_name(module.device) if module.on_gpu else "CPU"
        self.history.append(record)
        share = self.share_done(trainer.max_epochs)
        module.schedule(valid_loss, share)
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        write_atomically(lines.encode(), self.folder / "log.jsonl")
        if record["best"]:
            self.best = valid_loss
            self.write_model(module, record)
        trainer.save_checkpoint(self.folder / "last.ckpt")
        trainer.should_stop = trainer.should_stop or share == 1
        self.print_line(record | {"left": self.time_left(trainer.max_epochs)})

    def time_left(self, max_epochs: int) -> str:
        left = (max_epochs - len(self.history)) * self.seconds / len(self.history)
        if self.max_minutes is not None:
            left = min(left, max(0.0, 60 * self.max_minutes - self.seconds))
        return f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}"

    def print_line(self, record: dict) -> None:
        """A row of `COLUMNS`; a dash for what the record lacks."""
        errors = {f"{name}_rmse": ".2f" for name in ("energy", "forces", "stress")}
        formats = {"lr": ".2e", "train_loss": ".4g", "valid_loss": ".4g", **errors, "seconds": ".1f", "left": ""}
        values = record | record["valid"]["all"]
        cells = [format(values[key], form) if key in values else "–" for key, form in formats.items()]
        self.print_cells([f"{record['epoch']}{'*' if record['best'] else ' '}", *cells])

    def print_cells(self, cells: list[str], **style: str) -> None:
        widths = [width for _, width in COLUMNS]
        line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        self.console.print(line, highlight=False, soft_wrap=True, **style)

    def on_exception(self, trainer: lightning.Trainer, module: TrainingModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best": self.best, "identity": self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.best = state["history"], state["best"]
