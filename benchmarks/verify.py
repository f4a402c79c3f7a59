"""``check="verify"``: what comparing a share of the calls with eager adds to all of them.

all-MiniLM-L6-v2 with Inductor, cut at attention, as in the demo. The bound is what the compared
calls cost by themselves, and a fifth: 1.2 x rate x (eager time / served time), and 0.2%. Needs the
``demo`` extra.

Calls of the contenders alternate, and CPU time of one thread counts: a busy machine disturbs that
least. What is added is what a call costs more that is not compared, and the share of what one
costs that is: the median of each, since one call in a hundred that is disturbed would be all of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _measure import Row, report

import piecewise_core as pw

SHAPE = (4, 32)
RATES = (0.01, 0.1)
DEMO = 0.02


def calls() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Eager, served twice, and served with each rate; and a call.

    Each has run twice, and been compared once: the first time looks at all weights as well.
    """
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
    runs: dict[str, Any] = {"eager": model}
    for name in ("served", "again"):
        runs[name] = pw.compile(model, config, "cpu")
    for rate in RATES:
        asked = config.replace(check="verify", verify_rate=rate)
        runs[f"verified_{rate:g}"] = pw.compile(model, asked, "cpu")
    for name, run in runs.items():
        off = max(float((run(**given)[0] - model(**given)[0]).abs().max()) for _ in range(2))
        if off > 1e-4:
            raise SystemExit(f"{name} differs from eager by {off}")
    for rate in RATES:
        while not verified(run := runs[f"verified_{rate:g}"]):
            run(**given)
    return runs, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 200 if parser.parse_args().quick else 600
    torch.set_num_threads(1)
    with torch.inference_mode():
        plain, compared = timed(*calls(), rounds)
    mid = {name: statistics.median(values) for name, values in plain.items()}
    over = mid["eager"] / mid["served"]
    rows: list[Row] = [
        ("eager_over_served", over, "", None),
        ("served_again_over_served_less_1", mid["again"] / mid["served"] - 1, "", None),
    ]
    for rate in RATES:
        name = f"verified_{rate:g}"
        more = statistics.median(compared[name]) - mid[name]
        uncompared = mid[name] - mid["served"]
        rows.append((f"added_to_calls_not_compared_{rate:g}", uncompared / mid["served"], "", None))
        added = (uncompared + rate * more) / mid["served"]
        rows.append((f"added_at_rate_{rate:g}", added, "", 1.2 * rate * over + 0.002))
        if rate == RATES[0]:
            rows.append((f"added_to_the_demo_at_{rate:g}", added, "", DEMO))
    raw: dict[str, Any] = {f"{n}_ms": round(s * 1e3, 4) for n, s in mid.items()}
    raw.update({f"{n}_compared": len(values) for n, values in compared.items()})
    report('check="verify" on the CPU', rows, raw)


def timed(
    runs: Mapping[str, Any], given: Mapping[str, Any], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """CPU seconds of each call that was not compared, by name, and of each that was."""
    plain: dict[str, list[float]] = {name: [] for name in runs}
    compared: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        names = [*runs][turn % len(runs) :] + [*runs][: turn % len(runs)]
        for name in names:
            run, before = runs[name], verified(runs[name])
            begun = time.process_time()
            run(**given)
            spent = time.process_time() - begun
            (plain if verified(run) == before else compared)[name].append(spent)
    return plain, compared


def verified(run: Any) -> int:
    return run.stats().verified if hasattr(run, "stats") else 0


if __name__ == "__main__":
    main()
