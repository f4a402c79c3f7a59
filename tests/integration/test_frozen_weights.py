"""A compiler may build weights into its code: it runs only while they are what was built in."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.protocols import CompiledGraph
from piecewise_core.testing import SimulatedPlatform


class Packs:
    """Builds in every input that it may; what was built in is what the code computes with."""

    name = "packs"

    def __init__(self, fails=False):
        self.fails = fails
        self.asked = []  # places that were built in, in order
        self.ran = []  # for each call, whether with weights built in

    def compile(self, graph, example_inputs, *, key, config):
        return self.load(graph.graph.python_code("self").src.encode())

    def load(self, handle):
        scope = {"torch": torch}
        exec(handle.decode(), scope)
        forward = scope["forward"]

        def plain(*inputs):
            self.ran.append(False)
            return forward(None, *inputs)

        def freeze(values):
            self.asked.append(sorted(values))
            if self.fails:
                raise RuntimeError("no room")

            def run(*inputs):
                self.ran.append(True)
                return forward(None, *(values.get(i, v) for i, v in enumerate(inputs)))

            return run

        return CompiledGraph(plain, lambda: handle, freezes=range(99), freeze=freeze)

    def hash_factors(self):
        return {"packs": "1"}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("shift", torch.randn(8))

    def forward(self, x):
        x = torch.relu(self.inner(x))
        self.calls.add_(1)
        x = torch.softmax(x, -1)
        return self.outer(x) + self.shift * self.calls


def place_of(compiler):
    class Place(SimulatedPlatform):
        def __init__(self):
            super().__init__()
            self.compiler = compiler

    return Place()


def made(compiler=None, model=None, **config):
    torch.manual_seed(0)
    model, place = model or Model().eval(), place_of(compiler or Packs())
    fast = pw.compile(
        model,
        pw.Config(dynamic={"x": {0: pw.Dim("rows", 0, 32)}}, **config),
        platform=place,
    )
    return model, fast, place.compiler


def right(model, fast, rows=3):
    """Whether a call is eager's, both counting."""
    x = torch.randn(rows, 8)
    with torch.inference_mode():
        found = fast(x)
        model.calls.sub_(1)
        torch.testing.assert_close(found, model(x), rtol=0, atol=0)


def test_weights_are_built_in_behind_a_target_s_first_call_and_buffers_written_to_are_not():
    model, fast, compiler = made()
    for rows in (3, 4, 1, 0):
        right(model, fast, rows)
    assert compiler.ran == [False, True, True, True]
    assert [len(places) for places in compiler.asked] == [5]  # two of each layer, and the shift


def numpy(model):
    model.inner.weight.detach().numpy()[0] = 7


WRITES = {
    "in place": lambda m: m.inner.weight.mul_(2),
    "in inference mode": lambda m: _inference(lambda: m.inner.weight.mul_(2)),
    "one element": lambda m: m.outer.bias[3:4].add_(1e-6),
    "data of it": lambda m: m.inner.weight.data.mul_(2),
    "data replaced": lambda m: setattr(m.inner.weight, "data", torch.randn(8, 8)),
    "rows swapped behind its back": lambda m: m.inner.weight.data.copy_(m.inner.weight.flip(0)),
    "an alias of its memory": lambda m: m.inner.weight.detach().view(-1)[5:6].fill_(3),
    "numpy": numpy,
    "storage": lambda m: m.inner.weight.untyped_storage().fill_(1),
    "load_state_dict": lambda m: m.load_state_dict(Model().state_dict()),
    "assigned": lambda m: m.load_state_dict(Model().state_dict(), assign=True),
    "a new parameter": lambda m: setattr(m.inner, "weight", nn.Parameter(torch.randn(8, 8))),
    "a buffer": lambda m: m.shift.neg_(),
    "the sign of zero": lambda m: m.shift.zero_().neg_(),
    "not a number": lambda m: m.shift.fill_(torch.inf),
}


def _inference(fn):
    with torch.inference_mode():
        fn()


@pytest.mark.parametrize("how", WRITES)
def test_changed_weights_are_read_at_once_and_built_in_again_when_they_stay(how):
    model, fast, compiler = made()
    right(model, fast)
    right(model, fast)
    with torch.no_grad():
        WRITES[how](model)
    for _ in range(3):
        right(model, fast)
    assert compiler.ran[:2] == [False, True]
    assert compiler.ran[2] is False
    assert compiler.ran[-1] is True


def test_weights_back_at_what_was_built_in_are_right_too():
    model, fast, _ = made()
    before = model.inner.weight.detach().clone()
    for value in (before * 2, before, before * 2, before):
        right(model, fast)
        model.inner.weight.data.copy_(value)
        right(model, fast)
        right(model, fast)


def test_weights_that_change_at_every_call_are_read_and_soon_not_copied_any_more():
    model, fast, compiler = made()
    for step in range(20):
        right(model, fast)
        model.inner.bias.data.fill_(step)
    assert compiler.ran == [False] * 20
    assert len(compiler.asked) == 1
    right(model, fast)
    right(model, fast)
    assert not any(compiler.ran)


def test_equal_pieces_share_one_compilation_and_have_their_own_weights_built_in():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            for layer in self.layers:
                x = torch.softmax(torch.relu(layer(x)), -1)
            return x

    model, fast, compiler = made(model=Deep().eval(), splitting_ops=("torch.softmax",))
    for _ in range(2):
        right(model, fast)
    assert fast.stats().unique_pieces == 1
    assert compiler.ran == [False] * 3 + [True] * 3
    model.layers[1].weight.data.mul_(2)
    right(model, fast)
    assert compiler.ran[-3:] == [True, False, True]


def test_the_store_and_bundles_hold_no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    model, fast, _ = made(cache_dir=str(tmp_path))
    right(model, fast)
    fast.save(tmp_path / "model.pwb")
    again = Packs()
    model.inner.weight.data.mul_(2)
    _, loaded, compiler = made(again, model, cache_dir=str(tmp_path))
    right(model, loaded)
    right(model, loaded)
    assert (loaded.stats().compilations, loaded.stats().cache_hits) == (0, 1)
    assert compiler.ran == [False, True]
    last = Packs()
    bound = pw.load(tmp_path / "model.pwb", model, platform=place_of(last))
    right(model, bound)
    right(model, bound)
    assert last.ran == [False, True]


def test_behind_seal_changed_weights_are_read_and_nothing_is_built():
    model, fast, compiler = made()
    fast.warmup(torch.ones(2, 8))
    model.calls.zero_()
    fast.seal()
    right(model, fast)
    right(model, fast)
    assert compiler.ran[-2:] == [False, True]  # a target's first call is one behind seal(), too
    model.inner.weight.data.mul_(2)
    for _ in range(3):
        right(model, fast)
    assert compiler.ran[-3:] == [False] * 3
    assert len(compiler.asked) == 1


def test_a_compiler_that_cannot_build_them_in_is_named_once(caplog):
    model, fast, compiler = made(Packs(fails=True))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            right(model, fast)
    assert compiler.ran == [False] * 3
    said = [r.getMessage() for r in caplog.records if "cannot build weights" in r.getMessage()]
    assert said == [
        "compiler 'packs' cannot build weights into its code (RuntimeError: no room); they are "
        "read at every call"
    ]


def test_captured_sizes_read_their_weights():
    model, fast, _ = made(capture_sizes=(4,))
    fast.warmup(torch.ones(4, 8))
    model.calls.zero_()
    for _ in range(2):
        right(model, fast, 4)
        model.inner.weight.data.mul_(2)
    right(model, fast, 4)
    assert fast.stats().calls["replayed"] == 3
