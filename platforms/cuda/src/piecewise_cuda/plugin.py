"""What the entry point names: announces the platform and imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from piecewise_core.building_blocks import torch_build
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import Platform, PlatformInfo, Probe, Rewrite
from piecewise_cuda.nvml import Driver, ask_driver

if TYPE_CHECKING:
    from piecewise_core.config import Config

__all__ = ["piecewise_platforms", "piecewise_rewrites"]


@hookimpl
def piecewise_platforms() -> Iterator[PlatformInfo]:
    """Announce the one platform of this wheel."""
    yield PlatformInfo("cuda", "cuda", (1, 1), probe, create)


@hookimpl
def piecewise_rewrites(platform: Platform, config: Config) -> Iterator[Rewrite]:
    """Products of one row: large weights by a kernel of ours, others as sums, not by cuBLAS."""
    if config.compiler == "inductor":
        from piecewise_core.building_blocks import one_row_products
        from piecewise_cuda.one_row import one_row_kernels

        yield one_row_kernels()
        yield one_row_products()


def probe() -> Probe:
    """Say whether torch and the driver serve CUDA, without a CUDA context."""
    try:
        return judge(torch_build(), ask_driver(), os.environ)
    except FileNotFoundError as exc:
        return Probe(False, f"no NVIDIA driver: there is no {exc.filename}")
    except (OSError, AttributeError) as exc:
        return Probe(False, f"no NVIDIA driver: {exc}")


def judge(build: Mapping[str, str] | None, driver: Driver, environ: Mapping[str, str]) -> Probe:
    """Whether this torch can use this driver. ``build``: as ``torch_build`` gives it."""
    facts = {
        "driver": driver.version,
        "driver's CUDA": ".".join(map(str, driver.cuda)) if driver.cuda else "unknown",
        "devices": ", ".join(driver.devices) or "none",
        "torch": (build or {}).get("version", "not installed"),
    }
    if not driver.devices:
        return Probe(False, "the NVIDIA driver finds no device", facts)
    if build is None or "cuda" not in build:
        why = f"torch ({facts['torch']}) is built without CUDA; install a CUDA build of torch"
        return Probe(False, why, facts)
    if environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return Probe(False, "CUDA_VISIBLE_DEVICES hides every device; unset it", facts)
    if driver.cuda and driver.cuda[0] < int(build["cuda"].split(".")[0]):
        why = (
            f"torch is built for CUDA {build['cuda']} and the driver ({driver.version}) runs "
            f"{driver.cuda[0]}.{driver.cuda[1]} at most; update the driver, or install a torch "
            "for that CUDA"
        )
        return Probe(False, why, facts)
    return Probe(True, f"{len(driver.devices)} x {driver.devices[0]}", facts)


def create() -> Platform:
    """Import torch and make the platform; the device is initialised when first used."""
    from piecewise_cuda.platform import CudaPlatform

    return CudaPlatform()
