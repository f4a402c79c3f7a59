"""A worker of the sweep: reads names of operators, appends a line per pass to the results."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

from sweeps.cases import Case, cases_of, label, operators
from sweeps.families import WAYS, families
from sweeps.families import served_by_torch as of_torch
from sweeps.judging import Outcome, judge
from sweeps.passes import PASSES, served_by_torch


def run(op: object, results: Path, limit: int, passes: list[str]) -> Counter[str]:
    """Every pass of every case of one operator; how many came to what."""
    counts: Counter[str] = Counter()
    name = label(op)
    try:
        cases = list(cases_of(op, limit))
    except Exception as error:  # the database's own samples do not run on this machine
        _keep(results, name, "cases", 0, Outcome("skipped", f"{type(error).__name__}: {error}"))
        cases = []
    for place, case in enumerate(cases):
        first: Outcome | None = _run_pass("plain", case, results.parent)
        if first is not None and first.kind == "refused" and case.rows:
            # Where only the sizes are at fault, all passes go on with the sample's own.
            case = case.fixed()
            _keep(results, name, "sizes", place, Outcome("sizes refused", first.why))
            first = None
        for title in passes:
            known = first if title == "plain" else None
            outcome = known or _run_pass(title, case, results.parent)
            if outcome.kind == "refused" and title == "plain" and not served_by_torch(case):
                outcome = Outcome("refused by torch too", outcome.why)
            counts[outcome.kind] += 1
            _keep(results, name, title, place, outcome)
    with results.open("a") as file:
        print(json.dumps({"op": name, "pass": "done"}), file=file)
    return counts


def _run_pass(title: str, case: Case, home: Path) -> Outcome:
    torch._dynamo.reset()
    # Only one pass is about the store, and its operators share one.
    os.environ["PIECEWISE_CACHE_MODE"] = "readwrite" if title == "stored" else "off"
    return judge(lambda: PASSES[title](case, home))


def _keep(results: Path, op: str, title: str, case: int, outcome: Outcome) -> None:
    row = {"op": op, "pass": title, "case": case, "kind": outcome.kind, "why": outcome.why}
    with results.open("a") as file:
        print(json.dumps(row), file=file)


def run_family(name: str, results: Path, asked: list[str]) -> Counter[str]:
    """Every way in of one family, or those ``asked`` for."""
    counts: Counter[str] = Counter()
    family = families()[name.removeprefix("family:")]
    by_torch, ways = True, WAYS
    if not family.is_here():
        counts["skipped"], ways = 1, {}
        _keep(results, name, "torch", 0, Outcome("skipped", "this transformers has no such family"))
    elif not asked or "torch" in asked:
        by_torch = of_torch(family)
        kind = "equal" if by_torch else "refused by torch too"
        _keep(results, name, "torch", 0, Outcome(kind, ""))
    for title, way in ways.items():
        if asked and title not in asked:
            continue
        torch._dynamo.reset()
        os.environ["PIECEWISE_CACHE_MODE"] = "off"
        outcome = judge(lambda: way(family))  # noqa: B023
        if outcome.kind == "refused" and title == "served" and not by_torch:
            outcome = Outcome("refused by torch too", outcome.why)
        counts[outcome.kind] += 1
        _keep(results, name, title, 0, outcome)
    with results.open("a") as file:
        print(json.dumps({"op": name, "pass": "done"}), file=file)
    return counts


def _spare_collector() -> None:
    """Keep what is there out of later collections of garbage, which are a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def main() -> None:
    """Serve names from standard input until it ends."""
    results, limit, passes = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    known: dict[str, object] = {}
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with torch.inference_mode():
        for line in sys.stdin:
            name = line.strip()
            if name.startswith("family:"):
                _spare_collector()  # each brings modules of its own
                counts = run_family(name, results, passes)
            else:
                if not known:
                    known = {label(op): op for op in operators()}  # takes seconds
                    _spare_collector()
                counts = run(known[name], results, limit, passes or list(PASSES))
            print(", ".join(f"{v} {k}" for k, v in sorted(counts.items())) or "nothing", flush=True)


if __name__ == "__main__":
    main()
