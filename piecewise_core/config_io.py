"""Config as plain data, JSON and TOML, and back.

Plain data has string keys only (JSON and TOML allow no others), so positions and tensor
dimensions become digits and are read back as ints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from typing_extensions import Self

from piecewise_core.config_dims import Dim
from piecewise_core.config_fields import nearest
from piecewise_core.errors import ConfigError

__all__ = ["PlainData", "arguments", "check_keys"]


class PlainData:
    """The part of Config that writes and reads it, and names fields that there are not."""

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """Raise ConfigError for what is no field, naming the nearest."""
        config: Any = cls
        check_keys(named, [f.name for f in fields(config)])
        if given:
            raise ConfigError(
                f"Config takes fields by name, not {type(given[0]).__name__} by position; write "
                'Config(splitting_ops=(...), dynamic={"x": {0: Dim("rows", max=64)}})'
            )
        return super().__new__(cls)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but ``sign_key``, which another process gets from its own user."""
        return {**vars(self), "sign_key": None}

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # it cannot be changed

    def to_dict(self) -> dict[str, Any]:
        """Return what can be plain data: not ``on_event``, nor ``sign_key``, nor a group."""
        config: Any = self
        left_out = {"on_event", "sign_key"}
        left_out |= {"ranks"} if config.ranks not in ("auto", None) else set()
        names = [f.name for f in fields(config) if f.name not in left_out]
        return {name: _plain(getattr(self, name)) for name in names}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the Config that ``data`` describes, written as ``to_dict`` writes it.

        A missing field has its default. Raises ConfigError for an unknown one, naming the nearest.
        """
        config: Any = cls
        return cls(**arguments(data, [f.name for f in fields(config)]))

    def to_json(self) -> str:
        """Return the fields as a JSON object."""
        import json

        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the Config that a JSON object describes; see ``from_dict``."""
        import json

        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"Config: not JSON: {error}") from error
        return cls.from_dict(data)

    def to_toml(self) -> str:
        """Return the fields as TOML, those that are None left out. Needs the extra ``toml``."""
        try:
            import tomli_w
        except ModuleNotFoundError as error:
            raise _no_toml("writing TOML needs tomli-w") from error
        found = self.to_dict()
        if "ranks" in found:
            found["ranks"] = found["ranks"] or "none"
        return tomli_w.dumps({k: v for k, v in found.items() if v is not None})

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Return the Config that a TOML document describes; see ``from_dict``."""
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            try:
                import tomli as tomllib
            except ModuleNotFoundError as error:
                raise _no_toml("reading TOML on Python 3.10 needs tomli") from error
        try:
            data = tomllib.loads(text)
        except ValueError as error:
            raise ConfigError(f"Config: not TOML: {error}") from error
        return cls.from_dict(data)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Return the Config in a file, TOML or JSON by its suffix; see ``from_dict``.

        Raises ConfigError naming the file, and the nearest field for one that is unknown.
        """
        file = Path(path)
        readers = {".toml": cls.from_toml, ".json": cls.from_json}
        read = readers.get(file.suffix.lower())
        if read is None:
            raise ConfigError(f"{file}: give a file whose name ends in {' or '.join(readers)}")
        try:
            return read(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is no text in UTF-8") from error
        except ConfigError as error:
            raise type(error)(f"{file}: {error}") from error


def _plain(value: Any) -> Any:
    """Return a normalised field as lists, dicts with string keys, and scalars."""
    if isinstance(value, Dim):
        found: dict[str, Any] = {"name": value.name, "min": value.min, "max": value.max}
        return found if value.multiple_of == 1 else {**found, "multiple_of": value.multiple_of}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
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
