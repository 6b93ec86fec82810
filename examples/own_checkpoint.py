"""A model file of your own: look into it, change what it says about itself, save it, and calculate with it."""

from ase.build import bulk

from ase_equivariant import EquivariantCalculator, load_potential, save_potential

potential = load_potential("mace-mlearn")  # or the path of a file that `ase-equivariant train` wrote
print("elements", potential.atomic_numbers, "cutoff", potential.cutoff, "Å")

potential.metadata["name"] = "my-own"
save_potential(potential, "my-own.safetensors")  # no pickle inside: safe to share

atoms = bulk("Cu", cubic=True)
atoms.rattle(0.1, seed=0)
for dtype in ("float32", "float64"):
    atoms.calc = EquivariantCalculator("my-own.safetensors", dtype=dtype)
    print(f"{dtype}: {atoms.get_potential_energy():.6f} eV, {abs(atoms.get_forces()).max():.5f} eV/Å")
