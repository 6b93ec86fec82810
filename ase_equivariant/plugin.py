"""Announces the calculator to ASE (entry point group `ase.plugins`); only ASE imports this file."""

from ase._4.plugins.plugin import CalculatorPlugin

__ase_plugins__ = {
    CalculatorPlugin(
        name="equivariant",
        citation="ase-equivariant: pretrained E(3)-equivariant interatomic potentials in ASE",
        implementation="ase_equivariant.calculator.EquivariantCalculator",
    )
}
