"""Every example runs, shortened and on a tiny model, and writes what it promises."""

import re
from pathlib import Path

import pytest
from ase.io import read
from tiny import tiny_potential

from ase_equivariant import save_potential

EXAMPLES = Path(__file__).parent.parent / "examples"
PLAIN = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in ("demo.py", "fourth_architecture.py"))
FILES = {
    "relax_cell.py": ["relax_cell_0GPa.traj", "relax_cell_5GPa.traj", "relax_cell.log"],
    "nvt.py": ["nvt.traj"],
    "npt.py": ["npt.traj"],
    "own_checkpoint.py": ["my-own.safetensors"],
}


def run(name: str, folder: Path, monkeypatch) -> str:
    """Run an example in a folder of its own, few steps long, with a tiny model in place of the shipped one."""
    monkeypatch.chdir(folder)
    save_potential(tiny_potential(), "tiny.safetensors")
    source = (EXAMPLES / name).read_text()
    source = source.replace('"mace-mlearn"', '"tiny.safetensors"')
    source = re.sub(r"(?<=STEPS = )\d+", "3", source)
    source = source.replace("REPEAT = 3", "REPEAT = 2")
    exec(compile(source, name, "exec"), {"__name__": "__main__"})
    return source


@pytest.mark.parametrize("name", PLAIN)
def test_an_example_is_short_and_runs(name, tmp_path, monkeypatch, capsys):
    source = run(name, tmp_path, monkeypatch)
    assert len(source.splitlines()) <= 40
    assert "atoms.calc = EquivariantCalculator(" in source
    assert capsys.readouterr().out
    assert all((tmp_path / file).stat().st_size > 0 for file in FILES[name])


def test_the_demo_relaxes_heats_and_leaves_pictures_trajectories_and_logs(tmp_path, monkeypatch, capsys):
    run("demo.py", tmp_path, monkeypatch)
    out = capsys.readouterr().out
    names = ["npt", "nvt-nhc"]
    assert all((tmp_path / "demo" / f"{name}.png").stat().st_size > 10_000 for name in names)
    assert [len(read(tmp_path / "demo" / f"{name}.traj", ":")) for name in names] == [2, 2]
    assert (tmp_path / "demo" / "relaxed.xyz").exists()
    assert "demo/npt.png" in out
