"""What a session works with: config, platform, compiler, rewrites."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from piecewise_core.backend import PiecewiseBackend
from piecewise_core.capture.graphmemory import GraphMemory, graph_memory
from piecewise_core.compile.adaptors import configure, resolve
from piecewise_core.compile.artifact_cache import ArtifactCache
from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.errors import ConfigError, PlatformError
from piecewise_core.frontend.calllock import CallLock
from piecewise_core.frontend.graphpool import Pool
from piecewise_core.graph.collectives import or_collectives
from piecewise_core.graph.randomness import or_draws
from piecewise_core.plugins import AttributedPlatform, Selected, attributed, select
from piecewise_core.protocols import CompilerAdaptor, Platform
from piecewise_core.rewrites import Rewrites, list_rewrites
from piecewise_core.store.environment import Environment, surroundings
from piecewise_core.store.layered import LayeredStore
from piecewise_core.store.ledger import Ledger
from piecewise_core.store.opening import open_store
from piecewise_core.store.protocol import Store
from piecewise_core.store.signing import Signer, signer_of
from piecewise_core.torch_compat.graphs import in_bad_fork

__all__ = ["Setup", "prepare"]


@dataclass(frozen=True)
class Setup:
    """Everything chosen before the first call.

    ``config.compiler`` is the compiler's real name. ``platform``: what was selected, whose errors
    name the plugin it came from. ``unsafe_ops``: operators that its static graphs cannot hold.
    ``pool``: that the graphs are to be in, with those of other models.
    """

    config: Config
    selected: Selected
    platform: AttributedPlatform
    compiler: CompilerAdaptor
    rewrites: Rewrites
    unsafe_ops: tuple[str, ...]
    backend_class: Callable[..., Any]
    graph_mode: str
    pool: Pool | None = None

    def splits(self, matches: Callable[[Any], bool]) -> Callable[[Any], bool]:
        """What ends a piece: what ``matches`` says, and what graphs cannot hold.

        That is random ops that they would repeat, and on a CPU collectives, which the host makes.
        """
        graphs = self.platform.graphs if self.graph_mode != "none" else None
        if graphs is not None and self.platform.declared.device_type == "cpu":
            matches = or_collectives(matches)
        repeats = graphs is not None and self.platform.declared.register_generator is None
        return or_draws(matches) if repeats else matches

    def artifact_cache(self, front: Store | None = None) -> ArtifactCache:
        """The cache of what one model compiles, in the compile store that the settings name.

        ``front``: a store to look in first.
        """
        ledger = Ledger()
        config = self.config
        store = open_store(config.cache_dir, os.environ, self.signer(), ledger, config.cache_url)
        if front is not None:
            store = front if store is None else LayeredStore(front, store)
        return ArtifactCache(store, self._environment(), ledger)

    def signer(self) -> Signer | None:
        """Of what is kept, and believed; None where nothing is signed. Raises ConfigError."""
        return signer_of(self.config.trust, self.config.sign_key)

    def call_lock(self) -> CallLock:
        """The lock for calls of one model: of a pool, that of all its models."""
        return CallLock() if self.pool is None else self.pool.lock

    def graph_memory(self, counters: Counters, member: object, name: str) -> GraphMemory:
        """What the graphs of one model lie in. ``member``: it, and its ``name``, for a pool."""
        declared, config = self.platform.declared, self.config
        if self.pool is None:
            return graph_memory(declared, config, counters)
        return self.pool.join(member, name, self.selected, declared, config.memory_limit)

    def surroundings(self) -> dict[str, str]:
        """What compiled code depends on besides its piece. Raises StoreError."""
        return {**self._environment().fixed(), **surroundings(self.compiler)}

    def _environment(self) -> Environment:
        name, origin = self.selected.info.name, str(self.selected.origin or "")
        passes, keys = self.rewrites.passes, self.rewrites.keys
        return Environment(self.platform, name, origin, self.config, passes, keys)

    @property
    def lost_device(self) -> bool:
        """Whether this process was forked from one that had begun to use the device."""
        return in_bad_fork(self.selected.info.device_type)

    def refuse_lost_device(self) -> None:
        """Raise PlatformError in such a process."""
        if self.lost_device:
            raise PlatformError(
                f"process {os.getpid()} was forked from one that had begun to use device "
                f'"{self.selected.info.device_type}", which no driver survives; start processes '
                'with multiprocessing.get_context("spawn"), or before anything uses the device'
            )

    @property
    def forks_on(self) -> str | None:
        """The device type whose programs are cut for two streams; None where there is one."""
        if self.config.graph_streams == "one" or self._why_one_stream():
            return None
        return self.platform.declared.device_type

    @property
    def streams_factor(self) -> dict[str, str]:
        """What times of graphs depend on besides: nothing where there is one stream."""
        return {"graph_streams": self.config.graph_streams} if self.forks_on else {}

    def advice(self, *, recorded: bool = False) -> tuple[str, ...]:
        """What to say of settings that do nothing here. ``recorded``: for ``pw.record``."""
        why = "pw.record sees no parts" if recorded else self._why_one_stream()
        return (*self._advice_on_executables(), *self._advice_on_streams(why))

    def _advice_on_streams(self, why: str) -> tuple[str, ...]:
        why = "" if self.config.graph_streams == "one" else why
        asked = f'graph_streams="{self.config.graph_streams}" does nothing here'
        return (f"{asked}: {why}; each graph has one stream",) if why else ()

    def _why_one_stream(self) -> str:
        declared, name = self.platform.declared, self.selected.info.name
        if declared.graphs is None or self.graph_mode not in ("full", "full_and_piecewise"):
            return 'it is for whole forwards, which graph_mode="full" captures'
        if declared.wait_stream is None:
            return f'the graph driver of platform "{name}" offers no wait_stream'
        if self.config.graph_streams == "auto" and declared.elapsed is None:
            return f'platform "{name}" has no timer to measure by'
        return ""

    def _advice_on_executables(self) -> tuple[str, ...]:
        if self.config.graph_executables == "own" or self.platform.graphs is None:
            return ()
        if self.platform.declared.graph_like is None:
            why = f'the graph driver of platform "{self.selected.info.name}" offers no graph_like'
        elif self.config.ranks is None:
            why = "with ranks=None nobody looks for collectives, whose graphs must not share"
        else:
            return ()
        return (f'graph_executables="shared" saves nothing here: {why}; each graph has its own',)

    def is_capturing(self) -> bool:
        """Whether the device is recording what this thread does."""
        graphs = self.platform.graphs
        return graphs is not None and bool(graphs.is_capturing())


def prepare(
    config: Config,
    platform: str | Platform | Selected | None,
    device_type: str | None,
    pool: Pool | None = None,
) -> Setup:
    """Choose platform and compiler, or take a platform that was selected before.

    Raises PlatformError and its kinds, and ConfigError.
    """
    if pool is not None:
        platform = pool.platform(platform, device_type)
    selected = platform if isinstance(platform, Selected) else select(platform, device_type)
    active = attributed(selected)
    compiler = resolve(config.compiler, active)
    settings = config.replace(compiler=compiler.name)
    configure(compiler, settings)
    rewrites = list_rewrites(selected, settings, compiler)
    graph_mode = _graph_mode(config, active, selected.info.name)
    if graph_mode == "none" and config.capture_compile != "auto":
        settings = settings.replace(capture_compile="auto")  # no size is captured
    return Setup(
        settings,
        selected,
        active,
        compiler,
        rewrites,
        tuple(active.declared.unsafe_ops()),
        active.piecewise_backend or PiecewiseBackend,
        graph_mode,
        pool,
    )


def _graph_mode(config: Config, platform: AttributedPlatform, name: str) -> str:
    """How graphs are used: as asked for, else in pieces where there is something to capture."""
    if config.graph_mode in (None, "piecewise") and not config.captures:
        return "none"
    if config.graph_mode is None:
        return "none" if platform.graphs is None else "piecewise"
    if config.graph_mode != "none" and platform.graphs is None:
        raise ConfigError(
            f'graph_mode="{config.graph_mode}" needs static graphs, and platform "{name}" has '
            'none; leave graph_mode out, or set it to "none"'
        )
    return config.graph_mode
