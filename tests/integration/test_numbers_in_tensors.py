"""Numbers that come in tensors without dims: data of each call, never what a trace saw."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import TraceFailed
from piecewise_core.testing import SimulatedPlatform

ROWS = {"x": {0: pw.Dim("rows", min=1, max=16)}}
DTYPES = (torch.int64, torch.int32, torch.float64, torch.float32)
NUMBERS = (1, 4, 0, 7, 1)


def compiled(fn, platform="cpu", **changes):
    return pw.compile(fn, pw.Config(dynamic=ROWS, compiler="eager", **changes), platform=platform)


USES = {
    "times": lambda x, n: x * n.item(),
    "int": lambda x, n: x + int(n),
    "float": lambda x, n: x + float(n),
    "filled": lambda x, n: x.masked_fill(x > 0, n.item()),
    "a number of its own": lambda x, n: (x * 2, n.item() + 1),
}
PLACES = {
    "an item": lambda x, n: x.flatten()[int(n)].sum(),
    "a slice": lambda x, n: x.flatten()[: int(n)].sum(),
    "arange": lambda x, n: torch.arange(int(n)).sum() + x,
    "narrow": lambda x, n: torch.arange(64.0).narrow(0, int(n), 3).sum() + x,
    "beside the size": lambda x, n: torch.arange(int(n), int(n) + x.shape[0])[:, None] + x,
    "full": lambda x, n: torch.full((int(n),), 2.0).sum() + x,
}
BRANCHES = {
    "compared": lambda x, n: x * 2 if n.item() > 3 else x + 1,
    "int": lambda x, n: x * 2 if int(n) == 4 else x + 1,
    "beside the size": lambda x, n: x * 2 if x.shape[0] + n.item() <= 8 else x + 1,
    "bool": lambda x, n: x * 2 if n else x + 1,
    "range": lambda x, n: sum((x * i for i in range(int(n))), x),
}


def check(fast, fn, dtype):
    for number in NUMBERS:
        x, n = torch.randn(5, 4), torch.tensor(number, dtype=dtype)
        torch.testing.assert_close(fast(x, n), fn(x, n))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", USES)
def test_a_number_is_that_of_the_call(name, dtype):
    """FAULTS 14."""
    fast = compiled(USES[name])
    check(fast, USES[name], dtype)
    assert fast.stats().graphs == 1


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_a_place_and_a_size_are_those_of_the_call(name, captured):
    sizes = {"capture_sizes": (5,), "capture_max": False} if captured else {}
    fast = compiled(PLACES[name], SimulatedPlatform() if captured else "cpu", **sizes)
    check(fast, PLACES[name], torch.int64)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_on_a_number_is_refused_with_its_line(name, dtype):
    fn = BRANCHES[name]
    fast = compiled(fn)
    with pytest.raises(
        TraceFailed, match=f"test_numbers_in_tensors.py:{fn.__code__.co_firstlineno}"
    ):
        fast(torch.randn(5, 4), torch.tensor(4, dtype=dtype))


class Held(torch.nn.Module):
    """Has the number in a buffer."""

    def __init__(self, use):
        super().__init__()
        self.register_buffer("number", torch.tensor(4))
        self.use = use

    def forward(self, x):
        return self.use(x, self.number)


def test_a_number_in_a_buffer_may_be_written_to():
    model = Held(USES["times"])
    fast = compiled(model)
    for number in NUMBERS:
        model.number.fill_(number)
        x = torch.randn(5, 4)
        torch.testing.assert_close(fast(x), model(x))


def test_a_branch_on_a_number_in_a_buffer_is_refused_with_its_line():
    fast = compiled(Held(BRANCHES["compared"]))
    line = BRANCHES["compared"].__code__.co_firstlineno
    with pytest.raises(TraceFailed, match=f"test_numbers_in_tensors.py:{line}"):
        fast(torch.randn(5, 4))
