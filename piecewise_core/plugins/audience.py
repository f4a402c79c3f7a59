"""Which plugins' passes and rewrites a model gets: those of the platform that it runs on."""

from __future__ import annotations

from piecewise_core.plugins.announce import announced
from piecewise_core.plugins.discovery import PluginEntry, discover
from piecewise_core.plugins.peek import may_implement
from piecewise_core.plugins.registry import load
from piecewise_core.plugins.selection import Selected

__all__ = ["Audience", "origin_of"]


def origin_of(selected: Selected) -> PluginEntry | None:
    """The plugin that the platform comes from, also where it was given as an object."""
    if selected.considered:
        return selected.considered[0].origin
    package = type(selected.platform).__module__.partition(".")[0]
    return next((e for e in discover() if e.module.partition(".")[0] == package), None)


class Audience:
    """Tells whether a plugin speaks to models on ``selected``.

    Its own plugin does, and one that announces no platform at all. One that announces others does
    not, and one that announces the same name does where ``selected`` comes from no plugin.
    """

    def __init__(self, selected: Selected) -> None:
        self._name = selected.info.name
        origin = origin_of(selected)
        self._origin = origin if origin in discover() else None

    def has(self, entry: PluginEntry) -> bool:
        """Whether it does. May import it. Raises PluginError where that, or a hook, fails."""
        if entry == self._origin or not may_implement(entry, "piecewise_platforms"):
            return True
        names = [info.name for info in announced(load(entry))]
        return not names or (self._origin is None and self._name in names)
