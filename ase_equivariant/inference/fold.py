"""Programs made shorter: the same function with fewer stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ase_equivariant.inference.program import Convolve, Embed, Linear, Map, Program, Readout, Stage


def folded(program: Program) -> Program:
    """The same function with fewer stages: maps of species alone, of other maps, and into readouts are folded."""
    stages, count = list(program.stages), None
    while count != len(stages):
        count = len(stages)
        stages = _without_dead(_compose(_spread_embeddings(stages)))
    used, widths = {s.target for s in stages}, dict(program.widths)
    stages = _read_early(stages, widths)
    return Program(
        tuple(stages), {k: w for k, w in widths.items() if k in used}, program.harmonics, program.radial_error
    )


def _writers(stages: list[Stage], value: str | None) -> list[Stage]:
    return [s for s in stages if value is not None and s.target == value]


def _readers(stages: list[Stage], value: str) -> list[Stage]:
    return [s for s in stages if value in s.reads]


def _spread_embeddings(stages: list[Stage]) -> list[Stage]:
    """A linear map of an embedding is an embedding; a convolution reads it as a table."""
    out = []
    for stage in stages:
        writers = _writers(stages, stage.source) if isinstance(stage, Linear | Convolve) else []
        if len(writers) != 1 or not isinstance(writers[0], Embed):
            out.append(stage)
        elif isinstance(stage, Convolve):
            out.append(Convolve(None, writers[0].table, stage.target, stage.paths, stage.radial))
        else:
            width = max(m.start_out + m.dim * m.weights.shape[2] for m in stage.maps)
            out.append(Embed(stage.target, _apply(stage.maps, writers[0].table, width)))
    return out


def _apply(maps: tuple[Map, ...], table: np.ndarray, width: int) -> np.ndarray:
    """Rows of a table, one per species, through a linear stage."""
    out = np.zeros((len(table), width))
    for m in maps:
        _, n_in, n_out = m.weights.shape
        block = table[:, m.start_in : m.start_in + m.dim * n_in].reshape(-1, m.dim, n_in)
        out[:, m.start_out : m.start_out + m.dim * n_out] += (block @ m.weights).reshape(len(table), -1)
    return out


def _compose(stages: list[Stage]) -> list[Stage]:
    """One linear map in place of two, where the first's result has no other use."""
    for second in stages:
        if not isinstance(second, Linear) or _readers(stages, second.source) != [second]:
            continue
        first = _writers(stages, second.source)
        if len(first) == 1 and isinstance(first[0], Linear):
            maps = tuple(
                Map(a.dim, a.start_in, b.start_out, a.weights @ b.weights)
                for b in second.maps
                for a in first[0].maps
                if a.start_out == b.start_in
            )
            merged = Linear(first[0].source, second.target, maps)
            return [merged if s is second else s for s in stages if s is not first[0]]
    return stages


def _without_dead(stages: list[Stage]) -> list[Stage]:
    return [s for s in stages if s.target is None or _readers(stages, s.target)]


def _read_early(stages: list[Stage], widths: dict[str, int]) -> list[Stage]:
    """The first layer of a readout inside the linear maps before it, where what they write becomes narrower.

    It is written for all heads side by side; `widths` is changed as well.
    """
    for readout in (s for s in stages if isinstance(s, Readout) and s.hidden):
        (matrix, bias), *later = readout.hidden
        n_heads, n_in, n_out = matrix.shape
        writers, width = _writers(stages, readout.source), n_heads * n_out
        plain = all(isinstance(s, Embed) or isinstance(s, Linear) and _is_scalar(s) for s in writers)
        if plain and width < n_in == widths[readout.source] and _readers(stages, readout.source) == [readout]:
            joined = matrix.transpose(1, 0, 2).reshape(n_in, width)
            chosen = np.eye(width).reshape(width, n_heads, n_out).transpose(1, 0, 2)
            early = {id(s): _narrowed(s, joined) for s in writers}
            early[id(readout)] = replace(readout, hidden=((chosen, bias), *later))
            stages, widths[readout.source] = [early.get(id(s), s) for s in stages], width
    return stages


def _is_scalar(stage: Linear) -> bool:
    return all(m.dim == 1 for m in stage.maps)


def _narrowed(stage: Embed | Linear, matrix: np.ndarray) -> Embed | Linear:
    """The stage with a matrix behind it."""
    if isinstance(stage, Embed):
        return replace(stage, table=stage.table @ matrix)
    ends = [m.start_out + m.weights.shape[2] for m in stage.maps]
    maps = [replace(m, start_out=0, weights=m.weights @ matrix[m.start_out : end]) for m, end in zip(stage.maps, ends)]
    return replace(stage, maps=tuple(maps))
