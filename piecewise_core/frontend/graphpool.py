"""``pw.Pool``: graph memory, and a budget, that several models share."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from piecewise_core.afterfork import after_fork
from piecewise_core.capture.pooledmemory import PooledMemory
from piecewise_core.config_fields import limit
from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import ConfigError, PiecewiseError
from piecewise_core.frontend.calllock import CallLock, is_mine
from piecewise_core.plugins import Declared, Selected, select
from piecewise_core.torch_compat.graphs import in_bad_fork

__all__ = ["Pool", "PoolStatus"]


@dataclass(frozen=True)
class PoolStatus:
    """What lies in a pool.

    ``platform``: its name, "" before there is a model. ``pool_bytes``, ``driver_bytes``: in use,
    each once however many models there are. ``memory_limit``: the budget, in bytes, or None.
    ``graphs``, ``sizes``: static graphs, and sizes that have some, of all models. ``models``: the
    names of those that are there.
    """

    platform: str
    pool_bytes: int
    driver_bytes: int
    memory_limit: int | None
    graphs: int
    sizes: int
    models: tuple[str, ...]

    def __str__(self) -> str:
        budget = "" if self.memory_limit is None else f" of {self.memory_limit}"
        used = self.pool_bytes + self.driver_bytes
        names = ", ".join(self.models) or "none yet"
        return (
            f"pool on {self.platform or 'no platform yet'}: {used}{budget} bytes, {self.graphs} "
            f"graphs of {self.sizes} sizes, models: {names}"
        )


class Pool:
    """Graph memory that models of one platform and device share: ``pw.compile(..., pool=pool)``.

    ``memory_limit``: bytes for the graphs of all of them, or None. The smallest of this and of
    the models' own ``Config.memory_limit`` counts; over it, what was used longest ago is evicted,
    whosever it is. Calls of the models come one at a time, whichever threads they come from, and
    results are copied before callers get them (``clone_outputs``): another model's replay would
    overwrite them. A model that is let go gives its graphs back. Raises ConfigError.
    """

    def __init__(self, memory_limit: int | None = None) -> None:
        self.memory_limit = limit("memory_limit", memory_limit, "Pool")
        self.lock = after_fork.frees(CallLock(), self._forked)
        self.counters = Counters(model="pool")
        process_counters.watch(self.counters)
        self._selected: Selected | None = None
        self._declared: Declared | None = None
        self._memory: PooledMemory | None = None
        self._members: list[tuple[weakref.ref[Any], str, int | None]] = []

    # Models ----------------------------------------------------------------------------

    def platform(self, asked: Any, device_type: str | None) -> Any:
        """The platform of a model that is to be in here: the pool's own, once there is one.

        What one driver object captures lies in no pool of another's. Raises ConfigError naming
        both where ``asked`` is another, and what ``select`` raises.
        """
        mine = self._selected
        if mine is None or asked is mine:
            return asked
        found = asked if isinstance(asked, Selected) else select(asked, device_type)
        by_name = asked is None or isinstance(asked, str)
        same = found.info.name == mine.info.name and found.info.device_type == mine.info.device_type
        if not same or not (by_name or found.platform is mine.platform):
            another = "another object of " if same else ""
            raise ConfigError(
                f"pool: its graphs are of platform {mine.info.name!r} (device type "
                f"{mine.info.device_type!r}), and this model's would be of {another}platform "
                f"{found.info.name!r} (device type {found.info.device_type!r}); make a pw.Pool "
                "for each platform"
            )
        return mine

    def join(
        self, member: object, name: str, selected: Selected, declared: Declared, own: int | None
    ) -> PooledMemory:
        """The memory for the graphs of ``member``, which is only referred to weakly.

        ``name``: for people. ``own``: its own limit. Raises ConfigError as ``platform``.
        """
        with self.lock:
            self.platform(selected, None)
            self._selected, self._declared = selected, self._declared or declared
            if self._memory is None:
                self._memory = self._begun(self._declared)
            self._members = [each for each in self._members if each[0]() is not None]
            if all(each[0]() is not member for each in self._members):
                self._members.append((weakref.ref(member), name, own))
            limits = [self.memory_limit, *(each[2] for each in self._members)]
            self._memory.keep_to(min((each for each in limits if each is not None), default=None))
            return self._memory

    def _begun(self, declared: Declared) -> PooledMemory:
        lock = self.lock

        def when_idle(step: Callable[[], None]) -> None:
            # Collected in the middle of a call of this thread's, or of another's: later.
            if not is_mine(lock) and lock.acquire(blocking=False):
                try:
                    step()
                finally:
                    lock.release()

        return PooledMemory(declared, self.counters, when_idle)

    def _forked(self, lost: bool) -> None:
        """In a forked process: models that begin anew do so in memory that is new too."""
        selected, declared = self._selected, self._declared
        if selected is None or declared is None:
            return
        if lost or in_bad_fork(selected.info.device_type):
            self._memory = self._begun(declared)
            self._memory.limit = self.memory_limit

    def release(self) -> None:
        """Give the memory of all models back; their calls run without graphs until ``restore``."""
        for member in self._there():
            member.release()

    def restore(self, *, lazy: bool = False) -> None:
        """Capture again what models released. ``lazy``: each size at its next call, and not now."""
        for member in self._there():
            member.restore(lazy=lazy)

    def _there(self) -> list[Any]:
        return [member for member in [ref() for ref, _, _ in self._members] if member is not None]

    # Books -----------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The pool's counters: ``pool_bytes`` and ``driver_bytes``, which its models leave at 0."""
        return self.counters.stats()

    def status(self) -> PoolStatus:
        """What lies in here, asked of the driver now. Waits for a call that is under way."""
        with self.lock:
            memory, selected = self._memory, self._selected
            if memory is None or selected is None:
                return PoolStatus("", 0, 0, self.memory_limit, 0, 0, ())
            memory.settle()
            memory.measure()
            stats = self.stats()
            names = (name for ref, name, _ in self._members if ref() is not None)
            return PoolStatus(
                selected.info.name,
                stats.pool_bytes,
                stats.driver_bytes,
                memory.limit,
                memory.graphs,
                len(memory.captured),
                tuple(names),
            )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PiecewiseError(
            "a pw.Pool cannot be copied or pickled: it stands for memory of this process; make "
            "one where models are compiled"
        )
