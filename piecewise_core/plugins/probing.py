"""Run a platform's probe and its ``create``, and hold both to their promises."""

from __future__ import annotations

import sys
from typing import Any

from piecewise_core.errors import (
    PlatformError,
    PluginError,
    ProbeFailed,
    ProbeInitialisedDevice,
)
from piecewise_core.plugins.contract import check_platform
from piecewise_core.plugins.discovery import PluginEntry
from piecewise_core.protocols import Platform, PlatformInfo, Probe

__all__ = ["create_platform", "run_probe"]


def run_probe(info: PlatformInfo, origin: PluginEntry) -> Probe:
    """Ask ``info`` whether it can work here.

    Raises ProbeFailed if the probe raises, ProbeInitialisedDevice if it initialises a device,
    PluginError if its answer is not a Probe; each names the distribution and version.
    """
    watched = {info.device_type, "cuda"} - {"cpu"}  # nothing to initialise on a CPU
    before = {device for device in watched if _initialised(device)}
    try:
        answer = info.probe()
    except (Exception, SystemExit) as exc:
        raise ProbeFailed(
            f"{origin}: the probe of platform {info.name!r} raised {type(exc).__name__}: {exc}; "
            "a probe must report Probe(available=False, reason=...) instead of raising"
        ) from exc
    touched = sorted(device for device in watched - before if _initialised(device))
    if touched:
        raise ProbeInitialisedDevice(
            f"{origin}: the probe of platform {info.name!r} initialised device "
            f"{', '.join(touched)}, so this process can no longer fork; a probe must ask the "
            f"driver without a context; update or uninstall {origin.distribution}"
        )
    if not isinstance(answer, Probe):
        raise PluginError(
            f"{origin}: the probe of platform {info.name!r} must return a Probe, got {answer!r}"
        )
    return answer


def create_platform(info: PlatformInfo, origin: PluginEntry) -> Platform:
    """Make the platform and compare it with the Protocols.

    Raises PluginError naming distribution, version and what went wrong.
    """
    try:
        platform = info.create()
    except PlatformError:
        raise
    except (Exception, SystemExit) as exc:
        raise PluginError(
            f"{origin}: creating platform {info.name!r} failed with {type(exc).__name__}: {exc}; "
            f"`piecewise doctor` shows every plugin; reinstall {origin.distribution} with the "
            "device stack that it needs"
        ) from exc
    check_platform(platform, origin)
    return platform


def _initialised(device_type: str) -> bool:
    """Whether torch holds a context on ``device_type``; never imports torch to find out."""
    module: Any = getattr(sys.modules.get("torch"), device_type, None)
    asks = getattr(module, "is_initialized", None)
    return bool(asks()) if callable(asks) else False
