"""What is tested: a platform named as an installed plugin, or given as an object."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from piecewise_core.errors import NoPlatform, PlatformConflict, PlatformError, PluginError
from piecewise_core.plugins import PluginEntry, discover
from piecewise_core.plugins.announce import announced, check_info
from piecewise_core.plugins.contract import check_platform
from piecewise_core.plugins.probing import create_platform, run_probe
from piecewise_core.plugins.registry import load
from piecewise_core.protocols import Platform, PlatformInfo, Probe
from piecewise_core.testing.conformance.compilers import CompilerUnderTest, host

__all__ = ["Subject", "find_subject"]

_HERE = PluginEntry("given as an object", "given", "", "")


@dataclass
class Subject:
    """One platform under test.

    ``entry``: the entry point that brings it, None for an object. ``info``: what the plugin
    announces, None for a Platform. ``source``: makes a Platform; for an object given as it is,
    gives that one. ``brought``: the entry point that brings no platform, but its compiler.
    """

    name: str
    device_type: str
    entry: PluginEntry | None
    info: PlatformInfo | None
    source: Callable[[], Any]
    _probe: Probe | None = field(default=None, repr=False)
    _made: Any = field(default=None, repr=False)
    fresh: bool = False
    brought: PluginEntry | None = None

    @property
    def origin(self) -> PluginEntry:
        """Who brings it, for messages."""
        return self.entry or self.brought or _HERE

    def probe(self) -> Probe:
        """Whether the hardware is here; asked once. Raises what ``run_probe`` raises."""
        if self._probe is None:
            if self.info is None:
                self._probe = Probe(True, "given as an object")
            else:
                self._probe = run_probe(self.info, self.origin)
        return self._probe

    def make(self) -> Platform:
        """The Platform, checked: a new one for each test where a factory was given, else one.

        Raises PluginError saying how it departs from the Protocols.
        """
        if self.fresh or self._made is None:
            if self.info is not None:
                self._made = create_platform(self.info, self.origin)
            else:
                self._made = self.source()
                check_platform(self._made, self.origin)
        made: Platform = self._made
        return made


def find_subject(platform: Any) -> Subject:
    """What ``platform = ...`` of a subclass stands for.

    ``platform``: the name of an installed platform ("acme", or "acme@piecewise-acme" where two
    plugins share a name), "module:attribute" of one that no plugin announces, a PlatformInfo, a
    Platform, a function or class that makes one, or a CompilerUnderTest.

    Raises NoPlatform naming the nearest installed name, PlatformConflict, and PluginError where
    the plugin cannot be loaded.
    """
    if isinstance(platform, CompilerUnderTest):
        made, entry = host(platform.name, _HERE)
        subject = _given(made, lambda: made, fresh=False)
        subject.brought = entry
        return subject
    if isinstance(platform, str) and ":" in platform:
        return find_subject(_imported(platform))
    if isinstance(platform, str):
        return _installed(platform)
    if isinstance(platform, PlatformInfo):
        check_info(platform, _HERE)
        return Subject(platform.name, platform.device_type, None, platform, platform.create)
    if hasattr(platform, "compiler") and not isinstance(platform, type):
        return _given(platform, lambda: platform, fresh=False)
    if callable(platform):
        return _given(_first(platform), platform, fresh=True)
    raise NoPlatform(
        f"platform = {platform!r} is no platform: give the name of an installed one, a "
        "PlatformInfo, a Platform, or a function that makes one"
    )


def _given(example: Any, source: Callable[[], Any], *, fresh: bool) -> Subject:
    name = str(getattr(example, "name", type(example).__name__.lower()))
    return Subject(
        name, str(getattr(example, "device_type", "cpu")), None, None, source, fresh=fresh
    )


def _first(make: Callable[[], Any]) -> Any:
    """What a function or class makes, to see what it is called."""
    try:
        return make()
    except Exception as error:
        name = getattr(make, "__name__", repr(make))
        raise PluginError(
            f"{name}(), given as the platform, raised {type(error).__name__}: {error}; it must "
            "make a Platform when called without arguments"
        ) from error


def _imported(place: str) -> Any:
    """The object that "module:attribute" names."""
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise PluginError(
            f"importing {place!r} failed with {type(error).__name__}: {error}; give "
            '"package.module:name" of a Platform, or of what makes one'
        ) from error


def _installed(wanted: str) -> Subject:
    """Load the plugin whose entry point has this name; the others only if there is none."""
    name, _, distribution = wanted.partition("@")
    entries = [e for e in discover() if distribution in ("", e.distribution, e.project)]
    likely = [e for e in entries if e.name == name]
    found = [
        (entry, info) for entry in likely for info in announced(load(entry)) if info.name == name
    ]
    if not found:
        found = [pair for pair in _others(entries, likely) if pair[1].name == name]
    if len(found) > 1:
        sides = " and ".join(str(entry) for entry, _ in found)
        raise PlatformConflict(
            f"{wanted!r} is announced by {sides}; name one as {name}@{found[0][0].project}"
        )
    if not found:
        raise NoPlatform(_unknown(wanted, entries))
    entry, info = found[0]
    return Subject(info.name, info.device_type, entry, info, info.create)


def _others(
    entries: list[PluginEntry], loaded: list[PluginEntry]
) -> list[tuple[PluginEntry, PlatformInfo]]:
    """What the remaining plugins announce; one that is broken and was not asked for is passed."""
    found = []
    for entry in entries:
        if entry not in loaded:
            try:
                found += [(entry, info) for info in announced(load(entry))]
            except PlatformError:
                continue
    return found


def _unknown(wanted: str, entries: list[PluginEntry]) -> str:
    names = sorted({entry.name for entry in entries})
    near = difflib.get_close_matches(wanted.partition("@")[0], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(names) or 'none'}"
    return f"no installed plugin brings a platform {wanted!r}; {hint}"
