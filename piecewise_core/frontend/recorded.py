"""``pw.record``: static graphs of any callable, without a tracer or a compiler."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch

from piecewise_core.afterfork import after_fork
from piecewise_core.capture.modes import being_watched
from piecewise_core.compile.scheduler import refuse_in_capture
from piecewise_core.counters import Counters, process_counters
from piecewise_core.errors import ConfigError, NotTraced, PiecewiseError
from piecewise_core.events import name_of
from piecewise_core.frontend.controls import telling
from piecewise_core.frontend.newform import place_of_call
from piecewise_core.frontend.recordedcalls import RecordedCalls
from piecewise_core.frontend.recordedstatus import RecordedBooks
from piecewise_core.frontend.refusals import refuse_around
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.warmup import WarmupReport
from piecewise_core.graph.describe import bind_arguments, describe_call
from piecewise_core.ranges import Sizes
from piecewise_core.ranks.ranks import Ranks
from piecewise_core.replay.sleeping import chosen

__all__ = ["RecordedFunction"]

_telling = telling(lambda self: self.tell())


class RecordedFunction(RecordedBooks):
    """Runs ``fn`` by replay at captured sizes, and as it is at all others.

    Python in ``fn`` runs once per captured size: scalars and branches are fixed there. Inference
    only; everything is recorded under ``inference_mode``. ``module``: whose forward ``fn`` is; its
    hooks run around it at every call.
    """

    def __init__(
        self, fn: Callable[..., Any], setup: Setup, module: torch.nn.Module | None = None
    ) -> None:
        functools.update_wrapper(self, fn)
        if setup.platform.graphs is None:
            raise ConfigError(
                f'record() needs static graphs, and platform "{setup.selected.info.name}" has '
                "none; use pw.compile, or a platform with graphs"
            )
        self._fn = fn
        self._module = module
        self._setup = setup
        self._config = setup.config
        self._counters = Counters(setup.config.on_event, name_of(fn))
        process_counters.watch(self._counters)
        self._sealed: str | None = None
        self._ranks = Ranks(setup.config, fn, {"platform": setup.selected.info.name})
        self._memory = setup.graph_memory(self._counters, self, name_of(fn))
        self._lock = after_fork.frees(setup.call_lock(), self._forked)
        self._forms: list[RecordedCalls] = []
        self._calls = self._begin()  # the form that served last: the next call is tried with it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call."""
        calls = self._calls
        around = calls.around() if calls.around is not None else None
        return (around or calls.serve)(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> RecordedFunction:
        module = copy.deepcopy(self._module, memo)
        fn = copy.deepcopy(self._fn, memo) if module is None else module.forward
        return RecordedFunction(fn, self._setup, module)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PiecewiseError(
            "a recorded function cannot be pickled; pickle the original and record it again"
        )

    # Controls --------------------------------------------------------------------------

    @_telling
    def warmup(self, *args: Any, progress: bool = True, **kwargs: Any) -> WarmupReport:
        """Capture every capture size, the largest first.

        ``args``, ``kwargs``: an example call, needed once. ``progress``: has no use here. With
        ``inputs="static"`` sizes are captured at first calls. Raises NotTraced or CaptureFailed.
        """
        begun = time.perf_counter()
        with self._lock:
            self._calls.recordings.refresh()
            forms = self._started
            if args or kwargs or (not forms and not self._config.dims):
                forms = [self._like(args, kwargs)]
            if not forms:
                raise NotTraced(
                    "warmup() needs to know what a call looks like: pass example arguments of any "
                    "size, or call the function once before warmup()"
                )
            refuse_in_capture(self._setup.is_capturing, "sizes would be captured")
            refuse_around(self._setup.is_capturing)
            captured: list[Sizes] = []
            for form in forms:
                form.wake()
                sizes = [target.capture or () for target in form.targets]
                captured += [each for each in _captured(form, sizes) if each not in captured]
            return WarmupReport(
                targets=len(captured),
                seconds=time.perf_counter() - begun,
                captured=tuple(captured),
                graph_bytes=self._memory.counted,
                dropped=tuple(t for form in self._forms for t in form.recordings.left.told()),
            )

    def seal(self, on_miss: str = "error") -> RecordedFunction:
        """From now on a capture is an error, or a warning."""
        if on_miss not in ("error", "warn"):
            raise ConfigError(f'seal(on_miss={on_miss!r}): use "error" or "warn"')
        self._sealed = on_miss
        for form in self._forms:
            form.recordings.replays.sealed = on_miss
            form.recordings.left.seal()
        return self

    @_telling
    def release(self, sizes: Sequence[Any] | None = None) -> RecordedFunction:
        """Free graph memory; calls run as they are until ``restore``.

        ``sizes``: as for compiled models.
        """
        asked = chosen(self._config, sizes, "release")
        with self._lock:
            for form in self._forms:
                form.recordings.free(asked)
            self._ranks.own_up()
        return self

    @_telling
    def retrace(self) -> RecordedFunction:
        """Drop what was captured; sizes are captured anew at their next calls. Raises Sealed."""
        with self._lock:
            for form in self._forms:
                form.recordings.retrace("retrace() was called")
            self._ranks.own_up()
        return self

    @_telling
    def restore(
        self, sizes: Sequence[Any] | None = None, *, lazy: bool = False
    ) -> RecordedFunction:
        """Capture again what ``release`` freed, or a replaced tensor made stale.

        ``sizes``, ``lazy``: as for compiled models. With ``inputs="static"`` each size is captured
        at its next call.
        """
        asked = chosen(self._config, sizes, "restore")
        with self._lock:
            for form in self._started:
                form.wake(asked)
                owed = form.recordings.replays.plans.owed
                _captured(form, () if lazy else owed if asked is None else owed & {*asked})
        return self

    # Forms -----------------------------------------------------------------------------

    def _begin(self) -> RecordedCalls:
        """A form more, of calls like the next that it is given; one that knows of none yet."""
        for form in self._forms:
            if not form.started:
                return form
        module = self._module
        fn = self._fn if module is None else module.forward
        shared = self._memory, self._lock, self._elsewhere, self._ranks
        form = RecordedCalls(fn, self._setup, self._counters, module, *shared)
        form.recordings.replays.sealed = self._sealed
        self._forms.append(form)
        return form

    def _like(self, args: Any, kwargs: Any) -> RecordedCalls:
        """The form of an example, whose sizes mean nothing; begun if it is new."""
        form = self._calls
        if form.started and form.binder.fits(*args, **kwargs) is None:
            form = self._form_of(args, kwargs) or self._begin()
        if not form.started:
            form.start(args, kwargs)
        return form

    def _form_of(self, args: Any, kwargs: Any) -> RecordedCalls | None:
        """The known form of a call, which may refuse it; None where it is one of its own.

        Raises InputMismatch for a slip and for a form too many, Sealed.
        """
        for form in () if being_watched() else self._started:
            form.recordings.refresh()  # another forward may take other arguments
        known = self._started
        if not known:
            return None
        bind_arguments(known[0].binder.structure.signature, args, kwargs)
        for form in known:
            if form.binder.fits(*args, **kwargs) is not None:
                return form
        call = describe_call(known[0].fn, args, kwargs, self._config)
        binders = [form.binder for form in known]
        place, _ = place_of_call(call, binders, args, kwargs, self._config, self._sealed)
        return None if place is None else known[place]

    def _elsewhere(
        self, refusing: RecordedCalls, args: Any, kwargs: Any
    ) -> Callable[..., Any] | None:
        """What serves a call that a form refuses; None where that form is the call's own."""
        form = self._form_of(args, kwargs)
        if form is None:
            return self._first
        if form is refusing:
            return None
        self._calls = form
        return form.serve

    def _first(self, *args: Any, **kwargs: Any) -> Any:
        """Serve the first call of a form, which stays if that does not fail."""
        form = self._begin()
        try:
            result = form.serve(*args, **kwargs)
        except Exception:
            form.recordings.free(later=True)
            form.recordings.replays.asleep.end()
            form.started = False
            raise
        self._calls = form
        return result

    def _forked(self, lost: bool) -> None:
        """In a forked process. ``lost``: a thread that is not here was in the middle of a call.

        It may have been changing anything. Where the function is sealed nothing changes any more.
        """
        if self._setup.lost_device or (lost and self._sealed != "error"):
            self._memory = self._setup.graph_memory(self._counters, self, name_of(self._fn))
            for form in self._forms:
                form.begin_anew(self._memory)
        elif lost:
            self._memory.callers.begin_anew()


def _captured(form: RecordedCalls, sizes: Iterable[Sizes]) -> list[Sizes]:
    """Capture ``sizes`` of a form; returns those that are served by graphs."""
    replays = form.recordings.replays
    return replays.capture_all([(form.recordings, each) for each in list(sizes)], ())
