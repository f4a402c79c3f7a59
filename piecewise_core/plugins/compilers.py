"""Compilers that plugins bring, each bound to who brought it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from piecewise_core.errors import ConfigError, PlatformConflict, PlatformError, PluginError
from piecewise_core.plugins.attribution import attributed_compiler
from piecewise_core.plugins.contract import check_compiler
from piecewise_core.plugins.discovery import PluginEntry, discover
from piecewise_core.plugins.registry import load
from piecewise_core.protocols import CompilerAdaptor

__all__ = ["brought_compiler", "find_compiler"]

log = logging.getLogger(__name__)

_Factory = Callable[[], CompilerAdaptor]

_CORES = frozenset({"eager", "inductor"})
"""Compilers that core resolves itself, so that a plugin's of that name would never be used."""


def find_compiler(name: str, known: Collection[str] = ()) -> CompilerAdaptor:
    """Make the compiler that a plugin calls ``name``; what it raises names who brought it.

    Takes and raises what ``brought_compiler`` does.
    """
    compiler, entry = brought_compiler(name, known)
    return attributed_compiler(compiler, str(entry))


def brought_compiler(name: str, known: Collection[str] = ()) -> tuple[CompilerAdaptor, PluginEntry]:
    """The compiler that a plugin calls ``name``, as it is, and the plugin.

    A plugin whose entry point has that name is loaded first, the others only if it has none.
    ``known``: names that need no plugin, for the message. Raises ConfigError when no plugin has
    it, PlatformConflict when two have, PluginError when making it fails or what is made is no
    CompilerAdaptor.
    """
    entries = discover()
    others: set[str] = set(known)
    failed: list[PlatformError] = []
    makers: list[tuple[PluginEntry, _Factory]] = []
    for tier in ([e for e in entries if e.name == name], [e for e in entries if e.name != name]):
        for entry in tier:
            try:
                brought = load(entry).call("piecewise_compilers", _factories) or {}
            except PlatformError as exc:
                log.warning("skipping the compilers of a piecewise plugin: %s", exc)
                failed.append(exc)
                continue
            others.update(brought)
            makers += [(entry, brought[name])] if name in brought else []
        if makers:
            return _make(name, makers)
    raise ConfigError(_unknown(name, others, failed))


def _make(
    name: str, makers: list[tuple[PluginEntry, _Factory]]
) -> tuple[CompilerAdaptor, PluginEntry]:
    if len(makers) > 1:
        sides = " and ".join(str(entry) for entry, _ in makers)
        raise PlatformConflict(f"compiler {name!r} is brought by {sides}; uninstall one of them")
    (entry, factory), *_ = makers
    try:
        compiler = factory()
    except Exception as exc:
        raise PluginError(
            f"{entry}: making compiler {name!r} (hook piecewise_compilers) failed with "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    check_compiler(compiler, entry)
    return compiler, entry


def _unknown(name: str, others: Iterable[str], failed: list[PlatformError]) -> str:
    names = sorted(others)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    message = f"compiler={name!r} is unknown; {hint}there are: {', '.join(names) or 'none'}"
    return message + "".join(f"\n  - could not ask {exc}" for exc in failed)


def _factories(compilers: Any) -> dict[str, _Factory]:
    if not isinstance(compilers, Mapping):
        raise TypeError(f"expected a mapping of name to function, got {compilers!r}")
    for name, factory in compilers.items():
        if not isinstance(name, str) or not callable(factory):
            raise TypeError(f"expected name: function, got {name!r}: {factory!r}")
        if name in _CORES:
            raise ValueError(f"{name!r} is a compiler of core's own; give yours another name")
    return dict(compilers)
