"""``check="verify"``: a share of calls also runs as written, and the results are compared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.errors import OpContractBroken
from piecewise_core.frontend.bisecting import Suspect, bisect
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.comparing import DUE, Compared, NoRoom, compared
from piecewise_core.frontend.region import Region
from piecewise_core.ranges import Sizes
from piecewise_core.runtime.compared import kept
from piecewise_core.runtime.handedback import HandedBack
from piecewise_core.targets import Target

__all__ = ["Subject", "Verifier"]

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
        self._uneven = config.uneven
        self._counters = counters
        self._subject = subject
        self.wrong: dict[Key, str] = {}
        self._unsure: set[Key] = set()
        self._handed: dict[Key, HandedBack] = {}
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
        self._handed.clear()
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
        rate, credit, uneven = self._rate, 0.0, self._uneven

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            nonlocal credit
            if uneven is not None and sizes[0] in uneven:
                return entries[place](t, b, sizes, args, kwargs)  # the model takes no such size
            before, credit = credit, credit + rate
            key = (region.index, target)
            try:
                if credit < DUE:
                    return entries[place](t, b, sizes, args, kwargs)
                credit -= 1.0
                if key in self._unsure:
                    return entries[place](t, b, sizes, args, kwargs)
                return self._verified(key, entries[place], region, (t, b, sizes, args, kwargs))
            except Unready:  # the call comes again, and is as due as it was
                credit = before
                raise
            finally:
                if key in self.wrong:
                    serving[place] = self._written(region)

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
        # Weights are many, and what writes to them does so at every call: the first one tells.
        held = () if key in self._handed else suspect.held
        try:
            done = compared(
                suspect.as_written,
                lambda: served(*call),
                suspect.memory,
                suspect.generators,
                reads=suspect.reads,
                held=held,
                draws=region.draws is not None,
            )
        except NoRoom as error:
            logger.info("calls of %s are not verified now: %s", target, error)
            return served(*call)
        self._look_for_shared(key, suspect, done)
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
        if done.damaged:
            raise OpContractBroken(
                f"calls of {target} wrote to what is not theirs: {self.wrong[key]}. Load the "
                "model's weights again, and use another compiler or platform"
            )
        return done.wanted

    def _look_for_shared(self, key: Key, suspect: Suspect, done: Compared) -> None:
        """Whether a result lies in the memory of an earlier call's, which has lost its numbers.

        Results of static graphs do, which callers are told.
        """
        handed = self._handed.setdefault(key, HandedBack())
        if key[1].capture is not None:
            return

        def allowed() -> list[Any]:
            # Where the model's own results lie in memory that it holds, so may these.
            own = kept(done.wanted).values()
            return [*suspect.given, *suspect.tensors, *suspect.bound, *own]

        path = handed.again(done.leaves, allowed)
        if path is not None and done.how is None:
            done.blame(path, f"{path}: lies in the memory of an earlier call's result")
