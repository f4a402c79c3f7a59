"""Decoding through torch.compile's door, against pw.compile: Llama 3.2 1B's shape, a static cache.

    python benchmarks/doors.py [--quick] [--batch 1] [--no-peers]
    python benchmarks/doors.py --simulated    # no GPU: does the script itself work

All contenders take turns in one process, each with a cache of its own. ``door`` and ``pw.compile``
have the same graph mode and cut nothing; ``door, cut`` and ``pw.compile, cut`` cut at attention and
capture in pieces. The last line is one JSON object; its ratios are of this run.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

TARGET = 0.93
"""Tokens per second of the door over pw.compile's, at least."""


def ways(model: Any, place: Any) -> dict[str, Callable[..., Any]]:
    """Every contender by name."""
    import torch
    from _llama_case import ATTENTION
    from _peers import overhead

    import piecewise_core as pw

    token = pw.Dim("token", 1, 1)
    settings: dict[str, Any] = {
        "dynamic": {"input_ids": {1: token}, "position_ids": {1: token}},
        "capture_sizes": (1,),
    }
    cut: dict[str, Any] = {"splitting_ops": ATTENTION, "graph_mode": "piecewise"}

    def door(**options: Any) -> Any:
        own = {"platform": place.platform, **options}
        if place.compiler:
            own["compiler"] = place.compiler
        return torch.compile(model, backend="piecewise", options=own, dynamic=False)

    found: dict[str, Callable[..., Any]] = {
        "eager": model,
        "pw.compile": place.compile(model, graph_mode="full_and_piecewise", **settings),
        "door": door(),
        "pw.compile, cut": place.compile(model, **settings, **cut),
        "door, cut": door(**cut),
        "door, reduce-overhead": door(mode="reduce-overhead"),
    }
    if place.has_peers:
        found["torch, reduce-overhead"] = overhead(model)
    return found


def measure(place: Any, batch: int) -> dict[str, Any]:
    """Tokens per second and microseconds of a decode step, and whether tokens are eager's."""
    import torch
    from _gpu_measure import Contender, take_turns
    from _llama_case import FULL_SIZE, TINY, Decoding
    from transformers import LlamaConfig, LlamaForCausalLM

    import piecewise_core as pw

    sizes = TINY if place.simulated else FULL_SIZE
    model = place.new(lambda: LlamaForCausalLM(LlamaConfig(**sizes)))
    decoding = {n: Decoding(run, model, batch, place) for n, run in ways(model, place).items()}
    steps = 8 if place.simulated else 64
    with torch.no_grad():
        tokens = {name: each.tokens(steps) for name, each in decoding.items()}
        tokens = {name: each.tokens(steps) for name, each in decoding.items()}  # warm by now
    contenders = [
        Contender(name, each.step, torch.no_grad, each.restart) for name, each in decoding.items()
    ]
    times = take_turns(contenders, place, repeats=4 if place.simulated else 64)
    return {
        "batch": batch,
        "tokens_per_second": {name: batch / t.wall * 1e6 for name, t in times.items()},
        "microseconds": {n: {"host": t.host, "wall": t.wall} for n, t in times.items()},
        "same_tokens_as_eager": {
            name: (found == tokens["eager"]).float().mean().item() for name, found in tokens.items()
        },
        "graphs": [str(graph) for graph in pw.dynamo_graphs()],
    }


def main() -> None:
    """Measure, print, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--simulated", action="store_true", help="tiny, without a GPU")
    parser.add_argument("--no-peers", action="store_true", help="without torch's own graphs")
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from _place import Place
    from _targets import print_table

    place = Place(options.simulated, options.quick, not options.no_peers)
    found = measure(place, options.batch)
    rate, same = found["tokens_per_second"], found["same_tokens_as_eager"]
    rows = [
        (n, rate[n], t["host"], t["wall"], f"{same[n]:.3f}")
        for n, t in found["microseconds"].items()
    ]
    head = ("", "tokens/s", "host us", "wall us", "tokens as eager's")
    print_table(f"Llama 3.2 1B shape, batch {options.batch}: one decode step", head, rows)
    print(*found["graphs"], sep="\n")
    ratios = {
        "door_over_pw_compile": rate["door"] / rate["pw.compile"],
        "door_cut_over_pw_compile_cut": rate["door, cut"] / rate["pw.compile, cut"],
        "door_over_eager": rate["door"] / rate["eager"],
    }
    if "torch, reduce-overhead" in rate:
        ratios["door_over_reduce_overhead"] = rate["door"] / rate["torch, reduce-overhead"]
    met = None if place.simulated else ratios["door_over_pw_compile"] >= TARGET
    where = place.describe()
    line = {"ratios": ratios, "target": TARGET, "met": met, "where": where, **found}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
