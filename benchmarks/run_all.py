"""Run the accuracy and physics benchmarks of a model one after the other, the cheapest first.

python benchmarks/run_all.py [--model NAME] [--data FOLDER] [--results FOLDER]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from report import parser

HERE = Path(__file__).resolve().parent
SCRIPTS = {  # script -> which of the arguments it takes
    "physics/elastic_frames.py": ("data", "results"),
    "physics/crystals.py": ("model", "results"),
    "physics/closest_pairs.py": ("model", "data", "results"),
    "accuracy/mlearn.py": ("model", "data", "results"),
    "accuracy/tables.py": ("results",),
    "physics/npt.py": ("model", "results"),
    "physics/nve.py": ("model", "results"),
}


def main() -> None:
    arguments = parser(__doc__, data=True)
    defaults, args = vars(arguments.parse_args([])), vars(arguments.parse_args())
    for script, names in SCRIPTS.items():
        print(f"== {script}", flush=True)
        given = [f"--{name}={args[name]}" for name in names if args[name] != defaults[name]]
        subprocess.run([sys.executable, HERE / script, *given], check=True)


if __name__ == "__main__":
    main()
