"""Neighbour lists: which atoms see each other within the cutoff, through which lattice vectors.

Edges follow the convention of `graph`: the vector of an edge points from sender to receiver,

    vector = positions[receiver] - positions[sender] + shift @ cell

and edges are sorted by (receiver, sender, shift), so that the same structure always gives the same list bit for bit.
vesin finds the pairs; `VerletList` keeps them over many steps and is exact at each.
"""

from __future__ import annotations

import numpy as np
import vesin

COINCIDENT = 1e-3  # Å; atoms closer than this are at one place
MAX_IMAGES = 100_000  # of one atom within the cutoff; such a cell is no structure, and its list fills the memory
ROUNDING = 1e-6  # Å; a search may round differently than what decides in the end


class CoincidentAtomsError(ValueError):
    """Two atoms, or an atom and a periodic image, are at one place, or nearly so in a cell that is far too small."""


def count_images(cell: np.ndarray, pbc: np.ndarray, reach: float) -> float:
    """Cells within `reach` Å of each other, from above: 1 without periodic directions."""
    inverse_heights = np.linalg.norm(np.linalg.pinv(cell[pbc]), axis=0)
    return float(np.prod(1.0 + 2.0 * reach * inverse_heights))


def neighbor_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All edges shorter than the cutoff, of any cell and any mix of periodic directions.

    Parameters
    ----------
    positions : [n_atoms, 3] float64 Å, inside the cell or not
    cell : [3, 3] Å, rows are lattice vectors; rows of non-periodic directions play no role and may be zero
    pbc : [3] bool
    cutoff : Å

    Returns
    -------
    senders, receivers : [n_edges] int64
    shifts : [n_edges, 3] float64, whole numbers of lattice vectors
    """
    return VerletList(cutoff, skin=0.0).update(positions, cell, pbc)


def count_edges(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> int:
    """The length of `neighbor_list`, in a fraction of its memory; of a huge flat box some more."""
    return 2 * len(find_pairs(positions, cell, pbc, cutoff)[0])


class VerletList:
    """Neighbour list for a sequence of similar structures: pairs are searched seldom, filtered at each step.

    Pairs within cutoff + skin of a reference structure are kept until the motion since then could bring another pair
    within the cutoff. Each update returns exactly what `neighbor_list` returns (of a `DeviceList` more: see there). A
    change of the number of atoms or of pbc starts a new search; elements play no role.

    Parameters
    ----------
    cutoff, skin : Å
    """

    def __init__(self, cutoff: float, skin: float = 0.5):
        if not (0 < cutoff < np.inf and 0 <= skin < np.inf):
            raise ValueError(
                f"cutoff is {cutoff} and skin is {skin}; the cutoff must be positive and the skin not negative"
            )
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.n_rebuilds = 0
        self._reference: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
        # Pairs of the one length or more in the reference must not have come nearer than the other.
        self._limits: list[tuple[float, float]] = [(self.cutoff + self.skin, self.cutoff)]

    def update(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Senders, receivers and shifts of this structure, as `neighbor_list` gives them."""
        if not self._is_complete(positions, cell, pbc):
            self._reference = None  # until all is there: Ctrl-C or a lack of memory may end this halfway
            self._search(positions, cell, pbc)
            # Copies: MD moves the caller's arrays in place.
            self._reference = positions.copy(), cell.copy(), pbc.copy(), np.linalg.pinv(cell[pbc])
            self.n_rebuilds += 1
        return self._edges(positions, cell)

    def _is_complete(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        """Whether every pair that is not a candidate is provably at or beyond the cutoff.

        With a deformation F that takes the periodic vectors of the reference to the present ones and leaves the
        directions normal to them alone, each atom is at x = x₀ F + u, so a pair's vector is r = r₀ F + u_j − u_i and

            |r| ≥ σ_min(F) |r₀| − |u_j − u_i|,     |r₀| ≥ cutoff + skin for all pairs that are not candidates.
        """
        if self._reference is None:
            return False
        old_positions, old_cell, old_pbc, inverse = self._reference
        if len(positions) != len(old_positions) or (pbc != old_pbc).any():
            return False
        deformation = np.eye(3) + inverse @ (cell[pbc] - old_cell[pbc])
        motion = positions - old_positions @ deformation
        motion -= motion.sum(axis=0) / max(len(motion), 1)  # a common drift brings no pair closer
        furthest = np.sqrt(np.square(motion).sum(axis=1).max(initial=0.0))
        shrinking = np.linalg.svd(deformation, compute_uv=False)[-1]
        return all(shrinking * length - 2.0 * furthest >= nearest for length, nearest in self._limits)

    def _search(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        """Find the candidates: each pair once for its length, and both its edges in canonical order."""
        i, j, shifts = find_pairs(positions, cell, pbc, self.cutoff + self.skin + ROUNDING)
        self._pairs = i, j, shifts.T.astype(np.float64, order="C")
        senders, receivers, shifts = np.concatenate((i, j)), np.concatenate((j, i)), np.concatenate((shifts, -shifts))
        order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], senders, receivers))
        self._senders, self._receivers, self._shifts = senders[order], receivers[order], shifts[order].astype(float)
        self._pair_of_edge = order % max(len(i), 1)

    def _edges(self, positions: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of the candidates that are shorter than the cutoff."""
        squared = self._squared_lengths(positions, cell)
        if squared.min(initial=np.inf) < COINCIDENT**2:
            self._refuse(squared)
        edges = np.flatnonzero((squared < self.cutoff**2).take(self._pair_of_edge))
        return self._senders.take(edges), self._receivers.take(edges), self._shifts.take(edges, axis=0)

    def _squared_lengths(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Squared lengths of the candidate pairs, [n_pairs] Å².

        Elementwise, so that a pair's length does not depend on its place in the list, as it may in a matrix product.
        """
        i, j, shifts = self._pairs
        columns = positions.T.copy()
        offsets = shifts[0] * cell[0][:, None] + shifts[1] * cell[1][:, None] + shifts[2] * cell[2][:, None]
        x, y, z = columns.take(j, axis=1) - columns.take(i, axis=1) + offsets
        return x * x + y * y + z * z

    def _refuse(self, squared: np.ndarray) -> None:
        """Name the closest pair."""
        closest = squared.argmin()
        i, j, shifts = self._pairs
        image = f" (its periodic image {shifts[:, closest].astype(int).tolist()})" if shifts[:, closest].any() else ""
        raise CoincidentAtomsError(
            f"Atoms {i[closest]} and {j[closest]}{image} are at one place (distance {squared[closest] ** 0.5:.1g} Å); "
            "remove one of them or move them apart."
        )


def find_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair within reach once, in no particular order."""
    box = periodic_box(positions, cell, pbc, reach)
    # One thread: a search is rare, and worker threads do not survive a fork.
    search = vesin.NeighborList(cutoff=_safe_reach(box, reach), full_list=False, n_threads=1)
    i, j, shifts = search.compute(positions, box, True, "ijS")  # faster than vesin's mixed mode
    pairs = i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int64)
    real = ~shifts[:, ~pbc].any(axis=1)
    return pairs if real.all() else tuple(array[real] for array in pairs)


def periodic_box(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float) -> np.ndarray:
    """The cell as a box that is periodic everywhere; pairs with images in directions that are not are to be dropped.

    Those directions get vectors normal to the periodic ones. The box need not hold all atoms, so its size is bounded,
    and two fragments may be any distance apart.
    """
    images = count_images(cell, pbc, reach)
    if images > MAX_IMAGES:
        raise CoincidentAtomsError(
            f"The periodic cell vectors {cell[pbc].tolist()} are so short that each atom meets about {images:.0e} of "
            f"its own images within {reach:.3g} Å; give the cell in Å, or a smaller cutoff."
        )
    normals = np.linalg.svd(cell[pbc])[2][pbc.sum() :]
    extents = 2.0 * np.abs((positions - positions[:1]) @ normals.T).max(axis=0, initial=0.0)
    box = np.array(cell, dtype=np.float64)
    box[~pbc] = normals * np.minimum(extents + reach, 30.0 * reach)[:, None]
    return box


def _safe_reach(box: np.ndarray, reach: float) -> float:
    """`reach`, or more for huge flat boxes.

    vesin scales more than 10⁵ search cells down; where that leaves none across the box, it would end the process.
    """
    heights = 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)
    cells = np.maximum(heights // reach, 1.0)
    while cells.prod() > max(1e5, 1e5 / 8.0 * cells.min() ** 3):
        reach *= 1.5
        cells = np.maximum(heights // reach, 1.0)
    return reach
