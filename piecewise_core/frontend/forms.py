"""The forms in which one callable is called: which one takes a call, and when there is one more."""

from __future__ import annotations

from typing import Any

from piecewise_core.errors import ConfigError, InputMismatch, TraceFailed, UnsupportedOutput
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.newform import place_of_call, refusal_of
from piecewise_core.frontend.precompile import warm
from piecewise_core.frontend.refusals import refuse_grad
from piecewise_core.frontend.shared import Shared
from piecewise_core.frontend.successors import (
    Met,
    differs_beside,
    held_by,
    is_another_object,
    objects_in,
    stand_ins_of,
)
from piecewise_core.frontend.ways import another_way
from piecewise_core.graph.binder import AnotherLayout, AsWritten, Bound
from piecewise_core.graph.describe import bind_arguments, describe_call
from piecewise_core.graph.memory import values
from piecewise_core.graph.structure import Structure, with_objects, with_others

__all__ = ["Forms"]


class _NoForm:
    """Stands in for a form before the first call."""

    @staticmethod
    def bind(*args: Any, **kwargs: Any) -> Any:
        """Fit no call."""
        raise InputMismatch("there is no form of calls yet")


class Forms(list[Form]):
    """In the order in which they were met. ``last``: served last, and is tried first."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self._shared = shared
        self.last: Any = _NoForm
        self.met = Met()

    def forget(self) -> list[Form]:
        """Know of none; returns those there were."""
        left = list(self)
        self.clear()
        self.last = _NoForm
        return left

    @property
    def called(self) -> bool:
        """Whether one of them has served."""
        return self.last is not _NoForm

    def find(self, args: Any, kwargs: Any) -> tuple[Form, Bound]:
        """The form of a call that is not of the last one, begun now if there is none yet.

        Raises InputMismatch for what is no form of its own, and AnotherLayout.
        """
        found = self._known(args, kwargs)
        if found is None:
            self.met.refuse(args, kwargs)
            for form in [form for form in self if form.is_stale()]:
                self._drop(form)
            refuse_grad(self._shared.fn, values((args, kwargs)))
            found = self._new(args, kwargs)
        self.last = found[0]
        return found

    def _known(self, args: Any, kwargs: Any) -> tuple[Form, Bound] | None:
        """The known form that takes a call, as it is or copied to the traced layout."""
        form = self.fitting(args, kwargs)
        if form is not None:
            return form, form.binder.bind(*args, **kwargs)
        for form in self:
            try:
                return form, form.binder.bind(*args, **kwargs)
            except AnotherLayout:
                raise
            except InputMismatch:
                continue
        return None

    def _new(self, args: Any, kwargs: Any) -> tuple[Form, Bound]:
        known = len(self)
        form = self.other(args, kwargs, serving=True)
        try:
            bound = form.binder.bind(*args, **kwargs)
        except InputMismatch:
            if len(self) > known:
                self._drop(form)
            raise
        form.to_warm = self._shared.config.compile_mode == "warmup" and not form.regions
        return form, bound

    def fitting(self, args: Any, kwargs: Any) -> Form | None:
        """The form that a call has as it is. Raises InputMismatch for what is no call at all."""
        for form in [form for form in self if form.model.is_outgrown]:
            self.given_up(form)
        if self:
            bind_arguments(self[0].structure.signature, args, kwargs)
        return next((f for f in self if f.binder.fits(*args, **kwargs) is not None), None)

    def other(self, args: Any, kwargs: Any, *, serving: bool = False) -> Form:
        """A form for a call that fits none as it is: a new one, or one that refuses it.

        Where a call is to be served, raises AsWritten for what the model had better serve.
        """
        self._shared.setup.refuse_lost_device()
        binders = [form.binder for form in self]
        try:
            structure = describe_call(self._shared.fn, args, kwargs, self._shared.config)
        except (ConfigError, InputMismatch) as error:
            if not binders:
                raise
            why = refusal_of(binders[0], args, kwargs)
            raise InputMismatch(f"{why}; as a form of its own: {error}") from error
        followed = self._followed(structure, args, kwargs)
        if isinstance(followed, Form):
            return followed
        by_method = serving and self._shared.methods.running > 0
        if serving:
            self.met.first(structure, followed)
        if by_method:
            self.met.returns(structure)
        apart = [form for form in self if form.binder.counts_otherwise(args, kwargs)]
        if apart:
            return self.begin(structure, another_way(self._shared, apart, len(self)))
        binders = [form.binder for form in self]
        config, sealed = self._shared.config, self._shared.sealed
        unlike = followed or ""
        try:
            place, new = place_of_call(structure, binders, args, kwargs, config, sealed, unlike)
        except InputMismatch as error:
            if by_method and sealed is None:  # nobody can have the method call otherwise
                raise AsWritten(str(error)) from error
            raise
        return self.begin(structure, new) if place is None else self[place]

    def _followed(self, structure: Structure, args: Any, kwargs: Any) -> Form | str | None:
        """The form that serves other objects from now on as well as those that it had.

        Or why none does; None where no form is called with objects of these types. Where there
        are as many forms as may be, the oldest of those with other objects goes.
        """
        why: str | None = None
        others = [form for form in self if is_another_object(form.structure, structure)]
        for form in others:
            why = differs_beside(form.structure, structure)
            if why is None:
                why = self._take(form, with_objects(form.structure, structure))
                if why is None and not form.binder.counts_otherwise(args, kwargs):
                    return form
        if others and len(self) >= self._shared.config.max_forms:
            self._drop(others[0])
        return why

    def _take(self, form: Form, structure: Structure) -> str | None:
        """Have ``form`` serve calls that differ in constant objects; or why its traces do not hold.

        Nothing is traced for them. Graphs read the old objects' memory: they go.
        """
        if form.capturing is not None and form.capturing.plans.callers.is_used:
            return "static graphs of the model, one of whose operators calls it, serve another"
        was = form.model.parameters.tensors
        why = form.model.follow(structure)
        if why is None:
            if form.capturing is not None:
                form.capturing.follow(form.regions, was, form.model.parameters.tensors)
            self._bind(form, structure)
            form.model.settle(followed=True)
            self._shared.ranks.own_up()
        return why

    def _bind(self, form: Form, structure: Structure) -> None:
        form.structure = structure
        form.binder.follow(structure)
        form.dispatch.raw = form.binder.raw
        form.share(alone=len(self) == 1)
        form.install()

    def objects(self) -> set[int]:
        """The ids of all objects that calls hold."""
        return {id(value) for form in self for value in objects_in(form.structure)}

    def let_go(self, known: set[int], given: Any) -> None:
        """Keep no object that a call of a method brought, nor its memory.

        ``known``: ids of those there were before. ``given``: to the method, and by it.
        """
        brought = [f for f in self if known.isdisjoint(map(id, objects_in(f.structure)))]
        kept = held_by(given) if any(objects_in(f.structure) for f in brought) else set()
        for form in brought:
            objects = objects_in(form.structure)
            used = form.capturing is not None and form.capturing.plans.callers.is_used
            if used or form.model.waits or not objects or not kept.isdisjoint(map(id, objects)):
                continue
            was, others = form.model.parameters.tensors, stand_ins_of(objects)
            structure = with_others(form.structure, others or {})
            if others and form.model.let_go(structure, others):
                if form.capturing is not None:
                    form.capturing.let_go(form.regions, was, form.model.parameters.tensors)
                self._bind(form, structure)
                self._shared.ranks.own_up()

    def begin(self, structure: Structure, new: str = "") -> Form:
        """One form more. ``new``: how its calls differ from those known before."""
        form = Form(self._shared, structure, new, self.given_up, warm)
        self.append(form)
        self._share()
        return form

    def _drop(self, form: Form) -> None:
        """Know nothing of a form whose first call failed, or that the model has outgrown."""
        if form not in self:
            return
        form.forget()  # raises when sealed
        form.release(later=True)
        self.remove(form)
        if self.last is form:
            self.last = self[-1] if self else _NoForm
        self._share()

    def why_not(self, form: Form, error: TraceFailed) -> AsWritten | None:
        """Why the model itself serves a call that could not be traced; None where it does not."""
        if isinstance(error, UnsupportedOutput) and self._shared.methods.running:
            self.given_up(form)
            return self.met.frozen(form.structure, error)
        return self.met.kept_out(form.structure, error)

    def given_up(self, form: Form) -> None:
        """A model whose first call failed may be called in another form next."""
        if self._shared.sealed != "error":
            self._drop(form)

    def _share(self) -> None:
        for form in self:
            form.share(alone=len(self) == 1)
