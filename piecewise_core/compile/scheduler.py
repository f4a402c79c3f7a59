"""Decides what is compiled: each distinct piece once per box, whoever asks for it."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import sympy
import torch

from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.compile.examples import Job, make_job
from piecewise_core.compile.verdict import compile_and_judge
from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.errors import (
    CaptureFailed,
    CompileFailed,
    CompilerUnavailable,
    PiecewiseError,
    PlatformFault,
    Sealed,
)
from piecewise_core.graph.canonical import canonical_form
from piecewise_core.graph.garbage import no_collection
from piecewise_core.graph.split import Piece
from piecewise_core.graph.torch_private import compile_lock
from piecewise_core.platforms import raised, told
from piecewise_core.protocols import CompilerAdaptor
from piecewise_core.ranges import Box

__all__ = ["Artifact", "Outside", "Scheduler", "project", "refuse_in_capture"]

logger = logging.getLogger(__name__)

Runnable = Callable[..., Sequence[Any]]


@dataclass
class Artifact:
    """One distinct piece compiled for one box.

    ``box``: over the piece's own dims. ``serves``: the part of it that the compiled code holds
    for; the piece runs as written elsewhere. ``owner``: the piece it was compiled for, as a
    label. ``shared_by``: labels of the others. ``note``: why it runs as written, if it does.
    """

    key: str
    box: Box
    run: Runnable
    compiler: str
    seconds: float
    owner: str
    serves: Box | None
    note: str = ""
    shared_by: list[str] = field(default_factory=list)


class Outside(Protocol):
    """Something that compiles pieces away from the calling thread."""

    def can_serve(self, adaptor: CompilerAdaptor) -> bool:
        """Whether it can compile with ``adaptor``."""
        ...

    def submit(
        self,
        piece: Piece,
        symbols: dict[sympy.Symbol, int],
        box: Box,
        key: str,
        label: str,
        done: Callable[[Piece, Artifact | None], None],
    ) -> None:
        """Return at once; call ``done`` later, with None when it failed."""
        ...


class Scheduler:
    """Compiles pieces through one adaptor and hands equal pieces the same artifact.

    ``passes``: run over every piece's graph before it is compiled. ``counters``: of the model.
    ``is_capturing``: whether the device records what this thread does; nothing compiles then.
    """

    def __init__(
        self,
        adaptor: CompilerAdaptor,
        config: Config,
        counters: Counters,
        passes: Iterable[Callable[[torch.fx.GraphModule], None]] = (),
        is_capturing: Callable[[], bool] | None = None,
    ) -> None:
        self._adaptor = adaptor
        self._written = EagerCompiler()
        self._degraded = ""
        self._config = config
        self._counters = counters
        self._passes = tuple(passes)
        self._is_capturing = is_capturing
        self._keys: dict[int, str] = {}
        self._pieces: dict[int, Piece] = {}
        self._artifacts: dict[tuple[str, Box], Artifact] = {}
        self._distinct: set[str] = set()
        self._requested: set[tuple[str, Box]] = set()
        self.sealed: str | None = None

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Everything compiled so far, in order."""
        return tuple(self._artifacts.values())

    def register(self, piece: Piece) -> str:
        """Take a compilable piece in; returns its canonical key."""
        if id(piece) not in self._keys:
            self._pieces[id(piece)] = piece
            key = self._keys[id(piece)] = canonical_form(piece).key
            if key not in self._distinct:
                self._distinct.add(key)
                self._counters.add("unique_pieces")
        return self._keys[id(piece)]

    def ready(self, piece: Piece, box: Box) -> Artifact | None:
        """The artifact of ``piece`` for ``box`` (over all dims), if there is one."""
        return self._artifacts.get((self.register(piece), project(piece, box)))

    def artifact(
        self, piece: Piece, symbols: Mapping[sympy.Symbol, int], box: Box, label: str
    ) -> Artifact:
        """The artifact of ``piece`` for ``box``, compiled now unless an equal one exists.

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
                    found = self._compile(piece, dict(symbols), own, key, label)
                    self.adopt(found)
        if label != found.owner and label not in found.shared_by:
            found.shared_by.append(label)
            self._counters.add("dedup_hits")
        return found

    def adopt(self, artifact: Artifact) -> None:
        """Take in an artifact compiled now, or elsewhere."""
        self._artifacts[artifact.key, artifact.box] = artifact
        self._counters.add("compilations")

    def request(
        self, piece: Piece, symbols: Mapping[sympy.Symbol, int], box: Box, label: str, by: Outside
    ) -> None:
        """Have ``piece`` compiled elsewhere for ``box``, once; ``ready`` tells when it is done.

        A piece that must run as written, and any piece of a compiler that cannot hand its code
        over, is compiled here and now.
        """
        key, own = self.register(piece), project(piece, box)
        if (key, own) in self._artifacts or piece.hazard or not by.can_serve(self._adaptor):
            self.artifact(piece, symbols, box, label)
        elif (key, own) not in self._requested:
            self._requested.add((key, own))
            self._check_sealed(label, own)
            by.submit(piece, dict(symbols), own, key, label, self._take_in)

    def _take_in(self, piece: Piece, made: Artifact | None) -> None:
        if made is None or (made.key, made.box) in self._artifacts:
            return
        if made.serves != made.box:
            made.run = _guarded(made.run, _written(piece), made.serves, piece.dims)
        self.adopt(made)

    def _check_sealed(self, label: str, box: Box) -> None:
        if self.sealed is None:
            return
        text = (
            f"{label} would be compiled for sizes {box} after seal(); list the size in "
            "compile_sizes or capture_sizes, or call warmup() before seal()"
        )
        if self.sealed == "error":
            raise Sealed(text)
        logger.warning("%s", text)

    def _compile(
        self, piece: Piece, symbols: dict[sympy.Symbol, int], box: Box, key: str, label: str
    ) -> Artifact:
        refuse_in_capture(self._is_capturing, f"{label} would be compiled for sizes {box}")
        begun = time.perf_counter()
        adaptor: CompilerAdaptor = self._adaptor if piece.hazard is None else self._written

        def make() -> Job:
            return make_job(piece, symbols, box)

        try:
            with no_collection():
                verdict = compile_and_judge(
                    adaptor, make, f"{key}-{box}", self._config, self._passes
                )
        except CompilerUnavailable as error:
            if self._config.check == "strict":
                raise
            self._adaptor = self._written
            self._degraded = str(error)
            text = f"{error} Until then this model runs uncompiled."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            return self._compile(piece, symbols, box, key, label)
        except Exception as error:
            if isinstance(error, PiecewiseError) and not isinstance(error, PlatformFault):
                raise
            raise CompileFailed(
                f"{label} ({piece.source or 'no source line'}) for sizes {box}: compiler "
                f"{adaptor.name!r} raised {told(error)}. Try "
                'compiler="eager" for this model, or report it with the piece that '
                "explain() prints"
            ) from raised(error)
        seconds = time.perf_counter() - begun
        logger.debug("compiled %s for %s in %.2f s with %s", label, box, seconds, adaptor.name)
        run, serves = verdict.compiled.run, verdict.serves
        if serves != box:
            logger.warning("%s for sizes %s: %s", label, box, verdict.why)
            run = _guarded(run, _written(piece), serves, piece.dims)
        note = piece.hazard or verdict.why or self._degraded
        return Artifact(key, box, run, adaptor.name, seconds, label, serves, note)


def refuse_in_capture(is_capturing: Callable[[], bool] | None, what: str) -> None:
    """Raise CaptureFailed while a capture runs: compiling in it would spoil it."""
    if is_capturing is not None and is_capturing():
        raise CaptureFailed(
            f"{what} inside of a capture that runs on this stream; call warmup() before it"
        )


def project(piece: Piece, box: Box) -> Box:
    """The part of ``box`` that the piece depends on: its own dims only."""
    return Box(tuple(box.ranges[d] for d in piece.dims))


def _written(piece: Piece) -> Runnable:
    if piece.graph is None:
        raise ValueError("a splitting piece is not compiled")
    run: Runnable = piece.graph.forward
    return run


def _guarded(run: Runnable, written: Runnable, serves: Box | None, dims: Sequence[int]) -> Runnable:
    """``run`` where it holds, ``written`` elsewhere; sizes are the first arguments."""
    if serves is None:
        return written
    ranges = [(d, r.start, r.end) for d, r in zip(dims, serves.ranges, strict=True)]

    def guarded(*args: Any) -> Sequence[Any]:
        inside = all(lo <= args[d] <= hi for d, lo, hi in ranges)
        return run(*args) if inside else written(*args)

    return guarded
