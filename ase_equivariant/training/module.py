"""The Lightning module: one training step, averaged weights, learning rates.

All of its state lies in the checkpoint; nothing in it draws random numbers, so a run that is resumed on a CPU continues
exactly, unless its schedule follows the time.
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
from ase_equivariant.training.acceleration import accelerated, capturable, fuse, make_capturable
from ase_equivariant.training.capture import Captured
from ase_equivariant.training.config import OptimizerConfig
from ase_equivariant.training.data import Batch
from ase_equivariant.training.loss import Loss, Residuals, cut, join, residuals

MAX_PRECONDITIONED = 256  # longer axes of a weight keep their basis: an eigenbasis costs the cube of the length


class TrainingModule(lightning.LightningModule):
    """A Potential, its exponential moving average, and how to improve it.

    The average is a second Potential: it is validated and written, travels between devices, and lies in the checkpoint.
    On a GPU, steps and validation are recorded as CUDA graphs, with "soap" the gradient alone.
    """

    def __init__(self, potential: Potential, loss: Loss, config: OptimizerConfig, batch_size: int):
        super().__init__()
        self.automatic_optimization = False  # a step is one function, so that it can be recorded
        self.potential = potential.train()
        self.twin = [potential]  # what a training step evaluates; in a list, as it adds no weights to the checkpoint
        self.average = copy.deepcopy(potential).requires_grad_(False)
        self.loss = loss
        self.config = config
        self.batch_size = batch_size
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.train_loss = torch.zeros(2, dtype=torch.float64)  # sum and number of steps of this epoch
        self.validation: Residuals | None = None  # of the last validation
        self.parts: list[Residuals] = []
        self.plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self.plateau_state: dict | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.potential, self.config.weight_decay)
        optimizer = make_optimizer(groups, self.config, self.on_gpu)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=self.config.patience, factor=self.config.factor
        )
        return optimizer

    @property
    def on_gpu(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda"

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.optimizers(use_pl_optimizer=False)

    def on_train_start(self) -> None:
        if self.plateau_state is not None:
            self.plateau.load_state_dict(self.plateau_state)
        self.train_loss = self.train_loss.to(self.device)
        if self.config.algorithm == "adam":  # a checkpoint brings the setting of the machine that it is from
            for group in self.optimizer.param_groups:
                group["capturable"] = self.on_gpu
        self.improve, self.validate = self._improve, self._validate
        if not self.on_gpu:
            self.twin = [accelerated(self.potential)]
            fuse(self.average)
            return
        self.twin = [capturable(self.potential)]
        make_capturable(self.average)
        self._set_lr(self.lr)
        sizes = self.batch_size, self.potential.cutoff, torch.cuda.Stream(self.device)
        self.validate = Captured(self._validate, *sizes)
        if self.config.algorithm == "adam":
            self.improve = Captured(self._improve, *sizes)
        else:  # decides on the CPU what a step does
            gradient = Captured(self._gradient, *sizes)
            self.improve = lambda batch: self._update(gradient(batch))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """Stays on the CPU: what is recorded brings its batch along."""
        return batch

    def on_train_epoch_start(self) -> None:
        self.train_loss.zero_()

    def training_step(self, batch: Batch, index: int) -> None:
        self.improve(batch)

    def _improve(self, batch: Batch) -> None:
        self._update(self._gradient(batch))

    def _gradient(self, batch: Batch) -> tuple[Tensor, ...]:
        """Of the loss, with respect to each parameter."""
        prediction = predict(self.twin[0], batch.graph, self.loss.needs_gradient, create_graph=True)
        loss = self.loss(residuals(prediction, batch))
        self.train_loss += torch.stack([loss.detach(), torch.ones_like(loss)])
        return torch.autograd.grad(loss, list(self.potential.parameters()), materialize_grads=True)

    def _update(self, gradient: tuple[Tensor, ...]) -> None:
        """Of the weights, by a gradient, and of their average."""
        parameters = list(self.potential.parameters())
        for parameter, values in zip(parameters, gradient, strict=True):
            parameter.grad = values
        torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_grad)
        self.optimizer.step()
        self.steps += 1
        follow(self.average, self.potential, self.steps, self.config.ema)

    def validation_step(self, batch: Batch, index: int) -> None:
        with torch.enable_grad():  # forces are gradients
            self.parts.append(cut(self.validate(batch), batch.graph))

    def _validate(self, batch: Batch) -> Residuals:
        return residuals(predict(self.average, batch.graph), batch)

    def on_validation_epoch_end(self) -> None:
        self.validation = join(self.parts)
        self.parts = []

    def schedule(self, valid_loss: float, share: float) -> None:
        """Set the learning rate of the next epoch; `share` of the run is done."""
        if self.config.schedule == "plateau":
            self.plateau.step(valid_loss)
            self._set_lr(self.lr)
        else:
            self._set_lr(0.5 * self.config.lr * (1 + math.cos(math.pi * share)))

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _set_lr(self, lr: float) -> None:
        """What is recorded reads the learning rates from the GPU's memory."""
        for group in self.optimizer.param_groups:
            own = lr * group["pace"]
            if not (self.on_gpu and self.config.algorithm == "adam"):
                group["lr"] = own
            elif isinstance(group["lr"], Tensor) and group["lr"].device == self.device:
                group["lr"].fill_(own)
            else:
                group["lr"] = torch.tensor(own, device=self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.plateau_state = checkpoint["plateau"]


def parameter_groups(potential: Potential, weight_decay: float) -> list[dict]:
    """Parameters by their `pace`, the factor on the learning rate; the weights of contractions, which decay, at last.

    A contraction's weights of order ν are N̄^(-ν/2) smaller than in the paper (see `mace`), and that much slower: else
    the first steps would change products of high order the most.
    """
    paces = {id(m.weight): m.pace for m in potential.modules() if hasattr(m, "pace")}
    groups: dict[tuple[bool, float], list] = {(False, 1.0): []}
    for parameter in potential.parameters():
        key = id(parameter) in paces, paces.get(id(parameter), 1.0)
        groups.setdefault(key, []).append(parameter)
    decays = {False: 0.0, True: weight_decay}
    return [
        {"params": parameters, "pace": pace, "weight_decay": decays[contracts]}
        for (contracts, pace), parameters in groups.items()
    ]


def make_optimizer(groups: list[dict], config: OptimizerConfig, capturable: bool = False) -> torch.optim.Optimizer:
    """The optimizer of some groups of parameters; `capturable` keeps what Adam needs on the GPU."""
    groups = [{**group, "lr": config.lr * group["pace"]} for group in groups]
    if config.algorithm == "adam":
        return torch.optim.Adam(groups, lr=config.lr, amsgrad=config.amsgrad, fused=True, capturable=capturable)
    from pytorch_optimizer import SOAP  # loads a hundred optimizers

    return SOAP(groups, lr=config.lr, max_precondition_dim=MAX_PRECONDITIONED)


def follow(average: torch.nn.Module, module: torch.nn.Module, steps: Tensor, decay: float) -> None:
    """Move averaged weights towards the weights; early in training faster, so that they forget where they began."""
    weight = 1 - ((1 + steps) / (10 + steps)).clamp(max=decay)
    with torch.no_grad():
        averages = list(average.parameters())
        way = torch._foreach_sub(list(module.parameters()), averages)
        torch._foreach_mul_(way, weight.to(way[0].dtype))
        torch._foreach_add_(averages, way)
