"""SIGTERM in each phase: who handles it by raising leaves a model that serves, and free locks."""

from __future__ import annotations

import textwrap

import pytest

PROGRAM = """
    import os, signal, sys, threading
    import torch
    import piecewise_core as pw
    from piecewise_core.protocols import CompiledGraph
    from piecewise_core.testing import SimulatedPlatform

    torch.set_grad_enabled(False)
    FRONT, PHASE, STORE = sys.argv[1:]
    LEFT = [PHASE]

    def arrive(here):
        if LEFT == [here]:
            LEFT.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # Python calls handlers between two of its instructions
                pass

    def handle(*_):
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, handle)

    @torch.library.custom_op("signals::op", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        arrive("replay" if WARM else "capture" if PLATFORM.graphs.is_capturing() else "call")
        return x * 2

    @op.register_fake
    def _(x):
        arrive("trace")
        return torch.empty_like(x)

    CODE = {}

    class Compiler:
        name = "signals"
        def compile(self, graph, example_inputs, *, key, config):
            arrive("compile")
            CODE[key.encode()] = graph.forward
            return CompiledGraph(graph.forward, lambda: key.encode())
        def load(self, handle):
            arrive("load")
            return CompiledGraph(CODE[handle], lambda: handle)
        def hash_factors(self):
            return {}

    WARM = False
    PLATFORM = SimulatedPlatform()
    PLATFORM.compiler = Compiler()
    settings = {"dynamic": {"x": {0: pw.Dim("rows", 1, 8)}}, "capture_sizes": (4,)}
    if PHASE in ("replay", "call"):
        settings["splitting_ops"] = ("signals::op",)

    def fn(x):
        return torch.ops.signals.op(x.sin()) + 1

    def made():
        if FRONT == "record":
            return pw.record(fn, pw.Config(**settings), platform=PLATFORM)
        return pw.compile(fn, pw.Config(cache_dir=STORE, **settings), platform=PLATFORM)

    if PHASE == "load":
        made().warmup(torch.ones(4), progress=False)
    fast, x = made(), torch.arange(4.0)
    if PHASE == "replay":
        fast.warmup(x, progress=False)
        WARM = True
    try:
        for _ in range(3):
            fast(x)
        print("no signal")
    except SystemExit as stopped:
        print("stopped", stopped.code)
    right = []
    def serve():
        with torch.inference_mode():
            right.extend(torch.equal(fast(x), x.sin() * 2 + 1) for _ in range(3))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    thread.join(60)
    print("thread", right)
    right.clear()
    serve()
    fast.warmup(progress=False)
    print("main", right, fast.status().ready, fast.stats().calls["replayed"] > 0)
"""

PHASES = [
    *(("compile", phase) for phase in ("trace", "compile", "load", "capture", "call", "replay")),
    *(("record", phase) for phase in ("capture", "call", "replay")),
]


@pytest.mark.parametrize(("front", "phase"), PHASES, ids="-".join)
def test_a_signal_that_raises_leaves_a_model_that_serves(
    front, phase, fresh_processes, monkeypatch, tmp_path
):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    done = fresh_processes.run(textwrap.dedent(PROGRAM), front, phase, str(tmp_path), timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "stopped 3",
        "thread [True, True, True]",
        "main [True, True, True] True True",
    ]
