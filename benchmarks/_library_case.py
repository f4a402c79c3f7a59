"""A library's own loop in several ways: each warmed, compared with float32, then timed in turn."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _measure import in_turn
from _peers import Evidence, settle
from _place import Place
from _processes import tell
from _targets import Target

import piecewise_core as pw

__all__ = ["LibraryCase", "Way", "bases_of", "full_precision", "judge", "run", "said", "targets"]

EAGER = "eager"
WARM = 3
"""Runs of a way before it is compared; the door captures a size at its second call."""
SLACK = 1.5
"""A way is right whose error to float32 is at most this many times eager's, as in models.py."""


@dataclass(frozen=True)
class Way:
    """``call``: one run of the loop, whose result it returns. ``facts``: what it did, for JSON.

    ``peer``: whether it is torch's own graphs, whose use is to be shown.
    """

    call: Callable[[], Any]
    facts: Callable[[], Any] = dict
    peer: bool = False


@dataclass(frozen=True)
class LibraryCase:
    """``ways``: what makes each, by name, eager first. ``amount``: of ``unit`` in a run.

    ``compare(result, eager's)``: ``error`` to float32 and what else there is to say of a result.
    ``result(way)``: what is compared. ``aims``: what a rate of ours is over, and by how much.
    """

    unit: str
    amount: int
    ways: dict[str, Callable[[], Way]]
    result: Callable[[Way], Any]
    compare: Callable[[Any, Any], dict[str, Any]]
    aims: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)


def run(
    case: LibraryCase, place: Place, chosen: Sequence[str] | None, budget: float
) -> dict[str, Any]:
    """Build the ways one after the other, compare and time them; tell figures as they come.

    ``budget``: seconds after which none is begun, so that those there are get timed.
    """
    begun = time.monotonic()
    found: dict[str, Any] = {"where": place.describe(), "unit": case.unit, **case.facts}
    found |= {"amount": case.amount, "aims": case.aims, "ways": {}}
    made: dict[str, Way] = {}
    eager: Any = None
    for name, make in case.ways.items():
        if chosen and name not in (*chosen, *case.aims, EAGER):
            continue
        if name not in case.aims and time.monotonic() - begun > budget:
            found["ways"][name] = {"failed": f"not begun: {budget:g} s were over"}
            continue
        print(f"  {name}", flush=True)
        try:
            way = make()
            row = _warmed(name, way, place)
            result = case.result(way)
            eager = result if name == EAGER else eager
            found["ways"][name] = row | case.compare(result, eager)
            made[name] = way
        except Exception as error:
            if name == EAGER:
                raise
            found["ways"][name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        tell(found)
    rounds = 1 if place.simulated else 5 if place.quick else 15
    runs = {name: _to_the_end(way.call, place) for name, way in made.items()}
    for name, seconds in in_turn(runs, rounds=rounds, calls=1).items():
        row = found["ways"][name]
        row |= {"seconds": seconds, "facts": made[name].facts()}
        row["per_second"] = case.amount / statistics.median(seconds)
    tell(found)
    return found


def _warmed(name: str, way: Way, place: Place) -> dict[str, Any]:
    """Call a way until it is warm: the seconds of its first run, and a peer's evidence."""
    run, seconds = _to_the_end(way.call, place), []

    def call() -> None:
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)

    evidence: Evidence | None = None
    if way.peer and place.has_peers:
        evidence = settle(name, call, place)
    else:
        for _ in range(WARM):
            call()
    row: dict[str, Any] = {"cold_seconds": seconds[0]}
    return row if evidence is None else row | {"evidence": evidence.to_dict()}


def _to_the_end(call: Callable[[], Any], place: Place) -> Callable[[], None]:
    """The call, and all that the device has to do for it."""

    def run() -> None:
        call()
        place.synchronize()

    return run


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Float32 is float32: neither products nor convolutions are rounded to TF32."""
    precision, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = allowed


def said(model: Any) -> Any:
    """What served a model's calls: of a compiled one its counters, else the door's graphs."""
    if not isinstance(model, pw.CompiledModule):
        return [str(graph) for graph in pw.dynamo_graphs()]
    stats = model.stats()
    notes = [*model.explain().as_written]
    return {"calls": dict(stats.calls), "captures": stats.captures, "notes": notes}


# In the first process -----------------------------------------------------------------------------


def judge(found: Mapping[str, Any]) -> dict[str, Any]:
    """A case's figures, and what they say: what is right, and each rate over those aimed at.

    ``over``: medians over each other, with the least and the most of the rounds.
    """
    ways: dict[str, Any] = {name: dict(row) for name, row in found.get("ways", {}).items()}
    timed = {name: row for name, row in ways.items() if "seconds" in row}
    if EAGER not in timed:
        return dict(found)
    limit = SLACK * timed[EAGER]["error"] + 1e-5
    for row in timed.values():
        row["right"] = row["error"] <= limit
        row["over"] = {
            base: _over(row["seconds"], timed[base]["seconds"])
            for base in bases_of(found)
            if base in timed
        }
    return {**found, "ways": ways}


def bases_of(found: Mapping[str, Any]) -> list[str]:
    """What rates are over, whether or not there is a target."""
    return list(dict.fromkeys((*found["aims"], EAGER)))


def _over(mine: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    rounds = [b / m for m, b in zip(mine, base, strict=True)]
    ratio = statistics.median(base) / statistics.median(mine)
    return {"ratio": ratio, "least": min(rounds), "most": max(rounds)}


def targets(found: Mapping[str, Any]) -> list[Target]:
    """Each of our ways over each that is aimed at; no figure where a result is not right."""
    made, unit = [], found.get("unit", "")
    for name, row in found.get("ways", {}).items():
        if name in bases_of(found):
            continue
        for base, aim in found["aims"].items():
            value, note = None, row.get("failed", f"{base} was not timed")
            if base in row.get("over", {}):
                value, note = row["over"][base]["ratio"], _doubt(found["ways"][base])
            if not row.get("right", True):
                value, note = None, f"not right: off by {row['error']:.1e}"
            title = f"{name}: {unit}/s over {base}'s"
            made.append(Target(title, value, aim, at_least=True, note=note))
    return made


def _doubt(base: Mapping[str, Any]) -> str:
    problem = base.get("evidence", {}).get("problem", "")
    return f"of what it is over: {problem}" if problem else ""
