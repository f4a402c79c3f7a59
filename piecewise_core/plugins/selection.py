"""Choose the one platform that a model runs on, and say why.

Order: explicit argument > ``PIECEWISE_PLATFORM`` > registered in this process > out-of-tree
plugin > built-in accelerator > cpu. Order of installation or import decides nothing: two that
fit equally well are a PlatformConflict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from piecewise_core.errors import NoPlatform, PlatformConflict, PlatformError
from piecewise_core.plugins.candidates import Candidate, announce, examine, local, unloaded
from piecewise_core.plugins.contract import check_platform
from piecewise_core.plugins.discovery import PluginEntry, discover
from piecewise_core.plugins.probing import create_platform
from piecewise_core.protocols import API_VERSION, Platform, PlatformInfo, Probe

__all__ = ["VARIABLE", "Selected", "select"]

VARIABLE = "PIECEWISE_PLATFORM"

_ACCELERATORS = frozenset({"piecewise-cuda", "piecewise-rocm"})
_CPU = frozenset({"piecewise-cpu"})

_NAME_ADVICE = {name: f"pip install piecewise-{name}" for name in ("cpu", "cuda", "rocm")}
_DEVICE_ADVICE = {
    None: "pip install piecewise-cpu",
    "cpu": "pip install piecewise-cpu",
    "cuda": "pip install piecewise-cuda (NVIDIA) or piecewise-rocm (AMD)",
}


@dataclass(frozen=True)
class Selected:
    """The platform in use, and why. ``considered``: it, first, and every other candidate.

    ``installed``: every plugin that there was when it was selected.
    """

    info: PlatformInfo
    platform: Platform
    reason: str
    considered: tuple[Candidate, ...]
    installed: tuple[PluginEntry, ...] = ()

    @property
    def origin(self) -> PluginEntry | None:
        """The plugin that the platform comes from, also where it was given as an object."""
        if self.considered:
            return self.considered[0].origin
        package = type(self.platform).__module__.partition(".")[0]
        return next((e for e in self.installed if e.module.partition(".")[0] == package), None)


def select(
    request: str | Platform | None = None,
    device_type: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Selected:
    """Choose a platform, create it and check it against the Protocols.

    ``request``: a name, ``"name@distribution"`` where two plugins share a name, or a Platform
    instance, which is used as it is. ``device_type``: where the model's tensors are ("cuda");
    only platforms of that type fit, so there is never a silent fall to another device.
    ``environ``: in place of ``os.environ``; an empty PIECEWISE_PLATFORM counts as unset.

    Raises NoPlatform, PlatformConflict, and for what was asked for by name PluginError,
    ApiVersionMismatch, ProbeFailed or ProbeInitialisedDevice. A broken plugin that was not asked
    for is logged, and kept in ``considered``.
    """
    installed = discover()
    wanted = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
    if isinstance(request, str):
        found = _by_name(request, f"platform={request!r}", device_type, installed)
    elif request is not None:
        found = _given(request, device_type)
    elif wanted:
        found = _by_name(wanted, f"{VARIABLE}={wanted}", device_type, installed)
    else:
        found = _by_order(device_type, installed)
    return replace(found, installed=installed)


def _given(platform: Platform, device_type: str | None) -> Selected:
    """Use an instance as it is. It may say its ``name`` and ``device_type``; neither is needed."""
    kind = type(platform).__name__
    check_platform(platform, "platform= argument")
    serves = str(getattr(platform, "device_type", device_type or "cpu"))
    if device_type and serves != device_type:
        raise _wrong_device(f"the {kind} given as platform=", serves, device_type)
    info = PlatformInfo(
        name=str(getattr(platform, "name", kind.lower())),
        device_type=serves,
        api_version=API_VERSION,
        probe=lambda: Probe(True, "given as an object"),
        create=lambda: platform,
    )
    return Selected(info, platform, f"platform= was given a {kind} object", ())


# By name --------------------------------------------------------------------------


def _by_name(
    wanted: str, asked: str, device_type: str | None, installed: Iterable[PluginEntry]
) -> Selected:
    """Load the plugin whose entry point has this name; the others only if there is none."""
    name, _, distribution = wanted.partition("@")
    seen: list[Candidate] = []

    def claims(candidates: Iterable[Candidate]) -> list[Candidate]:
        chosen = []
        for candidate in candidates:
            if candidate.name == name and _is_from(candidate.origin, distribution):
                chosen.append(candidate)
            elif candidate.status == "found":
                candidate = candidate.skip(f"is not {wanted}")
            seen.append(candidate)
        return chosen

    rest = list(installed)
    found = claims(local())
    if not found:
        likely = [e for e in rest if e.name == name and _is_from(e, distribution)]
        rest = [e for e in rest if e not in likely]
        found = claims(c for e in likely for c in announce(e))
    if found:
        seen.extend(unloaded(rest, f"not loaded: {asked}"))
    else:
        found = claims(c.warn() for e in rest for c in announce(e))
    if not found:
        raise NoPlatform(
            f"{asked}: no plugin brings a platform of that name; "
            + _NAME_ADVICE.get(name, "check the spelling, or install its plugin")
            + _listing(seen)
        )
    if len(found) > 1:
        raise _conflict(f"{asked} names more than one platform", found)
    return _ask_for(found[0], asked, device_type, seen)


def _ask_for(
    candidate: Candidate, asked: str, device_type: str | None, seen: list[Candidate]
) -> Selected:
    """Use exactly this candidate; whatever is wrong with it is an error."""
    serves = candidate.info.device_type if candidate.info else None
    if device_type and serves and serves != device_type:
        what = f"{asked}: platform {candidate.name!r} ({candidate.origin})"
        raise _wrong_device(what, serves, device_type)
    examined = examine(candidate)
    if examined.error is not None:
        raise examined.error
    info = examined.info
    if examined.status != "found" or info is None:
        raise NoPlatform(
            f"{asked}: platform {examined.name!r} ({examined.origin}) is not available on this "
            f"machine: {examined.reason}"
        )
    platform = create_platform(info, examined.origin)
    others = [c for c in seen if c is not candidate]
    return Selected(info, platform, asked, (examined.activate(asked), *others))


def _is_from(entry: PluginEntry, distribution: str) -> bool:
    return not distribution or entry.project == replace(entry, distribution=distribution).project


# By order -------------------------------------------------------------------------


def _by_order(device_type: str | None, installed: Iterable[PluginEntry]) -> Selected:
    """Go down the tiers; plugins of a lower tier are not even imported once one fits."""
    builtin = _ACCELERATORS | _CPU
    tiers: list[tuple[str, Callable[[PluginEntry], bool]]] = [
        ("the out-of-tree platform that is available", lambda e: e.project not in builtin),
        ("the built-in accelerator that is available", lambda e: e.project in _ACCELERATORS),
        ("no accelerator is available", lambda e: e.project in _CPU),
    ]
    seen: list[Candidate] = []
    found = _pick("registered in this process", local(), device_type, seen)
    for why, belongs in tiers:
        members = [e for e in installed if belongs(e)]
        if found is None:
            announced = (c for e in members for c in announce(e))
            found = _pick(why, announced, device_type, seen)
        else:
            seen.extend(unloaded(members, f"not loaded: {found.info.name} comes first"))
    if found is None:
        on = f" for device {device_type!r}, where the model is," if device_type else ""
        advice = _DEVICE_ADVICE.get(
            device_type, f"install a plugin for {device_type}, or move the model to another device"
        )
        raise NoPlatform(f"no platform{on} is available; {advice}{_listing(seen)}")
    return replace(found, considered=(*found.considered, *seen))


def _pick(
    why: str, candidates: Iterable[Candidate], device_type: str | None, seen: list[Candidate]
) -> Selected | None:
    """The one usable candidate of a tier; every other goes to ``seen``."""
    examined = [_fit(c, device_type).warn() for c in candidates]
    usable = [(c, c.info) for c in examined if c.status == "found" and c.info is not None]
    seen.extend(c for c in examined if c.status != "found")
    if len(usable) > 1:
        raise _conflict(
            "more than one platform is available and nothing decides", [c for c, _ in usable]
        )
    for chosen, info in usable:
        try:
            platform = create_platform(info, chosen.origin)
        except PlatformError as exc:
            seen.append(chosen.fail(exc).warn())
        else:
            return Selected(info, platform, why, (chosen.activate(why),))
    return None


def _fit(candidate: Candidate, device_type: str | None) -> Candidate:
    serves = candidate.info.device_type if candidate.info else None
    if device_type and serves and serves != device_type:
        return candidate.skip(f"serves device {serves}, not {device_type}")
    return examine(candidate)


# Messages ---------------------------------------------------------------------------


def _conflict(what: str, rivals: list[Candidate]) -> PlatformConflict:
    sides = " and ".join(f"{c.name!r} of {c.origin}" for c in rivals)
    first = f"{rivals[0].name}@{rivals[0].origin.project}"
    return PlatformConflict(
        f"{what}: {sides}; set {VARIABLE} or platform= to one of them "
        f'("name@distribution" tells equal names apart, such as {first}), or uninstall one'
    )


def _wrong_device(what: str, serves: str, device_type: str) -> NoPlatform:
    return NoPlatform(
        f"{what} serves device {serves!r} and the model is on {device_type!r}; move the model to "
        f"{serves!r}, or choose a platform for {device_type!r}"
    )


def _listing(seen: Iterable[Candidate]) -> str:
    lines = [f"\n  - {c}" for c in seen]
    return "; found:" + "".join(lines) if lines else "; no piecewise plugin is installed"
