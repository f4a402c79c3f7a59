"""Static graphs on one GPU: what a captured forward costs, against its floor and its peers.

    python benchmarks/static_graphs.py [--quick] [--hidden 64 2048]

Prints a table per case and one JSON line last. All ratios come from interleaved rounds of one
process. The floor is a flat Python function over the very graphs and operator calls that our plan
holds: bound replays, prebound calls through the dispatcher, and the input copies.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from toy_decoder import OPS, Decoder, inputs

import piecewise_core as pw

Call = Callable[[], Any]


def host_and_wall(
    calls: dict[str, Call], rounds: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """Median microseconds per call: until the call returns, and until the device is done."""
    host: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(5):
            call()
    torch.cuda.synchronize()
    for _ in range(rounds):
        for name, call in calls.items():
            single = []
            for _ in range(repeats):
                torch.cuda.synchronize()
                begun = time.perf_counter()
                call()
                single.append(time.perf_counter() - begun)
            host[name].append(statistics.median(single) * 1e6)
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(repeats):
                call()
            torch.cuda.synchronize()
            wall[name].append((time.perf_counter() - begun) / repeats * 1e6)
    return {n: (statistics.median(host[n]), statistics.median(wall[n])) for n in calls}


def compiled(model: torch.nn.Module, mode: str, sizes: tuple[int, ...], batch: int) -> Any:
    """Our module, captured."""
    names = ("x", "position", "mask")
    dim = pw.Dim("batch", min=1, max=max(sizes))
    config = pw.Config(
        dynamic={name: {0: dim} for name in names},
        splitting_ops=OPS,
        capture_sizes=sizes,
        graph_mode=mode,
    )
    return pw.compile(model, config)


def captured_plan(module: Any, batch: int) -> Any:
    """The captured plan of one size, for the floor and for probing."""
    return module._pw_session.capturing.plans.get((batch,))


def floor_of(plan: Any, arguments: tuple[torch.Tensor, ...]) -> Call:
    """A flat function over the plan's own steps."""
    views = plan.held[: len(arguments)]
    steps = plan.steps
    lines = ["def floor(t0, t1, t2):", *(f" c{i}(t{i})" for i in range(len(arguments)))]
    names: dict[str, Any] = {f"c{i}": view.copy_ for i, view in enumerate(views)}
    for i, step in enumerate(steps):
        names[f"s{i}"] = step
        lines.append(f" s{i}()")
    exec("\n".join(lines), names)
    return functools.partial(names["floor"], *arguments)


def entry_microseconds(module: Any, arguments: tuple[torch.Tensor, ...], batch: int) -> float:
    """From the call to where the first step would be: everything but staging and steps."""
    dispatch = module._pw_session.dispatch
    slot = dispatch.find(batch)
    kept = dispatch.entries[slot]
    dispatch.entries[slot] = lambda *args: None
    try:
        times = []
        for _ in range(2000):
            begun = time.perf_counter()
            module(*arguments)
            times.append(time.perf_counter() - begun)
    finally:
        dispatch.entries[slot] = kept
    return statistics.median(times) * 1e6


def toy(hidden: int, rounds: int, repeats: int) -> dict[str, Any]:
    """The toy decoder at batch 8."""
    batch, dtype = 8, torch.bfloat16
    model = Decoder(hidden=hidden).to("cuda", dtype).eval()
    arguments = inputs(batch, hidden, "cuda", dtype)
    piecewise = compiled(model, "piecewise", (batch,), batch)
    full = compiled(model, "full", (batch,), batch)
    recorded = pw.record(
        model, piecewise._pw_session.config.replace(compiler=None, graph_mode=None)
    )
    torch._dynamo.reset()
    overhead = torch.compile(model, mode="reduce-overhead")
    with torch.inference_mode():
        for module in (piecewise, full, recorded):
            module.warmup(*arguments, progress=False)
        expected = model(*arguments)
        error = max(
            (module(*arguments).float() - expected.float()).abs().max().item()
            for module in (piecewise, full, recorded)
        )
        plan = captured_plan(piecewise, batch)
        (graph,) = captured_plan(full, batch).graphs
        calls: dict[str, Call] = {
            "eager": lambda: model(*arguments),
            "recorded": lambda: recorded(*arguments),
            "piecewise": lambda: piecewise(*arguments),
            "floor": floor_of(plan, arguments),
            "full": lambda: full(*arguments),
            "one replay": graph.replay
            if hasattr(graph, "replay")
            else captured_plan(full, batch).steps[0],
            "reduce-overhead": lambda: overhead(*arguments),
        }
        partitioned = _partitioned(model, arguments)
        if partitioned is not None:
            calls["reduce-overhead, partition"] = lambda: partitioned(*arguments)
        times = host_and_wall(calls, rounds, repeats)
        entry = entry_microseconds(piecewise, arguments, batch)
    print(f"\ntoy decoder, 32 layers, hidden {hidden}, batch {batch}; microseconds per forward")
    for name, (host, wall) in times.items():
        print(f"  {name:28s} host {host:9.1f}   wall {wall:9.1f}")
    print(
        f"  entry {entry:.1f}; graphs {len(plan.graphs)}, steps {len(plan.steps)}; "
        f"max error {error:.2g}"
    )
    ratios = {
        "host_over_floor": times["piecewise"][0] / times["floor"][0],
        "wall_over_floor": times["piecewise"][1] / times["floor"][1],
        "entry_us": entry,
        "full_host_minus_replay_us": times["full"][0] - times["one replay"][0],
        "full_wall_over_reduce_overhead": times["full"][1] / times["reduce-overhead"][1],
        "eager_over_piecewise": times["eager"][1] / times["piecewise"][1],
        "recorded_over_piecewise": times["recorded"][1] / times["piecewise"][1],
        "max_error": error,
    }
    if "reduce-overhead, partition" in times:
        ratios["wall_over_partition"] = (
            times["piecewise"][1] / times["reduce-overhead, partition"][1]
        )
    return ratios


def _partitioned(model: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> Any:
    """reduce-overhead cut at the operator by Inductor's graph partition, where torch has it."""
    from torch._inductor import config

    if not hasattr(config, "custom_should_partition_ops"):
        return None
    torch._dynamo.reset()
    with config.patch(graph_partition=True, custom_should_partition_ops=["toy::attention"]):
        module = torch.compile(model, mode="reduce-overhead")
        for _ in range(4):
            module(*arguments)
    return module


def capture_cost(rounds: int) -> dict[str, Any]:
    """Seconds and bytes of 51 sizes x 33 graphs, and one graph against raw capture."""
    hidden, dtype = 64, torch.bfloat16
    sizes = tuple([1, 2, 4, *range(8, 385, 8)][:51])
    model = Decoder(hidden=hidden).to("cuda", dtype).eval()
    module = compiled(model, "piecewise", sizes, max(sizes))
    arguments = inputs(8, hidden, "cuda", dtype)
    session = module._pw_session
    with torch.inference_mode():
        session.start(*arguments)
        for _ in session.compile_all():
            pass
        module(*inputs(3, hidden, "cuda", dtype))
        torch.cuda.synchronize()
        begun = time.perf_counter()
        captured = session.capture_all()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        stats = module.stats()
        several = stats.pool_bytes
        raw = _raw_capture(session, arguments)
        session.release()
        alone = compiled(model, "piecewise", (max(sizes),), max(sizes))
        alone.warmup(*arguments, progress=False)
        largest = alone.stats().pool_bytes
    per_graph = seconds / max(stats.captures, 1)
    print(f"\ncapture: {len(captured)} sizes, {stats.captures} graphs in {seconds:.2f} s")
    print(
        f"  {per_graph * 1e3:.3f} ms a graph, warm-up run included; raw capture {raw * 1e3:.3f} ms"
    )
    print(f"  pool {several} bytes for all sizes, {largest} for the largest alone")
    return {
        "capture_seconds": seconds,
        "capture_over_raw": per_graph / raw,
        "pool_over_largest": several / max(largest, 1),
        "captured_sizes": len(captured),
    }


def _raw_capture(session: Any, arguments: tuple[torch.Tensor, ...]) -> float:
    """Seconds per graph of capture_begin, one piece, capture_end, and nothing else."""
    region = session.regions[0]
    runs = [run for _, run in region.runnables(region.targets[-1].box)]
    made: list[tuple[Any, tuple[Any, ...]]] = []
    plan = region.code.plan([lambda *a, r=run: (made.append((r, a)), r(*a))[1] for run in runs])
    tensors, sizes = session._bind(*arguments)
    plan(tensors, session._read(), *sizes)
    stream = torch.cuda.Stream()
    pool = torch.cuda.graph_pool_handle()
    keep = []
    torch.cuda.synchronize()
    gc.collect()
    with torch.cuda.stream(stream):
        begun = time.perf_counter()
        for run, args in made:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool)
            keep.append((graph, run(*args)))
            graph.capture_end()
        seconds = time.perf_counter() - begun
    return seconds / len(made)


def endurance(replays: int, rounds: int) -> dict[str, Any]:
    """Bytes gained over many replays and release/restore rounds."""
    hidden, dtype = 64, torch.bfloat16
    model = Decoder(layers=8, hidden=hidden).to("cuda", dtype).eval()
    module = compiled(model, "piecewise", (4, 8), 8)
    arguments = inputs(8, hidden, "cuda", dtype)
    with torch.inference_mode():
        module.warmup(*arguments, progress=False)
        module(*arguments)
        module.release()
        module.restore()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(replays):
            module(*arguments)
        torch.cuda.synchronize()
        after_replays = torch.cuda.memory_allocated()
        for _ in range(rounds):
            module.release()
            module.restore()
        torch.cuda.synchronize()
        after_rounds = torch.cuda.memory_allocated()
    print(
        f"\nendurance: {after_replays - before} bytes over {replays} replays, "
        f"{after_rounds - after_replays} over {rounds} release/restore rounds"
    )
    return {
        "bytes_over_replays": after_replays - before,
        "bytes_over_rounds": after_rounds - after_replays,
    }


def main() -> None:
    """Run the cases and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 2048])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": "no CUDA device"}))
        return
    rounds, repeats = (3, 50) if options.quick else (7, 200)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for hidden in options.hidden:
        result[f"hidden_{hidden}"] = toy(hidden, rounds, repeats)
    result["capture"] = capture_cost(rounds)
    result["endurance"] = endurance(1000 if options.quick else 10000, 5 if options.quick else 20)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
