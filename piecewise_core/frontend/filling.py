"""A memo that a forward fills, a flag that it sets, what it sets up under a lock.

Once as written, then traced behind that.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from piecewise_core.capture.preserved import Preserved
from piecewise_core.errors import TraceFailed, UnsupportedSideEffect
from piecewise_core.frontend.building import Unready
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.forms import Forms
from piecewise_core.frontend.refusals import refuse_grad
from piecewise_core.frontend.shared import Shared
from piecewise_core.frontend.successors import objects_in
from piecewise_core.graph.locks import LOCK
from piecewise_core.graph.memory import values
from piecewise_core.runtime.closure_walk import roots_of
from piecewise_core.runtime.readonly import ReadOnly

__all__ = ["filled"]

logger = logging.getLogger(__name__)


def filled(
    shared: Shared,
    forms: Forms,
    form: Form,
    unready: Unready,
    error: UnsupportedSideEffect,
    args: Any,
    kwargs: Any,
) -> Any:
    """Serve a call of ``form`` as written, and build what it lacks from what that left behind.

    ``unready``: what could not be built, by ``error``. Where the model writes again, that is
    raised, and what it wrote is put back; but of what it changes under a lock, tensors alone are,
    so that happens once. What the call did to objects that it brought is part of it, and no trace
    of the call itself is to be had behind that: the next one is traced by itself.
    """
    if not error.undo or shared.locked.intersection(error.places):
        raise error
    if form.filled >= shared.config.max_regions:
        raise UnsupportedSideEffect(
            f"{error}. It was served as written {form.filled} times, as many as max_regions "
            "allows, to fill what is changed; it is changed again whenever the sizes are others"
        )
    with shared.lock:
        refuse_grad(shared.fn, values((args, kwargs)))
        held = ReadOnly(_writable(shared, args, kwargs) if error.writes else ())
        drawn = Preserved((), (), draws=True)
        result = shared.fn(*args, **kwargs)
        for each in forms:  # whose traces may have read what has changed
            if each.model.waits:
                continue
            each.bound()
            if each.model.check():
                each.state_changed()
    again = _refusal(shared, form, unready, error.places, alone=False)
    if isinstance(again, UnsupportedSideEffect) and not again.of_arguments:
        again = _refusal(shared, form, unready, error.places, alone=True)
    if again and not _is_served(forms, form, again):
        with shared.lock:
            shared.locked.update(p for p in error.places if p.startswith(LOCK))
            for undo in (*error.undo, held.put_back, drawn.put_back):
                undo()
        raise again if again.args else error
    form.filled += 1
    shared.counters.unsized["eager"] += 1
    logger.info("a call was served as written, since %s", error)
    return result


def _writable(shared: Shared, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """What a forward may write to: a call's tensors, and those that modules hold beside weights."""
    modules = [m for root in roots_of(shared.fn) for m in root.modules()]
    kept = [*args, *kwargs.values(), *(vars(m) for m in modules), *(m._buffers for m in modules)]
    return [each for each in values(kept) if isinstance(each, torch.Tensor)]


def _refusal(
    shared: Shared, form: Form, unready: Unready, places: tuple[str, ...], *, alone: bool
) -> TraceFailed | None:
    """Trace a model whose ``places`` are filled; what refuses it. ``alone``: for its sizes only."""
    form.filling, form.alone = places, alone
    try:
        shared.builds.have(unready)
    except TraceFailed as refusal:
        return refusal
    finally:
        form.filling, form.alone = (), False
    return None


def _is_served(forms: Forms, form: Form, again: TraceFailed) -> bool:
    """Whether a call that was made stands, though what it left behind is not traced, ``again``."""
    if isinstance(again, UnsupportedSideEffect):
        return again.of_arguments
    return bool(objects_in(form.structure)) or forms.why_not(form, again) is not None
