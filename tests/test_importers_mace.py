"""Files of mace-torch give here what they give there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import InputError

from ase_equivariant import EquivariantCalculator, load_potential, save_potential
from ase_equivariant.importers.mace import import_mace
from ase_equivariant.importers.records import ForeignFileError, read_content
from ase_equivariant.importers.unpickling import record

FILES = Path(__file__).parents[2] / "shared" / "checkpoints" / "mace"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason=f"needs the model files in {FILES}")
TOLERANCES = {"float64": (1e-9, 1e-8, 1e-9), "float32": (1e-6, 1e-5, 1e-5)}  # eV/atom, eV/Å, eV/Å³; by the file's dtype
SUPPORTED = {
    "off_like": "float64",
    "mp0_like": "float32",
    "mp0_like_f64": "float64",
    "plain_mace_l2": "float64",
    "multihead": "float64",
    "legacy_0.3.4": "float64",
    "trained": "float64",
    "density_agnesi_zbl": "float64",
    "legacy_0.3.9_density_zbl": "float64",
    "nonlinear_mh1_like": "float64",
    "legacy_0.3.14_nonlinear": "float64",
}


def reference(name):
    """Per head: structures, and what mace-torch gives for them."""
    record = json.loads((FILES / f"{name}.ref.json").read_text())
    structures = record.get("structures") or json.loads((FILES / "structures.json").read_text())["structures"]
    for head, results in record["results"].items():
        for label, values in results.items():
            keys = ("numbers", "positions", "cell", "pbc")
            yield head, Atoms(**{key: structures[label][key] for key in keys}), values


@needs_files
@pytest.mark.parametrize("name", SUPPORTED)
def test_numbers_are_those_of_mace_torch(name):
    potential = load_potential(FILES / f"{name}.model")
    # releases before 0.3.5 had no heads; the reference calls the only one Default
    calculators = {
        head: EquivariantCalculator(potential, device="cpu", dtype="float64", backend="eager", head=head)
        for head in potential.heads
    }
    cases = list(reference(name))
    energy, forces, stress = TOLERANCES[SUPPORTED[name]]
    largest = 0.0
    for head, atoms, values in cases:
        atoms.calc = calculators.get(head, next(iter(calculators.values())))
        assert atoms.get_potential_energy() == pytest.approx(values["energy"], abs=energy * len(atoms))
        assert atoms.get_forces() == pytest.approx(np.array(values["forces"]), abs=forces)
        expected = [values["stress_voigt"]] if values.get("stress_voigt") else []
        assert [atoms.get_stress() for _ in expected] == [pytest.approx(np.array(s), abs=stress) for s in expected]
        largest = max(largest, abs(np.array(values["forces"])).max())
    assert len(cases) >= 6
    assert largest > 0.1


@needs_files
def test_heads_differ():
    cases = {head: atoms for head, atoms, _ in reference("multihead")}
    atoms = next(iter(cases.values()))
    energies = [
        EquivariantCalculator(FILES / "multihead.model", backend="eager", head=head).get_potential_energy(atoms)
        for head in cases
    ]
    assert abs(energies[0] - energies[1]) > 0.01
    with pytest.raises(InputError, match="choose one of pt_head, dft"):
        EquivariantCalculator(FILES / "multihead.model")


@needs_files
def test_imported_model_becomes_a_safe_file(tmp_path):
    potential = load_potential(FILES / "off_like.model")
    assert potential.dtype == torch.float64
    save_potential(potential, tmp_path / "off.safetensors")
    again = load_potential(tmp_path / "off.safetensors")
    assert again.metadata["name"] == "off_like"
    assert all((a == b).all() for a, b in zip(potential.parameters(), again.parameters(), strict=True))


@needs_files
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("interactions.0", "mace.modules.blocks.AnotherInteractionBlock"),
        ("readouts.1", "mace.modules.blocks.AnotherReadoutBlock"),
        ("radial_embedding.bessel_fn", "mace.modules.radial.AnotherBasis"),
        ("radial_embedding.distance_transform", "mace.modules.radial.AnotherTransform"),
        ("pair_repulsion_fn", "mace.modules.radial.AnotherRepulsion"),
        ("", "mace.modules.models.AnotherMACE"),
        ("", "mace.modules.models.AtomicDipolesMACE, which is not an energy model"),
    ],
)
def test_a_part_that_is_not_known_is_named(path, name, monkeypatch):
    root = read_content((FILES / "density_agnesi_zbl.model").read_bytes()).root
    import_mace(root)
    part = root.get(path) if path else root
    monkeypatch.setattr(type(part), "name", name.split(",")[0])
    with pytest.raises(ForeignFileError, match=name):
        import_mace(root)


@needs_files
@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("nonlinear_mh1_like", "interactions.0.equivariant_nonlin"),
        ("nonlinear_mh1_like", "interactions.0.conv_tp_weights.net.1"),
        ("trained", "radial_embedding.cutoff_fn"),
        ("trained", "products.0"),
    ],
)
def test_inner_parts_are_known_too(file, path, monkeypatch):
    root = read_content((FILES / f"{file}.model").read_bytes()).root
    import_mace(root)
    monkeypatch.setattr(type(root.get(path)), "name", "mace.modules.Another")
    with pytest.raises(ForeignFileError, match="Another"):
        import_mace(root)


NESTED = []  # a million entries, were it written out
for _ in range(20):
    NESTED = [NESTED, NESTED]
BLOCKS = json.loads((Path(__file__).parent / "mace_blocks.json").read_text())  # written by make_mace_blocks.py
NO_SLOPE = ["chebyshev"]  # mace-torch takes the derivative of these polynomials to be zero: its forces are not used


@pytest.mark.parametrize("name", BLOCKS["models"])
def test_every_block_gives_the_numbers_of_mace_torch(name):
    """On the reference backend; test_numba_models compares the compiled one with it."""
    potential = import_mace(as_record(BLOCKS["models"][name]["tree"])).eval()
    options = {"device": "cpu", "dtype": "float64", "backend": "eager", "head": potential.heads[-1]}
    calculator = EquivariantCalculator(potential, **options)
    for structure, values in zip(BLOCKS["structures"], BLOCKS["models"][name]["results"], strict=True):
        atoms = Atoms(**structure, calculator=calculator)
        assert atoms.get_potential_energy() == pytest.approx(values["energy"], abs=1e-9 * len(atoms))
        expected = [] if name in NO_SLOPE else [values["forces"]]
        assert [atoms.get_forces() for _ in expected] == [pytest.approx(np.array(f), abs=1e-8) for f in expected]
        expected = [] if name in NO_SLOPE or "stress" not in values else [values["stress"]]
        assert [atoms.get_stress() for _ in expected] == [pytest.approx(np.array(s), abs=1e-9) for s in expected]
        assert abs(np.array(values["forces"])).max() > 0.001


def test_frequencies_that_are_not_numbers_stay_so():
    """They are not taken for the usual ones, with which the file would be another model."""
    root = as_record(next(iter(BLOCKS["models"].values()))["tree"])
    assert not import_mace(root).architecture.config.trainable_bessel
    root.get("radial_embedding.bessel_fn.bessel_weights").fill_(torch.nan)
    potential = import_mace(root)
    assert potential.architecture.radial.frequencies.isnan().all()


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ("", "heads", [NESTED], r"its heads are \[\[\[\.\.\.\], .* which must be names that differ"),
        ("", "heads", ["pbe", "pbe"], r"its heads are \['pbe', 'pbe'\]"),
        ("", "atomic_numbers", torch.tensor([1, 1]), r"its atomic_numbers are \[1, 1\], which must differ"),
        ("", "atomic_numbers", torch.tensor([1, 119]), r"its atomic_numbers are \[1, 119\]"),
        (
            "joint_embedding",
            "specs",
            {"spin": {"type": NESTED, "per": "graph"}},
            r"on spin, a \[\[\[\.\.\.\], .* per graph",
        ),
        ("products.0.linear", "irreps_out", NESTED, r"it has \[\[\[\.\.\.\], .* where irreps belong"),
        (
            "interactions.0.conv_tp_weights.layer0.act",
            "f",
            NESTED,
            r"activation is \[\[\[\.\.\.\], .* known here is silu",
        ),
    ],
)
def test_what_a_file_says_instead_is_shown_and_cut(place, key, value, message):
    root = as_record(BLOCKS["models"]["charge and spin"]["tree"])
    assert import_mace(root).heads
    part = root.get(place) if place else root
    next(table for table in [*part.state.values(), part.state] if isinstance(table, dict) and key in table)[key] = value
    with pytest.raises(ForeignFileError, match=message):
        import_mace(root)


def test_features_of_both_parities_are_refused_by_their_irreps():
    with pytest.raises(ForeignFileError, match=r"features 2x0e\+2x0o\+2x1o\+2x1e have irreps of both parities"):
        import_mace(as_record(BLOCKS["refused"]["both parities"]))


def as_record(tree):
    """What the reader makes of a module: weights are sines of their index, as make_mace_blocks.py sets them."""
    tensors = {}
    for name, entry in tree["tensors"].items():
        shape, count = entry["shape"], int(np.prod(entry["shape"]))
        if "place" in entry:
            values = torch.sin(1.0 + entry["place"] + 1.7 * torch.arange(count, dtype=torch.float64))
            tensors[name] = entry["factor"] * values.reshape(shape)
        else:
            tensors[name] = torch.zeros(count, dtype=getattr(torch, entry["dtype"]))
            for i, value in entry["sparse"]:
                tensors[name][i] = value
            tensors[name] = tensors[name].reshape(shape)
    attributes = {
        name: record(value["function"], {}) if isinstance(value, dict) and "function" in value else value
        for name, value in tree["attributes"].items()
    }
    inner = {name: as_record(module) for name, module in tree["modules"].items()}
    return record(tree["class"], {**attributes, "_modules": inner, "_parameters": tensors, "_buffers": {}})
