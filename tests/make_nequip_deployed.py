"""Writes nequip_deployed.zip: tiny models as nequip 0.6.2 deploys them, and what its calculator gives for them.

Run with nequip 0.6.2 (e3nn 0.5.9), which this package does not need: python tests/make_nequip_deployed.py
Weights are multiples of 1/64. Of each file what is read stays: not what torch notes for debugging, and of the code the
activations alone.
"""

import io
import json
import os
import tempfile
import zipfile
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.5 loads its own constants with pickle

import torch
from ase import Atoms
from nequip.ase import NequIPCalculator
from nequip.model import model_from_config
from nequip.scripts import deploy
from nequip.scripts.train import default_config
from nequip.utils import Config
from nequip.utils._global_options import _set_global_options

BASE = {
    "root": ".",
    "run_name": "tiny",
    "seed": 1,
    "default_dtype": "float64",
    "model_dtype": "float64",
    "model_builders": [
        "SimpleIrrepsConfig",
        "EnergyModel",
        "PerSpeciesRescale",
        "StressForceOutput",
        "RescaleEnergyEtc",
    ],
    "chemical_symbols": ["O", "H"],
    "r_max": 4.0,
    "num_basis": 3,
    "num_layers": 2,
    "num_features": 2,
    "l_max": 1,
    "parity": True,
    "invariant_layers": 1,
    "invariant_neurons": 3,
    "avg_num_neighbors": 5.0,
    "use_sc": True,
    "nonlinearity_type": "gate",
    "per_species_rescale_scales": [2.0, 3.0],
    "per_species_rescale_shifts": [-1.0, -2.0],
    "global_rescale_scale": 1.5,
    "global_rescale_shift": None,
}
MODELS = {
    "parity": {"factor": 1, "num_layers": 3, "BesselBasis_trainable": True},
    "rotations_only": {
        "factor": 2,
        "num_layers": 3,
        "parity": False,
        "l_max": 2,
        "invariant_layers": 2,
        "num_features": 1,
        "use_sc": False,
        "per_species_rescale_scales": None,
    },
}
STRUCTURE = Atoms(
    "OHHOH",
    [[0.0, 0.0, 0.0], [0.9, 0.3, 0.1], [-0.4, 0.8, 0.3], [1.1, -1.3, 1.7], [2.3, 0.4, -0.9]],
    cell=[[5.0, 0.0, 0.0], [0.5, 5.2, 0.0], [0.0, 0.3, 4.9]],
    pbc=True,
)


def deployed(factor, settings):
    """The content of the file of a model, with everything in it that its calculator needs."""
    config = Config({**default_config, **BASE, **settings})
    _set_global_options(config)
    model = model_from_config(config, initialize=True, dataset=None, deploy=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = torch.randn_like(weight).mul(64 * factor).round().div(64)
            weight.add_(0.1 * values) if name.endswith("bessel_weights") else weight.copy_(values)
    versions, _ = deploy.get_current_code_versions(config)
    metadata = {f"{code}_version": version for code, version in versions.items()}
    metadata |= {"r_max": str(config["r_max"]), "n_species": "2", "type_names": " ".join(config["type_names"])}
    metadata |= {"allow_tf32": "0", "default_dtype": "float64", "model_dtype": "float64"}
    metadata |= {"_jit_bailout_depth": "2", "_jit_fusion_strategy": "DYNAMIC,3", "config": "none"}
    buffer = io.BytesIO()
    extra = {key: value.encode("ascii") for key, value in metadata.items()}
    torch.jit.save(deploy._compile_for_deploy(model), buffer, _extra_files=extra)
    return buffer.getvalue()


def results(data):
    atoms = STRUCTURE.copy()
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        file.write(data)
        file.flush()
        atoms.calc = NequIPCalculator.from_deployed_model(file.name, species_to_type_name={"O": "O", "H": "H"})
        return {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces().tolist(),
            "stress": atoms.get_stress().tolist(),
        }


def main():
    fields = ("numbers", "positions", "cell", "pbc")
    record = {"structure": {name: getattr(STRUCTURE, name).tolist() for name in fields}, "models": {}}
    with zipfile.ZipFile(
        Path(__file__).parent / "nequip_deployed.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9
    ) as out:
        for name, settings in MODELS.items():
            data = deployed(settings.pop("factor"), settings)
            record["models"][name] = results(data)
            for entry in zipfile.ZipFile(io.BytesIO(data)).infolist():
                path = f"{name}/{entry.filename.split('/', 1)[1]}"
                if path.endswith(".py") and "_activation" in path or "/code/" not in path:
                    out.writestr(
                        zipfile.ZipInfo(path), zipfile.ZipFile(io.BytesIO(data)).read(entry), zipfile.ZIP_DEFLATED
                    )
            print(name, record["models"][name])
        out.writestr(zipfile.ZipInfo("results.json"), json.dumps(record), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
