"""All mutants, and the table of what became of them."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable

from mutants.answers import ANSWERS
from mutants.base import Mutant
from mutants.compilers import COMPILERS
from mutants.drivers import DRIVERS
from mutants.endurance import ENDURANCE
from mutants.faults import FAULTS
from mutants.forks import FORKS
from mutants.memory import MEMORY
from mutants.numbers import NUMBERS
from mutants.ownership import OWNERSHIP
from mutants.plugins import PLUGINS
from mutants.replays import REPLAYS
from mutants.sharing import SHARING
from mutants.streams import STREAMS
from piecewise_core.testing.conformance.judging import FOUND, KEEPS, PROBED
from piecewise_core.testing.conformance.report import TestResult
from piecewise_core.testing.conformance.running import run_suite, suite_for
from piecewise_core.testing.conformance.suite import PlatformConformance

__all__ = ["MUTANTS", "as_markdown", "results_of", "with_what_it_relies_on"]

MUTANTS: tuple[Mutant, ...] = (
    *PLUGINS,
    *COMPILERS,
    *ANSWERS,
    *NUMBERS,
    *OWNERSHIP,
    *REPLAYS,
    *STREAMS,
    *MEMORY,
    *FAULTS,
    *SHARING,
    *FORKS,
    *DRIVERS,
    *ENDURANCE,
)

_ROUNDS = 100


def results_of(mutant: Mutant, only: Collection[str] | None = None) -> tuple[TestResult, ...]:
    """Run the kit on ``mutant``, or those of its tests that ``only`` names."""
    with mutant.platform() as platform:
        suite = suite_for(platform, level=mutant.level, rounds=_ROUNDS)
        gc.collect()
        gc.freeze()  # what earlier runs left is walked by none of the collections of this one
        return run_suite(suite, chosen=lambda spec: only is None or spec.name in only)


def with_what_it_relies_on(*names: str) -> set[str]:
    """The tests of these names, and those without which they are not run."""
    specs = PlatformConformance.specs()
    relied = {FOUND, PROBED, KEEPS, *names}
    while more := {other for known in relied for other in specs[known].relies_on} - relied:
        relied |= more
    return relied


def as_markdown(mutants: Iterable[Mutant]) -> str:
    """The table of the reference."""
    rows = [f"| {mutant.what} | `{mutant.fails}` |" for mutant in mutants]
    return "\n".join(["| mutant | the one test that fails |", "|---|---|", *rows])
