"""The binder of one form of calls, which learns from what is traced of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from piecewise_core.errors import InputMismatch
from piecewise_core.graph.binder import Binder, Bound
from piecewise_core.graph.split import Program
from piecewise_core.ranges import Sizes

__all__ = ["CountsOtherwise", "FormBinder"]


class CountsOtherwise(InputMismatch):
    """A call that goes another way than the traced one, by what its objects have counted."""


class FormBinder(Binder):
    """A Binder that takes no call which would go another way, by what its objects have counted."""

    _holds: Callable[[Sizes], bool] | None = None

    def admit(self, program: Program, holds: Callable[[Sizes], bool]) -> None:
        """Know of one program more. ``holds``: whether a call of some sizes goes a traced way."""
        traced = program.traced
        self.mutated |= program.mutated
        self.returned |= program.returned
        if traced.counted is not None:
            self._holds = holds
            self._generate()
        if traced.asks_layout:
            self.exactly()
        self.expect(traced.asked)
        self.refuses = True

    def counts_otherwise(self, args: Any, kwargs: Any) -> bool:
        """Whether that is all that keeps a call from being one of this form."""
        if self._holds is None:
            return False
        try:
            self.bind(*args, **kwargs)
        except CountsOtherwise:
            return True
        except InputMismatch:
            return False
        return False

    def _generate(self) -> None:
        super()._generate()
        if self._holds is not None:
            self.bind = _asking(self.bind, self._holds)
            self.fits = _fitting(self.fits, self._holds)


def _asking(bind: Callable[..., Bound], holds: Callable[[Sizes], bool]) -> Callable[..., Bound]:
    def asking(*args: Any, **kwargs: Any) -> Bound:
        found = bind(*args, **kwargs)
        if not holds(found[1]):
            raise CountsOtherwise(
                "an object of the call has counted to where the model goes another way than the "
                "traced one"
            )
        return found

    return asking


def _fitting(
    fits: Callable[..., Bound | None], holds: Callable[[Sizes], bool]
) -> Callable[..., Bound | None]:
    def fitting(*args: Any, **kwargs: Any) -> Bound | None:
        found = fits(*args, **kwargs)
        return found if found is None or holds(found[1]) else None

    return fitting
