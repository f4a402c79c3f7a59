"""The Python state that traces read: watched through what holds it, asked again on an alarm.

What a trace took for granted is a list of expressions with answers (`graph.assumptions`). They are
walked once to see which containers they go through, and what each must hold (`reading`); these are
watched. After a write only what was written to is compared; where it holds other objects than it
did, all facts are asked anew, since an equal object may have come in the place of another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from piecewise_core.graph.assumptions import Assumptions
from piecewise_core.graph.facts import Evaluated, Fact, Scope
from piecewise_core.runtime.holdings import Holdings
from piecewise_core.runtime.polls import Switch
from piecewise_core.runtime.reading import Reading
from piecewise_core.runtime.switches import switches
from piecewise_core.runtime.watch import Watch

__all__ = ["TraceState"]


class TraceState:
    """Watches what the traces of one callable read of the model, and torch's switches.

    ``of_objects``: or what they read of the objects that calls bring. Others take the place of
    those, with a state of their own; the model's stays.

    ``check()`` is 0 while nothing was written; else ``look_again()`` says what changed, at every
    look until facts hold again: who asks first need not be who serves.
    ``changed``: what did when it was last looked for, in one sentence.
    ``beyond_facts``: whether that was something that no fact says: a kept trace whose facts hold
    may be wrong then too. ``switched``: whether that was one of torch's switches: what was compiled
    under it may be wrong. ``device_type``: the platform's.
    """

    check: Callable[[], int]

    def __init__(self, device_type: str, *, of_objects: bool = False) -> None:
        self._device_type = device_type
        self._of_objects = of_objects
        self._words: set[str] = set()
        self._facts: list[tuple[Fact, Scope]] = []
        self._counting: list[tuple[str, Scope]] = []
        self._known: set[tuple[str, str]] = set()
        self._ran: set[tuple[str, str]] = set()
        self.beyond_facts = self.switched = False
        self.changed: str | None = None
        self.check = lambda: 0

    def add(
        self,
        assumptions: Assumptions | None,
        fn: Any,
        objects: Sequence[Any],
        words: Collection[str] = (),
        in_trees: Collection[int] = (),
        *,
        outdated: bool = False,
    ) -> None:
        """Watch what one trace took for granted of ``fn`` and its calls' constants ``objects``.

        ``words``: what its code names of `graph.questions.WATCHED`. ``in_trees``: ids of tensors in
        module trees, where others look at them. ``outdated``: it is known not to hold, and served
        all the same.
        """
        if assumptions is None:
            return
        # What is of the model must not keep the objects of a call that is over.
        scope = assumptions.scope(fn, objects if self._of_objects else ())
        for fact in assumptions.looks(self._of_objects, scope, in_trees):
            key = (fact.source, str(fact.question))
            if key not in self._known:
                self._known.add(key)
                self._facts.append((fact, scope))
        if self._of_objects:
            self._counting += [(owner, scope) for owner in assumptions.counting]
        self._words.update(words)
        if self._of_objects and not self._facts:
            return
        self._ran |= {(code.module, code.name) for code in assumptions.code}
        self._take(self._reading_now())
        if not outdated:
            self.changed = self.changed or self._written_meanwhile()
            self.check = self._checked()

    def close(self) -> None:
        """Watch nothing any more, and keep nothing."""
        if self._facts:
            self._watch.close()
            self.check = lambda: 0
            del self._reading
        self._facts.clear()
        self._counting.clear()

    def __len__(self) -> int:
        return len(self._facts)

    def look_again(self) -> str | None:
        """What is no longer as a trace found it, in one sentence; None after a false alarm."""
        concerned = self._watch.renew()
        switch = next((c for c in concerned if isinstance(c, Switch)), None)
        if switch is not None:
            self.switched, self.changed = True, switch.change()
        elif not self.switched and not (
            self.changed is None and all(map(self._reading.holdings.holds, concerned))
        ):
            self.changed = self._ask_all()
        self.check = self._checked()
        return self.changed

    def _checked(self) -> Callable[[], int]:
        return self._watch.check if self.changed is None else lambda: 1

    def _ask_all(self) -> str | None:
        """The same of every fact; what is there now is watched from here on."""
        before, now = self._reading, self._reading_now()
        place = now.differs(before)
        if place is not None:
            fact, scope = self._facts[place]
            why = fact.broken(Evaluated(scope))
            self.beyond_facts = why is None
            return why or f"{fact.text} is another object"
        other = now.surroundings_differ(before)
        self.beyond_facts = other is not None
        if other is None:
            self._take(now)
            other = self._written_meanwhile()
        return other

    def _written_meanwhile(self) -> str | None:
        """What was written before it was watched, by another thread: asked now that it is."""
        why = self._reading.broken(self._facts)
        if why is not None:
            return why
        if self._reading.stands(self._watch.containers):
            return None
        again = self._reading_now()
        switch = again.holdings.switched_since(self._reading.holdings)
        if switch is not None:
            self.switched = True
            return switch.change()
        place = again.differs(self._reading)
        if place is not None:
            return f"{self._facts[place][0].text} is another object"
        return again.surroundings_differ(self._reading)

    def _reading_now(self) -> Reading:
        torchs = () if self._of_objects else switches(self._device_type, self._words)
        return Reading(self._facts, Holdings(self._ran, self._counting_now(), torchs))

    def _counting_now(self) -> Iterator[Any]:
        for owner, scope in self._counting:
            with suppress(Exception):  # it is not there any more
                yield Evaluated(scope)[owner]

    def _take(self, reading: Reading) -> None:
        self._reading = reading
        self._watch = Watch(reading.holdings.containers())
        self.check = self._checked()
