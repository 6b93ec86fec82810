"""The gate: a nonlinearity that commutes with rotations and the inversion (NequIP, arXiv 2101.03164).

    even scalars  SiLU(s)      odd scalars  tanh(s)      others  SiLU(g) · v,  g one more even scalar for each channel

Where `sigmoid` is set, the gates are sigmoid(g), between zero and one. Factors make the variance one where inputs are
normal.
"""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.nn.radial import SILU_GAIN

# makes the variance of tanh(x) one for a normal x: 1/√∫ tanh(x)² φ(x) dx
TANH_GAIN = 1.5925374197228312
# and of sigmoid(x)
SIGMOID_GAIN = 1.8462285453386553


class Gate(torch.nn.Module):
    """Blocks of `irreps_in`, which are those of `irreps_out` with the g behind the even scalars, to `irreps_out`.

    The even scalars are block 0 on both sides.
    """

    def __init__(self, irreps_out: o3.Irreps, sigmoid: bool = False):
        super().__init__()
        self.sigmoid = sigmoid
        self.even_gain, self.odd_gain, self.sigmoid_gain = SILU_GAIN, TANH_GAIN, SIGMOID_GAIN
        self.gated: list[bool] = [ir.l > 0 for _, ir in irreps_out]
        self.widths: list[int] = [irreps_out[0].mul, *(mul for mul, ir in irreps_out if ir.l > 0)]
        self.irreps_in = o3.Irreps([(sum(self.widths), "0e"), *irreps_out[1:]])

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        if self.sigmoid:
            parts = blocks[0].split(self.widths, 2)
            activated = [torch.nn.functional.silu(parts[0]) * self.even_gain]
            for part in parts[1:]:
                activated.append(torch.sigmoid(part) * self.sigmoid_gain)
        else:
            activated = list((torch.nn.functional.silu(blocks[0]) * self.even_gain).split(self.widths, 2))
        out = [activated[0]]
        gate = 1
        for i in range(1, len(blocks)):
            if self.gated[i]:
                out.append(blocks[i] * activated[gate])
                gate += 1
            else:
                out.append(torch.tanh(blocks[i]) * self.odd_gain)
        return out
