"""Imports inside the package point one way, and only the outer ring knows ASE."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ase_equivariant"
# A layer imports those before it and itself. Nothing but the command line imports training: serving works without it.
LAYERS = (
    "text",
    "nn",
    "architectures",
    "potential",
    "importers",
    "neighbors",
    "graph",
    "device_list",
    "derivatives",
    "restrict",
    "golden",
    "storage",
    "download",
    "published",
    "zoo",
    "header",
    "checkpoint",
    "convert",
    "inference",
    "calculator",
    "labels",
    "workflows",
    "training",
    "cli",
)
APART = {"plugin": set(), "__init__": set()}  # ASE imports the first; the second names its modules in strings
KNOW_ASE = {
    "graph",
    "restrict",
    "golden",
    "storage",
    "download",
    "published",
    "zoo",
    "header",
    "checkpoint",
    "convert",
    "inference",
    "calculator",
    "labels",
    "workflows",
    "training",
    "cli",
    "plugin",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(source: str) -> set[str]:
    """Dotted names that a source imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_layers(source: str) -> set[str]:
    """The layers of this package that a source imports; `__init__` for its top level, as in `__version__`."""
    parts = [name.split(".") for name in imported_modules(source)]
    layers = {p[1] if len(p) > 1 else "__init__" for p in parts if p[0] == "ase_equivariant"}
    return {layer if layer in LAYERS or layer in APART else "__init__" for layer in layers}


def knows_ase(source: str) -> bool:
    return any(name.split(".")[0] == "ase" for name in imported_modules(source))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    layer = layer_of(file)
    allowed = {name: {*LAYERS[: i + 1], "__init__"} - {"training"} for i, name in enumerate(LAYERS)}
    allowed["training"].add("training")
    allowed["cli"].add("training")
    extra = imported_layers(file.read_text()) - {**allowed, **APART}[layer]
    assert not extra, f"{file.relative_to(PACKAGE)} must not import {sorted(extra)}"


@pytest.mark.parametrize(
    "file", [f for f in FILES if layer_of(f) not in KNOW_ASE], ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_inner_layers_do_not_know_ase(file):
    assert not knows_ase(file.read_text())


def test_imports_are_found_wherever_they_stand():
    source = """
import ase.io

def f():
    from ase_equivariant import calculator
    from ase_equivariant.cli.main import app
"""
    assert imported_layers(source) == {"calculator", "cli"}
    assert knows_ase(source)
    assert not knows_ase("import ase_equivariant")


def test_relative_imports_are_not_used():
    relative = [
        f
        for f in FILES
        for node in ast.walk(ast.parse(f.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not relative, "relative imports would escape the tests of this file"
