"""`ablate(config_path, vary)`: the same training with some fields of its configuration varied, and a comparison.

Every point of the grid is a training run of its own, in a folder of its own below `output`; it resumes by itself, and a
finished one is not repeated. Models and structures of all points are checked before the first one is trained.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import multiprocessing
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from ase.calculators.calculator import CalculationFailed, CalculatorError, InputError
from rich.console import Console

from ase_equivariant.architectures import ARCHITECTURES
from ase_equivariant.checkpoint import load_potential
from ase_equivariant.storage import write_atomically
from ase_equivariant.text import shown
from ase_equivariant.training.config import TrainConfig, check_model, read_config, read_yaml
from ase_equivariant.training.parsing import parse
from ase_equivariant.training.progress import tell
from ase_equivariant.training.sets import load_sets
from ase_equivariant.training.train import train_as

FIXED = ("name", "output")  # the grid itself decides them
MAX_POINTS = 1000


@dataclass(frozen=True)
class Point:
    """One run of the grid: its label, the values it takes, and its whole configuration as plain data."""

    label: str
    settings: dict[str, Any]
    raw: dict


def ablate(config_path: Path | str, vary: Sequence[str], jobs: int, console: Console) -> dict:
    """Train every point of a grid and compare them.

    Parameters
    ----------
    config_path : CONFIG.yaml of the training that is varied
    vary : "axis=value,value,…" each; an axis is a field of the model or a path such as optimizer.lr; several: a grid
    jobs : how many runs go on at a time, each in a process of its own with its share of the threads

    Returns
    -------
    What <output>/ablation.json holds: "runs", with the settings, parameters, epochs, minutes and errors (RMSE and MAE,
    meV/atom, meV/Å, meV/Å³) of each finished run, and "failed", {label: why}.

    Raises InputError for an axis or a value that is none, CalculationFailed where every run failed.
    """
    config_path = Path(config_path)
    base, raw = read_config(config_path)
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be 1 or more")
    points = grid(raw, vary)
    root, folder = config_path.parent, config_path.parent / base.output
    done = {point.label: result for point in points if (result := finished(folder, point))}
    waiting = [point for point in points if point.label not in done]
    tell(console, f"{len(points)} runs below {folder}, {len(done)} of them finished")
    check_data(waiting, root)
    failed: dict[str, str] = {}
    for point, outcome in run_all(waiting, root, jobs):
        if isinstance(outcome, dict):
            done[point.label] = outcome
            write(folder / point.label / "result.json", outcome)
        else:
            failed[point.label] = str(outcome)
        tell(console, f"{point.label}: {failed.get(point.label) or 'finished'}")
    report = {"config": config_path.name, "runs": [done[p.label] for p in points if p.label in done], "failed": failed}
    if not done:
        raise CalculationFailed(f"every run failed; {next(iter(failed))}: {next(iter(failed.values()))}")
    write(folder / "ablation.json", report)
    return report


def grid(raw: dict, vary: Sequence[str]) -> list[Point]:
    """All combinations of values, each checked as far as it can be without data."""
    axes = dict(parse_axis(text, raw) for text in vary)
    if len(axes) < len(vary) or not vary:
        raise InputError(f"axes are {', '.join(vary) or 'none'}; name one or more, each once")
    combinations = list(itertools.islice(itertools.product(*axes.values()), MAX_POINTS + 1))
    if len(combinations) > MAX_POINTS:
        raise InputError(f"the grid has more than {MAX_POINTS} runs; vary fewer values")
    points = [make_point(raw, dict(zip(axes, values, strict=True))) for values in combinations]
    labels = [point.label for point in points]
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated:
        raise InputError(f"two runs would have the folder {repeated}; name every value once")
    return points


def parse_axis(text: str, raw: dict) -> tuple[str, list]:
    """ "l_max=1,2" → ("model.l_max", [1, 2]); values are YAML, so that lists can be given in brackets."""
    name, equals, listed = text.partition("=")
    try:
        values = read_yaml(f"[{listed}]", "the list")
    except InputError as error:
        raise InputError(f"values of {name} are {shown(listed)}; give them as value,value: {error}") from None
    if not equals or not values:
        raise InputError(f"axis {shown(text)} has no values; give it as axis=value,value")
    return resolve(name, raw), values


def resolve(name: str, raw: dict) -> str:
    """The path of an axis in the configuration: a field of the model may be named without its section."""
    in_model = [f.name for f in fields(ARCHITECTURES[raw["architecture"]].Config)]
    on_top = [f.name for f in fields(TrainConfig) if f.name not in FIXED]
    section = name.partition(".")[0]
    if name in in_model:
        return f"model.{name}"
    if section not in on_top:
        close = difflib.get_close_matches(name, [*in_model, *on_top], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"top-level keys are {', '.join(on_top)}"
        raise InputError(f"no axis {shown(name)}: it is a field of the model, or a path such as optimizer.lr; {hint}")
    return name


def _in_a_name(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_") or "empty"


def make_point(raw: dict, settings: dict[str, Any]) -> Point:
    """The configuration with these values; InputError where it is none."""
    names = {path.split(".")[-1]: _in_a_name(value) for path, value in settings.items()}
    label = ",".join(f"{name}={value}" for name, value in names.items())
    changed = copy.deepcopy(raw)
    for path, value in settings.items():
        *sections, name = path.split(".")
        section = changed
        for part in sections:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise InputError(f"no axis {shown(path)}: {part} is no section of the configuration")
        section[name] = value
    changed["output"] = str(Path(raw["output"]) / label)
    try:
        check_model(parse(TrainConfig, changed, ""))
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    return Point(label, settings, changed)


def check_data(points: list[Point], root: Path) -> None:
    """Raise the InputError of structures that cannot be trained on, or of a model that is not for their elements.

    What points have in common is read once.
    """
    elements: dict[str, list[int]] = {}
    for point in points:
        config = parse(TrainConfig, point.raw, "")
        loss = config.loss  # says which labels and which elements must be there
        weighed = (loss.energy > 0, loss.forces > 0, loss.stress > 0, sorted(loss.forces_factors))
        data = repr((config.data, config.model["cutoff"], weighed))
        try:
            if data not in elements:
                elements[data] = load_sets(config, root).numbers
            check_model(config, elements[data])
        except InputError as error:
            raise InputError(f"{point.label}: {error}") from None


def finished(folder: Path, point: Point) -> dict | None:
    """The result of an earlier run with this very configuration."""
    try:
        result = json.loads((folder / point.label / "result.json").read_text())
    except (OSError, ValueError):
        return None
    return result if result.get("config") == json.loads(json.dumps(point.raw)) else None


def run_all(points: list[Point], root: Path, jobs: int) -> Iterator[tuple[Point, dict | Exception]]:
    """Yield (point, result or error) as the runs end; Ctrl-C ends those that are going on and starts no other."""
    if jobs == 1:
        yield from ((point, attempt(point, root)) for point in points)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        futures = {pool.submit(attempt, point, root): point for point in points}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenExecutor as error:  # a process was killed, by the system when memory runs out
                yield futures[future], error
    finally:
        pool.shutdown(cancel_futures=True)


def attempt(point: Point, root: Path) -> dict | Exception:
    """The result of a run, or what ended it: one that diverges does not stop the others."""
    try:
        return run_point(point, root)
    except (CalculatorError, OSError, MemoryError) as error:
        return error


def run_point(point: Point, root: Path) -> dict:
    """Train one point, its lines in train.log, and collect what is to be compared."""
    config = parse(TrainConfig, point.raw, "")
    folder = root / config.output
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.log", "a") as file:
        path = train_as(config, point.raw, root, Console(file=file, width=120))
    potential = load_potential(path)
    history = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    errors = potential.metadata["errors"]
    sets = {"validation": errors["validation"], **errors.get("test", {})}
    return {
        "label": point.label,
        "settings": point.settings,
        "parameters": sum(weight.numel() for weight in potential.parameters()),
        "epochs": len(history),
        "minutes": round(sum(record["seconds"] for record in history) / 60, 2),
        "errors": {name: groups["all"] for name, groups in sets.items()},
        "config": point.raw,
    }


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(), path)
