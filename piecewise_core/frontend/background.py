"""Compile in a worker process while the model serves the general graph."""

from __future__ import annotations

import logging
from collections.abc import Callable

import sympy
import torch

from piecewise_core.compile.artifact import Artifact
from piecewise_core.compile.artifact_cache import ArtifactCache
from piecewise_core.compile.examples import make_job
from piecewise_core.compile.messages import Answer, Request
from piecewise_core.compile.pool import WorkerPool
from piecewise_core.compile.portable import pack
from piecewise_core.errors import StoreError
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.split import Piece
from piecewise_core.graph.torch_private import compile_lock
from piecewise_core.graph.torch_state import torch_state
from piecewise_core.protocols import CompilerAdaptor
from piecewise_core.ranges import Box, Range
from piecewise_core.store.entry import Entry, Ticket
from piecewise_core.store.environment import surroundings

__all__ = ["Background"]

logger = logging.getLogger(__name__)

Ask = Callable[[Callable[[int], Request]], Answer]
Done = Callable[[Piece, Artifact | None], None]


class Background:
    """Sends pieces to the worker and loads what comes back, off the calling thread.

    ``cache``: of the compile store, which is asked before the worker is.
    """

    def __init__(self, setup: Setup, cache: ArtifactCache) -> None:
        self._setup = setup
        self._cache = cache
        self._pool = WorkerPool()
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

    def submit(
        self,
        piece: Piece,
        symbols: dict[sympy.Symbol, int],
        box: Box,
        key: str,
        whole: str,
        label: str,
        ticket: Ticket | None,
        done: Done,
    ) -> None:
        """Queue one piece for ``box`` (over its own dims); what the store has is not compiled."""
        # Now: switches may differ on the pool's thread, and later.
        state, around = torch_state(), surroundings(self._setup.compiler)

        def request(job: bytes) -> Callable[[int], Request]:
            name, config = self._setup.selected.info.name, self._setup.config.to_json()
            full = f"{key}-{box}-{whole}"
            return lambda serial: Request(serial, name, config, full, job, state, around)

        def work(ask: Ask) -> None:
            try:
                made = self._made(ask, request, piece, symbols, box, key, label, ticket)
            except Exception as error:
                self._warn(label, box, f"{type(error).__name__}: {error}")
                made = None
            done(piece, made)

        self._pool.run(work)

    def close(self) -> None:
        """End the worker process; what it is doing is lost."""
        self._pool.close()

    def _made(
        self,
        ask: Ask,
        request: Callable[[bytes], Callable[[int], Request]],
        piece: Piece,
        symbols: dict[sympy.Symbol, int],
        box: Box,
        key: str,
        label: str,
        ticket: Ticket | None,
    ) -> Artifact | None:
        """What the store has, else what the worker makes, unless another process did meanwhile.

        Inside the store's lock nothing waits for compile_lock: who holds that may wait for this.
        """
        entry = None if ticket is None else self._cache.find(ticket)
        if entry is not None and ticket is not None:
            made = self._stored(entry, key, ticket)
            if made is not None:
                return made
        job = self._packed(piece, symbols, box)
        if ticket is None:
            return self._taken(ask(request(job)), box, key, label, None)
        with self._cache.lock(ticket):
            there = self._cache.find(ticket)
            fresh = there is not None and (entry is None or there.manifest != entry.manifest)
            if not fresh:
                answer = ask(request(job))
                self._publish(ticket, answer)
        if there is not None and fresh:
            return self._stored(there, key, ticket)
        return self._taken(answer, box, key, label, ticket)

    def _packed(self, piece: Piece, symbols: dict[sympy.Symbol, int], box: Box) -> bytes:
        with compile_lock:
            job = make_job(piece, symbols, box)
            with torch.inference_mode(), job.context():
                for apply in self._setup.passes:
                    apply(job.graph)
            return pack(job)

    def _publish(self, ticket: Ticket, answer: Answer) -> None:
        """Keep what the worker made."""
        if answer.handle is None:
            return
        self._cache.publish(
            self._cache.entry(
                ticket,
                answer.handle,
                serves=_box(answer),
                why=answer.why,
                adaptor=self._setup.compiler.name,
                seconds=answer.seconds,
            )
        )

    def _stored(self, entry: Entry, key: str, ticket: Ticket) -> Artifact | None:
        with compile_lock:
            return self._cache.artifact(self._setup.compiler, entry, key, ticket)

    def _taken(
        self, answer: Answer, box: Box, key: str, label: str, ticket: Ticket | None
    ) -> Artifact | None:
        adaptor = self._setup.compiler
        if answer.handle is None:
            self._warn(label, box, answer.error)
            return None
        try:
            with compile_lock:
                compiled = adaptor.load(answer.handle)  # type: ignore[attr-defined]
        except Exception as error:
            self._warn(label, box, f"{type(error).__name__}: {error}")
            return None
        return Artifact(
            key,
            box,
            compiled.run,
            adaptor.name,
            answer.seconds,
            label,
            _box(answer),
            answer.why,
            ticket=ticket,
            compiled=compiled,
        )

    def _warn(self, label: str, box: Box, error: str) -> None:
        level = logging.INFO if self._failed else logging.WARNING
        self._failed = True
        logger.log(
            level,
            "%s for sizes %s was not compiled in the background (%s) and goes on running as "
            "written; call warmup() to compile it in this process",
            label,
            box,
            error,
        )


def _box(answer: Answer) -> Box | None:
    ends = answer.serves
    return None if ends is None else Box(tuple(map(Range.read, ends)))
