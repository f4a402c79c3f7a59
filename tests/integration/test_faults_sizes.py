"""FAULTS 13 to 17: sizes that tracing could freeze, branches on size, sizes out of bounds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import ConfigError, InputMismatch, OutOfRange, SizeBranch, TraceFailed

ROWS = pw.Dim("rows", 0, 64)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, dynamic=None, **config):
    # Positional index 0: the first argument, whatever its name.
    dynamic = {0: {0: ROWS}} if dynamic is None else dynamic
    return pw.compile(model, pw.Config(dynamic=dynamic, compiler="eager", **config), "cpu")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8))


# 13: sizes 0 and 1 -----------------------------------------------------------------------


def pooled(x):
    return x.mean(0), x.softmax(0), x.reshape(-1), torch.cat([x, x]).view(2, -1, x.shape[1]).sum(0)


def broadcast(x):
    # With one row, x - x[:1] and x * ones(rows, 1) could take a broadcast path.
    return x - x[:1] if x.shape[1] else x, x * torch.ones(x.shape[0], 1), x @ x.t()


def squeezed(x):
    return (x.squeeze() * 2).sum(-1)


def reshaped(x):
    return x.reshape(x.shape[0], 2, 4).transpose(1, 2).flatten(1).expand(3, -1, -1)


@pytest.mark.parametrize("fn", [pooled, broadcast, squeezed, reshaped])
@pytest.mark.parametrize("first", [0, 1, 2, 9])
def test_sizes_0_and_1_are_ordinary_whichever_size_comes_first(fn, first):
    """FAULTS 13."""
    fast = compiled(fn)
    for size in (first, 0, 1, 2, 3, 64, 1, 0):
        x = torch.randn(size, 8)
        torch.testing.assert_close(
            fast(x), fn(x), equal_nan=True, msg=lambda m, n=size: f"size {n}: {m}"
        )


def without_rows(x):
    return x.sum() if x.shape[0] > 0 else x.sum() - 7


def without_elements(x):
    return x.sum() + 5 * (x.numel() == 0)


def without_columns_or_rows(x):
    if x.shape[1] == 0 and x.shape[0] != 0:
        return x.sum() + 1
    return x.sum() if x.shape[0] else x.sum() - 1


@pytest.mark.parametrize("fn", [without_rows, without_elements, without_columns_or_rows])
@pytest.mark.parametrize("first", [(3, 4), (0, 4), (3, 0), (0, 0)])
def test_a_branch_on_size_0_is_followed_whichever_size_comes_first(fn, first):
    """FAULTS 13 and 14: 0 and 1 need no endpoint."""
    dynamic = {0: {0: pw.Dim("rows", 0, 16), 1: pw.Dim("columns", 0, 16)}}
    fast = compiled(fn, dynamic)
    for shape in (first, (3, 4), (0, 4), (3, 0), (0, 0), (1, 1), (16, 16)):
        x = torch.ones(shape)
        torch.testing.assert_close(fast(x), fn(x), msg=lambda m, s=shape: f"shape {s}: {m}")
    fast.warmup(progress=False)
    assert fast.seal()(torch.ones(0, 0)) == fn(torch.ones(0, 0))


@pytest.mark.parametrize("first", [5, 0])
def test_what_is_negative_at_size_0_keeps_the_sign_that_python_gives_it(first):
    def fn(x):
        return x - (x.size(0) - 1) % 3 + (x.size(0) - 2) // 2

    fast = compiled(fn)
    for rows in (first, 0, 1, 2, 7):
        x = torch.randn(rows, 4)
        assert torch.equal(fast(x), fn(x))


def test_size_0_is_one_region_with_the_rest_where_the_model_does_the_same():
    """FAULTS 13."""
    fast = compiled(pooled)
    fast.warmup(torch.randn(3, 8), progress=False)
    assert fast.stats().graphs == 1


def test_a_model_that_fails_without_rows_serves_all_other_sizes():
    """FAULTS 13: eager fails at size 0 too."""

    def fn(x):
        return x.reshape(x.shape[0], -1)

    fast = compiled(fn)
    for size in (3, 1, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), fn(x))
    with pytest.raises(TraceFailed):
        fast(torch.randn(0, 8))
    assert fast(torch.randn(2, 8)).shape == (2, 8)


@pytest.mark.parametrize("warm", [0, 1, 5])
def test_warming_up_with_any_example_freezes_no_size(warm):
    """FAULTS 13."""
    model = mlp()
    fast = compiled(model, compile_ranges_endpoints=(1, 8), compile_sizes=(0, 1, 4))
    fast.warmup(torch.randn(warm, 8), progress=False)
    compilations = fast.stats().compilations
    for size in (0, 1, 2, 4, 8, 9, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().compilations == compilations


@pytest.mark.inductor
def test_sizes_0_and_1_are_ordinary_to_inductor_too():
    """FAULTS 13."""
    model = mlp()
    config = pw.Config(dynamic={"input": {0: ROWS}}, compiler="inductor")
    fast = pw.compile(model, config, "cpu")
    for size in (5, 0, 1, 2, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x), msg=lambda m, n=size: f"size {n}: {m}")
    assert fast.stats().compilations == 1


# 14: branches on size --------------------------------------------------------------------


class Branches(nn.Module):
    """Takes another path from 10 rows on."""

    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Linear(8, 8)
        self.many = nn.Linear(8, 8)

    def forward(self, x):
        if x.shape[0] >= 10:
            return self.many(x)
        return self.few(x)


BRANCH_LINE = Branches.forward.__code__.co_firstlineno + 1


def test_a_branch_on_size_is_refused_with_its_guard_its_line_and_the_endpoint_that_helps():
    """FAULTS 14."""
    for first in (3, 30):
        with pytest.raises(SizeBranch) as caught:
            compiled(Branches(), regions="declared")(torch.randn(first, 8))
        message = str(caught.value)
        assert 'dim "rows"' in message
        assert "if x.shape[0] >= 10" in message
        assert f"({__file__}:{BRANCH_LINE} in " in message
        assert "list the endpoint 9 in compile_ranges_endpoints (now [])" in message


def test_the_endpoint_that_the_refusal_names_makes_the_branch_legal():
    """FAULTS 14."""
    model = Branches()
    fast = compiled(model, compile_ranges_endpoints=(9,))
    for size in (3, 30, 9, 10, 0, 1, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().graphs == 2


def test_a_branch_beyond_the_bounds_costs_nothing():
    """FAULTS 14."""
    model = Branches()
    fast = compiled(model, {"x": {0: pw.Dim("rows", 0, 9)}})
    fast.warmup(torch.randn(3, 8), progress=False)
    assert fast.stats().graphs == 1


def test_a_branch_on_whether_two_dims_are_equal_is_refused_naming_both():
    """FAULTS 14."""

    def fn(x, y):
        return x.sum() if x.shape[0] == y.shape[0] else y.sum()

    dynamic = {"x": {0: pw.Dim("queries", 1, 64)}, "y": {0: pw.Dim("keys", 1, 64)}}
    with pytest.raises(SizeBranch, match=r"keys, queries.*test_faults_sizes\.py:\d+"):
        compiled(fn, dynamic)(torch.randn(3, 2), torch.randn(4, 2))


def test_a_branch_on_divisibility_is_refused_naming_the_dim():
    """FAULTS 14."""

    def fn(x):
        return x.view(2, -1) if x.shape[0] % 2 == 0 else x

    with pytest.raises(SizeBranch, match=r"rows.*test_faults_sizes\.py:\d+"):
        compiled(fn, regions="declared")(torch.randn(4, 8))


def test_a_size_that_the_model_fixes_is_refused_naming_the_dim_and_the_place():
    """FAULTS 14."""

    def fn(x):
        return x + torch.ones(7, 8)

    with pytest.raises(TraceFailed) as caught:
        compiled(fn, {"x": {0: pw.Dim("rows", 2, 64)}})(torch.randn(7, 8))
    assert 'Traced with dim "rows" at 5; every size in bounds must work' in str(caught.value)


def test_dims_that_must_be_equal_and_have_two_names_are_refused_saying_so():
    """FAULTS 15."""
    fast = compiled(lambda x, y: x + y, {0: {0: pw.Dim("a", 1, 9)}, 1: {0: pw.Dim("b", 1, 9)}})
    with pytest.raises(
        TraceFailed, match=r'"a" at 5, "b" at 7;.*\. Dims that are always equal need'
    ):
        fast(torch.randn(3, 8), torch.randn(3, 8))


def test_a_path_for_one_size_is_legal_once_both_endpoints_that_the_refusals_name_are_listed():
    """FAULTS 14."""

    def fn(x):
        return x * 2 if x.shape[0] == 7 else x + 1

    declared = {"regions": "declared"}
    with pytest.raises(SizeBranch, match=r"list the endpoints 6, 7 .*endpoints 6, 7$"):
        compiled(fn, **declared)(torch.randn(9, 8))
    fast = compiled(fn, compile_ranges_endpoints=(6,), **declared)
    with pytest.raises(SizeBranch, match="list the endpoint 7 "):
        fast.warmup(torch.randn(9, 8), progress=False)
    fast = compiled(fn, compile_ranges_endpoints=(6, 7), **declared)
    for size in (9, 7, 6, 8, 0):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), fn(x))
    assert fast.stats().graphs == 3


# 15: independent dims --------------------------------------------------------------------


def scores(x, y):
    return (x @ y.t()).softmax(-1)


def test_two_dims_that_are_equal_at_the_first_call_stay_independent():
    """FAULTS 15."""
    dynamic = {"x": {0: pw.Dim("queries", 0, 64)}, "y": {0: pw.Dim("keys", 0, 64)}}
    fast = compiled(scores, dynamic)
    for queries, keys in ((5, 5), (5, 6), (1, 5), (5, 1), (1, 1), (0, 3), (64, 2)):
        x, y = torch.randn(queries, 8), torch.randn(keys, 8)
        torch.testing.assert_close(fast(x, y), scores(x, y))
    assert fast.stats().graphs == 1


def test_both_dims_of_one_tensor_stay_independent():
    """FAULTS 15."""

    def fn(x):
        return x.t().reshape(-1, x.shape[0]).cumsum(0)

    dynamic = {"x": {0: pw.Dim("batch", 0, 32), 1: pw.Dim("length", 0, 32)}}
    fast = compiled(fn, dynamic)
    for shape in ((4, 4), (4, 5), (1, 4), (4, 1), (1, 1), (0, 4), (32, 7)):
        x = torch.randn(shape)
        if 0 not in shape:
            torch.testing.assert_close(fast(x), fn(x))


def test_one_name_is_one_size_and_a_call_that_differs_is_refused_naming_both_places():
    """FAULTS 15."""

    def fn(x, y):
        return x * y

    fast = compiled(fn, {"x": {0: ROWS}, "y": {0: ROWS}})
    fast(torch.randn(3, 8), torch.randn(3, 8))
    with pytest.raises(InputMismatch) as caught:
        fast(torch.randn(3, 8), torch.randn(4, 8))
    message = str(caught.value)
    assert 'dim "rows" has size 3 in x dim 0 and 4 in y dim 0' in message
    assert "Config.dynamic" in message


# 16: out of range ------------------------------------------------------------------------


BOUNDED = {"input": {0: pw.Dim("rows", 2, 16)}}


@pytest.mark.parametrize("size", [0, 1, 17, 100])
def test_a_size_out_of_bounds_is_refused_naming_bounds_and_setting(size):
    """FAULTS 16."""
    model = mlp()
    fast = compiled(model, BOUNDED)
    x = torch.randn(4, 8)
    torch.testing.assert_close(fast(x), model(x))
    with pytest.raises(OutOfRange) as caught:
        fast(torch.randn(size, 8))
    message = str(caught.value)
    assert f'size {size} of dim "rows" is outside [2, 16]' in message
    assert "out_of_range" in message
    torch.testing.assert_close(fast(x), model(x))


def test_a_first_call_out_of_bounds_is_refused_and_a_good_one_then_serves():
    """FAULTS 16."""
    fast = compiled(mlp(), BOUNDED)
    with pytest.raises(OutOfRange, match=r"outside \[2, 16\]"):
        fast(torch.randn(20, 8))
    assert fast(torch.randn(3, 8)).shape == (3, 8)
    assert sum(fast.stats().calls.values()) == 1


def test_out_of_range_general_serves_every_size_above_with_one_graph_without_upper_bound():
    """FAULTS 16."""
    model = mlp()
    fast = compiled(model, BOUNDED, out_of_range="general")
    for size in (4, 17, 100, 5000):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))
    stats = fast.stats()
    assert stats.graphs == 1
    assert stats.calls["general"] >= 3
    assert sum(stats.calls.values()) == 4
    with pytest.raises(OutOfRange, match=r"size 1 .*outside \[2, 16\]"):
        fast(torch.randn(1, 8))


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("first", [1, 9])
def test_out_of_range_general_keeps_to_the_branch_that_each_size_takes(top, first):
    """FAULTS 16: the sizes above are a region of their own, which serves none in bounds."""

    def branches(x):
        return x + 1 if x.shape[0] <= top else x * 2

    fast = compiled(
        branches,
        {0: {0: pw.Dim("rows", 1, top)}},
        out_of_range="general",
        compile_ranges_endpoints=(top,),
    )
    for size in (first, 1, top, top + 1, 9, 1):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), branches(x))
    outside = [region for region in fast.explain().regions if "from" in region.sizes]
    assert [region.targets for region in outside] == [()]
    report = fast.warmup(progress=False)
    assert report.targets == 1


def test_out_of_range_eager_runs_the_model_as_written():
    """FAULTS 16."""
    model = mlp()
    fast = compiled(model, BOUNDED, out_of_range="eager")
    for size in (4, 0, 1, 17, 100):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))
    stats = fast.stats()
    assert stats.calls["eager"] == 4
    assert sum(stats.calls.values()) == 5
    assert stats.graphs == 1


def test_out_of_range_eager_takes_the_branch_that_the_size_asks_for():
    """FAULTS 16."""
    model = Branches()
    fast = compiled(model, {"x": {0: pw.Dim("rows", 0, 9)}}, out_of_range="eager")
    for size in (3, 10, 40):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))


# 17: sizes that make no sense -------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("capture_sizes", (128,), "128 is above the max of dim 'rows', whose bounds are [1, 64]"),
        ("compile_ranges_endpoints", (128,), "128 is above the max of dim 'rows'"),
        ("compile_sizes", (0,), "0 is below the min of dim 'rows'"),
        ("compile_sizes", (-1,), "-1"),
        ("compile_sizes", (True,), "True"),
        ("compile_sizes", (4.0,), "4.0"),
        ("capture_sizes", ("4",), "'4'"),
        ("compile_sizes", ((4, 4),), "(4, 4) is not one size for each of 1 dim"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused_naming_setting_and_value(setting, value, said):
    """FAULTS 17."""
    dynamic = {"input": {0: pw.Dim("rows", 1, 64)}}
    with pytest.raises(ConfigError) as caught:
        compiled(mlp(), dynamic, **{setting: value})
    assert f"Config.{setting}" in str(caught.value)
    assert said in str(caught.value)


def test_unsorted_and_double_sizes_are_put_right_with_one_warning_and_warmed_once():
    """FAULTS 17."""
    with pytest.warns(pw.ConfigWarning) as warned:
        config = pw.Config(
            dynamic={"input": {0: pw.Dim("rows", 1, 64)}},
            compile_sizes=(8, 4, 8),
            compile_ranges_endpoints=(16, 2, 16),
            compiler="eager",
        )
    assert len(warned) == 1
    assert "compile_sizes" in str(warned[0].message)
    fast = pw.compile(mlp(), config, "cpu")
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.targets == 2 + 3


def test_a_size_given_by_an_environment_variable_is_checked_the_same(monkeypatch):
    """FAULTS 17."""
    monkeypatch.setenv("PIECEWISE_COMPILE_SIZES", "8,128")
    with pytest.raises(ConfigError, match=r"PIECEWISE_COMPILE_SIZES.*128"):
        compiled(mlp(), {"input": {0: pw.Dim("rows", 1, 64)}})


# 63: arguments forgotten in dynamic ---------------------------------------------------------


def masked(x, mask):
    return x.masked_fill(mask[:, None] == 0, -1.0)


def nested(x, more):
    return x * more["scales"][0]


@pytest.mark.parametrize(
    ("model", "given", "named"),
    [
        (masked, lambda n: torch.ones(n), '{"mask": {0: Dim("rows", ...)}}'),
        (lambda x, y: x + y, lambda n: torch.ones(n, 8), '{"y": {0: Dim("rows", ...)}}'),
        (lambda x, y: torch.cat([x, y.t()], 1), lambda n: torch.ones(2, n), '{"y": {1: Dim('),
        (nested, lambda n: {"scales": [torch.ones(n, 1)]}, '{"more.scales.0": {0: Dim('),
    ],
    ids=["mask", "sum", "second dim", "nested"],
)
@pytest.mark.parametrize("regions", ["auto", "declared"])
def test_an_argument_forgotten_in_dynamic_is_named_with_what_to_add(model, given, named, regions):
    """FAULTS 63."""
    dynamic = {"x": {0: pw.Dim("rows", min=1, max=16)}}
    fast = pw.compile(model, pw.Config(dynamic=dynamic, compiler="eager", regions=regions), "cpu")
    with torch.no_grad(), pytest.raises(pw.errors.PiecewiseError) as refused:
        fast(torch.ones(4, 8), given(4))
    assert f"Config.dynamic? argument {named.partition(':')[0][1:]} has size 4" in str(
        refused.value
    )
    assert named in str(refused.value)


def refusal(fast, sizes):
    """What calls with x and one more argument of a size of ``sizes`` each are refused with."""
    for n in sizes:
        try:
            with torch.no_grad():
                fast(torch.ones(n, 8), torch.ones(n))
        except pw.errors.PiecewiseError as error:
            return str(error)
    return ""


def test_a_forgotten_argument_is_named_at_the_first_call_of_another_size():
    """FAULTS 63: 5 is the size that tracing takes, so that region is served."""
    dynamic = {"x": {0: pw.Dim("rows", min=1, max=16)}}
    for regions in ("auto", "declared"):
        config = pw.Config(dynamic=dynamic, compiler="eager", regions=regions)
        fast = pw.compile(masked, config, "cpu")
        assert '"mask": {0: Dim(' in refusal(fast, [5, 8])


def test_sizes_that_have_nothing_to_do_with_a_failure_are_not_suspected():
    """FAULTS 63."""

    def model(x, unused):
        return x.view(-1, 7)

    dynamic = {"x": {0: pw.Dim("rows", min=1, max=16)}}
    fast = pw.compile(model, pw.Config(dynamic=dynamic, compiler="eager"), "cpu")
    said = refusal(fast, [6])
    assert "cannot be traced" in said
    assert "Forgotten" not in said
