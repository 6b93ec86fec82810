"""A peer writes a model with random weights in its own format; `python writers.py KIND ARGUMENTS FILE`, where it lives.

All sides open that very file, so their models are equal; the seed is fixed, so it is the same file on every machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from cases import water

sys.path.append(str(Path(__file__).resolve().parents[1]))


def mace(arguments: dict, file: Path) -> None:
    """`torch.save` of a ScaleShiftMACE, as mace_run_train leaves it."""
    import torch
    from mace_model import make_mace

    torch.manual_seed(0)
    numbers = arguments["atomic_numbers"]
    model = make_mace(arguments, numbers, np.zeros(len(numbers)))
    model.use_reduced_cg = False  # its default, but without cuEquivariance the weights are those of the full basis
    torch.save(model, file)


def nequip(arguments: dict, file: Path) -> None:
    """The checkpoint of a training whose steps are zero, on water with labels of zero."""
    data = file.with_suffix(".xyz")
    frames = [water(24) for _ in range(3)]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    write(data, frames)
    loader = {"_target_": "torch.utils.data.DataLoader", "batch_size": 1}
    metrics = {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"total_energy_rmse": 1.0, "forces_rmse": 1.0}}
    types = arguments["type_names"]
    config = {
        "run": ["train"],
        "cutoff_radius": arguments["r_max"],
        "model_type_names": types,
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 1,
            "split_dataset": {"file_path": str(data), "train": 1, "val": 1, "test": 1},
            "transforms": [
                {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": types},
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": arguments["r_max"]},
            ],
            "train_dataloader": loader,
            "val_dataloader": loader,
            "test_dataloader": loader,
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "dirpath": str(file.parent),
                    "filename": file.stem,
                }
            ],
        },
        "training_module": {
            "_target_": "nequip.train.NequIPLightningModule",
            "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": {"total_energy": 1.0, "forces": 1.0}},
            "val_metrics": metrics,
            "test_metrics": metrics,
            "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.0},
            "model": {"_target_": "nequip.model.NequIPGNNModel", "seed": 0, "model_dtype": "float32", **arguments},
        },
        "global_options": {"allow_tf32": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        command = Path(sys.executable).with_name("nequip-train")
        subprocess.run([command, "-cp", folder, "-cn", "config", f"hydra.run.dir={folder}"], check=True)


WRITERS = {"mace": mace, "nequip": nequip}

if __name__ == "__main__":
    WRITERS[sys.argv[1]](json.loads(sys.argv[2]), Path(sys.argv[3]))
