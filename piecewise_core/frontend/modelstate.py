"""What the traces of one form of calls rest on: the model's tensors, and Python state they read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.capture.weak import lendable, unowned
from piecewise_core.frontend.layoutjudge import LayoutJudge
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.shared import Shared
from piecewise_core.frontend.successors import first_difference, objects_in, successors_of
from piecewise_core.graph.call import constants
from piecewise_core.graph.facts import Evaluated
from piecewise_core.graph.lying import Lying
from piecewise_core.graph.origins import Bind
from piecewise_core.graph.signatures import same_signature, signature_of
from piecewise_core.graph.structure import Structure, TensorLeaf
from piecewise_core.graph.trace import Traced
from piecewise_core.runtime.closure_walk import Reach, reach
from piecewise_core.runtime.object_paths import Otherwise, Paths, paths_of, same_places
from piecewise_core.runtime.parameters import Parameters
from piecewise_core.runtime.tracestate import TraceState
from piecewise_core.runtime.treestate import TreeState

__all__ = ["ModelState"]

_MOST_OUTDATED = 3
"""How many traces in a row may be given up as the model was written to meanwhile."""


def _nowhere() -> None:
    """Where the tensors of objects are that were let go."""


class ModelState:
    """``read()`` gives the tensors, or None where they have to be bound anew; ``check()`` is 0
    while nothing that traces read was written to.

    ``waits``: whether the objects of calls were let go, and others are still to come.
    ``structure``: of the calls. ``parameters``: the tensors; a copy of them is added to while a
    region is traced. ``version``: of all this: what was traced under another one is dropped.
    """

    def __init__(self, shared: Shared, structure: Structure, regions: Sequence[Region]) -> None:
        self._shared = shared
        self._structure = structure
        self._regions = regions
        self._checked = shared.config.check != "off"
        self.version = 0
        self._outdated = 0
        self._paths: Paths = {}
        self.waits = False
        self.forget()

    @property
    def is_outgrown(self) -> bool:
        """Whether calls that omit an argument mean others by it than those of ``structure``."""
        return not same_signature(signature_of(self._shared.fn), self._structure.signature)

    def regained(self) -> bool:
        """Take the tensors now in place, of objects too: beam search moves a cache's.

        ``read`` stays as it is, so that the next call frees the graphs of the old memory.
        """
        if self.parameters.rebind():
            return True
        if not self._paths or self.follow(self._structure) is not None:
            return False
        self.parameters.settle()
        return True

    def forget(self) -> None:
        """Know nothing of the model; no tensors yet."""
        self.version += 1
        self._shared.follow()
        self._judge = LayoutJudge(self._shared.fn, self._structure, self._shared.config)
        self._reach: Reach | None = None
        self._watched, self._lent = self._nothing(), self._nothing(of_objects=True)
        self.check: Callable[[], int] = self._watched.check
        self.parameters = self._none_yet()
        self.read: Callable[[], tuple[torch.Tensor, ...] | None] = tuple

    def _nothing(self, *, of_objects: bool = False) -> TraceState:
        """What traces read of the model, or ``of_objects`` of calls, before there is one."""
        return TraceState(self._shared.setup.selected.info.device_type, of_objects=of_objects)

    def _none_yet(self) -> Parameters:
        """What the model and its calls' objects hold; no tensors yet."""
        found = self._reached(self._structure)
        return Parameters(
            found.roots,
            found.called,
            found.anchors,
            found.objects,
            objects_in(self._structure),
            checked=self._checked,
            every=self._shared.memory is not None,
        )

    def _reached(self, structure: Structure) -> Reach:
        self._reach = self._reach or reach(self._shared.fn)
        return reach(self._shared.fn, objects_in(structure), self._reach)

    def now(self) -> TreeState | None:
        """What the model holds before it is traced; None where nothing is watched."""
        if not self._checked:
            return None
        fn, kind = self._shared.fn, self._shared.setup.selected.info.device_type
        owner = getattr(fn, "__self__", None)
        state = TreeState(fn, kind, owner if isinstance(owner, torch.nn.Module) else None)
        state.settle()
        return state

    def is_as_traced(self, region: Region, version: int, before: TreeState | None) -> bool:
        """Whether a trace that was begun at ``version`` is of the model as it is now.

        What was written to while it was traced is watched by nobody but ``before``: facts are read
        behind what Dynamo took, and may be of another moment. A model that is written to all the
        time is served by the trace that there is, after a few.
        """
        assumptions = region.program.traced.assumptions
        if self.version != version or assumptions is None or before is None:
            return self.version == version
        values = Evaluated(assumptions.scope(self._shared.fn, constants(self._structure)))
        holds = all(fact.broken(values) is None for fact in assumptions.looks())
        holds = holds and not (before.check() and before.look_again())
        self._outdated = 0 if holds else self._outdated + 1
        return holds or self._outdated > _MOST_OUTDATED

    def watch(self, traced: Traced) -> None:
        """Go by its tensors, which are bound, and watch what one trace took for granted."""
        self.parameters.settle()
        self._paths = paths_of(self.parameters.tensors, constants(self._structure))
        self._watch(traced, self._watched, self._lent, in_trees=self.parameters.in_trees)
        self._go_by()

    def _watch(self, traced: Traced, *states: TraceState, in_trees: Collection[int] = ()) -> None:
        self.version += 1
        for state in states if self._checked else ():
            fn, objects = self._shared.fn, constants(self._structure)
            outdated = self._outdated > _MOST_OUTDATED
            state.add(traced.assumptions, fn, objects, traced.words, in_trees, outdated=outdated)

    def follow(self, structure: Structure) -> str | None:
        """Go by the constant objects of ``structure`` in place of those so far; or why not.

        All that traces read of those must hold of these. Call ``settle`` then.
        """
        why = self.look_again() if self.check() else None
        if why is not None or not self._regions:
            return why or "nothing is traced that could serve it"
        if not self.parameters.stand(self._paths.keys(), self._reached(structure).roots):
            return "the model's modules, hooks or tensors are others"
        objects = constants(structure)
        successors = successors_of(objects_in(self._structure), objects_in(structure))
        if successors is None:
            return "its tensors lie in other places"
        lent = self._nothing(of_objects=True)
        try:
            tensors = same_places(self.parameters.tensors, self._paths, objects)
            for traced in (region.program.traced for region in self._regions):
                self._take_up(traced, lent, objects)
        except Otherwise as other:
            lent.close()
            return str(other)
        self._hold(structure, tensors, successors)
        self._lent, self.version = lent, self.version + 1
        return None

    def _take_up(self, traced: Traced, lent: TraceState, objects: Sequence[Any]) -> None:
        """Have ``lent`` watch what a trace read of ``objects``. Raises Otherwise if it differs."""
        fn, outdated = self._shared.fn, self._outdated > _MOST_OUTDATED
        unwatched = self._checked and not outdated
        why = first_difference(traced.assumptions, fn, objects, unwatched=unwatched)
        if why is None and self._checked:
            lent.add(traced.assumptions, fn, objects, traced.words, outdated=outdated)
            why = lent.changed
        if why is not None:
            raise Otherwise(why)

    def _hold(
        self, structure: Structure, tensors: Sequence[torch.Tensor], successors: Mapping[int, Any]
    ) -> None:
        self._structure, self.waits = structure, False
        self._judge = LayoutJudge(self._shared.fn, structure, self._shared.config)
        former, self.parameters = self.parameters, self._none_yet()
        self.parameters.succeed(former, tensors, self._paths.keys())
        self._lent.close()
        self._lent = self._nothing(of_objects=True)
        for traced in (region.program.traced for region in self._regions):
            traced.output.follow(successors)
            if traced.counted is not None:
                traced.counted.bind(constants(structure))

    def let_go(self, structure: Structure, others: Mapping[int, Any]) -> bool:
        """Keep neither the objects of calls nor their memory; others may ``follow``.

        ``others``: what stands in the place of each in ``structure``. Whether that could be done.
        """
        tensors = self.parameters.tensors
        done = bool(self._regions and self._paths) and self.parameters.loose <= self._paths.keys()
        if not done or not all(lendable(tensors[place]) for place in self._paths):
            return False
        alike = [unowned(t) if place in self._paths else t for place, t in enumerate(tensors)]
        self._hold(structure, alike, others)
        self.version, self.waits = self.version + 1, True
        self.read, self.check = _nowhere, self._watched.check
        return True

    def settle(self, *, followed: bool = False) -> None:
        """Go by what was added and watched; ``followed``: other objects were."""
        self.parameters.settle(followed=followed)
        self._go_by()

    def _go_by(self) -> None:
        self.read = self.parameters.read
        of_model, of_objects = self._watched.check, self._lent.check
        self.check = (lambda: of_model() or of_objects()) if self._lent else of_model

    def rebind(self) -> bool:
        """Take the tensors now in place, if they are of the kinds traced; whether they are."""
        if not self.regained():
            return False
        self.version += 1
        self._go_by()
        return True

    def look_again(self) -> str | None:
        """What is no longer as a trace found it, in one sentence; None after a false alarm."""
        states = [state for state in (self._watched, self._lent) if state.check()]
        why = next((why for state in states if (why := state.look_again()) is not None), None)
        self._go_by()
        if why is not None:
            if self._watched.switched:
                self._shared.scheduler.forget()
            self._shared.kept &= not any(state.beyond_facts for state in states)
        return why

    def layout_matters(self, leaf: TensorLeaf, lying: Lying) -> bool:
        """Whether the model does something else where an input lies so."""
        boxes = [r.general_box for r in self._regions if r.program.traced.asks_layout]
        may_trace = self._shared.sealed is None and not self._shared.setup.is_capturing()

        def binding() -> Bind:
            return self.parameters.copy().add  # for a trace that nothing is served from

        return self._judge.matters(boxes, leaf, lying, binding, may_trace=may_trace)
