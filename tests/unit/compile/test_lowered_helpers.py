"""What lower() gives compilers beside the graph: a program of torch.export, handles, arrays."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import piecewise_core as pw
from piecewise_core.protocols import Capabilities, CompiledGraph
from piecewise_core.protocols.lowering import Layout, Results, lower, place_of

FLOATS = (torch.float32, torch.int64, torch.bool)


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


class Arrays:
    """Runs an exported program on NumPy's arrays, as another library would."""

    name = "arrays"

    def __init__(self):
        self.programs = []

    def compile(self, graph, example_inputs, *, key, config):
        lowered = lower(graph, example_inputs)
        lowered.decline(other_than=FLOATS)
        program = lowered.exported()
        self.programs.append(program)
        names = program.graph_signature.user_inputs
        results, rest = Results.unpack(lowered.results.pack(b"code"))
        assert rest == b"code"

        def compute(*arrays):
            assert all(type(array) is np.ndarray for array in arrays)
            given = [torch.from_numpy(a) if a.ndim else int(a) for a in arrays]
            return [value.numpy() for value in program.graph_module(*given)]

        return CompiledGraph(results.around_arrays(compute, [place_of(name) for name in names]))

    def hash_factors(self):
        return {}


def served(model, xs, rows=(0, 16), **config):
    compiler = Arrays()
    place = SimpleNamespace(
        name="p", device=Runtime(), graphs=None, compiler=compiler, capabilities=Capabilities()
    )
    fast = pw.compile(
        model, pw.Config(dynamic={"x": {0: pw.Dim("rows", *rows)}}, **config), platform=place
    )
    for x in xs:
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=0)
    return fast, compiler


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def views(x):
    y = F.gelu(x)
    return y.t(), y[:, 1:], x.expand(2, *x.shape), x.shape[0] * torch.ones(3)


def writes(x):
    x.add_(1)
    return x.sum(0), x


@pytest.mark.parametrize("model", [views, lambda x: F.softmax(x @ x.t(), -1), torch.relu])
def test_a_program_of_torch_export_serves_every_size(model):
    def named(x):
        return model(x)

    fast, compiler = served(named, [torch.randn(rows, 4) for rows in (3, 1, 0, 16)])
    assert fast.stats().declined == 0
    assert all(name.startswith("arg_") for name in compiler.programs[0].graph_signature.user_inputs)


def test_new_values_of_inputs_are_put_into_them():
    fast, _ = served(writes, [])
    ours, eager = torch.ones(3, 4), torch.ones(3, 4)
    torch.testing.assert_close(fast(ours), writes(eager))
    torch.testing.assert_close(ours, eager)


def test_sizes_that_do_not_vary_are_none_of_a_program_s_inputs():
    def model(x):
        return torch.relu(x) * x.shape[0]

    _, compiler = served(model, [torch.randn(4, 4)], rows=(4, 4))
    assert [len(program.graph_signature.user_inputs) for program in compiler.programs] == [1]


@pytest.mark.parametrize(
    ("model", "dtype", "why"),
    [
        (torch.relu, torch.float64, "is of torch.float64, which would be computed otherwise"),
        (torch.relu, torch.bfloat16, "is of torch.bfloat16"),
        (lambda x: x.double().sum(), torch.float32, "is of torch.float64"),
        (lambda x: F.dropout(x, 0.5), torch.float32, "draws from another generator than torch's"),
        (torch.bernoulli, torch.float32, "draws from another generator"),
    ],
)
def test_other_dtypes_and_random_numbers_are_declined(model, dtype, why, caplog):
    def named(x):
        return model(x)

    fast, compiler = served(named, [])
    assert fast(torch.ones(3, 4, dtype=dtype)).shape is not None
    assert fast.stats().declined == 1
    assert compiler.programs == []
    assert any(why in record.getMessage() for record in caplog.records)


def test_dropout_that_drops_nothing_draws_nothing():
    fast, _ = served(lambda x: F.dropout(x, 0.5, False) + 1, [torch.randn(3, 4)])
    assert fast.stats().declined == 0


@pytest.mark.parametrize("parts", [(), (b"",), (b"a", b"", b"\0" * 9), (b"\xff" * 300, b"x")])
def test_handles_give_back_what_was_packed(parts):
    layout = Layout("float32", ("s0", "4"), ("4", "1"))
    results = Results((layout,), (2,), {"s0": (0, -1)})
    assert Results.unpack(results.pack(*parts)) == (results, *parts)
