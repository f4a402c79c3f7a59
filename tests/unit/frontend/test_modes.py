"""When things are compiled: lazily, at the first call, in warm-up; and never again after seal."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import ConfigError, Sealed

ROWS = pw.Dim("rows", 0, 64)
SPLIT = ("torch.nn.functional.softmax",)


class Model(nn.Module):
    """Two distinct pieces around a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 16)
        self.after = nn.Linear(16, 8)

    def forward(self, x):
        return self.after(nn.functional.softmax(self.before(x), -1)).relu()


PIECES = 2


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model=None, **config):
    settings = {"dynamic": {0: {0: ROWS}}, "splitting_ops": SPLIT, "compiler": "eager", **config}
    return pw.compile(Model() if model is None else model, pw.Config(**settings), "cpu")


def serve(fast, *sizes: int) -> list[str]:
    """Call with each size in turn; the kind that each call was counted as."""
    kinds = []
    for size in sizes:
        before = dict(fast.stats().calls)
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), fast._pw_original(x))
        (kind,) = (k for k, n in fast.stats().calls.items() if n != before[k])
        kinds.append(kind)
    return kinds


# Lazy ---------------------------------------------------------------------------------------


def test_lazily_the_first_call_runs_the_general_graph_and_later_ones_their_range():
    fast = compiled(compile_ranges_endpoints=(8, 32))
    assert serve(fast, 5) == ["general"]
    assert fast.stats().compilations == PIECES
    assert serve(fast, 5, 5, 20, 64) == ["compiled_range"] * 4
    assert fast.stats().compilations == 4 * PIECES


def test_lazily_an_exact_size_is_compiled_when_it_comes_again():
    fast = compiled(compile_sizes=(4, 16))
    assert serve(fast, 4, 4, 16, 5) == [
        "general",
        "compiled_size",
        "compiled_size",
        "compiled_range",
    ]
    assert fast.stats().compilations == 3 * PIECES


def test_lazily_only_the_ranges_that_calls_need_are_compiled():
    fast = compiled(compile_ranges_endpoints=(8, 16, 32), compile_sizes=(1, 2))
    serve(fast, 5, 5, 6, 7)
    assert fast.stats().compilations == 2 * PIECES


def test_one_range_is_the_general_graph_and_nothing_is_compiled_twice():
    fast = compiled()
    assert serve(fast, 5, 0, 1, 64) == ["compiled_range"] * 4
    assert fast.stats().compilations == PIECES


def test_with_out_of_range_general_the_general_graph_has_no_upper_bound_and_is_compiled_apart():
    fast = compiled(out_of_range="general")
    assert serve(fast, 5, 6, 200, 7, 5000) == [
        "general",
        "compiled_range",
        "general",
        "compiled_range",
        "general",
    ]
    assert fast.stats().compilations == 2 * PIECES


def test_a_model_without_dynamic_dims_has_one_target():
    fast = compiled(dynamic={})
    assert serve(fast, 5, 5) == ["compiled_range", "compiled_range"]
    assert fast.stats().compilations == PIECES


# Warm-up ------------------------------------------------------------------------------------


def test_warm_up_compiles_every_target_and_no_general_graph():
    fast = compiled(compile_ranges_endpoints=(8, 32), compile_sizes=(4,))
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert (report.regions, report.targets, report.compilations) == (1, 4, 4 * PIECES)
    assert serve(fast, 5, 4, 20, 64, 0) == [
        "compiled_range",
        "compiled_size",
        "compiled_range",
        "compiled_range",
        "compiled_range",
    ]
    assert fast.stats().compilations == 4 * PIECES


def test_warm_up_runs_nothing_and_counts_no_call():
    fast = compiled(compile_ranges_endpoints=(8,))
    fast.warmup(torch.randn(3, 8), progress=False)
    assert sum(fast.stats().calls.values()) == 0


def test_a_second_warm_up_has_nothing_to_do():
    fast = compiled(compile_ranges_endpoints=(8,))
    fast.warmup(torch.randn(3, 8), progress=False)
    again = fast.warmup(progress=False)
    assert (again.compilations, again.dedup_hits, again.targets) == (0, 0, 2)


def test_warm_up_after_calls_compiles_only_what_is_missing():
    fast = compiled(compile_ranges_endpoints=(8, 32))
    serve(fast, 5, 5)
    assert fast.warmup(progress=False).compilations == 2 * PIECES


def test_mode_warmup_compiles_every_target_at_the_first_call():
    fast = compiled(compile_mode="warmup", compile_ranges_endpoints=(8, 32), compile_sizes=(4,))
    assert serve(fast, 5) == ["compiled_range"]
    assert fast.stats().compilations == 4 * PIECES
    serve(fast, 4, 0, 20, 64)
    assert fast.stats().compilations == 4 * PIECES


def test_warm_up_shows_a_bar_on_a_terminal_only(capsys):
    compiled().warmup(torch.randn(3, 8))
    assert capsys.readouterr() == ("", "")


def test_a_warm_up_report_reads_as_one_line_per_fact():
    fast = compiled(compile_ranges_endpoints=(8,))
    lines = str(fast.warmup(torch.randn(3, 8), progress=False)).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warm-up: 1 region, 2 ranges and sizes ready, 4 compilations, ")


# Seal ---------------------------------------------------------------------------------------


def test_after_warm_up_and_seal_10000_random_sizes_compile_nothing():
    fast = compiled(compile_ranges_endpoints=(8, 32), compile_sizes=(1, 4, 16))
    fast.warmup(torch.randn(3, 8), progress=False)
    before = fast.stats()
    fast.seal()
    draw = random.Random(0)
    inputs = [torch.randn(size, 8) for size in range(65)]
    for _ in range(10_000):
        fast(inputs[draw.randint(0, 64)])
    after = fast.stats()
    assert (after.compilations, after.graphs) == (before.compilations, before.graphs)
    assert sum(after.calls.values()) == 10_000
    assert after.calls["general"] == 0


def test_a_sealed_model_refuses_to_compile_naming_piece_sizes_and_what_to_do():
    fast = compiled(compile_ranges_endpoints=(8,))
    serve(fast, 5, 5)
    assert fast.seal() is fast
    assert serve(fast, 5) == ["compiled_range"]
    with pytest.raises(Sealed) as caught:
        fast(torch.randn(20, 8))
    message = str(caught.value)
    assert "region 0 piece 0" in message
    assert "[9, 64]" in message
    assert "call warmup() before seal()" in message
    assert serve(fast, 3) == ["compiled_range"]


def test_a_sealed_model_that_was_never_called_refuses_to_trace_saying_what_to_do():
    fast = compiled().seal()
    with pytest.raises(
        Sealed, match=r"would be traced after seal\(\); warmup\(\) traces all before"
    ):
        fast(torch.randn(3, 8))


def test_a_sealed_model_refuses_a_second_region():
    def fn(x):
        return x * 2 if x.shape[0] < 10 else x * 3

    fast = pw.compile(
        fn,
        pw.Config(dynamic={"x": {0: ROWS}}, compile_ranges_endpoints=(9,), compiler="eager"),
        "cpu",
    )
    fast(torch.randn(3, 8))
    fast.seal()
    with pytest.raises(Sealed, match=r"\[10, 64\] would be traced after seal"):
        fast(torch.randn(20, 8))


def test_sealed_with_warn_compiles_and_says_so(caplog):
    fast = compiled(compile_ranges_endpoints=(8,))
    serve(fast, 5, 5)
    fast.seal(on_miss="warn")
    with caplog.at_level(logging.WARNING, "piecewise_core"):
        assert serve(fast, 20) == ["compiled_range"]
    ours = [r for r in caplog.records if r.name.startswith("piecewise_core")]
    assert len(ours) == PIECES
    assert "[9, 64]" in caplog.text
    assert "call warmup() before seal()" in caplog.text


def test_a_model_sealed_before_its_first_call_with_warn_traces_and_says_so(caplog):
    fast = compiled().seal(on_miss="warn")
    with caplog.at_level(logging.WARNING, "piecewise_core"):
        serve(fast, 3)
    assert "would be traced after seal()" in caplog.text


def test_an_unknown_way_to_seal_is_refused_naming_both():
    with pytest.raises(ConfigError, match=r'on_miss=.loud.\): use "error" or "warn"'):
        compiled().seal(on_miss="loud")


def test_a_sealed_model_serves_out_of_bounds_as_configured():
    model = Model()
    fast = compiled(model, out_of_range="eager")
    fast.warmup(torch.randn(3, 8), progress=False)
    fast.seal()
    assert serve(fast, 65, 3) == ["eager", "compiled_range"]


def test_a_sealed_model_with_out_of_range_general_has_its_general_graph_from_warm_up():
    fast = compiled(out_of_range="general", compile_ranges_endpoints=(8,))
    fast.warmup(torch.randn(3, 8), progress=False)
    assert fast.stats().compilations == 3 * PIECES
    fast.seal()
    assert serve(fast, 65, 3, 5000) == ["general", "compiled_range", "general"]
