"""A fourth architecture takes one file, one registry line and one tiny config, and inherits every physics test."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "fourth_architecture.py"


def run(*command: str) -> subprocess.CompletedProcess:
    """In an interpreter of its own, so that this one's registry keeps its three entries."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_example_passes_the_tests_that_every_architecture_inherits():
    done = run(str(EXAMPLE), "-q")
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed, \d+ deselected", done.stdout)[1]) > 100


def test_one_that_knows_a_direction_does_not():
    distance = "vector_norm(vectors.to(self.embedding.dtype), dim=1)"
    source = EXAMPLE.read_text()
    assert distance in source
    lopsided = source.replace(distance, f"{distance} + 0.1 * vectors[:, 0].to(self.embedding.dtype)")
    done = run("-c", f"__file__ = {str(EXAMPLE)!r}\n{lopsided}", "-q", "-k", "schnet and forces_and_strain_turn")
    assert done.returncode == 1
    assert int(re.search(r"(\d+) failed", done.stdout)[1]) > 10
    assert "AssertionError: Tensor-likes are not close" in done.stdout


def test_the_model_is_as_short_as_promised():
    source = EXAMPLE.read_text()
    lines = [
        line for line in source[source.index("class SchNet(") : source.index("ARCHITECTURES[")].splitlines() if line
    ]
    assert len(lines) <= 60


def test_one_whose_radial_networks_read_more_than_the_basis_trains_on_right_gradients_or_fails_a_test():
    source = EXAMPLE.read_text()
    feats = "edge_feats = self.radial(lengths)"
    assert feats in source
    halved = source.replace(feats, f"{feats} * 0.5")
    twin = ("-q", "-k", "schnet and twin_of_every_architecture")
    assert run("-c", f"__file__ = {str(EXAMPLE)!r}\n{halved}", *twin).returncode == 0
    claimed = halved.replace("    num_heads: int = 1\n", "    num_heads: int = 1\n    tabulable = True\n")
    done = run("-c", f"__file__ = {str(EXAMPLE)!r}\n{claimed}", *twin)
    assert done.returncode == 1
    assert "1 failed" in done.stdout
