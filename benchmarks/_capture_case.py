"""What it costs to capture 51 sizes of the toy decoder, and where the time goes."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _gpu_measure import timed
from _inside import Stopwatch, capture_all, pieces_of, prepare
from _place import Place
from _targets import Target, print_table, print_targets
from _toy_case import settings
from toy_decoder import Decoder, inputs

__all__ = ["capture"]

HIDDEN = 64


def capture(place: Place) -> dict[str, Any]:
    """Capture all sizes after warm-up; again watched; again profiled; and raw."""
    layers = 2 if place.simulated else 32
    sizes = (1, 2, 4) if place.simulated else (1, 2, 4, *range(8, 385, 8))
    model = place.new(lambda: Decoder(layers, HIDDEN))
    module = place.compile(model, graph_mode="piecewise", **settings(sizes))
    given = inputs(2, HIDDEN, place.device, place.dtype)
    seconds: dict[str, float] = {}
    with torch.inference_mode():
        with timed(seconds, "trace and compile", place):
            session = prepare(module, given)
        # A size without graphs, so that kernels and libraries are loaded before the clock runs.
        module(*inputs(3, HIDDEN, place.device, place.dtype))
        with timed(seconds, "capture", place):
            captured = capture_all(session)
        stats = module.stats()
        pool = stats.pool_bytes
        module.release()
        watch = Stopwatch(place)
        with watch.running(), timed(seconds, "capture again, watched", place):
            capture_all(session)
        module.release()
        profile = _profiled(lambda: capture_all(session))
        module.release()
        raw, rehearsal = _raw(place, session, sizes)
        alone = place.compile(model, graph_mode="piecewise", **settings((max(sizes),)))
        alone.warmup(*given, progress=False)
        largest = alone.stats().pool_bytes
    graphs = stats.captures
    each = {
        "capture, all of it": seconds["capture"] / graphs,
        "recording alone": watch.seconds.get("recording", 0.0) / graphs,
        "raw capture_begin, piece, capture_end": raw / graphs,
    }
    title = f"capture of {len(captured)} sizes, {graphs} graphs"
    print_table(title, ("", "seconds"), [(k, f"{v:.3f}") for k, v in seconds.items()])
    print_table("per graph", ("", "ms"), [(k, f"{v * 1e3:.3f}") for k, v in each.items()])
    rows = [(n, f"{s:.3f}", watch.calls[n]) for n, s in watch.seconds.items()]
    rows.append(("for comparison: bare rehearsal runs", f"{rehearsal:.3f}", len(captured)))
    by_size = list(watch.sizes.items())
    some = by_size[:: max(len(by_size) // 5, 1)]
    print_table("per size, watched", ("sizes", "ms"), [(n, f"{t * 1e3:.1f}") for n, t in some])
    print_table("where the time goes, watched", ("", "seconds", "calls"), rows)
    print_table("cProfile, by own time", ("function", "seconds", "calls"), profile[:8])
    targets = [
        Target("51 sizes x 33 graphs", seconds["capture"], 2, "s"),
        Target(
            "recording over raw, per graph",
            watch.seconds["recording"] / raw if "recording" in watch.seconds and raw else None,
            1.5,
        ),
        Target("all of capture over raw, per graph", seconds["capture"] / raw, 1.5),
        Target("pool of all sizes over the largest alone", pool / max(largest, 1), 1.1),
    ]
    return {
        "sizes": len(captured),
        "graphs": graphs,
        "phase_seconds": seconds,
        "raw_seconds": raw,
        "bare_rehearsal_seconds": rehearsal,
        "ms_per_graph": {k: v * 1e3 for k, v in each.items()},
        "split_seconds": watch.seconds,
        "split_calls": watch.calls,
        "seconds_by_size": watch.sizes,
        "profile": profile,
        "pool_bytes": pool,
        "largest_alone_bytes": largest,
        "targets": print_targets(targets, simulated=place.simulated),
    }


def _profiled(run: Callable[[], Any]) -> list[tuple[str, str, int]]:
    """The functions that take most of ``run`` themselves: name, seconds, calls."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    found: Any = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    top = sorted(found.items(), key=lambda item: item[1][2], reverse=True)[:25]
    return [
        (f"{'/'.join(file.split('/')[-2:])}:{line} {name}", f"{own:.4f}", calls)
        for (file, line, name), (_, calls, own, _, _) in top
    ]


def _raw(place: Place, session: Any, sizes: Sequence[int]) -> tuple[float, float]:
    """Seconds of nothing but begin, piece, end for every size, and of one run of each before.

    The runs load what kernels and libraries need, as ours do; they are not in the first figure.
    """
    begin, end, stream = _raw_driver(place)
    keep: list[Any] = []
    recording = rehearsal = 0.0
    place.synchronize()
    with stream():
        for size in sorted(sizes, reverse=True):
            begun = time.perf_counter()
            made = pieces_of(session, (size,))
            place.synchronize()
            rehearsal += time.perf_counter() - begun
            begun = time.perf_counter()
            for run, args in made:
                graph = begin()
                keep.append((graph, run(*args)))
                end(graph)
            recording += time.perf_counter() - begun
    place.synchronize()
    return recording, rehearsal


def _raw_driver(place: Place) -> tuple[Callable[[], Any], Callable[[Any], None], Any]:
    """How to begin a graph, to end it, and the stream to do it on."""
    if place.simulated:
        driver, runtime = place.platform.graphs, place.platform.device
        pool, stream = driver.new_pool(), runtime.new_stream()

        def begin() -> Any:
            graph = driver.new_graph()
            driver.capture_begin(graph, pool, stream)
            return graph

        return begin, driver.capture_end, lambda: runtime.stream(stream)

    handle, side = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def begin_raw() -> Any:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=handle, capture_error_mode="thread_local")
        return graph

    return begin_raw, lambda graph: graph.capture_end(), lambda: torch.cuda.stream(side)
