"""Put result tables, and what model files say of themselves, where people read them.

Every `<!-- results/NAME.md -->` … `<!-- end -->` of PAGES takes a table of results, every `<!-- model NAME -->` …
`<!-- end -->` the header of a shipped model.

python benchmarks/cards.py
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from ase.data import chemical_symbols
from report import table

from ase_equivariant.architectures import ARCHITECTURES
from ase_equivariant.checkpoint import read_header

HERE = Path(__file__).resolve().parent
PAGES = [HERE.parent / name for name in ("README.md", "models/README.md", "docs/design_space.md")]
PLACE = re.compile(r"(<!-- (results/\w+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)
CARD = re.compile(r"(<!-- model (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: Path) -> str:
    """The page with the present result files in their places; links in those lead on from the page."""
    up = "../" * (len(page.relative_to(HERE.parent).parts) - 1)

    def results(place: re.Match) -> str:
        result = (HERE / place[2]).read_text()
        return place[1] + re.sub(r"\]\((?!http)", f"]({up}benchmarks/results/", result) + place[3]

    def card(place: re.Match) -> str:
        return place[1] + table(["", ""], described(place[2], up)) + place[3]

    return CARD.sub(card, PLACE.sub(results, page.read_text()))


def described(name: str, up: str) -> list[tuple[str, str]]:
    """The rows of a card."""
    header = read_header(name)
    configs = HERE.glob("accuracy/configs/*.yaml")
    path = next(path for path in configs if yaml.safe_load(path.read_text())["name"] == name)
    kind = ARCHITECTURES[header["architecture"]].__name__
    errors = {"validation": header["errors"]["validation"], **header["errors"]["test"]}
    labels = [kind for kind in header["errors"]["units"] if f"{kind}_rmse" in errors["validation"]["all"]]
    counts = header["provenance"]["structures"]
    return [
        ("architecture", f"{kind}, as in [{path.name}]({up}{path.relative_to(HERE.parent)})"),
        ("elements", ", ".join(chemical_symbols[z] for z in header["atomic_numbers"])),
        ("labels", f"{', '.join(labels)}; {header['level_of_theory']}"),
        ("data", header["training_data"]),
        ("structures", f"{counts['train']}, and {counts['validation']} for validation"),
        ("errors, RMSE", "; ".join(f"{part}: {shown(found['all'])}" for part, found in errors.items())),
        ("licence of the data", header["training_data_license"]),
        ("licence of the model", header["license"]),
        ("to be cited", header["citation"]),
    ]


def shown(errors: dict[str, float]) -> str:
    return f"{errors['energy_rmse']:.2f} meV/atom, {errors['forces_rmse']:.1f} meV/Å"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page))
