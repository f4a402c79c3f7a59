"""Results whose sizes depend on data share memory from graphs as they do as written."""

from itertools import combinations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

_CALLS = [torch.tensor([[1, 0, 2], [3, 4, 0], [-1, 1, 5]]), torch.ones(3, 3).long(), -torch.eye(3)]


class Shares(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(12.0).reshape(4, 3), requires_grad=False)

    def forward(self, x):
        y, k, n = x + 1, (x[:, 0] > 0).sum().item(), x.nonzero()
        kept = y[:k]
        return {
            "base": y, "part": kept, "again": kept, "view": kept[...], "turned": y.T[:, :k],
            "made": n, "column": n[:, 0], "repeated": n[:, 0].expand(2, -1), "apart": kept + 0,
            "weight": self.weight[1:], "rows": self.weight[:k], "input": x[1:], "first": x[:k],
        }  # fmt: skip


def sharing(found):
    """Names that lie in one memory, and names of one object; what is empty lies nowhere."""
    pairs = list(combinations([name for name, t in found.items() if t.numel()], 2))
    memory = {name: t.untyped_storage().data_ptr() for name, t in found.items()}
    return [
        [(a, b) for a, b in pairs if memory[a] == memory[b]],
        [(a, b) for a, b in pairs if found[a] is found[b]],
    ]


@pytest.mark.parametrize("clone", [False, True])
@pytest.mark.parametrize("platform", [SimulatedPlatform(), "cpu"], ids=["simulated", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_shares_memory_as_written_shares_it_from_graphs(platform, clone, dtype):
    model = Shares().to(dtype)
    dynamic = {"x": {0: pw.Dim("rows", 1, 8)}}
    settings = {"compiler": "eager", "capture_sizes": [3], "clone_outputs": clone}
    served = pw.compile(model, pw.Config(dynamic=dynamic, **settings), platform)
    for x in _CALLS * 2:
        found, wanted = served(x.to(dtype)), model(x.to(dtype))
        torch.testing.assert_close(found, wanted)
        assert sharing(found) == sharing(wanted)
        # A write to one is a write to the other.
        for each in (found, wanted):
            each["part"].add_(1)
            each["column"].add_(1)
        torch.testing.assert_close(found, wanted)
        same = found["rows"].numel() and found["rows"].data_ptr() == model.weight.data_ptr()
        assert bool(same) == bool(wanted["rows"].numel())
    assert served.stats().calls["replayed"] == 6


@pytest.mark.parametrize("make", [pw.compile, pw.record])
@pytest.mark.parametrize("platform", [SimulatedPlatform(), "cpu"], ids=["simulated", "cpu"])
def test_views_of_one_input_are_views_of_the_caller_s(platform, make):
    def views(x):
        return {"rest": x[1:], "first": x[:2], "wide": x[None].expand(2, -1, -1)}

    dynamic = {"x": {0: pw.Dim("rows", 1, 8)}}
    served = make(views, pw.Config(dynamic=dynamic, capture_sizes=[3]), platform)
    for x in _CALLS * 2:
        x = x.float()
        found = served(x)
        torch.testing.assert_close(found, views(x))
        assert sharing(found) == sharing(views(x))
        assert found["rest"].data_ptr() == x[1:].data_ptr()
    assert served.stats().calls["replayed"] == 6
