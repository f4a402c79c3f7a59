"""Compile in worker processes, one while the model serves the general graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.compile.artifact import Artifact, load_code
from piecewise_core.compile.artifact_cache import ArtifactCache
from piecewise_core.compile.examples import make_job
from piecewise_core.compile.messages import Answer, Request
from piecewise_core.compile.pool import WorkerPool
from piecewise_core.compile.portable import pack
from piecewise_core.compile.task import Task
from piecewise_core.errors import StoreError
from piecewise_core.frontend.setup import Setup
from piecewise_core.protocols import CompiledGraph, CompilerAdaptor
from piecewise_core.ranges import Box, Range
from piecewise_core.store.entry import Entry
from piecewise_core.store.environment import surroundings
from piecewise_core.store.single_flight import single_flight
from piecewise_core.torch_compat.dynamo import compile_lock
from piecewise_core.torch_compat.state import torch_state

__all__ = ["Background"]

logger = logging.getLogger(__name__)

_NICE = 19
"""Calls that are served meanwhile have the processors first: where the worker is less nice, one in
a hundred waits for a slice of its time."""

_AS_WRITTEN = "goes on running as written; call warmup() to compile it in this process"

Ask = Callable[[Callable[[int], Request]], Answer]
Done = Callable[[Task, Artifact | None, str], None]


class Background:
    """Sends pieces to the worker and loads what comes back, off the calling thread.

    ``cache``: of the compile store, which is asked before the worker is. ``told``: called, with no
    lock held, whenever something is done. ``pool``: of other workers than one. ``otherwise``: what
    becomes of a piece that no worker compiled, for messages.
    """

    def __init__(
        self,
        setup: Setup,
        cache: ArtifactCache,
        told: Callable[[], object] = lambda: None,
        pool: WorkerPool | None = None,
        otherwise: str = _AS_WRITTEN,
    ) -> None:
        self._setup = setup
        self._cache = cache
        self._told = told
        self._pool = pool or WorkerPool(nice=_NICE)
        self._otherwise = otherwise
        self._failed = False

    def can_serve(self, adaptor: CompilerAdaptor) -> bool:
        """Whether another process can be like this one, and the adaptor load what it compiled."""
        if not hasattr(adaptor, "load"):
            return False
        try:
            surroundings(adaptor)
        except StoreError as error:
            logger.info("compiled in this process: %s", error)
            return False
        return True

    def prepare(self) -> None:
        """Have the workers start now, before there is work for them."""
        setup = self._setup
        config, around = setup.config.to_json(), surroundings(setup.compiler)
        state, name = torch_state(), setup.selected.info.name
        self._pool.prepare(lambda serial: Request(serial, name, config, "", b"", state, around))

    def submit(self, task: Task, done: Done) -> None:
        """Queue one piece; what the store has is not compiled."""
        # Now: switches may differ on the pool's thread, and later.
        state, around = torch_state(), surroundings(self._setup.compiler)

        def work(ask: Ask) -> None:
            flight = _InWorker(self._setup, self._cache, task, state, around, ask)
            made, why = None, ""
            try:
                made = single_flight(self._cache.store, task.ticket, flight)
            except _NotMade as error:
                why = self._warn(task, str(error))
            except Exception as error:
                why = self._warn(task, f"{type(error).__name__}: {error}")
            done(task, made, why)
            self._told()

        self._pool.run(work)

    def close(self) -> None:
        """End the worker process; what it is doing is lost."""
        self._pool.close()

    def _warn(self, task: Task, error: str) -> str:
        level = logging.INFO if self._failed else logging.WARNING
        self._failed = True
        logger.log(
            level,
            "%s for sizes %s was not compiled by a worker process (%s; its code: %s) and %s",
            task.label,
            task.box,
            error,
            task.piece.source or "no line known",
            self._otherwise,
        )
        return error


@dataclass
class _InWorker:
    """One task that the worker compiles. ``state``, ``around``: as they were when it was asked."""

    setup: Setup
    cache: ArtifactCache
    task: Task
    state: dict[str, Any]
    around: dict[str, str]
    ask: Ask
    job: bytes = b""

    def load(self, entry: Entry) -> Artifact | None:
        return self.cache.artifact(self.setup.compiler, entry, self.task)

    def prepare(self) -> None:
        if self.job:
            return
        with compile_lock:
            job = make_job(self.task.piece, self.task.symbols, self.task.box)
            with torch.inference_mode(), job.context():
                for rewrite in self.setup.rewrites.piece:
                    rewrite(job.graph)
            self.job = pack(job)

    def make(self) -> Entry | None:
        answer = self.ask(self._request)
        if answer.handle is None:
            raise _NotMade(answer.error)
        self._handle = answer.handle
        unloaded = CompiledGraph(_unloaded, lambda: self._handle)
        name = self.setup.compiler.name
        ends = answer.serves
        serves = None if ends is None else Box(tuple(map(Range.read, ends)))
        self._made = self.task.made(unloaded, name, answer.seconds, serves, answer.why)
        return self.cache.to_keep(self._made, lambda: self.around)

    def take(self) -> Artifact:
        with compile_lock:
            compiled = load_code(self.setup.compiler, self._handle, self._made.serves)
        self._made.run, self._made.compiled = compiled.run, compiled
        return self._made

    def _request(self, serial: int) -> Request:
        name, config = self.setup.selected.info.name, self.setup.config.to_json()
        task = self.task
        return Request(serial, name, config, task.name, self.job, self.state, self.around)


class _NotMade(Exception):
    """The worker's answer is an error."""


def _unloaded(*args: object) -> list[object]:
    raise StoreError("code of the worker's was run before it was loaded")
