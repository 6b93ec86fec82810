"""From a `Potential` to a `Program`: the same function, every module written as stages, its constants multiplied in.

What no stage stands for is refused by name, and so is every setting an architecture's file here has not heard of: a
program never leaves out a part of a model in silence.

One interaction of MACE stays with the eager backend on purpose, "attention_residual": its radial network also sees
features of both atoms, so that no spline of the distance stands for it, and the network itself, 256 wide and evaluated
anew for each edge in both directions, is large matrix products, which torch does well.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from ase_equivariant.architectures.botnet import BOTNet
from ase_equivariant.architectures.mace import MACE
from ase_equivariant.architectures.nequip import NequIP
from ase_equivariant.inference.collapse import collapsed
from ase_equivariant.inference.fold import folded
from ase_equivariant.inference.lower import botnet, mace, nequip
from ase_equivariant.inference.lower.weights import array
from ase_equivariant.inference.lower.writer import Writer
from ase_equivariant.inference.program import CannotLowerError, Convolve, Program, Repel
from ase_equivariant.inference.splines import interpolated
from ase_equivariant.nn.pair_repulsion import ZBL
from ase_equivariant.potential import Potential
from ase_equivariant.text import shown

LOWERED = {MACE: mace, NequIP: nequip, BOTNet: botnet}
# settings that the modules tell by themselves, in every architecture that has them
PLAIN = {"num_species", "cutoff", "avg_num_neighbors", "num_bessel", "trainable_bessel", "bessel_decay", "bessel_norm"}
PLAIN |= {"envelope_power", "radial_mlp", "l_max", "parity", "hidden_irreps", "num_interactions", "readout_mlp"}
PLAIN |= {"num_heads", "pair_repulsion", "radial_basis", "skip"}


def lower(potential: Potential, exact: bool) -> Program:
    """The program of a potential; `exact` keeps the radial networks, otherwise splines take their place.

    Raises
    ------
    CannotLowerError
        The potential has a part that no stage stands for.
    """
    model = potential.architecture
    if type(model) not in LOWERED:
        raise CannotLowerError(f"architecture {type(model).__name__}")
    architecture = LOWERED[type(model)]
    _check_settings(model.config, architecture.PLAIN, architecture.CHOICES)
    to = Writer(model)
    with torch.no_grad():
        architecture.write(model, to)
    to.stages += _repulsion(potential)
    harmonics = tuple(array(degree.coefficients) for degree in model.harmonics.degrees)
    program = collapsed(folded(Program(tuple(to.stages), to.widths, harmonics, 0.0)))
    return program if exact else _interpolated(program)


def _interpolated(program: Program) -> Program:
    """With splines in the place of radial networks, where they are good enough."""
    stages, error = list(program.stages), 0.0
    for i, stage in enumerate(stages):
        if isinstance(stage, Convolve):
            radial, worst = interpolated(stage.radial)
            stages[i], error = replace(stage, radial=radial), max(error, worst)
    return replace(program, stages=tuple(stages), radial_error=error)


def _check_settings(config: object, plain: set[str], choices: dict[str, tuple]) -> None:
    for field in fields(config):
        value, allowed = getattr(config, field.name), choices.get(field.name, (field.default,))
        if field.name not in PLAIN | plain and value not in allowed:
            raise CannotLowerError(f"{field.name} = {shown(value)}")


def _repulsion(potential: Potential) -> list[Repel]:
    """The stage of the pair repulsion; anything else beside the architecture is refused."""
    stages = []
    for name, module in potential.named_children():
        if type(module) is ZBL:
            tables = array(module.strengths), array(module.widths), array(module.ends)
            stages.append(Repel(*tables, tuple(module.terms), module.power, module.scaled))
        elif name != "architecture":
            raise CannotLowerError(f"part {name} ({type(module).__name__}) of the potential")
    return stages
