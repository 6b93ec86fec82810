"""The configs of docs/design_space.md are those of models that work, and its axes are fields of the configs."""

import re
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import pytest
import torch
from ase import Atoms
from structures import STRUCTURES

from ase_equivariant.architectures import ARCHITECTURES, build
from ase_equivariant.graph import from_atoms

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "design_space.md").read_text()
CONFIGS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)]
KNOWN = {field.name for kind in ARCHITECTURES.values() for field in fields(kind.Config)}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_config_of_the_page_is_a_model(config):
    assert set(config) == {"architecture", "model"}
    graph = from_atoms(STRUCTURES["crystal"](), (29,), config["model"]["cutoff"])
    settings = {"num_species": 1, "avg_num_neighbors": graph.n_edges / graph.n_nodes, **config["model"]}
    model = build(config["architecture"], settings)
    energies = model(graph.vectors(), graph.species, graph.senders, graph.receivers)
    assert energies.isfinite().all()
    assert energies.abs().max() > 1e-4
    assert not torch.equal(energies[0], energies[1])


def test_the_page_has_a_config_of_every_architecture():
    assert {config["architecture"] for config in CONFIGS} == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ["mace", "nequip", "botnet"])
def test_the_axes_of_the_table_are_fields_of_every_config(architecture):
    rows = [line.split("|")[2] for line in TEXT.splitlines() if line.startswith("|") and line.count("|") == 8][2:]
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert named >= {"num_interactions", "correlation", "hidden_irreps", "l_max", "update", "radial", "skip"}
    assert named >= {"interaction", "normalisation", "readout_mlp", "last_readout_only", "parity"}
    assert named <= {field.name for field in fields(ARCHITECTURES[architecture].Config)}


def test_every_field_but_those_that_the_data_or_the_user_decide_is_on_the_page():
    assert set(re.findall(r"`(\w+)`", TEXT)) >= KNOWN - {"num_species", "cutoff", "num_heads"}


def test_the_command_of_the_page_varies_fields_of_a_configuration_that_is_there():
    (command,) = re.findall(r"^ase-equivariant ablate .*$", TEXT, flags=re.MULTILINE)
    words = command.split()
    base = yaml.safe_load((ROOT / words[2]).read_text())
    axes = [words[i + 1].split("=")[0] for i, word in enumerate(words) if word == "--vary"]
    assert axes == ["l_max", "correlation"]
    assert set(axes) <= {field.name for field in fields(ARCHITECTURES[base["architecture"]].Config)}


def test_linear_ace_feels_four_bodies_and_no_more():
    config = next(c for c in CONFIGS if c["model"].get("readout_mlp") == 0 and c["architecture"] == "mace")
    settings = {"num_species": 1, "avg_num_neighbors": 4.0, **config["model"], "hidden_irreps": "4x0e"}
    model = build(config["architecture"], settings, dtype=torch.float64)
    positions = [[0.0, 0.0, 0.0], [1.1, 0.3, 0.2], [-0.4, 1.2, 0.1], [0.2, -0.5, 1.3], [-1.0, -0.7, -0.6]]

    def connected(bodies):
        """The energy that no fewer atoms have together: inclusion and exclusion of all but the first."""
        total = 0.0
        for count in range(bodies):
            for others in combinations(range(1, bodies), count):
                atoms = Atoms(f"Cu{count + 1}", [positions[i] for i in (0, *others)])
                graph = from_atoms(atoms, (29,), config["model"]["cutoff"])
                energy = model(graph.vectors(), graph.species, graph.senders, graph.receivers)[0, 0].item()
                total += (-1) ** (bodies - 1 - count) * energy
        return abs(total)

    assert connected(4) > 1e-4
    assert connected(5) < 1e-11


def test_links_of_the_page_lead_somewhere():
    local = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if not link.startswith("http")]
    assert local
    assert all((Path(__file__).parents[1] / "docs" / link).exists() for link in local)
