"""Parts of torch that trace in ways of their own: convolutions, recurrent layers, functorch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import piecewise_core as pw


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def compiled(model, dynamic, **config):
    return pw.compile(model, pw.Config(dynamic=dynamic, compiler="eager", **config), "cpu")


# Convolutions ----------------------------------------------------------------------------

BATCH = pw.Dim("batch", 0, 64)
HEIGHT, WIDTH = pw.Dim("height", 8, 600), pw.Dim("width", 8, 600)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


@pytest.mark.parametrize("threads", [1, 2])
def test_one_graph_serves_convolutions_of_every_batch_and_image_size(threads):
    model = network()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # torch chooses kernels by it
    try:
        fast = compiled(model, {0: {0: BATCH, 2: HEIGHT, 3: WIDTH}})
        for shape in ((2, 8, 9), (1, 300, 311), (15, 8, 8), (16, 20, 30), (17, 9, 8), (64, 12, 8)):
            x = torch.randn(shape[0], 3, *shape[1:])
            torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(before)
    assert fast.stats().graphs == 1


def test_a_convolution_over_time_takes_batches_of_16_and_more():
    model = nn.Sequential(nn.Conv1d(4, 8, 3, stride=2), nn.GELU(), nn.Conv1d(8, 8, 1)).eval()
    fast = compiled(model, {0: {0: BATCH, 2: pw.Dim("samples", 16, 100_000)}})
    for shape in ((2, 16), (1, 40_000), (16, 17), (40, 100)):
        x = torch.randn(shape[0], 4, shape[1])
        torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    assert fast.stats().graphs == 1


def test_tracing_leaves_torchs_choice_of_convolutions_as_it_was():
    before = torch.backends.nnpack.set_flags(True)[0]
    try:
        compiled(network(), {0: {0: BATCH}})(torch.randn(2, 3, 16, 16))
        assert torch._C._get_nnpack_enabled()
    finally:
        torch.backends.nnpack.set_flags(before)


# Views by sizes --------------------------------------------------------------------------


def test_a_view_whose_last_size_torch_works_out_is_no_relation_of_dims():
    """``view(batch, heads, length, -1)`` of scores, as BLOOM has it."""

    def scores(x):
        batch, length, _ = x.shape
        heads = x.view(batch, length, 2, 4).transpose(1, 2).reshape(batch * 2, length, 4)
        return (heads @ heads.transpose(1, 2)).view(batch, 2, length, -1).softmax(-1)

    fast = compiled(scores, {0: {0: pw.Dim("batch", 1, 512), 1: pw.Dim("length", 1, 4096)}})
    for batch, length in ((2, 3), (1, 1), (7, 7), (1, 5), (4, 1)):
        x = torch.randn(batch, length, 8)
        torch.testing.assert_close(fast(x), scores(x))


# Recurrent layers ------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(4, 6, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x):
        out, state = self.layer(x)
        return out, state


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_take_every_batch(kind):
    model = Recurrent(kind).eval()
    fast = compiled(model, {"x": {0: pw.Dim("batch", 1, 32)}})
    for batch in (3, 1, 2, 32):
        x = torch.randn(batch, 5, 4)
        torch.testing.assert_close(fast(x), model(x))


def test_a_recurrent_layers_weights_may_be_replaced_and_moved():
    model = Recurrent(nn.LSTM).eval().requires_grad_(False)
    fast = compiled(model, {"x": {0: pw.Dim("batch", 1, 32)}})
    x = torch.randn(3, 5, 4)
    fast(x)
    model.layer.weight_hh_l0.mul_(2)
    torch.testing.assert_close(fast(x), model(x))
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}, assign=True)
    model.requires_grad_(False)
    torch.testing.assert_close(fast(x), model(x))
    model.to(torch.float64)
    torch.testing.assert_close(fast(x.double()), model(x.double()))


# Functorch -------------------------------------------------------------------------------

ROWS = {0: {0: pw.Dim("rows", 0, 64)}}


def gradient(x):
    return torch.func.grad(lambda y: (y**2).sum())(x)


def gradient_and_value(x):
    return torch.func.grad_and_value(lambda y: y.sin().sum())(x)


def jacobian(x):
    return torch.func.jacrev(lambda y: y.sum(0))(x)


def per_row_gradient(x):
    return torch.func.vmap(torch.func.grad(lambda row: (row**3).sum()))(x)


def gradient_of_a_softmax(x):
    return torch.func.grad(lambda y: F.softmax(y, -1)[..., 0].sum())(x * 2) + 1


FUNCTORCH = [
    gradient,
    gradient_and_value,
    jacobian,
    per_row_gradient,
    gradient_of_a_softmax,
]


@pytest.mark.parametrize("fn", FUNCTORCH)
def test_gradients_that_a_model_takes_inside_are_those_of_eager(fn):
    fast = compiled(fn, ROWS)
    for rows in (3, 1, 8):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fast(x), fn(x))


# Logging ---------------------------------------------------------------------------------

LOGGER = logging.getLogger(__name__)


class Says(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, x):
        getattr(LOGGER, self.method)("said while it runs")
        return x * 2


def test_what_a_logger_says_once_keeps_no_model_from_being_traced(monkeypatch):
    def warning_once(self, *args):
        self.warning(*args)

    monkeypatch.setattr(
        logging.Logger, "warning_once", lru_cache(None)(warning_once), raising=False
    )
    fast, x = compiled(Says("warning_once"), {"x": {0: BATCH}}), torch.randn(3, 4)
    torch.testing.assert_close(fast(x), x * 2)
    with pytest.raises(pw.errors.TraceFailed, match=r"logging.Logger(.|\n)*test_torch_features"):
        compiled(Says("warning"), {"x": {0: BATCH}})(x)
