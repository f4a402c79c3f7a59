"""``check="verify"``: what comparing a share of the calls with eager adds to all of them.

all-MiniLM-L6-v2 with Inductor, cut at attention, as in the demo. The bound is what the compared
calls cost by themselves, and a fifth: 1.2 x rate x (eager time / served time), and 0.2%. Needs the
``demo`` extra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import Row, in_turn, report

import piecewise_core as pw

SHAPE = (4, 32)
RATES = (0.01, 0.1)
CALLS = 100
"""Calls of a round: so many that each rate compares a whole number of them."""
SLICE = 10
"""Calls of one contender before the next one's turn: what disturbs a round disturbs all of it."""
DEMO = 0.02


def calls() -> dict[str, Callable[[], Any]]:
    """Eager, served, and served with each rate; each has run twice."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import minilm_contenders

    model, _ = minilm_contenders.load()
    contender: Any = minilm_contenders.make("piecewise", model, "inductor")
    config = contender.config.replace(capture_sizes=())
    ids = torch.randint(1000, 2000, SHAPE)
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    runs: dict[str, Any] = {"eager": model, "served": pw.compile(model, config, "cpu")}
    for rate in RATES:
        asked = config.replace(check="verify", verify_rate=rate)
        runs[f"verified_{rate:g}"] = pw.compile(model, asked, "cpu")
    for name, run in runs.items():
        off = max(float((run(**given)[0] - model(**given)[0]).abs().max()) for _ in range(2))
        if off > 1e-4:
            raise SystemExit(f"{name} differs from eager by {off}")
    return {name: lambda run=run: run(**given) for name, run in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    with torch.inference_mode():
        slices = in_turn(calls(), rounds=(3 if quick else 15) * CALLS // SLICE, calls=SLICE)
    found = {name: _rounds(values) for name, values in slices.items()}
    over = _median([e / s for e, s in zip(found["eager"], found["served"], strict=True)])
    rows: list[Row] = [("eager_over_served", over, "", None)]
    for rate in RATES:
        pairs = zip(found[f"verified_{rate:g}"], found["served"], strict=True)
        added = _median([verified / served for verified, served in pairs]) - 1
        bound = 1.2 * rate * over + 0.002
        rows.append((f"added_at_rate_{rate:g}", added, "", bound))
        if rate == RATES[0]:
            rows.append((f"added_to_the_demo_at_{rate:g}", added, "", DEMO))
    raw = {f"{n}_ms": [round(s * 1e3, 4) for s in values] for n, values in found.items()}
    report('check="verify" on the CPU', rows, raw)


def _rounds(slices: list[float]) -> list[float]:
    """Seconds of a call, by rounds."""
    count = CALLS // SLICE
    return [sum(slices[i : i + count]) / count for i in range(0, len(slices), count)]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
