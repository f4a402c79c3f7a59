"""Config as plain data, JSON and TOML, and back.

Plain data has string keys only (JSON and TOML allow no others), so positions and tensor
dimensions become digits and are read back as ints.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from piecewise_core.config_dims import Dim
from piecewise_core.config_fields import nearest
from piecewise_core.errors import ConfigError

__all__ = [
    "arguments",
    "check_keys",
    "dump_json",
    "dump_toml",
    "load_json",
    "load_toml",
    "plain",
]


def plain(value: Any) -> Any:
    """Return a normalised field as lists, dicts with string keys, and scalars."""
    if isinstance(value, Dim):
        found: dict[str, Any] = {"name": value.name, "min": value.min, "max": value.max}
        return found if value.multiple_of == 1 else {**found, "multiple_of": value.multiple_of}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def arguments(data: object, known: Collection[str]) -> dict[str, Any]:
    """Return Config's keyword arguments from plain data, ``dynamic``'s Dims rebuilt.

    Dims and Config's own containers are accepted as they are. Raises ConfigError for a key that
    is not in ``known``.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"Config: {data!r} is {type(data).__name__}; give a mapping of fields")
    check_keys(data, known)
    found = dict(data)
    dynamic = found.get("dynamic")
    if isinstance(dynamic, Mapping):
        found["dynamic"] = {key: _axes(key, axes) for key, axes in dynamic.items()}
    return found


def check_keys(data: Mapping[Any, Any], known: Collection[str]) -> None:
    """Raise ConfigError for the first key of ``data`` that is no field."""
    for key in data:
        if key not in known:
            raise ConfigError(
                f"Config: {key!r} is not a field ({', '.join(known)}){nearest(key, known)}"
            )


def dump_json(data: Mapping[str, Any]) -> str:
    """Return ``data`` as indented JSON."""
    import json

    return json.dumps(data, indent=2)


def load_json(text: str) -> Any:
    """Return what ``text`` holds. Raises ConfigError when it is not JSON."""
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"Config: not JSON: {error}") from error


def dump_toml(data: Mapping[str, Any]) -> str:
    """Return ``data`` as TOML without what is None, which TOML cannot say."""
    try:
        import tomli_w
    except ModuleNotFoundError as error:
        raise _no_toml("writing TOML needs tomli-w") from error
    return tomli_w.dumps({key: value for key, value in data.items() if value is not None})


def load_toml(text: str) -> Any:
    """Return what ``text`` holds. Raises ConfigError when it is not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ModuleNotFoundError as error:
            raise _no_toml("reading TOML on Python 3.10 needs tomli") from error
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"Config: not TOML: {error}") from error


def _no_toml(what: str) -> ConfigError:
    return ConfigError(
        f"Config: {what}, which is not installed; "
        "pip install 'piecewise-core[toml]', or use to_json and from_json"
    )


def _axes(argument: object, axes: Any) -> Any:
    """One argument's {tensor dimension: Dim}; what cannot be read is left for Config to refuse."""
    if not isinstance(axes, Mapping):
        return axes
    return {_axis(key): _dim(argument, key, dim) for key, dim in axes.items()}


def _axis(key: Any) -> Any:
    digits = key.removeprefix("-") if isinstance(key, str) else ""
    return int(key) if digits.isascii() and digits.isdigit() else key


def _dim(argument: object, axis: object, data: Any) -> Any:
    if not isinstance(data, Mapping):
        return data
    where = f"Config.dynamic[{argument!r}][{axis}]"
    known = ("name", "min", "max", "multiple_of")
    for key in data:
        if key not in known:
            raise ConfigError(
                f"{where}: {key!r} is not part of a Dim ({', '.join(known)}){nearest(key, known)}"
            )
    if "name" not in data:
        raise ConfigError(f"{where}: {dict(data)} has no name; add one")
    return Dim(**data)
