"""What doctor finds out, as data."""

from __future__ import annotations

import json
import platform as machine
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from piecewise_core.cli.checkup import Checkup, check_up
from piecewise_core.cli.settings import Settings, settings
from piecewise_core.cli.torchcheck import torch_failure
from piecewise_core.errors import PlatformError
from piecewise_core.plugins.candidates import Candidate, survey
from piecewise_core.plugins.selection import Selected, select
from piecewise_core.plugins.torchbuild import torch_build
from piecewise_core.torch_compat.versions import TESTED, tested_range

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """``checkups``: one per usable platform. ``error``: why none is active, None if one is.

    ``untested``: how the installed torch stands to the tested range, None where it is inside.
    ``settings``: of the environment. ``torch_error``: why torch cannot be imported; no platform is
    then tried, since each would fail for it.
    """

    versions: dict[str, str]
    untested: str | None
    candidates: tuple[Candidate, ...]
    checkups: tuple[Checkup, ...]
    error: str | None
    settings: Settings
    torch_error: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether a platform is active and computes."""
        active = [c for c in self.checkups if c.active]
        return self.error is None and bool(active) and all(c.computes for c in active)

    def to_json(self) -> str:
        """One JSON object; its keys are in the reference."""
        return json.dumps(
            {
                "versions": self.versions,
                "tested": {"torch": tested_range(), "untested": self.untested},
                "torch_error": self.torch_error,
                "settings": asdict(self.settings),
                "plugins": [_plain(c) for c in self.candidates],
                "checkups": [asdict(c) | {"computes": c.computes} for c in self.checkups],
                "error": self.error,
                "healthy": self.healthy,
            },
            indent=2,
        )


def diagnose(request: str | None, *, compiling: bool) -> Diagnosis:
    """Load and probe every plugin, select as a user's program would, and try what is usable."""
    broken = torch_failure()
    if broken is not None:
        return _without_torch(broken)
    error, selected = None, None
    try:
        selected = select(request)
    except PlatformError as exc:
        error = str(exc)
    candidates = tuple(_marked(survey(), selected))
    found = _versions()
    return Diagnosis(
        versions=found,
        untested=_untested(found["torch"]),
        candidates=candidates,
        checkups=tuple(
            check_up(c, selected, compiling=compiling)
            for c in candidates
            if c.status in ("active", "found")
        ),
        error=error,
        settings=settings(),
    )


def _without_torch(broken: str) -> Diagnosis:
    found = _versions()
    return Diagnosis(found, _untested(found["torch"]), (), (), broken, settings(), broken)


def _versions() -> dict[str, str]:
    # With its build ("+cu130"), which the metadata of the wheel may leave out.
    torch = (torch_build() or {}).get("version", "not installed")
    return {
        "piecewise-core": _version("piecewise-core"),
        "torch": torch,
        "python": machine.python_version(),
    }


def _untested(torch: str) -> str | None:
    """How version ``torch`` stands to the tested range; None inside of it, or for none at all."""
    oldest, newest = map(_release, TESTED)
    release = _release(torch)
    if not release or oldest <= release <= newest:
        return None
    side = "older" if release < oldest else "newer"
    return f"torch {torch} is {side} than what piecewise is tested with, {tested_range()}"


def _release(version: str) -> tuple[int, ...]:
    """``(2, 13)`` of "2.13.0+cpu"; empty for what is no version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def _marked(candidates: Iterable[Candidate], selected: Selected | None) -> Iterable[Candidate]:
    """The same, the selected one marked active."""
    for candidate in candidates:
        active = selected.considered[0] if selected and selected.considered else None
        if active and (candidate.origin, candidate.name) == (active.origin, active.name):
            yield candidate.activate(active.reason)
        else:
            yield candidate


def _plain(candidate: Candidate) -> dict[str, object]:
    info, probe = candidate.info, candidate.probe
    return {
        "name": candidate.name,
        "distribution": candidate.origin.distribution,
        "version": candidate.origin.version,
        "device_type": info.device_type if info else None,
        "status": candidate.status,
        "reason": candidate.reason,
        "error": type(candidate.error).__name__ if candidate.error else None,
        "facts": {str(k): str(v) for k, v in probe.facts.items()} if probe else {},
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
