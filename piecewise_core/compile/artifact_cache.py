"""Between a model's scheduler and the store: keys for pieces, entries of artifacts and back."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping

from piecewise_core.compile.artifact import Artifact, load_code
from piecewise_core.compile.task import Task
from piecewise_core.errors import StoreError
from piecewise_core.graph.canonical import Form
from piecewise_core.graph.split import Piece
from piecewise_core.plugins import error_text
from piecewise_core.protocols import CompilerAdaptor
from piecewise_core.ranges import Box
from piecewise_core.store.entry import (
    Entry,
    Ticket,
    labelled,
    make_entry,
    make_ticket,
    now,
)
from piecewise_core.store.environment import Environment, surroundings
from piecewise_core.store.ledger import Ledger
from piecewise_core.store.misses import Miss, explain_misses
from piecewise_core.store.pieces import PieceFactors, piece_factors
from piecewise_core.store.protocol import Store
from piecewise_core.torch_compat.dynamo import compile_lock

__all__ = ["ArtifactCache"]

logger = logging.getLogger(__name__)


class ArtifactCache:
    """Knows what a model's artifacts depend on, and the store that they are kept in.

    ``store``: None keeps nothing; keys can still be made. ``ledger``: its. ``model``: its name.
    Everything here may be called from the thread of the background worker too.
    """

    def __init__(
        self, store: Store | None, environment: Environment, ledger: Ledger | None = None
    ) -> None:
        self.store = store
        self.ledger = ledger or Ledger()
        self.model = ""
        self.run = secrets.token_hex(8)
        self._environment = environment
        self._fixed: dict[str, str] | None = None
        self._pieces: dict[str, PieceFactors] = {}
        self._said: set[str] = set()
        self._misses: dict[str, Miss] = {}

    def ticket(
        self, adaptor: CompilerAdaptor, piece: Piece, form: Form, box: Box, label: str
    ) -> Ticket:
        """The ticket of ``piece`` for ``box``, a box over its own dims.

        ``form``: its canonical form. Raises StoreError saying why there cannot be one.
        """
        if not hasattr(adaptor, "load"):
            raise StoreError(f"compiler {adaptor.name!r} cannot load what it compiled")
        return self.named(adaptor, piece, form, box, label)

    def named(
        self, adaptor: CompilerAdaptor, piece: Piece, form: Form, box: Box, label: str
    ) -> Ticket:
        """As ``ticket``, also of what nobody can load: names it all the same."""
        own = self._pieces.get(form.key)
        if own is None:
            own = self._pieces[form.key] = piece_factors(piece, form)
        if own.obstacle:
            raise StoreError(own.obstacle)
        factors = {**self._surroundings(adaptor), **own.over(box)}
        return make_ticket(factors, box, labelled(self.model, label))

    def find(self, ticket: Ticket) -> Entry | None:
        """The entry of ``ticket``, if the store has it."""
        return None if self.store is None else self.store.get(ticket.key)

    def artifact(self, adaptor: CompilerAdaptor, entry: Entry, task: Task) -> Artifact | None:
        """The artifact that the compiler makes of ``entry``; None, and a warning, if it refuses.

        It holds for its ``serves`` only.
        """
        begun, manifest = time.perf_counter(), entry.manifest
        try:
            with compile_lock:
                compiled = load_code(adaptor, entry.artifact, manifest.serves)
        except Exception as error:
            logger.warning(
                "compiler %r cannot load entry %s of the compile store (%s); %s is compiled again",
                adaptor.name,
                manifest.key[:12],
                error_text(error),
                task.label,
            )
            return None
        seconds = time.perf_counter() - begun
        artifact = task.made(compiled, adaptor.name, seconds, manifest.serves, manifest.why)
        artifact.stored = True
        return artifact

    def to_keep(self, made: Artifact, around: Callable[[], Mapping[str, str]]) -> Entry | None:
        """The entry to publish what was just compiled as; None where it is not kept.

        ``around``: gives the surroundings that it was made in.
        """
        if made.ticket is None:
            return None
        try:
            if any(made.ticket.factors.get(n) != v for n, v in around().items()):
                raise StoreError("a switch of torch or of the compiler changed meanwhile")
            return self.entry_of(made, made.ticket)
        except StoreError as error:
            made.unkept = str(error)
            self.say_once(made.owner, made.unkept)
            return None

    def entry_of(self, made: Artifact, ticket: Ticket) -> Entry:
        """The entry to keep ``made`` by. Raises StoreError when its code cannot be had.

        What was loaded is had from the compiler again, which may know more by now than it did when
        the entry was written; or else read anew.
        """
        found = self.find(ticket) if made.stored else None
        try:
            blob = b"" if made.serves is None else _handed_over(made)
        except StoreError:
            if found is None:
                raise
            return found
        if found is not None and blob == found.artifact:
            return found
        return make_entry(
            ticket,
            blob,
            serves=made.serves,
            why=made.note,
            adaptor=made.compiler,
            seconds=made.seconds if found is None else found.manifest.seconds,
            made=now(),
            run=self.run,
        )

    def say_once(self, label: str, why: str) -> None:
        """Log that something is not kept, once for each reason."""
        if why not in self._said:
            self._said.add(why)
            logger.info("%s is not kept in the compile store: %s", label, why)

    def misses(self, tickets: Mapping[str, Ticket]) -> Mapping[str, Miss]:
        """Why each of ``tickets`` (by key) missed: the nearest entry of another run.

        Reads every manifest, once for all that were not asked about before.
        """
        new = {key: ticket for key, ticket in tickets.items() if key not in self._misses}
        if new and self.store is not None:
            older = [m for m in self.store.manifests() if m.run != self.run]
            wanted = {key: (ticket.factors, ticket.label) for key, ticket in new.items()}
            self._misses.update(explain_misses(wanted, older))
        refused = self.ledger.refused
        told = {key: Miss(None, refused=refused[key]) for key in tickets if key in refused}
        return {**self._misses, **told}

    def _surroundings(self, adaptor: CompilerAdaptor) -> dict[str, str]:
        try:
            if self._fixed is None:
                self._fixed = self._environment.fixed()
            return {**self._fixed, **surroundings(adaptor)}
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(
                f"what its code depends on cannot be told: {error_text(error)}"
            ) from error


def _handed_over(made: Artifact) -> bytes:
    what = f"compiler {made.compiler!r} cannot hand the code of {made.owner} over"
    handle = None if made.compiled is None else made.compiled.handle
    if handle is None:
        raise StoreError(what)
    try:
        blob = handle()
    except Exception as error:
        raise StoreError(f"{what}: {error_text(error)}") from error
    if not isinstance(blob, bytes):
        raise StoreError(f"{what}: it gave {type(blob).__name__}, not bytes")
    return blob
