"""A launch goes to its own device, whichever is current."""

from __future__ import annotations

import contextlib

from piecewise_cuda.launching import on_device


def test_another_current_device_is_left_for_the_launch_and_comes_back():
    current, seen = [0], []

    @contextlib.contextmanager
    def switch(index):
        before, current[0] = current[0], index
        yield
        current[0] = before

    launch = on_device(
        lambda *given: seen.append((current[0], given)), 1, lambda: current[0], switch
    )
    launch("a", 2)
    current[0] = 1
    launch("b")
    assert seen == [(1, ("a", 2)), (1, ("b",))]
    current[0] = 0
    launch()
    assert current == [0]
