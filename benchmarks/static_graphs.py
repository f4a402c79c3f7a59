"""Static graphs on one GPU: what a captured forward costs, against its floor and its peers.

    python benchmarks/static_graphs.py [--quick] [--only CASE ...] [--hidden 64 2048]
    python benchmarks/static_graphs.py --simulated --quick    # no GPU: does the script itself work

Each case runs in a process of its own, so that one which crashes costs no other its figures; a case
that crashes with torch.compile in its process is run again without. Within a case all contenders
take turns in one process. Tables come as they are made; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from _processes import supervise, tell

__all__ = ["main"]

BATCHES = (1, 8, 32, 64)


def cases(hidden: list[int], *, quick: bool, simulated: bool) -> dict[str, Callable[[Any], Any]]:
    """Every case by name; ``run(place)`` gives its figures."""

    # Imported by the process of a case only, and here by name: torch takes seconds to import.
    def lazily(module: str, function: str, *args: Any) -> Callable[[Any], Any]:
        return lambda place: partial(getattr(__import__(module), function), place)(*args)

    batches = (1, 2) if simulated else (1, 32) if quick else BATCHES
    toys, wide = ([8], [8]) if simulated else (hidden, [64, 1024])
    lanes = [64] if simulated else [512, 1024]
    return {
        **{f"toy-{size}": lazily("_toy_case", "toy", size) for size in toys},
        "capture": lazily("_capture_case", "capture"),
        **{f"executables-{n}": lazily("_executables_case", "executables", n) for n in wide},
        **{f"streams-{n}": lazily("_streams_case", "streams", n) for n in lanes},
        "endurance": lazily("_memory_cases", "endurance"),
        "staging": lazily("_memory_cases", "staging"),
        **{f"llama-{n}": lazily("_llama_case", "llama", n) for n in batches},
        "dit": lazily("_sizes_cases", "dit"),
        "encoder": lazily("_sizes_cases", "encoder"),
    }


def run_case(name: str, options: argparse.Namespace) -> None:
    """In a process of its own: run one case and tell its figures."""
    from _place import Place

    place = Place(options.simulated, options.quick, not options.no_peers)
    begun = time.perf_counter()
    every = cases(options.hidden, quick=False, simulated=options.simulated)
    found = every[name](place)
    found |= {"case_seconds": time.perf_counter() - begun, "where": place.describe()}
    tell(found)


def supervised(name: str, options: argparse.Namespace, *, peers: bool) -> dict[str, Any]:
    """Run a case in its process; its figures, or what became of it."""
    command = [__file__, "--case", name, "--hidden", *map(str, options.hidden)]
    command += [f"--{flag}" for flag in ("quick", "simulated") if getattr(options, flag)]
    command += [] if peers else ["--no-peers"]
    return supervise(name, command, options.timeout)


def chosen(usual: list[str], every: list[str], only: list[str] | None) -> list[str]:
    """The cases to run: ``only`` names groups of the usual ones ("llama"), or any ("llama-8")."""
    if not only:
        return usual
    group = {name: name.rpartition("-")[0] for name in every}
    unknown = [o for o in only if o not in every and o not in group.values()]
    if unknown:
        raise SystemExit(f"no such case: {', '.join(unknown)}; there are {', '.join(every)}")
    return [n for n in every if n in only or (n in usual and group[n] in only)]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="CASE", help="cases or groups; see --list")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and batch sizes")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 2048], metavar="N")
    parser.add_argument("--no-peers", action="store_true", help="leave torch.compile out")
    parser.add_argument("--simulated", action="store_true", help="tiny models, simulated device")
    parser.add_argument("--timeout", type=float, default=420, help="seconds for one case")
    parser.add_argument("--case", help=argparse.SUPPRESS)  # in the process of a case
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the cases one after the other and print the JSON line."""
    options = _options(arguments)
    if options.case:
        run_case(options.case, options)
        return
    usual = list(cases(options.hidden, quick=options.quick, simulated=options.simulated))
    every = list(cases(options.hidden, quick=False, simulated=options.simulated))
    if options.list:
        print(*every, sep="\n")
        return
    names = chosen(usual, every, options.only)
    if not options.simulated and not _has_cuda():
        print(json.dumps({"skipped": "no CUDA device"}))
        return
    results: dict[str, Any] = {}
    for name in names:
        print(f"\n== {name}", flush=True)
        results[name] = supervised(name, options, peers=not options.no_peers)
        lost = "targets" not in results[name] and "skipped" not in results[name]
        if lost and not options.no_peers and not options.simulated:
            print(f"\n== {name}, again without torch.compile", flush=True)
            again = supervised(name, options, peers=False)
            results[name] = {**again, "with_peers": results[name]}
    targets = [t for result in results.values() for t in result.get("targets", ())]
    missed = [t["name"] for t in targets if t["verdict"] == "missed"]
    if not options.simulated:
        met = sum(t["verdict"] == "met" for t in targets)
        print(f"\n{met} of {len(targets)} targets met; missed: {', '.join(missed) or 'none'}")
    print(json.dumps({"simulated": options.simulated, "quick": options.quick, "cases": results}))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
