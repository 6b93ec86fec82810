"""The tables of results/accuracy.md: our models beside published ones, and what was not run with its command.

Those of forces alone, as README shows them, go to results/accuracy_brief.md.

python benchmarks/accuracy/tables.py [--results FOLDER]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from sets import ARCHITECTURES, SETS, Benchmark

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import parser, table  # noqa: E402

HEAD = """# Accuracy beside published models

Errors of energies in meV per molecule / of forces in meV/Å, evaluated in float64; smaller is better. Along paths of
which only energies are known, relative energies: mean deviation removed path by path. Ours are small models trained on
one CPU core, or on a share of the GPU that stands beside the minutes; each stands in a JSON file of this folder, with
the configuration and the command that made it.
"""
CAPITALS = {"mace": "MACE", "nequip": "NequIP", "botnet": "BOTNet"}
BRIEF = {"acac": "AcAc", "3bpa": "3BPA", "rmd17_ethanol": "rMD17 ethanol", "rmd17_aspirin": "rMD17 aspirin"}


def main() -> None:
    print(write_tables(parser(__doc__, model=False).parse_args().results))


def result_name(name: str, architecture: str, frames: int | None = None) -> str:
    return f"accuracy_{name}_{architecture}" + (f"_{frames}" if frames else "")


def write_tables(results: Path) -> str:
    """Write accuracy.md, which is returned, and accuracy_brief.md from the JSON files of the folder."""
    (results / "accuracy_brief.md").write_text(brief(results))
    text = HEAD + "".join(section(name, benchmark, results) for name, benchmark in SETS.items())
    (results / "accuracy.md").write_text(text)
    return text


def brief(results: Path) -> str:
    """Errors of forces alone, each published model above ours."""
    columns = [f"{short} {test}".removesuffix(" test") for name, short in BRIEF.items() for test in SETS[name].tests]
    rows = []
    for architecture, label in CAPITALS.items():
        published = [float(pair.split(" / ")[1]) for name in BRIEF for pair in SETS[name].published[label]]
        rows.append([f"{label}, published", *(f"{error:.1f}" for error in published)])
        row = [f"**{label}, ours**"]
        for name in BRIEF:
            result = read(results / f"{result_name(name, architecture)}.json")
            row += errors(result, SETS[name], "forces", 1) if result else ["–"] * len(SETS[name].tests)
        rows.append(row)
    return table(["", *columns], rows)


def section(name: str, benchmark: Benchmark, results: Path) -> str:
    """The table of one set, and its learning curves where there are any."""
    tests = [*benchmark.tests, *benchmark.curves]
    columns = ["", *(f"{test}, {benchmark.error.upper()}" for test in tests), "parameters", "minutes"]
    missing = ["–"] * (len(benchmark.curves) + 2)
    rows = [[f"{model}, published", *row, *missing] for model, row in benchmark.published.items()]
    for architecture in ARCHITECTURES:
        result = read(results / f"{result_name(name, architecture)}.json")
        title = f"**{CAPITALS[architecture]}, ours**"
        command = f"not run: `python benchmarks/accuracy/run.py {name} {architecture}`"
        empty = [command] + ["–"] * (len(tests) + 1)
        rows.append([title, *(cells(result, benchmark) if result else empty)])
    text = f"\n## {benchmark.title}\n\n" + table(columns, rows) + (f"\n{benchmark.note}\n" if benchmark.note else "")
    return text + heights(name, benchmark, results) + learning_curve(name, benchmark, results)


def read(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def cells(result: dict, benchmark: Benchmark) -> list[str]:
    """Errors of one of our models on every test, its parameters and its minutes of training."""
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
    """Errors over the number of structures trained on."""
    rows = []
    for architecture in ARCHITECTURES:
        pattern = re.compile(rf"{result_name(name, architecture)}(_\d+)?\.json")
        found = [read(path) for path in results.glob("accuracy_*.json") if pattern.fullmatch(path.name)]
        rows += [
            [CAPITALS[architecture], f"{r['frames']}", *cells(r, benchmark)]
            for r in sorted(found, key=lambda result: result["frames"])
        ]
    if len({row[1] for row in rows}) < 2:
        return ""
    columns = ["", "structures", *(f"{test}, {benchmark.error.upper()}" for test in benchmark.tests)]
    columns += [*benchmark.curves, "parameters", "minutes"]
    return "\nLearning curve, validation structures included, with one number of training steps:\n\n" + table(
        columns, rows
    )


if __name__ == "__main__":
    main()
