"""Checks of names and choices, whose errors say what was expected."""

import difflib
import re
import reprlib
import types
import typing

from pydantic import ValidationError

from advbook.text import one_line

COLUMNS = "label other benchmark direction place largest method seed class_name statistic".split()
"""Columns of tables that have one more for each method: no network has one of these names."""


def check_choice(name: str, value, allowed: tuple) -> None:
    """Raise ValueError unless the value is one of these."""
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}, got {value!r}")


def refuse_unknown(unknown: set[str], known: list[str]) -> None:
    """Raise ValueError for unknown names, with the nearest known one."""
    for name in sorted(unknown, key=str):  # YAML reads 8 and yes as a number and a truth value
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        raise ValueError(f"unknown parameter {name!r}: {hint}")


def may_name(name: str) -> bool:
    """Whether tables and commands can tell a network by this name: a number is none."""
    valid = re.fullmatch(r"[A-Za-z0-9_.-]+", name) and re.search("[A-Za-z]", name)
    return bool(valid) and name not in COLUMNS


def check_distinct(what: str, names) -> None:
    """Refuse an empty name, and two that read alike: pages and charts tell things apart by name."""
    shown = [one_line(name) for name in names]
    if "" in shown:
        raise ValueError(f"{what}: number {shown.index('') + 1} of {len(shown)} is empty; name it")
    for i, name in enumerate(shown):
        if name in shown[:i]:
            raise ValueError(
                f"{what}: numbers {shown.index(name) + 1} and {i + 1} are both {name!r}; charts "
                "would show them as one, so add what tells them apart"
            )


def in_words(error: ValidationError, values: dict, kinds: dict) -> str:
    """The first of pydantic's errors as a sentence with the key, what is expected, and the value.

    Parameters
    ----------
    error : pydantic.ValidationError
    values, kinds : dict
        The values that were given, and the type of each key.
    """
    first = error.errors(include_url=False)[0]
    said, got = first.get("ctx", {}), first["input"]
    match first["type"]:
        case "value_error":
            return str(said["error"])
        case "literal_error":
            expected = "one of " + ", ".join(re.findall("'([^']*)'", said["expected"]))
        case "greater_than":
            expected = "positive"
        case "greater_than_equal":
            expected = f"at least {said['ge']:g}"
        case "less_than":
            expected = f"in [0, {said['lt']:g})"
        case "less_than_equal":
            expected, got = f"at most {said['le']:,.9g}", float(got)
        case _:
            kind, got = kinds[first["loc"][0]], values[first["loc"][0]]
            united = typing.get_origin(kind) in (typing.Union, types.UnionType)
            either = typing.get_args(kind) if united else (kind,)
            named = [str(one) if typing.get_args(one) else one.__name__ for one in either]
            expected = " or ".join(named).replace("NoneType", "null")
    got = f"{got:g}" if isinstance(got, float) else reprlib.repr(got)
    return f"{first['loc'][0]} is {expected}, got {got}"
