"""The package as others see it: lazy public names, versions, and ASE's plugin entry point."""

import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from ase._4.plugins.plugin_collection import PluginCollection

import ase_equivariant
from ase_equivariant import plugin

HEAVY = "import sys; print(*[m for m in ('torch', 'ase', 'e3nn', 'numpy') if m in sys.modules])"


def modules_after(statement: str) -> list[str]:
    command = [sys.executable, "-c", f"{statement}; {HEAVY}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_imports_neither_torch_nor_ase():
    assert modules_after("import ase_equivariant; ase_equivariant.__version__; dir(ase_equivariant)") == []
    assert "torch" in modules_after("from ase_equivariant import EquivariantCalculator")


def test_every_public_name_is_there_and_others_are_not():
    for name in ase_equivariant.__all__:
        assert getattr(ase_equivariant, name) is not None
    assert set(ase_equivariant.__all__) <= set(dir(ase_equivariant))
    with pytest.raises(AttributeError, match="no_such_name"):
        ase_equivariant.no_such_name  # noqa: B018


def test_ase_finds_the_calculator_through_the_entry_point():
    (entry,) = [e for e in entry_points(group="ase.plugins") if e.value == "ase_equivariant.plugin"]
    assert entry.load() is plugin
    (found,) = [p for p in PluginCollection.from_entry_points() if p.name == "equivariant"]
    assert found.implementation is ase_equivariant.EquivariantCalculator
    assert found.version == ase_equivariant.__version__ == version("ase-equivariant")


def test_ase_info_lists_the_plugin():
    command = [sys.executable, "-m", "ase", "info", "--plugins"]
    assert "equivariant" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
