"""What the entry point names: announces the platform and imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from piecewise_core.building_blocks import torch_build
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import Platform, PlatformInfo, Probe
from piecewise_rocm.kfd import Driver, ask_driver

__all__ = ["piecewise_platforms"]

_HIDING = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@hookimpl
def piecewise_platforms() -> Iterator[PlatformInfo]:
    """Announce the one platform of this wheel; torch calls AMD's devices "cuda" too."""
    yield PlatformInfo("rocm", "cuda", (1, 1), probe, create)


def probe() -> Probe:
    """Say whether torch and the kernel driver serve HIP, without a HIP context."""
    try:
        return judge(torch_build(), ask_driver(), os.environ)
    except FileNotFoundError as exc:
        return Probe(False, f"no AMD driver: there is no {exc.filename}")
    except OSError as exc:
        return Probe(False, f"no AMD driver: {exc}")


def judge(build: Mapping[str, str] | None, driver: Driver, environ: Mapping[str, str]) -> Probe:
    """Whether this torch can use this driver. ``build``: as ``torch_build`` gives it."""
    facts = {
        "devices": ", ".join(driver.chips) or "none",
        "torch": (build or {}).get("version", "not installed"),
        "HIP": (build or {}).get("hip", "none"),
    }
    if not driver.chips:
        return Probe(False, "the AMD driver finds no GPU", facts)
    if build is None or "hip" not in build:
        why = f"torch ({facts['torch']}) is built without ROCm; install a ROCm build of torch"
        return Probe(False, why, facts)
    if not driver.usable:
        why = "this user may not open /dev/kfd; join the groups render and video"
        return Probe(False, why, facts)
    hidden = [name for name in _HIDING if environ.get(name, "0").strip() in ("", "-1")]
    if hidden:
        return Probe(False, f"{hidden[0]} hides every device; unset it", facts)
    return Probe(True, f"{len(driver.chips)} x {driver.chips[0]}", facts)


def create() -> Platform:
    """Import torch and make the platform; the device is initialised when first used."""
    from piecewise_rocm.platform import RocmPlatform

    return RocmPlatform()
