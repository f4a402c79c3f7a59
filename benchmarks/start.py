"""Seconds to the first output of MiniLM: from cold, from the compile store, and from a bundle.

Every start is a process of its own. A round is a cold start on fresh caches, then one from the
store that it filled, then one from the bundle that it saved. Imports and loading the weights are
excluded and stated apart. What a bundle's process starts is counted by Python's audit hook and the
system's count of children, and what is traced by Dynamo, not by piecewise's own counters.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _measure import report
from rich.console import Console

STARTS = ("cold", "store", "bundle")
TARGET = 0.15
EXAMPLES = Path(__file__).parents[1] / "examples"

PROCESSES = {
    "subprocess.Popen",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
}


def measure(start: str, folder: Path) -> dict[str, Any]:
    """One start in this process. ``folder``: where the bundle lies."""
    begun_processes: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in PROCESSES:
            begun_processes.append(str(args[0]) if args else event)

    sys.addaudithook(watch)
    begun = time.perf_counter()
    import torch
    import torch._dynamo
    import torch._inductor.compile_fx
    import torch._inductor.select_algorithm
    import torch.export

    import piecewise_core as pw
    import piecewise_core.api

    sys.path.insert(0, str(EXAMPLES))
    import minilm_contenders
    import minilm_worker

    imports = time.perf_counter() - begun
    begun = time.perf_counter()
    model, _ = minilm_contenders.load()
    contender = minilm_contenders.Piecewise(model, "inductor")
    inputs = minilm_worker._inputs(3, 17)
    loading = time.perf_counter() - begun
    file = folder / "model.pwb"
    begun_processes.clear()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    with torch.inference_mode():
        begun = time.perf_counter()
        fast: Any = pw.load(file, model) if start == "bundle" else contender.compile()
        output = fast(**inputs).last_hidden_state
        seconds = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        off = float((output - model(**inputs).last_hidden_state).abs().max())
        stats = fast.stats()
        if start == "cold":
            fast.save(file)
    frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {
        "seconds": seconds,
        "imports": imports,
        "loading": loading,
        "frames": frames,
        "traced": stats.graphs,
        "compilations": stats.compilations,
        "hits": stats.cache_hits,
        "processes": len(begun_processes),
        "child_seconds": after.ru_utime - children.ru_utime,
        "off": off,
    }


def one(start: str, folder: Path) -> dict[str, Any]:
    """Measure in a fresh process with caches in ``folder``."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PIECEWISE_", "TORCH"))},
        "PIECEWISE_CACHE_DIR": str(folder / "piecewise"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / f"inductor-{start}"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--measure", start, "--folder", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the {start} start failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(count: int) -> dict[str, list[dict[str, Any]]]:
    """Every kind of start, in turn, ``count`` times."""
    found: dict[str, list[dict[str, Any]]] = {start: [] for start in STARTS}
    with Console(stderr=True).status("starting") as status:
        for number in range(count):
            with tempfile.TemporaryDirectory(prefix="piecewise-start-") as folder:
                for start in STARTS:
                    status.update(f"round {number + 1} of {count}: {start}")
                    found[start].append(one(start, Path(folder)))
    return found


def main() -> None:
    """Measure, print a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians of")
    parser.add_argument("--measure", choices=STARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return
    found = rounds(options.rounds)

    def ratio(start: str) -> float:
        pairs = zip(found[start], found["cold"], strict=True)
        return statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)

    def median(start: str, name: str) -> float:
        return statistics.median(entry[name] for entry in found[start])

    def worst(start: str, name: str) -> float:
        return max(entry[name] for entry in found[start])

    rows = [
        ("store_ratio", ratio("store"), "of cold", TARGET),
        ("bundle_ratio", ratio("bundle"), "of cold", TARGET),
        ("bundle_dynamo_frames", worst("bundle", "frames"), "", 0.0),
        ("bundle_compilations", worst("bundle", "compilations"), "", 0.0),
        ("bundle_compiler_processes", worst("bundle", "processes"), "", 0.0),
        ("bundle_child_seconds", worst("bundle", "child_seconds"), "s", 0.0),
        ("store_compilations", worst("store", "compilations"), "", 0.0),
        ("store_traced", worst("store", "traced"), "graphs", None),
        *((f"{start}_seconds", median(start, "seconds"), "s", None) for start in STARTS),
        *((f"{start}_imports", median(start, "imports"), "s", None) for start in STARTS),
        ("loading_weights", median("bundle", "loading"), "s", None),
        ("max_abs_diff", max(worst(start, "off") for start in STARTS), "", 1e-4),
    ]
    report("Starts of MiniLM, 2 dims, cut at attention", rows, {"rounds": found})


if __name__ == "__main__":
    main()
