"""What a recorded function leaves in Python is what its calls as written leave (FAULTS 54, 58)."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", min=1, max=8)}}


class Leaves(torch.nn.Module):
    """``held``: what its forwards leave."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.held = {}

    def forward(self, x):
        hidden = torch.softmax(self.inner(x), -1)
        return self.leave(x, hidden)


class Last(Leaves):
    def leave(self, x, hidden):
        self.held["last"] = hidden.sum(-1)
        return hidden * 2


class Attribute(Leaves):
    def leave(self, x, hidden):
        self.last = hidden
        self.held = {"last": self.last}
        return hidden * 2


class Written(Leaves):
    """In the place of an operator that returns: one that writes, and a list without an operator."""

    def leave(self, x, hidden):
        made = torch.zeros(len(x), 4)
        torch._foreach_add_([made], [hidden])
        self.held["last"] = [made]
        return hidden * 2


class Name(Leaves):
    def leave(self, x, hidden):
        scale = 3 if self.held.get("last") == "many" and len(x) > 100 else 2
        self.held["last"] = "few" if len(x) < 5 else "many"
        return hidden * scale


class Grows(Leaves):
    def leave(self, x, hidden):
        self.held.setdefault("all", []).append(hidden.mean())
        return hidden * 2


class Memo(Leaves):
    """Of what the first call gave."""

    def leave(self, x, hidden):
        if "scale" not in self.held:
            self.held["scale"] = hidden.amax() + x.amax()
        return hidden * self.held["scale"]


class BySize(Leaves):
    def leave(self, x, hidden):
        if len(x) not in self.held:
            self.held[len(x)] = hidden[0] * 2
        return hidden * self.held[len(x)]


class Through(Leaves):
    """Computed behind a cut, by way of memory that it writes to."""

    def leave(self, x, hidden):
        if "scale" not in self.held:
            into = torch.empty(4)
            torch.sum(hidden, 0, out=into)
            self.held["scale"] = (into.clone().view(2, 2) + 1).flatten()
        return hidden * self.held["scale"]


AT_EACH_CALL = (Last, Attribute, Written, Name, Grows)
ONCE = (Memo, BySize, Through)


def same(got, want):
    if isinstance(want, torch.Tensor):
        assert torch.equal(got, want)
    elif isinstance(want, (dict, list)):
        assert len(got) == len(want)
        for key in want if isinstance(want, dict) else range(len(want)):
            same(got[key], want[key])
    else:
        assert got == want


@pytest.mark.parametrize("padding", ["none", "capture_sizes"])
@pytest.mark.parametrize("platform", ["simulated", "cpu"])
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("kind", AT_EACH_CALL + ONCE)
def test_state_and_results_are_those_of_calls_as_written(kind, warm, platform, padding):
    model, plain = kind().eval(), kind().eval()
    plain.load_state_dict(model.state_dict())
    fast = pw.record(
        model,
        pw.Config(
            dynamic=ROWS,
            capture_sizes=(4, 8),
            splitting_ops=("torch.softmax",),
            padding=padding,
        ),
        platform=SimulatedPlatform() if platform == "simulated" else "cpu",
    )
    with torch.inference_mode():
        if warm:
            report = fast.warmup(torch.ones(4, 4), progress=False)
            if kind is Name:
                assert "sets 'last' of a dict, which may be something else" in report.dropped[0]
            else:
                assert "keeps its input, or what it computes from it, as " in report.dropped[0]
        for number, size in enumerate((4, 8, 3, 4, 8, 4, 8, 4, 8, 3)):
            x = torch.randn(size, 4) + number
            torch.testing.assert_close(fast(x), plain(x), rtol=1e-6, atol=1e-6)
            if number or not warm:  # what a size sets alone, a call of another one sets
                same(model.held, plain.held)
    if kind in ONCE:
        assert fast.stats().calls["replayed"] >= 4


def test_sizes_whose_calls_set_something_are_told_with_the_place():
    model = Last().eval()
    fast = pw.record(
        model, pw.Config(dynamic=ROWS, capture_sizes=(4,)), platform=SimulatedPlatform()
    )
    for _ in range(6):
        x = torch.randn(4, 4)
        with torch.inference_mode():
            assert torch.equal(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 0
    assert "each call sets 'last' of a dict, which a replay does not" in str(fast.explain())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parameters_of_a_scripted_part_are_replayed_and_their_change_is_noticed():
    class Scripted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.jit.script(torch.nn.Linear(3, 3))
            self.outer = torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.outer(self.inner(x))

    model = Scripted()
    config = pw.Config(dynamic={"x": {0: pw.Dim("n", 0, 8)}}, capture_sizes=(4,))
    fast = pw.record(model, config, platform=SimulatedPlatform())
    with torch.inference_mode():
        for change in (None, None, "in place", "replaced"):
            if change == "in place":
                model.inner.weight.mul_(2)
            elif change == "replaced":
                model.inner.weight = torch.nn.Parameter(torch.ones(3, 3))
            x = torch.randn(4, 3)
            torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 3
