"""Gets the code of one piece for one box: from the compile store, or from the compiler."""

from __future__ import annotations

import logging
import secrets
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress

import sympy
import torch

from piecewise_core.compile.artifact import Artifact, guarded
from piecewise_core.compile.artifact_cache import ArtifactCache
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.compile.examples import Job, make_job
from piecewise_core.compile.valid_range import compile_job
from piecewise_core.config import Config
from piecewise_core.errors import (
    CompileFailed,
    CompilerUnavailable,
    PiecewiseError,
    PlatformFault,
    StoreError,
)
from piecewise_core.graph.canonical import Form
from piecewise_core.graph.garbage import no_collection
from piecewise_core.graph.split import Piece
from piecewise_core.plugins import raised, told
from piecewise_core.protocols import CompilerAdaptor
from piecewise_core.ranges import Box
from piecewise_core.store.entry import Entry, Ticket

__all__ = ["Maker"]

logger = logging.getLogger(__name__)


class Maker:
    """Loads and compiles with one adaptor, and keeps what it compiled.

    ``adaptor``: becomes the eager compiler when the compiler's tools turn out to be missing.
    ``passes``: run over every piece's graph before it is compiled. ``cache``: of the compile
    store; None keeps nothing.
    """

    def __init__(
        self,
        adaptor: CompilerAdaptor,
        config: Config,
        passes: Iterable[Callable[[torch.fx.GraphModule], None]] = (),
        cache: ArtifactCache | None = None,
    ) -> None:
        self.adaptor = adaptor
        self._written = EagerCompiler()
        self._degraded = ""
        self._config = config
        self._passes = tuple(passes)
        self._cache = cache

    def entry(self, artifact: Artifact, piece: Piece, form: Form) -> Entry:
        """What to keep ``artifact``, which is ``piece``'s, by. Raises StoreError."""
        if self._cache is None:
            raise StoreError("this model keeps no compiled pieces")
        if piece.hazard or artifact.compiler == self._written.name:
            raise StoreError(f"{artifact.owner} is not compiled: it runs as written")
        _refuse_index(form)
        ticket = artifact.ticket or self._cache.ticket(
            self.adaptor, piece, form, artifact.box, artifact.owner
        )
        return self._cache.entry_of(artifact, ticket)

    def ticket(self, piece: Piece, form: Form, box: Box, label: str) -> tuple[Ticket | None, str]:
        """What the piece is kept under; or None, and why not where somebody may wonder."""
        if self._cache is None or self._cache.store is None:
            return None, ""
        if piece.hazard or self.adaptor.name == self._written.name:
            return None, ""  # nothing is compiled
        try:
            _refuse_index(form)
            return self._cache.ticket(self.adaptor, piece, form, box, label), ""
        except StoreError as error:
            self._cache.say_once(label, str(error))
            return None, str(error)

    def whole_key(self, piece: Piece, form: Form, box: Box, label: str) -> str:
        """What tells the piece's code from any other in caches below the store: compilers' own.

        Where that cannot be told, no two are alike.
        """
        with suppress(StoreError):
            if self._cache is not None:
                return self._cache.named(self.adaptor, piece, form, box, label).key
        return secrets.token_hex(32)

    def obtain(
        self, piece: Piece, form: Form, symbols: dict[sympy.Symbol, int], box: Box, label: str
    ) -> Artifact:
        """Load the piece's code, or compile it, once among all processes of the store.

        Raises CompileFailed.
        """
        key = form.key
        ticket, unkept = self.ticket(piece, form, box, label)
        if ticket is None or self._cache is None:
            whole = self.whole_key(piece, form, box, label)
            made = self._compile(piece, symbols, box, key, whole, label)
            made.unkept = unkept
            return made
        tried = self._cache.find(ticket)
        found = self._loaded(piece, tried, key, ticket)
        if found is not None:
            return found
        with self._cache.lock(ticket):
            there = self._cache.find(ticket)
            if there is not None and (tried is None or there.manifest != tried.manifest):
                found = self._loaded(piece, there, key, ticket)
            if found is None:
                found = self._compile(piece, symbols, box, key, ticket.key, label, ticket)
        return found

    def _loaded(
        self, piece: Piece, entry: Entry | None, key: str, ticket: Ticket
    ) -> Artifact | None:
        if entry is None or self._cache is None:
            return None
        found = self._cache.artifact(self.adaptor, entry, key, ticket)
        if found is not None and found.serves != found.box:
            found.run = guarded(found.run, piece, found.serves)
        return found

    def _compile(
        self,
        piece: Piece,
        symbols: dict[sympy.Symbol, int],
        box: Box,
        key: str,
        whole: str,
        label: str,
        ticket: Ticket | None = None,
    ) -> Artifact:
        begun = time.perf_counter()
        adaptor: CompilerAdaptor = self.adaptor if piece.hazard is None else self._written

        def make() -> Job:
            return make_job(piece, symbols, box)

        try:
            with no_collection():
                compilation = compile_job(
                    adaptor, make, f"{key}-{box}-{whole}", self._config, self._passes
                )
        except CompilerUnavailable as error:
            self._degrade(error)
            made = self._compile(piece, symbols, box, key, whole, label)
            made.ticket = ticket  # the store was asked, and is not given what runs as written
            return made
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
        run = compilation.compiled.run
        if compilation.serves != box:
            logger.warning("%s for sizes %s: %s", label, box, compilation.why)
            run = guarded(run, piece, compilation.serves)
        note = piece.hazard or compilation.why or self._degraded
        made = Artifact(key, box, run, adaptor.name, seconds, label, compilation.serves, note)
        made.ticket, made.compiled = ticket, compilation.compiled
        if ticket is not None:
            self._publish(made, ticket)
        return made

    def _publish(self, made: Artifact, ticket: Ticket) -> None:
        if self._cache is None:
            return
        try:
            if not self._cache.still_holds(ticket, self.adaptor):
                raise StoreError("a switch of torch or of the compiler changed meanwhile")
            self._cache.publish(self._cache.entry_of(made, ticket))
        except StoreError as error:
            made.unkept = str(error)
            self._cache.say_once(made.owner, made.unkept)

    def _degrade(self, error: CompilerUnavailable) -> None:
        """Go on uncompiled with one warning, unless that was ruled out."""
        if self._config.check == "strict":
            raise error
        self.adaptor = self._written
        self._degraded = str(error)
        text = f"{error} Until then this model runs uncompiled."
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def _refuse_index(form: Form) -> None:
    """Raise StoreError for a piece on another device than the first of its kind.

    Keys know no index, and compilers write the index into the code they generate.
    """
    other = [name for name in form.devices if not name.endswith(":0")]
    if other:
        raise StoreError(
            f"code for {other[0]} would be taken for code for index 0; make the device the first "
            "that the process sees (CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES)"
        )
