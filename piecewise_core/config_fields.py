"""Checks that turn what a user gives for one Config field into its one normal form.

Every function names the field first, ``Config.<field>: ``, so that a wrapper can tell which
setting was at fault. ``notes`` collects what was put right without being refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from piecewise_core.config_dims import Dim, FrozenMap, integer, nearest
from piecewise_core.errors import ConfigError
from piecewise_core.ranges import Sizes

__all__ = [
    "choice",
    "count",
    "endpoints",
    "flag",
    "limit",
    "name",
    "names",
    "nearest",
    "path",
    "rewrites",
    "share",
    "sizes",
]

T = TypeVar("T")


def choice(field: str, value: object, allowed: Sequence[str]) -> None:
    """Check that ``value`` is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(
            f"Config.{field}: {value!r} is not one of {', '.join(map(repr, allowed))}"
            f"{nearest(value, allowed)}"
        )


def flag(field: str, value: object) -> None:
    """Check that ``value`` is True or False, not merely truthy."""
    if not isinstance(value, bool):
        raise ConfigError(
            f"Config.{field}: {value!r} is {type(value).__name__}, not bool; give True or False"
        )


def count(field: str, value: object) -> int:
    """Return a positive whole number."""
    if number := integer(f"Config.{field}", value):
        return number
    raise ConfigError(f"Config.{field}: 0 allows none; give 1 or more")


def limit(field: str, value: object, of: str = "Config") -> int | None:
    """Return a positive number of bytes, or None. ``of``: whose field it is."""
    if value is None:
        return None
    if number := integer(f"{of}.{field}", value):
        return number
    raise ConfigError(f"{of}.{field}: 0 bytes leave no room; give more, or None for no limit")


def share(field: str, value: object) -> float:
    """Return a share of calls: above 0, at most 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(
            f"Config.{field}: {value!r} is {type(value).__name__}, not a number; give a share of "
            "calls such as 0.01"
        )
    if not 0 < value <= 1:
        raise ConfigError(
            f"Config.{field}: {value!r} is not a share of calls; give a number above 0 and up to "
            '1, or check="cheap" to verify none'
        )
    return float(value)


def path(field: str, value: object, shown: str = "") -> str | None:
    """Return a path as str, or None; nothing is looked up or expanded.

    ``shown``: what a message says in place of the value.
    """
    if value is None:
        return None
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str) or not found:
        raise ConfigError(
            f"Config.{field}: {shown or repr(value)} is not a path; give a str, a pathlib.Path, or "
            "None"
        )
    return found


def name(field: str, value: object) -> None:
    """Check that ``value`` is a non-empty string or None."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigError(f"Config.{field}: {value!r} is not a name; give a string or None")


def names(field: str, value: object, notes: list[str]) -> tuple[str, ...] | str:
    """Return operator names as a tuple without duplicates, or ``"auto"``.

    Whether an operator of that name exists is known when the graph is split.
    """
    if isinstance(value, str) and value == "auto":
        return "auto"
    found = rewrites(field, value, notes, "ns::op", ', or "auto"')
    if "auto" in found:
        raise ConfigError(f'Config.{field}: "auto" stands alone; drop it or the other names')
    return found


def rewrites(
    field: str, value: object, notes: list[str], example: str = "mask_terms", more: str = ""
) -> tuple[str, ...]:
    """Return names as a tuple without duplicates; whose they are is known when a model is set up.

    ``example``, ``more``: what a message proposes.
    """
    listed = _listed(field, value, f'a tuple of names such as ("{example}",){more}')
    for item in listed:
        if not isinstance(item, str) or not item:
            raise ConfigError(
                f'Config.{field}: {item!r} is not a name; give strings like "{example}"'
            )
    found = tuple(dict.fromkeys(listed))
    if len(found) < len(listed):
        notes.append(f"Config.{field}: {listed} holds duplicates; using {found}")
    return found


def sizes(
    field: str, value: object, dims: Sequence[Dim], notes: list[str]
) -> tuple[int | Sizes, ...]:
    """Return exact sizes in order: ints for one dim, else tuples of one int per dim.

    ``dims``: empty when they are not known yet, or when there are none, and the one size is
    ``()``; then bounds cannot be checked, but every entry must have the same number of sizes.
    """
    word = ', or "capture_sizes"' if field == "compile_sizes" else ""
    listed = _listed(field, value, f"a tuple of sizes such as (8, 16){word}")
    found = [_entry(field, item) for item in listed]
    width = len(dims) if dims else len(found[0]) if found else 1
    for item, entry in zip(listed, found, strict=True):
        if len(entry) != width:
            _wrong_width(field, item, width, dims)
        for size, dim in zip(entry, dims):  # noqa: B905 - no dims, no bounds to check
            _in_bounds(f"Config.{field}", size, dim)
            if size not in dim.sizes:
                raise ConfigError(
                    f"Config.{field}: {size} is no multiple of {dim.multiple_of}, as sizes of dim "
                    f"{dim.name!r} are; write {dim.sizes.nearest(size)}, or change Dim.multiple_of"
                )
    quiet = isinstance(value, (set, frozenset))
    if width == 1:
        return _ordered(field, [size for (size,) in found], notes, quiet=quiet)
    return _ordered(field, found, notes, quiet=quiet)


def endpoints(
    value: object, dims: Sequence[Dim], notes: list[str]
) -> tuple[int, ...] | FrozenMap[str, tuple[int, ...]]:
    """Return inclusive range ends in order: ints, or by dim name where there are several dims.

    ``dims``: empty when they are not known yet; then neither names nor bounds are checked.
    """
    field = "compile_ranges_endpoints"
    if not isinstance(value, Mapping):
        found = _ends(field, value, dims[0] if len(dims) == 1 else None, notes)
        if found and len(dims) > 1:
            listed = ", ".join(repr(d.name) for d in dims)
            raise ConfigError(
                f"Config.{field}: {found} does not say which dim it cuts, and there are "
                f"{len(dims)}: {listed}; write {{{dims[0].name!r}: {found}}}"
            )
        return found
    known = {d.name: d for d in dims}
    for key in value:
        if not isinstance(key, str) or (known and key not in known):
            raise ConfigError(
                f"Config.{field}: {key!r} is not the name of a dim "
                f"({', '.join(map(repr, known)) or 'a string'}){nearest(key, known)}"
            )
    by_dim = {
        key: _ends(f"{field}[{key!r}]", value[key], known.get(key), notes)
        for key in (known or sorted(value))
        if key in value
    }
    kept = {key: ends for key, ends in by_dim.items() if ends}
    if len(dims) == 1 or not kept:
        return next(iter(kept.values()), ())
    return FrozenMap(kept)


def _ends(field: str, value: object, dim: Dim | None, notes: list[str]) -> tuple[int, ...]:
    listed = _listed(field, value, "a tuple of sizes such as (8, 32)")
    found = [integer(f"Config.{field}", item) for item in listed]
    if dim is not None:
        for end in found:
            _in_bounds(f"Config.{field}", end, dim)
    return _ordered(field, found, notes, quiet=isinstance(value, (set, frozenset)))


def _listed(field: str, value: object, wanted: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(f"Config.{field}: {value!r} is {type(value).__name__}; give {wanted}")
    return tuple(value)


def _entry(field: str, item: object) -> Sizes:
    if isinstance(item, (tuple, list)):
        return tuple(integer(f"Config.{field}", size) for size in item)
    return (integer(f"Config.{field}", item),)


def _wrong_width(field: str, item: object, width: int, dims: Sequence[Dim]) -> None:
    of = f" ({', '.join(repr(d.name) for d in dims)})" if dims else ", like the first entry"
    raise ConfigError(
        f"Config.{field}: {item!r} is not one size for each of {width} dim"
        f"{'' if width == 1 else 's'}{of}; write "
        + {0: "()", 1: "an int"}.get(width, f"a tuple of {width} ints")
    )


def _in_bounds(where: str, size: int, dim: Dim) -> None:
    if dim.min <= size <= dim.max:
        return
    side, end, change = ("above", "max", "raise") if size > dim.max else ("below", "min", "lower")
    raise ConfigError(
        f"{where}: {size} is {side} the {end} of dim {dim.name!r}, whose bounds are "
        f"[{dim.min}, {dim.max}], and is never warmed; remove it or {change} Dim.{end}"
    )


def _ordered(field: str, found: list[T], notes: list[str], *, quiet: bool) -> tuple[T, ...]:
    """``found`` sorted without duplicates; says so in ``notes`` unless ``quiet`` (a set)."""
    ordered = tuple(sorted(set(found)))  # type: ignore[type-var]
    if not quiet and list(ordered) != found:
        notes.append(f"Config.{field}: {found} is unsorted or holds duplicates; using {ordered}")
    return ordered
