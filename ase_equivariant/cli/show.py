"""What appears on the terminal: progress and tables; plain lines where the output is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Update = Callable[[int, str], None]
CONTROL = {code: "\ufffd" for code in (*range(9), *range(11, 32), *range(127, 160))}  # all but tabs and newlines


def console() -> Console:
    return Console(highlight=False)


def say(text: str) -> None:
    """Print a line with rich's markup, never folded."""
    console().print(harmless(text), soft_wrap=True)


def harmless(text: str) -> str:
    """The text without control characters: what a model file says cannot steer the terminal."""
    return text.translate(CONTROL)


@contextmanager
def progress(total: int, what: str) -> Iterator[Update]:
    """A bar with the time left; yields `update(done, note)`. A line per tenth where there is no terminal."""
    out = console()
    if not out.is_terminal:
        tenth = max(1, total // 10)

        def update(done: int, note: str) -> None:
            if done % tenth == 0 or done == total:
                say(f"{what} {done}/{total}  {note}")

        yield update
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[note]}"),
    )
    with Progress(*columns, console=out) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


def say_written(**files: Path) -> None:
    """Tell where things are: what=path."""
    width = max(len(what) for what in files)
    for what, path in files.items():
        say(f"  {what.replace('_', ' '):<{width}}  [cyan]{escape(str(path))}[/]")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, right: bool = True) -> Table:
    """A table; the columns after the first are numbers, aligned to the right, unless told otherwise."""
    title = None if title is None else escape(harmless(title))
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        made.add_column(escape(harmless(column)), justify="right" if number and right else "left", overflow="fold")
    made.columns[0].min_width = min(max((len(row[0]) for row in rows), default=0), 24)  # names break last
    for row in rows:
        made.add_row(*(escape(harmless(cell)) for cell in row))
    return made
