"""Rounds of four processes with one fault each: `python -m tests.kit.ranks.chaos --rounds 1000`.

A round must end in agreement, or in a named error, on every process that lives, in five seconds of
a machine that runs them: seconds in which they waited for a CPU do not count, nor those for which
one of them is slow to capture; all are reported.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import time

from tests.kit.ranks.pool import Pool

FAULTS = (
    *("none", "memory", "memory", "slow", "late", "cold", "death", "config", "model"),
    *("state", "weight", "release", "ended", "anew"),
)
MAY_AGREE = ("none", "memory", "slow", "cold")
"""Faults that ranks must get over."""


def spec_of(draw, world):
    """One round, at random."""
    fault = draw.choice(FAULTS)
    timeout = 3.0
    rows = [draw.choice((1, 3, 4, 5, 8)) for _ in range(5)]
    config = {
        "padding": draw.choice(("none", "capture_sizes")),
        "capture": draw.choice(("first", "lazy")),
    }
    front = draw.choice(("compile", "compile", "record"))
    if front == "compile":
        config["graph_mode"] = draw.choice(("piecewise", "full", "full_and_piecewise"))
    where = draw.choice(("start", "warm", "call", "capture"))
    if fault == "memory":
        where = "capture"
    if fault == "death":
        where = draw.choice(("start", "compiled", "warm", "call", "capture", "released"))
    late = fault == "late"
    # A recorded model's calls before its first capture are the model as written: nobody met yet.
    unmet = front == "record" and fault == "model"
    return {
        "fault": "slow" if late else fault,
        "late": late,
        "rank": draw.randrange(world),
        "where": where,
        "at": draw.randrange(1, 7),
        "seconds": {"cold": 1.0}.get(fault, 6.0 if late else 0.3),
        "kind": draw.choice(("deeper", "gathers")),
        "warm": draw.random() < 0.5 or unmet,
        "rows": rows,
        "front": front,
        "groups": draw.choice(("world", "world", "pairs")),
        "timeout": timeout,
        "config": config,
    }


def lost(found):
    """Seconds of a round in which its processes waited for a CPU, one after the other."""
    return max(each["starved"] for each in found)


def judged(spec, found):
    """What is wrong with a round, and how it ended."""
    alive = [each for each in found if each["outcome"] != "died"]
    if any(each["outcome"] == "hung" for each in alive):
        return "a hang", "hung"
    held = max(each["held up"] for each in alive)
    # One that captures gives signs of life, and is waited for as long as that takes.
    captures = spec["seconds"] if spec["fault"] == "slow" and spec["where"] == "capture" else 0
    if held - lost(found) - captures > 5:
        return f"a rank was held up for {held:.1f} s", "slow"
    wrong = [text for each in alive for text in each.get("wrong", ())]
    if wrong:
        return f"wrong numbers: {wrong[0]}", "wrong"
    kinds = {each["outcome"] for each in alive}
    if kinds == {"agreed"}:
        if len({json.dumps([e["captured"], e["replayed"]]) for e in alive}) > 1:
            return "ranks captured or replayed different sizes", "divergent"
        return "", "agreed"
    if "RanksDisagree" not in kinds and len(alive) == len(found):
        return f"no named error: {[e['outcome'] for e in found]}", "unnamed"
    if spec["fault"] in MAY_AGREE and not spec["late"]:
        if lost(found) > spec["timeout"]:
            return "", "named: a rank had no CPU"
        return "no agreement on what ranks must get over", "refused"
    return "", "named" if "RanksDisagree" in kinds else "the group's own error after a death"


def main(arguments=None):
    """Run rounds, print what failed, and one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--world", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after these")
    asked = parser.parse_args(arguments)
    ends, failures, longest, ran = collections.Counter(), [], 0.0, 0.0
    by_fault = collections.defaultdict(collections.Counter)
    begun = time.monotonic()
    with Pool(asked.world) as pool:
        for number in range(asked.rounds):
            if time.monotonic() - begun > 60 * asked.minutes:
                break
            spec = spec_of(random.Random(f"{asked.seed} {number}"), asked.world)
            found = pool.round(spec)
            why, end = judged(spec, found)
            ends[end] += 1
            by_fault["late" if spec["late"] else spec["fault"]][end] += 1
            if end != "hung":
                held = max(e.get("held up", 0.0) for e in found)
                longest, ran = max(longest, held), max(ran, held - lost(found))
            if why:
                failures.append(number)
                print(f"round {number}: {why}: {json.dumps(spec)}", flush=True)
                for rank, each in enumerate(found):
                    print(f"  rank {rank}: {json.dumps(each)}", flush=True)
    print(
        json.dumps(
            {
                "rounds": sum(ends.values()),
                "processes": asked.world,
                "seed": asked.seed,
                "ends": dict(ends),
                "by fault": {fault: dict(each) for fault, each in sorted(by_fault.items())},
                "failed rounds": failures,
                "held up at most, s": round(longest, 2),
                "less waits for a CPU, s": round(ran, 2),
                "seconds": round(time.monotonic() - begun),
            }
        )
    )
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
