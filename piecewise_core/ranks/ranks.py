"""What the ranks that serve one model together do alike; nothing where it is served alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from piecewise_core.config import Config
from piecewise_core.errors import CaptureFailed, OutOfGraphMemory, RanksDisagree
from piecewise_core.plugins import error_text
from piecewise_core.ranks.busy import Busy
from piecewise_core.ranks.gate import Gate
from piecewise_core.ranks.meeting import Meeting, first_difference, odd_one
from piecewise_core.ranks.program import described, groups_in, groups_of, model_of
from piecewise_core.ranks.sharing import Sharing
from piecewise_core.ranks.team import gather
from piecewise_core.torch_compat.collectives import default_group, default_group_reader

__all__ = ["Ranks"]

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

_OWN = frozenset({"cache_dir", "on_event", "profiler_names", "ranks", "ranks_timeout"})
_OWN_PREFIXES = ("cache_", "sign", "trust")
"""Settings that each rank may have of its own."""


class Ranks:
    """The ranks of one model, which ``fn`` is as written.

    ``facts``: what else must be alike, by name. ``sharing``: memory that they may share. Where
    ``meeting`` is None, and in programs without collectives always, every method answers for this
    rank alone. All methods but ``watch`` may raise RanksDisagree, on every rank that is there.
    """

    def __init__(
        self,
        config: Config | None = None,
        fn: Any = None,
        facts: Mapping[str, str] | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self._config = config = config or Config(ranks=None)
        self._fn = fn
        self._facts = {"torch": torch.__version__, **(facts or {})}
        self._timeout = config.ranks_timeout
        self.busy = Busy(min(self._timeout / 5, 1.0))
        self.meeting: Meeting | None = None
        self._world: Any = None
        self._world_now: Callable[[], Any] = lambda: None
        self._groups: dict[int, Any] = {}
        self._agreed: set[str] = set()
        self._lost = False
        self._refused: RanksDisagree | None = None
        self._sharing = sharing
        if sharing is not None:
            sharing.wanted = lambda: self.may_be

    @property
    def may_be(self) -> bool:
        """Whether this model may turn out to be served with others."""
        return self._config.ranks is not None and default_group() is not None

    def join(self, others: Sequence[Any]) -> None:
        """Serve together with all that are in groups, and in theirs, from now on."""
        if self._config.ranks is None:
            return
        groups = others if self._config.ranks == "auto" else [self._config.ranks]
        if self._refused is not None:
            # Asked again, this rank would make collectives that the others never met for.
            raise self._refused
        known = {**self._groups, **{id(group): group for group in groups if group.size() > 1}}
        if len(known) > len(self._groups):
            try:
                self._gather(known)
            except RanksDisagree as error:
                self._refused = error
                raise

    def _gather(self, groups: dict[int, Any]) -> None:
        self.same_world()
        with self.busy.waiting():
            self.meeting = gather(groups.values(), self._timeout)
        self._groups, self._world_now = groups, default_group_reader()
        self._world = self._world_now()
        self._compare("settings", {**self._settings(), **self._facts})
        self._compare("models", {"model": model_of(self._fn)})

    def _settings(self) -> dict[str, Any]:
        given = self._config.to_dict().items()
        return {k: v for k, v in given if k not in _OWN and not k.startswith(_OWN_PREFIXES)}

    def same_world(self) -> None:
        """Raise RanksDisagree where torch.distributed was begun anew since the ranks met."""
        world = self._world_now()
        if self.meeting is not None and world is not self._world:
            now = "there is none" if world is None else f"it has {world.size()} processes"
            raise RanksDisagree(
                "torch.distributed was ended or begun anew since this model met its ranks "
                f"{self.meeting.ranks}, and {now} now; compile the model again",
                rank=self.meeting.me,
                difference="another torch.distributed",
            )

    # Rounds ------------------------------------------------------------------------------

    def meet(self, what: str, said: Any = None) -> Mapping[int, Any]:
        """What each rank says at ``what``; nothing where this one is alone."""
        if self.meeting is None:
            return {}
        self.same_world()
        with self.busy.waiting():
            return self.meeting.meet(what, said)

    def _compare(self, what: str, said: Mapping[str, Any]) -> None:
        """Raise RanksDisagree unless all say the same."""
        found = self.meet(what, said)
        odd = odd_one(found)
        if odd is None:
            return
        other = next(rank for rank in found if odd_one({0: found[rank], 1: found[odd]}) is not None)
        name, mine, theirs = first_difference(found[other], found[odd])
        raise RanksDisagree(
            f"rank {odd} has other {what} than rank {other}: {name} is {theirs} there, and {mine} "
            f"on rank {other}",
            rank=odd,
            difference=f"{name}: {theirs}, not {mine}",
        )

    def all(self, what: str, ready: bool) -> bool:
        """Whether all ranks are ready for ``what``."""
        return all(self.meet(what, ready).values()) if self.meeting is not None else ready

    def common(self, what: str, held: Iterable[Sequence[int]]) -> Callable[[Any], int | None]:
        """Tells of one of what this rank holds which rank does not; None where all do."""
        found = self.meet(what, [list(each) for each in held])
        return lambda each: next((r for r in found if list(each) not in found[r]), None)

    def heard(self, what: str, found: str | None) -> str | None:
        """What was found on this rank, else on another; None where it was on none."""
        said = self.meet(what, found)
        others = (f"{text} (on rank {rank})" for rank, text in said.items() if text is not None)
        return found if found is not None else next(others, None)

    def region(self, sizes: str, graph: torch.fx.GraphModule) -> None:
        """Before a region serves its first call: ranks have its sizes and its collectives alike."""
        if not self.may_be:
            return
        self.join(groups_of(graph))
        lines = described(graph)
        known = "\n".join((sizes, *lines))
        if self.meeting is None or known in self._agreed:
            return
        said = {"sizes": sizes, "number of collectives": len(lines)}
        said |= {f"collective {n}": line for n, line in enumerate(lines, 1)}
        self._compare("regions", said)
        if self._sharing is not None:
            with self.busy.working():
                self._sharing.begin(graph, self._groups.values(), self.meet)
        self._agreed.add(known)

    def lose(self) -> None:
        """Graphs were freed: ``own_up`` later, when all is in order again."""
        self._lost = self.meeting is not None

    def own_up(self) -> None:
        """Meet the others, who must have freed theirs: alone this rank would pad no more."""
        if self._lost:
            self._lost = False
            self.meet("a release of graphs: the model was changed, or release() was called")

    # Runs --------------------------------------------------------------------------------

    def jointly(self, what: str, attempt: Callable[[], T], undo: Callable[[T], object]) -> T:
        """``attempt()``, which fails on all ranks where it fails on one.

        No collective in it is made before all are at it. ``undo``: of what was made here for
        nothing. Raises CaptureFailed or OutOfGraphMemory, of the same kind on all.
        """
        if not self.may_be:
            return attempt()
        return _Attempt(self, what).run(attempt, undo)


class _Attempt:
    """One run that ranks make together."""

    def __init__(self, ranks: Ranks, what: str) -> None:
        self._ranks, self._what = ranks, what
        self._count = 0
        self._ended: Exception | None = None

    def run(self, attempt: Callable[[], T], undo: Callable[[T], object]) -> T:
        """As ``Ranks.jointly``."""
        try:
            with self._ranks.busy.working(), Gate(self._arrive):
                made = attempt()
        except Exception as error:
            if self._ended is not None:
                raise self._ended from error
            self._outcome("its end", error)
            raise
        try:
            self._outcome("its end", None)
        except Exception:
            undo(made)
            raise
        return made

    def _arrive(self, fn: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if self._ended is not None:
            raise self._ended
        try:
            self._ranks.join(groups_in(fn, args, kwargs))
            self._count += 1
            self._outcome(f"collective {self._count}, {fn}", None)
        except (CaptureFailed, RanksDisagree) as error:
            self._ended = error
            raise

    def _outcome(self, at: str, error: Exception | None) -> None:
        """Hear how the others fare. Raises what all raise; where this rank is alone, nothing."""
        if self._ranks.meeting is None:
            return
        failed = None
        if error is not None:
            failed = [isinstance(error, OutOfGraphMemory) or _is_memory(error), error_text(error)]
        found = self._ranks.meet(self._what, {"at": at, "failed": failed})
        for rank, heard in found.items():
            if heard["failed"] is not None:
                memory, text = heard["failed"]
                kind = OutOfGraphMemory if memory else CaptureFailed
                raise kind(f"{self._what} failed on rank {rank}, so on all: {text}") from error
        at_of = {rank: heard["at"] for rank, heard in found.items()}
        odd = odd_one(at_of)
        if odd is not None:
            other = next(rank for rank in at_of if at_of[rank] != at_of[odd])
            raise RanksDisagree(
                f"in {self._what} rank {odd} is at {at_of[odd]}, and rank {other} at "
                f"{at_of[other]}: they run different programs",
                rank=odd,
                difference=f"at {at_of[odd]}, not {at_of[other]}",
            )


def _is_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError)
