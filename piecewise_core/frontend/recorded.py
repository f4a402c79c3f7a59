"""``pw.record``: static graphs of any callable, without a tracer or a compiler."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from piecewise_core.capture.buffers import FixedInputs, OwnedInputs
from piecewise_core.capture.captured import CapturedPlan, Source
from piecewise_core.capture.plans import CapturedPlans
from piecewise_core.capture.watching import WatchingRecorder
from piecewise_core.counters import Counters, Stats, process_counters
from piecewise_core.errors import ConfigError, OutOfRange, Sealed
from piecewise_core.frontend.setup import Setup
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.names import Matcher
from piecewise_core.graph.outputs import OutputCode, rebuild_code
from piecewise_core.graph.structure import Structure
from piecewise_core.ranges import Sizes, Target, TargetTable, capture_targets
from piecewise_core.runtime.parameters import Parameters, roots_of

__all__ = ["RecordedFunction"]


class RecordedFunction:
    """Runs ``fn`` by replay at captured sizes, and as it is at all others.

    Python in ``fn`` runs once per captured size: scalars and branches are fixed there. Inference
    only; everything is recorded under ``inference_mode``.
    """

    def __init__(self, fn: Callable[..., Any], setup: Setup) -> None:
        functools.update_wrapper(self, fn)
        if setup.platform.graphs is None:
            raise ConfigError(
                f'record() needs static graphs, and platform "{setup.selected.info.name}" has '
                "none; use pw.compile, or a platform with graphs"
            )
        self._fn = fn
        self._setup = setup
        self._config = setup.config
        self._counters = Counters()
        process_counters.watch(self._counters)
        self._matcher = Matcher(self._config.splitting_ops, setup.unsafe_ops)
        self._plans = CapturedPlans(setup.platform, self._counters, self._config.memory_limit)
        self._outputs: dict[Sizes, OutputCode] = {}
        self._shapes: dict[Sizes, list[tuple[int, ...]]] = {}
        self._lock = threading.RLock()
        self._sealed: str | None = None
        self._released = False
        self._structure: Structure | None = None
        self._parameters = Parameters(roots_of(fn), every=True)
        self._owned: OwnedInputs | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call."""
        with self._lock:
            if self._structure is None:
                self._start(args, kwargs)
            tensors, sizes = self._binder.bind(*args, **kwargs)
            if len(self._plans) and self._parameters.read() is None:
                # Graphs read the old memory; what replaced it is captured again on restore().
                self.release()
            target = self._targets[self._find(*sizes)]
            if target is not None and target.capture is not None and not self._released:
                done, result = self._replay(target.capture, tensors, sizes, args, kwargs)
                if done:
                    return result
            return self._eagerly(sizes, args, kwargs)

    # Controls --------------------------------------------------------------------------

    def warmup(self, *args: Any, progress: bool = True, **kwargs: Any) -> list[Sizes]:
        """Capture every capture size, the largest first; returns those that have graphs.

        ``args``, ``kwargs``: an example call of any size, needed once.
        """
        with self._lock:
            if self._structure is None:
                self._start(args, kwargs)
            self._released = False
            sizes = sorted({t.capture for t in self._targets if t and t.capture}, reverse=True)
            for each in self._plans.budget(1, sizes):
                self._plan(each, None, args, kwargs)
            return [each for each in sizes if each in self._plans]

    def seal(self, on_miss: str = "error") -> RecordedFunction:
        """From now on a capture is an error, or a warning."""
        self._sealed = on_miss
        return self

    def release(self) -> RecordedFunction:
        """Free all graph memory; calls run as they are until ``restore``."""
        self._plans.release()
        self._outputs.clear()
        self._released = True
        self._parameters = Parameters(roots_of(self._fn), every=True)
        return self

    def restore(self) -> RecordedFunction:
        """Capture anew, each size at its next call."""
        self._released = False
        return self

    def stats(self) -> Stats:
        """The counters so far."""
        return self._counters.stats()

    # Inside ----------------------------------------------------------------------------

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        structure = describe_call(self._fn, args, kwargs, self._config)
        self._binder = Binder(
            structure,
            alignment=self._setup.platform.capabilities.alignment,
            static=self._config.inputs == "static",
            on_restride=lambda: self._counters.add("restrided"),
        )
        padded = self._config.padding == "capture_sizes"
        bounds = self._config.bounds
        targets = capture_targets(bounds, self._config.captures, padded=padded)
        self._find = TargetTable(bounds, targets).find
        self._targets: list[Target | None] = [*targets, None]
        self._structure = structure

    def _eagerly(self, sizes: Sizes, args: Any, kwargs: Any) -> Any:
        if sizes not in self._config.bounds and self._config.out_of_range == "error":
            raise OutOfRange(
                f"sizes {sizes} are outside {self._config.bounds}; widen Dim(min, max), or set "
                'out_of_range="eager"'
            )
        self._counters.calls["eager"] += 1
        return self._fn(*args, **kwargs)

    def _replay(
        self, captured: Sizes, tensors: Any, sizes: Sizes, args: Any, kwargs: Any
    ) -> tuple[bool, Any]:
        """Serve by the graphs of ``captured``; (False, None) when this call must run eagerly."""
        if captured in self._plans.dropped:
            return False, None
        if sizes != captured and sizes not in self._shapes:
            # What a padded call returns is cut to the shapes that an eager call gives; seen once.
            result = self._fn(*args, **kwargs)
            self._shapes[sizes] = [tuple(t.shape) for t in tensors_in(result)]
            self._counters.calls["eager"] += 1
            return True, result
        plan = self._plan(captured, tensors if sizes == captured else None, args, kwargs)
        if plan is None:
            return False, None
        self._counters.calls["replayed"] += 1
        outs: Any = plan.run(tensors, sizes)
        if sizes != captured:
            self._counters.add("padded_rows", captured[0] - sizes[0])
            outs = [_cut(o, shape) for o, shape in zip(outs, self._shapes[sizes], strict=True)]
        if self._config.clone_outputs:
            outs = [o.clone() for o in outs]
        return True, self._outputs[captured].rebuild(outs, self._binder.raw(*args, **kwargs), ())

    def _plan(self, captured: Sizes, tensors: Any, args: Any, kwargs: Any) -> CapturedPlan | None:
        found = self._plans.get(captured)
        if found is not None or captured in self._plans.dropped:
            return found
        if self._sealed == "error":
            raise Sealed(f"sizes {captured} would be captured after seal(); call warmup() first")
        found = self._plans.capture(captured, partial(self._source, captured, tensors))
        self._parameters.settle()
        return found

    def _source(self, captured: Sizes, tensors: Any) -> Source:
        structure = self._structure
        if structure is None:
            raise ConfigError("record() was not called yet")
        if self._config.inputs == "static":
            inputs: Any = FixedInputs(structure, tensors)
        else:
            self._owned = self._owned or OwnedInputs(structure, self._config.captures)
            inputs = self._owned
            if tensors is not None:
                inputs.stage(captured)(tensors, captured)
        views = inputs.views(captured)

        def build(recorder: WatchingRecorder) -> Callable[..., tuple[Any, ...]]:
            def run(t: Any, b: Any, *sizes: int) -> tuple[Any, ...]:
                args, kwargs = arguments(structure, t)
                result = self._fn(*args, **kwargs)
                found = tensors_in(result)
                if recorder.capturing:
                    given = {id(v): i for i, v in enumerate(views)}
                    outs = {id(o): i for i, o in enumerate(found) if id(o) not in given}
                    self._outputs[captured] = rebuild_code(result, outs, given, {}, ())
                    for tensor in recorder.external:
                        self._parameters.add(tensor)
                return tuple(found)

            return run

        make = partial(WatchingRecorder, is_splitting=self._matcher)
        return Source(build, views, (), (), inputs.stage(captured), make)


def arguments(structure: Structure, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """A call's arguments rebuilt from its structure around ``tensors``."""
    from piecewise_core.graph.structure import Constant, Container

    def build(node: Any) -> Any:
        if isinstance(node, Constant):
            return node.value
        if not isinstance(node, Container):
            return tensors[node.index]
        children = [build(child) for child in node.children]
        if node.is_mapping:
            return node.kind(zip(node.keys, children, strict=True))
        return node.kind(*children) if hasattr(node.kind, "_fields") else node.kind(children)

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for name, parameter in structure.signature.parameters.items():
        value = build(structure.arguments[name])
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += value
        elif parameter.kind is parameter.VAR_KEYWORD:
            kwargs.update(value)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[name] = value
        else:
            args.append(value)
    return args, kwargs


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of a result in a fixed order, each once."""
    found: dict[int, torch.Tensor] = {}

    def walk(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            found.setdefault(id(item), item)
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            for field in dataclasses.fields(item):
                walk(getattr(item, field.name, None))
        elif isinstance(item, dict):
            for part in item.values():
                walk(part)
        elif isinstance(item, (list, tuple)):
            for part in item:
                walk(part)

    walk(value)
    return list(found.values())


def _cut(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    for axis, size in enumerate(shape):
        if tensor.shape[axis] != size:
            tensor = tensor.narrow(axis, 0, size)
    return tensor
