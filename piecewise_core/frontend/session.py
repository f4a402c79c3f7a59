"""One compiled callable: the forms in which it is called, one look-up per call."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch

from piecewise_core.afterfork import after_fork
from piecewise_core.capture.modes import being_watched
from piecewise_core.counters import Counters, Stats
from piecewise_core.errors import InputMismatch, Interlocked, TraceFailed, UnsupportedSideEffect
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.calllock import is_mine, served_beside
from piecewise_core.frontend.filling import filled
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.forms import Forms
from piecewise_core.frontend.newform import failed_form
from piecewise_core.frontend.precompile import release, restore
from piecewise_core.frontend.refusals import check_grad, refuse_autocast, refuse_grad
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.setup import Setup
from piecewise_core.frontend.shared import Shared
from piecewise_core.graph.binder import AsWritten
from piecewise_core.graph.describe import describe_call
from piecewise_core.graph.heldsizes import held_otherwise
from piecewise_core.graph.memory import values
from piecewise_core.ranges import Sizes
from piecewise_core.replay.sleeping import chosen
from piecewise_core.store.protocol import Store
from piecewise_core.torch_compat.around import in_force
from piecewise_core.torch_compat.switches import any_autocast

__all__ = ["Session"]

logger = logging.getLogger(__name__)


class Session:
    """Runs ``fn`` through compiled plans.

    ``fn``: the callable as the user wrote it; also what the ``eager`` target calls. ``setup``:
    config, platform and compiler. ``front``: where compiled pieces are looked for first. One call
    at a time: a lock serialises threads, but not while one traces or compiles (`building`).
    """

    def __init__(self, fn: Callable[..., Any], setup: Setup, front: Store | None = None) -> None:
        self.shared = shared = Shared(fn, setup, front, weakref.ref(self))
        self.setup = setup
        self.config = shared.config
        self.counters: Counters = shared.counters
        self.scheduler = shared.scheduler
        self.lock = after_fork.frees(shared.lock, self._forked)
        self.forms = Forms(shared)
        self._said_layout = False
        self._left: list[Form] = []

    @property
    def fn(self) -> Callable[..., Any]:
        """The callable as written; of a module, the forward that it has now."""
        return self.shared.fn

    @property
    def regions(self) -> list[Region]:
        """The regions of all forms so far."""
        return [region for form in self.forms for region in form.regions]

    # The hot path ----------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one call. Raises the errors of the group "Call"."""
        try:
            with self.lock:
                form = self.forms.last
                tensors: Any = ()
                if (around := in_force()) and not self.setup.is_capturing():
                    # It sees operators as they run, or changes them: plans would pass it by. In
                    # a capture it is the driver's own.
                    why = AsWritten(f"called inside {around}", quiet=being_watched())
                    return self._as_written(why, args, kwargs)
                try:
                    try:
                        tensors, sizes = form.bind(*args, **kwargs)
                    except AsWritten as error:
                        return self._as_written(error, args, kwargs)
                    except (InputMismatch, TypeError):
                        try:
                            form, (tensors, sizes) = self.forms.find(args, kwargs)
                        except AsWritten as error:
                            return self._as_written(error, args, kwargs)
                    bound = form.model.read()
                    if bound is None:
                        bound = form.rebound()
                    if form.model.check() and form.state_changed():
                        bound = ()
                    if torch.is_grad_enabled():
                        check_grad(tensors, form.model.parameters.need_grad())
                    if any_autocast():
                        refuse_autocast()
                    dispatch = form.dispatch
                    return dispatch.serving[dispatch.find(*sizes)](
                        tensors, bound, sizes, args, kwargs
                    )
                except Unready as missing:
                    unready = missing.with_traceback(None)  # it would keep this call's tensors
                    self._uncount(form, tensors, args, kwargs)
            return self._once_built(form, unready, args, kwargs)
        except Interlocked as error:
            return served_beside(error, self.lock, self.fn, self.counters, args, kwargs)

    def _uncount(self, form: Form, tensors: Any, args: Any, kwargs: Any) -> None:
        """A call that was bound comes again: the copies of its inputs are counted then."""
        given = form.binder.raw(*args, **kwargs) if tensors else ()
        copies = sum(a is not b for a, b in zip(tensors, given, strict=True))
        if copies:
            self.counters.add("restrided", -copies)

    def _once_built(self, form: Form, unready: Unready, args: Any, kwargs: Any) -> Any:
        """Have built what a call lacks, and make it again: more may be lacking."""
        unknown = not form.regions
        try:
            self.shared.ranks.same_world()
            try:
                self.shared.builds.have(unready)
            except UnsupportedSideEffect as error:
                if error.of_arguments:
                    with self.lock:
                        why = self.forms.met.changed(form.structure, error)
                        return self._as_written(why, args, kwargs)
                if not form.fills:
                    return filled(self.shared, self.forms, form, unready, error, args, kwargs)
                # A model that was traced before and changed may fill a memo at its next forward,
                # as a recurrent layer does for replaced weights: once as written, then traced.
                with self.lock:
                    form.fills = False
                    self.counters.unsized["eager"] += 1
                    return self.fn(*args, **kwargs)
            except TraceFailed as error:
                with self.lock:
                    why_not = self.forms.why_not(form, error)
                    if why_not is None:
                        raise
                    return self._as_written(why_not, args, kwargs)
            return self(*args, **kwargs)
        except (InputMismatch, Interlocked, torch.OutOfMemoryError):  # its form may be right
            raise
        except Exception as error:
            with self.lock:
                if unknown:
                    self.forms.given_up(form)
            refusal = failed_form(form.new, error) if unknown and form.new else None
            if refusal is None:
                raise
            raise refusal from error

    def taken(self, args: Any, kwargs: Any) -> tuple[Form, Any, Any, Sizes]:
        """One call's form, tensors, what the model holds, and sizes, as entries take them."""
        form, (tensors, sizes) = self.forms.find(args, kwargs)
        if torch.is_grad_enabled():
            check_grad(tensors, form.model.parameters.need_grad())
        return form, tensors, form.bound(), sizes

    def _as_written(self, why: AsWritten, args: Any, kwargs: Any) -> Any:
        """Serve a call by the model itself; said once."""
        refuse_grad(self.fn, values((args, kwargs)))
        if why.quiet:
            logger.info("%s", why)
        elif not self._said_layout:
            self._said_layout = True
            logger.warning("%s; such calls run as written", why)
        self.counters.unsized["eager"] += 1
        self.forms.met.count(why.short)
        try:
            return self.fn(*args, **kwargs)
        except RuntimeError as error:
            call = describe_call(self.fn, args, kwargs, self.config)
            held = held_otherwise(call, None, str(error))
            if not held:
                raise
            raise InputMismatch(f"{held}. The model says: {error}") from error

    # The model --------------------------------------------------------------------------

    def start(self, *args: Any, **kwargs: Any) -> Form:
        """The form of calls like this example, whose sizes mean nothing; begun if it is new.

        Raises InputMismatch for one that is no form of its own, or one too many, and Sealed.
        """
        with self.lock:
            form = self.forms.fitting(args, kwargs) or self.forms.other(args, kwargs)
            if not self.forms.called:
                self.forms.last = form
            return form

    def _forked(self, lost: bool) -> None:
        """In a forked process. ``lost``: a thread that is not here was in the middle of a call.

        It may have been changing anything. Where the model is sealed nothing changes any more.
        """
        if self.setup.lost_device or (lost and self.shared.sealed != "error"):
            left = self.forms.forget()
            if self.setup.lost_device:
                self._left = left  # the driver is not to be asked to free their graphs
            self.shared.begin_memory()
        elif lost and self.shared.memory is not None:
            self.shared.memory.callers.begin_anew()

    # Books -----------------------------------------------------------------------------

    def release(self, sizes: object = None) -> None:
        """Free the graphs of ``sizes``, or all. Raises ConfigError for what is no capture size."""
        release(self.shared, self.forms, chosen(self.config, sizes, "release"))

    def restore(self, sizes: object = None, *, lazy: bool = False) -> None:
        """Have ``sizes``, or all, captured again: now, or ``lazy``. Raises ConfigError."""
        restore(self.shared, self.forms, chosen(self.config, sizes, "restore"), lazy=lazy)

    def retrace(self, why: str) -> None:
        """Drop all traces and graphs; the next calls make new ones. Raises Sealed."""
        with self.lock:
            self.shared.kept = False
            for form in self.forms:
                form.retrace(why)
            self.shared.retraced = why
            self.counters.retraced(why)

    def seal(self, on_miss: str) -> None:
        """From now on a trace or compilation is an error, or a warning."""
        with self.lock:
            self.shared.sealed = on_miss
            self.scheduler.sealed = on_miss
            for form in self.forms:
                form.seal()

    def tell(self) -> None:
        """Hand out events, unless this is inside of a call."""
        self.counters.deliver(lambda: is_mine(self.lock))

    def stats(self) -> Stats:
        """The counters so far."""
        return self.counters.stats()
