"""Turns one run of a plan into steps: a graph per compilable piece, a call per splitting op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.capture.ambient import Ambient
from piecewise_core.capture.collectives import of_copies, waited
from piecewise_core.capture.loose import Loose
from piecewise_core.capture.opsteps import allocate, another_path, flat, form_of, layout_of
from piecewise_core.capture.sequence import OpCall, StepSequence
from piecewise_core.capture.twostreams import TwoStreams
from piecewise_core.capture.weak import WeakTensors
from piecewise_core.errors import CaptureFailed
from piecewise_core.graph.collectives import is_collective
from piecewise_core.plugins import Declared
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.dispatcher import without_modes

__all__ = ["Recorder"]


class Recorder:
    """Runs a plan's pieces twice: first to warm up and see what operators return, then to capture.

    ``piece(label, run)`` and ``op(fn)`` wrap what the plan calls. After a run with
    ``capturing`` set, ``graphs`` holds the captured graphs and ``sequence`` all that a call does.

    ``made``: what each captured piece gave, in order, by address only; later pieces may take the
    memory. Empty where the driver has no ``weak_ref``. ``generator``: the device's, registered with
    every graph so that replays advance it.

    Splitting ops run in the second run only where they must: where a capture runs what it captures
    (the driver's ``runs_captures``), or where an operator returns memory that it was given. Else
    the first run has told what they return.

    ``like``: graphs of another size, with which those at the same places may share executables;
    None for graphs that have executables of their own. ``draws``: whether the first run drew random
    numbers: torch advances generators by what the graph drew that an executable was made of.

    ``streams``: what forks of a program run on; None for the one stream. ``reshaping``: a run
    changes sizes of tensor objects that operators were given before. ``strict``: steps check that
    operators return what they did when captured. ``lasting``: what the first run noted holds no
    tensors, so that the second may come any time later.

    The buffers that take an operator's results are allocated inside the capture of the piece
    before it, so that they come from the pool and are shared with other sizes.
    """

    strict, lasting, draws = False, True, False

    def __init__(self, platform: Declared, pool: Any, stream: Any) -> None:
        self._platform = platform
        graphs = platform.graphs
        self._capture_begin, self._capture_end = graphs.capture_begin, graphs.capture_end
        self.device_type = platform.device_type
        self._ambient = Ambient(self.device_type)
        self.pool = pool
        self.stream = stream
        self._results: list[list[tuple[Any, ...] | None]] = []
        self.sequence = StepSequence()
        self._next: list[torch.Tensor | None] = []
        self._seen = 0
        self._forms: list[tuple[Any, list[Any]]] = []
        self._form_of_op: list[list[Any]] = []
        self._runs_ops = True
        self._returns_given = False
        self._groups: list[int] = []
        self.graphs: list[Any] = []
        self.made: list[tuple[torch.Tensor, ...]] = []
        self.weak = None if platform.weak_ref is None else WeakTensors(platform.weak_ref)
        self.generator: Any = None
        self.like: Sequence[Any] | None = None
        self.reshaping = self.capturing = False
        self.streams: TwoStreams | None = None
        self.current = "its beginning"

    @property
    def external(self) -> tuple[torch.Tensor, ...]:
        """Tensors that graphs read and that only a run itself reveals."""
        return ()

    @property
    def platform(self) -> Declared:
        """What captures."""
        return self._platform

    # Wrapping what the plan calls ------------------------------------------------------

    def piece(self, label: str, run: Callable[..., Any], pool: Any = None) -> Callable[..., Any]:
        """A compilable piece: run in warm-up, captured afterwards, into ``pool`` or its own."""

        def recorded(*args: Any) -> Any:
            self.current = label
            if not self.capturing:
                self._groups.append(len(self._results))
                return run(*args)
            return self._capture(run, args, pool)

        return recorded

    def op(
        self, fn: Callable[..., Any], fit: Callable[[Any], Any] | None = None
    ) -> Callable[..., Any]:
        """A splitting op: run both times, its results kept where graphs can read them.

        ``fit``: brings a result to the layout that graphs are made for. Replays copy into memory
        of that layout.
        """
        now, fn = (of_copies(fn), waited(fn)) if is_collective(fn) else (fn, fn)
        name = getattr(fn, "__name__", None) or str(fn)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.current = name
            if not self.capturing:
                found = now(*args, **kwargs)
                return self._noted_op(found if fit is None else fit(found), (args, kwargs))
            buffers = self._buffers_of(self._seen)
            if self._runs_ops:
                leaves, spec = flat(now(*args, **kwargs))
                if form_of(leaves) != self._form_of_op[self._seen]:
                    raise CaptureFailed(another_path(self.current))
                kept = [
                    leaf if buffer is None else buffer.copy_(leaf)
                    for leaf, buffer in zip(leaves, buffers, strict=True)
                ]
            else:
                spec, plain = self._forms[self._seen]
                kept = [b if b is not None else v for b, v in zip(buffers, plain, strict=True)]
            for loose in kept:
                if isinstance(loose, Loose):
                    loose.given = args
            form = self._form_of_op[self._seen]
            self._seen += 1
            around, alone = self._ambient.inside(), spec is None
            args, kwargs, fixed = self._fixed((args, kwargs, buffers))
            self.sequence.append(OpCall(fn, args, kwargs, around, alone, form, fixed))
            return kept[0] if spec is None else pytree.tree_unflatten(kept, spec)

        return recorded

    def _noted_op(self, result: Any, given: Any) -> Any:
        """Note what an operator returned in the first run."""
        leaves, spec = flat(result)
        layouts = [layout_of(leaf, given) for leaf in leaves]
        known = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        self._results.append(layouts)
        self._form_of_op.append(form_of(leaves))
        self._forms.append(
            (spec, [None if t else leaf for t, leaf in zip(known, leaves, strict=True)])
        )
        if any(t and layout is None for t, layout in zip(known, layouts, strict=True)):
            self._returns_given = True
        return result

    def _unsee(self) -> None:
        """Know of nothing that operators returned."""
        for noted in (self._results, self._form_of_op, self._forms, self._groups):
            noted.clear()
        self._returns_given = False

    def _add_step(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        buffers: Sequence[torch.Tensor | None],
    ) -> None:
        """Have ``fn`` called before the graph that is open, at every replay."""
        around, alone = self._ambient.inside(), len(buffers) == 1
        args, kwargs = self._fixed((args, kwargs))
        self.sequence.append(OpCall(fn, args, kwargs, around, alone, [], list(buffers)))

    def _fixed(self, held: Any) -> Any:
        """``held``, its tensors of these sizes and strides whatever becomes of the objects."""
        if not self.reshaping:
            return held
        with torch.inference_mode(False), torch.no_grad(), without_modes():
            return pytree.tree_map_only(torch.Tensor, torch.ops.aten.alias.default, held)

    def rehearse(self, run: Callable[[], Any]) -> None:
        """The first run: warms up, and notes what operators return."""
        generators = [] if self.generator is None or self.like is None else [self.generator]
        before = [g.get_state() for g in generators]
        run()
        self.draws = not all(map(torch.equal, before, [g.get_state() for g in generators]))

    def record(self, run: Callable[[], Any]) -> Any:
        """The second run: ``run()`` with every piece captured as it comes."""
        self._runs_ops = self._returns_given or self._platform.runs_captures
        return run()

    def put_back(self) -> None:
        """Undo writes to memory that only a run itself reveals."""

    # The second run --------------------------------------------------------------------

    def _capture(self, run: Callable[..., Any], args: tuple[Any, ...], pool: Any = None) -> Any:
        following = self._following(len(self.graphs))
        graph = self._begin_graph(pool)
        result = run(*args)
        self._next += [allocate(layout) for layout in following]
        self._capture_end(graph)
        if self._runs_ops:
            # Capturing ran nothing: the next splitting op must not read garbage.
            self._platform.graphs.replay(graph)
        self.sequence.append(graph)
        self.made.append(() if self.weak is None else self.weak.all_of(result))
        return result

    def _new_graph(self) -> Any:
        like, make = None if self.draws else self.like, self._platform.graph_like
        if like is None or make is None:
            return self._platform.graphs.new_graph()
        return make(next(iter(like[len(self.graphs) :]), None))

    def _begin_graph(self, pool: Any = None) -> Any:
        graph = self._new_graph()
        self.graphs.append(graph)
        register = self._platform.register_generator
        if register is not None and self.generator is not None:
            register(graph, self.generator)
        self._capture_begin(graph, self.pool if pool is None else pool, self.stream)
        return graph

    def _following(self, piece: int) -> list[tuple[Any, ...] | None]:
        """Layouts of what the operators between this piece and the next return."""
        start = self._groups[piece]
        end = self._groups[piece + 1] if piece + 1 < len(self._groups) else len(self._results)
        return [layout for op in self._results[start:end] for layout in op]

    def _buffers_of(self, op: int) -> list[torch.Tensor | None]:
        if op >= len(self._results):
            raise CaptureFailed(another_path(self.current))
        count = len(self._results[op])
        if len(self._next) < count:
            # Operators before the first piece have no capture to allocate in.
            self._next += [allocate(layout) for layout in self._results[op]]
        taken, self._next = self._next[:count], self._next[count:]
        return taken

    def forget(self) -> None:
        """Let go of every tensor; what was recorded must not wait for a garbage collector."""
        for noted in (self.sequence, self._next, self._results, self._forms, self.made):
            noted.clear()
        if self.weak is not None:
            self.weak.forget()
