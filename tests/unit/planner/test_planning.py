"""pw.plan: the best sizes of one dim, good ones of two, within what may be spent."""

from __future__ import annotations

import itertools
import json
import math
import random
import time

import pytest

import piecewise_core as pw
from piecewise_core.errors import PlanError
from piecewise_core.planner import exact
from piecewise_core.planner.boxes import Boxes, padded_rows
from piecewise_core.planner.exact import Runs

VLLM = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
"""The 51 sizes that vLLM captures unless it is told others."""


def brute(calls: dict[int, int]) -> list[int]:
    """The rows that the best 1, 2, ... sizes pad."""
    *rest, largest = sorted(calls)
    points = {(size,): count for size, count in calls.items()}
    return [
        min(
            padded_rows(points, [(size,) for size in (*some, largest)])
            for some in itertools.combinations(rest, number)
        )
        for number in range(len(calls))
    ]


@pytest.mark.parametrize("layers", [64, 2, 1])
def test_plans_of_one_dim_are_as_good_as_trying_all(layers, monkeypatch):
    monkeypatch.setattr(exact, "LAYERS", layers)
    rng = random.Random(layers)
    for _ in range(400):
        sizes = rng.sample(range(1, 80), rng.randint(1, 8))
        calls = {size: rng.randint(1, 30) for size in sizes}
        best, rows = brute(calls), sum(size * count for size, count in calls.items())
        share = rng.choice([0, 0.02, 0.1, 0.5, rng.random()])
        graphs = rng.choice([None, rng.randint(1, 9)])
        found = pw.plan(calls, max_padding=share, max_graphs=graphs)
        number = next(k for k, padded in enumerate(best, 1) if padded <= math.floor(share * rows))
        number = number if graphs is None else min(number, graphs)
        assert len(found.sizes) == number
        assert round(found.expected_padding * rows) == best[number - 1]
        assert found.sizes[-1] == max(sizes)


@pytest.mark.parametrize("graphs", [1, 3, 70, 130, 199, 200, 500])
def test_many_sizes_pad_least_whether_gone_through_or_had_by_a_price(graphs, monkeypatch):
    rng = random.Random(graphs)
    calls = {size: rng.randint(1, 9) for size in rng.sample(range(1, 3000), 200)}
    priced = pw.plan(calls, max_padding=None, max_graphs=graphs)
    monkeypatch.setattr(exact, "LAYERS", 1000)
    layered = pw.plan(calls, max_padding=None, max_graphs=graphs)
    assert len(priced.sizes) == min(graphs, 200)
    assert priced.expected_padding == layered.expected_padding


def test_plans_of_two_dims_are_close_to_trying_all():
    rng, ratios = random.Random(0), []
    for _ in range(60):
        points = {
            (rng.randint(1, 16), rng.randint(1, 64)): rng.randint(1, 20)
            for _ in range(rng.randint(2, 6))
        }
        number = rng.randint(1, 3)
        spans = [sorted({point[dim] for point in points}) for dim in (0, 1)]
        tried = (
            [*some, (spans[0][-1], spans[1][-1])]
            for some in itertools.combinations(itertools.product(*spans), number - 1)
        )
        best = min(padded_rows(points, boxes) for boxes in tried)
        found = pw.plan(points, max_padding=None, max_graphs=number)
        rows = sum(math.prod(point) * count for point, count in points.items())
        assert len(found.sizes) <= number
        assert found.padding_of(pw.Histogram.of(points)) == found.expected_padding
        ratios.append((found.expected_padding * rows + rows) / (best + rows))
    assert sum(ratios) / len(ratios) < 1.01
    assert max(ratios) < 1.25


@pytest.mark.parametrize("dims", [2, 3])
def test_every_call_fits_a_size_with_several_dims_and_many_points(dims):
    rng = random.Random(dims)
    calls = {tuple(rng.randint(1, 300) for _ in range(dims)): rng.randint(1, 9) for _ in range(900)}
    boxes = Boxes(calls).of(12)
    assert len(boxes) <= 12
    for sizes in calls:
        assert any(all(map(int.__le__, sizes, box)) for box in boxes)
    ones = Boxes(calls).of(1)
    assert padded_rows(calls, boxes) < padded_rows(calls, ones) / 2


def traces() -> dict[str, list[int]]:
    """Sizes of calls in shapes that are published: decode under steady load, chunked prefill
    beside decode, prompts of a coding assistant (log-normal, most above 512 tokens).
    """
    rng = random.Random(0)

    def decoding(mean: float) -> int:
        return min(512, max(1, round(rng.gauss(mean, math.sqrt(mean)))))

    return {
        "decode": [decoding(180) for _ in range(20_000)],
        "chunked": [512 if rng.random() < 0.5 else decoding(60) for _ in range(20_000)],
        "code": [min(8192, max(1, round(rng.lognormvariate(7.3, 0.9)))) for _ in range(20_000)],
    }


@pytest.mark.parametrize("name", ["decode", "chunked", "code"])
def test_published_shapes_need_half_of_vllms_sizes_for_two_percent(name):
    calls = pw.Histogram.of(traces()[name])
    found = pw.plan(calls, max_rows=512)
    assert found.expected_padding <= 0.02
    assert len(found.sizes) <= len(VLLM) // 2
    theirs = padded_rows(calls.calls, [(size,) for size in VLLM]) / calls.rows
    same = pw.plan(calls, max_rows=512, max_padding=None, max_graphs=len(VLLM))
    assert same.expected_padding <= theirs


def test_ten_thousand_sizes_are_planned_soon():
    begun = time.process_time()
    found = pw.plan({size: 1 + size % 7 for size in range(1, 10_001)})
    assert found.expected_padding <= 0.02
    assert time.process_time() - begun < 20, "not a second or two, as it should be, but far more"


def test_memory_allows_as_many_sizes_as_fit_beside_the_largest_ones_pool():
    calls = dict.fromkeys((8, 16, 24, 32), 10)
    known = pw.Histogram(("rows",), {(s,): n for s, n in calls.items()}, 1000, 10.0)
    found = pw.plan(known, memory_bytes=320 + 2500, max_padding=0)
    assert (len(found.sizes), found.bytes) == (2, 2320)
    assert "pad more than max_padding=0" in found.notes[0]
    assert len(pw.plan(known, memory_bytes=10**9, max_padding=0).sizes) == 4
    assert pw.plan(calls, memory_bytes=2820, graph_bytes=1000, row_bytes=10, max_padding=0).sizes
    with pytest.raises(PlanError, match=r"no room for one size: \(32,\) alone takes 1320"):
        pw.plan(known, memory_bytes=1319)
    with pytest.raises(PlanError, match="not known what a graph takes"):
        pw.plan(calls, memory_bytes=1319)


@pytest.mark.parametrize(
    ("given", "settings", "says"),
    [
        ({}, {}, "no calls with rows"),
        ({0: 5}, {}, "no calls with rows"),
        ({8: 1}, {"max_graphs": 0}, "max_graphs=0 has no room"),
        ({8: 1}, {"max_graphs": 2.5}, "max_graphs=2.5: give a whole number"),
        ({8: 1}, {"max_padding": -0.1}, "max_padding=-0.1"),
        ({8: 1}, {"max_padding": float("nan")}, "max_padding=nan"),
        ({8: 1}, {"max_padding": None}, "all are None"),
        ({8: 1}, {"max_rows": 4}, "of up to max_rows=4"),
        ({-8: 1}, {}, "-8 is not a size"),
        ({"8": 1}, {}, "'8' is not a size"),
        ({(): 3}, {}, "no dims"),
        (7, {}, "given a int"),
    ],
)
def test_what_cannot_be_planned_is_refused_saying_why(given, settings, says):
    with pytest.raises(PlanError) as caught:
        pw.plan(given, **settings)
    assert says in str(caught.value)


def test_empty_calls_and_large_ones_are_left_out_and_noted():
    found = pw.plan({0: 3, 8: 5, 4096: 1}, max_rows=512)
    assert (found.sizes, found.endpoints) == ((8,), (8,))
    assert found.expected_padding == 0
    assert found.notes == (
        "3 calls with a size of 0 run as written and are left out",
        "1 calls of more than 512 rows run without graphs, unpadded",
    )


def test_a_plan_is_settings_a_table_and_json():
    calls = {size: 1 + 50 * (size == 64) for size in range(1, 200)}
    found = pw.plan(calls, max_padding=0.05, graph_bytes=1 << 20, row_bytes=1024)
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", max=256)}}, **found.settings())
    assert config.capture_sizes == found.sizes
    assert found.compile_sizes == (64,)
    assert max(map(len, str(found).splitlines())) <= 80
    assert "<- this plan" in str(found)
    read = json.loads(found.to_json())
    assert read["sizes"] == list(found.sizes)
    assert [row["graphs"] for row in read["what_if"][:4]] == [1, 2, 4, 8]
    assert read["what_if"][0]["bytes"] == (1 << 20) + 199 * 1024
    ends = [0, *found.endpoints, 199]
    for low, high in itertools.pairwise(ends):
        inside = [size for size in found.sizes if low < size <= high]
        assert max(inside) <= 8 * min(inside)


def test_a_plan_tells_what_it_pads_of_other_traffic():
    found = pw.plan({8: 5, 16: 5})
    assert found.padding_of(pw.Histogram.of({8: 1, 16: 1})) == 0
    assert found.padding_of(pw.Histogram.of({4: 1, 100: 1})) == 4 / 104
    with pytest.raises(PlanError, match="the plan is for dims size"):
        found.padding_of(pw.Histogram.of({(4, 4): 1}))


def test_runs_of_one_size_pad_nothing():
    assert Runs([7], [3]).best(0) == [7]
    assert Runs([7], [3]).padded == [0]
