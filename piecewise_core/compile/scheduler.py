"""Decides what is compiled: each distinct piece once per box, whoever asks for it."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Protocol

import sympy
import torch

from piecewise_core.compile.artifact import Artifact, guarded
from piecewise_core.compile.artifact_cache import ArtifactCache
from piecewise_core.compile.maker import Maker
from piecewise_core.compile.task import Task
from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.errors import CaptureFailed, Sealed
from piecewise_core.events import EventKind
from piecewise_core.graph.canonical import Form, canonical_form
from piecewise_core.graph.split import Piece
from piecewise_core.protocols import CompilerAdaptor
from piecewise_core.ranges import Box
from piecewise_core.rewrites import Rewrites
from piecewise_core.store.entry import Entry
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["Outside", "Scheduler", "project", "refuse_in_capture"]

logger = logging.getLogger(__name__)


class Outside(Protocol):
    """Something that compiles pieces away from the calling thread."""

    def can_serve(self, adaptor: CompilerAdaptor) -> bool:
        """Whether it can compile with ``adaptor``."""
        ...

    def submit(self, task: Task, done: Callable[[Task, Artifact | None, str], None]) -> None:
        """Return at once; call ``done`` later, with None and why when it failed."""
        ...


Helpers = Callable[[CompilerAdaptor, list[Callable[[], Task]], Callable[..., object]], None]
"""Compiles some of the tasks, for which it calls back, and returns when it is done."""


class Scheduler:
    """Compiles pieces through one adaptor and hands equal pieces the same artifact.

    ``rewrites``: of every piece, before it is compiled. ``counters``: of the model.
    ``is_capturing``: whether the device records what this thread does; nothing compiles then.
    ``cache``: of the compile store; None keeps nothing. ``helpers``: compiles several pieces at
    once, in other processes; None for nobody.
    """

    def __init__(
        self,
        adaptor: CompilerAdaptor,
        config: Config,
        counters: Counters,
        rewrites: Rewrites | None = None,
        is_capturing: Callable[[], bool] | None = None,
        cache: ArtifactCache | None = None,
    ) -> None:
        self.artifact_cache = cache
        self._maker = Maker(adaptor, config, rewrites, cache)
        self._counters = counters
        self._is_capturing = is_capturing
        # A model that is traced anew, over and over, must not keep the graphs of every trace: of
        # equal pieces the first is kept, and what is known of the others goes with them.
        self._forms: weakref.WeakKeyDictionary[torch.fx.GraphModule, Form] = (
            weakref.WeakKeyDictionary()
        )
        self._pieces: dict[str, Piece] = {}
        self._artifacts: dict[tuple[str, Box], Artifact] = {}
        # With the process: a forked one has no worker yet, and asks its own.
        self._requested: dict[tuple[int, str, Box], object] = {}
        self._failed: dict[tuple[str, Box], str] = {}
        self._turn = 0
        self.sealed: str | None = None
        self.helpers: Helpers | None = None

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Everything compiled or loaded so far, in order."""
        return tuple(self._artifacts.values())

    @property
    def compiler(self) -> str:
        """The name of the compiler that makes the artifacts."""
        return self._maker.adaptor.name

    def count_relaid(self) -> None:
        """A result was copied to the layout that was promised."""
        self._counters.add("relaid")

    def register(self, piece: Piece) -> str:
        """Take a compilable piece in; returns its canonical key."""
        return self._form(piece).key

    def task(self, piece: Piece, symbols: Mapping[sympy.Symbol, int], box: Box, label: str) -> Task:
        """What is to be had of ``piece`` for ``box``, over all dims of the model."""
        own = project(piece, box)
        return self._maker.task(piece, self._form(piece), dict(symbols), own, label)

    def _form(self, piece: Piece) -> Form:
        if piece.graph is None:
            raise ValueError("a splitting piece is not compiled")
        form = self._forms.get(piece.graph)
        if form is None:
            form = self._forms[piece.graph] = canonical_form(piece)
            if form.key not in self._pieces:
                self._pieces[form.key] = piece
                self._counters.add("unique_pieces")
        return form

    def forget(self) -> None:
        """Compile anew from now on: one of torch's switches was turned, and code may depend on it.

        The compile store asks for them by itself.
        """
        self._turn += 1
        self._artifacts.clear()
        self._requested.clear()

    def ready(self, piece: Piece, box: Box) -> Artifact | None:
        """The artifact of ``piece`` for ``box`` (over all dims), if there is one."""
        return self._artifacts.get((self.register(piece), project(piece, box)))

    def artifact(
        self, piece: Piece, symbols: Mapping[sympy.Symbol, int], box: Box, label: str
    ) -> Artifact:
        """The artifact of ``piece`` for ``box``, loaded or compiled now unless an equal one exists.

        ``box``: over all dims of the model. ``label``: names the piece in errors and books.
        Raises CompileFailed, or Sealed.
        """
        key, own = self.register(piece), project(piece, box)
        found = self._artifacts.get((key, own))
        if found is None:
            # Held for seconds by whoever compiles; what is there already is had without it.
            with compile_lock:
                found = self._artifacts.get((key, own))
                if found is None:
                    self._check_sealed(label, own)
                    refuse_in_capture(
                        self._is_capturing, f"{label} would be compiled for sizes {own}"
                    )
                    task = self.task(piece, symbols, box, label)
                    found = self._adopt(self._maker.obtain(task), piece)
        if label != found.owner and label not in found.shared_by:
            found.shared_by.append(label)
            self._counters.add("dedup_hits")
        return found

    def _adopt(self, artifact: Artifact, piece: Piece) -> Artifact:
        """Take in an artifact compiled or loaded now, or elsewhere."""
        if artifact.serves != artifact.box:
            self._counters.add("declined")
            logger.warning("%s for sizes %s: %s", artifact.owner, artifact.box, artifact.note)
            artifact.run = guarded(artifact.run, piece, artifact.serves)
        self._artifacts[artifact.key, artifact.box] = artifact
        self._counters.add("cache_hits" if artifact.stored else "compilations")
        kind: EventKind = "loaded" if artifact.stored else "compiled"
        self._counters.tell(kind, artifact.owner, artifact.box, artifact.seconds, artifact.note)
        if artifact.ticket is not None and not artifact.stored:
            self._counters.add("cache_misses")
        return artifact

    def request(
        self, piece: Piece, symbols: Mapping[sympy.Symbol, int], box: Box, label: str, by: Outside
    ) -> None:
        """Have ``piece`` compiled elsewhere for ``box``, once; ``ready`` tells when it is done.

        A piece that must run as written, and any piece of a compiler that cannot hand its code
        over, is compiled here and now.
        """
        key, own = self.register(piece), project(piece, box)
        if (key, own) in self._artifacts or piece.hazard or not by.can_serve(self._maker.adaptor):
            self.artifact(piece, symbols, box, label)
        elif (os.getpid(), key, own) not in self._requested:
            self._check_sealed(label, own)
            asker = object()
            if self._requested.setdefault((os.getpid(), key, own), asker) is not asker:
                return  # another thread did at the same time
            task = self.task(piece, symbols, box, label)
            by.submit(task, partial(self._take_in, self._turn))

    def compile_beside(
        self, wanted: Iterable[tuple[Piece, Mapping[sympy.Symbol, int], Box, str]]
    ) -> None:
        """Have worker processes compile what is missing of ``wanted``, and wait for it.

        Each is what ``artifact`` takes. What they do not compile is left to that. Call it without
        ``compile_lock``, which those who take their code in need.
        """
        if self.helpers is None or self.sealed is not None:
            return
        tasks: dict[tuple[str, Box], Callable[[], Task]] = {}
        for piece, symbols, box, label in wanted:
            key = self.register(piece), project(piece, box)
            if key not in self._artifacts and key not in tasks and not piece.hazard:
                tasks[key] = partial(self.task, piece, symbols, box, label)
        self.helpers(self._maker.adaptor, list(tasks.values()), partial(self._take_in, self._turn))

    def failed(self, piece: Piece, box: Box) -> str | None:
        """Why ``piece`` could not be compiled elsewhere for ``box``."""
        return self._failed.get((self.register(piece), project(piece, box)))

    def _take_in(self, turn: int, task: Task, made: Artifact | None, why: str = "") -> None:
        if made is None:
            self._failed[task.key, task.box] = why
        if made is None or turn != self._turn or (made.key, made.box) in self._artifacts:
            return
        self._adopt(made, task.piece)

    def entry(self, artifact: Artifact) -> Entry:
        """What to keep ``artifact`` by, in the store or elsewhere. Raises StoreError."""
        piece = self._pieces[artifact.key]
        return self._maker.entry(artifact, piece, self._form(piece))

    def _check_sealed(self, label: str, box: Box) -> None:
        if self.sealed is None:
            return
        text = (
            f"{label} would be compiled for sizes {box} after seal(); list the size in "
            "compile_sizes or capture_sizes, or call warmup() before seal()"
        )
        if self.sealed == "error":
            raise Sealed(text).having(sizes=str(box))
        self._counters.missed(label, box, text)


def refuse_in_capture(is_capturing: Callable[[], bool] | None, what: str) -> None:
    """Raise CaptureFailed while a capture runs: compiling in it would spoil it."""
    if is_capturing is not None and is_capturing():
        raise CaptureFailed(
            f"{what} inside of a capture that runs on this stream; call warmup() before it"
        )


def project(piece: Piece, box: Box) -> Box:
    """The part of ``box`` that the piece depends on: its own dims only."""
    return Box(tuple(box.ranges[d] for d in piece.dims))
