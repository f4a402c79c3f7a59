"""Graphs that an engine has cut are compiled once per distinct graph and range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_standin import in_parts

import piecewise_core as pw
from piecewise_core.ranges import Range

RANGES = (Range(1, 8), Range(9, 64))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(8, 16)
        self.down = torch.nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.sin(self.up(x)))


def cut(layers: int, rows: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    """A model of equal layers as an engine cuts it: the whole, its pieces, and the model."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[Layer() for _ in range(layers)], torch.nn.LayerNorm(8))
    model = model.to(dtype).eval()
    taken: list[Any] = []

    def take(graph, inputs):
        taken.append((graph, inputs))
        return graph.forward

    torch._dynamo.reset()  # forwards of torch's own containers were compiled by other tests, too
    x = torch.randn(rows, 8, dtype=dtype)
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        torch.compile(model, backend=take, fullgraph=True)(x)
    graph, inputs = taken[0]
    part, place = 0, {}
    for node in graph.graph.nodes:
        place[node] = part
        part += node.target is torch.sin
    return in_parts(graph, place.__getitem__), inputs, model


def compiled(made: pw.GraphCompiler, whole: Any, sizes: Range) -> Any:
    """The whole with its pieces compiled for ``sizes``."""
    runs = {n: made.compile(m, sizes, f"graph {n}") for n, m in whole.named_children()}

    class Run(torch.fx.Interpreter):
        def call_module(self, target, args, kwargs):
            return runs[target](*args)

    return Run(whole)


def inputs_of(inputs: Any, x: torch.Tensor) -> list[Any]:
    return [
        x.shape[0]
        if isinstance(i, (int, torch.SymInt))
        else x
        if not isinstance(i, torch.nn.Parameter)
        else i
        for i in inputs
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_graphs_are_compiled_once_per_range(dtype):
    whole, inputs, model = cut(4, dtype=dtype)
    made = pw.GraphCompiler(pw.Config(compiler="eager"), name="engine")
    served = [compiled(made, whole, sizes) for sizes in RANGES]
    stats = made.stats()
    # Of five pieces the first and the last are alone; the three between them are one.
    assert (stats.compilable_pieces, stats.unique_pieces, stats.compilations) == (5, 3, 6)
    assert stats.dedup_hits == 4
    for rows, run in ((1, served[0]), (8, served[0]), (9, served[1]), (64, served[1])):
        x = torch.randn(rows, 8, dtype=dtype)
        with torch.no_grad():
            torch.testing.assert_close(run.run(*inputs_of(inputs, x))[0], model(x))


def test_explain_says_where_code_is_from_and_who_shares_it():
    whole, _, _ = cut(4)
    made = pw.GraphCompiler(pw.Config(compiler="eager"))
    compiled(made, whole, RANGES[0])
    lines = made.explain().splitlines()
    assert len(lines) == 3
    assert "graph submod_1 for [1, 8]" in lines[1]
    assert "by eager, shared by 2 more" in lines[1]


def test_a_second_process_has_its_code_from_the_store(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    whole, inputs, model = cut(2)
    config = pw.Config(cache_dir=tmp_path)
    first = pw.GraphCompiler(config, name="engine")
    compiled(first, whole, RANGES[0])
    assert first.stats().compilations == first.stats().unique_pieces == 3
    second = pw.GraphCompiler(config, name="engine")
    run = compiled(second, whole, RANGES[0])
    assert (second.stats().compilations, second.stats().cache_hits) == (0, 3)
    assert "from the compile store" in second.explain()
    assert first.fingerprint() == second.fingerprint()
    x = torch.randn(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(run.run(*inputs_of(inputs, x))[0], model(x))


def test_the_engine_s_graph_is_left_as_it_is():
    whole, _, _ = cut(1)
    piece = whole.submod_0
    before = str(piece.graph), [dict(n.meta) for n in piece.graph.nodes]
    pw.GraphCompiler(pw.Config(compiler="eager")).compile(piece, Range(4, 4), "one size")
    assert (str(piece.graph), [dict(n.meta) for n in piece.graph.nodes]) == before


def test_results_in_another_layout_are_brought_to_the_one_traced():
    class Turned:
        name = "turned"

        def compile(self, graph, example_inputs, *, key, config):
            from piecewise_core.protocols import CompiledGraph

            def run(*args):
                return [_turned(o) for o in graph.forward(*args)]

            return CompiledGraph(run)

        def hash_factors(self):
            return {}

    from piecewise_core.testing import SimulatedPlatform

    platform = SimulatedPlatform()
    platform.compiler = Turned()
    whole, inputs, model = cut(1)
    made = pw.GraphCompiler(platform=platform)
    run = compiled(made, whole, RANGES[0])
    x = torch.randn(3, 8)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(
                run.run(*inputs_of(inputs, x))[0], model(x), check_stride=True
            )
    assert made.stats().relaid > 1


def _turned(value: Any) -> Any:
    return value.t().contiguous().t() if isinstance(value, torch.Tensor) else value


def test_a_graph_that_gives_no_tuple_is_refused():
    graph = torch.fx.symbolic_trace(torch.nn.ReLU())
    with pytest.raises(pw.errors.ConfigError, match="gives a tuple"):
        pw.GraphCompiler(pw.Config(compiler="eager")).compile(graph, Range(1, 2), "one")
