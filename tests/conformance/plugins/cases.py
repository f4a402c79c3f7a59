"""Run in the plugins' environment: one function a case, its findings as JSON on the last line."""

import json
import os
import sys
import tempfile

import torch

import piecewise_core as pw
from piecewise_core.errors import PiecewiseError
from piecewise_core.plugins import discover, select

SPLIT = "torch.nn.functional.layer_norm"


def config(largest=8, **settings):
    return pw.Config(
        dynamic={"x": {0: pw.Dim("rows", min=1, max=largest)}}, splitting_ops=(SPLIT,), **settings
    )


def layers(x):
    x = torch.nn.functional.layer_norm(torch.relu(x) + 1, (4,))
    return x * 2


def served(fast, model, sizes):
    """For how many of ``sizes`` the compiled model gives what the model gives."""
    return sum(torch.equal(fast(x), model(x)) for x in (torch.randn(n, 4) for n in sizes))


def fails(fn):
    try:
        fn()
    except PiecewiseError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def entries():
    return {"found": {str(e): e.module for e in discover() if e.project != "piecewise-cpu"}}


def handles(name="handles"):
    sizes = tuple(range(1, 61))
    fast = pw.compile(layers, config(60, capture_sizes=sizes), platform=name)
    report = fast.warmup(torch.ones(4, 4))
    return {
        "captured": sorted(size for (size,) in report.captured),
        "dropped": sorted(report.dropped),
        "right": served(fast, layers, sizes),
        "captures": fast.stats().captures,
        "distribution": str(select(name).considered[0].origin),
    }


def handles_silent():
    return handles("handles-silent")


def registers():
    select("registers")  # the operator comes with the platform
    fast = None

    def model(x):
        x = torch.nn.functional.layer_norm(torch.relu(x) + 1, (4,))
        return torch.ops.registers.center(x) * 2

    settings = config(8, capture_sizes=(8,), padding="capture_sizes")
    fast = pw.compile(model, settings, platform="registers")
    fast.warmup(torch.ones(4, 4))
    right = served(fast, model, (8, 3, 5, 3, 1))
    stats = fast.stats()
    return {"right": right, "replayed": stats.calls["replayed"], "padded": stats.padded_rows}


def bare_graphs():
    def noisy(x):
        return torch.nn.functional.layer_norm(x + torch.rand_like(x), (4,)) * 2

    fast = pw.compile(layers, config(8, capture_sizes=(4, 8)), platform="bare-graphs")
    fast.warmup(torch.ones(4, 4))
    random = pw.compile(noisy, config(8, capture_sizes=(8,)), platform="bare-graphs")
    x = torch.ones(8, 4)
    first, second = random(x).clone(), random(x).clone()
    right = served(fast, layers, range(1, 9))
    stats = fast.stats()
    found = {
        "right": right,
        "replayed": stats.calls["replayed"],
        "captures": stats.captures,
        "bytes": [stats.pool_bytes, stats.driver_bytes],
        "fresh_numbers": not torch.equal(first, second),
        "dump": fails(lambda: fast.dump_graphs(tempfile.gettempdir())),
    }
    fast.release()
    return {**found, "right_without": served(fast, layers, range(1, 9))}


def own_compiler():
    fast = pw.compile(layers, config(8, compile_ranges_endpoints=(4,)), platform="own-compiler")
    right = served(fast, layers, range(1, 9))
    again = pw.compile(layers, config(8, compile_ranges_endpoints=(4,)), platform="own-compiler")
    settings = config(8, graph_mode="piecewise", capture_sizes=(8,))
    captured = pw.compile(layers, settings, platform="own-compiler")
    setup = fast._pw_session.setup
    compiler = setup.platform.of.compiler
    return {
        "right": right,
        "compiler": setup.compiler.name,
        "compilations": fast.stats().compilations,
        "compiled": len(compiler.compiled),
        "right_again": served(again, layers, range(1, 9)),
        "loaded": again.stats().cache_hits,
        "compiled_again": again.stats().compilations,
        "graphs": fails(lambda: captured(torch.ones(2, 4))),
    }


def rivals():
    chosen = select("rival@piecewise-rival-two")
    return {
        "by_device": fails(lambda: pw.compile(layers, config())(torch.ones(2, 4))),
        "by_shared_name": fails(lambda: select("rival")),
        "by_own_name": select("rival-one").platform.maker,
        "by_distribution": chosen.platform.maker,
    }


def doubling():
    fast = pw.compile(layers, config(compiler="doubling"), platform="cpu")
    plain = pw.compile(layers, config(compiler="eager"), platform="cpu")
    return {
        "right": served(fast, layers, (2, 8)),
        "plain": served(plain, layers, (2, 8)),
        "seen": fast._pw_session.setup.compiler.of.seen,
    }


def own_backend():
    fast = pw.compile(layers, config(compile_sizes=(3,)), platform="own-backend")
    right = served(fast, layers, (2, 3, 8))
    diary = fast._pw_session.regions[0].backends[0].diary
    return {"right": right, "diary": [list(row) for row in diary]}


CASES = (
    (entries, ""),
    (handles, "handles"),
    (handles_silent, "handles"),
    (registers, "registers"),
    (bare_graphs, "bare-graphs"),
    (own_compiler, "own-compiler"),
    (rivals, "rival-one rival-two"),
    (doubling, ""),
    (own_backend, "own-backend"),
)


def main():
    found = {}
    with torch.inference_mode():
        for case, boards in CASES:
            os.environ["BOARDS"] = boards
            found[case.__name__] = case()
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
