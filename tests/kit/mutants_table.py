"""Print which test of the kit each mutant fails: python tests/kit/mutants_table.py."""

from __future__ import annotations

import sys

from mutants.table import MUTANTS, results_of
from rich.console import Console
from rich.table import Table


def main() -> int:
    table, wrong = Table(title="Mutants of the simulated device"), 0
    for heading in ("mutant", "the test that fails", "passed", "blocked"):
        table.add_column(heading, overflow="fold")
    for mutant in MUTANTS:
        results = results_of(mutant)
        failed = [r.name for r in results if r.outcome == "failed"]
        wrong += failed != [mutant.fails]
        counts = [sum(r.outcome == kind for r in results) for kind in ("passed", "blocked")]
        table.add_row(mutant.what, ", ".join(failed) or "none", *map(str, counts))
    Console().print(table)
    print(f"{len(MUTANTS)} mutants, {wrong} of them not found by exactly their test")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
