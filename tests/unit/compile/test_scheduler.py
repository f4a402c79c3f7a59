"""What is compiled, for whom, with what, and what is said when that fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.errors import CompileFailed, CompilerUnavailable, ConfigError
from piecewise_core.protocols import Capabilities, CompiledGraph

SPLIT = ("torch.nn.functional.softmax",)
ROWS = pw.Dim("rows", 1, 64)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


class Noting(EagerCompiler):
    """Compiles nothing, and notes what it was given."""

    name = "noting"

    def __init__(self, passes=()) -> None:
        self.seen: list[SimpleNamespace] = []
        self._passes = passes

    def compile(self, graph, example_inputs, *, key, config):
        self.seen.append(
            SimpleNamespace(
                key=key,
                config=config,
                inputs=tuple(example_inputs),
                inference=torch.is_inference_mode_enabled(),
                targets=[getattr(n.target, "__name__", n.target) for n in graph.graph.nodes],
            )
        )
        return super().compile(graph, example_inputs, key=key, config=config)

    def passes(self):
        return self._passes


def platform(compiler) -> SimpleNamespace:
    return SimpleNamespace(
        device=Runtime(), graphs=None, compiler=compiler, capabilities=Capabilities()
    )


class Layers(nn.Module):
    """Layers cut at softmax; the middle ones are alike."""

    def __init__(self, layers: int = 4, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = nn.functional.softmax(layer(x), -1)
        return x * 2


def compiled(model, compiler, **config):
    settings = {"dynamic": {"x": {0: ROWS}}, "splitting_ops": SPLIT, **config}
    return pw.compile(model, pw.Config(**settings), platform(compiler))


def test_equal_pieces_are_compiled_once_per_range_under_one_key_each():
    compiler = Noting()
    fast = compiled(Layers(), compiler, compile_ranges_endpoints=(8,), compile_sizes=(4,))
    fast.warmup(torch.randn(3, 8), progress=False)
    keys = [seen.key for seen in compiler.seen]
    assert len(keys) == len(set(keys)) == 2 * 3
    assert {key.split("-")[1] for key in keys} == {"[4, 4]", "[1, 8]", "[9, 64]"}


def test_the_same_model_has_the_same_keys_and_another_one_others():
    def keys(model):
        compiler = Noting()
        compiled(model, compiler).warmup(torch.randn(3, model.layers[0].in_features))
        return [seen.key for seen in compiler.seen]

    assert keys(Layers()) == keys(Layers())
    assert keys(Layers(2)) == keys(Layers(7))
    assert not set(keys(Layers())) & set(keys(Layers(width=16)))
    double = Layers(width=8).double()
    compiler = Noting()
    compiled(double, compiler).warmup(torch.randn(3, 8, dtype=torch.float64))
    assert not {seen.key for seen in compiler.seen} & set(keys(Layers()))


def test_pieces_that_differ_in_a_constant_are_not_shared():
    def fn(x):
        x = nn.functional.softmax(x * 2, -1)
        x = nn.functional.softmax(x * 3, -1)
        return nn.functional.softmax(x * 2, -1)

    compiler = Noting()
    fast = compiled(fn, compiler)
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x), fn(x))
    assert (fast.stats().unique_pieces, len(compiler.seen)) == (2, 2)
    assert fast.stats().dedup_hits == 1


def test_a_compiler_runs_under_inference_mode_with_the_config_as_resolved():
    compiler = Noting()
    fast = compiled(Layers(), compiler)
    with torch.inference_mode(False), torch.no_grad():
        fast(torch.randn(3, 8))
    assert all(seen.inference for seen in compiler.seen)
    assert all(seen.config.compiler == "noting" for seen in compiler.seen)


def test_sizes_come_first_and_tensors_are_fake():
    compiler = Noting()
    compiled(Layers(), compiler, compile_sizes=(4,)).warmup(torch.randn(3, 8), progress=False)
    for seen in compiler.seen:
        size, *tensors = seen.inputs
        assert size == 4 or isinstance(size, torch.SymInt)
        assert all(isinstance(t, torch._subclasses.FakeTensor) for t in tensors)


def test_a_compilers_passes_change_each_piece_before_it_is_compiled():
    def double_instead_of_relu(graph):
        for node in graph.graph.nodes:
            if node.op == "call_method" and node.target == "relu":
                node.target, node.args = "mul", (*node.args, 2)
        graph.recompile()

    compiler = Noting([double_instead_of_relu])
    fast = compiled(lambda x: nn.functional.softmax(x.relu(), -1).relu() + 1, compiler)
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x), nn.functional.softmax(x * 2, -1) * 2 + 1)
    assert all("relu" not in seen.targets for seen in compiler.seen)


def test_what_a_compiler_changes_in_its_graph_changes_no_other_compilation():
    class Breaking(Noting):
        def compile(self, graph, example_inputs, *, key, config):
            made = CompiledGraph(super().compile(graph, example_inputs, key=key, config=config).run)
            for node in graph.graph.nodes:
                if node.op == "output":
                    node.args = ((),)
            return made

    compiler = Breaking()
    model = Layers()
    fast = compiled(model, compiler, compile_ranges_endpoints=(8,))
    fast.warmup(torch.randn(3, 8), progress=False)
    for size in (3, 20):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))


class Failing(Noting):
    """Fails while ``error`` is set."""

    name = "failing"
    error: BaseException | None = None

    def compile(self, graph, example_inputs, *, key, config):
        if self.error is not None:
            raise self.error
        return super().compile(graph, example_inputs, key=key, config=config)


def test_a_failed_compilation_names_piece_source_sizes_compiler_and_what_to_try():
    compiler = Failing()
    compiler.error = ValueError("no such instruction")
    fast = compiled(Layers(), compiler)
    with pytest.raises(CompileFailed) as caught:
        fast(torch.randn(3, 8))
    for part in (
        "region 0 piece 0",
        "test_scheduler.py:",
        "[1, 64]",
        "'failing' raised ValueError: no such instruction",
        'compiler="eager"',
    ):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_after_a_failed_compilation_the_next_call_tries_again():
    compiler = Failing()
    compiler.error = ValueError("once")
    model = Layers()
    fast = compiled(model, compiler)
    x = torch.randn(3, 8)
    with pytest.raises(CompileFailed):
        fast(x)
    compiler.error = None
    torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("error", [ConfigError("wrong"), CompilerUnavailable("gone")])
def test_our_own_errors_come_through_as_they_are(error):
    compiler = Failing()
    compiler.error = error
    with pytest.raises(type(error)) as caught:
        compiled(Layers(), compiler, check="strict")(torch.randn(3, 8))
    assert caught.value is error


def test_each_compilation_is_logged_once_at_debug_level(caplog):
    fast = compiled(Layers(), Noting())
    with caplog.at_level(logging.DEBUG, "piecewise_core.compile.maker"):
        fast(torch.randn(3, 8))
        fast(torch.randn(3, 8))
    ours = [r for r in caplog.records if r.name == "piecewise_core.compile.maker"]
    assert len(ours) == 2
    assert "compiled region 0 piece 0 for [1, 64]" in ours[0].getMessage()


def test_the_eager_compiler_runs_a_piece_as_written():
    graph = torch.fx.symbolic_trace(lambda x: (x + 1, x * 2))
    x = torch.randn(3)
    first, second = EagerCompiler().compile(graph, (x,), key="", config=pw.Config()).run(x)
    assert torch.equal(first, x + 1)
    assert torch.equal(second, x * 2)
    assert EagerCompiler().hash_factors() == {}
