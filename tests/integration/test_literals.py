"""Tensors that forward makes of Python data: as the model has them at every call, on every way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform
from tests.integration.literal_programs import (
    PROGRAMS,
    items_set,
    of_numpy,
    per_layer,
    returned,
    summed_in_place,
    written_through_a_view,
)

ROOT = str(Path(__file__).parents[2])
ROWS = {"x": {0: pw.Dim("rows", min=1, max=16)}}
CAPTURED = {"capture_sizes": (3,), "capture_max": False}


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def uncaptured(fn, compiler="eager"):
    return pw.compile(fn, pw.Config(dynamic=ROWS, compiler=compiler), platform="cpu")


def captured(fn, platform=None, compiler="eager", **settings):
    config = pw.Config(dynamic=ROWS, compiler=compiler, **CAPTURED, **settings)
    return pw.compile(fn, config, platform=platform or SimulatedPlatform())


def recorded(fn, platform=None, **settings):
    config = pw.Config(dynamic=ROWS, **CAPTURED, **settings)
    return pw.record(fn, config, platform=platform or SimulatedPlatform())


def through_torch_compile(fn):
    torch._dynamo.reset()
    return torch.compile(fn, backend="piecewise", dynamic=True, options={"compiler": "eager"})


WAYS = {
    "uncaptured": uncaptured,
    "simulated": captured,
    "static plans": lambda fn: captured(fn, "cpu"),
    "recorded": recorded,
    "recorded plans": lambda fn: recorded(fn, "cpu"),
    "torch.compile": through_torch_compile,
}


def check(fast, model, sizes=(3, 3, 5, 3)):
    for rows in sizes:
        x = torch.randn(rows, 2)
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", PROGRAMS, ids=lambda fn: fn.__name__)
def test_a_literal_is_what_the_model_has_at_every_call(model, way):
    fast = WAYS[way](model)
    check(fast, model)
    if way not in ("uncaptured", "torch.compile"):
        assert fast.stats().calls["replayed"] == 3, fast.explain()


@pytest.mark.parametrize("way", ["uncaptured", "torch.compile"])
def test_results_share_memory_with_no_literal_and_with_no_other_call(way):
    fast = WAYS[way](returned)
    for _ in range(3):
        x = torch.randn(3, 2)
        found, expected = fast(x), returned(x)
        torch.testing.assert_close(found, expected)
        first, second = found["tables"]
        assert first.data_ptr() == second.data_ptr(), "a view of one another, as the model has it"
        for tensor in pytree.tree_leaves(found):
            tensor.fill_(99.0)


@pytest.mark.parametrize("make", [captured, recorded])
def test_copies_of_replayed_results_are_the_caller_s(make):
    fast = make(returned, clone_outputs=True)
    for _ in range(3):
        x = torch.randn(3, 2)
        torch.testing.assert_close(found := fast(x), returned(x))
        for tensor in pytree.tree_leaves(found):
            tensor.fill_(99.0)
    assert fast.stats().calls["replayed"] == 3


@pytest.mark.parametrize(
    ("model", "left"),
    [
        (lambda x: x / torch.sqrt(torch.tensor(64.0) * 3).to(x), {"truediv", "full"}),
        (lambda x: x + torch.tensor([1, 2]).type_as(x), {"add"}),
        (lambda x: x + x.new_tensor([-0.0, 2.0]), {"add"}),
        (lambda x: (x + x.new_tensor([1, 2], dtype=torch.int32)).float(), {"add", "float"}),
    ],
)
def test_a_literal_that_takes_its_dtype_and_device_of_an_input_is_made_once(model, left):
    settings = {"dynamic": {"x": {0: pw.Dim("rows", 1, 8)}}, "splitting_ops": ()}
    fast = pw.compile(model, pw.Config(compiler="eager", **settings), platform="cpu")
    x = torch.randn(5, 2)
    torch.testing.assert_close(fast(x), model(x))
    ((piece,),) = (region.pieces for region in fast.explain().regions)
    assert {name.rpartition(".")[2] for name in piece.ops} == left


def test_equal_layers_with_a_literal_each_are_one_piece():
    fast = pw.compile(
        per_layer,
        pw.Config(dynamic=ROWS, compiler="eager", splitting_ops=("torch.tanh",)),
        platform="cpu",
    )
    check(fast, per_layer)
    assert fast.stats().unique_pieces == 1


def test_a_splitting_op_is_given_its_literal_without_a_piece_that_makes_it():
    def model(x):
        return torch.maximum(x, torch.tensor(0.5)) + 1

    fast = captured(model, splitting_ops=("torch.maximum",))
    check(fast, model)
    assert fast.stats().compilable_pieces == 1


def test_a_mask_of_literals_goes_to_attention():
    def model(x):
        q = x.view(1, 1, -1, 2)
        mask = torch.tensor([[0.5]])
        return torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    op = "torch.nn.functional.scaled_dot_product_attention"
    check(captured(model, splitting_ops=(op,)), model)


@pytest.mark.parametrize(
    "compiler", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_a_branch_of_a_condition_may_have_literals(compiler):
    def model(x):
        return torch.cond(
            x.sum() > 0,
            lambda x: x + torch.tensor(1.5),
            lambda x: x - torch.tensor([1.0, 2.0]),
            (x,),
        )

    fast = uncaptured(model, compiler)
    for x in (torch.ones(3, 2), -torch.ones(5, 2)):
        expected = x + 1.5 if x.sum() > 0 else x - torch.tensor([1.0, 2.0])
        torch.testing.assert_close(fast(x), expected)


def test_what_autocast_decides_is_not_decided_ahead_of_it():
    def model(x):
        table = torch.tensor([[1.0, 2.0], [3.0, 4.3]])
        with torch.autocast("cpu", torch.bfloat16):
            return table @ table, x + 1

    check(uncaptured(model), model)


def test_a_literal_of_another_default_dtype_keeps_its_own():
    def model(x):
        return x + torch.tensor([0.1, 0.2], dtype=torch.float64)

    check(uncaptured(model), model)
    assert uncaptured(model)(torch.randn(3, 2)).dtype == torch.float64


def test_data_that_python_may_read_is_read_in_a_recording():
    def model(x):
        return x * torch.tensor(2).item() + torch.tensor([1.0, 2.0]).tolist()[1]

    fast = recorded(model)
    check(fast, model)
    assert fast.stats().calls["replayed"] == 3


@pytest.mark.inductor
@pytest.mark.parametrize("way", ["uncaptured", "static plans"])
def test_inductor_never_sees_a_literal(way):
    def model(x):
        parts = [items_set(x), per_layer(x), *written_through_a_view(x), summed_in_place(x)]
        return *parts, returned(x), x[:, [1, 0]]

    fast = (
        uncaptured(model, "inductor") if way == "uncaptured" else captured(model, "cpu", "inductor")
    )
    check(fast, model, (3, 5, 3))


PROGRAM = """
import json, sys
sys.path[:0] = json.loads(sys.argv[2])
import torch, piecewise_core as pw
from tests.integration.literal_programs import PROGRAMS
from tests.integration.test_literals import everything
torch.manual_seed(0)
with torch.inference_mode():
    fast = pw.load(sys.argv[1], everything)
    for rows in (3, 3, 5):
        x = torch.randn(rows, 2)
        torch.testing.assert_close(fast(x), everything(x))
print(json.dumps([fast.stats().graphs, fast.stats().compilations, fast.stats().calls["replayed"]]))
"""


def everything(x):
    """Literals of every kind, for a bundle."""
    return [program(x) for program in PROGRAMS]


def torchs_own(x):
    """All but NumPy's, whose traces no store keeps."""
    return [program(x) for program in PROGRAMS if program is not of_numpy]


@pytest.mark.inductor
def test_a_bundle_brings_its_literals_to_another_process(tmp_path, fresh_processes):
    config = pw.Config(dynamic=ROWS, compiler="inductor", **CAPTURED)
    fast = pw.compile(everything, config, platform="cpu")
    check(fast, everything, (3, 3))
    report = fast.save(tmp_path / "model.pwb")
    assert report.left_out == ()
    paths = json.dumps([ROOT, *(p for p in sys.path if p)])
    done = fresh_processes.run(PROGRAM, str(tmp_path / "model.pwb"), paths)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 2]


def test_the_compile_store_keeps_a_trace_with_literals(tmp_path, monkeypatch):
    monkeypatch.delenv("PIECEWISE_CACHE_MODE")
    config = pw.Config(dynamic=ROWS, compiler="eager", cache_dir=str(tmp_path), **CAPTURED)
    for traced in (1, 0):
        fast = pw.compile(torchs_own, config, platform="cpu")
        check(fast, torchs_own)
        assert fast.stats().graphs == traced


@pytest.mark.parametrize("make", [captured, recorded])
def test_padded_calls_have_literals_too(make):
    def model(x):
        return x[:, [1, 0]] * torch.tensor([1.0, 2.0]) + torch.tensor(1.5), torch.tensor([3.0, 4.0])

    fast = make(model, padding="capture_sizes")
    check(fast, model, (3, 2, 2, 1, 1, 3))
    assert fast.stats().padded_rows
