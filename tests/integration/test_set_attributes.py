"""Attributes of modules that a forward sets to what it computes: weights made by hooks, notes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn.utils import prune

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", min=0, max=8)


def config(**fields):
    return pw.Config(dynamic={"x": {0: ROWS}}, compiler="eager", **fields)


WAYS = {
    "plain": lambda model: pw.compile(model, config()),
    "captured": lambda model: pw.compile(
        model, config(capture_sizes=(4, 8)), platform=SimulatedPlatform()
    ),
    "padded": lambda model: pw.compile(
        model,
        config(capture_sizes=(4, 8), padding="capture_sizes"),
        platform=SimulatedPlatform(),
    ),
    "static": lambda model: pw.compile(model, config(capture_sizes=(4, 8)), platform="cpu"),
    "recorded": lambda model: pw.record(
        model, config(capture_sizes=(4, 8)), platform=SimulatedPlatform()
    ),
}


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.3)


def normed(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


class Model(torch.nn.Module):
    def __init__(self, make):
        super().__init__()
        self.first, self.second = (make(torch.nn.Linear(8, 8)) for _ in range(2))

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def pair(make):
    """A model and one like it that runs as written."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(make().eval())
    return models


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [pruned, normed, torch.nn.utils.spectral_norm])
def test_weights_that_hooks_make_are_made_at_every_call(make, way):
    model, like = pair(lambda: Model(make))
    served = WAYS[way](model)

    def agree():
        with torch.inference_mode():
            for rows in (3, 4, 8, 4, 0, 1, 8):
                x = torch.randn(rows, 8)
                torch.testing.assert_close(served(x), like(x))
                torch.testing.assert_close(model.first.weight, like.first.weight)

    agree()
    with torch.no_grad():
        for each in (model, like):
            for parameter in each.parameters():
                parameter.mul_(2.0)
    agree()
    model.load_state_dict({k: v * 0.5 for k, v in like.state_dict().items()})
    like.load_state_dict({k: v * 0.5 for k, v in like.state_dict().items()})
    agree()


@pytest.mark.parametrize("way", WAYS)
def test_pruning_goes_on_and_ends(way):
    model, like = pair(lambda: Model(pruned))
    served = WAYS[way](model)
    x = torch.randn(4, 8)
    for change in (
        lambda m: None,
        lambda m: prune.l1_unstructured(m.first, "weight", 0.5),
        lambda m: prune.remove(m.first, "weight"),
        lambda m: prune.remove(m.second, "weight"),
    ):
        with torch.no_grad():
            change(model), change(like)
        with torch.inference_mode():
            for _ in range(3):
                torch.testing.assert_close(served(x), like(x))


class Notes(torch.nn.Module):
    """Keeps what it computed for whoever wants to look at it; ``returned``: and returns it."""

    def __init__(self, returned):
        super().__init__()
        self.inner, self.returned = torch.nn.Linear(8, 8), returned

    def forward(self, x):
        y = self.inner(x)
        self.seen = y
        self.inner.rows = x * 2
        return y if self.returned else y.relu()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "recorded"])
@pytest.mark.parametrize("returned", [True, False])
def test_what_a_forward_keeps_is_that_of_the_last_call(returned, way):
    model, like = pair(lambda: Notes(returned))
    served = WAYS[way](model)
    with torch.inference_mode():
        for rows in (3, 4, 4, 8, 5, 0, 1, 4):
            x = torch.randn(rows, 8)
            result = served(x)
            torch.testing.assert_close(result, like(x))
            torch.testing.assert_close(model.seen, like.seen)
            torch.testing.assert_close(model.inner.rows, like.inner.rows)
            assert (result is model.seen) == returned
    assert served.stats().retraces == 0
    if way != "plain":
        assert served.stats().calls["replayed"]


def test_what_was_kept_lies_in_no_graph_s_memory():
    model = Notes(False).eval()
    served = WAYS["captured"](model)
    with torch.inference_mode():
        kept = []
        for _ in range(4):
            x = torch.randn(4, 8)
            served(x)
            kept.append((model.seen, model.inner(x)))
    for seen, wanted in kept:
        torch.testing.assert_close(seen, wanted)


class Reads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(8)

    def forward(self, x):
        y = x + self.last
        self.last = y.sum(0)
        return y


class Asks(torch.nn.Module):
    def forward(self, x):
        y = x + 1 if hasattr(self, "last") else x
        self.last = y * 2
        return y


class Keeps(torch.nn.Module):
    def forward(self, x):
        self.last = x
        return x + 1


class Views(torch.nn.Module):
    """Keeps a view of a buffer, which follows what is written to the buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(8))

    def forward(self, x):
        self.last = self.cache[:4]
        self.cache.add_(1)
        return x + 1


@pytest.mark.parametrize("way", WAYS)
def test_a_view_of_a_buffer_that_a_forward_keeps_follows_the_buffer_or_is_refused(way):
    model, like = Views().eval(), Views().eval()
    served = WAYS[way](model)
    with torch.inference_mode():
        for _ in range(3):
            x = torch.randn(4, 8)
            try:
                torch.testing.assert_close(served(x), like(x))
            except pw.errors.UnsupportedSideEffect:
                return
            model.cache.add_(1)
            like.cache.add_(1)
            torch.testing.assert_close(model.last, like.last)


class Twice(torch.nn.Module):
    def forward(self, x):
        self.first = self.last = x * 2
        return x + 1


@pytest.mark.parametrize("way", WAYS)
def test_attributes_that_are_one_tensor_stay_one(way):
    model = Twice().eval()
    served = WAYS[way](model)
    with torch.inference_mode():
        for n in (4, 4, 3, 8, 4):
            x = torch.randn(n, 8)
            served(x)
            torch.testing.assert_close(model.last, x * 2)
            assert model.first is model.last


@pytest.mark.parametrize("kind", [Reads, Asks, Keeps])
def test_what_a_forward_also_reads_is_refused_or_right(kind):
    model, like = kind().eval(), kind().eval()
    served = WAYS["captured"](model)
    with torch.inference_mode():
        for _ in range(4):
            x = torch.randn(4, 8)
            try:
                result = served(x)
            except pw.errors.UnsupportedSideEffect:
                return
            torch.testing.assert_close(result, like(x))
            torch.testing.assert_close(model.last, like.last)


def test_a_model_that_sets_attributes_is_saved_by_nobody(tmp_path):
    served = WAYS["plain"](Notes(True).eval())
    with torch.inference_mode():
        served(torch.randn(3, 8))
    with pytest.raises(pw.errors.StoreError, match="sets attributes"):
        served.save(tmp_path / "model.pwb")


def test_a_counter_beside_a_buffer_that_nothing_uses_is_counted():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("unused", torch.ones(3))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    model = Counting()
    config = pw.Config(dynamic={"x": {0: pw.Dim("n", 0, 8)}}, compiler="eager")
    fast = pw.compile(model, config, platform="cpu")
    with torch.inference_mode():
        for calls, size in enumerate((3, 1, 0, 4), 1):
            x = torch.randn(size, 2)
            torch.testing.assert_close(fast(x), x * calls)
    assert model.calls == 4
