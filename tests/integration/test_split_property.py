"""Random programs, split and run in pieces, do just what they do as written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from random_programs import Random, arguments, module_of, programs, run

import piecewise_core as pw
from piecewise_core.errors import SizeBranch

LONG = settings().max_examples > 1000


def check(program: Random, compiler: str = "eager") -> None:
    """Raise AssertionError unless the split program equals the program as written."""
    config = pw.Config(
        dynamic={
            name: {i: program.dims[d] for i, d in enumerate(shape) if isinstance(d, str)}
            for name, shape in program.inputs.items()
        },
        splitting_ops=program.splitting,
        compiler=compiler,
    )
    with module_of(program) as kind, torch.inference_mode():
        plain, twin = kind().eval(), kind().eval()
        split = pw.compile(twin, config, "cpu")
        for seed, sizes in enumerate([*program.assignments, *program.assignments[:2]]):
            want = run(plain, arguments(program, sizes, seed), plain)
            got = run(twin, arguments(program, sizes, seed), split)
            for what, a, b in zip(("result", "writes", "sharing"), want, got, strict=True):
                assert a == b, f"{what} at {sizes}:\n{a}\n{b}"


def looked(examples: int) -> settings:
    """As many programs; in the long run as many as it asks for."""
    return settings(
        max_examples=max(examples, settings().max_examples * LONG),
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
    )


def equals(program: Random) -> None:
    try:
        check(program)
    except SizeBranch as error:
        event("refused: size branch")
        assume("compile_ranges_endpoints" not in str(error))
        raise


@pytest.mark.long
@given(programs())
@looked(40)
def test_a_split_program_equals_the_program_as_written(program: Random) -> None:
    equals(program)


@pytest.mark.slow
@given(programs())
@looked(400)
def test_many_split_programs_equal_the_programs_as_written(program: Random) -> None:
    equals(program)
