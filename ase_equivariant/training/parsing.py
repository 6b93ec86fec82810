"""Plain data as frozen dataclasses, strictly.

An unknown key, a lacking key or a wrong type is an `InputError` that names the field, the value and what is allowed.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ase.calculators.calculator import InputError

from ase_equivariant.text import shown


def parse(kind: type, value: object, name: str) -> Any:
    """`value`, read from YAML, as the annotated type `kind`; InputError naming the field otherwise."""
    if is_dataclass(kind):
        return parse_section(kind, value, name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return parse_union(arguments, value, name)
    if origin is Literal and value in arguments:
        return value
    if origin is list and isinstance(value, list) and value:
        return [parse(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: parse(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is Any or (isinstance(kind, type) and type(value) is kind and kind is not float):
        return value
    if kind is float and type(value) in (int, str):  # YAML reads 1e-3 as a word
        with suppress(ValueError, OverflowError):
            value = float(value)
    if kind is float and isinstance(value, float) and math.isfinite(value):
        return value
    raise InputError(f"{name} is {shown(value)}; allowed: {describe(kind)}")


def with_numbers(kind: type, value: object) -> Any:
    """`value`, with floats for the words that YAML makes of numbers such as 1e-3 where the annotated type has floats.

    Anything else stays as it is, for the type itself to check.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is float and isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        return {key: with_numbers(hints.get(key, Any), item) for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return [with_numbers(arguments[0], item) for item in value]
    if origin in (Union, types.UnionType) and str not in arguments:
        for each in arguments:
            value = with_numbers(each, value)
    return value


def parse_section(kind: type, value: object, name: str) -> Any:
    """A mapping as the dataclass `kind`."""
    title = name or "the configuration"
    known = {f.name: f for f in fields(kind)}
    if not isinstance(value, Mapping):
        raise InputError(f"{title} is {shown(value)}; allowed: a section with the keys {', '.join(known)}")
    for key in value:
        if key not in known:
            raise InputError(f"unknown key {shown(key)} in {title}; allowed: {', '.join(known)}")
    for key, f in known.items():
        if key not in value and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{title} lacks the key {key!r}")
    hints = get_type_hints(kind)
    prefix = f"{name}." if name else ""
    return kind(**{key: parse(hints[key], item, prefix + key) for key, item in value.items()})


def parse_union(kinds: tuple[type, ...], value: object, name: str) -> Any:
    """`value` as the first of several types that takes it."""
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if (get_origin(kind) or kind) is type(value) or get_origin(kind) is Literal or kind is float:
            try:
                return parse(kind, value, name)
            except InputError:
                if isinstance(value, (dict, list)):
                    raise
    allowed = " or ".join(describe(kind) for kind in kinds)
    raise InputError(f"{name} is {shown(value)}; allowed: {allowed}")


def describe(kind: type) -> str:
    """A type in words."""
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(k) for k in arguments)
    if origin is Literal:
        return " or ".join(f'"{a}"' for a in arguments)
    if origin is list:
        return f"a list, each item {describe(arguments[0])}"
    if origin is dict:
        return "a table of names and values"
    return names.get(kind, str(kind))
