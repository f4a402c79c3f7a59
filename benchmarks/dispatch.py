"""Core's own work per call: what a call costs over calling the traced graph directly.

One piece, the eager compiler, three tensor inputs, 200 parameters in 100 modules; a tensor, a dict
or a dataclass out. And the look-up alone, with 1 range and with 1,000.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable
from typing import Any

import torch
from _measure import Row, in_turn, median_difference, report

import piecewise_core as pw
from piecewise_core.ranges import Box, Range, cut
from piecewise_core.runtime.slowwatch import Asker
from piecewise_core.runtime.watch import Watch
from piecewise_core.table import TargetTable
from piecewise_core.targets import Target

ROWS = 8
TARGET_CALL = 15.0
TARGET_LOOK_UP = 0.5


class Pair(torch.nn.Module):
    """Two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4))
        self.bias = torch.nn.Parameter(torch.randn(4))


class Model(torch.nn.Module):
    """Reads 200 parameters and three inputs in few operators, so that little hides the rest."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Pair() for _ in range(100))
        self.output = output

    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> Any:
        total = torch.cat([t for pair in self.layers for t in (pair.weight, pair.bias)]).sum()
        result = x * total + y - z
        return {"sum": result, "left": x} if self.output == "dict" else result


def calls(output: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(a call of the compiled model, a call of its traced graph), over the same tensors."""
    sizes = pw.Dim("rows", min=1, max=4096)
    dynamic = {n: {0: sizes} for n in ("x", "y", "z")}
    config = pw.Config(dynamic=dynamic, compiler="eager")
    compiled: Any = pw.compile(Model(output).eval().requires_grad_(False), config)
    x, y, z = (torch.randn(ROWS, 16) for _ in range(3))
    compiled(x=x, y=y, z=z)
    compiled(x=x, y=y, z=z)
    stats = compiled.stats()
    if (stats.graphs, stats.compilable_pieces) != (1, 1):
        raise SystemExit(f"dispatch: expected one graph of one piece, got {stats}")
    graph, inputs = _graph(compiled, (x, y, z))
    return (lambda: compiled(x=x, y=y, z=z)), (lambda: graph(*inputs))


def _graph(compiled: Any, tensors: tuple[torch.Tensor, ...]) -> tuple[Callable[..., Any], Any]:
    """The traced graph's own forward and its inputs, in its order."""
    session = compiled._pw_session
    traced = session.regions[0].program.traced
    bound = session.forms[0].model.parameters.tensors
    inputs = []
    for source in traced.inputs:
        if source.tensor is not None:
            inputs.append(tensors[source.tensor])
        elif source.bound is not None:
            inputs.append(bound[source.bound])
        else:
            inputs.append(int(source.size.subs(dict.fromkeys(traced.symbols, ROWS))))
    return traced.graph.forward, inputs


def look_up(ranges: int, dims: int, highest: int) -> Callable[[], Any]:
    """1,000 look-ups of random sizes among ``ranges`` ranges of the first dim."""
    bounds = Box((Range(1, highest),) * dims)
    cells = cut(bounds.ranges[0], range(highest // ranges, highest, highest // ranges))[:ranges]
    rest = bounds.ranges[1:]
    table = TargetTable(bounds, [Target("compiled_range", Box((cell, *rest))) for cell in cells])
    rng = random.Random(0)
    sizes = [tuple(rng.randint(1, highest) for _ in range(dims)) for _ in range(1000)]
    find = table.find
    if dims == 1:
        plain = [size for (size,) in sizes]

        def one() -> None:
            for size in plain:
                find(size)

        return one

    def many() -> None:
        for size in sizes:
            find(*size)

    return many


class Read:
    """Looked into while tracing: a dict and a class of its own each."""

    def __init__(self, number: float) -> None:
        self.number = number


def watched(dicts: int = 600, lists: int = 20, classes: int = 60) -> Callable[[], Any]:
    """One check of as much Python state as an adapted BERT of 12 layers reads."""
    kinds = [type(f"Read{n}", (Read,), {}) for n in range(classes)]
    objects = [kinds[n % classes](float(n)) for n in range(dicts)]
    return Watch([*map(vars, objects), *kinds, *([n] for n in range(lists))]).check


def watched_without_c(facts: int = 500) -> Callable[[], Any]:
    """One check of as many facts where there is no C module."""
    entries = [(vars(Read(float(n))), "number") for n in range(facts)]
    return Asker([], entries).check([held[key] for held, key in entries])


def measure(rounds: int, count: int) -> tuple[list[Row], dict[str, Any]]:
    """Rows and raw seconds."""
    runs: dict[str, Callable[[], Any]] = {}
    for output in ("tensor", "dict"):
        runs[output], runs[f"{output}_graph"] = calls(output)
    with torch.inference_mode():
        found = in_turn(runs, rounds=rounds, calls=count)
    rows: list[Row] = []
    for output in ("tensor", "dict"):
        floor = min(found[f"{output}_graph"]) * 1e6
        over = median_difference(found, output, f"{output}_graph") * 1e6
        rows.append((f"{output}_graph_alone", floor, "us", None))
        rows.append((f"{output}_over_graph", over, "us", TARGET_CALL))
    tables = {
        "look_up_1_range": look_up(1, 1, 8192),
        "look_up_1000_ranges": look_up(1000, 1, 8192),
        "look_up_1000_ranges_to_a_million": look_up(1000, 1, 1 << 20),
        "look_up_1000_ranges_two_dims": look_up(1000, 2, 8192),
    }
    states = {
        "python_state_600_dicts": (watched(), 2.0),
        "python_state_500_facts_without_c": (watched_without_c(), 10.0),
    }
    asked = in_turn({n: check for n, (check, _) in states.items()}, rounds=rounds, calls=count)
    for name, seconds in asked.items():
        rows.append((name, sorted(seconds)[len(seconds) // 2] * 1e6, "us", states[name][1]))
    searched = in_turn(tables, rounds=rounds, calls=max(5, count // 50))
    for name, seconds in searched.items():
        target = TARGET_LOOK_UP if name in ("look_up_1_range", "look_up_1000_ranges") else None
        rows.append((name, sorted(seconds)[len(seconds) // 2] * 1e3, "us", target))
    raw = {f"{name}_us": [round(s * 1e6, 3) for s in found[name]] for name in found}
    return rows, raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    os.environ["PIECEWISE_CACHE_MODE"] = "off"  # a kept trace has no graph to compare with
    with torch.inference_mode():
        rows, raw = measure(5 if quick else 25, 300 if quick else 2000)
    report("work of core per call", rows, raw)


if __name__ == "__main__":
    main()
