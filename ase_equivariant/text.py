"""What users or files say, as it stands in an error message."""

from __future__ import annotations

import reprlib

LONGEST = 300  # characters


class _Short(reprlib.Repr):
    """Cut while it is made: aliases in a file of a few bytes unfold to gigabytes."""

    def __init__(self):
        super().__init__()
        self.maxstring, self.maxother, self.maxlevel = 100, 100, 2

    def repr_OrderedDict(self, value: dict, level: int) -> str:  # noqa: N802  # as reprlib looks for it
        return self.repr_dict(value, level)


_short = _Short()


def shown(value: object) -> str:
    """A value as it stands in an error message: a long one is cut, its lines are joined."""
    text = " ".join(line.strip() for line in _short.repr(value).splitlines())
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def said(value: object) -> str:
    """Text without quotation marks, and anything else as `shown` gives it."""
    return value[: _short.maxstring] if isinstance(value, str) else shown(value)
