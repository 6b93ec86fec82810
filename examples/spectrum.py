"""Vibrational spectrum of acetylacetone at 300 K, from the velocities along a trajectory at constant energy.

The power spectrum of the velocities, each atom weighed by its mass, is the density of vibrational states.
"""

from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure

from ase_equivariant import EquivariantCalculator

STEPS = 8000
TIMESTEP = 0.5  # fs

atoms = read(Path(__file__).with_name("acetylacetone.xyz"))
atoms.calc = EquivariantCalculator("mace-acac")
thermalize_momenta(atoms, 600, rng=np.random.default_rng(0))  # half of it becomes potential energy
Stationary(atoms)
ZeroRotation(atoms)

dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
momenta = np.array([atoms.get_momenta() for _ in dynamics.irun(STEPS)])
window = np.hanning(len(momenta))[:, None, None]
amplitudes = np.fft.rfft(window * momenta / np.sqrt(atoms.get_masses())[:, None], axis=0)
power = (np.abs(amplitudes) ** 2).sum((1, 2))
wavenumbers = np.fft.rfftfreq(len(momenta), TIMESTEP * 1e-15) / (100 * units._c)  # 1/cm

figure = Figure(figsize=(7, 3), layout="constrained")
axes = figure.add_subplot()
axes.plot(wavenumbers, power / power.max(), linewidth=1)
axes.set(xlim=(0, 3500), yticks=[], xlabel="wavenumber (1/cm)", ylabel="density of states")
figure.savefig("spectrum.png", dpi=150)
stretching = (wavenumbers > 2500) * power
print(f"C-H stretching {np.average(wavenumbers, weights=stretching):.0f} 1/cm")
