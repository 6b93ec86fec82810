"""The picture of a dynamics run: four panels, one look for all figures.

Uses matplotlib's objects only, never `pyplot`: no display, no global state.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ase_equivariant.storage import write_atomically
from ase_equivariant.workflows.rdf import Distances
from ase_equivariant.workflows.record import MDSample, MDSummary
from ase_equivariant.workflows.settings import ENSEMBLES

COLORS = ("#1f5fa8", "#c8553d", "#3c8d53", "#8a5fb0")
RAW, INK, GRID = "#b9c7d8", "#222b36", "#e6e9ee"
LEGEND = {"fontsize": 8, "facecolor": "white", "edgecolor": "none", "framealpha": 0.8}


def new_figure(rows: int, columns: int, title: str) -> tuple[Figure, np.ndarray]:
    """An empty figure in the package's style, and its [rows, columns] axes."""
    figure = Figure(figsize=(5.4 * columns, 3.7 * rows), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(INK)
        panel.tick_params(colors=INK, labelsize=9)
        panel.grid(color=GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.ticklabel_format(useOffset=False)
    return figure, axes


def plot_md(summary: MDSummary, samples: Sequence[MDSample], distances: Distances | None) -> None:
    """Draw temperature, pressure (else potential energy), conserved energy and distances of a run to its picture."""
    settings, n_atoms = summary.settings, summary.n_atoms
    figure, axes = new_figure(2, 2, _title(summary))
    times = [sample.time for sample in samples]
    thermostat = None if settings.ensemble == "nve" else settings.temperature
    _series(axes[0, 0], times, [sample.temperature for sample in samples], "temperature", "K", thermostat)
    if samples[0].pressure is None:
        potential = _per_atom([sample.potential_energy for sample in samples], n_atoms)
        _series(axes[0, 1], times, potential, "potential energy", "meV/atom")
    else:
        barostat = settings.pressure if settings.ensemble == "npt" else None
        _series(axes[0, 1], times, [sample.pressure for sample in samples], "pressure", "GPa", barostat)
    total = _per_atom([sample.conserved_energy for sample in samples], n_atoms)
    _series(axes[1, 0], times, total, "conserved energy" if settings.conserves else "total energy", "meV/atom")
    axes[1, 0].set_title(_energy_note(summary), fontsize=9, color=INK, loc="left")
    _distances(axes[1, 1], distances)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(picture.getvalue(), summary.files.picture)


def _title(summary: MDSummary) -> str:
    settings = summary.settings
    formula = re.sub(r"(\d+)", r"$_{\1}$", summary.formula)
    pressure = f", {settings.pressure:g} GPa" if settings.ensemble == "npt" else ""
    time = summary.steps * settings.timestep * 1e-3
    return f"{formula},  {ENSEMBLES[settings.ensemble]} at {settings.temperature:g} K{pressure},  {time:g} ps"


def _energy_note(summary: MDSummary) -> str:
    if not summary.settings.conserves:
        return "not conserved: the Langevin bath gives and takes heat"
    return "" if summary.drift is None else f"drift {summary.drift:+.3f} meV/atom/ps"


def _per_atom(energies: Sequence[float], n_atoms: int) -> np.ndarray:
    """Energies relative to the first one, meV/atom."""
    return (np.asarray(energies) - energies[0]) / n_atoms * 1e3


def _series(
    panel: Axes, times: Sequence[float], values: Sequence[float], quantity: str, unit: str, target: float | None = None
) -> None:
    """A quantity against time: samples, their running mean where there are enough, and the asked value."""
    window = len(values) // 10
    smooth = window >= 3
    panel.plot(times, values, color=RAW if smooth else COLORS[0], linewidth=1.0 if smooth else 1.5, label="samples")
    if smooth:
        kernel = np.full(window, 1 / window)
        centres, means = (np.convolve(series, kernel, mode="valid") for series in (times, values))
        width = times[window] - times[0]
        panel.plot(centres, means, color=COLORS[0], linewidth=1.8, label=f"mean over {width:.2g} ps")
    if target is not None:
        panel.axhline(target, color=COLORS[1], linewidth=1.2, linestyle="--", label=f"asked: {target:g} {unit}")
    panel.set(xlabel="time (ps)", ylabel=f"{quantity} ({unit})", xlim=(times[0], max(times[-1], times[0] + 1e-6)))
    panel.margins(y=0.15)
    panel.legend(**LEGEND)


def _distances(panel: Axes, distances: Distances | None) -> None:
    if distances is None:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "too few atoms for a distribution of distances", ha="center", color=INK, fontsize=9)
        return
    for color, (label, curve) in zip(COLORS, distances.curves.items(), strict=False):
        panel.plot(distances.radii, curve, color=color, linewidth=1.5, label=label)
    if distances.periodic:
        panel.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    panel.set(xlabel="distance (Å)", xlim=(0, distances.radii[-1]), ylim=(0, None))
    panel.set_ylabel("radial distribution g(r)" if distances.periodic else "neighbours (per atom and Å)")
    panel.legend(**LEGEND)
