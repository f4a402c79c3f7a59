"""An operator that lies is noticed though nobody cuts at it (FAULTS 26, 43)."""

from __future__ import annotations

import pytest
import torch
from torch.library import custom_op

import piecewise_core as pw
from piecewise_core.errors import OpContractBroken, TraceFailed
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", min=0, max=16)}}


@custom_op("uncut::turned", mutates_args=())
def turned(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t() * 2


@custom_op("uncut::by_size", mutates_args=())
def by_size(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t() * 2 if x.shape[0] > 4 else x * 2


@custom_op("uncut::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t() * 1 if x.shape[0] % 2 else x * 1


@custom_op("uncut::several", mutates_args=())
def several(x: torch.Tensor) -> list[torch.Tensor]:
    return [x * 2, x.t().contiguous().t() * 3]


@custom_op("uncut::another_dtype", mutates_args=())
def another_dtype(x: torch.Tensor) -> torch.Tensor:
    return x.double()


@custom_op("uncut::another_shape", mutates_args=())
def another_shape(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x], 1)


@custom_op("uncut::one_more", mutates_args=())
def one_more(x: torch.Tensor) -> list[torch.Tensor]:
    return [x * 2, x * 3, x * 4]


@custom_op("uncut::honest", mutates_args=())
def honest(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@custom_op("uncut::raises", mutates_args=())
def raises(x: torch.Tensor) -> torch.Tensor:
    if not x.any():
        raise RuntimeError("nothing to do")
    return x * 2


@custom_op("uncut::at_twelve", mutates_args=())
def at_twelve(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t() * 2 if x.shape[0] == 12 else x * 2


@custom_op("uncut::by_value", mutates_args=())
def by_value(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t() * 2 if bool((x > 1).any()) else x * 2


for op in (turned, at_twelve, by_value, by_size, odd, another_dtype, another_shape, honest, raises):
    op.register_fake(lambda x: x.new_empty(x.shape))
for op in (several, one_more):
    op.register_fake(lambda x: [x.new_empty(x.shape), x.new_empty(x.shape)])

ops = torch.ops.uncut
STRIDES = {
    "turned": lambda x: ops.turned(x + 1).sin() + x,
    "turned and viewed": lambda x: ops.turned(x + 1).reshape(-1) * 2,
    "by size": lambda x: ops.by_size(x + 1).sin() + x,
    "odd": lambda x: ops.odd(x + 1).sin() + x,
    "several": lambda x: sum(ops.several(x + 1)).sin(),
    "returned": lambda x: (ops.turned(x + 1), x),
}
REFUSED = {
    "another_dtype": lambda x: ops.another_dtype(x + 1).sin(),
    "another_shape": lambda x: ops.another_shape(x + 1).sin(),
    "one_more": lambda x: sum(ops.one_more(x + 1)).sin(),
}


def made(model, captured, compiler="eager"):
    settings = {"capture_sizes": (1, 4), "capture_max": False} if captured else {}
    config = pw.Config(dynamic=ROWS, compiler=compiler, **settings)
    return pw.compile(model, config, platform=SimulatedPlatform() if captured else "cpu")


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def check(fast, model):
    for rows in (4, 5, 1, 4, 8, 0, 7, 5):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", STRIDES)
def test_an_uncut_op_that_lies_about_strides_is_cut_out_and_served(name, captured):
    check(made(STRIDES[name], captured), STRIDES[name])


@pytest.mark.parametrize(("name", "sizes"), [("at_twelve", (12,)), ("by_value", ())])
def test_it_is_tried_at_the_sizes_of_the_model_and_on_random_numbers(name, sizes):
    def model(x):
        return getattr(ops, name)(x + 1).sin() + x

    config = pw.Config(dynamic=ROWS, compiler="eager", capture_sizes=sizes, compile_sizes=(9,))
    fast = pw.compile(model, config, platform=SimulatedPlatform())
    check(fast, model)
    assert fast.stats().pieces == 3 * fast.stats().graphs


@pytest.mark.inductor
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", ["turned", "odd"])
def test_a_compiler_that_believes_fake_kernels_does_not_get_one_that_lies(name, captured):
    check(made(STRIDES[name], captured, "inductor"), STRIDES[name])


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_an_uncut_op_that_returns_something_else_is_refused_by_name(name, captured):
    with pytest.raises(OpContractBroken, match=name):
        made(REFUSED[name], captured)(torch.randn(4, 6))


@pytest.mark.parametrize("captured", [False, True])
def test_a_model_that_asks_for_the_layout_of_a_lie_is_refused(captured):
    def model(x):
        y = ops.turned(x + 1)
        return y * 2 if y.is_contiguous() else y + 1

    with pytest.raises(TraceFailed, match="uncut::turned"):
        made(model, captured)(torch.randn(4, 6))


@pytest.mark.parametrize("name", ["honest", "raises"])
def test_an_op_that_keeps_its_word_or_cannot_be_tried_stays_in_its_piece(name):
    def model(x):
        return getattr(ops, name)(x + 1).sin()

    fast = made(model, captured=False)
    x = torch.randn(4, 6)
    torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().pieces == fast.stats().compilable_pieces == 1


def test_through_torch_compile_it_is_cut_out_too():
    torch._dynamo.reset()
    model = STRIDES["turned"]
    fast = torch.compile(model, backend="piecewise", options={"compiler": "eager"}, dynamic=True)
    for rows in (4, 7):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(fast(x), model(x))


def test_it_is_told_once(caplog):
    check(made(STRIDES["turned"], captured=False), STRIDES["turned"])
    told = [r.getMessage() for r in caplog.records if "register_fake" in r.getMessage()]
    assert len(told) == 1
    assert "uncut::turned" in told[0]
    assert "strides" in told[0]
