"""Compile seconds of a deep model against a shallow one: equal layers are compiled once.

A toy decoder cut at attention, with Inductor. Every measurement is a process of its own with fresh
caches, deep and shallow in turn. Tracing grows with the layers and is reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _measure import report

SHALLOW, DEEP = 4, 24
TARGET = 1.1
HIDDEN = 64


def measure(layers: int) -> dict[str, Any]:
    """Trace, then compile all there is; what the first compilation of a process costs is spent."""
    import torch
    import toy_decoder

    import piecewise_core as pw
    from piecewise_core.frontend.precompile import trace_all

    def unrelated(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x @ x.T).sum()

    rows = pw.Dim("rows", min=1, max=256)
    names = ("x", "position", "mask")
    config = pw.Config(dynamic={name: {0: rows} for name in names}, splitting_ops=toy_decoder.OPS)
    with torch.inference_mode():
        pw.compile(unrelated, pw.Config(dynamic={"x": {0: rows}}))(torch.randn(3, HIDDEN))
        model = toy_decoder.Decoder(layers, HIDDEN).eval().requires_grad_(False)
        compiled: Any = pw.compile(model, config)
        example = toy_decoder.inputs(3, HIDDEN, "cpu", torch.float32)
        begun = time.perf_counter()
        session = compiled._pw_session
        session.start(*example)
        for _ in trace_all(session.forms[0]):
            pass
        traced = time.perf_counter() - begun
        compiling = compiled.warmup(progress=False).seconds
        off = (compiled(*example) - model(*example)).abs().max()
    stats = compiled.stats()
    return {
        "trace": traced,
        "compile": compiling,
        "pieces": stats.pieces,
        "unique": stats.unique_pieces,
        "compilations": stats.compilations,
        "off": float(off),
    }


def in_fresh_process(layers: int, probes: str) -> dict[str, Any]:
    """``probes``: where the one-time probes of the compiler are kept for all processes."""
    with tempfile.TemporaryDirectory(prefix="piecewise-bench-") as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--layers", str(layers)],
            capture_output=True,
            check=False,
            env={
                **os.environ,
                "PIECEWISE_CACHE_DIR": probes,
                "PIECEWISE_CACHE_MODE": "off",
                "TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "inductor")),
            },
            text=True,
        )
    if done.returncode != 0:
        sys.exit(f"layers: a process with {layers} layers failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(rounds: int) -> None:
    """Run the rounds and print."""
    found: dict[int, list[dict[str, Any]]] = {SHALLOW: [], DEEP: []}
    with tempfile.TemporaryDirectory(prefix="piecewise-bench-") as probes:
        in_fresh_process(1, probes)
        for i in range(rounds):
            # Whoever is second finds the files of the compiler in memory: take turns at that too.
            for layers in (SHALLOW, DEEP) if i % 2 else (DEEP, SHALLOW):
                found[layers].append(in_fresh_process(layers, probes))

    def middle(layers: int, what: str) -> float:
        return statistics.median(one[what] for one in found[layers])

    pairs = zip(found[DEEP], found[SHALLOW], strict=True)
    ratio = statistics.median(d["compile"] / s["compile"] for d, s in pairs)
    rows = [
        (f"compile_{SHALLOW}_layers", middle(SHALLOW, "compile"), "s", None),
        (f"compile_{DEEP}_layers", middle(DEEP, "compile"), "s", None),
        ("compile_ratio", ratio, "", TARGET),
        (f"trace_{SHALLOW}_layers", middle(SHALLOW, "trace"), "s", None),
        (f"trace_{DEEP}_layers", middle(DEEP, "trace"), "s", None),
        (f"compilations_{SHALLOW}_layers", middle(SHALLOW, "compilations"), "", None),
        (f"compilations_{DEEP}_layers", middle(DEEP, "compilations"), "", None),
        ("largest_difference_to_eager", max(o["off"] for v in found.values() for o in v), "", 1e-4),
    ]
    report(f"{DEEP} layers against {SHALLOW}, {rounds} rounds", rows, {"rounds": found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round instead of five")
    parser.add_argument("--layers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.layers:
        print(json.dumps(measure(options.layers)))
    else:
        compare(1 if options.quick else 5)


if __name__ == "__main__":
    main()
