"""What people do with a potential: relax, run dynamics, evaluate a data set.

Plain functions over `Atoms` with any ASE calculator attached; the command line and the examples call them. They print
nothing: progress goes to an `observer` that the caller passes.
"""

from ase_equivariant.workflows.evaluate import evaluate
from ase_equivariant.workflows.md import MDSettings, MDStopped, run_md
from ase_equivariant.workflows.relax import relax

__all__ = ["MDSettings", "MDStopped", "evaluate", "relax", "run_md"]
