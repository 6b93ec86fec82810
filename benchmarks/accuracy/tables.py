"""The tables of results/accuracy.md: our models beside published ones, and what was not run with its command.

Those of forces alone, as README shows them, go to results/accuracy_brief.md.

python benchmarks/accuracy/tables.py [--results FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlearn
from sets import ARCHITECTURES, PAPER, SETS, Benchmark

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import parser, table  # noqa: E402

HEAD = """# Accuracy beside published models

Errors of energies in meV per molecule / of forces in meV/Å, evaluated in float64; smaller is better. Along paths of
which only energies are known, relative energies: mean deviation removed path by path. Ours, but those with the paper's
settings, are small models trained on one CPU core, or on a share of the GPU that stands beside the minutes. Each model
of a molecule stands in a JSON file of this folder, with the configuration that trained it and the command that trains
and evaluates.
"""
STRESSES = """One potential of six elements: RMSE of energies in meV/atom, forces in meV/Å and stresses in GPa, on the
official test split in float32. Published: without stresses, M3GNet-all as one potential, the others as one per element.
The stress labels of Ni and Cu contradict their energies, which ours follow. More in [mlearn.md](mlearn.md)."""
CAPITALS = {"mace": "MACE", "nequip": "NequIP", "botnet": "BOTNet", PAPER: "MACE, the paper's settings"}
BRIEF = {"acac": "AcAc", "3bpa": "3BPA", "rmd17_ethanol": "rMD17 ethanol", "rmd17_aspirin": "rMD17 aspirin"}


def main() -> None:
    print(write_tables(parser(__doc__, model=False).parse_args().results))


def result_name(name: str, architecture: str, frames: int | None = None) -> str:
    return f"accuracy_{name}_{architecture}" + (f"_{frames}" if frames else "")


def write_tables(results: Path) -> str:
    """Write accuracy.md, which is returned, and accuracy_brief.md from the JSON files of the folder."""
    (results / "accuracy_brief.md").write_text(brief(results))
    text = HEAD + "".join(section(name, benchmark, results) for name, benchmark in SETS.items()) + stresses(results)
    (results / "accuracy.md").write_text(text)
    return text


def brief(results: Path) -> str:
    """Errors of forces alone, each published model above ours."""
    columns = [f"{short} {test}".removesuffix(" test") for name, short in BRIEF.items() for test in SETS[name].tests]
    rows = []
    for model in (*ARCHITECTURES, PAPER):
        label = CAPITALS[model]
        if model != PAPER:
            published = [float(pair.split(" / ")[1]) for name in BRIEF for pair in SETS[name].published[label]]
            rows.append([f"{label}, published", *(f"{error:.1f}" for error in published)])
        row = [f"**{label}, ours**"]
        for name in BRIEF:
            result = read(results / f"{result_name(name, model)}.json")
            row += errors(result, SETS[name], "forces", 1) if result else ["–"] * len(SETS[name].tests)
        rows.append(row)
    return table(["", *columns], rows)


def section(name: str, benchmark: Benchmark, results: Path) -> str:
    """The table of one set, and its learning curve where there is one."""
    columns = columns_of(benchmark)
    rows = [padded(columns, f"{model}, published", *row) for model, row in benchmark.published.items()]
    for model in benchmark.models:
        row = cells(read(results / f"{result_name(name, model)}.json"), benchmark, f"{name} {model}")
        rows.append(padded(columns, f"**{CAPITALS[model]}, ours**", *row))
    text = f"\n## {benchmark.title}\n\n" + table(columns, rows) + (f"\n{benchmark.note}\n" if benchmark.note else "")
    return text + heights(name, benchmark, results) + learning_curve(name, benchmark, results)


def columns_of(benchmark: Benchmark, *first: str) -> list[str]:
    tests = [f"{test}, {benchmark.error.upper()}" for test in [*benchmark.tests, *benchmark.curves]]
    return ["", *first, *tests, "parameters", "minutes"]


def padded(columns: list[str], *row: str) -> list[str]:
    return [*row, *["–"] * (len(columns) - len(row))]


def read(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def cells(result: dict | None, benchmark: Benchmark, arguments: str) -> list[str]:
    """Errors of one of our models on every test, its parameters and its minutes of training; or how to have them."""
    if result is None:
        return [f"not run: `python benchmarks/accuracy/run.py {arguments}`"]
    pairs = zip(errors(result, benchmark, "energy", 2), errors(result, benchmark, "forces", 1), strict=True)
    row = [f"{energy} / {forces}" for energy, forces in pairs]
    row += [f"{result['curves'][curve]['relative_energy'][benchmark.error]:.1f}" for curve in benchmark.curves]
    device = result.get("device", "CPU")
    where = "" if device == "CPU" else f", {device}"
    return [*row, f"{result['parameters']:,}", f"{result['minutes']:.0f}{where}"]


def errors(result: dict, benchmark: Benchmark, kind: str, digits: int) -> list[str]:
    """Of energies or forces, on every test."""
    return [f"{result['tests'][test][kind][benchmark.error]:.{digits}f}" for test in benchmark.tests]


def heights(name: str, benchmark: Benchmark, results: Path) -> str:
    """How high the paths go, highest minus lowest energy, of sets that have single paths."""
    found = {a: read(results / f"{result_name(name, a)}.json") for a in ARCHITECTURES}
    lines = []
    for curve in benchmark.curves:
        paths = {a: r["curves"][curve]["height"] for a, r in found.items() if r}
        if not paths or any(len(path) > 1 for path in paths.values()):
            continue
        values = {CAPITALS[a]: next(iter(path.values())) for a, path in paths.items()}
        ours = ", ".join(f"{label} {value['found']:.0f}" for label, value in values.items())
        lines.append(f"- {curve}: {next(iter(values.values()))['expected']:.0f}; {ours}\n")
    return "\nHighest minus lowest energy of a path, meV, reference and ours:\n\n" + "".join(lines) if lines else ""


def learning_curve(name: str, benchmark: Benchmark, results: Path) -> str:
    """Errors of MACE over the number of structures trained on."""
    if not benchmark.points:
        return ""
    columns = columns_of(benchmark, "structures")
    rows = [
        padded(columns, f"{model}, published", f"{frames}", *row)
        for model, points in benchmark.published_points.items()
        for frames, row in points.items()
    ]
    for frames in (*benchmark.points, None):
        result = read(results / f"{result_name(name, 'mace', frames)}.json")
        row = cells(result, benchmark, f"{name} mace" + (f" --frames {frames}" if frames else ""))
        rows.append(padded(columns, "**MACE, ours**", f"{frames or 'all'}", *row))
    head = "\nLearning curve; of our structures, some are for validation, and all points have about as many steps:\n\n"
    return head + table(columns, rows)


def stresses(results: Path) -> str:
    """Errors on mlearn, of stresses too, from the results of mlearn.py."""
    rows = [
        [f"{model}, published", *(f"{energy} / {forces}" for energy, forces in row.values())]
        for model, row in mlearn.PUBLISHED.items()
    ]
    columns = ["", *mlearn.ELEMENTS]
    for architecture in ARCHITECTURES:
        result = read(results / f"{mlearn.result_name(f'{architecture}-mlearn')}.json")
        command = f"not run: `{mlearn.commands(architecture)}`"
        row = [stress_cell(found) for found in result["elements"].values()] if result else [command]
        rows.append(padded(columns, f"**{CAPITALS[architecture]}, ours**", *row))
    return f"\n## mlearn, with stresses\n\n{STRESSES}\n\n" + table(columns, rows)


def stress_cell(found: dict) -> str:
    digits = {"energy": 1, "forces": 1, "stress": 2}
    return " / ".join(f"{found[kind]['rmse']:.{n}f}" for kind, n in digits.items())


if __name__ == "__main__":
    main()
