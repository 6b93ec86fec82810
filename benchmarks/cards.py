"""Put the result tables where people read them: every `<!-- results/NAME.md -->` … `<!-- end -->` of PAGES.

python benchmarks/cards.py
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGES = [HERE.parent / name for name in ("README.md", "models/README.md", "docs/design_space.md")]
PLACE = re.compile(r"(<!-- (results/\w+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: Path) -> str:
    """The page with the present result files in their places; links in those lead on from the page."""
    up = "../" * (len(page.relative_to(HERE.parent).parts) - 1)

    def table(place: re.Match) -> str:
        result = (HERE / place[2]).read_text()
        return place[1] + re.sub(r"\]\((?!http)", f"]({up}benchmarks/results/", result) + place[3]

    return PLACE.sub(table, page.read_text())


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page))
