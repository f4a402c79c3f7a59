"""What ``pw.compile`` gives for a function, and the methods that a module has too."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from piecewise_core.bundle.save import SaveReport, save
from piecewise_core.counters import Stats
from piecewise_core.errors import ConfigError, PiecewiseError
from piecewise_core.frontend.bisectcall import bisect_call
from piecewise_core.frontend.bisectreport import BisectReport
from piecewise_core.frontend.controls import telling
from piecewise_core.frontend.estimate import Estimate
from piecewise_core.frontend.estimated import estimate_of
from piecewise_core.frontend.explain import explain
from piecewise_core.frontend.explanation import Explanation
from piecewise_core.frontend.precompile import dump_graphs
from piecewise_core.frontend.readiness import wait_until_ready
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.status import Status
from piecewise_core.frontend.statuses import session_status
from piecewise_core.frontend.traffic import traffic
from piecewise_core.frontend.warmup import WarmupReport, warm_up
from piecewise_core.planner.histogram import Histogram

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CompiledFunction", "Controls"]

_telling = telling(lambda self: self._pw_session.tell())


class Controls:
    """Warm-up, seal and books of one session."""

    _pw_session: Session

    @_telling
    def warmup(self, *args: Any, progress: bool = True, **kwargs: Any) -> WarmupReport:
        """Trace every region and compile every range and size now.

        ``args``, ``kwargs``: example arguments, of any sizes in bounds; not needed after a first
        call. ``progress``: say on standard error how far it is. Raises NotTraced without examples.
        """
        return warm_up(self._pw_session, args, kwargs, progress=progress)

    def seal(self, on_miss: Literal["error", "warn"] = "error") -> Self:
        """From now on a trace, compilation or capture is an error, or a warning."""
        if on_miss not in ("error", "warn"):
            raise ConfigError(f'seal(on_miss={on_miss!r}): use "error" or "warn"')
        self._pw_session.seal(on_miss)
        return self

    @_telling
    def release(self, sizes: Sequence[Any] | None = None) -> Self:
        """Give static-graph memory back; captured sizes run without graphs until ``restore``.

        ``sizes``: of these capture sizes only; None for all. They are served as if they were not
        listed, and what they held is there for other captures: a device has it back when no size
        has graphs any more. Raises ConfigError for what is no capture size.
        """
        self._pw_session.release(sizes)
        return self

    @_telling
    def restore(self, sizes: Sequence[Any] | None = None, *, lazy: bool = False) -> Self:
        """Capture again what ``release`` freed or a replaced parameter made stale.

        ``sizes``: of these capture sizes only; None for all. ``lazy``: each at its next call, and
        not now. Raises ConfigError for what is no capture size.
        """
        self._pw_session.restore(sizes, lazy=lazy)
        return self

    @_telling
    def retrace(self) -> Self:
        """Drop what was traced and captured; the next call traces anew.

        For changes that no call notices: those of what only native code reads. Raises Sealed.
        """
        self._pw_session.retrace("retrace() was called")
        return self

    def dump_graphs(self, directory: str | Path) -> list[Path]:
        """Write every static graph to a file in ``directory``, to look at; returns the files.

        What is in them is the platform's business. Raises CaptureFailed where there are none.
        """
        return dump_graphs(self._pw_session.shared, self._pw_session.forms, Path(directory))

    def save(self, path: str | os.PathLike[str]) -> SaveReport:
        """Write everything but the weights to one file, which ``pw.load`` binds to a model.

        ``path``: written whole or not at all. Compiles first what is not compiled yet. Raises
        NotTraced before a first call or warm-up, and StoreError for what no file can hold.
        """
        return save(self._pw_session, Path(path))

    def stats(self) -> Stats:
        """The counters so far."""
        return self._pw_session.stats()

    def status(self) -> Status:
        """What serves which sizes, how far it is, and how often it did. Waits for no call."""
        return session_status(self._pw_session)

    @_telling
    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until no call in bounds has to wait for a trace, compilation or capture.

        ``timeout``: seconds; None for no end. Returns whether it is so. In background mode what is
        not compiled yet is asked for; else ``warmup()``, in another thread, or calls bring it.
        """
        return wait_until_ready(self._pw_session, timeout)

    def histogram(self) -> Histogram:
        """Calls so far by their sizes, for ``pw.plan`` and ``piecewise plan``."""
        session = self._pw_session
        return traffic(session.config, session.counters, session.shared.memory)

    @_telling
    def estimate(self, sizes: Sequence[Any] | None = None) -> Estimate:
        """What static graphs of ``sizes`` take: by size, in all, and how far that may be off.

        ``sizes``: as in ``Config.capture_sizes``, which they are by default. Some of them are
        captured in a pool of their own, which is freed again. Raises NotTraced before a first
        call, and ConfigError for sizes out of bounds or a platform without graphs.
        """
        return estimate_of(self._pw_session, sizes)

    def explain(self, *, verbose: bool = False, measure: bool = False) -> Explanation:
        """Regions, pieces, ranges, what was compiled and what is shared, and why.

        ``verbose``: print it whole, one line each, however long. ``measure``: replay each captured
        size on what was staged last, and say what each piece takes; results of earlier calls are
        overwritten, what replays write to is put back.
        """
        return explain(self._pw_session, verbose=verbose, measure=measure)

    def bisect(self, *args: Any, **kwargs: Any) -> BisectReport:
        """Find the piece of one call that first differs from the model as written.

        ``args``, ``kwargs``: the call. The report says in which stage: split, compiled, captured or
        padded. Two forwards of work, and memory that the call writes to stays as it was. What is
        not traced, compiled or captured yet is so first. Raises what a call raises.
        """
        return bisect_call(self._pw_session, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PiecewiseError(
            f"a {self._pw_kind()} cannot be pickled; pickle the original and compile it again "
            "where it is loaded"
        )

    def _pw_kind(self) -> str:
        """What this is, for messages."""
        return type(self).__name__


_SLOT = "_pw_compiled"
"""Where an instance's ``__dict__`` has its compiled methods."""


class CompiledFunction(Controls):
    """A compiled function; on a class it is a method, compiled for each instance."""

    def __init__(self, fn: Callable[..., Any], make: Callable[..., Session]) -> None:
        functools.update_wrapper(self, fn)
        self._pw_fn = fn
        self._pw_make = make

    @functools.cached_property
    def _pw_session(self) -> Session:  # type: ignore[override]
        return self._pw_make(self._pw_fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function."""
        return self._pw_session(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> CompiledFunction:
        if instance is None:
            return self
        held = getattr(instance, "__dict__", None)
        if held is None:
            raise ConfigError(
                f"{type(instance).__name__} has __slots__ and no __dict__ to keep its compiled "
                "method in; compile a function that takes the instance"
            )
        methods = held.get(_SLOT)
        if methods is None or methods.of is not instance:  # a shallow copy has the original's
            methods = _Methods(instance)
            if isinstance(instance, type):  # a class method's; a class's own dict is read-only
                setattr(instance, _SLOT, methods)
            else:
                held[_SLOT] = methods
        found: CompiledFunction | None = methods.made.get(self)
        if found is None:
            found = CompiledFunction(self._pw_fn.__get__(instance, owner), self._pw_make)
            methods.made[self] = found
        return found

    def __copy__(self) -> CompiledFunction:
        return CompiledFunction(self._pw_fn, self._pw_make)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledFunction:
        return CompiledFunction(copy.deepcopy(self._pw_fn, memo), self._pw_make)


class _Methods:
    """The compiled methods ``of`` an instance, by what its class has; pickles come empty."""

    def __init__(self, of: Any = None) -> None:
        self.of = of
        self.made: dict[CompiledFunction, CompiledFunction] = {}

    def __reduce__(self) -> tuple[type[_Methods], tuple[()]]:
        return _Methods, ()
