"""Containers whose own methods load what they are asked for are watched without being asked."""

from __future__ import annotations

from collections import OrderedDict, deque

import pytest
import torch

import piecewise_core as pw
from piecewise_core.runtime import watch
from piecewise_core.testing import SimulatedPlatform

ASKED: list[str] = []


def lazy(kind):
    """A subclass of ``kind`` that notes whatever asks for all that it holds."""

    def noting(name):
        def method(self, *args):
            ASKED.append(name)
            return getattr(kind, name)(self, *args)

        return method

    names = ("__iter__", "__len__", "keys", "values", "items")
    return type(f"Lazy_{kind.__name__}", (kind,), {n: noting(n) for n in names if hasattr(kind, n)})


TABLES = {
    kind.__name__: lazy(kind)(held)
    for kind, held in [
        (dict, {"gain": 2.0}),
        (OrderedDict, {"gain": 2.0, "shift": 1.0}),
        (list, [2.0]),
        (tuple, (2.0,)),
        (set, {2.0}),
        (frozenset, {2.0}),
        (deque, [2.0]),
    ]
}


class Reader(torch.nn.Module):
    """Names a table that it does not read, as library code names its registries."""

    def __init__(self, table):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.held = {"table": table}
        self.used = {"gain": 3.0}

    def forward(self, x):
        if x.dim() > 5:
            return TABLES, x
        return torch.softmax(self.inner(x), -1) * self.used["gain"]


@pytest.fixture(params=["c", "python"])
def way(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(watch, "native", lambda: None)
    elif watch.native() is None:
        pytest.skip("no C compiler")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("front", [pw.compile, pw.record])
@pytest.mark.parametrize("kind", TABLES)
def test_a_container_is_watched_without_its_own_methods(front, kind):
    model = Reader(TABLES[kind]).eval()
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 8)}},
        splitting_ops=("torch.softmax",),
        capture_sizes=(4, 8),
        **({"compiler": "eager"} if front is pw.compile else {}),
    )
    x = torch.randn(4, 4)
    ASKED.clear()
    with torch.inference_mode():
        fast = front(model, config, SimulatedPlatform())
        fast.warmup(x, progress=False)
        for gain in (3.0, 5.0):
            model.used["gain"] = gain
            torch.testing.assert_close(fast(x), model(x))
    assert not ASKED
