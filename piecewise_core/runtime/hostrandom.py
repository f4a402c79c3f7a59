"""Random generators of the host: Python's and numpy's own, and those that a function holds."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

__all__ = ["is_random", "kept_state"]


def is_random(value: Any) -> bool:
    """Whether ``value`` is such a generator."""
    return isinstance(value, random.Random) or (
        type(value).__module__.startswith("numpy.random")
        and (hasattr(value, "set_state") or hasattr(value, "bit_generator"))
    )


def kept_state(held: Iterable[Any] = ()) -> Callable[[], None]:
    """What puts Python's, numpy's and ``held`` generators back to their state of now."""
    back: list[Callable[[], Any]] = [partial(random.setstate, random.getstate())]
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        back.append(partial(numpy.set_state, numpy.get_state()))
    for each in held:
        if isinstance(each, random.Random):
            back.append(partial(each.setstate, each.getstate()))
        elif hasattr(each, "set_state"):
            back.append(partial(each.set_state, each.get_state()))
        else:
            back.append(partial(setattr, each.bit_generator, "state", each.bit_generator.state))

    def put_back() -> None:
        for each in back:
            each()

    return put_back
