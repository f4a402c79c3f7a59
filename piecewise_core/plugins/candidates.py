"""Platforms that might be selected, each with where it comes from and how it fared."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from piecewise_core.errors import PlatformError
from piecewise_core.plugins.announce import announced, check_api_version
from piecewise_core.plugins.discovery import PluginEntry, discover
from piecewise_core.plugins.probing import run_probe
from piecewise_core.plugins.registration import in_process
from piecewise_core.plugins.registry import load
from piecewise_core.protocols import PlatformInfo, Probe

__all__ = ["Candidate", "Status", "announce", "examine", "local", "survey", "unloaded"]

log = logging.getLogger(__name__)

Status = Literal["active", "found", "skipped", "failed"]


@dataclass(frozen=True)
class Candidate:
    """One platform, or one plugin that could not say which platforms it brings.

    ``status``: "found" (can be used), "active" (was selected), "skipped" (does not apply, or was
    not needed), "failed" (broken; ``error`` says how). ``info``: None for a plugin that was not
    loaded. ``probe``: its answer, when it was asked.
    """

    origin: PluginEntry
    info: PlatformInfo | None
    status: Status
    reason: str
    probe: Probe | None = None
    error: PlatformError | None = None

    @property
    def name(self) -> str:
        """The platform's name, or the entry point's where the platform is not known."""
        return self.info.name if self.info else self.origin.name

    def activate(self, reason: str) -> Candidate:
        """The same candidate, selected for ``reason``."""
        return replace(self, status="active", reason=reason)

    def skip(self, reason: str) -> Candidate:
        """The same candidate, not used because of ``reason``."""
        return replace(self, status="skipped", reason=reason)

    def fail(self, error: PlatformError) -> Candidate:
        """The same candidate, broken by ``error``."""
        return replace(self, status="failed", reason=str(error), error=error)

    def warn(self) -> Candidate:
        """Log why a broken plugin that nobody asked for is passed over; returns itself."""
        if self.error is not None:
            log.warning("skipping a piecewise plugin: %s", self.error)
        return self

    def __str__(self) -> str:
        device = f", device {self.info.device_type}" if self.info else ""
        return f"{self.name} ({self.origin}{device}): {self.status}: {self.reason}"


def announce(entry: PluginEntry) -> tuple[Candidate, ...]:
    """Load one plugin and list its platforms, unprobed; a plugin that fails is one candidate."""
    try:
        infos = announced(load(entry))
    except PlatformError as exc:
        return (Candidate(entry, None, "failed", "").fail(exc),)
    return tuple(Candidate(entry, info, "found", "not probed") for info in infos)


def examine(candidate: Candidate) -> Candidate:
    """Check the API version of ``candidate``, then probe it."""
    if candidate.info is None or candidate.status != "found":
        return candidate
    try:
        check_api_version(candidate.info, candidate.origin)
        probe = run_probe(candidate.info, candidate.origin)
    except PlatformError as exc:
        return candidate.fail(exc)
    status: Status = "found" if probe.available else "skipped"
    return replace(candidate, status=status, reason=probe.reason, probe=probe)


def local() -> tuple[Candidate, ...]:
    """The platforms registered in this process, unprobed."""
    return tuple(Candidate(o, info, "found", "not probed") for o, info in in_process())


def unloaded(entries: Iterable[PluginEntry], reason: str) -> tuple[Candidate, ...]:
    """The plugins that there was no need to load."""
    return tuple(Candidate(entry, None, "skipped", reason) for entry in entries)


def survey() -> tuple[Candidate, ...]:
    """Load and probe everything that is registered or installed; raises nothing of theirs."""
    found = [*local(), *(c for entry in discover() for c in announce(entry))]
    return tuple(examine(c) for c in found)
