"""BOTNet as stages."""

from __future__ import annotations

from ase_equivariant.architectures.botnet import BOTNet, Layer
from ase_equivariant.inference.lower.writer import Writer, refuse_others

PLAIN = {"interaction_first", "interaction", "radial"}
CHOICES: dict[str, tuple] = {}
PARTS = ("linear_up", "convolution", "radial_weights", "linear", "skip")


def write(model: BOTNet, to: Writer) -> None:
    features = model.config.features
    feats = to.embed(model.embedding)
    for layer, head, irreps, irreps_out in zip(model.layers, model.readouts, features[:-1], features[1:], strict=True):
        refuse_others(layer, Layer, PARTS)
        gathered = to.gather(layer, layer.radial_weights, feats, (irreps, irreps, irreps_out), layer.norm)
        feats = to.skip(layer, feats, irreps, gathered, irreps_out)
        to.readout(head, feats)
