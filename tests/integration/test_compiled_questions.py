"""What a compiled model asks of its tensors is asked of every call's own (FAULTS 54, 56)."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import TraceFailed
from piecewise_core.testing import SimulatedPlatform

ROWS = {0: pw.Dim("rows", min=1, max=16)}


def made(model, captured, names=("x",)):
    settings = {"capture_sizes": (4,), "capture_max": False} if captured else {}
    config = pw.Config(dynamic=dict.fromkeys(names, ROWS), compiler="eager", **settings)
    return pw.compile(model, config, platform=SimulatedPlatform() if captured else "cpu")


def check(fast, model, calls):
    for number, call in enumerate(calls):
        torch.manual_seed(number)
        args = call()
        torch.manual_seed(number)
        own = call()
        wanted = model(*own)
        torch.testing.assert_close(fast(*args), wanted, rtol=0, atol=0)
        torch.testing.assert_close(args, own, rtol=0, atol=0)


def tagged():
    x = torch.randn(4, 4)
    x.tag = 3
    return (x,)


CALLS = {
    "plain": lambda: (torch.randn(4, 4),),
    "needs gradients": lambda: (torch.randn(4, 4, requires_grad=True),),
    "a parameter": lambda: (torch.nn.Parameter(torch.randn(4, 4), requires_grad=False),),
    "tagged": tagged,
}


def written(x):
    y = x * 2
    y.reshape(-1).mul_(3)
    return y


def tag_of(x):
    try:
        return x * x.tag
    except AttributeError:
        return x + 1


ASKING = {
    "requires_grad": lambda x: x * 2 if x.requires_grad else x + 1,
    "isinstance": lambda x: x * 2 if isinstance(x, torch.nn.Parameter) else x + 1,
    "type": lambda x: x * 2 if type(x) is torch.Tensor else x + 1,
    "getattr": lambda x: x * getattr(x, "tag", 1),
    "hasattr": lambda x: x * 2 if hasattr(x, "tag") else x + 1,
    "an error": tag_of,
    "nothing": lambda x: x * 2 + 1,
}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", ASKING)
def test_what_a_model_asks_of_a_tensor_is_asked_of_that_of_the_call(name, captured, mode):
    model = ASKING[name]
    for first in (CALLS["plain"], CALLS["tagged"]):
        fast = made(model, captured)
        with mode():
            check(fast, model, [first, *CALLS.values(), *CALLS.values()])
        if name == "nothing":
            assert not fast.stats().calls["eager"]


@pytest.mark.parametrize("captured", [False, True])
def test_a_model_that_asks_for_the_grad_mode_gets_that_of_the_call(captured):
    def model(x):
        return x * 2 if torch.is_grad_enabled() else x + 1

    fast = made(model, captured)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            check(fast, model, [CALLS["plain"]] * 2)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_one_tensor_given_twice_is_another_call_where_the_model_asks(first, captured):
    def one():
        x = torch.randn(4, 4)
        return x, x

    def two():
        return torch.randn(4, 4), torch.randn(4, 4)

    turns = [one, two][:: -1 if first else 1]
    for model in (lambda x, y: x * 3 if x is y else x + y, lambda x, y: x * y + x):
        fast = made(model, captured, ("x", "y"))
        with torch.inference_mode():
            check(fast, model, turns * 3)
    assert not fast.stats().calls["eager"]  # the last one asks nothing


LAYOUTS = {
    "contiguous": lambda: (torch.randn(4, 4),),
    "transposed": lambda: (torch.randn(4, 4).t(),),
    "rows apart": lambda: (torch.randn(4, 8)[:, :4],),
}


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("first", ["contiguous", "transposed"])
@pytest.mark.parametrize(
    "model", [written, lambda x: x * 2 if x.contiguous() is x else x + 1], ids=["written", "itself"]
)
def test_a_copy_made_or_not_for_a_layout_is_made_as_the_call_has_it(model, first, captured):
    fast = made(model, captured)
    with torch.inference_mode():
        check(fast, model, [LAYOUTS[first], *LAYOUTS.values(), *LAYOUTS.values()])


def test_a_model_that_asks_where_a_tensor_lies_is_refused():
    fast = made(lambda x: x * x.untyped_storage().size(), captured=False)
    with torch.inference_mode(), pytest.raises(TraceFailed, match="untyped_storage"):
        fast(torch.randn(4, 4))


def test_a_model_that_asks_of_what_a_tensor_is_a_view_is_refused():
    """A copy is a view of nothing: ``reshape`` makes either, by the layout of its input."""
    fast = made(lambda x: x * 2 if x.reshape(-1)._base is None else x + 1, captured=False)
    with torch.inference_mode(), pytest.raises(TraceFailed, match="_base"):
        fast(torch.randn(4, 4))


def test_the_reason_names_the_argument(caplog):
    fast = made(ASKING["requires_grad"], captured=False)
    with torch.inference_mode():
        check(fast, ASKING["requires_grad"], [CALLS["plain"], *[CALLS["needs gradients"]] * 2])
    told = [r.getMessage() for r in caplog.records if "needs gradients" in r.getMessage()]
    assert len(told) == 1
    assert '"x"' in told[0]
