"""FAULTS 6 to 12: what goes wrong where a graph is cut."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import NothingToSplit, UnknownSplittingOp
from piecewise_core.testing import SimulatedPlatform

LIBRARY = "faults_split"
SIZES = (0, 1, 2, 3, 7, 16)
ROWS = pw.Dim("rows", 0, 16)


@torch.library.custom_op(f"{LIBRARY}::attend", mutates_args=())
def attend(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return torch.tanh(x) * scale


@attend.register_fake
def _(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(f"{LIBRARY}::halves", mutates_args=())
def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * 0.5, x * 2.0


@halves.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op(f"{LIBRARY}::attend_into", mutates_args=("out",))
def attend_into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(torch.tanh(x))


@torch.library.custom_op(f"{LIBRARY}::take_rows", mutates_args=())
def take_rows(x: torch.Tensor, shape: list[int], rows: int) -> torch.Tensor:
    return x.reshape(shape)[:rows] * 1.0


@take_rows.register_fake
def _(x: torch.Tensor, shape: list[int], rows: int) -> torch.Tensor:
    return x.new_empty([rows, *shape[1:]])


class Block(nn.Module):
    """A layer on each side of an attention op."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8)
        self.after = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(attend(torch.relu(self.before(x))))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, *ops: str, **config):
    names = tuple(f"{LIBRARY}::{op}" if "." not in op else op for op in ops)
    return pw.compile(
        model,
        pw.Config(dynamic={"x": {0: ROWS}}, splitting_ops=names, compiler="eager", **config),
        "cpu",
    )


def agrees_with_eager(model, fast, width: int = 8) -> pw.Stats:
    for size in SIZES:
        x = torch.randn(size, width)
        expected = model(x.clone())
        torch.testing.assert_close(fast(x), expected, msg=lambda m, n=size: f"size {n}: {m}")
    return fast.stats()


def test_a_misspelt_splitting_op_is_refused_when_compiling_and_the_right_name_given():
    """FAULTS 6."""
    with pytest.raises(UnknownSplittingOp) as caught:
        pw.compile(
            Block(), pw.Config(splitting_ops=(f"{LIBRARY}.attend",), compiler="eager"), "cpu"
        )
    assert f"'{LIBRARY}.attend'" in str(caught.value)
    assert f"{LIBRARY}::attend" in str(caught.value)


def test_a_misspelt_splitting_op_is_refused_for_a_function_too():
    """FAULTS 6."""
    with pytest.raises(UnknownSplittingOp, match=rf"{LIBRARY}::attend\b"):
        pw.compile(
            lambda x: x, pw.Config(splitting_ops=(f"{LIBRARY}::atend",), compiler="eager"), "cpu"
        )


def test_an_overload_that_does_not_exist_is_refused_and_the_op_given():
    """FAULTS 6."""
    with pytest.raises(UnknownSplittingOp, match=rf"{LIBRARY}::attend\.nosuch"):
        compiled(Block(), f"{LIBRARY}::attend.nosuch")


def test_splitting_ops_that_match_nothing_are_refused_and_the_candidates_listed():
    """FAULTS 7."""
    fast = compiled(Block(), "halves")
    with pytest.raises(NothingToSplit) as caught:
        fast(torch.randn(3, 8))
    message = str(caught.value)
    assert f"{LIBRARY}::halves" in message
    assert f"{LIBRARY}::attend (x1)" in message
    assert "splitting_ops" in message


def test_a_list_of_splitting_ops_may_name_some_that_one_model_lacks(caplog):
    """FAULTS 7: a list serves many models; the rest is reported once, and explain() has it."""
    fast, model, x = compiled(Block(), "attend", "halves"), Block(), torch.randn(3, 8)
    model.load_state_dict(fast.state_dict())
    with caplog.at_level("INFO", logger="piecewise_core"):
        for rows in (3, 5):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(fast(x), model(x))
    told = [r.getMessage() for r in caplog.records if f"{LIBRARY}::halves" in r.getMessage()]
    assert len(told) == 1
    assert fast.explain().unmet == (f"{LIBRARY}::halves",)


def test_after_a_refused_first_call_the_next_call_says_the_same():
    """FAULTS 7."""
    fast = compiled(Block(), "halves")
    for _ in range(2):
        with pytest.raises(NothingToSplit):
            fast(torch.randn(3, 8))


class ManyOutputs(nn.Module):
    """Outputs of one splitting op, used in one piece and, later, in another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        small, large = halves(self.layer(x))
        attended = attend(small + 1)
        return attended + large, halves(attended)[1]


def test_items_of_a_multi_output_op_reach_the_pieces_that_use_them_without_a_cycle():
    """FAULTS 8."""
    model = ManyOutputs()
    stats = agrees_with_eager(model, compiled(model, "attend", "halves"))
    # layer | halves | small + 1 | attend | attended + large | halves
    assert (stats.pieces, stats.compilable_pieces) == (6, 3)


class IndexedAfterWrite(nn.Module):
    """Reads rows out of a buffer that a splitting op has just written."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, index):
        hidden = self.layer(x)
        out = torch.zeros_like(hidden)
        early = out[index]
        attend_into(hidden, out)
        return early, out[index], out[index] + early, out[0:1], out.view(-1)


def test_an_index_by_tensor_is_never_moved_across_a_write():
    """FAULTS 8 and 9."""
    model = IndexedAfterWrite()
    config = pw.Config(
        dynamic={"x": {0: ROWS}, "index": {0: pw.Dim("picked", 0, 8)}},
        splitting_ops=(f"{LIBRARY}::attend_into",),
        compiler="eager",
    )
    fast = pw.compile(model, config, "cpu")
    for size, picked in ((1, 0), (2, 1), (9, 3), (16, 8)):
        x, index = torch.randn(size, 8), torch.randint(0, size, (picked,))
        for got, expected in zip(fast(x, index), model(x, index), strict=True):
            torch.testing.assert_close(got, expected)
    assert fast.stats().pieces == 3 * fast.stats().graphs


class ViewsAroundWrite(nn.Module):
    """A view taken before a write is read after it."""

    def forward(self, x):
        out = torch.zeros_like(x)
        view = out[:, :4]
        before = view.sum()
        attend_into(x, out)
        return before, view.sum(), out.t().contiguous(), view


def test_a_view_taken_before_a_write_shows_the_write():
    """FAULTS 9."""
    model = ViewsAroundWrite()
    agrees_with_eager(model, compiled(model, "attend_into"))


class WritesItsInput(nn.Module):
    """Writes to an input on both sides of the cut."""

    def forward(self, x):
        x.add_(1)
        y = attend(x)
        x.mul_(y)
        return x.sum(), y


def test_writes_to_an_input_keep_their_order_across_a_cut_and_reach_the_caller():
    """FAULTS 9."""
    model = WritesItsInput()
    fast = compiled(model, "attend")
    for size in SIZES:
        mine = torch.randn(size, 8)
        theirs = mine.clone()
        got, expected = fast(mine), model(theirs)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(mine, theirs)


class SizesEverywhere(nn.Module):
    """Sizes cross cuts as keyword, in lists, in arithmetic, in a new tensor's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        rows, width = x.shape
        hidden = self.layer(x)
        taken = take_rows(hidden, shape=[rows, width], rows=x.size(0))
        again = take_rows(torch.cat([taken, hidden]), [rows * 2, width], rows + rows)
        return again.view(2, rows, x.size(1)).sum(0), again.new_zeros(size=(x.size()[0] + 1, 2))


def test_sizes_cross_pieces_in_any_argument_position():
    """FAULTS 10."""
    model = SizesEverywhere()
    stats = agrees_with_eager(model, compiled(model, "take_rows"))
    assert stats.graphs == 1


def divided(x):
    return attend(x * (x.shape[0] / 16)) / (x.shape[0] + 1)


def rooted(x):
    return attend(x + math.sqrt(x.shape[0])) * x.shape[0] ** 0.5 + math.log2(x.shape[0] + 1)


def rounded(x):
    n = x.shape[0]
    return attend(x * round(n / 3)) + math.ceil(n / 8) - math.floor(n / 5) + int(n / 2)


def bounded(x):
    n = x.shape[0]
    return attend(x * min(n, 7)) - max(n * 2, 9) + n // 3 + n % 4 + float(n)


@pytest.mark.parametrize("fn", [divided, rooted, rounded, bounded])
def test_arithmetic_with_sizes_is_repeated_on_both_sides_of_a_cut(fn):
    """FAULTS 10."""
    stats = agrees_with_eager(fn, compiled(fn, "attend"))
    assert (stats.graphs, stats.pieces) == (1, 3)


class EveryKindOfNode(nn.Module):
    """Tensor methods, attributes that are tensors, builtins and plain Python, on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("table", torch.arange(32.0).view(4, 8))
        self.plain = torch.full((8,), 0.25)

    def forward(self, x):
        hidden = self.layer(x).transpose(0, 1).contiguous().t()
        hidden = hidden + self.table[1] * self.plain - getattr(self, "plain").neg()  # noqa: B009
        attended = attend(hidden, scale=1 / math.sqrt(hidden.shape[-1]))
        parts = attended.chunk(2, dim=-1)
        widths = [max(part.shape[1], 1) for part in parts]
        mixed = torch.cat([parts[widths.index(4)], abs(parts[1])], -1)
        return {"out": mixed.float().masked_fill(mixed > 1, 0.0), "rows": len(mixed)}


def test_methods_attributes_and_builtins_work_in_pieces_and_between_them():
    """FAULTS 11."""
    model = EveryKindOfNode()
    fast = compiled(model, "attend")
    for size in SIZES:
        x = torch.randn(size, 8)
        got, expected = fast(x), model(x)
        torch.testing.assert_close(got["out"], expected["out"])
        assert got["rows"] == expected["rows"] == size


def test_a_tensor_method_can_be_the_splitting_op():
    """FAULTS 11."""

    def fn(x):
        return (x + 1).cumsum(0) * 2

    stats = agrees_with_eager(fn, compiled(fn, "torch.Tensor.cumsum"))
    assert (stats.pieces, stats.compilable_pieces) == (3, 2)


class InARow(nn.Module):
    """Splitting ops in a row, at the start and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        x = attend(attend(x))
        return attend(attend(self.layer(x), scale=2.0))


def test_splitting_ops_in_a_row_are_one_piece_and_no_empty_piece_is_compiled():
    """FAULTS 12."""
    model = InARow()
    stats = agrees_with_eager(model, compiled(model, "attend"))
    assert (stats.pieces, stats.compilable_pieces, stats.unique_pieces) == (3, 1, 1)
    assert stats.compilations == 1


def test_a_graph_of_nothing_but_splitting_ops_compiles_nothing_and_serves():
    """FAULTS 12."""

    def fn(x):
        small, _ = halves(attend(x))
        return small

    stats = agrees_with_eager(fn, compiled(fn, "attend", "halves"))
    assert (stats.pieces, stats.compilable_pieces, stats.compilations) == (1, 0, 0)
    assert sum(stats.calls.values()) == len(SIZES)


def test_items_and_sizes_between_two_splitting_ops_make_no_piece():
    """FAULTS 12."""

    def fn(x):
        small, large = halves(x)
        return take_rows(large, [x.shape[0], x.shape[1]], x.shape[0]), small

    stats = agrees_with_eager(fn, compiled(fn, "halves", "take_rows"))
    assert (stats.pieces, stats.compilable_pieces) == (1, 0)


def test_a_program_without_any_tensor_work_serves():
    """FAULTS 12."""

    def fn(x):
        return x, x.shape[0] * 2, "constant"

    fast = compiled(fn)
    for size in SIZES:
        x = torch.randn(size, 8)
        got = fast(x)
        assert got[0] is x
        assert got[1:] == (size * 2, "constant")
    assert fast.stats().compilations == 0


def _by_index(v):
    v[1:].add_(1)


def _by_half(v):
    v.split(4, 1)[1].mul_(2)


def _by_bits(v):
    v.view(torch.int32)[:, 0].zero_()


def _by_transposed(v):
    v.t()[0] = 1


@pytest.mark.parametrize("write", [_by_index, _by_half, _by_bits, _by_transposed])
@pytest.mark.parametrize("platform", ["cpu", SimulatedPlatform()], ids=["cpu", "simulated"])
def test_a_write_to_a_view_of_a_dropout_that_drops_nothing_is_one_to_its_input(write, platform):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.off = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.1))
            self.register_buffer("state", torch.ones(2, 8))

        def forward(self, x):
            write(self.off(self.state))
            write(self.off(x))
            return x * 2 + self.state.sum()

    ours, theirs = Model().eval(), Model().eval()
    config = pw.Config(
        dynamic={"x": {0: ROWS}}, splitting_ops=(), capture_sizes=(1, 4), compiler="eager"
    )
    fast = pw.compile(ours, config, platform=platform)
    with torch.inference_mode():
        for rows in (4, 1, 4, 3):
            x = torch.randn(rows, 8)
            own = x.clone()
            torch.testing.assert_close(fast(x), theirs(own))
            torch.testing.assert_close((x, ours.state), (own, theirs.state))


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_a_write_to_what_a_dropout_gives_that_drops_nothing_is_one_to_its_input(p, training):
    """Eager's dropout returns its input itself then."""

    def model(x):
        y = torch.nn.functional.dropout(x, p, training)
        attend_into(x + 1, y)
        return {"x": x}

    config = pw.Config(
        dynamic={"x": {0: ROWS}},
        splitting_ops=(f"{LIBRARY}::attend_into",),
        capture_sizes=(1, 4),
        capture_max=False,
        compiler="eager",
    )
    fast = pw.compile(model, config, platform=SimulatedPlatform())
    for rows in (4, 1, 4, 3):
        ours = torch.randn(rows, 8)
        theirs = ours.clone()
        torch.testing.assert_close(fast(ours)["x"], model(theirs)["x"])
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("aten::softmax", lambda x: torch.softmax(x, -1)),
        ("aten::softmax", lambda x: x.softmax(-1)),
        ("aten::softmax", lambda x: nn.functional.softmax(x, -1)),
        ("aten::layer_norm", lambda x: nn.functional.layer_norm(x, (8,))),
        ("aten::gelu", lambda x: nn.functional.gelu(x)),
        ("aten::add", lambda x: x + x),
        ("torch.ops.aten.softmax", lambda x: torch.ops.aten.softmax.int(x, -1)),
        ("aten::softmax.int", lambda x: torch.ops.aten.softmax.int(x, -1)),
    ],
)
def test_an_aten_name_is_the_operator_and_the_functions_and_methods_of_its_name(op, call):
    config = pw.Config(dynamic={0: {0: ROWS}}, splitting_ops=(op,), compiler="eager")
    fast = pw.compile(lambda x: call(x.sin()).cos(), config, "cpu")
    fast(torch.randn(3, 8))
    kinds = [piece.kind for piece in fast.explain().regions[0].pieces]
    assert kinds == ["compilable", "splitting", "compilable"]


def test_an_aten_name_with_an_overload_is_that_operator_alone():
    with pytest.raises(NothingToSplit, match=r"torch\.softmax"):
        compiled(lambda x: torch.softmax(x, -1), "aten::softmax.int")(torch.randn(3, 8))
