"""What the entry point names: announces the platform and imports nothing heavy."""

from __future__ import annotations

import os
import platform as machine
from collections.abc import Iterator
from typing import TYPE_CHECKING

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import Platform, PlatformInfo, Probe, Rewrite

if TYPE_CHECKING:
    from piecewise_core.config import Config

__all__ = ["piecewise_platforms", "piecewise_rewrites"]


@hookimpl
def piecewise_platforms() -> Iterator[PlatformInfo]:
    """Announce the one platform of this wheel."""
    yield PlatformInfo("cpu", "cpu", (1, 1), probe, create)


@hookimpl
def piecewise_rewrites(platform: Platform, config: Config) -> Iterator[Rewrite]:
    """Products with weights go to what is faster than the BLAS that torch calls."""
    if config.compiler == "inductor":
        from piecewise_cpu.few_rows import few_rows_products
        from piecewise_cpu.linear import onednn_products

        yield onednn_products()
        yield few_rows_products()


def probe() -> Probe:
    """Say what CPU this is; there always is one."""
    facts = {"machine": machine.machine(), "cpus": str(_usable_cpus())}
    if "OMP_NUM_THREADS" in os.environ:
        facts["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    return Probe(True, f"{facts['cpus']} usable {facts['machine']} CPUs", facts)


def create() -> Platform:
    """Import torch and make the platform; the C++ compiler is looked at when first needed."""
    from piecewise_cpu.platform import CpuPlatform

    return CpuPlatform()


def _usable_cpus() -> int:
    """CPUs that this process may run on; a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
