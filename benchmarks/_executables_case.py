"""What sharing executables across sizes saves of the driver's memory, and what a switch costs."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch
from _gpu_measure import Contender, take_turns, timed
from _inside import capture_all, captured_plan, launched_alone, prepare
from _memory_cases import held
from _place import Place
from _targets import Target, print_table, print_targets
from _toy_case import settings
from toy_decoder import Decoder, inputs

__all__ = ["executables"]

WAYS = ("shared", "own")
"""In this order: what a driver takes for the first captures of a process counts against sharing."""


def executables(place: Place, hidden: int) -> dict[str, Any]:
    """Both builds of 51 sizes x 33 graphs, side by side in one process."""
    layers, sizes = (2, (1, 2, 4)) if place.simulated else (32, (1, 2, 4, *range(8, 385, 8)))
    model = place.new(lambda: Decoder(layers, hidden))
    built = {
        way: place.compile(model, graph_mode="piecewise", graph_executables=way, **settings(sizes))
        for way in WAYS
    }
    given = {n: inputs(n, hidden, place.device, place.dtype) for n in (*sizes, 3)}
    taken: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        # A size without graphs first, so that kernels and libraries are loaded before.
        sessions = {way: prepare(module, given[sizes[0]]) for way, module in built.items()}
        for module in built.values():
            module(*given[3])
        for way, module in built.items():
            seconds: dict[str, float] = {}
            before = held(place)[2]
            with timed(seconds, "capture", place):
                capture_all(sessions[way])
            stats = module.stats()
            lost = stats.driver_bytes if place.simulated else held(place)[2] - before
            taken[way] = {
                "driver_bytes": lost,
                "said_bytes": stats.driver_bytes,
                "graphs": stats.captures,
                "executables": stats.executables,
                "capture_seconds": seconds["capture"],
            }
        one, other = sizes[-1], sizes[-2]
        contenders = [
            Contender(f"{way}, {name}", _calls(module, [given[n] for n in order]))
            for way, module in built.items()
            for name, order in (("one size", (one, one)), ("two sizes in turn", (one, other)))
        ]
        times = take_turns(contenders, place)
        wrong = _wrong(built, given, sizes, place)
    per_size = taken["own"]["graphs"] / len(sizes)
    switch = {
        way: (times[f"{way}, two sizes in turn"].host - times[f"{way}, one size"].host) / per_size
        for way in WAYS
    }
    rows = [(way, *(f"{value:.6g}" for value in taken[way].values())) for way in WAYS]
    print_table(f"{len(sizes)} sizes, hidden {hidden}", ("", *taken["own"]), rows)
    table = [(name, t.host, t.wall) for name, t in times.items()]
    print_table("a call; us", ("", "host", "wall"), table)
    targets = [
        Target(
            f"driver memory, hidden {hidden}, over executables of their own",
            taken["shared"]["driver_bytes"] / max(taken["own"]["driver_bytes"], 1),
            0.5,
        ),
        Target("sizes whose results differ from their own launches", len(wrong), 0, ""),
        Target("host time of a switch, per graph", switch["shared"], 20, "us"),
    ]
    return {
        "sizes": len(sizes),
        "taken": taken,
        "wrong": wrong,
        "switch_microseconds": switch,
        "microseconds": {n: {"host": t.host, "wall": t.wall} for n, t in times.items()},
        "targets": print_targets(targets, simulated=place.simulated),
    }


def _wrong(built: dict[str, Any], given: Any, sizes: tuple[int, ...], place: Place) -> list[int]:
    """Sizes whose results are not bitwise those of the same graphs, each with an own executable.

    Another capture says less: a matrix product may be another kernel there, which rounds otherwise.
    """
    shared = built["shared"]
    first = {n: shared(*given[n]).clone() for n in sizes}
    again = {n: shared(*given[n]).clone() for n in reversed(sizes)}
    if place.simulated:
        alone = {n: built["own"](*given[n]).clone() for n in sizes}
    else:
        with launched_alone(*(captured_plan(shared, n) for n in sizes)):
            alone = {n: shared(*given[n]).clone() for n in sizes}
    return [n for n in sizes if not all(torch.equal(alone[n], t[n]) for t in (first, again))]


def _calls(module: Any, each: list[Any]) -> Any:
    """A call of the next of ``each``, over and over."""
    turn = cycle(each)
    return lambda: module(*next(turn))
