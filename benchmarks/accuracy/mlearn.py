"""Errors on the official test split of mlearn, element by element, beside the published ones.

    python benchmarks/accuracy/mlearn.py [--model NAME] [--data FOLDER]

Published: Table 1 of the M3GNet paper (C. Chen, S. P. Ong, Nat. Comput. Sci. 2, 718 (2022)), RMSE on the same split.
"M3GNet-all" is one potential of all six elements, as ours is; the others are one potential per element. The stress
labels of Cu and Ni differ from the derivative of the energies by a constant (benchmarks/physics/elastic_frames.py), so
that no potential can follow both: the mean of prediction minus label, over all six components, is the last of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ase import units
from ase.calculators.calculator import Calculator
from ase.io import read

from ase_equivariant.workflows.evaluate import Errors, compare, evaluate

sys.path.append(str(Path(__file__).resolve().parents[1]))
from report import calculator, parser, table, write  # noqa: E402

PUBLISHED = {  # RMSE of energy (meV/atom), of forces (meV/Å)
    "MTP": {
        "Ni": (0.8, 26.9),
        "Cu": (0.5, 13.5),
        "Li": (0.7, 13.2),
        "Mo": (3.9, 148.1),
        "Si": (3.0, 88.1),
        "Ge": (3.7, 70.3),
    },
    "M3GNet": {
        "Ni": (0.9, 37.4),
        "Cu": (1.8, 17.0),
        "Li": (2.5, 22.1),
        "Mo": (6.3, 193.7),
        "Si": (9.6, 102.8),
        "Ge": (9.4, 76.4),
    },
    "M3GNet-all": {
        "Ni": (1.9, 37.0),
        "Cu": (2.3, 16.9),
        "Li": (4.7, 24.5),
        "Mo": (6.8, 271.4),
        "Si": (6.8, 126.2),
        "Ge": (5.9, 78.4),
    },
}
ELEMENTS = tuple(PUBLISHED["MTP"])


def main() -> None:
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    args = arguments.parse_args()
    model = calculator(args.model, args.dtype)
    elements = {}
    for symbol in ELEMENTS:
        print(f"{symbol} ...", flush=True)
        elements[symbol] = assess(symbol, args.data, model)
    result = {"split": "official test split", "dtype": args.dtype, "elements": elements, "published": PUBLISHED}
    write(args.results, result_name(Path(args.model).stem), result, markdown(elements), args.model)


def result_name(model: str) -> str:
    """Of the files in results/: "mlearn" for mace-mlearn, "mlearn_nequip" for nequip-mlearn, "mlearn_x" for x."""
    return "mlearn" if model == "mace-mlearn" else f"mlearn_{model.removesuffix('-mlearn')}"


def commands(architecture: str) -> str:
    """What trains and evaluates a model that is not shipped."""
    train = f"ase-equivariant train benchmarks/accuracy/configs/mlearn_{architecture}.yaml"
    model = f"runs/accuracy/mlearn_{architecture}/{architecture}-mlearn.safetensors"
    evaluate_it = f"python benchmarks/accuracy/mlearn.py --model {model}"
    return f"{train} && {evaluate_it} && python benchmarks/accuracy/tables.py"


def assess(symbol: str, data: Path, model: Calculator) -> dict:
    """Errors on an element's test set: all of it, and each kind of structure."""
    evaluated = evaluate(read(data / f"{symbol}_test.extxyz", ":"), model)
    kinds = sorted({atoms.info["config_type"] for atoms in evaluated})
    errors = summarize(evaluated)
    energy, forces = errors["energy"]["rmse"], errors["forces"]["rmse"]
    return {
        "frames": len(evaluated),
        **errors,
        "beats": {
            name: {"energy": energy < row[symbol][0], "forces": forces < row[symbol][1]}
            for name, row in PUBLISHED.items()
        },
        "kinds": {kind: summarize([a for a in evaluated if a.info["config_type"] == kind]) for kind in kinds},
    }


def summarize(evaluated: list) -> dict:
    found = compare(evaluated)
    return {
        "energy": _as_dict(found.energy),
        "forces": _as_dict(found.forces["all"]),
        "stress": _as_dict(found.stress),
        "stress_mev_per_a3": _as_dict(found.stress, units.GPa * 1e3),
    }


def _as_dict(errors: Errors | None, factor: float = 1.0) -> dict[str, float] | None:
    """`bias` is the mean of prediction minus label."""
    if errors is None:
        return None
    return {
        "count": errors.count,
        **{name: round(getattr(errors, name) * factor, 4) for name in ("rmse", "mae", "bias")},
    }


def markdown(elements: dict) -> str:
    columns = ["", "energy RMSE / MAE (meV/atom)", "forces RMSE / MAE (meV/Å)"]
    columns += ["stress RMSE / MAE (GPa)", "(meV/Å³)", "bias (GPa)"]
    columns += [f"{row} energy / forces RMSE" for row in PUBLISHED]
    columns += [f"beats {row}, energy / forces" for row in ("M3GNet-all", "MTP")]
    rows = []
    for symbol, found in elements.items():
        row = [symbol, _pair(found["energy"], 2), _pair(found["forces"], 1), _pair(found["stress"], 3)]
        row += [_pair(found["stress_mev_per_a3"], 2), f"{found['stress']['bias']:+.2f}"]
        row += ["{} / {}".format(*published[symbol]) for published in PUBLISHED.values()]
        row += [_verdict(found["beats"][name]) for name in ("M3GNet-all", "MTP")]
        rows.append(row)
    return table(columns, rows)


def _pair(errors: dict, digits: int) -> str:
    return f"{errors['rmse']:.{digits}f} / {errors['mae']:.{digits}f}"


def _verdict(beats: dict[str, bool]) -> str:
    return " / ".join("yes" if beats[name] else "no" for name in ("energy", "forces"))


if __name__ == "__main__":
    main()
