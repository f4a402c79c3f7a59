"""Gets the code of one piece for one box: from the compile store, or from the compiler."""

from __future__ import annotations

import logging
import secrets
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import sympy

from piecewise_core.compile.artifact import Artifact
from piecewise_core.compile.artifact_cache import ArtifactCache
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.compile.examples import Job, make_job
from piecewise_core.compile.task import Task
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
from piecewise_core.plugins import error_text, raised
from piecewise_core.protocols import CompilerAdaptor
from piecewise_core.ranges import Box
from piecewise_core.rewrites import Rewrites
from piecewise_core.store.entry import Entry, Ticket
from piecewise_core.store.environment import surroundings
from piecewise_core.store.single_flight import single_flight

__all__ = ["Maker"]

logger = logging.getLogger(__name__)


class Maker:
    """Loads and compiles with one adaptor, and keeps what it compiled.

    ``adaptor``: becomes the eager compiler when the compiler's tools turn out to be missing.
    ``rewrites``: of every piece, before it is compiled. ``cache``: of the compile
    store; None keeps nothing.
    """

    def __init__(
        self,
        adaptor: CompilerAdaptor,
        config: Config,
        rewrites: Rewrites | None = None,
        cache: ArtifactCache | None = None,
    ) -> None:
        self.adaptor = adaptor
        self._written = EagerCompiler()
        self._degraded = ""
        self._config = config
        self._rewrites = rewrites or Rewrites()
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

    def task(
        self, piece: Piece, form: Form, symbols: dict[sympy.Symbol, int], box: Box, label: str
    ) -> Task:
        """``piece``, whose canonical form is ``form``, to be had for ``box``."""
        ticket, unkept = self._ticket(piece, form, box, label)
        whole = self._whole_key(piece, form, box, label) if ticket is None else ticket.key
        return Task(piece, symbols, box, form.key, whole, label, ticket, unkept)

    def obtain(self, task: Task) -> Artifact:
        """Load the piece's code, or compile it, once among all processes of the store.

        It holds for the artifact's ``serves`` only. Raises CompileFailed.
        """
        store = None if self._cache is None else self._cache.store
        return single_flight(store, task.ticket, _InProcess(self, task))

    def load(self, entry: Entry, task: Task) -> Artifact | None:
        """What the compiler makes of ``entry``; None if it refuses."""
        return None if self._cache is None else self._cache.artifact(self.adaptor, entry, task)

    def compile(self, task: Task) -> Artifact:
        """Compile the piece here and now. Raises CompileFailed."""
        piece, box, label = task.piece, task.box, task.label
        begun = time.perf_counter()
        adaptor: CompilerAdaptor = self.adaptor if piece.hazard is None else self._written

        def make() -> Job:
            return make_job(piece, task.symbols, box)

        rewrites = self._rewrites
        if adaptor.name == self._written.name:
            rewrites = rewrites.without_lowered()
        try:
            with no_collection():
                made = compile_job(adaptor, make, task.name, self._config, rewrites)
        except CompilerUnavailable as error:
            self._degrade(error)
            return self.compile(task)
        except Exception as error:
            if isinstance(error, PiecewiseError) and not isinstance(error, PlatformFault):
                raise
            raise CompileFailed(
                f"{label} ({piece.source or 'no source line'}) for sizes {box}: compiler "
                f"{adaptor.name!r} raised {error_text(error)}. Try "
                'compiler="eager" for this model, or report it with the piece that '
                "explain() prints"
            ).having(
                piece=label, source=piece.source, sizes=str(box), compiler=adaptor.name
            ) from raised(error)
        seconds = time.perf_counter() - begun
        logger.debug("compiled %s for %s in %.2f s with %s", label, box, seconds, adaptor.name)
        note = piece.hazard or made.why or self._degraded
        return task.made(made.compiled, adaptor.name, seconds, made.serves, note)

    def to_keep(self, made: Artifact) -> Entry | None:
        """The entry to publish what was just compiled as; None where it is not kept."""
        if self._cache is None or made.compiler == self._written.name:
            return None
        return self._cache.to_keep(made, partial(surroundings, self.adaptor))

    def _ticket(self, piece: Piece, form: Form, box: Box, label: str) -> tuple[Ticket | None, str]:
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

    def _whole_key(self, piece: Piece, form: Form, box: Box, label: str) -> str:
        """What tells the piece's code from any other in caches below the store: compilers' own.

        Where that cannot be told, no two are alike.
        """
        with suppress(StoreError):
            if self._cache is not None:
                return self._cache.named(self.adaptor, piece, form, box, label).key
        return secrets.token_hex(32)

    def _degrade(self, error: CompilerUnavailable) -> None:
        """Go on uncompiled with one warning, unless that was ruled out."""
        if self._config.check == "strict":
            raise error
        self.adaptor = self._written
        self._degraded = str(error)
        text = f"{error} Until then this model runs uncompiled."
        warnings.warn(text, RuntimeWarning, stacklevel=2)


@dataclass
class _InProcess:
    """One task that is compiled on the calling thread, which holds ``compile_lock``."""

    maker: Maker
    task: Task

    def load(self, entry: Entry) -> Artifact | None:
        return self.maker.load(entry, self.task)

    def prepare(self) -> None:
        """Nothing."""

    def make(self) -> Entry | None:
        self._made = self.maker.compile(self.task)
        return self.maker.to_keep(self._made)

    def take(self) -> Artifact:
        return self._made


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
