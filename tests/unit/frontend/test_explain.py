"""What explain() says, to people and to programs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw

SPLIT = ("torch.nn.functional.softmax",)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8)
        self.after = nn.Linear(8, 8)

    def forward(self, x):
        x = self.before(x).tanh().sin().cos().exp().neg()
        return self.after(nn.functional.softmax(x, -1)).relu()


class Stack(nn.Module):
    """Four layers: the first piece, three alike in the middle, the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, dynamic=None, **config):
    settings = {
        "dynamic": dynamic or {0: {0: pw.Dim("rows", 0, 64)}},
        "splitting_ops": SPLIT,
        "compiler": "eager",
        **config,
    }
    return pw.compile(model, pw.Config(**settings), "cpu")


def test_before_the_first_call_it_says_what_to_do():
    text = str(compiled(Stack()).explain())
    assert text.startswith("platform cpu (")
    assert "compiler eager" in text
    assert "dims rows [0, 64]" in text
    assert "nothing traced yet: call the model, or warmup() with example arguments" in text
    assert text.endswith("counters: none\ncalls: none")


def test_equal_pieces_are_one_paragraph_with_seconds_sharing_ops_and_source():
    fast = compiled(Stack())
    fast(torch.randn(3, 8))
    lines = str(fast.explain()).splitlines()
    assert "region 0: rows [0, 64]" in lines
    assert "  range rows [0, 64]" in lines
    middle = next(i for i, line in enumerate(lines) if "pieces 2, 4, 6 compilable" in line)
    assert lines[middle].startswith("  pieces 2, 4, 6 compilable over rows: 8 ops: ")
    assert "torch.nn.functional.linear x2" in lines[middle]
    assert lines[middle + 1].startswith("      torch.")  # goes on further to the right
    assert lines[middle + 1].endswith("and 3 other kinds")
    assert lines[middle + 2].startswith("    from unit/frontend/test_explain.py:")
    assert lines[middle + 3].startswith("    rows [0, 64]: compiled by eager in 0.")
    assert lines[middle + 3].endswith(" s, shared by 2 more pieces")
    assert "  pieces 1, 3, 5, 7 splitting: torch.nn.functional.softmax" in lines
    assert "calls: compiled_range 1" in lines


def test_no_line_is_long_for_a_long_model():
    fast = compiled(nn.Sequential(*(Stack() for _ in range(6))))
    fast(torch.randn(3, 8))
    lines = str(fast.explain()).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    whole = str(fast.explain(verbose=True)).splitlines()
    assert len(whole) < len(lines)
    assert any("torch.Tensor.neg" in line and "torch.Tensor.tanh" in line for line in whole)
    assert any(f"from {__file__}:" in line for line in whole)


def test_targets_are_listed_in_order_of_preference_and_only_what_is_compiled_has_seconds():
    fast = compiled(Stack(), compile_ranges_endpoints=(8,), compile_sizes=(4,))
    fast(torch.randn(5, 8))
    fast(torch.randn(5, 8))
    text = str(fast.explain())
    listed = [line for line in text.splitlines() if line.startswith(("  size", "  range"))]
    assert listed == ["  size rows 4", "  range rows [0, 8]", "  range rows [9, 64]"]
    assert "    rows [0, 8]: compiled by eager" in text
    assert "    rows [0, 64]: compiled by eager" in text
    assert "    rows 4: compiled" not in text
    assert "    rows [9, 64]: compiled" not in text


def test_several_dims_are_named():
    def fn(x):
        return nn.functional.softmax(x * 2, -1) + 1

    dynamic = {"x": {0: pw.Dim("batch", 1, 8), 1: pw.Dim("length", 1, 32)}}
    fast = compiled(fn, dynamic, compile_sizes=((1, 16),), out_of_range="general")
    fast.warmup(torch.randn(2, 3), progress=False)
    text = str(fast.explain())
    assert "dims batch [1, 8], length [1, 32]" in text
    assert "region 0: batch from 1, length from 1" in text
    assert "  size batch 1, length 16" in text
    assert "  range batch [1, 8], length [1, 32]" in text


def test_a_piece_that_must_run_as_written_says_why():
    def fn(x):
        # Two views of one memory leave the piece, and a later one writes to it.
        y = x * 2
        left, right = y[:, :4], y[:, 2:6]
        z = nn.functional.softmax(left, -1)
        left.add_(z)
        return left + right

    fast = compiled(fn)
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x), fn(x))
    text = str(fast.explain())
    assert "runs as written: " in text


def test_regions_that_share_a_piece_say_so():
    def fn(x):
        y = nn.functional.softmax(x * 2, -1)
        return y + 1 if x.shape[0] < 10 else y * 3

    fast = compiled(fn, compile_ranges_endpoints=(9,))
    fast.warmup(torch.randn(3, 8), progress=False)
    assert "piece 0 compilable over rows: equal to region 0 piece 0" in str(fast.explain())


def test_as_json_every_fact_is_there_for_programs():
    fast = compiled(Stack(), compile_ranges_endpoints=(8,))
    fast.warmup(torch.randn(3, 8), progress=False)
    facts = json.loads(fast.explain().to_json())
    assert facts["platform"] == "cpu"
    assert facts["compiler"] == "eager"
    assert facts["stats"] == fast.stats().to_dict()
    (region,) = facts["regions"]
    assert region["targets"] == ["range rows [0, 8]", "range rows [9, 64]"]
    assert [p["kind"] for p in region["pieces"]] == ["compilable", "splitting"] * 4 + ["compilable"]
    second, third = region["pieces"][2], region["pieces"][4]
    assert second["name"] == "region 0 piece 2"
    assert second["ops"]["torch.nn.functional.linear"] == 2
    assert second["source"].startswith(f"{__file__}:")
    assert second["dims"] == ["rows"]
    assert third["equals"] == "region 0 piece 2"
    code = second["code"]
    assert [c["sizes"] for c in code] == ["rows [0, 8]", "rows [9, 64]"]
    assert code[0]["shared_by"] == ["region 0 piece 4", "region 0 piece 6"]
    assert all(c["compiler"] == "eager" and c["seconds"] >= 0 for c in code)


def test_an_explanation_is_a_record_that_later_calls_do_not_change():
    fast = compiled(Stack())
    before = fast.explain()
    fast(torch.randn(3, 8))
    assert before.regions == ()
    assert fast.explain().regions
