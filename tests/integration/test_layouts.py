"""What crosses a cut has the traced layout, or is brought to it (FAULTS 43, 44, 56)."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch.library import custom_op

import piecewise_core as pw
from piecewise_core.errors import OpContractBroken
from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", min=0, max=16)}}
DRIFT = {"turned": False}


@custom_op("layouts::turned", mutates_args=())
def turned(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t() * 2


@custom_op("layouts::several", mutates_args=())
def several(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.t().contiguous().t() + 1, x * 3


@custom_op("layouts::drifts", mutates_args=())
def drifts(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    return y.t().contiguous().t() if DRIFT["turned"] else y


@custom_op("layouts::spread", mutates_args=())
def spread(x: torch.Tensor) -> torch.Tensor:
    return (x[:, :1] * 2).repeat(1, x.shape[1])


turned.register_fake(lambda x: x.new_empty(x.shape))
several.register_fake(lambda x: (x.new_empty(x.shape), x.new_empty(x.shape)))
drifts.register_fake(lambda x: x.new_empty(x.shape))
spread.register_fake(lambda x: x.new_empty((x.shape[0], 1)).expand(x.shape))

MODELS = {
    "turned": lambda x: torch.ops.layouts.turned(x + 1).sin() + x,
    "turned and viewed": lambda x: torch.ops.layouts.turned(x + 1).contiguous().view(-1) * 2,
    "twice": lambda x: torch.ops.layouts.turned(torch.ops.layouts.turned(x)) + 1,
    "several": lambda x: sum(torch.ops.layouts.several(x * 2)),
    "returned": lambda x: (torch.ops.layouts.turned(x), x + 1),
    "written": lambda x: torch.ops.layouts.turned(x).add_(1).t() * 2,
    "spread": lambda x: torch.ops.layouts.spread(x + 1) + x,
}
OPS = tuple(f"layouts::{n}" for n in ("turned", "several", "drifts", "spread"))
WAYS = ["uncaptured", "captured", "full", "cpu plan"]


@pytest.fixture(autouse=True)
def _inference():
    DRIFT["turned"] = False
    with torch.inference_mode():
        yield


def made(model: Any, way: str, **changes: Any) -> Any:
    settings = {"dynamic": ROWS, "splitting_ops": OPS, "compiler": "eager", **changes}
    if way != "uncaptured":
        settings |= {"capture_sizes": (1, 4), "capture_max": False}
    if way == "full":
        settings["graph_mode"] = "full"
    platform = SimulatedPlatform() if way in ("captured", "full") else "cpu"
    return pw.compile(model, pw.Config(**settings), platform=platform)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_an_op_that_lies_otherwise_than_its_fake_says_is_served_right(name, way):
    model = MODELS[name]
    fast = made(model, way)
    for rows in (4, 1, 4, 7, 0, 4):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.inductor
@pytest.mark.parametrize("way", ["uncaptured", "cpu plan"])
def test_what_follows_is_compiled_for_the_real_layout(way):
    model = MODELS["turned"]
    fast = made(model, way, compiler="inductor")
    for rows in (4, 4, 7):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().relaid == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_layout_that_drifts_later_is_brought_back_counted_and_told_once(way, caplog):
    def model(x):
        return torch.ops.layouts.drifts(x + 1).reshape(-1).sin()

    fast = made(model, way)
    with caplog.at_level(logging.INFO, logger="piecewise_core"):
        for turn in range(6):
            DRIFT["turned"] = turn >= 2
            # One graph of the whole forward cannot follow: there the operator is in it.
            x = torch.randn(7 if way == "full" else 4, 6)
            torch.testing.assert_close(fast(x), model(x))
    told = [r.getMessage() for r in caplog.records if "layouts::drifts" in r.getMessage()]
    if way == "uncaptured":
        assert len(told) == 1
        assert "strides" in told[0]
        assert fast.stats().relaid == 4


class Turns:
    """A compiler whose code returns other strides than the graph."""

    name = "turns"

    def compile(self, graph, example_inputs, *, key, config):
        def run(*inputs):
            found = graph.forward(*inputs)
            return tuple(t.t().contiguous().t() if t.dim() == 2 else t for t in found)

        return CompiledGraph(run)

    def hash_factors(self):
        return {}


@pytest.mark.parametrize("captured", [False, True])
def test_what_a_compiler_returns_in_other_strides_is_brought_to_the_traced_ones(captured, caplog):
    def model(x):
        return torch.ops.layouts.drifts((x * 2).view(-1, 6)).view(-1) + 1

    platform = SimulatedPlatform()
    platform.compiler = Turns()
    settings = {"capture_sizes": (4,), "capture_max": False} if captured else {}
    config = pw.Config(dynamic=ROWS, splitting_ops=OPS, **settings)
    fast = pw.compile(model, config, platform=platform)
    for rows in (4, 4, 9, 9):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().relaid
    assert "compiler 'turns'" in caplog.text


class Shrinks(Turns):
    """A compiler whose code returns another dtype."""

    def compile(self, graph, example_inputs, *, key, config):
        return CompiledGraph(lambda *i: tuple(t.half() for t in graph.forward(*i)))


@pytest.mark.parametrize("captured", [False, True])
def test_another_dtype_from_a_compiler_is_refused_and_the_compiler_named(captured):
    platform = SimulatedPlatform()
    platform.compiler = Shrinks()
    settings = {"capture_sizes": (4,), "capture_max": False} if captured else {}
    fast = pw.compile(lambda x: x + 1, pw.Config(dynamic=ROWS, **settings), platform=platform)
    with pytest.raises(OpContractBroken, match="compiler 'turns'"):
        fast(torch.randn(4, 6))


@pytest.mark.parametrize("first", ["contiguous", "transposed"])
@pytest.mark.parametrize(
    "model",
    [
        lambda x: x + 1 if x.is_contiguous() else x - 1,
        lambda x: x * x.stride(0),
    ],
)
def test_a_model_that_asks_for_the_layout_of_its_input_gets_that_of_the_call(model, first):
    fast = pw.compile(model, pw.Config(compiler="eager"), platform="cpu")
    inputs = [torch.randn(3, 3), torch.randn(3, 3).t()]
    inputs = inputs if first == "contiguous" else inputs[::-1]
    for x in (*inputs, *inputs):
        torch.testing.assert_close(fast(x), model(x))
