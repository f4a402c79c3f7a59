"""What two streams in one graph gain: parallel parts side by side, against the usual graph."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from _gpu_measure import Contender, take_turns
from _inside import captured_plan
from _parallel_models import MODELS, inputs
from _place import Place
from _targets import Target, print_table, print_targets

import piecewise_core as pw

__all__ = ["streams"]

WAYS = ("one", "two", "auto")


def streams(place: Place, width: int) -> dict[str, Any]:
    """Each model at each size: one stream, two, and whichever a measurement kept."""
    layers, sizes = (1, (1, 4)) if place.simulated else (8, (1, 16, 64, 256, 1024))
    rows: list[Any] = []
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for name, make in MODELS.items():
        model = place.new(lambda make=make: make(layers, width, max(width // 64, 1)))
        built = {way: _built(place, model, way, sizes) for way in WAYS}
        given = {n: inputs(n, width, place.device, place.dtype) for n in sizes}
        for fast in built.values():
            with torch.inference_mode():
                fast.warmup(*given[sizes[-1]])
        for n in sizes:
            contenders = [Contender(way, partial(fast, *given[n])) for way, fast in built.items()]
            times = take_turns(contenders, place)
            one, two, auto = (times[way].wall for way in WAYS)
            kept = "two" if captured_plan(built["auto"], n).forks else "one"
            forks = captured_plan(built["two"], n).forks
            rows.append((f"{name}, {n} rows", one, two, auto, one / two, kept, forks))
            found[f"{name}, {n}"] = {
                "one": one, "two": two, "auto": auto, "speed_of_two": one / two, "kept": kept,
            }  # fmt: skip
            wrong += [] if _right(model, built, given[n]) else [f"{name}, {n}"]
    head = ("", "one, us", "two, us", "auto, us", "two over one", "auto kept", "forks")
    print_table(f"{layers} layers, width {width}; wall time of a call", head, rows)
    gains = [each["speed_of_two"] for name, each in found.items() if name.startswith("towers")]
    losses = [each["auto"] / each["one"] for each in found.values()]
    targets = [
        Target(f"two towers, width {width}, best speed of two streams", max(gains), 1.5, "x", True),
        Target(f"width {width}, worst time of auto over one stream", max(losses), 1.05),
        Target(f"width {width}, results that are not as eager's", len(wrong), 0, ""),
    ]
    return {
        "figures": found,
        "wrong": wrong,
        "ratio": max(gains),
        "targets": print_targets(targets, simulated=place.simulated),
    }


def _built(place: Place, model: Any, way: str, sizes: tuple[int, ...]) -> Any:
    rows = {0: pw.Dim("rows", min=1, max=sizes[-1])}
    return place.compile(
        model,
        dynamic={0: rows, 1: rows},
        capture_sizes=sizes,
        capture_compile="range",
        graph_mode="full",
        graph_streams=way,
    )


def _right(model: Any, built: dict[str, Any], given: tuple[torch.Tensor, ...]) -> bool:
    """Whether all give what the model gives, as closely as its dtype allows."""
    with torch.inference_mode():
        wanted = model(*given).float()
        scale = wanted.abs().max().item()
        off = [(fast(*given).float() - wanted).abs().max().item() for fast in built.values()]
    return max(off) <= 0.05 * scale
