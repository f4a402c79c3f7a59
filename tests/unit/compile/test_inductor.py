"""Inductor's code, per range: right at every size, loadable, and keyed by what changes it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.compile.inductor import InductorCompiler

pytestmark = pytest.mark.inductor
ROWS = pw.Dim("rows", 0, 64)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Model(nn.Module):
    """Reductions, views, a write to an input and sizes in arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x, cache):
        hidden = self.norm(nn.functional.gelu(self.before(x)) + x.shape[0] / 64)
        attended = nn.functional.softmax(hidden, -1)
        cache[: x.shape[0]].add_(attended)
        return attended.view(-1, 2).sum(0) * (x.shape[0] / 64), hidden[1:] - hidden[:-1]


def test_results_and_writes_equal_eager_at_every_size_of_every_range():
    model = Model()
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 64)}},
        splitting_ops=("torch.nn.functional.softmax",),
        compile_ranges_endpoints=(8,),
        compile_sizes=(16,),
        compiler="inductor",
    )
    fast = pw.compile(model, config, "cpu")
    fast.warmup(torch.randn(5, 8), torch.zeros(64, 8), progress=False)
    fast.seal()
    mine, theirs = torch.zeros(64, 8), torch.zeros(64, 8)
    for size in (1, 2, 8, 9, 16, 17, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x, mine), model(x, theirs), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert fast.stats().compilations == 2 * 3


def test_no_tensor_stays_in_a_graph_that_a_rewrite_had_lowered(pieces_of):
    """Inductor would copy it to the device at every call, which no capture allows."""
    from piecewise_core.compile.examples import make_job
    from piecewise_core.compile.lowering import lower
    from piecewise_core.ranges import Box, Range

    def model(x):
        y = x.clone()
        y[:, 0] = 3.0
        return y * 2

    made = pieces_of(model, torch.randn(3, 8), dynamic={"x": {0: ROWS}})
    job = make_job(made.compilable[0], made.symbols, Box((Range(0, 64),)))
    with job.context():
        lowered = lower(job.graph, job.inputs)
        assert lowered.graph.find_nodes(op="get_attr")
        compiled = InductorCompiler().compile(
            lowered, job.inputs, key="test-lowered", config=made.config
        )
    assert not lowered.graph.find_nodes(op="get_attr")
    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled.run(3, x)[0], model(x))


def test_its_code_can_be_handed_over_and_loaded(pieces_of):
    from piecewise_core.compile.examples import make_job
    from piecewise_core.ranges import Box, Range

    made = pieces_of(lambda x: (x * 2).cos(), torch.randn(3, 8), dynamic={"x": {0: ROWS}})
    job = make_job(made.compilable[0], made.symbols, Box((Range(0, 64),)))
    compiler = InductorCompiler()
    with job.context():
        compiled = compiler.compile(job.graph, job.inputs, key="test-[0, 64]", config=made.config)
    loaded = InductorCompiler().load(compiled.handle())
    for size in (3, 0, 1, 64):
        x = torch.randn(size, 8)
        for run in (compiled.run, loaded.run):
            torch.testing.assert_close(run(size, x)[0], (x * 2).cos())


def test_what_an_artifact_of_torch_brings_gets_into_no_cache_of_other_programs(
    pieces_of, tmp_path, monkeypatch
):
    from piecewise_core.compile import inductor
    from piecewise_core.compile.examples import make_job
    from piecewise_core.ranges import Box, Range

    made = pieces_of(lambda x: (x * 3).sin(), torch.randn(3, 8), dynamic={"x": {0: ROWS}})
    job = make_job(made.compilable[0], made.symbols, Box((Range(0, 64),)))
    monkeypatch.setattr(inductor, "_native", lambda build, library, chosen: None)  # as on a GPU
    with job.context():
        compiled = InductorCompiler().compile(
            job.graph, job.inputs, key="other-[0, 64]", config=made.config
        )
    handle = compiled.handle()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "shared"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    loaded = InductorCompiler().load(handle)
    x = torch.randn(5, 8)
    torch.testing.assert_close(loaded.run(5, x)[0], (x * 3).sin())
    assert not (tmp_path / "shared").exists()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "shared")
    assert "TRITON_CACHE_DIR" not in os.environ


def test_its_hash_factors_change_with_settings_and_threads():
    plain = InductorCompiler().hash_factors()
    other = InductorCompiler(settings={"max_autotune": True}).hash_factors()
    assert plain != other
    assert {"torch", "torch_key", "threads"} <= set(plain)
    assert all(isinstance(v, str) for v in plain.values())


def test_its_hash_factors_are_the_same_before_and_after_it_got_ready():
    compiler = InductorCompiler(prepare=lambda: {"cpp.vec_isa_ok": True})
    before = compiler.hash_factors()
    compiler.get_ready()
    assert compiler.hash_factors() == before


def test_code_from_inductor_s_caches_serves_the_sizes_that_fresh_code_serves():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

        def forward(self, x):  # x: [batch, length, 64]
            parts = self.inner(x).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in parts)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            return x + self.out(y.transpose(1, 2).flatten(2))

    dims = {0: pw.Dim("batch", 1, 16), 1: pw.Dim("length", 1, 64)}
    attention = ("torch.nn.functional.scaled_dot_product_attention",)
    config = pw.Config(dynamic={"x": dims}, splitting_ops=attention, compiler="inductor")
    model = Heads()
    for _ in range(2):
        fast = pw.compile(model, config, "cpu")
        assert fast.warmup(torch.randn(2, 3, 64), progress=False).as_written == ()
        x = torch.randn(1, 5, 64)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_write_to_a_part_that_follows_from_a_size_is_compiled() -> None:
    def fill(x: torch.Tensor) -> torch.Tensor:
        whole = x.clone()
        whole[x.shape[0] // 2 :] = 3.0
        return whole

    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 64)}}, check="strict")
    fast = pw.compile(fill, config, platform="cpu")
    for rows in (4, 7, 64, 1):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(fast(x), fill(x))
    assert fast.stats().compilations == 1


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen.index_add_(0, torch.zeros(1, dtype=torch.long), x.sum(0)[:1])
        x.index_add_(0, torch.tensor([1, 0]), x[:2].clone())
        x.index_copy_(0, torch.tensor([1, 0]), x[:2].repeat(1, 1))
        return self.seen.clone(), self.seen.clone().view(2, 2), self.seen * 1, self.seen


def test_a_copy_of_a_buffer_that_was_written_to_is_not_the_buffer() -> None:
    model, written = Counts(), Counts()
    fast = pw.compile(model, pw.Config(dynamic={"x": {0: pw.Dim("rows", 1, 64)}}), platform="cpu")
    kept = []
    for x in torch.randn(3, 2, 4):
        own = x.clone()
        kept.append((fast(x), [t.clone() for t in written(own)]))
        torch.testing.assert_close(x, own)
    for got, expected in kept:
        for mine, own in zip(got[:3], expected[:3], strict=True):
            torch.testing.assert_close(mine, own)
        assert got[3] is model.seen
