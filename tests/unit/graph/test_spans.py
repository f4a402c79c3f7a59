"""Stretches of memory, joined and searched."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.graph.spans import Spans, span_of, storage_span

SPAN = st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda p: (p[0], p[0] + p[1]))


@given(st.lists(SPAN, max_size=8), SPAN)
def test_they_meet_what_shares_a_byte_with_one_of_them(spans, asked):
    wanted = any(set(range(*one)) & set(range(*asked)) for one in spans)
    assert Spans(spans).meets(asked) == wanted


def test_a_view_has_its_own_span_in_that_of_its_storage():
    x = torch.zeros(4, 3)
    start, end = storage_span(x)
    assert span_of(x[1:2]) == (start + 12, start + 24)
    assert storage_span(x[1:2]) == (start, end)
    assert Spans([span_of(x[1:2])]).holds(x)
    assert not Spans([span_of(x[1:2])]).holds(x[2:])
    assert not Spans()
