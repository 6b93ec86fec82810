"""The signs of e3nn's couplings relative to ours, which depend on its release where l1 + l2 + l3 is odd."""

from __future__ import annotations

import re

import numpy as np
import torch
from e3nn import o3

from ase_equivariant.importers.unpickling import ForeignFileError
from ase_equivariant.nn.coupling import clebsch_gordan

CHANGED = (0, 5)  # in this release (l, l, 1) for l = 2, 3, 4 changed its sign, in any order of the three
HIGHEST = 4  # l up to which couplings of earlier releases have been compared


def coupling_sign(l1: int, l2: int, l3: int, release: str) -> float:
    """1 or -1, for the release of e3nn with which a model was made; empty where its file does not say it."""
    sign = sign_of(o3.wigner_3j(l1, l2, l3, dtype=torch.float64), l1, l2, l3)
    if (l1 + l2 + l3) % 2 == 0:
        return sign
    found = re.match(r"(\d+)\.(\d+)", release)
    if not found:
        raise ForeignFileError("it does not say which release of e3nn made it, on which signs of its couplings depend")
    if (int(found[1]), int(found[2])) >= CHANGED:
        return sign
    low, middle, high = sorted((l1, l2, l3))
    if high > HIGHEST:
        raise ForeignFileError(f"it couples l > {HIGHEST} with the signs of e3nn {release}, which are not known")
    return -sign if low == 1 and middle == high > 1 else sign


def sign_of(theirs: torch.Tensor, l1: int, l2: int, l3: int) -> float:
    """Sign of a coupling [2 l1 + 1, 2 l2 + 1, 2 l3 + 1] relative to ours."""
    return float(np.sign((theirs.double().numpy() * clebsch_gordan(l1, l2, l3)).sum()))
