"""Whether a call that fits no form is one of its own, and what to say where it is not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from piecewise_core.config import Config
from piecewise_core.errors import InputMismatch, PiecewiseError, Sealed, TraceFailed
from piecewise_core.graph.binder import Binder
from piecewise_core.graph.differences import Difference, Meaning, differences
from piecewise_core.graph.structure import Structure
from piecewise_core.graph.wording import shown_form

__all__ = ["failed_form", "place_of_call", "refusal_of"]

logger = logging.getLogger(__name__)

_ALIKE = "make it of the sizes that were called, as with generate(max_cache_len=) of transformers"


def refusal_of(binder: Binder, args: Any, kwargs: Any) -> str:
    """Why a call does not have the form of ``binder``."""
    try:
        binder.bind(*args, **kwargs)
    except InputMismatch as error:
        return str(error)
    return "the call has a form that is known"


def failed_form(new: str, error: Exception) -> PiecewiseError | None:
    """What to raise where the first call of a form failed; None for ``error`` itself.

    ``new``: how the call differs from the forms that were known. That is the likely cause, and
    what the model says of it may be nothing but a shape in the middle of it.
    """
    text = f"{new} Such calls are traced by themselves, and that failed"
    if isinstance(error, TraceFailed) and type(error) is not TraceFailed:
        return type(error)(f"{text}: {error}")
    if isinstance(error, PiecewiseError):
        return InputMismatch(f"{text}: {error}") if type(error) is TraceFailed else None
    return InputMismatch(f"{text}: {type(error).__name__}: {error}")


def place_of_call(
    call: Structure,
    binders: Sequence[Binder],
    args: Any,
    kwargs: Any,
    config: Config,
    sealed: str | None,
    unlike: str = "",
) -> tuple[int | None, str]:
    """The place of the form that the call has, sizes and layouts aside; None where it is new.

    ``binders``: of the forms that are known. ``unlike``: why its objects serve in none. The text
    beside None says how the new form differs from the nearest one. Raises InputMismatch for a slip
    and for a form too many, Sealed.
    """
    known = [binder.structure for binder in binders]
    found = [differences(structure, call) for structure in known]
    if [] in found:
        return found.index([]), ""
    if not found:
        return None, ""
    slip = next((place for place, each in enumerate(found) if _is_slip(each)), None)
    nearest = min(range(len(found)), key=lambda place: len(found[place]))
    if slip is None and all(map(_never, found)):
        slip = nearest
    if slip is not None:
        raise InputMismatch(refusal_of(binders[slip], args, kwargs))
    why = refusal_of(binders[nearest], args, kwargs)
    if sealed is not None:
        beside = f" ({unlike}; {_ALIKE})" if unlike else ""
        text = (
            f"{why}{beside}. Calls of another form would be traced after seal(); warmup() with an "
            "example of each form before seal()"
        )
        if sealed == "error":
            raise Sealed(text)
        logger.warning("%s", text)
    if len(known) >= config.max_forms:
        raise InputMismatch(_too_many(why, known, found, config.max_forms))
    logger.info("%s; calls of this form are traced by themselves", why)
    return None, f"{why}."


def _is_slip(found: Sequence[Difference]) -> bool:
    return all(difference.meaning is Meaning.SLIP for difference in found)


def _never(found: Sequence[Difference]) -> bool:
    return any(difference.meaning is Meaning.NEVER for difference in found)


def _too_many(
    why: str, known: Sequence[Structure], found: Sequence[Sequence[Difference]], most: int
) -> str:
    """All forms that there are, and what to change."""
    listed = "".join(f"\n  {place}: {shown_form(form)}" for place, form in enumerate(known))
    forms = f"{most} form{'s' if most > 1 else ''} of calls"
    text = f"{why}. The model serves {forms}, as many as Config.max_forms allows:{listed}\n"
    only = {tuple((d.path, d.what) for d in each) for each in found}
    if most > 1 and len(only) == 1 and all(len(each) == 1 for each in found):
        ((path, what),) = next(iter(only))
        return (
            f'{text}They differ in argument "{path}" alone ({what}): pass what changes from call '
            "to call as a tensor, or raise max_forms"
        )
    return f"{text}Call it in one of these, raise max_forms, or compile the model once more"
