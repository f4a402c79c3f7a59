"""What estimate() says that static graphs take, and what the device then loses to them.

    python benchmarks/estimate.py [--quick] [--only PAIR ...]
    python benchmarks/estimate.py --list
    python benchmarks/estimate.py --simulated --quick    # no GPU: see below

A pair of a model and its capture sizes is a process of its own. It calls the model once, asks for
the estimate, captures, and compares the estimate with two figures:

"lost": what the driver has less of to give out than before the capture, the allocator's spare
blocks given back: the estimate's device_bytes. "reserved" is what torch's allocator took of it.
"kept": what estimate() itself left lost, which it says nothing of.
"counted": pool_bytes and driver_bytes of stats(), which memory_limit goes by: its bytes.

The simulated device has a pool with segments but no driver's memory: there only "counted" is
compared, with the estimate made to work sizes out as on a GPU. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from typing import Any

from _processes import rounded, supervise, tell

__all__ = ["main"]

TARGET = 0.05
BLOCK = 2 << 20
SUMS = ("bytes", "error_bytes", "input_bytes", "counted", "device_bytes", "lost", "kept")


def run_pair(name: str, options: argparse.Namespace) -> None:
    """In a process of its own: one pair."""
    os.environ["PIECEWISE_CACHE_MODE"] = "off"
    import torch
    from _estimate_pairs import pairs
    from _place import Place

    place = Place(options.simulated, options.quick)
    if place.simulated:
        from piecewise_core.frontend import estimating

        estimating._ALL = ("",)  # else a device of CPU tensors is estimated by capturing all
    try:
        subject = pairs()[name].make(place)
    except ImportError as missing:
        tell({"skipped": f"cannot import: {missing}"})
        return
    fast = subject.fast
    with torch.inference_mode():
        subject.call()
        if fast.stats().captures:
            raise SystemExit("the first call captured a size: nothing is left to estimate")
        free, begun = [_free(place)], time.perf_counter()
        said = fast.estimate()
        place.synchronize()
        seconds = time.perf_counter() - begun
        free.append(_free(place))
        reserved = _reserved(place)
        report = fast.warmup(progress=False)
        free.append(_free(place))
    stats = fast.stats()
    tell(
        {
            "where": place.describe(),
            "sizes": len(said.sizes),
            "measured": sum(size.measured for size in said.sizes),
            "graphs": sum(size.graphs for size in said.sizes),
            "bytes": said.bytes,
            "error_bytes": said.error_bytes,
            "input_bytes": said.input_bytes,
            "device_bytes": said.device_bytes,
            "counted": stats.pool_bytes + stats.driver_bytes,
            "lost": None if place.simulated else free[1] - free[2],
            "kept": None if place.simulated else free[0] - free[1],
            "reserved": None if place.simulated else _reserved(place) - reserved,
            "estimate_seconds": seconds,
            "dropped": [*said.dropped, *map(str, report.dropped)],
        }
    )


def _reserved(place: Any) -> int:
    """Bytes that torch's allocator has of the driver."""
    import torch

    return 0 if place.simulated else int(torch.cuda.memory_reserved())


def _free(place: Any) -> int:
    """Bytes that the driver can still give out, what the allocator only holds among them."""
    import torch

    if place.simulated:
        return 0
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


# In the first process -----------------------------------------------------------------------------


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """Add to a pair's figures how far the estimate was off, and whether it said so.

    ``error``: over what was really lost or, where nobody knows that, counted.
    """
    if "bytes" not in found:
        return found
    if not found["graphs"]:
        return {**found, "crashed": "nothing was captured"}
    bound, counted, lost = found["error_bytes"], found["counted"], found["lost"]
    off = abs(found["bytes"] - counted)
    result = {**found, "counted_error": off / max(counted, 1), "counted_within": off <= bound}
    if lost is None:
        return {**result, "error": result["counted_error"], "within": result["counted_within"]}
    off = abs(found["device_bytes"] - lost)
    return {**result, "error": off / max(lost, BLOCK), "within": off <= bound}


def show(results: dict[str, dict[str, Any]]) -> None:
    """One table of all pairs, in MiB."""
    from _targets import print_table

    rows = []
    for name, row in results.items():
        if "error" not in row:
            print(f"  {name}: {row.get('skipped') or row.get('crashed')}")
            continue
        rows.append(
            (
                name,
                f"{row['measured']}/{row['sizes']}",
                str(row["graphs"]),
                *("-" if row[k] is None else f"{row[k] / 2**20:.2f}" for k in SUMS),
                f"{row['error']:.1%}",
                "yes" if row["within"] else "NO",
                f"{row['counted_error']:.1%}" + ("" if row["counted_within"] else " NO"),
                row["estimate_seconds"],
            )
        )
    columns = (
        "MiB", "measured", "graphs", "estimate", "+-", "inputs", "counted", "device", "lost",
        "kept", "error", "within", "of counted", "s",
    )  # fmt: skip
    print_table("estimate() before capture, and what the capture took", columns, rows)


def summed_up(results: dict[str, dict[str, Any]], *, simulated: bool) -> dict[str, Any]:
    """The worst over all pairs, and the target."""
    told = {name: row for name, row in results.items() if "error" in row}
    worst = max(told, key=lambda name: told[name]["error"], default=None)
    error = told[worst]["error"] if worst else None
    whole = bool(told) and len(told) == len(results)
    return {
        "worst_error": error,
        "worst": worst,
        "worst_counted_error": max((r["counted_error"] for r in told.values()), default=None),
        "pairs_told": len(told),
        "within": sum(r["within"] for r in told.values()),
        "counted_within": sum(r["counted_within"] for r in told.values()),
        "target": TARGET,
        "met": None if simulated else whole and error is not None and error <= TARGET,
        "compared_with": "counted, simulated memory" if simulated else "memory the device lost",
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the pairs one after the other and print the JSON line."""
    options = _options(arguments)
    if options.pair:
        run_pair(options.pair, options)
        return
    if not options.simulated and not options.list and not _has_cuda():
        print(json.dumps({"skipped": "no CUDA device"}))
        return
    from _estimate_pairs import pairs

    every = pairs()
    names = [n for n, pair in every.items() if pair.quick or not options.quick]
    if options.only:
        names = [n for n in every if any(n.startswith(o) for o in options.only)]
    if options.list:
        print(*names, sep="\n")
        return
    passed = [f"--{f}" for f in ("quick", "simulated") if getattr(options, f)]
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        print(f"== {name}", flush=True)
        found = supervise(name, [__file__, "--pair", name, *passed], options.timeout)
        row = results[name] = judged(found)
        if "error" in row:  # the table comes last, and a run may be ended before
            told = (f"{k} {row[k]}" for k in SUMS)
            print(f"  {', '.join(told)}; off by {row['error']:.2%}", flush=True)
    show(results)
    total = summed_up(results, simulated=options.simulated)
    print(json.dumps(rounded({**total, "simulated": options.simulated, "pairs": results})))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="PAIR", help="how names of pairs begin")
    parser.add_argument("--list", action="store_true", help="print the pairs and stop")
    parser.add_argument("--quick", action="store_true", help="half of the pairs, fast to compile")
    parser.add_argument("--simulated", action="store_true", help="tiny models, simulated device")
    parser.add_argument("--timeout", type=float, default=180, help="seconds for one pair (180)")
    parser.add_argument("--pair", help=argparse.SUPPRESS)  # in the process of a pair
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
