"""A recorded function has forms of calls as a compiled model has: each is captured by itself."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import InputMismatch, Sealed
from piecewise_core.testing import SimulatedPlatform

ROWS = {0: pw.Dim("rows", min=1, max=16)}
DEVICES = pytest.mark.parametrize("device", ["cpu", "simulated"])


def recorded(fn, device="simulated", **changes):
    settings = {"capture_sizes": (4, 8), "capture_max": False, **changes}
    config = pw.Config(dynamic={"x": ROWS, "mask": ROWS}, **settings)
    return pw.record(fn, config, platform=SimulatedPlatform() if device == "simulated" else device)


def masked(x, mask=None, *, scale=2, more=None):
    y = x * scale
    if mask is not None:
        y = y.masked_fill(mask, -1.0)
    return y if more is None else y + more["b"]


CALLS = {
    "as it is": lambda fn, x: fn(x),
    "by name": lambda fn, x: fn(x=x),
    "a mask": lambda fn, x: fn(x, x > 0),
    "a mask by name": lambda fn, x: fn(x, mask=x > 0),
    "a constant": lambda fn, x: fn(x, scale=3),
    "a dict": lambda fn, x: fn(x, more={"b": x[0]}),
    "a dtype": lambda fn, x: fn(x.double()),
}


@DEVICES
@pytest.mark.parametrize("padding", ["none", "capture_sizes"])
def test_forms_by_turns_are_each_replayed(padding, device):
    fast = recorded(masked, device, padding=padding)
    for turn in range(3):
        for call in CALLS.values():
            for rows in (4, 3, 8, 16):
                x = torch.randn(rows, 2)
                torch.testing.assert_close(call(fast, x), call(masked, x))
        if turn == 1:
            fast.release().restore()
    stats = fast.stats()
    assert stats.calls["replayed"] >= 3 * 2 * len(CALLS)


def test_a_write_of_one_form_is_none_of_another():
    def fn(x, mask=None):
        if mask is not None:
            x.masked_fill_(mask, 0.0)
        return x + 1

    fast = recorded(fn)
    for _ in range(3):
        for mask in (None, True):
            ours = torch.randn(4, 2)
            theirs = ours.clone()
            args = () if mask is None else (ours > 0,)
            torch.testing.assert_close(fast(ours, *args), fn(theirs, *args))
            torch.testing.assert_close(ours, theirs)
    assert fast.stats().calls["replayed"] == 6


def test_one_form_too_many_lists_those_there_are():
    fast, x = recorded(masked, max_forms=2), torch.randn(4, 2)
    fast(x)
    fast(x, x > 0)
    with pytest.raises(InputMismatch, match="2 forms of calls"):
        fast(x, more={"b": x})
    torch.testing.assert_close(fast(x), masked(x))


def test_a_slip_is_no_form():
    fast = recorded(masked)
    fast(torch.randn(4, 2))
    with pytest.raises(InputMismatch, match='"x"'):
        fast(torch.randn(4, 3))
    with pytest.raises(InputMismatch, match="nothing"):
        fast(torch.randn(4, 2), nothing=1)


def test_a_form_whose_first_call_fails_is_forgotten():
    fast, x = recorded(masked, max_forms=2), torch.randn(4, 2)
    fast(x)
    for _ in range(3):
        with pytest.raises(KeyError):
            fast(x, more={"another": x})
    torch.testing.assert_close(fast(x, x > 0), masked(x, x > 0))


def test_after_seal_there_are_the_forms_of_warmup_and_no_others(tmp_path):
    fast, x = recorded(masked), torch.randn(4, 2)
    assert fast.warmup(x, progress=False).captured == ((8,), (4,))
    assert fast.warmup(x, x > 0, progress=False).captured == ((8,), (4,))
    assert {path.parent.name for path in fast.dump_graphs(tmp_path)} == {"form-0", "form-1"}
    fast.seal()
    for call in (CALLS["as it is"], CALLS["a mask"]):
        torch.testing.assert_close(call(fast, x), call(masked, x))
    assert fast.stats().calls["replayed"] == 2
    with pytest.raises(Sealed, match="another form"):
        fast(x, more={"b": x})


@DEVICES
def test_hooks_and_a_changed_attribute_reach_every_form(device):
    class Scaled(torch.nn.Module):
        factor = 1.0

        def forward(self, x, mask=None):
            return masked(x, mask) * self.factor

    model = Scaled()
    fast = recorded(model, device)
    for factor in (1.0, 3.0):
        model.factor = factor
        for call in (CALLS["as it is"], CALLS["a mask"]) * 2:
            x = torch.randn(4, 2)
            torch.testing.assert_close(call(fast, x), call(model, x))
        model.register_forward_hook(lambda module, args, output: output + 1)
    assert fast.stats().calls["eager"] == 0
