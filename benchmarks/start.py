"""Seconds to a model's first output: from cold, from the compile store, and from a bundle.

Every start is a process of its own. A round is a cold start on fresh caches, then one from the
store that it filled, then one from the bundle that it saved. Imports, the weights and the device's
own start are excluded and stated apart. To the imports belongs what torch and other packages import
late: a first round, not counted, tells what that is. It also has Python keep their bytecode, as
installed packages have it. What a bundle's process starts is counted by Python's audit hook and the
system's count of children, and what is traced by Dynamo, not by piecewise's own counters.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from _measure import Row, report
from rich.console import Console

STARTS = ("cold", "store", "bundle")
TARGET = 0.15
TOLERANCE = {"cpu": 1e-4, "cuda": 0.1}
"""Largest difference to eager: float32 on a CPU, bfloat16 elsewhere."""

PROCESSES = {
    "subprocess.Popen",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
}


def measure(
    start: str, case: str, device: str, folder: Path, late: tuple[str, ...]
) -> dict[str, Any]:
    """One start in this process. ``folder``: where the bundle lies. ``late``: modules to import."""
    started: list[list[str]] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in PROCESSES:
            command = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else args[:1]
            started.append([str(word) for word in command] or [event])

    sys.addaudithook(watch)
    begun = time.perf_counter()
    import torch
    import torch._dynamo
    import torch._inductor.compile_fx
    import torch._inductor.select_algorithm
    import torch.export
    from _start_cases import CASES

    import piecewise_core as pw
    import piecewise_core.api

    for name in late:
        importlib.import_module(name)
    imports = time.perf_counter() - begun
    begun = time.perf_counter()
    ready = CASES[case].load(device)
    wait = getattr(getattr(torch, device, None), "synchronize", lambda: None)
    wait()
    loading = time.perf_counter() - begun
    file = folder / "model.pwb"
    started.clear()
    known = set(sys.modules)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    with torch.inference_mode():
        begun = time.perf_counter()
        fast: Any = (
            pw.load(file, ready.model)
            if start == "bundle"
            else pw.compile(ready.model, ready.config)
        )
        output = ready.output(fast(**ready.inputs))
        wait()
        seconds = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        off = float((output - ready.output(ready.model(**ready.inputs))).abs().max())
        stats = fast.stats()
        if start == "cold":
            fast.save(file)
    return {
        "seconds": seconds,
        "imports": imports,
        "loading": loading,
        "frames": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "traced": stats.graphs,
        "compilations": stats.compilations,
        "hits": stats.cache_hits,
        "processes": len(started),
        "compilers": sum(not _only_asks(command) for command in started),
        "child_seconds": after.ru_utime - children.ru_utime,
        "off": off,
        "late": [name for name in sys.modules if name not in known and _of_others(name)],
    }


def _of_others(name: str) -> bool:
    """Whether a module is of an installed package, or Python's, and not of this project."""
    file = getattr(sys.modules[name], "__file__", None) or ""
    folders = {sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")}
    return not name.startswith("piecewise_") and file.startswith(tuple(folders))


def _only_asks(command: list[str]) -> bool:
    """Whether a process only tells something: torch and Triton ask for versions and libraries."""
    return Path(command[0]).name in ("ldconfig", "file") or "--version" in command


def one(
    start: str, options: argparse.Namespace, folder: Path, bytecode: str, late: list[str]
) -> dict[str, Any]:
    """Measure in a fresh process with caches in ``folder``."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PIECEWISE_", "TORCH"))},
        "PIECEWISE_CACHE_DIR": str(folder / "piecewise"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / f"inductor-{start}"),
        "TRITON_CACHE_DIR": str(folder / f"triton-{start}"),
        "PYTHONPYCACHEPREFIX": bytecode,
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, __file__, "--measure", start, "--folder", str(folder)]
    command += ["--case", options.case, "--device", options.device, "--late", *late]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the {start} start failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every kind of start, in turn."""
    found: dict[str, list[dict[str, Any]]] = {start: [] for start in STARTS}
    late: dict[str, list[str]] = {start: [] for start in STARTS}
    with (
        Console(stderr=True).status("starting") as status,
        tempfile.TemporaryDirectory(prefix="piecewise-bytecode-") as bytecode,
    ):
        for number in range(options.rounds + 1):
            with tempfile.TemporaryDirectory(prefix="piecewise-start-") as folder:
                for start in STARTS:
                    status.update(f"round {number} of {options.rounds}: {start}")
                    made = one(start, options, Path(folder), bytecode, late[start])
                    if number:
                        found[start].append(made)
                    else:
                        late[start] = made["late"]
    return found


def rows(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> list[Row]:
    """What is reported, with the targets."""
    from _start_cases import CASES

    def ratio(start: str, to: str = "cold") -> float:
        pairs = zip(found[start], found[to], strict=True)
        return statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)

    def median(start: str, name: str) -> float:
        return statistics.median(entry[name] for entry in found[start])

    def worst(start: str, name: str) -> float:
        return float(max(entry[name] for entry in found[start]))

    on_cpu = options.device == "cpu"
    aim = {"bundle": CASES[options.case].bundle_seconds}
    return [
        ("store_ratio", ratio("store"), "of cold", TARGET if on_cpu else None),
        ("bundle_ratio", ratio("bundle"), "of cold", TARGET if on_cpu else None),
        ("bundle_over_store", ratio("bundle", "store"), "of store", None),
        ("bundle_dynamo_frames", worst("bundle", "frames"), "", 0.0),
        ("bundle_compilations", worst("bundle", "compilations"), "", 0.0),
        ("bundle_processes", worst("bundle", "processes"), "", 0.0 if on_cpu else None),
        ("bundle_compiler_processes", worst("bundle", "compilers"), "", 0.0),
        ("bundle_child_seconds", worst("bundle", "child_seconds"), "s", 0.0 if on_cpu else None),
        ("store_compilations", worst("store", "compilations"), "", 0.0),
        ("store_traced", worst("store", "traced"), "graphs", None),
        *((f"{start}_seconds", median(start, "seconds"), "s", aim.get(start)) for start in STARTS),
        *((f"{start}_imports", median(start, "imports"), "s", None) for start in STARTS),
        ("loading", median("bundle", "loading"), "s", None),
        ("max_abs_diff", max(worst(s, "off") for s in STARTS), "", TOLERANCE[options.device]),
    ]


def main() -> None:
    """Measure, print a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", default="minilm", help="minilm (default) or decoder")
    parser.add_argument("--device", choices=tuple(TOLERANCE), default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians of")
    parser.add_argument("--measure", choices=STARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--late", nargs="*", default=(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        late = tuple(options.late)
        found = measure(options.measure, options.case, options.device, options.folder, late)
        print(json.dumps(found))
        return
    from _start_cases import CASES

    if options.case not in CASES:
        parser.error(f"--case {options.case}: there are {', '.join(CASES)}")
    measured = rounds(options)
    title = f"Starts of {CASES[options.case].title}, on {options.device}"
    report(title, rows(measured, options), {"rounds": measured})


if __name__ == "__main__":
    main()
