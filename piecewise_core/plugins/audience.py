"""Which plugins' passes and rewrites a model gets: those of the platform that it runs on."""

from __future__ import annotations

from piecewise_core.plugins.announce import announced
from piecewise_core.plugins.discovery import PluginEntry
from piecewise_core.plugins.peek import may_implement
from piecewise_core.plugins.registry import Plugin, load
from piecewise_core.plugins.selection import Selected

__all__ = ["Audience"]


class Audience:
    """Tells whether a plugin speaks to models on ``selected``.

    Its own plugin does, and one that announces no platform at all. One that announces others does
    not, and one that announces the same name does where ``selected`` comes from no plugin.
    ``installed``: all that there are.
    """

    def __init__(self, selected: Selected) -> None:
        self._name = selected.info.name
        self.installed = selected.installed
        self._origin = selected.origin if selected.origin in self.installed else None
        self._answers: dict[PluginEntry, bool] = {}
        self._loaded: dict[PluginEntry, Plugin] = {}

    def plugin(self, entry: PluginEntry) -> Plugin:
        """The plugin, loaded once. Raises PluginError."""
        if entry not in self._loaded:
            self._loaded[entry] = load(entry)
        return self._loaded[entry]

    def has(self, entry: PluginEntry) -> bool:
        """Whether it does. May import it. Raises PluginError where that, or a hook, fails."""
        if entry not in self._answers:
            self._answers[entry] = self._asked(entry)
        return self._answers[entry]

    def _asked(self, entry: PluginEntry) -> bool:
        if entry == self._origin or not may_implement(entry, "piecewise_platforms"):
            return True
        names = [info.name for info in announced(self.plugin(entry))]
        return not names or (self._origin is None and self._name in names)
