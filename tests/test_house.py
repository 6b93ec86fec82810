"""The house itself: what the documents, the metadata and the tree promise each other."""

import configparser
import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from ase.build import bulk
from ase.collections import dcdft

import ase_equivariant
from ase_equivariant.checkpoint import read_header

ROOT = Path(__file__).parents[1]
METADATA = configparser.ConfigParser()
METADATA.read(ROOT / "setup.cfg", encoding="utf-8")
REFERENCE = json.loads((ROOT / "tests" / "reference_pbe.json").read_text())["elements"]
README_BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def listed(section: str, key: str) -> list[str]:
    return METADATA[section][key].split("\n")[1:]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    code = f"{statement}; import sys; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_does_not_import_torch():
    assert "torch" not in loaded_by("import ase_equivariant")
    assert "torch" in loaded_by("import ase_equivariant; ase_equivariant.EquivariantCalculator")


def test_the_version_is_the_newest_in_the_changelog():
    versions = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    assert versions[0] == ase_equivariant.__version__


def test_the_version_has_one_source():
    assert METADATA["metadata"]["version"] == "attr: ase_equivariant.__version__"


def test_every_package_is_in_the_distribution():
    folders = {f.parent.relative_to(ROOT) for f in (ROOT / "ase_equivariant").rglob("*.py")}
    names = {".".join(folder.parts) for folder in folders}
    assert names | {"ase_equivariant.models"} == set(listed("options", "packages"))


def required() -> set[str]:
    """Names of the distributions that this one requires, its extras among them."""
    requirements = listed("options", "install_requires")
    requirements += [
        line for extra in METADATA["options.extras_require"] for line in listed("options.extras_require", extra)
    ]
    return {re.match(r"[\w-]+", line)[0].lower() for line in requirements}


def test_every_dependency_has_a_tested_version():
    # Triton's has a range, as builds of PyTorch for CUDA pin their own
    pinned = re.findall(r"^([\w-]+)(==| >=[\d.]+, <)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert required() <= {name for name, _ in pinned}
    assert [name for name, sign in pinned if sign != "=="] == ["triton"]


def test_every_package_that_is_imported_is_a_named_dependency():
    sources = [file.read_text() for file in (ROOT / "ase_equivariant").rglob("*.py")]
    imports = {name for text in sources for name in re.findall(r"^ *(?:import|from) (\w+)", text, flags=re.MULTILINE)}
    found = packages_distributions()
    needed = {found[name][0] for name in imports - sys.stdlib_module_names - {"ase_equivariant"} if name in found}
    assert {"numpy", "PyYAML", "scipy"} <= needed
    assert {name.lower().replace("_", "-") for name in needed} <= required()


@pytest.mark.parametrize("block", README_BLOCKS)
def test_the_readme_s_python_compiles(block):
    compile(block, "README.md", "exec")


def test_the_readme_s_first_example_runs(capsys):
    exec(README_BLOCKS[0], {})
    assert "eV/Å³" in capsys.readouterr().out


def test_frames_of_a_shared_calculator_keep_their_own_results_as_the_readme_does_it():
    (block,) = [block for block in README_BLOCKS if "SinglePointCalculator" in block]
    shared = ase_equivariant.EquivariantCalculator("mace-mlearn", dtype="float64", backend="eager")
    frames = [bulk("Cu", a=a, cubic=True) for a in (3.5, 3.6, 3.7)]
    energies = []
    for atoms in frames:
        atoms.calc = shared
        energies.append(atoms.get_potential_energy())
    exec(block, {"frames": frames})
    assert [atoms.get_potential_energy() for atoms in frames] == pytest.approx(energies, abs=1e-9)
    assert max(energies) - min(energies) > 0.1


def test_every_link_in_the_documents_leads_somewhere():
    documents = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "models" / "README.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
    links = [(d, link) for d in documents for link in re.findall(r"\]\(([^)#]+)\)", d.read_text())]
    local = [(d, link) for d, link in links if not link.startswith("http")]
    assert local
    assert not [link for d, link in local if not (d.parent / link).exists()]


def test_every_model_has_a_card_and_a_configuration():
    _, *parts = re.split(r"^## (\S+)$", (ROOT / "models" / "README.md").read_text(), flags=re.MULTILINE)
    cards = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(cards) == ase_equivariant.available_models()
    for name, card in cards.items():
        configurations = [ROOT / "models" / link for link in re.findall(r"\]\((\S+\.yaml)\)", card)]
        assert name in {yaml.safe_load(path.read_text())["name"] for path in configurations}
        header = read_header(name)
        said = [header[key] for key in ("level_of_theory", "training_data_license", "license", "citation")]
        assert [text for text in said if text not in card] == []
        assert "What it is for." in card
        assert "RMSE" in card


def test_no_file_holds_a_path_of_one_machine():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = [
        ROOT / name
        for name in files.split("\0")
        if Path(name).suffix in {".py", ".md", ".cfg", ".toml", ".yaml", ".json", ".txt"}
    ]
    machine_path = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\w")
    assert len(texts) > 20
    assert machine_path.search("cd /home/" + "someone")
    assert not [t.name for t in texts if t.exists() and machine_path.search(t.read_text())]


@pytest.mark.parametrize("symbol", ["Cu", "Ni", "Mo", "Si", "Ge", "Li"])
def test_reference_equations_of_state_are_those_ase_ships(symbol):
    reference = REFERENCE[symbol]["wien2k"]
    theirs = dcdft.data[symbol]
    assert reference["volume"] == theirs["wien2k_volume"]
    assert reference["bulk_modulus"] == theirs["wien2k_B"]
    assert reference["bulk_modulus_derivative"] == theirs["wien2k_Bp"]


@pytest.mark.parametrize(("symbol", "atoms_per_cell"), [("Cu", 4), ("Ni", 4), ("Mo", 2), ("Si", 8), ("Ge", 8)])
def test_reference_lattice_constants_follow_from_the_volumes(symbol, atoms_per_cell):
    reference = REFERENCE[symbol]
    for source in ("wien2k", "vasp"):
        expected = (atoms_per_cell * reference[source]["volume"]) ** (1 / 3)
        assert reference[source]["lattice_constant"] == pytest.approx(expected, abs=1e-4)


def test_tables_of_readme_cards_and_docs_are_the_result_files(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmarks = runpy.run_path(ROOT / "benchmarks" / "cards.py")
    readme, cards, space = texts = [page.read_text() for page in benchmarks["PAGES"]]
    assert [benchmarks["filled"](page) for page in benchmarks["PAGES"]] == texts
    assert "<!-- results/peers_brief.md -->\n|" in readme
    assert "<!-- results/accuracy_brief.md -->\n|" in readme
    assert "<!-- results/mlearn.md -->\n|" in cards
    assert len(re.findall(r"<!-- results/ablation_\w+\.md -->\n\|", space)) == 3
    assert cards.count("<!-- model ") == len(ase_equivariant.available_models()) - 1  # mace-mlearn has its own
