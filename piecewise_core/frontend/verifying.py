"""``check="verify"``: a share of calls also runs as written, and the results are compared."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from piecewise_core.config import Config
from piecewise_core.counters import Counters
from piecewise_core.errors import OpContractBroken
from piecewise_core.frontend.bisecting import bisect
from piecewise_core.frontend.comparing import Compared, NoRoom, Turns, compared, together
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.suspects import FormSubject, GraphSubject, Suspect
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.replayable import Entry
from piecewise_core.runtime.compared import kept
from piecewise_core.runtime.handedback import HandedBack
from piecewise_core.targets import Target

__all__ = ["Verifier"]

logger = logging.getLogger(__name__)

Key = tuple[int, Target]


class Verifier:
    """Stands before the entries of every target: every so many calls of a target are compared.

    ``wrong``: targets found to give other results, and how; they are served as written.
    """

    def __init__(
        self,
        config: Config,
        counters: Counters,
        subject: FormSubject | GraphSubject,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._rate = config.verify_rate
        self._uneven = config.uneven
        self._counters = counters
        self.tallies = counters.tallies()
        self._subject = subject
        self.wrong: dict[Key, str] = {}
        self._turns: dict[Key, Turns] = {}
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
        self._turns.clear()
        self._handed.clear()
        self._beyond.clear()

    def watch(self, entries: list[Entry], targets: Sequence[tuple[Region, Target]]) -> list[Entry]:
        """What calls go to in place of ``entries``; the last entry has no target."""
        serving: list[Entry] = []
        for place, (region, target) in enumerate(targets):
            serving.append(self._sampled(serving, entries, place, region, target))
            if (region.index, target) in self.wrong:
                serving[place] = self._written(region, target)
        serving.append(entries[-1])
        return serving

    def _sampled(
        self, serving: list[Entry], entries: list[Entry], place: int, region: Region, target: Target
    ) -> Entry:
        key, uneven = (region.index, target), self._uneven
        turns = self._turns.setdefault(key, Turns(self._rate))

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            if turns.left:  # nothing more at these, which are most
                result = entries[place](t, b, sizes, args, kwargs)
                turns.left -= 1
                return result
            if uneven is not None and sizes[0] in uneven:  # the model takes no such size
                return entries[place](t, b, sizes, args, kwargs)
            try:
                result = self._verified(key, entries[place], region, (t, b, sizes, args, kwargs))
            finally:
                if key in self.wrong:
                    serving[place] = self._written(region, target)
            if turns.left == 0:  # after an exception the call comes again, and is as due as it was
                turns.begin()
            return result

        return entry

    def _written(self, region: Region, target: Target) -> Entry:
        """Serves a target that was wrong."""
        tally, subject = self.tallies.of("eager", target), self._subject

        def entry(t: Any, b: Any, sizes: Sizes, args: Any, kwargs: Any) -> Any:
            tally[sizes] += 1
            return subject.as_written(region, t, b, sizes, args, kwargs)

        return entry

    def _verified(self, key: Key, served: Entry, region: Region, call: Any) -> Any:
        suspect = self._subject.suspect(region, key[1], *call)
        # Weights are many, and what writes to them does so at every call: the first one tells.
        held = () if key in self._handed else suspect.held
        try:
            done = compared(
                together(self._ranks, suspect.as_written),
                lambda: served(*call),
                suspect.memory,
                suspect.generators,
                reads=suspect.reads,
                held=held,
                draws=region.draws is not None,
            )
        except NoRoom as error:
            logger.info("calls of %s are not verified now: %s", key[1], error)
            return served(*call)
        self._look_for_shared(key, suspect, done)
        done.agree(self._ranks)
        if done.how is not None and region.draws is not None:
            self._turns[key].end()
            logger.warning(
                "calls of %s cannot be verified: %s draws random numbers, and compiled code "
                "draws others",
                key[1],
                region.draws,
            )
            return done.result
        self._counters.add("verified")
        if done.how is None:
            return done.result
        self._counters.add("wrong")
        return self._convicted(key, region, call, suspect, done)

    def _convicted(
        self, key: Key, region: Region, call: Any, suspect: Suspect, done: Compared
    ) -> Any:
        """Say what is wrong, and give the model's own results. Raises OpContractBroken."""
        done.rewind()
        self.wrong[key] = f"{done.how}; {self._blamed(key, region, call, suspect, done)}"
        self._counters.tell("wrong", str(key[1]), call[2], 0, self.wrong[key])
        logger.error(
            "a call of sizes %s, served by %s, gave other results than the model as written: %s. "
            "This call has the model's own results, and calls of this target run as written from "
            "now on",
            call[2],
            key[1],
            self.wrong[key],
        )
        done.leave()
        if done.damaged:
            raise OpContractBroken(
                f"calls of {key[1]} wrote to what is not theirs: {self.wrong[key]}. Load the "
                "model's weights again, and use another compiler or platform"
            )
        return done.wanted

    def _blamed(self, key: Key, region: Region, call: Any, suspect: Suspect, done: Compared) -> str:
        """The piece that was wrong, and the line of the model."""
        if self._ranks.meeting is not None:
            # How many runs that takes depends on what is wrong, and each makes collectives.
            return "call bisect() on every rank to find the piece"
        # With the graphs that there are by now: the call may have been the first of its size.
        report = bisect(self._subject.suspect(region, key[1], *call))
        line = "" if report.source else suspect.made_at(done.path)
        return f"{report.blamed}{f', from {line}' if line else ''}"

    def _look_for_shared(self, key: Key, suspect: Suspect, done: Compared) -> None:
        """Whether a result lies in the memory of an earlier call's, which has lost its numbers.

        Results of static graphs do, as their documentation says.
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
