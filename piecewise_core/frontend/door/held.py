"""A Dynamo graph's static graphs, for one place of the tensors that the model holds.

No guard of Dynamo's asks where tensors lie. Layers that are compiled as one code come with their
own parameters each, and parameters move: each set of addresses has graphs of its own.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.frontend.capturing import Capturing
from piecewise_core.frontend.dispatch import Dispatch
from piecewise_core.frontend.door.calls import DoorCalls
from piecewise_core.frontend.door.sizes import UnlistedSizes
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.suspects import GraphSubject
from piecewise_core.frontend.verifying import Verifier
from piecewise_core.replay.replayable import Entry

__all__ = ["Held", "Watched", "over"]


class Held:
    """Serves calls whose held tensors lie at ``addresses``.

    ``at``: the same, by places among a call's inputs. ``bound``: these tensors, under objects of
    our own: the caller's may go, and then we are told.
    ``gone``: is called when one of ``marked``, places of parameters and buffers, is no more.
    ``serve``: ``(tensors, bound, sizes, args, kwargs) -> result``.
    ``rests``: whether tensors are gone that graphs only write to: others may come to lie there.
    """

    def __init__(
        self,
        made: Any,
        calls: DoorCalls,
        bound: Sequence[torch.Tensor],
        marked: Sequence[int],
        gone: Callable[[], None],
    ) -> None:
        setup = made.setup
        self.addresses = [t.data_ptr() for t in bound]
        self.at: list[int | None] = [None] * made.inputs
        for place, address in zip(made.places, self.addresses, strict=True):
            self.at[place] = address
        with torch.inference_mode(False):
            self.bound = tuple(map(over, bound))
        self._marked, self._gone = marked, gone
        self._watched = Watched([bound[i] for i in marked], gone)
        self.rests = False
        # Inside of somebody else's capture calls are served without graphs of ours.
        self.capturing = Capturing(
            setup, made.counters, made.memory.graphs, lambda: not setup.is_capturing()
        )
        self.capturing.replays.begin(calls)
        self._lent = self.capturing.lent(made.region, bound)
        self.verifier: Verifier | None = None
        if setup.config.check == "verify":
            subject = GraphSubject(setup, self.capturing)
            self.verifier = Verifier(setup.config, made.counters, subject)
        self.dispatch = Dispatch(
            setup.config, made.counters, made.background, made.miss, self.capturing, self.verifier
        )
        self._install(made, made.region)

    def _install(self, made: Any, region: Region) -> None:
        dispatch = self.dispatch
        dispatch.install(made.setup.config.bounds, [region])
        exact = made.setup.config.capture_compile == "exact"
        self._sizes = UnlistedSizes(region, dispatch, self.capturing, self.verifier, exact)
        self.serve: Entry = self._sizes.serve if made.every_size else self._listed

    def _listed(self, t: Any, b: Any, sizes: Any, args: Any, kwargs: Any) -> Any:
        dispatch = self.dispatch
        return dispatch.serving[dispatch.find(*sizes)](t, b, sizes, args, kwargs)

    @property
    def is_stale(self) -> bool:
        """Whether a held tensor is gone, or lies elsewhere by now."""
        return self._watched.is_stale

    def rest(self) -> bool:
        """Let the tensors go, some of which are gone; whether the graphs hold for others there."""
        gone = set(self._watched.gone())
        self.rests = False
        if len(self.capturing.plans) and {self._marked[i] for i in gone} <= self._lent:
            self.bound = ()
            self.capturing.replays.follow(())
            self._watched.forget(gone)  # not the weights: graphs may know what these hold
            self.rests = bool(self.capturing.plans)
        return self.rests

    def wake(self, bound: Sequence[torch.Tensor]) -> bool:
        """Serve calls with ``bound``, which lie where those lay; not if the graphs are gone."""
        self.capturing.replays.follow(tuple(self.addresses))
        with torch.inference_mode(False):
            self.bound = tuple(map(over, bound))
        self._watched, self.rests = Watched([bound[i] for i in self._marked], self._gone), False
        return len(self.capturing.plans) > 0

    def release(self, *, collect: bool = False) -> None:
        """Free the graphs, and let the tensors go; ``collect``: garbage too.

        It serves no call any more.
        """
        plans = self.capturing.replays
        plans.release(later=not plans.memory.callers.cloning, collect=collect)
        self._sizes.forget()
        self.bound = ()


class Watched:
    """Tensors of the caller's, not kept alive. ``gone``, a method, is called when one dies."""

    def __init__(self, tensors: Sequence[torch.Tensor], gone: Callable[[], None]) -> None:
        tell = weakref.WeakMethod(gone)
        self._refs = {
            place: (weakref.ref(t, partial(_call, tell, sys.is_finalizing)), t.data_ptr())
            for place, t in enumerate(tensors)
        }

    @property
    def is_stale(self) -> bool:
        """Whether one is gone, or lies elsewhere by now."""
        return any(True for _ in self.gone())

    def gone(self) -> Iterator[int]:
        """The places of those."""
        for place, (ref, address) in list(self._refs.items()):
            tensor = ref()
            if tensor is None or tensor.data_ptr() != address:
                yield place

    def forget(self, places: Iterable[int]) -> None:
        """Watch these no more."""
        for place in places:
            del self._refs[place]


def over(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor over the same memory."""
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return made.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _call(
    tell: weakref.WeakMethod[Callable[[], None]], is_ending: Callable[[], bool], _: object
) -> None:
    gone = tell()
    if gone is not None and not is_ending():  # modules are taken apart then
        gone()
