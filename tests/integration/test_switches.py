"""A switch of torch's that is turned between calls of one model is noticed (FAULTS 47, 54)."""

from __future__ import annotations

import os

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import Sealed
from piecewise_core.graph.questions import ADDRESSES, FACTS, MODES, RANDOM_STATE, THREADS, WATCHED
from piecewise_core.runtime import switches as module
from piecewise_core.runtime.switches import switches
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", min=1, max=16)}}
backends = torch.backends


def recorded(fn):
    config = pw.Config(dynamic=ROWS, capture_sizes=(4,), capture_max=False)
    return pw.record(fn, config, platform=SimulatedPlatform())


def compiled(fn, **changes):
    config = pw.Config(**{"dynamic": ROWS, "compiler": "eager", **changes})
    return pw.compile(fn, config, platform="cpu")


def captured(fn):
    config = pw.Config(dynamic=ROWS, compiler="eager", capture_sizes=(4,), capture_max=False)
    return pw.compile(fn, config, platform=SimulatedPlatform())


DOORS = {"recorded": recorded, "compiled": compiled, "captured": captured}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def attribute(owner, name):
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def environment():
    return os.environ.get("PIECEWISE_TEST_SWITCH", "")


def set_environment(value):
    os.environ["PIECEWISE_TEST_SWITCH"] = value


def inside_autocast(x):
    with torch.autocast("cpu"):
        return torch.mm(x, x.t())


fill = attribute(torch.utils.deterministic, "fill_uninitialized_memory")
enabled = attribute(backends.mkldnn, "enabled")
cudnn = attribute(backends.cudnn, "enabled")
benchmark = attribute(backends.cudnn, "benchmark")
einsum = attribute(backends.opt_einsum, "enabled")
autocast = torch.get_autocast_dtype, torch.set_autocast_dtype

SWITCHES = {
    "default dtype": (
        lambda x: x + torch.ones(4).to(x.dtype) / (3 if torch.ones(1).dtype is x.dtype else 2),
        (torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    ),
    "deterministic": (
        lambda x: x * 2 if torch.are_deterministic_algorithms_enabled() else x + 1,
        (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
    ),
    "fill": (
        lambda x: x * 2 if torch.utils.deterministic.fill_uninitialized_memory else x + 1,
        (*fill, False),
    ),
    "mkldnn": (lambda x: x * 2 if torch.backends.mkldnn.enabled else x + 1, (*enabled, False)),
    "cudnn": (lambda x: x * 2 if torch.backends.cudnn.enabled else x + 1, (*cudnn, False)),
    "benchmark": (lambda x: x * 2 if torch.backends.cudnn.benchmark else x, (*benchmark, True)),
    "autocast's dtype": (
        lambda x: x * 2 if torch.get_autocast_dtype("cpu") is torch.bfloat16 else x + 1,
        (lambda: autocast[0]("cpu"), lambda value: autocast[1]("cpu", value), torch.float16),
    ),
    "autocast inside": (
        inside_autocast,
        (lambda: autocast[0]("cpu"), lambda value: autocast[1]("cpu", value), torch.float16),
    ),
    "autocast's cache": (
        lambda x: x * 2 if torch.is_autocast_cache_enabled() else x + 1,
        (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, False),
    ),
    "environment": (
        lambda x: x * 2 if os.getenv("PIECEWISE_TEST_SWITCH") == "1" else x + 1,
        (environment, set_environment, "1"),
    ),
    "fast path": (
        lambda x: x * 2 if torch.backends.mha.get_fastpath_enabled() else x + 1,
        (backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled, False),
    ),
}
RECORDED_ONLY = {
    "attention": (
        lambda x: x * 2 if torch.backends.cuda.flash_sdp_enabled() else x + 1,
        (backends.cuda.flash_sdp_enabled, backends.cuda.enable_flash_sdp, False),
    ),
    "threads": (
        lambda x: x * torch.get_num_threads(),
        (torch.get_num_threads, torch.set_num_threads, 3),
    ),
    "einsum": (
        lambda x: x * 2 if torch.backends.opt_einsum.enabled else x,
        (*einsum, not backends.opt_einsum.enabled),
    ),
    "precision of products": (
        lambda x: x * 2 if torch.get_float32_matmul_precision() == "highest" else x + 1,
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high"),
    ),
}
"""Dynamo refuses these questions, or its own facts hold them."""


def check_turned(fast, fn, read, write, other):
    x, first = torch.randn(4, 4), read()
    wanted = []
    try:
        for value in (first, other, first):
            write(value)
            for _ in range(2):
                wanted.append(fn(x))
                torch.testing.assert_close(fast(x), wanted[-1], rtol=0, atol=0)
    finally:
        write(first)
    assert fast.stats().retraces == 2
    return wanted


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_that_the_model_asks_for_is_asked_at_every_call(name, door):
    fn, turned = SWITCHES[name]
    wanted = check_turned(DOORS[door](fn), fn, *turned)
    assert not torch.equal(wanted[0], wanted[2])


@pytest.mark.parametrize("name", RECORDED_ONLY)
def test_a_recorded_function_asks_anew_too(name):
    fn, turned = RECORDED_ONLY[name]
    wanted = check_turned(recorded(fn), fn, *turned)
    assert not torch.equal(wanted[0], wanted[2])


@pytest.mark.parametrize("door", DOORS)
def test_a_switch_that_operators_obey_is_noticed_though_no_code_names_it(door):
    turned = backends.cuda.math_sdp_enabled, backends.cuda.enable_math_sdp, False
    check_turned(DOORS[door](lambda x: x + 1), lambda x: x + 1, *turned)


def test_what_was_compiled_under_another_switch_is_compiled_anew():
    fast = compiled(lambda x: x.sin() + 1)
    x = torch.randn(4, 4)
    fast(x)
    before = fast.stats().compilations
    torch.use_deterministic_algorithms(True)
    try:
        fast(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert fast.stats().compilations == before + 1


@pytest.mark.parametrize("door", DOORS)
def test_after_seal_a_turned_switch_is_refused_by_name(door):
    fast, x = DOORS[door](lambda x: x + 1), torch.randn(4, 4)
    fast(x)
    fast.seal()
    backends.cuda.enable_math_sdp(False)
    try:
        with pytest.raises(Sealed, match="math_sdp_enabled"):
            fast(x)
    finally:
        backends.cuda.enable_math_sdp(True)


MIXED = """
import torch, piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform
def model(x):
    return x * 2 if torch.backends.fp32_precision == "none" else x + 1
settings = {"dynamic": {"x": {0: pw.Dim("rows", max=16)}}, "compiler": "eager"}
graphs = {**settings, "capture_sizes": (4,), "capture_max": False}
x = torch.ones(4, 4)
with torch.inference_mode():
    served = [
        pw.compile(model, pw.Config(**settings), platform="cpu"),
        pw.record(model, pw.Config(**graphs), platform=SimulatedPlatform()),
    ]
    for value in ("none", "tf32", "none"):
        torch.backends.fp32_precision = value
        for fast in (*served, *served):
            assert torch.equal(fast(x), model(x)), value
    assert [fast.stats().retraces for fast in served] == [2, 2]
"""


def test_precisions_set_through_both_of_torchs_interfaces_raise_nothing_here(fresh_processes):
    # In a process of its own: torch does not forget that both were used.
    done = fresh_processes.run(MIXED, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * 2 if torch.initial_seed() == 54321 else x + 1,
        lambda x: x * torch.get_rng_state()[:4].float(),
        lambda x: x * 2 if torch.default_generator.initial_seed() == 54321 else x + 1,
    ],
)
def test_a_recorded_function_that_asks_for_random_state_runs_as_written(fn):
    fast, x = recorded(fn), torch.randn(4, 4)
    with torch.random.fork_rng():
        for seed in (1, 1, 54321, 54321, 1):
            torch.manual_seed(seed)
            torch.testing.assert_close(fast(x), fn(x), rtol=0, atol=0)
    assert "random generator" in str(fast.explain())


def test_every_word_that_leads_to_a_switch_is_looked_for():
    facts = frozenset().union(*FACTS.values())
    assert set(module._BY_WORD) | ADDRESSES | MODES | RANDOM_STATE | THREADS | facts == WATCHED


@pytest.mark.parametrize("device_type", ["cpu", "cuda", "other"])
def test_every_switch_answers_alike_twice(device_type):
    for switch in switches(device_type, WATCHED):
        assert switch.ask() == switch.ask()
        assert "torch's" in switch.change() or switch.name == "environment"
