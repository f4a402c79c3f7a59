"""Config.on_event: what is told, when, and that nobody who listens can harm a call."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", min=1, max=64)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def double(x):
    return x * 2


def compiled(on_event, fn=double, platform=None, **config):
    settings = {"dynamic": {"x": {0: ROWS}}, "compiler": "eager", **config}
    return pw.compile(fn, pw.Config(on_event=on_event, **settings), platform or SimulatedPlatform())


def test_a_first_call_and_a_warm_up_tell_what_they_made():
    events: list[pw.Event] = []
    fast = compiled(events.append, capture_sizes=(8,))
    fast(torch.ones(8, 2))
    assert [event.kind for event in events] == ["traced", "compiled", "captured"]
    assert events[0].seconds > 0
    assert events[1].what == "region 0 piece 0"
    assert events[2].sizes == "(8,)"
    fast.warmup()
    assert [event.kind for event in events[3:]] == ["captured"]
    assert [event.at for event in events] == sorted(event.at for event in events)
    before = len(events)
    for _ in range(3):
        fast(torch.ones(8, 2))
    assert len(events) == before


def test_retraces_misses_and_sizes_without_graphs_are_told_with_reasons():
    events: list[pw.Event] = []
    fast = compiled(events.append, capture_sizes=(8, 16), platform=SimulatedPlatform(max_graphs=1))
    fast.warmup(torch.ones(8, 2))
    dropped = [event for event in events if event.kind == "dropped"]
    assert dropped
    assert all("room for" in event.reason for event in dropped)
    fast.retrace()
    assert (events[-1].kind, events[-1].reason) == ("retraced", "retrace() was called")
    other = compiled(events.append, compile_ranges_endpoints=(8,))
    other(torch.ones(4, 2))
    other.seal("warn")
    other(torch.ones(40, 2))
    assert any(event.kind == "missed" and "after seal()" in event.reason for event in events)


def test_a_wrong_target_is_told():
    events: list[pw.Event] = []
    fast = compiled(
        events.append,
        platform=SimulatedPlatform(drop_op="aten.mul.Tensor"),
        capture_sizes=(8,),
        check="verify",
        verify_rate=1.0,
    )
    for _ in range(3):
        fast(torch.ones(8, 2))
    wrong = [event for event in events if event.kind == "wrong"]
    assert len(wrong) == fast.stats().wrong == 1
    assert wrong[0].reason


def test_no_lock_is_held_while_events_are_told():
    free: list[bool] = []

    def listen(event):
        def take():
            free.append(fast._pw_session.lock.acquire(timeout=5))
            fast._pw_session.lock.release()

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()

    fast = compiled(listen, capture_sizes=(8,))
    fast(torch.ones(8, 2))
    fast.warmup()
    fast.retrace()
    assert len(free) >= 4
    assert all(free)


def test_a_listener_that_raises_is_logged_once_and_harms_no_call(caplog):
    def listen(event):
        raise ValueError("no ear")

    with caplog.at_level(logging.ERROR):
        fast = compiled(listen, capture_sizes=(8,))
        torch.testing.assert_close(fast(torch.ones(8, 2)), torch.full((8, 2), 2.0))
        fast.warmup()
    assert len([r for r in caplog.records if "on_event raised" in r.getMessage()]) == 1


def test_a_listener_may_call_the_model():
    told: list[str] = []

    def listen(event):
        told.append(event.kind)
        if len(told) == 1:
            fast(torch.ones(3, 2))

    fast = compiled(listen)
    fast(torch.ones(8, 2))
    assert told[0] == "traced"
    assert fast.stats().calls["compiled_range"] == 2


def test_a_recorded_function_tells_too():
    events: list[pw.Event] = []
    config = pw.Config(dynamic={"x": {0: ROWS}}, capture_sizes=(8,), on_event=events.append)
    fast = pw.record(double, config, SimulatedPlatform())
    fast(torch.ones(8, 2))
    assert [event.kind for event in events] == ["captured"]
    fast.retrace()
    fast(torch.ones(8, 2))
    assert [event.kind for event in events] == ["captured", "retraced", "captured"]


def test_what_cannot_be_called_is_refused_and_a_listener_is_in_no_file():
    with pytest.raises(pw.errors.ConfigError, match=r"Config\.on_event: 3 cannot be called"):
        pw.Config(on_event=3)
    config = pw.Config(dynamic={"x": {0: ROWS}}, on_event=print)
    assert "on_event" not in config.to_dict()
    assert pw.Config.from_json(config.to_json()) == config.replace(on_event=None)


def test_log_records_have_the_fields_of_events(caplog):
    events: list[pw.Event] = []
    with caplog.at_level(logging.DEBUG, "piecewise_core.events"):
        compiled(events.append, capture_sizes=(8,))(torch.ones(8, 2))
    records = [r for r in caplog.records if r.name == "piecewise_core.events"]
    assert len(records) == len(events) == 3
    for record, event in zip(records, events, strict=True):
        assert {n: getattr(record, f"piecewise_{n}") for n in vars(event)} == vars(event)
        assert event.model == "double"
    assert events[2].seconds > 0


@pytest.mark.parametrize("make", ["compile", "record"])
@pytest.mark.parametrize("on", [True, False])
def test_profiles_name_pieces_and_replays_where_that_is_asked_for(make, on):
    config = pw.Config(
        dynamic={"x": {0: ROWS}},
        compiler="eager",
        capture_sizes=(8,),
        capture_max=False,
        profiler_names=on,
    )
    fast = getattr(pw, make)(double, config, SimulatedPlatform())
    for rows in (8, 8, 5, 5):
        fast(torch.ones(rows, 2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for rows in (8, 5):
            torch.testing.assert_close(fast(torch.ones(rows, 2)), torch.full((rows, 2), 2.0))
    names = {e.key for e in seen.key_averages() if e.key.startswith("piecewise")}
    wanted = {"piecewise replay (8,)"}
    if make == "compile":
        wanted |= {"piecewise region 0 piece 0 [1, 64]"}
    assert names == (wanted if on else set())


def test_at_the_door_of_torch_compile_events_are_told_behind_calls():
    events: list[pw.Event] = []
    options = {
        "platform": SimulatedPlatform(),
        "compiler": "eager",
        "on_event": events.append,
        "capture": "first",
    }
    torch._dynamo.reset()
    fast = torch.compile(double, backend="piecewise", options=options, dynamic=False)
    for _ in range(3):
        torch.testing.assert_close(fast(torch.ones(8, 2)), torch.full((8, 2), 2.0))
    kinds = [event.kind for event in events]
    assert kinds[:2] == ["traced", "compiled"]
    assert "test_events.py" in events[0].model
    assert "captured" in kinds
    before = len(events)
    fast(torch.ones(8, 2))
    assert len(events) == before
    torch._dynamo.reset()
