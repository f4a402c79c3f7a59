"""Compile in a worker process while the model serves the general graph."""

from __future__ import annotations

import logging
from collections.abc import Callable

import sympy
import torch

from piecewise_core.compile.examples import make_job
from piecewise_core.compile.messages import Answer, Request
from piecewise_core.compile.pool import WorkerPool
from piecewise_core.compile.portable import pack
from piecewise_core.compile.scheduler import Artifact
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.split import Piece
from piecewise_core.graph.torch_private import compile_lock
from piecewise_core.protocols import CompilerAdaptor
from piecewise_core.ranges import Box, Range

__all__ = ["Background"]

logger = logging.getLogger(__name__)


class Background:
    """Sends pieces to the worker and loads what comes back, off the calling thread."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._pool = WorkerPool()
        self._failed = False

    def can_serve(self, adaptor: CompilerAdaptor) -> bool:
        """Whether the adaptor can load what another process compiled."""
        return hasattr(adaptor, "load")

    def submit(
        self,
        piece: Piece,
        symbols: dict[sympy.Symbol, int],
        box: Box,
        key: str,
        label: str,
        done: Callable[[Piece, Artifact | None], None],
    ) -> None:
        """Queue one piece for ``box`` (over its own dims)."""

        def make(serial: int) -> Request:
            with compile_lock:
                job = make_job(piece, symbols, box)
                with torch.inference_mode(), job.context():
                    for apply in self._setup.passes:
                        apply(job.graph)
                data = pack(job)
            name, config = self._setup.selected.info.name, self._setup.config.to_json()
            return Request(serial, name, config, f"{key}-{box}", data)

        def loaded(answer: Answer) -> None:
            done(piece, self._load(answer, box, key, label))

        self._pool.submit(make, loaded)

    def close(self) -> None:
        """End the worker process; what it is doing is lost."""
        self._pool.close()

    def _load(self, answer: Answer, box: Box, key: str, label: str) -> Artifact | None:
        adaptor = self._setup.compiler
        if answer.handle is None:
            self._warn(label, box, answer.error)
            return None
        try:
            with compile_lock:
                run = adaptor.load(answer.handle).run  # type: ignore[attr-defined]
        except Exception as error:
            self._warn(label, box, f"{type(error).__name__}: {error}")
            return None
        serves = None if answer.serves is None else Box(tuple(Range(*r) for r in answer.serves))
        return Artifact(key, box, run, adaptor.name, answer.seconds, label, serves, answer.why)

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
