"""What a recorded function asks of its tensors is asked of every call's own (FAULTS 56, 58)."""

from __future__ import annotations

import copy

import pytest
import torch

import piecewise_core as pw
from piecewise_core.capture.calls import tensors
from piecewise_core.testing import SimulatedPlatform

ROWS = {0: pw.Dim("rows", min=0, max=16)}
WEIGHTS = [torch.arange(16.0).view(4, 4), torch.ones(4, 4)]


def recorded(fn, *, device="simulated", names=("x",), **changes):
    settings = {"capture_sizes": (1, 4), "capture_max": False, **changes}
    config = pw.Config(dynamic=dict.fromkeys(names, ROWS), **settings)
    return pw.record(fn, config, platform=SimulatedPlatform() if device == "simulated" else device)


def check(fast, fn, calls):
    """Every call gives what ``fn`` gives, bit for bit, and leaves its arguments as ``fn`` does."""
    for number, call in enumerate(calls):
        torch.manual_seed(number)
        args = call()
        torch.manual_seed(number)
        own = call()
        wanted = fn(*own)
        torch.testing.assert_close(fast(*args), wanted, rtol=0, atol=0)
        torch.testing.assert_close(args, own, rtol=0, atol=0)


# Layout -------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda n=4: (torch.randn(n, 4),),
    "transposed": lambda n=4: (torch.randn(4, n).t(),),
    "rows apart": lambda n=4: (torch.randn(n, 8)[:, :4],),
    "further apart": lambda n=4: (torch.randn(n, 12)[:, 2:6],),
    "every second": lambda n=4: (torch.randn(2 * n, 4)[::2],),
    "begins later": lambda n=4: (torch.randn(n + 1, 4)[1:],),
}


def viewed(x):
    try:
        return x.view(-1).view(x.shape) * 2
    except RuntimeError:
        return x + 1


def written_to_what_may_be_a_copy(x):
    y = x * 2
    y.reshape(-1).mul_(3)
    return y


ASKING = {
    "is_contiguous": lambda x: x * 2 if x.is_contiguous() else x + 1,
    "of a view": lambda x: x * 2 if x[1:].is_contiguous() else x + 1,
    "of the transposed": lambda x: x * 2 if x.t().is_contiguous() else x + 1,
    "of what is computed": lambda x: x * 2 if (x * 2).is_contiguous() else x + 1,
    "stride": lambda x: x * x.stride(0),
    "unbound": lambda x: x * torch.Tensor.stride(x)[1],
    "gaps": lambda x: x * 2 if x.stride(0) == 12 else x + 1,
    "offset": lambda x: x * (1 + x.storage_offset()),
    "dim_order": lambda x: x * 2 if x.dim_order() == (0, 1) else x + 1,
    "identity": lambda x: x * 2 if x.contiguous() is x else x + 1,
    "address": lambda x: x * 2 if x.contiguous().data_ptr() == x.data_ptr() else x + 1,
    "storage": lambda x: x * x.untyped_storage().nbytes(),
    "as_strided": lambda x: x.as_strided((2, 2), (1, 1)) * 2,
    "as_strided of what is computed": lambda x: (x * 2).as_strided((16,), (1,)) + 1,
    "an error": viewed,
    "a write to what may be a copy": written_to_what_may_be_a_copy,
    "weights": lambda x: x @ WEIGHTS[x.is_contiguous()],
    "literals": lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0 + x.is_contiguous()]),
    "the answer returned": lambda x: (x * 2, x.is_contiguous(), x.stride()),
    "nothing": lambda x: x * 2 + 1,
}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("first", ["contiguous", "transposed"])
@pytest.mark.parametrize("name", ASKING)
def test_a_recorded_function_that_asks_for_the_layout_gets_that_of_the_call(name, first):
    fn = ASKING[name]
    fast = recorded(fn)
    check(fast, fn, [LAYOUTS[first]] * 2)
    check(fast, fn, [call for call in LAYOUTS.values() for _ in range(3)])
    check(fast, fn, LAYOUTS.values())


@pytest.mark.parametrize("name", ["transposed", "rows apart"])
def test_calls_that_lie_otherwise_are_replayed_where_nothing_asks(name):
    # No product: libraries add up in another order where a factor is transposed.
    def fn(x):
        return (x.contiguous() * 2 + 1) * x.reshape(4, 4).t()

    fast = recorded(fn)
    check(fast, fn, [LAYOUTS["contiguous"], *[LAYOUTS[name]] * 4])
    # The first of each kind runs as it is.
    assert (fast.stats().calls["replayed"], fast.stats().calls["eager"]) == (4, 1)
    assert fast.stats().restrided == 4


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", ["is_contiguous", "stride", "nothing"])
def test_padded_calls_are_asked_too_and_calls_counted(name, mode, device):
    fn = ASKING[name]
    fast = recorded(fn, device=device, padding="capture_sizes")
    turns = [
        lambda n=n, call=LAYOUTS[layout]: call(n)
        for n in (4, 3, 2, 1, 0, 3, 2)
        for layout in ("transposed", "rows apart", "contiguous", "transposed", "rows apart")
    ]
    with torch.inference_mode(False), mode():
        check(fast, fn, turns)
    assert sum(fast.stats().calls.values()) == len(turns)
    assert fast.stats().calls["replayed"]


@pytest.mark.parametrize("fn", [ASKING["stride"], ASKING["of the transposed"]])
def test_strides_of_dims_of_size_one_count_where_they_are_asked_for(fn):
    calls = [lambda: (torch.randn(1, 4),), lambda: (torch.randn(4, 1).t(),)] * 3
    check(recorded(fn), fn, calls)


def test_an_input_that_is_written_to_only_where_it_is_contiguous_is_written_to():
    def fn(x):
        return x.reshape(-1).mul_(2).view(4, 4) + 1

    fast = recorded(fn)
    check(fast, fn, [LAYOUTS["transposed"]] * 2 + [LAYOUTS["contiguous"]] * 3)


def test_beside_splitting_ops_the_layout_is_asked_for():
    def fn(x):
        return torch.softmax(x, 0) * (2 if x.is_contiguous() else 1)

    fast = recorded(fn, splitting_ops=("torch.softmax",))
    check(fast, fn, [*LAYOUTS.values()] * 2)


def test_memory_beyond_an_input_is_not_read_from_our_buffer():
    def fn(x):
        return x.as_strided((6, 4), (4, 1)) + 1

    fast = recorded(fn)
    check(fast, fn, [lambda: (torch.randn(8, 4)[:4],)] * 3)
    assert "beyond" in str(fast.explain())


def test_the_reason_says_where_an_address_is_asked_for():
    fast = recorded(ASKING["address"])
    fast(*LAYOUTS["contiguous"]())
    (why,) = fast.explain().dropped.values()
    assert "data_ptr" in why
    assert "test_recorded_questions.py" in why


def test_a_call_that_is_served_as_written_for_its_layout_is_told_of_once(caplog):
    fast = recorded(ASKING["is_contiguous"])
    for call in [LAYOUTS["contiguous"], *[LAYOUTS["transposed"], LAYOUTS["rows apart"]] * 2]:
        fast(*call())
    told = [r for r in caplog.records if "lie otherwise" in r.getMessage()]
    assert len(told) == 1
    assert "strides" in told[0].getMessage()


# Facts of tensors ---------------------------------------------------------------------


def tagged():
    x = torch.randn(4, 4)
    x.tag = 3
    return (x,)


FACTS = {
    "plain": lambda: (torch.randn(4, 4),),
    "needs gradients": lambda: (torch.randn(4, 4, requires_grad=True),),
    "a parameter": lambda: (torch.nn.Parameter(torch.randn(4, 4)),),
    "a parameter without": lambda: (torch.nn.Parameter(torch.randn(4, 4), requires_grad=False),),
    "tagged": tagged,
    "negative": lambda: (torch.randn(4, 4, dtype=torch.complex64).conj().imag,),
}
ASKING_FACTS = {
    "requires_grad": lambda x: x * 2 if x.requires_grad else x + 1,
    "is_leaf": lambda x: x * 2 if x.is_leaf else x + 1,
    "grad_fn": lambda x: x * 2 if x.grad_fn is None else x + 1,
    "is_inference": lambda x: x * 2 if x.is_inference() else x + 1,
    "a class": lambda x: x * 2 if isinstance(x, torch.nn.Parameter) else x + 1,
    "its type": lambda x: x * 2 if type(x) is torch.Tensor else x + 1,
    "an attribute": lambda x: x * getattr(x, "tag", 1),
    "is_neg": lambda x: x * 2 if x.is_neg() else x + 1,
    "inference mode": lambda x: x * 2 if torch.is_inference_mode_enabled() else x + 1,
    "grad mode": lambda x: x * 2 if torch.is_grad_enabled() else x + 1,
}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", ASKING_FACTS)
def test_what_a_recorded_function_asks_of_a_tensor_is_asked_of_that_of_the_call(name, mode):
    fn = ASKING_FACTS[name]
    for first in FACTS.values():
        fast = recorded(fn)
        with torch.inference_mode(False), mode():
            check(fast, fn, [first, *FACTS.values(), *FACTS.values(), first])


def test_a_call_with_gradients_enabled_that_needs_none_gets_the_answer_of_its_mode():
    fn = ASKING_FACTS["grad mode"]
    fast = recorded(fn)
    with torch.inference_mode(False):
        for mode in (torch.enable_grad, torch.no_grad, torch.enable_grad):
            with mode():
                check(fast, fn, [FACTS["plain"]] * 2)


def test_what_answers_alike_in_both_modes_is_replayed_in_both():
    """transformers' models ask for gradients; `no_grad` answers as inference mode does."""
    fn = ASKING_FACTS["grad mode"]
    fast = recorded(fn)
    for mode in (torch.no_grad, torch.inference_mode):
        with torch.inference_mode(False), mode():
            check(fast, fn, [FACTS["plain"]] * 3)
    assert fast.stats().calls["replayed"] == 6


def test_a_call_that_runs_as_written_for_its_mode_is_said_once(caplog):
    fn = ASKING_FACTS["inference mode"]
    fast = recorded(fn)
    with torch.inference_mode(False), torch.no_grad():
        check(fast, fn, [FACTS["plain"]] * 4)
    [said] = [r.message for r in caplog.records if "inference_mode" in r.message]
    assert "is_inference_mode_enabled" in said
    assert "run as written" in said


@pytest.mark.parametrize("first", ["apart", "one"])
def test_one_tensor_given_twice_is_another_call_than_two(first):
    def one():
        x = torch.randn(4, 4)
        return x, x

    turns = {"apart": lambda: (torch.randn(4, 4), torch.randn(4, 4)), "one": one}
    for fn in (lambda x, y: x * 3 if x is y else x + y, lambda x, y: x * y + x):
        fast = recorded(fn, names=("x", "y"))
        check(fast, fn, [turns[first], *turns.values(), *turns.values()])
    assert fast.stats().calls["replayed"] >= 4


def test_many_tensors_are_told_apart():
    def fn(*xs):
        return sum(xs) * (2 if xs[0] is xs[-1] else 1)

    config = pw.Config(capture_sizes=(), graph_mode="piecewise")
    fast = pw.record(fn, config, platform=SimulatedPlatform())
    xs = [torch.randn(4) for _ in range(7)]
    for each in (xs, [*xs[:-1], xs[0]], xs):
        torch.testing.assert_close(fast(*each), fn(*copy.copy(each)))


@pytest.mark.parametrize("first", ["contiguous", "rows apart"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_conversion_that_may_be_the_input_itself_hands_back_what_it_is_at_this_call(
    first, wrapped
):
    def fn(x):
        y = x.contiguous()
        return {"rows": [y, x.reshape(4, 4)]} if wrapped else y

    fast, checked = recorded(fn), 0
    for name in (first, "contiguous", "rows apart", "transposed", "rows apart", "contiguous"):
        (x,) = LAYOUTS[name]()
        result, want = fast(x), fn(x)
        for got, wanted in zip(tensors(result), tensors(want), strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
            assert (got is x) == (wanted is x)
            assert got.stride() == wanted.stride()
            checked += 1
    assert checked
    assert fast.stats().calls["replayed"]
