"""Checks of names and choices, whose errors say what was expected."""

import difflib
import re
import reprlib

from pydantic import ValidationError

from advbook.text import one_line

COLUMNS = "label other benchmark direction place largest method seed class_name statistic".split()
"""Columns of tables that have one more for each method. No network has one of these names."""


def check_choice(name: str, value, allowed: tuple) -> None:
    """Raise ValueError unless the value is one of these, with the nearest of them."""
    if value not in allowed:
        close = difflib.get_close_matches(str(value), map(str, allowed), n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}, got {value!r}{hint}")


def refuse_unknown(unknown: set[str], known: list[str]) -> None:
    """Raise ValueError for unknown names, with the nearest known one."""
    for name in sorted(unknown, key=str):  # YAML reads 8 and yes as a number and a truth value
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        raise ValueError(f"unknown parameter {name!r}: {hint}")


def may_name(name: str) -> bool:
    """Whether tables and commands can tell a network by this name: a number is none."""
    valid = re.fullmatch(r"[A-Za-z0-9_.-]+", name) and re.search("[A-Za-z]", name)
    number = re.fullmatch(r"[+-]?([\d_.]+e[+-]?[\d_]+|inf|infinity|nan)", name, re.IGNORECASE)
    return bool(valid) and not number and name not in COLUMNS


def check_distinct(what: str, names) -> None:
    """Refuse an empty name, and two that read alike: pages and charts tell things apart by name."""
    shown = [one_line(name) for name in names]
    for i, name in enumerate(shown):
        if not name or name in shown[:i]:
            raise ValueError(
                f"{what}: number {i + 1} of {len(shown)}, {name!r}, is empty or there already; "
                "pages tell them apart by name"
            )


def in_words(error: ValidationError) -> str:
    """The first of pydantic's errors as a sentence: the key, what is expected, and the value."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "missing":
        return f"the key {'.'.join(map(str, first['loc']))!r} is missing"
    expected = first["msg"].removeprefix("Input should be ")
    return f"{first['loc'][0]} is {expected}, got {reprlib.repr(first['input'])}"
