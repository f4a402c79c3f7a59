"""What an artifact depends on besides its piece: compiler, platform, passes, versions, settings.

Factors are names with values. Never among them: paths, ranks, device indices, process ids, the
environment as such, or the order in which anything was set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from piecewise_core.config import Config
from piecewise_core.errors import StoreError
from piecewise_core.plugins import declared
from piecewise_core.protocols import CompilerAdaptor, Platform
from piecewise_core.store.lowerings import own_lowerings
from piecewise_core.store.machine import machine_factors
from piecewise_core.store.sources import (
    class_identity,
    core_digest,
    function_identity,
    package_identity,
)
from piecewise_core.torch_compat.around import in_force
from piecewise_core.torch_compat.state import switches_digest, torch_state

__all__ = ["Environment", "compiler_factors", "surroundings", "torch_settings"]

Passes = Iterable[Callable[[torch.fx.GraphModule], None]]


@dataclass(frozen=True)
class Environment:
    """What a model's pieces are compiled with.

    ``distribution``: who brought the platform ("piecewise-cpu 0.1.0"), empty for an instance.
    ``rewrites``: keys of those in force besides ``passes``, in order.
    """

    platform: Platform
    name: str
    distribution: str
    config: Config
    passes: tuple[Callable[[torch.fx.GraphModule], None], ...] = ()
    rewrites: tuple[str, ...] = ()

    def fixed(self) -> dict[str, str]:
        """Factors that do not change while the process runs. May initialise the device.

        Raises StoreError when something cannot be told apart from other versions of it.
        """
        return {
            "core": f"{_version('piecewise-core')} {core_digest()}",
            "torch": f"{torch.__version__} {torch.version.git_version or ''}".rstrip(),
            "python": f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}",
            "platform": self.name,
            "platform.distribution": self.distribution,
            "platform.class": class_identity(type(_itself(self.platform))),
            "platform.alignment": str(self.platform.capabilities.alignment),
            "passes": _passes(self.passes),
            "rewrites": "; ".join(self.rewrites),
            **{f"config.{n}": v for n, v in self.config.cache_factors().items()},
            **machine_factors(),
            **_named("platform", declared(self.platform).fingerprint()),
        }


def surroundings(adaptor: CompilerAdaptor) -> dict[str, str]:
    """The factors that may differ between this process and a worker that compiles for it."""
    return {**compiler_factors(adaptor), **torch_settings()}


def compiler_factors(adaptor: CompilerAdaptor) -> dict[str, str]:
    """The compiler: its name, its code, and what it says that its code depends on."""
    return {
        "compiler": adaptor.name,
        "compiler.class": class_identity(type(_itself(adaptor))),
        "compiler.distribution": str(getattr(adaptor, "by", "")),
        "compiler.package": package_identity(type(_itself(adaptor))),
        **_named("compiler", adaptor.hash_factors()),
    }


def torch_settings() -> dict[str, str]:
    """Torch's own switches and tables that change what compilers generate.

    Raises StoreError for what is in force and has no value to compare.
    """
    unknown = in_force()
    if unknown is not None:
        raise StoreError(f"it is compiled inside {unknown}, which has no value to compare")
    found = {f"torch.{name}": str(value) for name, value in torch_state().items()}
    return {**found, "torch.functorch": switches_digest(), **own_lowerings()}


def _passes(passes: Passes) -> str:
    """The passes in the order in which they run, which matters."""
    found = []
    for one in passes:
        identity = function_identity(one)
        if identity is None:
            raise StoreError(
                f"nobody can tell versions of the graph pass {one!r} apart: it holds more than "
                "plain values; give it an attribute key, a string that changes when it does"
            )
        found.append(identity)
    return "; ".join(found)


def _named(prefix: str, factors: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{name}": str(value) for name, value in factors.items()}


def _itself(part: Any) -> Any:
    """What a stand-in stands for."""
    return getattr(part, "of", part)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
