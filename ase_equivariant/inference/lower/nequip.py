"""NequIP as stages."""

from __future__ import annotations

from ase_equivariant.architectures.nequip import Layer, NequIP
from ase_equivariant.inference.lower.weights import array
from ase_equivariant.inference.lower.writer import Writer, refuse_others
from ase_equivariant.nn.linear import Dense

PLAIN = {"interaction_first", "interaction", "resnet", "normalisation", "embedding_channels", "species_neighbors"}
CHOICES: dict[str, tuple] = {}
PARTS = ("linear_up", "convolution", "radial_mlp", "linear", "skip", "norms", "gate")


def write(model: NequIP, to: Writer) -> None:
    features = model.config.features
    feats = to.embed(model.embedding)
    for layer, irreps, irreps_out in zip(model.layers, features[:-1], features[1:], strict=True):
        refuse_others(layer, Layer, PARTS)
        gated = layer.gate.irreps_in
        factor = layer.norm * (array(layer.sender_norms) if layer.sender_norms.numel() else 1.0)
        gathered = to.gather(layer, layer.radial_mlp, feats, (irreps, irreps, gated), factor)
        out = to.skip(layer, feats, irreps, gathered, gated)
        for module in layer.norms:
            out = to.norm(module, out, gated)
        out = to.gate(layer.gate, out, irreps_out)
        to.identity(layer.identity, feats, irreps, irreps_out, out)
        feats = out
    if isinstance(model.hidden, Dense):
        feats = to.dense(model.hidden, feats)
    to.readout(model.readout, feats)
