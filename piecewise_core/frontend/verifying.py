"""``check="verify"``: a share of calls also runs as written, and the results are compared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.frontend.bisecting import Suspect, bisect
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.region import Region
from piecewise_core.ranges import Sizes, Target
from piecewise_core.runtime.compared import apart, kept, parted
from piecewise_core.runtime.preserved import Preserved
from piecewise_core.runtime.readonly import ReadOnly

__all__ = ["Compared", "NoRoom", "Subject", "Verifier", "compared", "due"]

logger = logging.getLogger(__name__)

Entry = Callable[..., Any]
Key = tuple[int, Target]


class Subject(Protocol):
    """What the verified model is asked."""

    def as_written(self, region: Region, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any) -> Any:
        """Run one call of the model as its user wrote it."""
        ...

    def suspect(
        self, region: Region, target: Target, t: Any, b: Any, sizes: Sizes, args: Any, kw: Any
    ) -> Suspect:
        """One call, for bisection."""
        ...


class Verifier:
    """Stands before the entries of every target: every so many calls of a target are compared.

    ``wrong``: targets found to give other results, and how; they are served as written.
    """

    def __init__(self, config: Config, counters: Counters, subject: Subject) -> None:
        self._rate = config.verify_rate
        self._counters = counters
        self._subject = subject
        self.wrong: dict[Key, str] = {}
        self._unsure: set[Key] = set()
        self._beyond: dict[int, list[Entry]] = {}

    def beyond(self, region: Region, general: Entry) -> Entry:
        """What calls above the bounds go to in place of ``general``, the region's general graph."""
        if region.index not in self._beyond:
            serving = self._beyond[region.index] = []
            target = Target("general", region.general_box)
            serving.append(self._sampled(serving, [general], 0, region, target))
        return self._beyond[region.index][0]

    def forget(self) -> None:
        """The model is traced anew: what was wrong may be no more."""
        self.wrong.clear()
        self._unsure.clear()
        self._beyond.clear()

    def watch(self, entries: list[Entry], targets: Sequence[tuple[Region, Target]]) -> list[Entry]:
        """What calls go to in place of ``entries``; the last entry has no target."""
        serving: list[Entry] = []
        for place, (region, target) in enumerate(targets):
            serving.append(self._sampled(serving, entries, place, region, target))
            if (region.index, target) in self.wrong:
                serving[place] = self._written(region)
        serving.append(entries[-1])
        return serving

    def _sampled(
        self, serving: list[Entry], entries: list[Entry], place: int, region: Region, target: Target
    ) -> Entry:
        rate, credit = self._rate, 0.0

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            nonlocal credit
            before, credit = credit, credit + rate
            key = (region.index, target)
            try:
                if credit < _DUE:
                    return entries[place](t, b, sizes, args, kwargs)
                credit -= 1.0
                if key in self._unsure:
                    return entries[place](t, b, sizes, args, kwargs)
                result = self._verified(key, entries[place], region, (t, b, sizes, args, kwargs))
            except Unready:  # the call comes again, and is as due as it was
                credit = before
                raise
            if key in self.wrong:
                serving[place] = self._written(region)
            return result

        return entry

    def _written(self, region: Region) -> Entry:
        """Serves a target that was wrong."""
        calls, subject = self._counters.calls, self._subject

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            calls["eager"] += 1
            return subject.as_written(region, t, b, sizes, args, kwargs)

        return entry

    def _verified(self, key: Key, served: Entry, region: Region, call: Any) -> Any:
        target = key[1]
        suspect = self._subject.suspect(region, target, *call)
        try:
            done = compared(
                suspect.as_written,
                lambda: served(*call),
                suspect.memory,
                suspect.generators,
                reads=suspect.reads,
                draws=region.draws is not None,
            )
        except NoRoom as error:
            logger.info("calls of %s are not verified now: %s", target, error)
            return served(*call)
        if done.how is not None and region.draws is not None:
            self._unsure.add(key)
            logger.warning(
                "calls of %s cannot be verified: %s draws random numbers, and compiled code "
                "draws others",
                target,
                region.draws,
            )
            return done.result
        self._counters.add("verified")
        if done.how is None:
            return done.result
        self._counters.add("wrong")
        done.rewind()
        # With the graphs that there are by now: the call may have been the first of its size.
        report = bisect(self._subject.suspect(region, target, *call))
        line = "" if report.source else suspect.made_at(done.path)
        self.wrong[key] = f"{done.how}; {report.blamed}{f', from {line}' if line else ''}"
        logger.error(
            "a call of sizes %s, served by %s, gave other results than the model as written: %s. "
            "This call has the model's own results, and calls of this target run as written from "
            "now on",
            call[2],
            target,
            self.wrong[key],
        )
        done.leave()
        return done.wanted


_DUE = 1.0 - 1e-9
"""Credit at which a call is compared: shares such as 0.1 do not add up to 1 exactly."""


class NoRoom(Exception):
    """There is no memory to run the model as written beside what serves it."""


def due(credit: float, rate: float) -> tuple[float, bool]:
    """The credit of a target behind one call more, and whether that call is to be compared."""
    credit += rate
    return (credit - 1.0, True) if credit >= _DUE else (credit, False)


class Compared:
    """One call run as written and as it is served, and how the two are apart.

    ``result``: the served one; its writes are what stays. ``wanted``: the model's own. ``path``:
    of the leaf that differs; "memory[0]" is the first that is written to. ``before``, ``after``:
    what the call writes to, as it was and as the model left it. ``reads``: what it does not.
    """

    def __init__(
        self,
        result: Any,
        wanted: Any,
        found: tuple[str, str] | None,
        before: Preserved,
        after: Preserved,
        reads: ReadOnly,
    ) -> None:
        self.result, self.wanted = result, wanted
        self.path = "" if found is None else found[0]
        self.how = None if found is None else found[1]
        self._before, self._after, self._reads = before, after, reads

    def rewind(self) -> None:
        """Make all memory as it was before the call."""
        self._before.put_back()
        self._reads.put_back()

    def leave(self) -> None:
        """Make all memory as the model left it."""
        self._after.put_back()
        self._reads.leave()

    @property
    def drew(self) -> bool:
        """Whether the model drew random numbers."""
        return self._before.states_differ(self._after)


def compared(
    as_written: Callable[[], Any],
    served: Callable[[], Any],
    memory: Sequence[torch.Tensor],
    generators: Sequence[Any],
    *,
    reads: Sequence[torch.Tensor] = (),
    draws: bool = True,
) -> Compared:
    """Run one call both ways, with the effects of one. Raises what the model itself raises.

    ``memory``: the tensors that it writes to. ``reads``: those that nothing is to write to.
    ``generators``: of devices. ``draws``: whether it may draw random numbers.
    """
    try:
        before, given = Preserved(memory, generators, draws=draws), ReadOnly(reads)
        try:
            wanted = as_written()
            # A result may lie in memory that is about to be put back, or written to.
            theirs = kept(wanted, copy=bool(memory) or bool(reads))
            after = before.take()
        finally:
            before.put_back()
        given.turn()
    except torch.OutOfMemoryError as error:
        raise NoRoom(str(error)) from error
    result = served()
    with torch.no_grad():
        found = parted(kept(result), theirs) or _written(after) or _scribbled(given)
    return Compared(result, wanted, found, before, after, given)


def _written(after: Preserved) -> tuple[str, str] | None:
    """How memory that is written to is apart from what the model left in it."""
    for place, (now, value) in enumerate(zip(after.now, after.values, strict=True)):
        how = apart({"": now}, {"": value})
        if how is not None:
            return f"memory[{place}]", f"memory that is written to{how}"
    return None


def _scribbled(given: ReadOnly) -> tuple[str, str] | None:
    how = given.changed()
    return None if how is None else ("", f"an input that the model does not write to: {how}")
