"""A file cannot make an importer ask for far more memory than the file itself holds."""

import pytest
import torch
from test_importers_mace import BLOCKS, as_record
from test_importers_nequip import checkpoint_of, saved

from ase_equivariant.architectures.mace import MACEConfig
from ase_equivariant.importers import building, import_model
from ase_equivariant.importers.building import build_for, numbers_in
from ase_equivariant.importers.mace import import_mace
from ase_equivariant.importers.unpickling import ForeignFileError, record

MACE = BLOCKS["models"][next(iter(BLOCKS["models"]))]["tree"]
IMPORTS = {
    "mace": lambda: import_mace(as_record(MACE)),
    "nequip": lambda: import_model(saved(checkpoint_of("odd_scalars"))),
}


def described(hidden: str, num_species: int) -> MACEConfig:
    return MACEConfig(
        num_species=num_species, cutoff=4.0, avg_num_neighbors=8.0, l_max=1, correlation=2, hidden_irreps=hidden
    )


def test_a_model_far_larger_than_its_file_is_refused():
    root = record("a model", {"_parameters": {"weight": torch.zeros(1000)}})
    assert build_for("mace", described("4x0e+4x1o", 2), root).embedding.shape == (2, 4)
    with pytest.raises(ForeignFileError, match="a model of 5861869424 weights, and holds 1000 numbers only"):
        build_for("mace", described("4000x0e+4000x1o", 118), root)


@pytest.mark.parametrize("kind", IMPORTS)
def test_every_importer_asks_before_it_takes_memory(kind, monkeypatch):
    assert IMPORTS[kind]().heads
    monkeypatch.setattr(building, "SMALL", 0)
    assert IMPORTS[kind]().heads
    monkeypatch.setattr(building, "MAX_GROWTH", 0)
    with pytest.raises(ForeignFileError, match=r"it describes a model of \d+ weights, and holds \d+ numbers only"):
        IMPORTS[kind]()


@pytest.mark.parametrize("kind", IMPORTS)
def test_every_weight_is_set(kind):
    unset = build_for("mace", described("4x0e+4x1o", 2), record("a model", {}))
    assert all(weight.isnan().all() for weight in unset.parameters())
    assert all(weight.isfinite().all() for weight in IMPORTS[kind]().parameters())


def test_numbers_that_tensors_share_count_once():
    whole = torch.zeros(10)
    inner = record("inside", {"_parameters": {"a": whole, "b": whole[3:]}, "_buffers": {"c": torch.zeros(5).double()}})
    assert numbers_in(record("a model", {"_modules": {"first": inner, "second": inner}, "d": whole})) == 15


@pytest.mark.parametrize(("name", "text"), [("hidden_irreps", "{}x0e+{}x1o"), ("edge_irreps", "{}x0e")])
def test_a_mace_has_a_largest_number_of_channels(name, text):
    settings = {"num_species": 1, "cutoff": 4.0, "avg_num_neighbors": 8.0, "l_max": 1, "correlation": 1}
    assert MACEConfig(**settings, **{name: text.format(10_000, 10_000)})
    with pytest.raises(ValueError, match=f"{name} = .* 10000"):
        MACEConfig(**settings, **{name: text.format(10_001, 10_001)})
