"""The tour: relax a silicon crystal with its cell, then heat 216 atoms at constant volume and at constant pressure.

Everything is written to `demo/`. The same can be done with `ase-equivariant relax` and `ase-equivariant md`.
"""

from pathlib import Path

from ase.build import bulk
from ase.io import write

from ase_equivariant import EquivariantCalculator
from ase_equivariant.cli.md import md_and_show
from ase_equivariant.cli.relax import relax_and_show
from ase_equivariant.cli.show import say, say_written
from ase_equivariant.workflows import MDSettings

MODEL = "mace-mlearn"
REPEAT = 3
MAX_STEPS = 100
NVT_STEPS = 400
NPT_STEPS = 600
OUTPUT = Path("demo")


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    calculator = EquivariantCalculator(MODEL)
    parameters = calculator.parameters
    say(f"Model {MODEL}, backend {parameters['backend']}, {parameters['dtype']} on {parameters['device']}")

    say("\n[bold]1. Relax a rattled silicon crystal and its cell[/]")
    crystal = bulk("Si", a=5.6, cubic=True)
    crystal.rattle(0.05, seed=0)
    crystal.calc = calculator
    relax_and_show(crystal, cell=True, steps=MAX_STEPS, trajectory=OUTPUT / "relax.traj", logfile=OUTPUT / "relax.log")
    write(OUTPUT / "relaxed.xyz", crystal)

    atoms = crystal * (REPEAT, REPEAT, REPEAT)
    atoms.calc = calculator
    stages = (
        ("Nosé–Hoover chain", MDSettings(ensemble="nvt-nhc", temperature=300, timestep=2, steps=NVT_STEPS, interval=4)),
        ("constant pressure", MDSettings(ensemble="npt", temperature=300, timestep=2, steps=NPT_STEPS, interval=4)),
    )
    for number, (title, settings) in enumerate(stages, start=2):
        say(f"\n[bold]{number}. Molecular dynamics of {len(atoms)} atoms: {title}[/]")
        if md_and_show(atoms, settings, OUTPUT / settings.ensemble).interrupted:
            break

    say(f"\n[bold green]Done.[/] Everything is in {OUTPUT}/; look at the pictures first:")
    say_written(**{path.stem: path for path in sorted(OUTPUT.glob("*.png"))})


if __name__ == "__main__":
    main()
