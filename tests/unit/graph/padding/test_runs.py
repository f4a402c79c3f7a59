"""Two runs of one callable on real tensors, judged together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from piecewise_core.graph.padding.runs import Run, between


def judged(fn, small=5, large=8, *rest):
    runs = []
    for size in (large, small):
        x = torch.rand(size, 6) + 1
        run = Run([x], lambda: lambda: "here")
        with run.noted():
            out = fn(x, *rest)
        run.returned(out if isinstance(out, (tuple, list)) else [out])
        runs.append(run)
    return between(*runs)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: F.linear(x.sin(), torch.ones(3, 6)),
        lambda x: x.softmax(-1),
        lambda x: (x.flatten() * 2).view(-1, 6),
        lambda x: F.normalize(x, dim=1),
        lambda x: x + torch.arange(x.shape[0])[:, None],
        lambda x: (x, x[torch.arange(x.shape[0])], x.t()),
        lambda x: x[:3] * 2,
        lambda x: (x[1:-1] + x[2:]).sum(1)[:2],
        lambda x: torch.take_along_dim(x, x.argmax(1, keepdim=True), 1),
    ],
)
def test_rows_that_are_alone_in_both_runs_may_be_padded(fn):
    assert judged(fn) is None


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda x: x.mean(0), "aten::mean at here reduces it"),
        (lambda x: x * x.shape[0], "aten::mul at here computes with a size"),
        (lambda x: x.sin() if x.shape[0] > 6 else x.cos(), "runs other operators"),
        (lambda x: x + 1 if x.shape[0] > 6 else x + 2, "computes with a size"),
        (lambda x: x.flatten(), "the result has rows of padding between"),
        (lambda x: torch.cat([x, x]), "puts rows behind it"),
        (lambda x: x[-2:] * 2, "from the end"),
        (lambda x: x.gather(0, x.long()), "by index"),
        (lambda x: x.narrow(0, torch.tensor(1), 2), "form that its rule does not know"),
        (lambda x: (x, x) if x.shape[0] > 6 else (x, x + 0), "other"),
    ],
)
def test_what_differs_between_the_runs_may_not_be_padded(fn, why):
    assert why in str(judged(fn))


def test_rounding_to_whole_numbers_is_told():
    x = torch.rand(3)
    for fn, rounds in ((lambda x: x.long(), True), (lambda x: x > 0, False)):
        run = Run([x], lambda: str)
        with run.noted():
            fn(x)
        assert run.rounds is rounds
