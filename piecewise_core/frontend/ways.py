"""Calls that go another way than those traced, by what their objects have counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from piecewise_core.errors import Sealed
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.shared import Shared
from piecewise_core.graph.binder import AsWritten

__all__ = ["another_way"]

logger = logging.getLogger(__name__)

_MOST_WAYS = 4
"""Traces of one form of calls for what objects have counted; where more differ, each call does."""


def another_way(shared: Shared, apart: Sequence[Form], known: int) -> str:
    """Why there is to be one form more, for calls that ``apart`` but for that would take.

    ``known``: how many forms there are. Raises Sealed, and AsWritten where the model goes another
    way time and again.
    """
    counted = [region.program.traced.counted for form in apart for region in form.regions]
    told = "; ".join(dict.fromkeys(text for each in counted if each for text in each.told))
    why = f"the model goes another way than where it was traced: {told}"
    if shared.sealed is not None:
        text = f"{why}. It would be traced after seal(); make such a call before"
        if shared.sealed == "error":
            raise Sealed(text)
        logger.warning("%s", text)
    if len(apart) >= _MOST_WAYS or known >= shared.config.max_forms:
        short = f"what it counts in its objects has the model go a way of its own: {told}"
        raise AsWritten(why, short=short)
    logger.info("%s; such calls are traced by themselves", why)
    return f"{why}."
