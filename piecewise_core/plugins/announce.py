"""What a plugin announces, checked: its PlatformInfos and the Protocol version they speak."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from piecewise_core.errors import ApiVersionMismatch, PluginError
from piecewise_core.plugins.discovery import PluginEntry
from piecewise_core.plugins.registry import Plugin
from piecewise_core.protocols import API_VERSION, PlatformInfo

__all__ = ["announced", "check_api_version", "check_info"]

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_DEVICE_TYPE = re.compile(r"[a-z][a-z0-9_]*")


def announced(plugin: Plugin) -> tuple[PlatformInfo, ...]:
    """The platforms of ``plugin``; empty when it brings none.

    Raises PluginError when the hook fails, when what it yields is malformed, or when it
    announces one name twice.
    """
    infos = plugin.call("piecewise_platforms", _collect) or ()
    for info in infos:
        check_info(info, plugin.entry)
    for name, times in Counter(info.name for info in infos).items():
        if times > 1:
            raise PluginError(
                f"{plugin.entry}: piecewise_platforms announces platform {name!r} {times} times; "
                "give each its own name"
            )
    return infos


def check_info(info: Any, origin: PluginEntry) -> None:
    """Raise PluginError unless ``info`` is a PlatformInfo whose every field is well formed."""
    if not isinstance(info, PlatformInfo):
        raise PluginError(
            f"{origin}: piecewise_platforms must give PlatformInfo objects, got "
            f"{type(info).__name__}: {info!r}"
        )
    wrong = [
        f"{field}={value!r} is not {expected}"
        for field, value, expected, good in (
            ("name", info.name, 'a lower-case name such as "acme-2"', _matches(_NAME, info.name)),
            (
                "device_type",
                info.device_type,
                'a torch device type such as "cuda"',
                _matches(_DEVICE_TYPE, info.device_type),
            ),
            (
                "api_version",
                info.api_version,
                f"a (major, minor) pair such as {API_VERSION}",
                _is_version(info.api_version),
            ),
            ("probe", info.probe, "callable", callable(info.probe)),
            ("create", info.create, "callable", callable(info.create)),
        )
        if not good
    ]
    if wrong:
        raise PluginError(f"{origin}: malformed PlatformInfo: {'; '.join(wrong)}")


def check_api_version(info: PlatformInfo, origin: PluginEntry) -> None:
    """Raise ApiVersionMismatch unless core serves the version that ``info`` was written for."""
    major, minor = info.api_version
    if major == API_VERSION[0] and minor <= API_VERSION[1]:
        return
    newer = (major, minor) > API_VERSION
    remedy = "update piecewise-core" if newer else f"update {origin.distribution}"
    raise ApiVersionMismatch(
        f"{origin}: platform {info.name!r} was written for plugin API {major}.{minor}; this "
        f"piecewise-core serves {API_VERSION[0]}.0 to {API_VERSION[0]}.{API_VERSION[1]}; {remedy}"
    )


def _collect(infos: Any) -> tuple[PlatformInfo, ...]:
    if not isinstance(infos, Iterable):
        raise TypeError(f"expected an iterable of PlatformInfo, got {infos!r}")
    return tuple(infos)


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_version(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(type(part) is int and part >= 0 for part in value)
    )
