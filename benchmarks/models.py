"""Real models at published shapes: piecewise in every mode against eager and torch.compile.

    python benchmarks/models.py [--only llama1b-decode vit-l ...] [--quick] [--autotune]
    python benchmarks/models.py --list
    python benchmarks/models.py --simulated --quick    # no GPU: does the script itself work

A case is a process of its own with a time limit; what it measured until then counts. No way is
begun after half of that time, so that what is built is timed. In a case all ways take turns in one
process, each compiled first with empty caches of Inductor's, and no store: "cold" is from asking
for it to the end of its first call, captures included, imports of this process not. "limit" is the
larger of the bytes that a call must read over the bandwidth of the same run, and its operations
over the rate of a large product; "share" is that over the call's time. "error" is to the same model
in float32; a way that is further off than 1.5 times eager is not right: its speed does not count.
"full, not cut" has no splitting ops and code for exactly each captured size, as the door has;
"full, streams" puts independent parts on two streams of the graph where that measures faster.
With --side-by-side cases are built at the same time, and timed one after the other while no other
builds: their cold seconds say nothing, and kernels are chosen by measurements beside others' work.
The last line is one JSON object; its ratios are of one run.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fcntl
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from _processes import supervise, tell

__all__ = ["main"]

Calls = dict[str, dict[str, Callable[[], Any]]]
"""A call for each way and size."""

BASE = "reduce-overhead"
"""What ratios are over, where it runs."""


class Turn:
    """Processes that build at the same time, and time one at a time while none builds.

    ``path``: a file that all lock, None for a process that is alone. A lock goes with its process.
    """

    def __init__(self, path: str | None) -> None:
        self._file = None if path is None else open(path, "a")  # noqa: SIM115

    def build(self) -> None:
        """Wait until nobody times."""
        self._lock(fcntl.LOCK_SH)

    def time(self) -> None:
        """Wait until nobody builds or times."""
        self._lock(fcntl.LOCK_UN)  # two that turn one lock into the other wait for each other
        self._lock(fcntl.LOCK_EX)

    def _lock(self, how: int) -> None:
        if self._file is not None:
            fcntl.flock(self._file, how)


# In the process of a case -------------------------------------------------------------------------


def run_case(name: str, options: argparse.Namespace) -> None:
    """Build the ways one after the other, compare and time them; tell figures as they come."""
    begun = time.monotonic()
    os.environ["PIECEWISE_CACHE_MODE"] = "off"
    import torch
    from _place import Place
    from _real_models import cases

    place = Place(options.simulated, options.quick, not options.no_peers)
    turn = Turn(options.turns)
    turn.build()
    try:
        case = cases()[name](place)
    except ImportError as missing:
        tell({"skipped": f"{missing.name} is not installed"})
        return
    found: dict[str, Any] = {"where": place.describe(), "ways": {}}
    with torch.no_grad():
        exact = _exactly(case)
        calls: Calls = {}
        _import_compilers(place)
        ways = _ways(case, place, autotune=options.autotune)
        for way, make in ways.items():
            if options.ways and way not in (*options.ways, "eager"):
                continue
            if calls and time.monotonic() - begun > options.timeout / 2:
                found["ways"][way] = {"failed": "half of the time was over before its turn came"}
                continue
            print(f"  {way}", flush=True)
            row = found["ways"][way] = _built(way, make, case, place, calls)
            if way in calls:
                row["error"] = {s: _error(c, exact[s]) for s, c in calls[way].items()}
            tell(found)
        del exact
        turn.time()
        found["limit_us"] = _limits(case, place)
        _time(found, calls, place)
    tell(found)


def _import_compilers(place: Any) -> None:
    """What the first compilation in a process imports, which is no way's to pay for."""
    import torch

    if place.has_peers:
        torch.compile(torch.nn.functional.softplus)(torch.ones(8, device=place.device))


def _ways(case: Any, place: Any, *, autotune: bool) -> dict[str, Callable[[], Any]]:
    """Ways to run the model, by name; each made when its turn comes."""
    import torch
    from _peers import overhead

    model, settings = case.model, dict(case.settings)
    if not case.captured:
        settings["graph_mode"] = "none"
    ways: dict[str, Callable[[], Any]] = {"eager": lambda: model}
    if place.has_peers:
        ways["torch.compile"] = lambda: torch.compile(model, dynamic=True)
        if case.captured:
            ways[BASE] = lambda: overhead(model)
            if autotune:
                ways["max-autotune"] = lambda: torch.compile(model, mode="max-autotune")
    if not case.captured:
        return {**ways, "piecewise": lambda: place.compile(model, **settings)}
    uncut = {**settings, "splitting_ops": (), "capture_compile": "exact"}
    laned = {**settings, "graph_streams": "auto"}
    door = {k: v for k, v in settings.items() if k not in ("dynamic", "capture_max")}
    door |= {"platform": place.platform, "capture": "first", "graph_mode": "full"}
    door.pop("capture_sizes"), door.pop("splitting_ops", None)
    if place.compiler:
        door["compiler"] = place.compiler
    return {
        **ways,
        "recorded": lambda: place.record(model, **settings),
        "piecewise": lambda: place.compile(model, graph_mode="piecewise", **settings),
        "full": lambda: place.compile(model, graph_mode="full", **settings),
        "full, not cut": lambda: place.compile(model, graph_mode="full", **uncut),
        "full, streams": lambda: place.compile(model, graph_mode="full", **laned),
        "door": lambda: torch.compile(model, backend="piecewise", options=door, dynamic=False),
    }


def _built(
    way: str,
    make: Callable[[], Any],
    case: Any,
    place: Any,
    calls: Calls,
) -> dict[str, Any]:
    """Make a way and call it until it is warm: seconds, bytes, or why it does not run."""
    from _gpu_measure import WARM

    before = _driver_bytes(place)
    try:
        with _empty_caches(place):
            begun = time.perf_counter()
            mine = case.calls(make())
            first = next(iter(mine.values()))
            first()
            place.synchronize()
            cold = time.perf_counter() - begun
            for call in mine.values():
                for _ in range(2 if place.simulated else WARM):
                    call()
            place.synchronize()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    calls[way] = mine
    return {"cold_seconds": cold, "driver_bytes": _driver_bytes(place) - before}


@contextlib.contextmanager
def _empty_caches(place: Any) -> Iterator[None]:
    """Inductor's and Triton's caches empty for the block: each way compiles what it needs."""
    if place.simulated:
        yield
        return
    from torch._inductor import utils

    fresh = getattr(utils, "fresh_cache", None) or utils.fresh_inductor_cache
    with fresh():
        yield


def _exactly(case: Any) -> dict[str, Any]:
    """What the model in float32 gives at each size, on the host."""
    import torch

    models = [copy.deepcopy(case.model).float()]

    def run(**inputs: Any) -> Any:
        raised = {
            k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for k, v in inputs.items()
        }
        cache = inputs.get("past_key_values")
        if cache is not None:
            raised["past_key_values"] = cache = copy.deepcopy(cache)
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys.float(), layer.values.float()
                layer.dtype = torch.float32
        return models[0](**raised)

    with _full_precision():
        found = {size: call().float().cpu() for size, call in case.calls(run).items()}
    models.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _error(call: Callable[[], Any], exact: Any) -> float:
    """Norm of the difference over the norm of what is right."""
    got = call().float().cpu()
    if got.shape != exact.shape:
        return float("inf")
    return float((got - exact).norm() / exact.norm().clamp(min=1e-12))


def _limits(case: Any, place: Any) -> dict[str, float]:
    """Microseconds that no way can beat on this device, by size; empty where nothing is timed."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    if place.simulated:
        return {}
    bandwidth, rate = _bandwidth(), _rate(place.dtype)
    weights = sum(p.numel() * p.element_size() for p in _weights(case.model))
    found = {}
    for size, call in case.calls(case.model).items():
        # By fused kernels torch 2.11 raises where heads are shared, and counts none on a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        read = weights + case.kept.get(size, 0)
        found[size] = max(read / bandwidth, counter.get_total_flops() / rate) * 1e6
    return found


def _weights(model: Any) -> list[Any]:
    """What every call reads whole: no embedding that is not also the last product."""
    import torch

    tied = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)} - tied
    return [p for p in model.parameters() if id(p) not in tables]


def _bandwidth() -> float:
    """Bytes a second of reading 4 GiB, the best of several ways."""
    import torch

    given = torch.ones(2**31, dtype=torch.bfloat16, device="cuda")
    vector = torch.ones(2**14, dtype=torch.bfloat16, device="cuda")
    table = given.view(-1, 2**14)
    return given.nbytes / min(_seconds(lambda: table @ vector), _seconds(lambda: given.amax()))


def _rate(dtype: Any) -> float:
    """Operations a second of a product of 8192 x 8192."""
    import torch

    side = 8192
    given = torch.randn(side, side, dtype=dtype, device="cuda")
    return 2 * side**3 / _seconds(lambda: given @ given)


def _seconds(call: Callable[[], Any]) -> float:
    """The best of twenty, by the device's clock."""
    import torch

    found = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return min(found)


def _driver_bytes(place: Any) -> int:
    """Bytes that the driver has given out, allocator's spare blocks aside."""
    import torch

    if place.simulated:
        return 0
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    return whole - free


def _time(
    found: dict[str, Any], calls: dict[str, dict[str, Callable[[], Any]]], place: Any
) -> None:
    """Take turns at each size and write microseconds and ratios into ``found``."""
    import torch
    from _gpu_measure import Contender, take_turns

    repeats = 2 if place.simulated else 30 if place.quick else 100
    for size in next(iter(calls.values())):
        contenders = [Contender(w, each[size], torch.no_grad) for w, each in calls.items()]
        times = take_turns(contenders, place, repeats=repeats)
        for way, taken in times.items():
            row = found["ways"][way].setdefault("us", {})
            row[size] = {"wall": taken.wall, "host": taken.host}
        tell(found)


# In the first process -----------------------------------------------------------------------------


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """Add to a case's figures what they say: ratios, shares of the limit, what is right."""
    ways = {w: r for w, r in found.get("ways", {}).items() if "us" in r}
    if not ways:
        return found
    eager = ways["eager"]
    base = ways.get(BASE) or ways.get("torch.compile") or eager
    for row in ways.values():
        row["right"] = {
            s: e <= 1.5 * eager["error"][s] + 1e-5 for s, e in row.get("error", {}).items()
        }
        row["over_base"] = {s: t["wall"] / base["us"][s]["wall"] for s, t in row["us"].items()}
        row["cold_over_base"] = row["cold_seconds"] / max(base["cold_seconds"], 1e-9)
        limits = found.get("limit_us", {})
        row["share"] = {s: limits[s] / t["wall"] for s, t in row["us"].items() if s in limits}
    ours = ("recorded", "piecewise", "full", "full, not cut", "full, streams", "door")
    best = {}
    for size in eager["us"]:
        right = {w: r["over_base"][size] for w, r in ways.items() if w in ours and r["right"][size]}
        best[size] = min(right.values(), default=None)
    return {**found, "base": next(w for w, r in ways.items() if r is base), "best_over_base": best}


def show(name: str, found: dict[str, Any]) -> None:
    """One table a case."""
    from _targets import print_table

    rows = []
    for way, row in found.get("ways", {}).items():
        if "us" not in row:
            print(f"  {way}: {row.get('failed', 'not timed')}")
            continue
        for size, taken in row["us"].items():
            share = row["share"].get(size)
            rows.append(
                (
                    f"{way}, {size}",
                    taken["wall"],
                    taken["host"],
                    f"{row['over_base'][size]:.3f}",
                    "-" if share is None else f"{share:.2f}",
                    f"{row['error'][size]:.1e}" + ("" if row["right"][size] else " WRONG"),
                    row["cold_seconds"],
                    row["driver_bytes"] / 2**20,
                )
            )
    columns = (
        "", "wall us", "host us", f"over {found.get('base', BASE)}", "share of limit",
        "error to float32", "cold s", "MiB",
    )  # fmt: skip
    print_table(name, columns, rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the cases one after the other and print the JSON line."""
    options = _options(arguments)
    if options.case:
        run_case(options.case, options)
        return
    from _real_models import names

    chosen = names(options.only)
    if options.list:
        print(*chosen, sep="\n")
        return
    if not options.simulated and not _has_cuda():
        print(json.dumps({"skipped": "no CUDA device"}))
        return
    flags = ("quick", "simulated", "no_peers", "autotune")
    passed = [f"--{f.replace('_', '-')}" for f in flags if getattr(options, f)]
    passed += ["--ways", *options.ways] if options.ways else []
    passed += ["--timeout", str(options.timeout)]
    results = {}
    with (
        tempfile.NamedTemporaryFile() as turns,
        ThreadPoolExecutor(options.side_by_side) as several,
    ):
        if options.side_by_side > 1:
            passed += ["--turns", turns.name]

        def ran(name: str) -> dict[str, Any]:
            print(f"\n== {name}", flush=True)
            return judged(supervise(name, [__file__, "--case", name, *passed], options.timeout))

        for name, found in zip(chosen, several.map(ran, chosen), strict=True):
            if "ways" in found:
                show(name, found)
            else:
                print(f"  {name}: {found.get('skipped') or found.get('crashed')}")
            results[name] = found
    print(json.dumps({"simulated": options.simulated, "cases": results}))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="CASE", help="cases, or how names begin")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="these, and eager: door full ...")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--autotune", action="store_true", help="max-autotune too; minutes a case")
    parser.add_argument("--no-peers", action="store_true", help="leave torch.compile out")
    parser.add_argument("--simulated", action="store_true", help="tiny models, simulated device")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one case (600)")
    parser.add_argument(
        "--side-by-side", type=int, default=1, metavar="N", help="build N at once (1)"
    )
    parser.add_argument("--turns", help=argparse.SUPPRESS)  # a file to lock
    parser.add_argument("--case", help=argparse.SUPPRESS)  # in the process of a case
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
