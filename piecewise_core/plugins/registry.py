"""Load one plugin, in isolation, and call its hooks; every failure names its distribution.

Each plugin gets a pluggy manager of its own, so a plugin that fails leaves nothing behind, and
the order of registration can decide nothing.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any, TypeVar

import pluggy

from piecewise_core import hookspecs
from piecewise_core.errors import PluginError
from piecewise_core.plugins.discovery import PluginEntry
from piecewise_core.plugins.traces import watched_import

__all__ = ["Plugin", "describe", "load"]

T = TypeVar("T")


class Plugin:
    """A plugin whose module is imported and whose hooks have valid names and arguments."""

    def __init__(self, entry: PluginEntry, manager: pluggy.PluginManager) -> None:
        self.entry = entry
        self._manager = manager

    def call(self, hook: str, into: Callable[[Any], T], **arguments: Any) -> T | None:
        """Call ``hook`` with ``arguments`` and convert what it returns; None where it has none.

        ``into``: runs inside the same guard, so that a generator that fails half-way is
        attributed too. Raises PluginError naming distribution, version and hook.
        """
        try:
            results = getattr(self._manager.hook, hook)(**arguments)
            return into(results[0]) if results else None
        except PluginError:
            raise
        except Exception as exc:
            raise PluginError(
                f"{self.entry}: its hook {hook} failed with {describe(exc)}; "
                f"update or uninstall {self.entry.distribution}"
            ) from exc


def load(entry: PluginEntry) -> Plugin:
    """Import the module of ``entry`` and register it.

    Raises PluginError naming distribution, version and reason, if the import fails, a hook is
    misspelt or takes arguments it is not given, or the module implements no hook.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    module = _import(entry)
    try:
        manager.register(module)
    except pluggy.PluginValidationError as exc:
        raise PluginError(f"{entry}: module {entry.module} has an invalid hook: {exc}") from exc
    _check_names(entry, manager, module)
    return Plugin(entry, manager)


def _import(entry: PluginEntry) -> Any:
    """The object that the entry point names, ``package.module`` or ``package.module:attr``."""
    module, _, attribute = (part.strip() for part in entry.module.partition(":"))
    try:
        # Importing what is there changes nothing, and is asked for at every compile.
        with nullcontext() if module in sys.modules else watched_import(entry):
            found: Any = import_module(module)
        for name in filter(None, attribute.split(".")):
            found = getattr(found, name)
    # A module that calls sys.exit() on import must not take the user's process with it.
    except (Exception, SystemExit) as exc:
        raise PluginError(
            f"{entry}: importing its entry point {entry.name} = {entry.module!r} failed with "
            f"{describe(exc)}; reinstall or uninstall {entry.distribution}"
        ) from exc
    return found


def _check_names(entry: PluginEntry, manager: pluggy.PluginManager, plugin: Any) -> None:
    """Refuse a plugin with an unknown hook, which pluggy would accept in silence, or with none."""
    callers = manager.get_hookcallers(plugin) or []
    if callers and all(caller.has_spec() for caller in callers):
        return
    known = [n for n in vars(hookspecs) if manager.parse_hookspec_opts(hookspecs, n) is not None]
    for caller in callers:
        if not caller.has_spec():
            near = difflib.get_close_matches(caller.name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the hooks are {', '.join(known)}"
            raise PluginError(
                f"{entry}: module {entry.module} implements {caller.name}, which is not a hook; "
                + hint
            )
    if not callers:
        raise PluginError(
            f"{entry}: module {entry.module} implements no hook; mark one of {', '.join(known)} "
            "with @piecewise_core.hookspecs.hookimpl"
        )


def describe(error: BaseException) -> str:
    """``error`` as its kind and text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
