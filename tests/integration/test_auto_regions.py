"""Regions as sets of sizes: every size in bounds is served as the model does it, or refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import piecewise_core as pw
from piecewise_core.errors import ConfigError, OutOfRange, SizeBranch, TraceFailed
from piecewise_core.testing import SimulatedPlatform


def padded(x):
    """To a multiple of 8, and cut back, as state space models do."""
    pad = (8 - x.shape[0] % 8) % 8
    if pad > 0:
        x = F.pad(x, (0, 0, 0, pad))
    return x.view(-1, 8, 2).cumsum(1).reshape(-1, 2)[: x.shape[0] - pad]


def groups(x):
    return x.view(-1, 8, 2).sum(1)


def residue(x):
    return x.sum(0) if x.shape[0] % 3 == 1 else x.mean(0)


def derived(x):
    return x.sum(0) if x.shape[0] // 2 == 1 else x.mean(0)


def squeezed(x):
    return torch.softmax(x[: x.shape[0] // 4].squeeze(0) + 1, -1)


def thresholds(x):
    for end, factor in ((30, 5), (20, 4), (10, 3)):
        if x.shape[0] > end:
            return x * factor
    return x + 1


def listed(x):
    return x * 2 if x.shape[0] in (3, 7, 19) else x + 1


def divides(x):
    return x * 2 if 100 // (x.shape[0] - 3) > 4 else x + 1


MODELS = (padded, groups, residue, derived, squeezed, thresholds, listed, divides)


def dims(low=1, high=40, step=1):
    return {"x": {0: pw.Dim("rows", low, high, step)}}


def expected(fn, x):
    """What the model gives, or None where it raises."""
    try:
        return fn(x)
    except (RuntimeError, ZeroDivisionError):
        return None


def check(fast, fn, sizes):
    """Every size is served as the model does it; where that raises, so does this."""
    for rows in sizes:
        x = torch.randn(rows, 2)
        want = expected(fn, x)
        if want is None:
            with pytest.raises(TraceFailed):
                fast(x)
        else:
            torch.testing.assert_close(fast(x), want, equal_nan=True)


@pytest.mark.parametrize("fn", MODELS, ids=lambda fn: fn.__name__)
def test_every_size_is_served_by_a_trace_that_is_right_there(fn):
    """FAULTS 64."""
    fast = pw.compile(fn, pw.Config(dynamic=dims(0), compiler="eager"))
    check(fast, fn, [33, 8, 7, *range(41)])


FUNCTIONS = {
    "a logarithm": lambda x: x * int(math.log2(max(x.shape[0], 1))),
    "tanh": lambda x: x * math.tanh(x.shape[0] / 8),
    "sin and cos": lambda x: x * math.sin(x.shape[0]) + math.cos(x.shape[0]),
    "atan": lambda x: x * math.atan(x.shape[0]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_a_size_are_computed_at_every_size(name):
    fast = pw.compile(FUNCTIONS[name], pw.Config(dynamic=dims(0), compiler="eager"))
    check(fast, FUNCTIONS[name], [5, 1, 0, 8, 33])


def quotient(x):
    count, rest = divmod(x.shape[0], 4)  # Dynamo knows it of numbers, and not of a symbol
    return x[: count * 4].view(count, 4, 2).sum(1), x * rest


def digits(x):
    return x * len(str(x.shape[0]))


@pytest.mark.parametrize("fn", [quotient, digits], ids=lambda fn: fn.__name__)
def test_where_a_size_must_be_a_number_each_is_traced_by_itself_and_the_line_is_said(fn):
    fast = pw.compile(fn, pw.Config(dynamic=dims(0), compiler="eager", max_regions=6))
    check(fast, fn, [9, 1, 0, 40, 9])
    line = fn.__code__.co_firstlineno + 1
    assert f"test_auto_regions.py:{line}" in str(fast.explain(verbose=True))
    with pytest.raises(SizeBranch, match="max_regions is 6"):
        check(fast, fn, range(20, 30))


def test_what_no_size_makes_traceable_is_refused_as_before():
    def fn(x):
        return x * 2 if x.sum() > 0 else x

    with pytest.raises(TraceFailed, match="Data-dependent branching"):
        pw.compile(fn, pw.Config(dynamic=dims(), compiler="eager"))(torch.randn(5, 2))


@pytest.mark.parametrize("fn", [padded, residue, thresholds], ids=lambda fn: fn.__name__)
def test_captured_sizes_are_replayed_by_graphs_of_their_own_region(fn):
    """FAULTS 64."""
    sizes = {"capture_sizes": (8, 16, 20, 32), "padding": "capture_sizes"}
    config = pw.Config(dynamic=dims(4, 32, 4), compiler="eager", **sizes)
    fast = pw.compile(fn, config, platform=SimulatedPlatform())
    for _ in range(2):
        check(fast, fn, range(4, 33, 4))
    assert fast.stats().calls["replayed"] > 0


def chain(x):
    for rest in range(31):
        if x.shape[0] % 31 == rest:
            return x * (rest + 1)
    return x


def many(x):
    for end in range(20, 800, 20):
        if x.shape[0] <= end:
            return x * end
    return x


def unbound(x):
    return torch.stack([row * 2 for row in x])


@pytest.mark.parametrize("fn", [chain, thresholds, padded, listed], ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("rows", [8, 19, 33, 40])
def test_the_first_call_takes_one_trace_that_of_the_region_it_needs(fn, rows):
    fast = pw.compile(fn, pw.Config(dynamic=dims(), compiler="eager"))
    check(fast, fn, [rows])
    assert fast.stats().graphs == 1
    check(fast, fn, range(1, 41, 3))


def test_groups_of_rows_are_one_region_of_multiples():
    fast = pw.compile(groups, pw.Config(dynamic=dims(), compiler="eager"))
    check(fast, groups, (16, 8, 40, 24))
    (region,) = fast.explain().regions
    assert region.sizes == "rows [8, 40] step 8"
    assert fast.stats().graphs == 1


def test_explain_names_the_guard_and_the_line_that_made_each_region():
    fast = pw.compile(residue, pw.Config(dynamic=dims(), compiler="eager"))
    check(fast, residue, (5, 7))
    line = residue.__code__.co_firstlineno + 1
    for region in fast.explain(verbose=True).regions:
        (cut,) = region.cuts
        assert "rows" in cut
        assert f"test_auto_regions.py:{line}" in cut
        assert cut in str(fast.explain(verbose=True))


def test_warm_up_traces_all_regions_and_a_sealed_model_serves_every_size():
    fast = pw.compile(thresholds, pw.Config(dynamic=dims(), compiler="eager"))
    report = fast.warmup(torch.randn(3, 2), progress=False)
    assert report.regions == 4
    fast.seal()
    check(fast, thresholds, range(1, 41))


def test_warm_up_leaves_out_sizes_at_which_the_model_raises(caplog):
    fast = pw.compile(groups, pw.Config(dynamic=dims(), compiler="eager"))
    fast.warmup(torch.randn(8, 2), progress=False)
    assert "leaves out the sizes at which the model raises" in caplog.text
    fast.seal()
    check(fast, groups, (8, 16, 24, 32, 40))


def test_more_regions_than_may_be_are_refused_listing_what_cuts():
    def every(x):
        return x * (x.shape[0] % 5 + sum(x.shape[0] % 5 == r for r in range(4)))

    fast = pw.compile(every, pw.Config(dynamic=dims(), compiler="eager", max_regions=2))
    check(fast, every, (5, 7, 10, 12))
    with pytest.raises(SizeBranch, match=r"max_regions is 2.*Mod\(rows, 5\).*multiple_of"):
        fast(torch.randn(8, 2))
    check(fast, every, (5, 7))


def test_where_cuts_are_declared_one_refusal_names_the_endpoints_of_all_branches():
    """FAULTS 64."""
    config = pw.Config(dynamic=dims(), compiler="eager", regions="declared")
    with pytest.raises(
        SizeBranch, match='All branches found need: dim "rows" endpoints 10, 20, 30'
    ):
        pw.compile(thresholds, config)(torch.randn(3, 2))
    fast = pw.compile(thresholds, config.replace(compile_ranges_endpoints=(10, 20, 30)))
    check(fast, thresholds, range(1, 41))


@pytest.mark.parametrize(
    ("fn", "needs"),
    [
        (many, f'"rows" endpoints {", ".join(str(end) for end in range(20, 800, 20))}'),
        (chain, r'"rows" regions by rows % 31'),
        (unbound, '"rows" a region for each size: all '),
    ],
    ids=["thresholds", "residues", "each size"],
)
@pytest.mark.parametrize("regions", ["auto", "declared"])
def test_a_refusal_names_all_branches_at_once_and_the_line_of_the_model(fn, needs, regions):
    high = 50 if fn is unbound else 800
    config = pw.Config(dynamic=dims(1, high), compiler="eager", regions=regions, max_regions=1)
    fast, line = pw.compile(fn, config), fn.__code__.co_firstlineno
    if regions == "auto":
        fast(torch.randn(5, 2))
    with pytest.raises(SizeBranch) as refused:
        fast(torch.randn(27, 2))
    said = str(refused.value)
    assert f"dim {needs}" in said
    assert any(f"test_auto_regions.py:{line + i}" in said for i in (1, 2))
    assert "<piecewise" not in said
    assert said.count(" at `") <= 3


def test_two_dims_whose_product_has_to_be_even_are_told_which_multiples_settle_it():
    def fn(x):
        return x.flatten().view(-1, 8)

    def compiled(step):
        dynamic = {"x": {0: pw.Dim("rows", 2, 64, step), 1: pw.Dim("cols", 2, 64)}}
        return pw.compile(fn, pw.Config(dynamic=dynamic, compiler="eager"))

    with pytest.raises(SizeBranch, match=r'set Dim\("rows", ..., multiple_of=8\)'):
        compiled(1)(torch.randn(8, 3))
    fast = compiled(8)
    for shape in ((8, 3), (16, 2), (64, 64)):
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), fn(x))


def test_dims_that_relate_by_a_sum_are_refused_at_the_sizes_that_fit_too():
    def fn(x, y):
        return F.pad(x, (0, 0, 0, 2)) + y

    dynamic = {"x": {0: pw.Dim("a", 1, 9)}, "y": {0: pw.Dim("b", 1, 9)}}
    fast = pw.compile(fn, pw.Config(dynamic=dynamic, compiler="eager"))
    with pytest.raises(SizeBranch, match="a, b relate"):
        fast(torch.randn(5, 2), torch.randn(7, 2))


def test_two_dims_have_sets_of_their_own():
    def fn(x):
        out = x * 2 if x.shape[0] % 2 else x + 1
        return out * 3 if x.shape[1] in (2, 5, 6) else out

    dynamic = {"x": {0: pw.Dim("rows", 0, 7), 1: pw.Dim("cols", 1, 7)}}
    fast = pw.compile(fn, pw.Config(dynamic=dynamic, compiler="eager"))
    shapes = [(rows, cols) for rows in range(8) for cols in range(1, 8)]
    for shape in (*shapes, *reversed(shapes)):
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), fn(x))
    assert fast.stats().graphs <= 9


def test_sizes_above_the_bounds_have_regions_too():
    config = pw.Config(dynamic=dims(1, 20), compiler="eager", out_of_range="general")
    fast = pw.compile(residue, config)
    check(fast, residue, (5, 7, 20, 21, 22, 70_000, 70_001, 200_002))


def test_traces_of_sets_are_found_in_the_store_and_in_bundles(tmp_path, monkeypatch):
    monkeypatch.delenv("PIECEWISE_CACHE_MODE", raising=False)
    config = pw.Config(dynamic=dims(), compiler="eager", cache_dir=tmp_path / "store")
    first = pw.compile(padded, config)
    check(first, padded, range(1, 41))
    second = pw.compile(padded, config)
    check(second, padded, range(1, 41))
    assert (first.stats().graphs, second.stats().graphs) == (2, 0)
    first.save(tmp_path / "model.pwb")
    loaded = pw.load(tmp_path / "model.pwb", padded)
    check(loaded, padded, range(1, 41))
    assert loaded.stats().graphs == 0
    assert [r.cuts for r in loaded.explain().regions] == [r.cuts for r in first.explain().regions]


# Dim(multiple_of=) -----------------------------------------------------------------------


@pytest.mark.parametrize("regions", ["auto", "declared"])
def test_divisibility_is_settled_by_multiple_of(regions):
    config = pw.Config(dynamic=dims(1, 40, 16), compiler="eager", regions=regions)
    fast = pw.compile(groups, config)
    check(fast, groups, (16, 32))
    assert fast.stats().graphs == 1


@pytest.mark.parametrize("front", [pw.compile, pw.record])
def test_a_size_that_is_no_multiple_is_refused_naming_the_next_legal_one(front):
    fast = front(lambda x: x + 1, pw.Config(dynamic=dims(1, 40, 8)))
    with pytest.raises(OutOfRange, match=r'13 of dim "rows" is no multiple of 8.*size is 16'):
        fast(torch.randn(13, 2))


def test_sizes_that_are_configured_must_be_multiples_too():
    with pytest.raises(ConfigError, match=r"capture_sizes: 12 is no multiple of 8.*write 16"):
        pw.Config(dynamic=dims(1, 40, 8), capture_sizes=(12,))
    with pytest.raises(ConfigError, match=r"no multiple of 8 lies in \[9, 15\]"):
        pw.Dim("rows", 9, 15, 8)
    config = pw.Config(dynamic=dims(1, 39, 8), capture_sizes=(8,))
    assert config.capture_sizes == (8, 32)
    assert pw.Config.from_json(config.to_json()) == config


@pytest.mark.parametrize("check_mode", ["cheap", "verify"])
@pytest.mark.parametrize("first", [3, 13, 16])
def test_a_size_that_is_no_multiple_is_padded_to_the_next_capture_size(first, check_mode):
    def fn(x):
        return x * 2 if x.shape[0] % 16 == 0 else x * 3

    sizes = {"capture_sizes": (8, 32), "padding": "capture_sizes"}
    config = pw.Config(
        dynamic=dims(1, 40, 8), compiler="eager", check=check_mode, verify_rate=1.0, **sizes
    )
    fast = pw.compile(fn, config, platform=SimulatedPlatform())
    for rows in (first, 3, 13, 8, 16, 31, 32, 33, 24, 1, 39):
        x = torch.randn(rows, 2)
        factor = 3 if rows <= 8 or rows in (24, *range(33, 41)) else 2
        torch.testing.assert_close(fast(x), x * factor)
    assert fast.stats().padded_rows > 0
    fast.release()
    with pytest.raises(OutOfRange, match="next legal size is 16"):
        fast(torch.randn(13, 2))


def test_rows_that_mix_are_not_padded_to_a_multiple():
    sizes = {"capture_sizes": (8, 32), "padding": "capture_sizes"}
    config = pw.Config(dynamic=dims(1, 40, 8), compiler="eager", **sizes)
    fast = pw.compile(groups, config, platform=SimulatedPlatform())
    check(fast, groups, (8, 16, 32))
    with pytest.raises(OutOfRange, match="next legal size is 16"):
        fast(torch.randn(13, 2))


@pytest.mark.inductor
def test_compiled_code_holds_for_a_region_of_residues():
    fast = pw.compile(padded, pw.Config(dynamic=dims(1, 24), compiler="inductor"))
    check(fast, padded, range(1, 25))
    code = [c for r in fast.explain().regions for p in r.pieces for c in p.code]
    assert [c.compiler for c in code] == ["inductor"] * len(code)
    assert not any(c.note for c in code)


@pytest.mark.inductor
def test_a_size_whose_derived_size_is_one_is_traced_with_the_number():
    def fn(x):
        return torch.softmax(x[x.shape[0] // 2 :].squeeze(0) + 1, -1)

    fast = pw.compile(fn, pw.Config(dynamic=dims(1, 8), compiler="inductor"))
    check(fast, fn, (5, 2, 3, 1, 8))
    assert [r.sizes for r in fast.explain().regions][:2] == ["rows [3, 8]", "rows 2"]


def test_residues_are_told_apart_in_bounds_too_large_to_list():
    def fn(x):
        return x * 2 if x.shape[0] % 7 else x * 3

    config = pw.Config(dynamic={"x": {0: pw.Dim("n", 0, 1 << 40)}}, compiler="eager")
    fast = pw.compile(fn, config, platform="cpu")
    with torch.inference_mode():
        for size in (5, 7, 70_000, 14, 8, 0, 200_000, 1, 21):
            x = torch.randn(size, 1)
            torch.testing.assert_close(fast(x), fn(x), rtol=0, atol=0)
