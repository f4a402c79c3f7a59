"""Calls of sizes that are ready, while another size compiles: their latency over that of quiet.

    python benchmarks/latency.py [--device cuda] [--modes background lazy] [--workers N]

A mode is a process of its own with fresh caches. It compiles one range of sizes and calls a size of
it over and over: in quiet, while Inductor compiles the other range (asked for by a call of its own
in "background", by another thread in "lazy"), in quiet again. Beside it, what any work costs such
calls on this machine: while a program burns one core, and while a Python thread of the process
counts. The last line is one JSON object; target: 99 of 100 calls within 1.2 of quiet's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import Row, report

MODES = ("background", "lazy")
READY, OTHER, SPLIT = 8, 100, 64
TARGET = 1.2


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """All phases of one mode: p50 and p99 of a call in microseconds, and how long it compiled."""
    import torch

    import piecewise_core as pw

    mode, device, seconds = asked.mode, asked.device, asked.seconds

    class Model(torch.nn.Module):
        """As many distinct pieces as layers: no two are equally wide."""

        def __init__(self) -> None:
            super().__init__()
            widths = [128, *(256 + 32 * i for i in range(asked.layers)), 128]
            pairs = itertools.pairwise(widths)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.softmax(torch.nn.functional.silu(layer(x)), -1)
            return x

    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    model = Model().eval().to(device)
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", min=2, max=256)}},
        splitting_ops=() if asked.whole else ("aten::softmax",),
        compile_ranges_endpoints=(SPLIT,),
        compile_mode=mode,
        compile_workers="auto" if asked.workers is None else asked.workers,
    )
    fast: Any = pw.compile(model, config)
    ready, other = (torch.randn(n, 128, device=device) for n in (READY, OTHER))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def compiled(x: torch.Tensor) -> bool:
        """Whether a call runs code that was compiled before."""
        before = fast.stats()
        fast(x)
        now, name = fast.stats(), "compiled_range"
        return bool(
            now.calls[name] > before.calls[name] and now.compilations == before.compilations
        )

    def calls(going: Callable[[], bool]) -> list[float]:
        found = []
        while going():
            begun = time.perf_counter()
            fast(ready)
            wait()
            found.append(time.perf_counter() - begun)
        return found

    def for_a_while() -> list[float]:
        until = time.perf_counter() + seconds
        return calls(lambda: time.perf_counter() < until)

    def while_compiling() -> list[float]:
        if mode == "background":
            fast(other)
            settled = fast.status
            return calls(lambda: not settled().ready)
        thread = threading.Thread(target=torch.no_grad()(fast), args=(other,))
        thread.start()
        found = calls(thread.is_alive)
        thread.join()
        return found

    while not compiled(ready):
        time.sleep(0.05)
    for_a_while()
    found = {"quiet": for_a_while()}
    begun = time.perf_counter()
    found["compiling"] = while_compiling()
    took = time.perf_counter() - begun
    if not compiled(other):
        sys.exit(f"latency: {OTHER} rows are not compiled after {took:.1f} s in mode {mode}")
    found["quiet"] += for_a_while()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as burning:
        found["one core burning"] = for_a_while()
        burning.kill()
    stop = threading.Event()

    def count() -> None:
        n = 0
        while not stop.is_set():
            n += 1

    counting = threading.Thread(target=count)
    counting.start()
    found["a thread counting"] = for_a_while()
    stop.set()
    counting.join()
    for x in (ready, other):
        torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)
    return {"compiled_s": took, "us": {name: _cuts(times) for name, times in found.items()}}


def _cuts(times: list[float]) -> dict[str, float]:
    cut = statistics.quantiles(times, n=100)
    named = {"p50": cut[49], "p99": cut[98], "worst": max(times)}
    return {**{name: round(value * 1e6, 1) for name, value in named.items()}, "calls": len(times)}


def in_fresh_process(mode: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="piecewise-bench-") as folder:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--mode", mode],
            capture_output=True,
            check=False,
            env={
                **os.environ,
                "PIECEWISE_CACHE_DIR": str(Path(folder, "store")),
                "TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "inductor")),
            },
            text=True,
        )
    if done.returncode != 0:
        sys.exit(f"latency: the process of {mode} failed:\n{done.stdout}{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE")
    parser.add_argument("--layers", type=int, default=12, help="distinct pieces to compile (12)")
    parser.add_argument("--whole", action="store_true", help="one piece of all layers")
    parser.add_argument("--seconds", type=float, default=5, help="of each quiet phase (5)")
    parser.add_argument("--workers", type=int, help="Config.compile_workers (auto)")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)  # in its process
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(measure(arguments)))
        return
    found = {mode: in_fresh_process(mode) for mode in arguments.modes}
    rows: list[Row] = []
    for mode, one in found.items():
        quiet = one["us"]["quiet"]
        rows.append((f"{mode}_compiles_for", one["compiled_s"], "s", None))
        rows.append((f"{mode}_quiet_p99", quiet["p99"], "us", None))
        for phase, us in one["us"].items():
            if phase == "quiet":
                continue
            name = f"{mode}_{phase.replace(' ', '_')}"
            aim = TARGET if phase == "compiling" else None
            rows.append((f"{name}_p50_over_quiet", us["p50"] / quiet["p50"], "", None))
            rows.append((f"{name}_p99_over_quiet", us["p99"] / quiet["p99"], "", aim))
    report(f"calls of ready sizes beside a compilation, {arguments.device}", rows, found)


if __name__ == "__main__":
    main()
