"""docs/training.md: its configurations are configurations, its table has every key with its default."""

import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

pytest.importorskip("lightning")

from ase_equivariant.training.config import TrainConfig
from ase_equivariant.training.parsing import parse

TEXT = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
CONFIGS = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
REQUIRED = "required"


def keys_of(kind, prefix=""):
    """{key: default} of a section and the sections in it."""
    keys = {}
    for f in fields(kind):
        hint = get_type_hints(kind)[f.name]
        inner = keys_of(hint, f"{prefix}{f.name}.") if is_dataclass(hint) else {}
        default = f.default if f.default_factory is MISSING else f.default_factory()
        keys |= inner or {prefix + f.name: REQUIRED if default is MISSING else default}
    return keys


@pytest.mark.parametrize("text", CONFIGS)
def test_every_configuration_of_the_page_is_one(text):
    config = parse(TrainConfig, yaml.safe_load(text), "")
    assert config.optimizer.schedule == "cosine"


def test_the_page_has_a_configuration_with_and_one_without_a_start():
    assert ["start" in yaml.safe_load(text) for text in CONFIGS] == [False, True]


def test_the_table_has_every_key_with_its_default():
    rows = re.findall(r"^\| `([\w.]+)` \| *(.*?) *\|", TEXT, flags=re.MULTILINE)
    told = {key: parse_default(value) for key, value in rows}
    assert len(told) == len(rows)
    known = keys_of(TrainConfig)
    assert len(known) > 40
    assert told == known


def parse_default(text):
    value = yaml.safe_load(text) if text else ""
    return float(value) if re.fullmatch(r"\d+e-\d+", str(value)) else value  # a word to YAML
