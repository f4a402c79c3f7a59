"""What goes wrong with platforms and their plugins."""

from __future__ import annotations

from piecewise_core.errors.base import PiecewiseError

__all__ = [
    "ApiVersionMismatch",
    "NoPlatform",
    "PlatformConflict",
    "PlatformError",
    "PlatformFault",
    "PluginError",
    "ProbeFailed",
    "ProbeInitialisedDevice",
]


class PlatformError(PiecewiseError):
    """Base of everything that goes wrong with platforms and their plugins."""


class NoPlatform(PlatformError):
    """No installed platform fits the request."""


class PlatformConflict(PlatformError):
    """Two plugins claim one name or one device and nothing decides between them."""


class PluginError(PlatformError):
    """A plugin could not be imported, raised in a hook, or declared something malformed."""


class PlatformFault(PlatformError):
    """A method of a platform raised at run time; its cause is what was raised.

    ``by``: distribution and version that brought the platform. ``method``: "GraphDriver.replay".
    """

    def __init__(self, message: str, *, by: str = "", method: str = "") -> None:
        super().__init__(message)
        self.by = by
        self.method = method


class ApiVersionMismatch(PlatformError):
    """A plugin was written for a Protocol version that this core does not serve."""


class ProbeFailed(PlatformError):
    """A platform's ``probe`` raised; probes must report, never raise."""


class ProbeInitialisedDevice(PlatformError):
    """A platform's ``probe`` initialised its device, which would break a later fork."""
