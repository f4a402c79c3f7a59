"""The CPU's captures: what is noted, what is refused, what is left behind."""

from __future__ import annotations

import pytest
import torch

from piecewise_cpu.driver import CpuGraphDriver


@pytest.fixture
def driver() -> CpuGraphDriver:
    return CpuGraphDriver()


@pytest.fixture
def capture(driver):
    def capture(fn):
        graph = driver.new_graph()
        driver.capture_begin(graph, driver.new_pool(), None)
        with torch.inference_mode():
            result = fn()
        driver.capture_end(graph)
        return graph, result

    return capture


def test_operators_are_repeated_into_the_same_memory(driver, capture):
    x = torch.randn(3)
    graph, (y, z) = capture(lambda: (x.sin() + 1, x.view(3, 1)))
    x.normal_()
    driver.replay(graph)
    torch.testing.assert_close(y, x.sin() + 1)
    assert z.data_ptr() == x.data_ptr()
    assert len(graph.steps) == 2


def test_writes_are_repeated(driver, capture):
    x = torch.zeros(3)
    graph, _ = capture(lambda: x.add_(1))
    replay = driver.replayer(graph)
    replay()
    replay()
    assert x.tolist() == [3, 3, 3]


def test_some_outputs_may_be_views_and_others_new(driver, capture):
    x = torch.randn(4)
    graph, (values, places) = capture(lambda: x.sort())
    x.normal_()
    driver.replay(graph)
    assert torch.equal(values, x.sort().values)
    assert torch.equal(places, x.sort().indices)


@pytest.mark.parametrize("fn", [lambda x: x.sum().item(), torch.nonzero, lambda x: x[x > 0]])
def test_what_values_decide_is_refused_and_the_capture_can_be_left(driver, fn):
    graph = driver.new_graph()
    driver.capture_begin(graph, driver.new_pool(), None)
    try:
        with pytest.raises(RuntimeError, match="depends on values") as info:
            fn(torch.ones(3))
    finally:
        driver.abort_capture(graph)
    assert "splitting_ops" in driver.explain(info.value)
    assert driver.explain(KeyError()) is None
    assert not driver.is_capturing()
    assert torch.ones(3).sum().item() == 3
    with pytest.raises(RuntimeError, match="not captured"):
        driver.replay(graph)


def test_one_capture_at_a_time(driver):
    first, second, pool = driver.new_graph(), driver.new_graph(), driver.new_pool()
    driver.capture_begin(first, pool, None)
    assert driver.is_capturing()
    with pytest.raises(RuntimeError, match="running already"):
        driver.capture_begin(second, pool, None)
    with pytest.raises(RuntimeError, match="not being captured"):
        driver.capture_end(second)
    driver.capture_end(first)
    assert not driver.is_capturing()


def test_a_graph_that_was_reset_does_nothing_silently(driver, capture):
    graph, _ = capture(lambda: torch.ones(2) + 1)
    driver.reset(graph)
    driver.reset(graph)
    with pytest.raises(RuntimeError, match="reset"):
        driver.replay(graph)
