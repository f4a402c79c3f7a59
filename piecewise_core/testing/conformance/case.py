"""What one test works with: the platform, its device and driver, and words for what it finds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

from piecewise_core.plugins.attribution import AttributedPlatform
from piecewise_core.protocols import Platform, ReplayCall
from piecewise_core.testing.conformance.marks import Spec
from piecewise_core.testing.conformance.run import Run
from piecewise_core.testing.conformance.subject import Subject
from piecewise_core.testing.conformance.verdicts import NotClaimed, Violation

__all__ = ["Case"]

T = TypeVar("T")


class Case:
    """One test's hold on the platform. What it captures is reset when the test ends."""

    def __init__(self, run: Run, spec: Spec) -> None:
        self.spec = spec
        self._run = run
        self._graphs: list[Any] = []
        self._inside = False

    # The platform --------------------------------------------------------------------

    @property
    def subject(self) -> Subject:
        """The platform under test, before it is made."""
        return self._run.subject

    @property
    def xfails(self) -> Mapping[str, str]:
        """The tests that are expected to fail, with the reasons."""
        return self._run.xfails

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment as it was before the plugin was imported here."""
        return self._run.environ

    @property
    def suite(self) -> Any:
        """The class that the test is part of."""
        return self._run.suite

    @cached_property
    def platform(self) -> Platform:
        """The platform, made; given to core as it is."""
        return self.subject.make()

    @cached_property
    def _attributed(self) -> AttributedPlatform:
        """The platform in stand-ins, so that what a method raises names the method."""
        return AttributedPlatform(self.platform, str(self.subject.origin))

    @property
    def device(self) -> Any:
        """Its DeviceRuntime."""
        return self._attributed.device

    @property
    def driver(self) -> Any:
        """Its GraphDriver; a test that uses it claims "Platform.graphs"."""
        return self._attributed.graphs

    @property
    def compiler(self) -> Any:
        """Its CompilerAdaptor."""
        return self._attributed.compiler

    @property
    def device_type(self) -> str:
        """Torch's name of the device."""
        return self.subject.device_type

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What several tests share: made for the first that asks."""
        if name not in self._run.kept:
            self._run.kept[name] = make()
        found: T = self._run.kept[name]
        return found

    # Claims --------------------------------------------------------------------------

    def claim(self, claim: str) -> None:
        """Raise NotClaimed unless the platform declares ``claim``.

        "entry point", "hardware absent", "Platform.graphs", or a method: "GraphDriver.weak_ref".
        """
        reason = self._unclaimed(claim)
        if reason is not None:
            raise NotClaimed(reason)

    def has(self, claim: str) -> bool:
        """Whether the platform declares ``claim``."""
        return self._unclaimed(claim) is None

    def _unclaimed(self, claim: str) -> str | None:
        if claim == "entry point":
            return None if self.subject.entry else "the platform was given as an object"
        if claim == "PlatformInfo":
            return None if self.subject.info else "a Platform was given, which nobody announces"
        if claim == "hardware absent":
            return "the hardware is here" if self.subject.probe().available else None
        owner, _, method = claim.partition(".")
        of_graphs = claim == "Platform.graphs" or owner == "GraphDriver"
        if of_graphs and self.platform.graphs is None:
            return "the platform has no static graphs (graphs is None)"
        thing: Any = {
            "Platform": self.platform,
            "GraphDriver": self.platform.graphs,
            "DeviceRuntime": self.platform.device,
            "CompilerAdaptor": self.platform.compiler,
        }[owner]
        return None if hasattr(thing, method) else f"{claim} is optional and not declared"

    # Words ---------------------------------------------------------------------------

    def require(self, holds: Any, did: str, expected: Any, got: Any, change: str) -> None:
        """Raise a Violation unless ``holds``."""
        if not holds:
            raise Violation(did, expected, got, change)

    def equal(self, got: Any, expected: Any, did: str, change: str, *, exact: bool = False) -> None:
        """Compare two tensors, wherever they are. ``exact``: bit for bit."""
        import torch

        self.device.synchronize()
        got, expected = got.detach().cpu(), expected.detach().cpu()
        same_kind = (got.shape, got.dtype) == (expected.shape, expected.dtype)
        loose = 1e-2 if got.dtype in (torch.float16, torch.bfloat16) else 1e-4
        slack = 0.0 if exact else loose
        holds = same_kind and torch.allclose(got, expected, rtol=slack, atol=slack, equal_nan=True)
        self.require(holds, did, _shown(expected), _shown(got), change)

    # Tensors and graphs ----------------------------------------------------------------

    def tensor(self, values: Any, dtype: Any = None) -> Any:
        """A tensor on the device; of float32 where nothing is said."""
        import torch

        return torch.tensor(values, dtype=dtype or torch.float32).to(self.device_type)

    def zeros(self, *shape: int) -> Any:
        """Zeros on the device."""
        import torch

        return torch.zeros(*shape).to(self.device_type)

    @cached_property
    def pool(self) -> Any:
        """The pool of this test."""
        return self.driver.new_pool()

    @cached_property
    def stream(self) -> Any:
        """The stream that this test captures on."""
        return self.device.new_stream()

    def new_graph(self, make: Callable[[], Any] | None = None) -> Any:
        """An empty graph, by ``make`` or the driver's new_graph; reset when the test ends."""
        graph = (make or self.driver.new_graph)()
        self._graphs.append(graph)
        return graph

    @contextlib.contextmanager
    def ready(self, stream: Any = None) -> Iterator[None]:
        """As core has it around the captures of one size: stream current, context entered.

        Captures inside of one such block are of one size: what they return is alive at one time.
        Graphs of two sizes never are, and may share memory.
        """
        if self._inside:
            yield
            return
        context = getattr(self.driver, "capture_context", contextlib.nullcontext)
        self.device.synchronize()
        self._inside = True
        try:
            with self.device.stream(stream or self.stream), context():
                yield
        finally:
            self._inside = False
        self.device.synchronize()

    def capture(
        self, fn: Callable[[], T], graph: Any = None, *, pool: Any = None, stream: Any = None
    ) -> tuple[Any, T]:
        """Capture what ``fn`` does, as core would; (graph, what ``fn`` returned)."""
        graph = graph or self.new_graph()
        out: Any = None
        with self.ready(stream):
            self.driver.capture_begin(graph, pool or self.pool, stream or self.stream)
            try:
                out = fn()
            except BaseException:
                self.leave(graph)
                raise
            self.driver.capture_end(graph)
        return graph, out

    def leave(self, graph: Any) -> None:
        """Leave a capture after a failure, as core does."""
        abort = getattr(self.driver, "abort_capture", None)
        if abort is not None:
            abort(graph)
            return
        with contextlib.suppress(Exception):
            self.driver.capture_end(graph)

    def replay(self, graph: Any) -> None:
        """Replay, and wait."""
        self.announce(graph)
        self.driver.replay(graph)
        self.device.synchronize()

    def announce(self, graph: Any) -> None:
        """Tell a driver that wants to know of a call, as core does before every replay."""
        if self.has("GraphDriver.before_replay"):
            self.driver.before_replay(graph, ReplayCall((), (), ()))

    def reset(self, graph: Any) -> None:
        """Reset one graph now."""
        self._graphs = [g for g in self._graphs if g is not graph]
        self.driver.reset(graph)

    def close(self) -> None:
        """Reset what is left; errors here belong to no test."""
        while self._graphs:
            graph = self._graphs.pop()
            with contextlib.suppress(Exception):
                self.leave(graph) if self.driver.is_capturing() else None
            with contextlib.suppress(Exception):
                self.driver.reset(graph)
        vars(self).pop("pool", None)


def _shown(tensor: Any) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    values = tensor.flatten()[:8].tolist()
    more = ", ..." if tensor.numel() > len(values) else ""
    numbers = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values)
    return f"{kind}{list(tensor.shape)} [{numbers}{more}]"
