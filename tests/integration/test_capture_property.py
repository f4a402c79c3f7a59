"""Random programs, captured and replayed, do just what they do as written.

The programs are those of the split property: views, in-place writes, mutating operators, several
outputs, sizes in every position. Each is run twice at every captured size, on fresh inputs.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from random_programs import Random, arguments, module_of, programs, run

import piecewise_core as pw
from piecewise_core.errors import SizeBranch
from piecewise_core.testing import SimulatedPlatform

LONG = settings().max_examples > 1000
FRONTS = {
    "piecewise": lambda fn, **c: pw.compile(
        fn, pw.Config(compiler="eager", **c), SimulatedPlatform()
    ),
    "full": lambda fn, **c: pw.compile(
        fn, pw.Config(compiler="eager", graph_mode="full", **c), SimulatedPlatform()
    ),
    "strong": lambda fn, **c: pw.compile(
        fn, pw.Config(compiler="eager", **c), SimulatedPlatform(weak_refs=False)
    ),
    "cpu": lambda fn, **c: pw.compile(fn, pw.Config(compiler="eager", **c), "cpu"),
    "recorded": lambda fn, **c: pw.record(fn, pw.Config(**c), SimulatedPlatform()),
    "recorded on a cpu": lambda fn, **c: pw.record(fn, pw.Config(**c), "cpu"),
}


@pytest.mark.parametrize("front", FRONTS)
@given(program=programs())
@settings(
    max_examples=settings().max_examples if LONG else 8,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ],
)
def test_a_captured_program_equals_the_program_as_written(front: str, program: Random) -> None:
    try:
        check(program, front)
    except SizeBranch as error:
        assume("compile_ranges_endpoints" not in str(error))
        raise


def check(program: Random, front: str) -> None:
    """Raise AssertionError where results or writes differ, at any size, at any call."""
    dynamic = {
        name: {i: program.dims[d] for i, d in enumerate(shape) if isinstance(d, str)}
        for name, shape in program.inputs.items()
    }
    names = list(dict.fromkeys(d.name for dims in dynamic.values() for d in dims.values()))
    sizes = [tuple(each[name] for name in names) for each in program.assignments]
    config = {
        "dynamic": dynamic,
        "splitting_ops": program.splitting,
        "capture_sizes": sorted({s if len(names) > 1 else s[0] for s in sizes}),
        "capture_max": False,
    }
    with module_of(program) as kind, torch.inference_mode():
        plain, twin = kind().eval(), kind().eval()
        fast = FRONTS[front](twin, **config)
        for seed, each in enumerate([*program.assignments, *program.assignments]):
            result, writes, _ = run(plain, arguments(program, each, seed), plain)
            got, written, _ = run(twin, arguments(program, each, seed), fast)
            assert got == result, f"result at {each}:\n{result}\n{got}"
            assert written == writes, f"writes at {each}:\n{writes}\n{written}"
