"""Signs of life go through one connection, however often a rank works."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from piecewise_core.ranks import busy

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


class World:
    def rank(self):
        return 1


@pytest.fixture
def process(monkeypatch):
    """A process of a world; ``process.world`` may be begun anew."""

    class Process:
        world, made = World(), []

    def connect():
        Process.made.append(dist.HashStore())
        return Process.made[-1]

    monkeypatch.setattr(busy, "default_group", lambda: Process.world)
    monkeypatch.setattr(busy, "default_store", connect)
    return Process


def beats(signs, store_of):
    """How often a sign was given in one more time of work."""
    with signs.working():
        while store_of() is None:
            time.sleep(0.001)
        before = busy.beats(store_of(), 1)
        while busy.beats(store_of(), 1) == before:
            time.sleep(0.001)


def test_work_after_work_makes_no_other_connection(process):
    signs = busy.Busy(0.001)
    for _ in range(3):
        beats(signs, lambda: process.made[-1] if process.made else None)
    assert len(process.made) == 1


def test_a_world_that_is_begun_anew_is_another_connection(process):
    signs = busy.Busy(0.001)
    for count in (1, 2):
        process.world = World()
        beats(signs, lambda n=count: process.made[-1] if len(process.made) == n else None)
    assert len(process.made) == 2


def test_a_store_that_does_not_answer_holds_no_work_up(process, monkeypatch):
    stopped = threading.Event()
    monkeypatch.setattr(busy, "default_store", stopped.wait)
    with busy.Busy(0.001).working():
        assert not stopped.is_set()
    stopped.set()


def test_a_process_without_others_connects_to_nobody(process):
    process.world = None
    with busy.Busy(0.001).working():
        assert process.made == []
