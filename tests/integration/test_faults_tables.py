"""FAULTS 70: a table of the model that is shorter than ``Dim.max`` is reported before captures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import OutOfRange, TraceFailed
from piecewise_core.replay.trials import try_sizes
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", min=1, max=64)
SEEN: list[int] = []


@torch.library.custom_op("faults_tables::sees", mutates_args=())
def sees(x: torch.Tensor) -> torch.Tensor:
    SEEN.append(x.shape[0])
    return x.clone()


sees.register_fake(lambda x: torch.empty_like(x))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    SEEN.clear()
    with torch.inference_mode():
        yield


class Positions(torch.nn.Module):
    """A table of 32 positions, looked up in some way."""

    def __init__(self, kind="embedding", dtype=torch.float32):
        super().__init__()
        self.kind = kind
        self.table = torch.nn.Embedding(32, 4, dtype=dtype)
        self.register_buffer("written", torch.zeros(4, dtype=dtype))

    def forward(self, x):
        x = torch.ops.faults_tables.sees(x)
        places = torch.arange(x.shape[0])
        if self.kind == "embedding":
            return x + self.table(places)
        if self.kind == "index":
            return x + self.table.weight[places]
        if self.kind == "gather":
            return x + self.table.weight.gather(0, places[:, None].expand(-1, 4))
        self.written += 1
        return x + self.table(places) + self.written


@pytest.fixture(params=["cpu", "simulated"])
def device(request):
    return SimulatedPlatform() if request.param == "simulated" else "cpu"


@pytest.fixture(params=["compile", "record"])
def made(request, device):
    def make(fn, **changes):
        settings = {
            "dynamic": {"x": {0: ROWS}},
            "capture_sizes": (8, 16, 48),
            "splitting_ops": ("faults_tables::sees",),
            **changes,
        }
        if request.param == "record":
            return pw.record(fn, pw.Config(**settings), platform=device)
        return pw.compile(fn, pw.Config(compiler="eager", **settings), platform=device)

    return make


@pytest.mark.parametrize("kind", ["embedding", "index", "gather", "writes"])
def test_warm_up_names_dim_max_and_the_size(made, kind):
    fast = made(Positions(kind).eval())
    with pytest.raises(OutOfRange, match=r'\(48,\).*\(16,\) ran.*Dim\("rows", max=64\)') as error:
        fast.warmup(torch.randn(4, 4), progress=False)
    assert isinstance(error.value.__cause__, (IndexError, RuntimeError))


def test_sizes_are_run_smallest_first_before_any_is_captured(made):
    fast = made(Positions().eval())
    with pytest.raises(OutOfRange):
        fast.warmup(torch.randn(4, 4), progress=False)
    assert [rows for rows, _ in groupby(SEEN)][-4:] == [1, 8, 16, 48]
    assert fast.stats().captures == 0


@pytest.mark.parametrize("sizes", [(), (48,), (64,)])
def test_the_maximum_alone_is_told_too(made, sizes):
    fast = made(Positions().eval(), capture_sizes=sizes or (64,), graph_mode="piecewise")
    with pytest.raises(OutOfRange, match=r"\(1,\) ran"):
        fast.warmup(torch.randn(4, 4), progress=False)


def test_the_model_goes_on_to_serve_what_it_can(made):
    model = Positions().eval()
    fast = made(model)
    with pytest.raises(OutOfRange):
        fast.warmup(torch.randn(4, 4), progress=False)
    for rows in (8, 8, 3, 16, 32):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_that_is_long_enough_is_captured_at_all_sizes(made, dtype):
    model = Positions(dtype=dtype).eval()
    fast = made(model, dynamic={"x": {0: pw.Dim("rows", min=0, max=32)}}, capture_sizes=(8, 16))
    report = fast.warmup(torch.randn(4, 4, dtype=dtype), progress=False)
    assert report.captured == ((32,), (16,), (8,))
    x = torch.randn(8, 4, dtype=dtype)
    torch.testing.assert_close(fast(x), model(x))


def test_what_a_trial_writes_and_draws_is_put_back(made):
    model = Positions("writes").eval()
    fast = made(model, dynamic={"x": {0: pw.Dim("rows", max=32)}}, capture_sizes=(8,))
    state = torch.get_rng_state()
    fast.warmup(torch.randn(4, 4), progress=False)
    torch.set_rng_state(state)
    assert model.written.tolist() == [0.0] * 4


def test_zeros_that_are_no_index_at_any_size_are_no_matter_of_sizes(made):
    table = torch.randn(32, 4)

    def model(x):
        return torch.nn.functional.embedding(torch.ops.faults_tables.sees(x) - 1, table)

    fast = made(model)
    report = fast.warmup(torch.ones(4, dtype=torch.int64), progress=False)
    assert len(report.dropped) == 4
    x = torch.arange(1, 9)
    torch.testing.assert_close(fast(x), table[:8])


def test_several_dims_are_all_named(made):
    model = Positions().eval()

    def both(x, y):
        return model(x), y + 1

    dims = {"x": {0: ROWS}, "y": {0: pw.Dim("batch", min=1, max=4)}}
    fast = made(both, dynamic=dims, capture_sizes=((8, 2), (48, 2)), capture_max=False)
    with pytest.raises(OutOfRange, match=r'\(rows=48, batch=2\).*Dim\("batch", max=4\)'):
        fast.warmup(torch.randn(4, 4), torch.randn(2), progress=False)


def test_a_device_that_is_lost_is_told_at_whatever_size():
    def run(sizes):
        if sizes[0] > 8:
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")

    with pytest.raises(OutOfRange, match=r"\(16,\).*\(8,\) ran.*max=64.*start it again"):
        try_sizes([(64,), (8,), (16,)], run, (ROWS,))
    with pytest.raises(OutOfRange, match=r"\(16,\).*none smaller.*start it again"):
        try_sizes([(64,), (16,)], run, (ROWS,))


@pytest.mark.inductor
def test_compiled_code_that_checks_its_index_is_told_alike():
    config = pw.Config(
        dynamic={"x": {0: ROWS}}, capture_sizes=(8, 48), capture_max=False, compiler="inductor"
    )
    fast = pw.compile(Positions("index").eval(), config, platform="cpu")
    with pytest.raises(OutOfRange, match=r'\(48,\).*\(8,\) ran.*Dim\("rows", max=64\)'):
        fast.warmup(torch.randn(4, 4), progress=False)


@pytest.mark.parametrize(
    "take",
    [lambda table, n: table[:n], lambda table, n: table.narrow(0, 0, n)],
    ids=["slice", "narrow"],
)
def test_a_table_that_is_cut_to_size_is_told_with_the_dim_to_narrow(take):
    """FAULTS 70: such a table has no such size in a trace, before anything runs."""
    table = torch.randn(8, 4)
    fast = pw.compile(
        lambda x: x + take(table, x.shape[0]),
        pw.Config(dynamic={"x": {0: pw.Dim("rows", 2, 16)}}, compiler="eager"),
        platform=SimulatedPlatform(),
    )
    with pytest.raises(TraceFailed) as caught:
        fast.warmup(torch.randn(4, 4), progress=False)
    assert re.search(r'dim "rows" at \d+; .* Dim\(min, max\) is to be narrowed', str(caught.value))


@pytest.mark.parametrize("mode", ["piecewise", "full", "full_and_piecewise"])
def test_the_run_that_tries_a_size_is_the_one_before_its_capture(mode):
    model, platform = Positions().eval(), SimulatedPlatform()
    fast = pw.compile(
        model,
        pw.Config(
            compiler="eager",
            dynamic={"x": {0: pw.Dim("rows", min=1, max=32)}},
            capture_sizes=(8, 16),
            splitting_ops=("faults_tables::sees",),
            graph_mode=mode,
        ),
        platform=platform,
    )
    fast.warmup(torch.randn(4, 4), progress=False)
    assert SEEN[-7:] == [1, 8, 16, 32, 32, 16, 8]  # this device's captures run, too
    fast.release()
    SEEN.clear()
    fast.restore()
    assert SEEN == [32, 32, 16, 16, 8, 8]
    for rows in (8, 5, 32):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fast(x), model(x))


def test_what_must_run_just_before_its_capture_is_captured():
    platform = SimulatedPlatform()
    last = []

    @torch.library.custom_op("faults_tables::plans", mutates_args=())
    def plans(x: torch.Tensor) -> torch.Tensor:
        if last[-1:] != [x.shape[0]]:
            if platform.graphs.is_capturing():
                raise RuntimeError("operation not permitted when stream is capturing")
            last.append(x.shape[0])
        return x * 2

    plans.register_fake(lambda x: torch.empty_like(x))
    fast = pw.compile(
        lambda x: torch.ops.faults_tables.plans(x) + 1,
        pw.Config(
            compiler="eager",
            dynamic={"x": {0: pw.Dim("rows", min=1, max=16)}},
            capture_sizes=(8, 16),
            graph_mode="piecewise",
            splitting_ops=(),
        ),
        platform=platform,
    )
    assert fast.warmup(torch.randn(4, 4), progress=False).captured == ((16,), (8,))
    x = torch.randn(8, 4)
    torch.testing.assert_close(fast(x), x * 2 + 1)
