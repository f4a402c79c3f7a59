"""``python -m silent``: every mutant of silent errors, and whether it is caught.

A mutant is a program, or a part of a platform, that gives wrong numbers without a word where
nothing is checked. Each must be found by check="verify", or be refused, with file and line. Prints
a table and one JSON line last; ends with 1 where one is not caught, or is no mutant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from silent.base import Mutant
from silent.table import MUTANTS
from silent.trial import Outcome, tried


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants that were asked for; 1 when one is not caught."""
    parser = argparse.ArgumentParser(prog="silent", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help="mutants whose name holds TEXT, in full")
    parser.add_argument("--list", action="store_true", help="names, and nothing is tried")
    asked = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if asked.only is None or asked.only in m.name]
    if asked.list:
        print("\n".join(m.name for m in chosen))
        return 0
    begun, found = time.monotonic(), []
    for mutant in chosen:
        outcome = tried(mutant)
        found.append((mutant, outcome))
        print(f"{outcome.kind:<9} {mutant.name}: {_said(outcome, asked.only)}", flush=True)
    print(_table(found))
    kinds = Counter(o.kind for _, o in found)
    caught = sum(o.caught for _, o in found)
    line = {
        "mutants": len(found),
        "caught": caught,
        **{k: kinds[k] for k in ("verified", "refused", "noticed", "missed", "bare", "unreal")},
        "without_line": sum(not o.line for _, o in found),
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(line))
    return int(caught < len(found))


def _said(outcome: Outcome, whole: str | None) -> str:
    if whole is not None or not outcome.caught:
        return outcome.said
    return outcome.line or outcome.said[:100]


def _table(found: list[tuple[Mutant, Outcome]]) -> str:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant, outcome in found:
        counts[mutant.kind][outcome.kind] += 1
    kinds = ("verified", "refused", "noticed", "missed", "bare", "unreal")
    lines = [f"{'kind':<28}" + "".join(f"{k:>10}" for k in kinds)]
    lines += [f"{k:<28}" + "".join(f"{c[each]:>10}" for each in kinds) for k, c in counts.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ["PIECEWISE_CACHE_MODE"] = "off"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.exit(main())
