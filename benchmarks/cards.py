"""Put the result tables into the model cards: every `<!-- results/NAME.md -->` … `<!-- end -->` of models/README.md.

python benchmarks/cards.py
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
CARDS = HERE.parent / "models" / "README.md"
PLACE = re.compile(r"(<!-- (results/\w+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The cards with the present result files in their places; links in those lead on from the cards."""

    def table(place: re.Match) -> str:
        result = (HERE / place[2]).read_text()
        return place[1] + re.sub(r"\]\((?!http)", "](../benchmarks/results/", result) + place[3]

    return PLACE.sub(table, text)


if __name__ == "__main__":
    CARDS.write_text(filled(CARDS.read_text()))
