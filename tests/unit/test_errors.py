"""Errors say in fields what their messages say in words."""

from __future__ import annotations

import pickle

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import (
    AddressChanged,
    CompileFailed,
    ConfigError,
    InputMismatch,
    NothingToSplit,
    OutOfRange,
    PlanError,
    ReportError,
    Sealed,
    SizeBranch,
    UnknownSplittingOp,
    UnsupportedOutput,
)
from piecewise_core.testing import SimulatedPlatform


def compiled(fn, dim=None, **config):
    dynamic = {0: {0: dim or pw.Dim("rows", 2, 8)}}
    return pw.compile(fn, pw.Config(dynamic=dynamic, compiler="eager", **config), "cpu")


def travelled(error):
    """``error`` as another process gets it."""
    found = pickle.loads(pickle.dumps(error))
    assert str(found) == str(error)
    return found


@pytest.mark.parametrize("call", ["compile", "record", "bisect"])
def test_a_size_out_of_bounds_is_in_the_error(call):
    if call == "record":
        config = pw.Config(dynamic={0: {0: pw.Dim("rows", 2, 8)}}, capture_sizes=(4,))
        fast = pw.record(torch.sin, config, "cpu")
    else:
        fast = compiled(torch.sin)
    with pytest.raises(OutOfRange) as caught:
        (fast.bisect if call == "bisect" else fast)(torch.ones(9))
    error = travelled(caught.value)
    assert (error.dim, error.size, error.bounds, error.sizes) == ("rows", 9, (2, 8), (9,))


def test_a_size_that_is_no_multiple_is_in_the_error():
    with pytest.raises(OutOfRange) as caught:
        compiled(torch.sin, pw.Dim("rows", 2, 8, multiple_of=2))(torch.ones(5))
    assert (caught.value.dim, caught.value.size) == ("rows", 5)


def test_a_branch_on_a_size_names_dim_and_endpoints():
    def model(x):
        return x + 1 if x.shape[0] > 3 else x * 2

    with pytest.raises(SizeBranch) as caught:
        compiled(model, regions="declared")(torch.ones(5))
    error = travelled(caught.value)
    assert (error.dim, error.bounds, error.endpoints) == ("rows", (2, 8), (3,))


def caught(kind, call):
    with pytest.raises(kind) as found:
        call()
    return travelled(found.value)


def test_a_setting_and_an_argument_are_in_the_error():
    assert caught(ConfigError, lambda: pw.Config(padding="never")).field == "padding"
    fast = compiled(lambda x, parts: x + parts["a"][1])
    x, row = torch.ones(4), torch.ones(1)
    fast(x, {"a": [row, row]})
    error = caught(InputMismatch, lambda: fast(x, {"a": [row, torch.ones(2)]}))
    assert error.argument == "parts.a.1"
    assert caught(InputMismatch, lambda: fast(x, x, x, x)).argument == ""


def test_names_of_splitting_ops_are_in_the_error():
    def call(*names):
        return lambda: compiled(torch.sin, splitting_ops=names)(torch.ones(4))

    error = caught(UnknownSplittingOp, call("aten::sofmax"))
    assert error.names == ("aten::sofmax",)
    assert "aten::softmax" in error.near
    error = caught(NothingToSplit, call("aten::softmax"))
    assert error.names == ("aten::softmax",)


def test_what_a_result_must_not_hold_is_in_the_error():
    class Opaque:
        pass

    error = caught(UnsupportedOutput, lambda: compiled(lambda x: {"a": Opaque()})(torch.ones(4)))
    assert error.path == "output['a']"


def test_files_are_in_the_error(tmp_path):
    missing = tmp_path / "missing" / "report.html"
    fast = compiled(torch.sin)
    assert caught(ReportError, lambda: fast.explain().to_html(missing)).path == str(missing)
    assert caught(PlanError, lambda: pw.plan(missing)).path == str(missing)
    assert caught(PlanError, lambda: pw.plan({(-1,): 2})).path == ""


def test_what_was_to_be_built_is_in_the_error():
    fast = compiled(torch.sin, compile_ranges_endpoints=(4,))
    fast(torch.ones(3))
    fast.seal()
    assert caught(Sealed, lambda: fast(torch.ones(7))).sizes == "[5, 8]"


def test_what_did_not_compile_is_in_the_error():
    class Broken:
        name = "broken"

        def compile(self, graph, example_inputs, *, key, config):
            raise RuntimeError("no")

        def hash_factors(self):
            return {}

    platform = SimulatedPlatform()
    platform.compiler = Broken()
    fast = pw.compile(torch.sin, pw.Config(dynamic={0: {0: pw.Dim("n", 2, 8)}}), platform)
    error = caught(CompileFailed, lambda: fast(torch.ones(4)))
    assert (error.piece, error.sizes, error.compiler) == ("region 0 piece 0", "[2, 8]", "broken")


def test_arguments_that_moved_are_in_the_error():
    config = pw.Config(
        dynamic={0: {0: pw.Dim("n", 2, 8)}},
        capture_sizes=(4,),
        inputs="static",
        compiler="eager",
    )
    with torch.inference_mode():
        fast = pw.compile(torch.sin, config, SimulatedPlatform())
        fast(torch.ones(4))
        assert caught(AddressChanged, lambda: fast(torch.ones(4))).arguments == ("args.0",)


def test_a_field_that_no_class_declares_is_a_mistake():
    with pytest.raises(AttributeError, match="Sealed has no field 'size'"):
        Sealed("x").having(size=1)
