"""Libraries' own loops, whole: transformers' generate() and a diffusers pipeline, with our code.

    python benchmarks/libraries.py [--quick] [--only generate sd] [--ways WAY ...] [--no-peers]
    python benchmarks/libraries.py --simulated --quick    # no GPU: does the script itself work

"generate": 128 greedy tokens at the shape of Llama 3.2 1B, static cache, batch 1, against
transformers as written and against their own compiled decode step. "sd": 20 steps of Stable
Diffusion 1.5's network in its pipeline, against eager and reduce-overhead. A case is a process of
its own with a time limit; in it all ways take turns, and ratios are of that run.

"error" is to float32, given the same texts or noise; a way that is further off than 1.5 times eager
is not right, and its speed does not count. "cold" is the first run of a way, with whatever Inductor
and the compile store, a new one, kept from the ways before it. Once the seconds of ``--budget`` are
over no further way is begun. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from typing import Any

from _processes import rounded, supervise

__all__ = ["main"]

CASES = ("generate", "sd")


def run_case(name: str, options: argparse.Namespace) -> None:
    """In a process of its own: one case."""
    from _library_case import run
    from _place import Place
    from _processes import tell

    place = Place(options.simulated, options.quick, not options.no_peers)
    try:
        case = _made(name, place)
    except ImportError as missing:
        tell({"skipped": f"cannot import: {missing}"})
        return
    budget = options.budget or (90 if options.quick else 400)
    with tempfile.TemporaryDirectory() as store:  # what ways have in common is compiled once
        os.environ["PIECEWISE_CACHE_DIR"] = store
        run(case, place, options.ways, budget)


def _made(name: str, place: Any) -> Any:
    if name == "generate":
        from _generate_case import generate

        return generate(place)
    from _pipeline_case import sd

    return sd(place)


def show(name: str, found: dict[str, Any]) -> None:
    """One table a case."""
    from _library_case import bases_of
    from _targets import print_table

    rows, bases = [], bases_of(found)
    for way, row in found["ways"].items():
        if "seconds" not in row:
            print(f"  {way}: {row.get('failed', 'not timed')}")
            continue
        rows.append(
            (
                way,
                f"{row['per_second']:.4g}",
                *(_ratio(row["over"].get(base)) for base in bases),
                f"{row['error']:.1e}" + ("" if row["right"] else " WRONG"),
                f"{row.get('same_tokens', row.get('off_eager', 0)):.3g}",
                row["cold_seconds"],
            )
        )
    closeness = "tokens as eager's" if name == "generate" else "off eager"
    over = (f"over {base} (rounds)" for base in bases)
    columns = ("", f"{found['unit']}/s", *over, "error to float32", closeness, "cold s")
    print_table(name, columns, rows)
    for way, row in found["ways"].items():
        if "evidence" in row:
            seen = row["evidence"]
            print(f"{way}: {seen['problem'] or str(seen['graphs']) + ' CUDA graphs, valid'}")


def _ratio(over: dict[str, float] | None) -> str:
    return "-" if over is None else f"{over['ratio']:.3f} ({over['least']:.3f}-{over['most']:.3f})"


def main(arguments: list[str] | None = None) -> None:
    """Run the cases one after the other and print the JSON line."""
    options = _options(arguments)
    if options.case:
        run_case(options.case, options)
        return
    if not options.simulated and not _has_cuda():
        print(json.dumps({"skipped": "no CUDA device"}))
        return
    from _library_case import judge, targets
    from _targets import print_targets

    flags = ("quick", "simulated", "no_peers")
    passed = [f"--{f.replace('_', '-')}" for f in flags if getattr(options, f)]
    passed += ["--budget", str(options.budget)] if options.budget else []
    passed += ["--ways", *options.ways] if options.ways else []
    results: dict[str, Any] = {}
    for name in options.only:
        print(f"\n== {name}", flush=True)
        found = judge(supervise(name, [__file__, "--case", name, *passed], options.timeout))
        if any("over" in row for row in found.get("ways", {}).values()):
            show(name, found)
            found["targets"] = print_targets(targets(found), simulated=options.simulated)
        else:
            print(f"  {found.get('skipped') or found.get('crashed')}")
        results[name] = found
    line = {"simulated": options.simulated, "quick": options.quick, "cases": results}
    print(json.dumps(rounded(line)))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, metavar="CASE")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="these, and what they are over")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--budget", type=float, help="seconds after which no way is begun (400; quick: 90)"
    )
    parser.add_argument("--no-peers", action="store_true", help="without torch's own graphs")
    parser.add_argument("--simulated", action="store_true", help="tiny models, simulated device")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one case (600)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)  # in a case's process
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
