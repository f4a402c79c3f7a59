"""What status(), wait_ready() and histogram() tell is what happened, in every way of serving."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", min=1, max=64)
SIZES = (5, 5, 8, 9, 33, 64, 1)


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.GELU()).eval()


def compiled(fn=None, platform="cpu", **config):
    settings = {"dynamic": {"input": {0: ROWS}}, "compiler": "eager", **config}
    return pw.compile(fn or model(), pw.Config(**settings), platform)


def states(status) -> dict[str, str]:
    return {f"{target.kind} {target.sizes}": target.state for target in status.targets}


@pytest.mark.parametrize("padding", ["none", "capture_sizes"])
@pytest.mark.parametrize("captured", [(), (8, 16)])
@pytest.mark.parametrize("warm", [False, True])
def test_status_and_histogram_add_up_to_the_counters(padding, captured, warm):
    config = {"capture_sizes": captured, "padding": padding, "compile_ranges_endpoints": (8, 32)}
    fast = compiled(platform=SimulatedPlatform(), **config)
    if warm:
        fast.warmup(torch.randn(3, 8))
    for rows in SIZES:
        fast(torch.randn(rows, 8))
    stats, status, found = fast.stats(), fast.status(), fast.histogram()
    assert found.dims == ("rows",)
    assert found.calls == {(1,): 1, (5,): 2, (8,): 1, (9,): 1, (33,): 1, (64,): 1}
    assert sum(target.hits for target in status.targets) == found.total == len(SIZES)
    assert sum(target.real_rows for target in status.targets) == sum(SIZES)
    assert sum(target.padded_rows for target in status.targets) == stats.padded_rows
    for kind, calls in stats.calls.items():
        assert sum(t.hits for t in status.targets if t.kind == kind) == calls
    assert (found.graph_bytes is None) is (not captured)


def test_a_model_is_ready_when_warmed_up_and_not_before():
    fast = compiled(platform=SimulatedPlatform(), capture_sizes=(8,), compile_sizes=(8,))
    assert (fast.status().ready, fast.status().targets) == (False, ())
    assert not fast.wait_ready(0)
    fast(torch.randn(8, 8))
    assert states(fast.status())["compiled_range rows [1, 64]"] == "pending"
    assert not fast.wait_ready(0.05)
    fast.warmup()
    assert fast.wait_ready(0)
    assert set(states(fast.status()).values()) == {"ready"}
    assert fast.status().of("ready") == fast.status().targets


def test_another_thread_waits_for_the_warm_up():
    fast = compiled(compile_ranges_endpoints=(8, 32))
    thread = threading.Timer(0.1, lambda: torch.inference_mode()(fast.warmup)(torch.randn(2, 8)))
    thread.start()
    assert fast.wait_ready(60)
    thread.join()


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan")])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(timeout):
    with pytest.raises(pw.errors.ConfigError, match="wait_ready"):
        compiled().wait_ready(timeout)


def test_released_sizes_are_pending_and_ready_again_once_restored():
    fast = compiled(platform=SimulatedPlatform(), capture_sizes=(8,), capture_max=False)
    fast.warmup(torch.randn(8, 8))
    fast.release()
    assert states(fast.status())["replayed rows 8"] == "pending"
    fast(torch.randn(8, 8))
    fast.restore()
    fast(torch.randn(8, 8))
    assert states(fast.status())["replayed rows 8"] == "ready"
    assert fast.histogram().total == 2 == sum(t.hits for t in fast.status().targets)


def test_a_size_that_cannot_be_captured_has_failed_and_says_why():
    platform = SimulatedPlatform(max_graphs=1)
    fast = compiled(platform=platform, capture_sizes=(8, 16, 32))
    fast.warmup(torch.randn(8, 8))
    failed = fast.status().of("failed")
    assert failed
    assert all("served without graphs" in target.reason for target in failed)
    assert fast.status().ready


def test_sizes_of_another_region_are_untraced_until_they_are():
    def branches(input):
        return input * 2 if input.shape[0] >= 10 else input + 1

    fast = compiled(branches)
    fast(torch.randn(12, 8))
    assert states(fast.status())["untraced other sizes in bounds"] == "pending"
    fast(torch.randn(2, 8))
    assert "untraced other sizes in bounds" not in states(fast.status())


def test_forms_are_told_apart_and_all_their_calls_count():
    def either(input, mask=None):
        return input * 2 if mask is None else input * mask

    fast = compiled(either)
    for _ in range(3):
        fast(torch.randn(4, 8))
    fast(torch.randn(4, 8), torch.ones(8))
    status = fast.status()
    assert status.forms == 2
    assert {form: sum(t.hits for t in status.targets if t.form == form) for form in (0, 1)} == {
        0: 3,
        1: 1,
    }
    assert "form 1, " in str(status)
    assert fast.histogram().calls == {(4,): 4}


def test_calls_out_of_bounds_are_in_the_histogram():
    fast = compiled(out_of_range="eager")
    for rows in (4, 100, 100):
        fast(torch.randn(rows, 8))
    assert fast.histogram().calls == {(4,): 1, (100,): 2}
    assert fast.status().targets[-1].kind == "eager"
    assert fast.status().targets[-1].hits == 2
    general = compiled(out_of_range="general")
    for rows in (4, 100):
        general(torch.randn(rows, 8))
    assert general.histogram().calls == {(4,): 1, (100,): 1}


def test_a_compilation_that_fails_is_told_and_the_model_is_not_ready(monkeypatch):
    fast = compiled(compile_ranges_endpoints=(8,))
    fast(torch.randn(60, 8))

    def broken(*args, **kwargs):
        raise pw.errors.CompileFailed("the compiler has no wish to")

    monkeypatch.setattr(type(fast._pw_session.setup.compiler), "compile", broken)
    with pytest.raises(pw.errors.CompileFailed):
        fast(torch.randn(4, 8))
    assert not fast.status().ready
    (failed,) = fast.status().of("failed")
    assert (failed.sizes, failed.waits) == ("rows [1, 8]", True)
    assert "no wish" in failed.reason


def test_two_dims_and_no_dims():
    two = compiled(lambda x: x + 1, dynamic={"x": {0: pw.Dim("b", max=8), 1: pw.Dim("l", max=64)}})
    two(torch.ones(2, 7))
    two(torch.ones(8, 64))
    assert two.histogram().dims == ("b", "l")
    assert two.histogram().calls == {(2, 7): 1, (8, 64): 1}
    assert two.histogram().rows == 14 + 512
    none = compiled(lambda x: x + 1, dynamic={})
    none(torch.ones(3))
    none(torch.ones(3))
    assert none.histogram().calls == {(): 2}
    assert none.status().ready
    assert none.status().targets[0].hits == 2


def test_a_retraced_model_keeps_its_histogram():
    fast = compiled()
    fast(torch.randn(4, 8))
    fast.retrace()
    assert not fast.status().ready
    fast(torch.randn(4, 8))
    assert fast.histogram().calls == {(4,): 2}
    assert fast.stats().calls["compiled_range"] == 2


def test_a_recorded_function_tells_the_same():
    fast = pw.record(
        model(),
        pw.Config(dynamic={"input": {0: ROWS}}, capture_sizes=(8, 16), padding="capture_sizes"),
        SimulatedPlatform(),
    )
    assert not fast.status().ready
    assert not fast.wait_ready(0)
    for rows in SIZES:
        fast(torch.randn(rows, 8))
    fast.warmup()
    assert fast.wait_ready(0)
    status, stats = fast.status(), fast.stats()
    assert sum(target.hits for target in status.targets) == len(SIZES) == fast.histogram().total
    assert sum(target.padded_rows for target in status.targets) == stats.padded_rows
    assert json.loads(status.to_json())["ready"] is True
    fast.release()
    assert states(fast.status())["replayed rows 8"] == "pending"


def test_verified_calls_count_once_and_a_wrong_target_is_as_written():
    platform = SimulatedPlatform(drop_op="aten::gelu")
    fast = compiled(
        platform=platform, capture_sizes=(8,), check="verify", verify_rate=1.0, capture_max=False
    )
    for _ in range(3):
        fast(torch.randn(8, 8))
    stats = fast.stats()
    assert fast.histogram().calls == {(8,): 3}
    assert sum(target.hits for target in fast.status().targets) == sum(stats.calls.values()) == 3
    if stats.wrong:
        assert any(target.state == "as_written" for target in fast.status().targets)


def test_status_does_not_wait_for_a_call_that_holds_the_lock():
    fast = compiled()
    fast(torch.randn(4, 8))
    with fast._pw_session.lock:
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(fast.status()))
        thread.start()
        thread.join(20)
    assert found


@pytest.mark.inductor
def test_in_the_background_waiting_has_everything_compiled():
    fast = compiled(compiler="inductor", compile_mode="background", compile_ranges_endpoints=(8,))
    fast(torch.randn(4, 8))  # as written
    assert fast.wait_ready(300), fast.status()
    assert states(fast.status()) == {
        "compiled_range rows [1, 8]": "ready",
        "compiled_range rows [9, 64]": "ready",
        "general rows [1, 64]": "as_written",
    }
    before = fast.stats().calls["compiled_range"]
    fast(torch.randn(60, 8))
    assert fast.stats().calls["compiled_range"] == before + 1


@pytest.mark.parametrize("make", [pw.compile, pw.record])
def test_calls_of_other_sizes_than_the_captured_ones_give_advice_and_one_event(make):
    events: list[pw.Event] = []
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", min=1, max=256)}},
        compiler="eager",
        capture_sizes=(8, 64),
        capture_max=False,
        padding="capture_sizes",
        on_event=events.append,
    )
    fast = make(lambda x: torch.relu(x), config, SimulatedPlatform())
    calls = {8: 600, 60: 500}
    for rows, times in (*calls.items(), (8, 1)):
        for _ in range(times):
            fast(torch.ones(rows, 1))
    assert fast.status().advice == ()
    for rows in [10] * 1001 + [64] * 10:
        fast(torch.ones(rows, 1))
    (advice,) = fast.status().advice
    assert "padding added" in advice
    assert advice in str(fast.status())
    for rows in [100] * 1001:
        fast(torch.ones(rows, 1))
    (advice,) = fast.status().advice
    assert "larger than every captured size" in advice
    assert [e.kind for e in events].count("drifted") == 1
    for _ in range(1001):
        fast(torch.ones(8, 1))
    assert fast.status().advice == ()
