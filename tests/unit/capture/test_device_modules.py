"""Drivers over modules of other devices: what their graphs take, and what they lack."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from piecewise_core.capture.accelerator_driver import AcceleratorGraphDriver
from piecewise_core.capture.torch_driver import TorchGraphDriver
from piecewise_core.errors import TorchUnsupported
from piecewise_core.plugins.contract import differences
from piecewise_core.protocols import GraphDriver, GraphExtras


class Diary:
    """What was done, in order."""

    def __init__(self):
        self.notes = []
        self.capturing = None
        self.now = self.side = SimpleNamespace(device=torch.device("cpu"))
        self.handles = itertools.count(1)


def graphs_like(diary, kind):
    """A graph class with the signatures that the named device's module has."""

    class Graph:
        def _begin(self, *what):
            diary.notes.append(("begin", *what))
            diary.capturing = self

        def capture_end(self):
            diary.notes.append(("end",))
            diary.capturing = None

        def replay(self):
            diary.notes.append(("replay",))

        def reset(self):
            diary.notes.append(("reset",))

    class Cuda(Graph):
        def capture_begin(self, pool=None, capture_error_mode="global"):
            self._begin(pool, capture_error_mode)

        def register_generator_state(self, generator):
            diary.notes.append(("generator",))

    class Xpu(Graph):
        def capture_begin(self, pool=None):
            self._begin(pool)

    class Accelerator(Graph):
        """torch.accelerator.Graph: pool and mode are its own."""

        graph_pool, capture_error_mode = None, "default"

        def capture_begin(self):
            self._begin(self.graph_pool, self.capture_error_mode)

    return {"cuda": Cuda, "xpu": Xpu, "accelerator": Accelerator}[kind]


def module_like(diary):
    """The functions of a device's module that a driver needs, and none besides."""

    def stream(stream):
        raise AssertionError("not needed here")

    return SimpleNamespace(
        __name__="torch_board",
        graph_pool_handle=lambda: (0, next(diary.handles)),
        is_current_stream_capturing=lambda: diary.capturing is not None,
        current_stream=lambda: diary.now,
        stream=stream,
    )


def driver_like(kind, **options):
    diary = Diary()
    driver = TorchGraphDriver(
        module_like(diary), device_type="cpu", graph_class=graphs_like(diary, kind), **options
    )
    return driver, diary


def captured(driver, diary):
    graph, pool = driver.new_graph(), driver.new_pool()
    driver.capture_begin(graph, pool, diary.side)
    assert driver.is_capturing()
    driver.capture_end(graph)
    assert not driver.is_capturing()
    driver.replayer(graph)()
    return graph, pool


@pytest.mark.parametrize(
    ("kind", "begun"), [("cuda", ("begin", (0, 1), "thread_local")), ("xpu", ("begin", (0, 1)))]
)
def test_graphs_are_begun_with_what_their_class_takes(kind, begun):
    driver, diary = driver_like(kind)
    graph, pool = captured(driver, diary)
    assert diary.notes[-3:] == [begun, ("end",), ("replay",)]
    assert (driver.pool_bytes(pool), driver.driver_bytes(pool), driver.live_bytes(pool)) == (
        0,
        0,
        0,
    )
    assert differences(driver, GraphDriver, GraphExtras) == []
    driver.reset(graph)


@pytest.mark.parametrize(
    ("kind", "generators", "notes"),
    [
        ("cuda", "register", [("generator",)]),
        ("cuda", "automatic", []),
        ("xpu", "automatic", []),
        ("cuda", "none", None),
        ("xpu", "register", None),
        ("xpu", "none", None),
    ],
)
def test_generators_are_registered_advance_by_themselves_or_are_not_served(kind, generators, notes):
    driver, diary = driver_like(kind, generators=generators)
    assert hasattr(driver, "register_generator") == (notes is not None)
    if notes is not None:
        driver.register_generator(driver.new_graph(), torch.default_generator)
        assert diary.notes == notes


def test_another_word_for_generators_is_refused_with_the_right_ones():
    with pytest.raises(ValueError, match="'manual': give 'register', 'automatic' or 'none'"):
        driver_like("cuda", generators="manual")


def test_what_torch_has_in_private_for_its_own_devices_others_give():
    told = []
    driver, diary = driver_like(
        "cuda",
        weak_tensor=lambda t: told.append("weak") or t.view(-1),
        leave_pool=lambda index, handle: told.append(("leave", index, handle)),
        free_workspaces=lambda: told.append("free"),
    )
    with driver.capture_context():
        captured(driver, diary)
    assert told == ["free", "free"]
    x = torch.ones(2, 2)
    driver._in_pool = lambda address: True
    assert driver.weak_ref(x).shape == (4,)
    driver._class.capture_begin = lambda self, pool, capture_error_mode: 1 / 0
    graph, pool = driver.new_graph(), driver.new_pool()
    pool.anchor = object()
    with pytest.raises(ZeroDivisionError):
        driver.capture_begin(graph, pool, diary.side)
    assert told[-1] == ("leave", 0, (0, 2))


# torch.accelerator ----------------------------------------------------------------


def accelerator_like(diary, **others):
    def set_stream(stream):
        diary.now = stream

    return SimpleNamespace(
        current_accelerator=lambda: torch.device("cpu"),
        current_stream=lambda: diary.now,
        set_stream=set_stream,
        **others,
    )


def over_accelerator(**options):
    diary = Diary()
    driver = AcceleratorGraphDriver(
        accelerator=accelerator_like(diary),
        graph_class=graphs_like(diary, "accelerator"),
        new_handle=lambda: (0, next(diary.handles)),
        **options,
    )
    return driver, diary


def test_an_accelerator_s_graphs_get_pool_and_mode_before_they_begin():
    driver, diary = over_accelerator()
    graph, _ = captured(driver, diary)
    assert diary.notes[-3:] == [("begin", (0, 1), "thread_local"), ("end",), ("replay",)]
    assert not hasattr(driver, "register_generator")
    assert hasattr(over_accelerator(generators="automatic")[0], "register_generator")
    driver.reset(graph)


def test_a_capture_that_is_given_up_is_left_on_its_own_stream():
    driver, diary = over_accelerator()
    graph, pool = driver.new_graph(), driver.new_pool()
    driver.capture_begin(graph, pool, diary.side)
    other = diary.now = SimpleNamespace(device=torch.device("cpu"))
    driver.abort_capture(graph)
    assert diary.now is other
    assert not driver.is_capturing()
    diary.now = diary.side
    captured(driver, diary)


def test_what_an_accelerator_lacks_is_said_when_the_driver_is_made():
    diary = Diary()
    with pytest.raises(TorchUnsupported, match=r"has no torch\.accelerator\.Graph"):
        AcceleratorGraphDriver(accelerator=accelerator_like(diary))
    with pytest.raises(TorchUnsupported, match="give new_handle="):
        AcceleratorGraphDriver(
            accelerator=accelerator_like(diary), graph_class=graphs_like(diary, "accelerator")
        )
    nothing = SimpleNamespace(current_accelerator=lambda: None)
    with pytest.raises(TorchUnsupported, match="no accelerator here"):
        AcceleratorGraphDriver(accelerator=nothing)
