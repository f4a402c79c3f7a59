"""Models called at several sizes in turn: a diffusion transformer, and a sentence encoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _dit import PATCH, Dit
from _gpu_measure import Contender, take_turns
from _peers import Evidence, overhead, settle
from _place import Place
from _targets import print_table

import piecewise_core as pw

__all__ = ["dit", "encoder"]

ATTENTION = ("torch.nn.functional.scaled_dot_product_attention",)
Call = dict[str, torch.Tensor]


def dit(place: Place) -> dict[str, Any]:
    """DiT-S at six resolutions of an image, batch 2 (one of them for guidance)."""
    width, layers = (12, 2) if place.simulated else (384, 12)
    pixels = [(256, 256), (256, 384), (384, 384), (512, 384), (512, 512), (512, 768)]
    sizes = [h // 16 * (w // 16) for h, w in pixels]
    names = [f"{h}x{w}" for h, w in pixels]
    if place.simulated:
        sizes, names = [4, 6], ["2x2", "2x3"]
    model = place.new(lambda: Dit(layers, width))
    dim = pw.Dim("patches", 1, max(sizes))
    settings: dict[str, Any] = {
        "dynamic": {"patches": {1: dim}, "place": {0: dim}},
        "splitting_ops": ATTENTION,
        "capture_sizes": tuple(sizes),
    }

    def call(size: int) -> Call:
        new = {"device": place.device, "dtype": place.dtype}
        return {
            "patches": torch.randn(2, size, PATCH, **new),  # type: ignore[call-overload]
            "place": torch.randn(size, width, **new),  # type: ignore[call-overload]
            "condition": torch.randn(2, width, **new),  # type: ignore[call-overload]
        }

    calls = dict(zip(names, map(call, sizes), strict=True))
    return _compared("DiT-S, batch 2, by resolution", place, model, settings, calls)


def encoder(place: Place) -> dict[str, Any]:
    """A BERT of MiniLM's shape over batch and sequence length."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    sizes = [(1, 8), (1, 64), (8, 32), (8, 128), (32, 64), (32, 128)]
    if place.simulated:
        shape = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 48}
        sizes = [(1, 8), (2, 4)]
    model = place.new(lambda: BertModel(BertConfig(num_attention_heads=12, **shape)))
    batch = pw.Dim("batch", 1, max(b for b, _ in sizes))
    # From 2: transformers' attention takes a path of its own at length 1.
    length = pw.Dim("length", 2, max(s for _, s in sizes))
    settings: dict[str, Any] = {
        "dynamic": {n: {0: batch, 1: length} for n in ("input_ids", "attention_mask")},
        "splitting_ops": ATTENTION,
        "capture_sizes": tuple(sorted(sizes)),
        "capture_max": False,
    }

    def call(size: tuple[int, int]) -> Call:
        ids = torch.randint(1, 1000, size, device=place.device)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0  # some padding: models look for its absence, and wait for the device then
        return {"input_ids": ids, "attention_mask": mask}

    calls = {f"{b} x {s}": call((b, s)) for b, s in sizes}
    return _compared("MiniLM's shape, batch x length", place, model, settings, calls)


def _compared(
    title: str, place: Place, model: Any, settings: dict[str, Any], calls: dict[str, Call]
) -> dict[str, Any]:
    """Every way at every size: microseconds, and how far results are from eager's."""
    ours = {
        "recorded": place.record(model, **settings),
        "piecewise": place.compile(model, graph_mode="piecewise", **settings),
        "full": place.compile(model, graph_mode="full", **settings),
    }
    ways: dict[str, Callable[..., Any]] = {"eager": model, **ours}
    if place.has_peers:
        ways["torch.compile, dynamic"] = torch.compile(model, dynamic=True)
        ways["reduce-overhead, dynamic"] = overhead(model, dynamic=True)
    contenders = [
        Contender(f"{name}|{size}", _caller(run, call), torch.no_grad)
        for size, call in calls.items()
        for name, run in ways.items()
    ]
    evidence: list[Evidence] = []
    with torch.no_grad():
        for name in ways:
            if name in ours:
                ours[name].warmup(**next(iter(calls.values())), progress=False)
            elif name != "eager":
                print(f"warming up {name}", flush=True)
                each = [_caller(ways[name], call) for call in calls.values()]
                graphs = name.startswith("reduce-overhead")
                least = len(calls) if graphs else 0
                evidence.append(settle(name, _all(each), place, graphs=graphs, least=least))
        errors = {n: max(_error(model, run, c) for c in calls.values()) for n, run in ways.items()}
    times = take_turns(contenders, place, repeats=max(place.repeats // 4, 2))
    wall = {n: {s: times[f"{n}|{s}"].wall for s in calls} for n in ways}
    host = {n: {s: times[f"{n}|{s}"].host for s in calls} for n in ways}
    for kind, found in (("wall", wall), ("host", host)):
        rows = [(size, *(found[n][size] for n in ways)) for size in calls]
        print_table(f"{title}; {kind} us per call", ("", *ways), rows)
    for each in evidence:
        print(f"{each.name}: {each.problem or f'{each.graphs} graphs, valid'}")
    stats = {name: module.stats() for name, module in ours.items()}
    return {
        "wall_us": wall,
        "host_us": host,
        "max_error": errors,
        "calls": {n: {k: v for k, v in s.calls.items() if v} for n, s in stats.items()},
        "captures": {name: s.captures for name, s in stats.items()},
        "peers": [each.to_dict() for each in evidence],
        "targets": [],
    }


def _caller(run: Callable[..., Any], call: Call) -> Callable[[], Any]:
    return lambda: run(**call)


def _all(calls: Sequence[Callable[[], Any]]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


def _error(model: Any, run: Callable[..., Any], call: Call) -> float:
    expected, got = _first(model(**call)).float(), _first(run(**call)).float()
    return (expected - got).abs().max().item()


def _first(result: Any) -> torch.Tensor:
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
    return found
