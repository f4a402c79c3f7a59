"""Distinct pieces compiled side by side, by worker processes, while a call or warm-up waits."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from piecewise_core.compile.artifact import Artifact
from piecewise_core.compile.artifact_cache import ArtifactCache
from piecewise_core.compile.pool import WorkerPool
from piecewise_core.compile.task import Task
from piecewise_core.frontend.background import Background
from piecewise_core.frontend.earlyworkers import EarlyWorkers
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.opfacts import is_foreign
from piecewise_core.protocols import CompilerAdaptor
from piecewise_core.torch_compat.dynamo import holds_compile_lock

__all__ = ["CORES", "MOST", "PIECES", "Fan", "workers_for"]

MOST = 8
"""Workers that "auto" starts: each imports torch, and on a GPU has a context of its own."""

CORES, PIECES = 4, 4
"""Fewer cores or missing pieces are not worth the imports, some 5 s of a core for each worker."""

_ATTEMPTS = 2
_THREADS = "TORCHINDUCTOR_COMPILE_THREADS"


def workers_for(asked: int | Literal["auto"], pieces: int, cores: int) -> int:
    """How many processes compile ``pieces`` pieces that the store lacks; 0: this one does.

    Whoever asks for a number wants this one free for other threads' calls: a single piece, too.
    """
    if asked != "auto":
        return min(asked, pieces)
    return min(pieces, cores // 2, MOST) if cores >= CORES and pieces >= PIECES else 0


KINDS = 24
"""Shapes of weights from which on a model has several distinct pieces. Transformers have ten, in
however many layers; a UNet, whose width changes, a hundred."""


class Fan:
    """The workers of one model, which live as long as there is something to compile."""

    def __init__(self, setup: Setup, cache: ArtifactCache) -> None:
        self._setup, self._cache = setup, cache
        self._early = EarlyWorkers()

    def begin(self, model: torch.nn.Module) -> None:
        """Before ``model`` is traced: start the workers, if it will surely need several."""
        setup, cores = self._setup, _cores()
        count = workers_for(setup.config.compile_workers, MOST, cores)
        if not count or self._early or not setup.config.splitting_ops:
            return
        kinds = {tuple(weight.shape) for weight in model.parameters()}
        if setup.selected.origin is None or len(kinds) < KINDS:
            return
        helper = self._helper(pool := self._pool(count, cores))
        if helper.can_serve(setup.compiler):
            helper.prepare()
            self._early.keep(pool)

    def __call__(
        self,
        adaptor: CompilerAdaptor,
        tasks: Sequence[Callable[[], Task]],
        take: Callable[[Task, Artifact], object],
    ) -> None:
        """Compile those of ``tasks`` that the store lacks; ``take`` is called on other threads."""
        early = self._early.take()
        try:
            self._compile(adaptor, tasks, take, early)
        finally:
            if early is not None:
                early.close()

    def _compile(
        self,
        adaptor: CompilerAdaptor,
        tasks: Sequence[Callable[[], Task]],
        take: Callable[[Task, Artifact], object],
        early: WorkerPool | None,
    ) -> None:
        asked = self._setup.config.compile_workers
        cores = _cores()
        if not workers_for(asked, len(tasks), cores) or self._setup.selected.origin is None:
            return  # also: no worker finds a platform that no plugin brings
        missing = [task for make in tasks if self._is_missing(task := make())]
        missing.sort(key=_operators, reverse=True)  # the longest last would be waited for alone
        count = workers_for(asked, len(missing), cores)
        if not count or holds_compile_lock():  # those who take code need that lock
            return
        helper = self._helper(early or self._pool(count, cores))
        if not helper.can_serve(adaptor):
            return
        done: queue.SimpleQueue[None] = queue.SimpleQueue()

        def taken(task: Task, made: Artifact | None, why: str) -> None:
            try:
                if made is not None:
                    take(task, made)
            finally:
                done.put(None)

        try:
            for task in missing:
                helper.submit(task, taken)
            for _ in missing:
                done.get()
        finally:
            helper.close()

    def _helper(self, pool: WorkerPool | None) -> Background:
        otherwise = "is compiled in this process"
        return Background(self._setup, self._cache, pool=pool, otherwise=otherwise)

    def _pool(self, count: int, cores: int) -> WorkerPool:
        # Inductor has workers of its own, for each process as many as there are cores.
        threads = os.environ.get(_THREADS, str(max(1, cores // count)))
        return WorkerPool(workers=count, attempts=_ATTEMPTS, variables={_THREADS: threads})

    def _is_missing(self, task: Task) -> bool:
        """Whether the store lacks it, and another process can know its operators."""
        graph = task.piece.graph
        if graph is None or any(is_foreign(node.target) for node in graph.graph.nodes):
            return False
        return task.ticket is None or self._cache.find(task.ticket) is None


def _operators(task: Task) -> int:
    graph = task.piece.graph
    return 0 if graph is None else len(graph.graph.nodes)


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
