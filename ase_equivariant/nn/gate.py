"""The gate: a nonlinearity that commutes with rotations and the inversion (NequIP, arXiv 2101.03164).

    even scalars  SiLU(s)      odd scalars  tanh(s)      others  SiLU(g) · v,  g one more even scalar for each channel

Factors make the variance one where inputs are normal.
"""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from ase_equivariant.nn.radial import SILU_GAIN

# makes the variance of tanh(x) one for a normal x: 1/√∫ tanh(x)² φ(x) dx
TANH_GAIN = 1.5925374197228312


class Gate(torch.nn.Module):
    """Blocks of `irreps_in`, which are those of `irreps_out` with the g behind the even scalars, to `irreps_out`.

    The even scalars are block 0 on both sides.
    """

    def __init__(self, irreps_out: o3.Irreps):
        super().__init__()
        self.even_gain, self.odd_gain = SILU_GAIN, TANH_GAIN
        self.gated: list[bool] = [ir.l > 0 for _, ir in irreps_out]
        self.widths: list[int] = [irreps_out[0].mul, *(mul for mul, ir in irreps_out if ir.l > 0)]
        self.irreps_in = o3.Irreps([(sum(self.widths), "0e"), *irreps_out[1:]])

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        activated = (torch.nn.functional.silu(blocks[0]) * self.even_gain).split(self.widths, 2)
        out = [activated[0]]
        gate = 1
        for i in range(1, len(blocks)):
            if self.gated[i]:
                out.append(blocks[i] * activated[gate])
                gate += 1
            else:
                out.append(torch.tanh(blocks[i]) * self.odd_gain)
        return out
