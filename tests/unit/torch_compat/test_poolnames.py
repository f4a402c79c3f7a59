"""Names of graph pools keep their numbers, whatever references to them torch loses."""

from __future__ import annotations

import ctypes
import sys

import pytest

from piecewise_core.capture.torch_memory import PoolMemory
from piecewise_core.torch_compat.poolnames import PoolQuestion


def losing(count):
    """What gives up ``count`` references to each number that it was never given."""

    def ask(name):
        for number in name:
            for _ in range(count):
                ctypes.pythonapi.Py_DecRef(ctypes.py_object(number))
        return [name]

    return ask


def numbers():
    """Two that nobody else has."""
    return int("7" * 20), int("8" * 20)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_numbers_have_the_references_that_they_had(count):
    ask = PoolQuestion(losing(count))
    name = numbers()
    spare = [*name] * 200  # a wrong count shows, and crashes nothing
    before = [sys.getrefcount(name[0]), sys.getrefcount(name[1])]
    for _ in range(50):
        assert ask(name) == [name]
    assert [sys.getrefcount(name[0]), sys.getrefcount(name[1])] == before
    assert len(spare) == 400


def test_a_device_that_knows_no_such_pool_is_asked_as_it_is():
    known = numbers()

    def ask(name):
        if name != known:
            raise RuntimeError("no such pool")
        return "found"

    assert PoolQuestion(ask)(known) == "found"


def test_memory_of_a_pool_is_read_without_losing_its_name():
    name = numbers()

    class Module:
        def memory_snapshot(self, mempool_id=None, include_traces=True):
            losing(1)(mempool_id)
            return [{"segment_pool_id": mempool_id, "total_size": 5, "allocated_size": 2}]

    memory, spare = PoolMemory(Module()), [*name] * 200
    before = [sys.getrefcount(name[0]), sys.getrefcount(name[1])]
    for _ in range(20):
        assert (memory.nbytes(name), memory.live_bytes(name)) == (5, 2)
    assert [sys.getrefcount(name[0]), sys.getrefcount(name[1])] == before
    assert len(spare) == 400
