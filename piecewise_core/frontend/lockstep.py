"""One call run in every way at once, piece by piece: as written, compiled, captured, padded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from piecewise_core.capture.copied_outputs import taken
from piecewise_core.capture.preserved import Preserved
from piecewise_core.frontend.suspects import Suspect
from piecewise_core.graph.effects import writes
from piecewise_core.ranges import Sizes
from piecewise_core.replay.agreement import difference
from piecewise_core.runtime.fingerprints import Fingerprints
from piecewise_core.runtime.marks import Marks
from piecewise_core.runtime.plan import Steps
from piecewise_core.torch_compat.modules import forward_of
from piecewise_core.torch_compat.storages import memory_key, storage_key

__all__ = ["Finding", "Lockstep", "copied"]


@dataclass(frozen=True)
class Finding:
    """Where the ways first part: in which stage, at which piece (None: behind the last), how."""

    stage: str
    piece: int | None
    how: str


class Lockstep:
    """Runs one call's ways side by side; the inputs of its static graphs are staged.

    After ``find``, ``written`` has the outputs as written and ``given`` what that run was given and
    wrote to, ``prints`` its fingerprints, whose places are pieces, and ``damaged`` whether compiled
    code wrote to a tensor of the model's that it must not.
    """

    def __init__(self, suspect: Suspect) -> None:
        self._suspect = suspect
        self._region = suspect.region
        self._plan = suspect.plan
        self._piece = 0
        self._pending: list[tuple[int, tuple[Any, ...], tuple[Any, ...]]] = []
        self.written: tuple[Any, ...] = ()
        self.damaged = False
        self.given = _copies(suspect)
        self._mode = Fingerprints(lambda: self._piece)
        self.prints = self._mode.prints

    def find(self) -> Finding | None:
        """Run to the end; the first difference."""
        found: Finding | None = None
        for each in self._findings():
            found = found or each
        return found

    def _findings(self) -> Iterator[Finding]:
        written = self._chain(self._watched(), self.given, self._suspect.sizes)
        own, larger, replays = self._served()
        # A forward captured as one graph leaves nothing between its pieces to look at.
        by_piece = self._plan is not None and len(self._plan.made) == len(
            self._region.program.compilable
        )
        for piece in self._region.program.pieces:
            self._piece = piece.index
            state = self._state()
            with self._mode:
                _, as_written = next(written)
            after = self._state()
            state.put_back()
            yield from self._compiled(piece.index, as_written)
            made = []
            for chain in (own, larger):
                if chain is not None:
                    state.put_back()
                    made.append(next(chain)[1])
            if by_piece and not piece.splitting:
                state.put_back()
                found = _apart(next(replays, ()), made[1])
                if found is not None:
                    yield Finding("captured", piece.index, found)
            if len(made) == 2:
                found = self._padded(made[0], made[1])
                if found is not None:
                    yield Finding("padded", piece.index, found)
            after.put_back()
        with self._mode:
            self.written = _end(written)
        yield from self._ends(larger, replays)

    def _ends(self, larger: Steps | None, replays: Any) -> Iterator[Finding]:
        if larger is None or replays is None or self._plan is None:
            return
        for _ in replays:
            pass
        outputs = _end(larger)
        pairs = [
            (a, b)
            for a, b in zip(taken(self._plan.outputs), outputs, strict=True)
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        ]
        found = _apart([a for a, _ in pairs], [b for _, b in pairs])
        if found is not None:
            yield Finding("captured", None, found)

    # The ways ----------------------------------------------------------------------------

    def _chain(self, runs: Sequence[Callable[..., Any]], given: Any, sizes: Sizes) -> Steps:
        tensors, bound = given
        return self._region.code.steps(runs)(tensors, bound, *sizes)

    def _watched(self) -> list[Callable[..., Any]]:
        """Pieces as written that keep what they are given, for the compiled ones."""
        held = {memory_key(t) for t in self.given[1]}

        def watch(place: int, run: Callable[..., Any], changes: bool) -> Callable[..., Any]:
            def written(*args: Any) -> Any:
                self._mode.paused = True  # copies are no part of the program
                # Weights are many: they are copied only for a piece that says it writes.
                own = args if changes else [None if _lies_in(a, held) else a for a in args]
                made = [b if a is None else a for a, b in zip(copied(own), args, strict=True)]
                self._pending = [(place, tuple(made), args)]
                self._mode.paused = False
                return run(*args)

            return written

        pieces = self._region.program.compilable
        return [
            watch(place, forward_of(piece.graph), any(map(writes, piece.nodes)))
            for place, piece in enumerate(pieces)
            if piece.graph is not None
        ]

    def _served(self) -> tuple[Steps | None, Steps | None, Any]:
        """The compiled chains at the call's own sizes and at the captured ones, and the replays."""
        if self._plan is None:
            return None, None, None
        sizes, captured = self._suspect.sizes, self._plan.sizes
        own = self._chain(self._runs(sizes), _copies(self._suspect), sizes)
        given = [t.clone() for t in self._suspect.buffers], _copies(self._suspect)[1]
        larger = self._chain(self._runs(captured), given, captured)
        return own, larger, self._plan.walk()

    def _runs(self, sizes: Sizes) -> list[Callable[..., Any]]:
        region = self._region
        inside = region.box is not None and sizes in region.box
        box = region.fallback(sizes).box if inside else region.general_box
        return [run for _, run in region.runnables(box)]

    # Comparing ---------------------------------------------------------------------------

    def _compiled(self, index: int, as_written: Sequence[torch.Tensor]) -> Iterator[Finding]:
        for place, args, left in self._pending:
            run = self._runs(self._suspect.sizes)[place]
            weights = Marks(a for a, b in zip(args, left, strict=True) if a is b and _is_tensor(a))
            found = _apart(_tensors(run(*args)), as_written)
            if weights.changed() is not None:
                self.damaged = True
                found = "a tensor of the model, which the piece does not write to, was written to"
            # What the piece was given is to hold what the piece as written has left in it.
            found = found or _apart(_tensors(args), _tensors(left))
            if found is not None:
                yield Finding("compiled", index, found)
        self._pending = []

    def _padded(self, own: Sequence[torch.Tensor], larger: Sequence[torch.Tensor]) -> str | None:
        """Compare what can be cut: dims of the call, at whose ends padding lies."""
        dims = set(zip(self._plan.sizes if self._plan else (), self._suspect.sizes, strict=True))
        cut, wanted = [], []
        for a, b in zip(larger, own, strict=True):
            pairs = list(zip(a.shape, b.shape, strict=True)) if a.dim() == b.dim() else [(1, 0)]
            if all(x == y or (x, y) in dims for x, y in pairs):
                for axis, (_, size) in enumerate(pairs):
                    a = a.narrow(axis, 0, size)
                cut.append(a)
                wanted.append(b)
        return _apart(cut, wanted)

    def _state(self) -> Preserved:
        return Preserved((), self._suspect.generators, draws=True)


def _apart(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> str | None:
    if len(got) != len(wanted):
        return None  # a platform that tells nothing of what its graphs hold
    found = difference(got, wanted)
    return None if found is None else found.how


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    return [value for value in values if _is_tensor(value)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _lies_in(value: Any, memory: Collection[int]) -> bool:
    return _is_tensor(value) and memory_key(value) in memory


def _end(chain: Steps) -> tuple[Any, ...]:
    try:
        next(chain)
    except StopIteration as stop:
        outputs: tuple[Any, ...] = stop.value
        return outputs
    raise RuntimeError("a plan has more pieces than its program")


def _copies(suspect: Suspect) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A call's tensors, those that the program writes to as copies."""
    program = suspect.region.program
    return (
        [t.clone() if i in program.mutated else t for i, t in enumerate(suspect.tensors)],
        [t.clone() if i in program.mutated_bound else t for i, t in enumerate(suspect.bound)],
    )


def copied(values: Sequence[Any]) -> tuple[Any, ...]:
    """``values`` with the tensors' memory copied; what shares memory still does."""
    memory: dict[int, torch.UntypedStorage] = {}

    def of(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        storage = value.untyped_storage()
        if storage_key(storage) not in memory:
            memory[storage_key(storage)] = storage.clone()  # type: ignore[no-untyped-call]
        made = torch.empty(0, dtype=value.dtype, device=value.device)
        return made.set_(
            memory[storage_key(storage)], value.storage_offset(), value.size(), value.stride()
        )

    return tuple(map(of, values))
