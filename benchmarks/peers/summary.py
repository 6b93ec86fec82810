"""The stored runs as tables in Markdown, in full and in brief, and as a picture of the cost per atom."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

COLUMNS = (
    "atoms",
    "code",
    "ms per step",
    "µs per atom",
    "times slower, median (range)",
    "of peak",
    "peak memory, MiB",
    "energy, eV/atom",
    "forces, eV/Å",
)


def tables(results: dict) -> str:
    """A table per case; versions, threads and machine below it."""
    parts = [
        "An ASE step (forces, and energy of the same call), single precision, sides taking turns; all open the same\n"
        "model file. Of peak: the rate of the operations that a step cannot do without (benchmarks/peers/floor.py),\n"
        "as a share of the machine's rate in matrix products. Last columns: largest differences to the first line of\n"
        "the same size, on the same structure.\n"
    ]
    for name, sizes in results.items():
        lines = [COLUMNS, ["---"] * len(COLUMNS)]
        for entry in sizes.values():
            lines += [line(entry, side, row) for side, row in entry["sides"].items()]
        table = "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
        settings = dict.fromkeys(about(entry) for entry in sizes.values())  # a set that keeps its order
        what = next(iter(sizes.values()))["what"]
        parts.append(f"## {name}: {what}\n\n{table}\n\n" + "\n".join(settings) + "\n")
    return "\n".join(parts)


def brief(entries: list[dict]) -> str:
    """One line per entry: how many times slower than the first side the other programs are, and the memory of all."""
    titles = "model and structure | atoms | ours, ms per step | times slower, median (range) | peak memory, MiB"
    lines = [f"| {titles} |", "|" + " --- |" * 5]
    for entry in entries:
        (_, ours), *others = entry["sides"].items()
        peers = [(side, row) for side, row in others if not side.startswith("ours")]
        slower = [f"{side} {row['failed'] if 'failed' in row else spread(row)}" for side, row in peers]
        ms = f"{ours['ms']:#.3g}" if "ms" in ours else ours["failed"]
        peaks = [
            f"{side} {row['peak_memory_MiB']}" for side, row in [("ours", ours), *peers] if row.get("peak_memory_MiB")
        ]
        lines.append(f"| {entry['what']} | {entry['atoms']} | {ms} | {'; '.join(slower)} | {'; '.join(peaks) or '–'} |")
    return "\n".join(lines) + "\n"


def line(entry: dict, side: str, row: dict) -> list:
    """Cells of one side; what failed says why instead of its time."""
    atoms, agreement = entry["atoms"], [f"{value:.1e}" for value in row["agreement"].values()] or ["", ""]
    if "failed" in row:
        return [atoms, side, row["failed"], "", "", "", "", *agreement]
    ms, memory = row["ms"], row["peak_memory_MiB"] or "–"
    return [atoms, side, f"{ms:.4g}", f"{1e3 * ms / atoms:.4g}", spread(row), of_peak(entry, ms), memory, *agreement]


def spread(row: dict) -> str:
    """The ratios of single turns."""
    ratio = row["ratio"]
    return f"{ratio['median']:.1f} ({ratio['min']:.1f}–{ratio['max']:.1f})"


def of_peak(entry: dict, ms: float) -> str:
    """The share of the machine's rate of matrix products that a step's least operations make, where they are known."""
    if not entry.get("flop_per_atom"):
        return "–"
    rate = entry["flop_per_atom"] * entry["atoms"] / ms * 1e-6  # GFLOP/s
    return f"{rate / entry['machine']['sgemm_GFLOP_per_s']:.0%}"


def about(entry: dict) -> str:
    """How an entry was made, in a line."""
    machine = entry["machine"]
    pairs = {pair for row in entry["sides"].values() for pair in row.get("versions", {}).items()}
    programs = ", ".join(" ".join(pair) for pair in sorted(pairs))
    gpu = f"{machine['gpu']}, whose memory is meant, driver {machine['driver']}, beside " if "gpu" in machine else ""
    limit = f"; {entry['memory_limit_GiB']:g} GiB per process" if entry["memory_limit_GiB"] else ""
    return (
        f"{entry['atoms']} atoms, {entry['turns']} turns: {gpu}{entry['threads']} threads of {machine['processor']}, "
        f"sgemm {machine['sgemm_GFLOP_per_s']} GFLOP/s, copy {machine['copy_GB_per_s']} GB/s{limit}; {programs}.  "
    )


def draw(results: dict, file: Path) -> None:
    """µs per atom over atoms, if there is a case of several sizes."""
    sizes = max(results.values(), key=len)
    if len(sizes) < 2:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for side in dict.fromkeys(side for entry in sizes.values() for side in entry["sides"]):
        rows = {entry["atoms"]: entry["sides"].get(side, {}) for entry in sizes.values()}
        points = [(atoms, 1e3 * row["ms"] / atoms) for atoms, row in rows.items() if "ms" in row]
        end = [atoms for atoms, row in rows.items() if row.get("failed") == "out of memory"]
        label = f"{side} (out of memory at {end[0]})" if end else side
        if points:
            axes.loglog(*zip(*points), "o-", label=label)
    axes.set(xlabel="atoms", ylabel="µs per atom and step", title=next(iter(sizes.values()))["what"])
    axes.legend()
    figure.savefig(file, dpi=150)
