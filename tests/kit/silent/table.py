"""All mutants of silent errors, and their table."""

from __future__ import annotations

from silent.base import Mutant
from silent.changes import CHANGES
from silent.hoststate import HOSTS
from silent.layouts import LAYOUTS
from silent.memory import MEMORY
from silent.padding import PADDINGS
from silent.scalars import SCALARS
from silent.waits import WAITS
from silent.weights import WEIGHTS

__all__ = ["MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (
    *(*SCALARS, *CHANGES, *HOSTS, *PADDINGS, *WEIGHTS, *WAITS, *LAYOUTS, *MEMORY),
)
