"""``python fuzz.py N``: N random programs through every front, each against the program as written.

Prints one JSON line last. Programs are drawn in batches, each of its own seed: ``--only SEED``
runs one batch again. ``--kind narrow`` draws only the statements of the split property,
``--kind varying`` also those whose sizes depend on data.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections import Counter
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_programs import Builder, Random, arguments, module_of, programs, run
from varying_programs import Varying
from wider_programs import Wider

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

FRONTS: dict[str, Any] = {
    "uncaptured": lambda fn, **c: pw.compile(
        fn,
        pw.Config(dynamic=c["dynamic"], splitting_ops=c["splitting_ops"], compiler="eager"),
        "cpu",
    ),
    "piecewise": lambda fn, **c: pw.compile(
        fn, pw.Config(compiler="eager", **c), SimulatedPlatform()
    ),
    "full": lambda fn, **c: pw.compile(
        fn, pw.Config(compiler="eager", graph_mode="full", **c), SimulatedPlatform()
    ),
    "cpu plan": lambda fn, **c: pw.compile(fn, pw.Config(compiler="eager", **c), "cpu"),
    "recorded": lambda fn, **c: pw.record(fn, pw.Config(**c), SimulatedPlatform()),
    "recorded plan": lambda fn, **c: pw.record(fn, pw.Config(**c), "cpu"),
}


BATCH = 25
"""Programs drawn from one seed: hypothesis begins with the simplest, which is left out."""


def drawn(number: int, kind: type[Builder]) -> list[Random]:
    """The programs of one seed, BATCH of them unless hypothesis repeats itself very often."""
    found: dict[str, Random] = {}

    @seed(number)
    @settings(
        max_examples=2 * BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs(kind))
    def draw(program: Random) -> None:
        found[repr(program)] = program

    draw()
    return list(found.values())[1 : BATCH + 1]


def difference(program: Random, front: str) -> str:
    """What differs, or ""; raises what the front raises."""
    dynamic = {
        name: {i: program.dims[d] for i, d in enumerate(shape) if isinstance(d, str)}
        for name, shape in program.inputs.items()
    }
    names = list(dict.fromkeys(d.name for dims in dynamic.values() for d in dims.values()))
    sizes = [tuple(each[name] for name in names) for each in program.assignments[:3]]
    config = {
        "dynamic": dynamic,
        "splitting_ops": program.splitting,
        "capture_sizes": sorted({s if len(names) > 1 else s[0] for s in sizes}),
        "capture_max": False,
    }
    with module_of(program) as kind, torch.inference_mode():
        plain, twin = kind().eval(), kind().eval()
        fast = FRONTS[front](twin, **config)
        for number, each in enumerate(program.assignments[:3] * 2):
            want = run(plain, arguments(program, each, number), plain, layout=False)
            got = run(twin, arguments(program, each, number), fast, layout=False)
            for what, a, b in zip(("result", "writes"), want[:2], got[:2], strict=True):
                if a != b:
                    return f"{what} at {each}: {b} for {a}"[:600]
    return ""


KINDS: dict[str, type[Builder]] = {"narrow": Builder, "wide": Wider, "varying": Varying}


def tried(task: tuple[int, str]) -> list[dict[str, Any]]:
    """What came of one seed's programs, a row per program and front."""
    number, kind = task
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, program in enumerate(drawn(number, KINDS[kind])):
            # Fronts take turns: each program runs through one that compiles and one that records.
            fronts = list(FRONTS)
            for front in (fronts[place % 4], fronts[4 + place % 2]):
                rows.append({"seed": number, "place": place, **_outcome(program, front)})
    return rows


def _outcome(program: Random, front: str) -> dict[str, Any]:
    torch._dynamo.reset()
    row = {"front": front, "kind": "equal", "why": ""}
    try:
        row["why"] = difference(program, front)
        row["kind"] = "wrong" if row["why"] else "equal"
    except pw.errors.PiecewiseError as refused:
        row |= {"kind": "refused", "why": f"{type(refused).__name__}: {refused}"[:200]}
    except Exception as error:
        row |= {"kind": "bare", "why": f"{type(error).__name__}: {error}"[:300]}
    if row["kind"] in ("wrong", "bare"):
        row["program"] = repr(program)
    return row


def main() -> int:
    """Run them; 1 when any differs or ends in an exception that is not ours."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=2000, help="programs (2000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="this seed alone, with all that it says")
    parser.add_argument("--kind", choices=KINDS, help="one kind (every fourth batch is varying)")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    batches = -(-asked.count // BATCH)
    seeds = [asked.only] if asked.only is not None else range(asked.first, asked.first + batches)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    begun = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with context.Pool(asked.workers, maxtasksperchild=20, initializer=_quiet) as pool:
        tasks = [(s, asked.kind or ("wide" if s % 4 else "varying")) for s in seeds]
        for place, rows in enumerate(pool.imap_unordered(tried, tasks, chunksize=1)):
            for row in rows:
                counts[row["kind"]] += 1
                if row["kind"] == "refused":
                    reason = _reason(row["why"])
                    reasons[reason] += 1
                    if reasons[reason] == 1:
                        print(f"refused, seed {row['seed']}, {row['front']}: {reason}", flush=True)
                if row["kind"] in ("wrong", "bare") or asked.only is not None:
                    print("\n".join(f"{k}: {v}" for k, v in row.items()), flush=True)
            seconds = time.monotonic() - begun
            print(f"{place + 1}/{len(tasks)} batches, {seconds:.0f} s: {dict(counts)}", flush=True)
    for reason, times in reasons.most_common():
        print(f"refused {times} times: {reason}")
    line = {
        "programs": sum(counts.values()) // 2,
        **{k: counts[k] for k in ("equal", "refused", "wrong", "bare")},
    }
    print(json.dumps(line))
    return int(bool(counts["wrong"] or counts["bare"]))


def _reason(why: str) -> str:
    """A refusal's first sentence without its numbers: equal for refusals of one kind."""
    return re.sub(r"\d+", "N", why.split("\n")[0])[:120]


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    os.environ["PIECEWISE_CACHE_MODE"] = "off"


if __name__ == "__main__":
    sys.exit(main())
