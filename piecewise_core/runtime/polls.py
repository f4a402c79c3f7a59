"""What no container tells of, and what is asked of it: slots, items of sets, torch's switches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["BYTES", "Poll", "Switch", "Which", "answer_of", "asked", "differ"]

BYTES = "bytes"
"""The name of polls of arrays."""


class Poll:
    """What no container tells of, a slot or the items of a set: ``ask()`` is compared by ``==``.

    ``name``: tells it from other polls of ``of``.
    """

    def __init__(self, of: Any, name: str, ask: Callable[[], Any]) -> None:
        self.of = of
        self.name = name
        self.ask = ask


class Switch(Poll):
    """State of torch's own: what a function without arguments answers, a plain value."""

    def __init__(self, name: str, ask: Callable[[], Any]) -> None:
        super().__init__(ask, name, ask)

    def can_be_asked(self) -> bool:
        """Whether it has an answer now."""
        try:
            self.ask()
        except Exception:  # torch refuses to say where two of its interfaces were mixed
            return False
        return True

    def change(self) -> str:
        """That it is switched, in one sentence."""
        if self.name == "environment":  # which nobody wants in a log
            return "an environment variable was set or removed"
        return f"torch's {self.name} is {answer_of(self)} now"


def answer_of(switch: Switch) -> Any:
    """What it answers now; nothing that it may answer where it cannot."""
    try:
        return switch.ask()
    except Exception:  # can_be_asked
        return switch


def asked(poll: Poll) -> Any:
    """The answer with its type, or what kind of error there was; of a tensor, which one it is."""
    try:
        found = poll.ask()
        return type(found), Which(found) if isinstance(found, torch.Tensor) else found
    except Exception as error:  # not there now
        return type(error)


class Which:
    """A tensor as an answer: the same where it is the same object."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Which) and other.tensor is self.tensor

    __hash__ = object.__hash__


def differ(now: Any, was: Any) -> bool:
    """Whether two answers are not one."""
    try:
        return bool(now != was)
    except Exception:  # arrays were compared, so they are others
        return True
