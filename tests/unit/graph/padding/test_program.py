"""Which dims of a traced program may be padded, by a rule per operator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import piecewise_core as pw
from piecewise_core.frontend.session import Session
from piecewise_core.frontend.setup import prepare
from piecewise_core.graph.padding.program import paddable

B, S = pw.Dim("b", 1, 16), pw.Dim("s", 1, 16)


@torch.library.custom_op("pwpad::own", mutates_args=())
def own(x: torch.Tensor) -> torch.Tensor:
    return x * 2


own.register_fake(torch.empty_like)


@torch.library.custom_op("pwpad::alone", mutates_args=(), tags=(torch.Tag.pointwise,))
def alone(x: torch.Tensor) -> torch.Tensor:
    return x * 2


alone.register_fake(torch.empty_like)


def look(fn, dims=None, x=None):
    config = pw.Config(dynamic={"x": dims or {0: B}}, compiler="eager", cache_dir=None)
    session = Session(fn, prepare(config, "cpu", None))
    session.start(torch.randn(5, 6, 8) if x is None else x)
    sizes = tuple(5 + 2 * i for i in range(len(config.dims)))
    return paddable(session.forms[0].region_for(sizes).program.traced)


def write(x, part, value):
    x = x.clone()
    x[part] = value
    return x


def table(x, rows):
    kept = x.new_zeros(rows, *x.shape[1:])
    kept[: x.shape[0]] = x
    return x + kept.sum(0)


ALONE = {
    "pointwise": lambda x: torch.where(x > 0, x.sin(), x * 2).clamp(0, 1),
    "softmax over another dim": lambda x: x.softmax(-1) + x.log_softmax(1),
    "mean over other dims": lambda x: x - x.mean((1, 2), keepdim=True) + x.amax(-1)[..., None],
    "a product with weights": lambda x: F.linear(x, torch.ones(8, 8)) @ torch.ones(8, 3),
    "batched products": lambda x: x @ x.transpose(-1, -2),
    "dims flattened together": lambda x: F.gelu(x.flatten(0, 1)).reshape(x.shape),
    "heads": lambda x: x.unflatten(-1, (2, 4)).transpose(1, 2).contiguous(),
    "dims moved": lambda x: torch.movedim(x, 0, 2) * 2,
    "norms": lambda x: F.layer_norm(x, (8,)) + F.group_norm(x, 2) + F.rms_norm(x, (8,)),
    "running statistics": lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6)),
    "attention over the batch": lambda x: F.scaled_dot_product_attention(x, x, x),
    "rotated halves": lambda x: torch.cat([-x[..., 4:], x[..., :4]], -1),
    "places": lambda x: x + torch.arange(x.shape[0])[:, None, None],
    "rows of a table": lambda x: x + torch.ones(16, 6, 8)[: x.shape[0]],
    "new zeros": lambda x: x + x.new_zeros(x.shape[0], 1, 8),
    "conversions": lambda x: x.half().float(),
    "the first place of another dim": lambda x: x[:, 0] + x[:, -1],
    "the first row": lambda x: x[0] * 2,
    "an index of other dims": lambda x: x[:, torch.tensor([0, 2])],
    "rows by their places": lambda x: x[torch.arange(x.shape[0])[:, None], torch.arange(6)],
    "an embedding": lambda x: F.embedding(x[..., 0].long(), torch.ones(10, 4)),
    "a convolution": lambda x: F.max_pool1d(F.conv1d(x, torch.ones(4, 6, 3)), 2),
    "writes to other dims": lambda x: write(x, (slice(None), 0), 1.0),
    "an einsum": lambda x: torch.einsum("bij,jk->bik", x, torch.ones(8, 3)),
    "operators made of others": lambda x: F.normalize(x, dim=-1) + F.one_hot(x.argmax(-1), 8),
    "sorted by other dims": lambda x: x.sort(-1)[0] + x.topk(1, -1)[0],
    "a running sum": lambda x: x.cumsum(0),
    "dropout that is off": lambda x: F.dropout(x, 0.5, training=False),
    "an operator tagged element-wise": lambda x: alone(x),
    "a row repeated": lambda x: x.repeat_interleave(2, 1) + x.repeat(1, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_rows_that_are_alone_may_be_padded(name):
    found = look(ALONE[name])
    assert (found.dims, found.refused) == ({0}, {})


MIXED = {
    "a mean": (lambda x: x - x.mean(0), "aten::mean", "reduces it"),
    "all elements": (lambda x: x / x.amax(), "aten::amax", "reduces it"),
    "any": (lambda x: x * (x > 0).any(), "aten::any", "reduces it"),
    "a softmax": (lambda x: x.softmax(0), "aten::softmax", "softmax over it"),
    "the last row": (lambda x: x + x[-1], "aten::select", "from the end"),
    "flipped": (lambda x: x.flip(0), "aten::flip", "reorders it"),
    "rolled": (lambda x: x.roll(1, 0), "aten::roll", "reorders it"),
    "sorted": (lambda x: x.sort(0)[0], "aten::sort", "sorts it"),
    "rows behind rows": (lambda x: torch.cat([x, x]), "aten::cat", "rows behind"),
    "a size": (lambda x: x / x.shape[0], "aten::div", "computes with a size"),
    "a size divided": (lambda x: x + x.shape[0] // 8, "aten::add", "computes with a size"),
    "the number of elements": (lambda x: x * x.numel(), "aten::mul", "computes with a size"),
    "filled with a size": (
        lambda x: x + x.new_full((1,), x.shape[0]), "aten::new_full", "computes with a size"),
    "attention over it": (
        lambda x: F.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3),
        "aten::scaled_dot_product_attention", "attends over it"),
    "random numbers": (lambda x: x + torch.rand_like(x), "aten::rand_like", "random"),
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), "aten::dropout", "random"),
    "statistics of the batch": (
        lambda x: F.batch_norm(x, None, None, training=True), "aten::batch_norm", "normalises"),
    "a product of rows": (
        lambda x: x.flatten(1).T @ x.flatten(1), "aten::matmul", "sums over it"),
    "dims torn apart": (
        lambda x: x.reshape(6, -1, 8), "aten::reshape", "another place"),
    "neighbours": (
        lambda x: F.conv1d(x.permute(1, 2, 0), torch.ones(3, 8, 3), padding=1),
        "aten::conv1d", "neighbours"),
    "picked by value": (lambda x: x[x[:, 0, 0].long()], "aten::index", "by index"),
    "rows by places behind": (
        lambda x: x[torch.arange(x.shape[0]) - 1], "aten::index", "by index"),
    "rows by places further on": (
        lambda x: torch.cat([x.new_zeros(2, 6, 8), x])[torch.arange(x.shape[0]) + 3],
        "aten::index", "by index"),
    "counted": (
        lambda x: x + torch.zeros(8).scatter_add(0, x[:, 0, 0].long(), x[:, 0, 0]),
        "aten::scatter_add", "by index"),
    "every other row": (lambda x: x[::2] * 2, "aten::slice", "every other row"),
    "memory that is read whole": (lambda x: table(x, 16), "aten::copy_", "read whole"),
    "an unknown operator": (lambda x: own(x), "pwpad::own", "is unknown"),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_see_each_other_may_not_be_padded(name):
    fn, op, why = MIXED[name]
    found = look(fn)
    assert found.dims == frozenset()
    reason = found.refused[0]
    assert (reason.op, why in reason.why) == (op, True), str(reason)
    assert __file__ in reason.place


IDS, TABLE = torch.arange(5), torch.randn(10, 3)

IN_BOUNDS = {
    "themselves": lambda x: F.embedding(x, TABLE) + TABLE[x] + TABLE.index_select(0, x),
    "counted from the end": lambda x: TABLE[x - 1],
    "clamped": lambda x: F.embedding((x - 1).clamp(min=0), TABLE),
    "a remainder": lambda x: F.embedding((x - 7) % 10, TABLE),
    "places of the largest": lambda x: TABLE[(x[:, None] * TABLE[:, 0]).argmax(-1)],
    "places of rows": lambda x: F.embedding(torch.arange(x.shape[0]) % 8, TABLE) * x[:, None],
    "a running count": lambda x: F.embedding(x[:, None].ne(1).expand(-1, 4).cumsum(1) + 1, TABLE),
    "classes": lambda x: F.one_hot(x, 10) + torch.zeros(x.shape[0], 10).scatter(1, x[:, None], 1.0),
}

OUT_OF_BOUNDS = {
    "embedding": lambda x: F.embedding(x - 1, TABLE),
    "index": lambda x: TABLE[x + 10],
    "index_select": lambda x: TABLE.index_select(0, x - 1),
    "gather": lambda x: TABLE.t().expand(x.shape[0], 3, 10).gather(2, x[:, None, None] - 1),
    "scatter": lambda x: torch.zeros(x.shape[0], 10).scatter(1, x[:, None] - 1, 1.0),
    "one_hot": lambda x: F.one_hot(x - 1, 10),
    "a number that was written": lambda x: (y := x.clone(), y[:1].sub_(1), F.embedding(y, TABLE))[
        2
    ],
    "a weight's number": lambda x: F.embedding(x + TABLE[0, 0].long(), TABLE),
}


@pytest.mark.parametrize("name", IN_BOUNDS)
def test_an_index_that_padding_keeps_in_bounds_is_padded(name):
    assert look(IN_BOUNDS[name], x=IDS).dims == {0}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_an_index_that_padding_may_take_out_of_bounds_is_not(name):
    found = look(OUT_OF_BOUNDS[name], x=IDS)
    assert "out of bounds" in found.refused[0].why


def test_an_index_counted_along_another_dim_is_judged_at_its_largest_size():
    ids = torch.zeros(5, 7, dtype=torch.long)

    def fn(x):
        return F.embedding(x.ne(1).cumsum(1), torch.ones(129, 2))

    assert look(fn, {0: B, 1: pw.Dim("s", 1, 128)}, ids).dims == {0}
    assert look(fn, {0: B, 1: pw.Dim("s", 1, 129)}, ids).dims == frozenset()


def test_dims_are_judged_one_by_one_and_together():
    dims = {0: B, 1: S}
    both = look(lambda x: F.linear(x.flatten(0, 1), torch.ones(8, 8)).reshape(x.shape), dims)
    assert both.dims == {0, 1}
    attention = look(lambda x: F.scaled_dot_product_attention(x, x, x), dims)
    assert attention.dims == {0}
    assert "attends over it" in attention.refused[1].why
    swapped = look(lambda x: x.flatten(0, 1).view(x.shape[1], x.shape[0], 8) * 2, dims)
    assert swapped.dims == frozenset()


def test_rows_that_a_small_call_lacks_are_not_taken():
    # Without rows x[:1] is another program, so calls without rows are never padded to one.
    assert look(lambda x: x[:1] * 2, {0: pw.Dim("b", 0, 16)}).dims == {0}
    assert look(lambda x: x[:4] * 2, {0: pw.Dim("b", 4, 16)}).dims == {0}


def test_floats_that_become_indices_are_told():
    assert look(lambda x: F.embedding(x[..., 0].long(), torch.ones(10, 4))).rounds
    assert not look(lambda x: x.double() * 2).rounds


def test_one_size_has_nothing_to_pad():
    assert look(lambda x: x.sum(0), {0: pw.Dim("b", 5, 5)}).dims == frozenset()
