"""The Lightning module: one training step, averaged weights, learning rates.

All of its state lies in the checkpoint; nothing in it draws random numbers, so a resumed run continues exactly.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning
import torch
from torch import Tensor

from ase_equivariant.derivatives import predict
from ase_equivariant.potential import Potential
from ase_equivariant.training.acceleration import accelerated, fuse
from ase_equivariant.training.config import OptimizerConfig
from ase_equivariant.training.data import Batch
from ase_equivariant.training.loss import Loss, Residuals, join, residuals

MAX_PRECONDITIONED = 256  # longer axes of a weight keep their basis: an eigenbasis costs the cube of the length


class TrainingModule(lightning.LightningModule):
    """A Potential, its exponential moving average, and how to improve it.

    The average is a second Potential: it is validated and written, travels between devices, and lies in the checkpoint.
    """

    def __init__(self, potential: Potential, loss: Loss, config: OptimizerConfig, max_epochs: int):
        super().__init__()
        self.potential = potential.train()
        self.twin = [potential]  # what a training step evaluates; in a list, as it adds no weights to the checkpoint
        self.average = copy.deepcopy(potential).requires_grad_(False)
        self.loss = loss
        self.config = config
        self.max_epochs = max_epochs
        self.train_loss = torch.zeros(2, dtype=torch.float64)  # sum and number of steps of this epoch
        self.validation: Residuals | None = None  # of the last validation
        self.parts: list[Residuals] = []
        self.plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self.plateau_state: dict | None = None

    def setup(self, stage: str) -> None:
        if self.trainer.strategy.root_device.type == "cpu":
            self.twin = [accelerated(self.potential)]
            fuse(self.average)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        contraction = [p for name, p in self.potential.named_parameters() if ".contraction" in name]
        decayed = {id(p) for p in contraction}
        others = [p for p in self.potential.parameters() if id(p) not in decayed]
        groups = [{"params": others}, {"params": contraction, "weight_decay": self.config.weight_decay}]
        groups = [group for group in groups if group["params"]]
        optimizer = make_optimizer(groups, self.config)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=self.config.patience, factor=self.config.factor
        )
        return optimizer

    def on_train_start(self) -> None:
        if self.plateau_state is not None:
            self.plateau.load_state_dict(self.plateau_state)

    def on_train_epoch_start(self) -> None:
        self.train_loss = torch.zeros(2, dtype=torch.float64, device=self.device)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        prediction = predict(self.twin[0], batch.graph, self.loss.needs_gradient, create_graph=True)
        loss = self.loss(residuals(prediction, batch))
        self.train_loss[0] += loss.detach()
        self.train_loss[1] += 1
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        follow(self.average, self.potential, self.trainer.global_step, self.config.ema)

    def validation_step(self, batch: Batch, index: int) -> None:
        with torch.enable_grad():  # forces are gradients
            self.parts.append(residuals(predict(self.average, batch.graph), batch))

    def on_validation_epoch_end(self) -> None:
        self.validation = join(self.parts)
        self.parts = []

    def schedule(self, valid_loss: float, epochs_done: int) -> None:
        """Set the learning rate of the next epoch."""
        if self.config.schedule == "plateau":
            self.plateau.step(valid_loss)
            return
        share = min(epochs_done / self.max_epochs, 1.0)
        for group in self.optimizers().param_groups:
            group["lr"] = 0.5 * self.config.lr * (1 + math.cos(math.pi * share))

    @property
    def lr(self) -> float:
        return self.optimizers().param_groups[0]["lr"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.plateau_state = checkpoint["plateau"]


def make_optimizer(groups: list[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of some groups of parameters."""
    if config.algorithm == "adam":
        return torch.optim.Adam(groups, lr=config.lr, amsgrad=config.amsgrad, fused=True)
    from pytorch_optimizer import SOAP  # loads a hundred optimizers

    groups = [{"weight_decay": 0.0, **group} for group in groups]
    return SOAP(groups, lr=config.lr, max_precondition_dim=MAX_PRECONDITIONED)


def follow(average: torch.nn.Module, module: torch.nn.Module, step: int, decay: float) -> None:
    """Move averaged weights towards the weights; early in training faster, so that they forget where they began."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), weight)
