"""The configs of docs/design_space.md are those of models that work, and its axes are fields of the configs."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from structures import STRUCTURES

from ase_equivariant.architectures import ARCHITECTURES, build
from ase_equivariant.graph import from_atoms

yaml = pytest.importorskip("yaml")

TEXT = (Path(__file__).parents[1] / "docs" / "design_space.md").read_text()
CONFIGS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)]


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


def test_the_axes_of_the_table_are_all_fields_of_the_configs_but_what_the_data_or_the_user_decide():
    rows = [line.split("|")[2] for line in TEXT.splitlines() if line.startswith("|")][2:]
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    known = {field.name for kind in ARCHITECTURES.values() for field in fields(kind.Config)}
    assert named | {"resnet"} == known - {"num_species", "cutoff", "num_heads"}


def test_links_of_the_page_lead_somewhere():
    local = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if not link.startswith("http")]
    assert local
    assert all((Path(__file__).parents[1] / "docs" / link).exists() for link in local)
