"""Bundles end to end: saved in one process, bound in another; refused where they do not fit."""

from __future__ import annotations

import functools
import json
import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.bundle.content import read_content, write_content
from piecewise_core.errors import BundleMismatch, NotTraced, StoreError

ROOT = str(Path(__file__).parents[2])
SOFTMAX = "torch.nn.functional.softmax"


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@dataclass
class Result:
    """What the model returns."""

    logits: torch.Tensor
    rows: int
    kept: torch.Tensor | None = None


class Model(nn.Module):
    """Cut at softmax: a buffer that counts, tied weights, sizes and constants in the result."""

    def __init__(self, width: int = 8, act: str = "gelu") -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width, bias=False)
        self.outer.weight = self.inner.weight
        self.act = act
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, *, scale=1.0, extra=None):
        self.calls.add_(1)
        y = getattr(nn.functional, self.act)(self.inner(x)) * scale
        z = nn.functional.softmax(y, -1)
        z = self.outer(z) + x.shape[0] / 64
        if extra is not None:
            z = z + extra["bias"]
        return Result(z, x.shape[0], x)


def config(**changes):
    settings = {
        "dynamic": {"x": {0: pw.Dim("rows", 0, 64)}},
        "splitting_ops": (SOFTMAX,),
        "compile_ranges_endpoints": (8,),
        "compile_sizes": (16,),
        "compiler": "eager",
    }
    return pw.Config(**{**settings, **changes})


def call(rows, width=8):
    return {"x": torch.randn(rows, width), "scale": 2.0, "extra": {"bias": torch.ones(width)}}


def saved(tmp_path, model=None, **changes):
    fast = pw.compile(model or Model(), config(**changes), "cpu")
    fast(**call(3))
    report = fast.save(tmp_path / "model.pwb")
    return tmp_path / "model.pwb", report


def check(fast, model, sizes=(0, 1, 2, 8, 9, 16, 17, 64), width=8):
    for rows in sizes:
        given = call(rows, width)
        found, expected = fast(**given), model(**given)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
        assert type(found) is Result
        assert found.rows == rows
        assert found.kept is given["x"]


def twin(model):
    other = Model()
    other.load_state_dict(model.state_dict())
    return other


def test_a_loaded_model_serves_every_size_and_traces_and_compiles_nothing(tmp_path):
    model = Model()
    path, report = saved(tmp_path, model)
    assert report.regions >= 1
    assert str(path) in str(report)
    other = twin(model)
    fast = pw.load(path, other)
    assert isinstance(fast, Model)
    fast.seal()
    check(fast, twin(model))
    stats = fast.stats()
    assert stats.graphs == 0
    assert stats.calls["compiled_size"] >= 1
    assert stats.calls["compiled_range"] >= 6
    assert other.calls > model.calls  # writes reach the model's own buffer


def test_weights_are_the_live_model_s(tmp_path):
    path, _ = saved(tmp_path)
    other = Model()
    nn.init.constant_(other.inner.weight, 0.5)
    check(pw.load(path, other), twin(other), sizes=(3,))


def test_errors_of_calls_are_those_of_a_traced_model(tmp_path):
    path, _ = saved(tmp_path)
    fast = pw.load(path, Model())
    with pytest.raises(pw.errors.InputMismatch, match="dim 1 expected 8, got 9"):
        fast(**{**call(3), "x": torch.zeros(3, 9)})
    with pytest.raises(pw.errors.InputMismatch, match="dtype"):
        fast(**{**call(3), "x": torch.zeros(3, 8, dtype=torch.float64)})
    with pytest.raises(pw.errors.OutOfRange, match="65"):
        fast(**call(65))


def test_a_loaded_model_can_be_saved_again(tmp_path):
    path, _ = saved(tmp_path)
    again = tmp_path / "again.pwb"
    pw.load(path, Model()).save(again)
    check(pw.load(again, Model()), Model(), sizes=())
    assert read_content(again).forms == read_content(path).forms


def test_a_loaded_model_is_traced_for_another_form_of_calls(tmp_path):
    path, _ = saved(tmp_path)
    model = Model()
    fast = pw.load(path, twin(model))
    given = {**call(3), "scale": 3.0}
    torch.testing.assert_close(fast(**given).logits, model(**given).logits)
    assert fast.stats().graphs == 1


def test_explain_of_a_loaded_model_reads_as_that_of_the_compiled_one(tmp_path):
    model = Model()
    fast = pw.compile(model, config(), "cpu")
    fast(**call(3))
    fast.save(tmp_path / "x.pwb")
    loaded = pw.load(tmp_path / "x.pwb", twin(model))
    names = [
        [p["ops"] for p in r["pieces"]] for r in json.loads(fast.explain().to_json())["regions"]
    ]
    again = [
        [p["ops"] for p in r["pieces"]] for r in json.loads(loaded.explain().to_json())["regions"]
    ]
    assert names == again
    assert "test_bundles.py" in str(loaded.explain())


def test_a_function_can_be_saved_and_loaded(tmp_path):
    fast = pw.compile(double, pw.Config(dynamic={"x": {0: pw.Dim("n", 1, 9)}}, compiler="eager"))
    fast(torch.ones(3))
    fast.save(tmp_path / "f.pwb")
    loaded = pw.load(tmp_path / "f.pwb", double)
    assert loaded(torch.ones(9)).sum() == 18
    assert loaded.stats().graphs == 0


def double(x):
    return x * 2


def test_random_ops_conditions_and_constant_tensors_are_saved(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            table = torch.tensor([1.0, 2.0, 4.0])
            y = torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))
            return y * table + torch.zeros(x.shape[0], 3), x.shape[0] * 2, "name", torch.float16

    model = Odd()
    fast = pw.compile(
        model, pw.Config(dynamic={"x": {0: pw.Dim("n", 1, 9)}}, compiler="eager"), "cpu"
    )
    x = torch.randn(4, 3)
    expected = fast(x)
    fast.save(tmp_path / "x.pwb")
    found = pw.load(tmp_path / "x.pwb", Odd())(x)
    torch.testing.assert_close(found[0], expected[0])
    assert found[1:] == expected[1:] == (8, "name", torch.float16)


# What does not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Model(act="relu"), "model.act is 'relu', and was 'gelu'"),
        (lambda: Model(width=4), "inner.weight is float32 on cpu, shape (4, 4)"),
        (lambda: Model().double(), "inner.weight is float64"),
        (lambda: Model().train(False).requires_grad_(False) and untied(), "two tensors"),
        (lambda: nn.Linear(8, 8), "signature"),
        (lambda: replaced(), "model.inner is type"),
    ],
)
def test_another_model_is_refused_with_what_differs(tmp_path, make, said):
    path, _ = saved(tmp_path)
    with pytest.raises(BundleMismatch) as caught:
        pw.load(path, make())
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "recompile" in str(caught.value)


def untied():
    model = Model()
    model.outer.weight = nn.Parameter(torch.randn(8, 8))
    return model


class Layer(nn.Linear):
    pass


def replaced():
    model = Model()
    layer = Layer(8, 8)
    layer.weight = model.inner.weight
    model.inner = layer
    return model


def test_another_environment_is_refused_factor_by_factor(tmp_path):
    path, _ = saved(tmp_path)
    content = read_content(path)
    factors = {**content.about.factors, "torch": "1.0", "machine.vector": "none"}
    about = type(content.about)(**{**vars(content.about), "factors": factors})
    write_content(path, type(content)(**{**vars(content), "about": about}))
    with pytest.raises(BundleMismatch) as caught:
        pw.load(path, Model())
    assert f"torch is {content.about.factors['torch']}, and was 1.0" in str(caught.value)
    assert "machine.vector is" in str(caught.value)


def test_another_platform_is_refused(tmp_path):
    from piecewise_core.testing import SimulatedPlatform

    path, _ = saved(tmp_path)
    with pytest.raises(BundleMismatch, match="platform is simulated"):
        pw.load(path, Model(), platform=SimulatedPlatform())


def test_what_does_not_fit_is_compiled_anew_on_request(tmp_path):
    path, _ = saved(tmp_path)
    model = Model(act="relu")
    with pytest.warns(RuntimeWarning, match=r"(?s)compiled anew.*model\.act"):
        fast = pw.load(path, model, on_mismatch="recompile")
    check(fast, Model(act="relu"), sizes=())
    given = call(5)
    torch.testing.assert_close(fast(**given).logits, model(**given).logits)
    assert fast.stats().graphs >= 1


def test_wrong_use_is_said(tmp_path):
    path, _ = saved(tmp_path)
    with pytest.raises(pw.errors.ConfigError, match="on_mismatch"):
        pw.load(path, Model(), on_mismatch="ignore")
    with pytest.raises(pw.errors.ConfigError, match="int"):
        pw.load(path, 3)
    with pytest.raises(StoreError, match="there is no bundle"):
        pw.load(tmp_path / "none.pwb", Model())
    with pytest.raises(NotTraced, match="save"):
        pw.compile(Model(), config(), "cpu").save(tmp_path / "never.pwb")
    assert not (tmp_path / "never.pwb").exists()


def test_what_no_file_can_hold_is_refused_by_name(tmp_path):
    class Cache:
        def __init__(self) -> None:
            self.kept = torch.zeros(8)

    class Reads(nn.Module):
        def forward(self, x, cache):
            return x + cache.kept

    fast = pw.compile(Reads(), pw.Config(dynamic={"x": {0: pw.Dim("n", 1, 9)}}, compiler="eager"))
    fast(torch.ones(3, 8), Cache())
    with pytest.raises(StoreError, match=r'argument "cache" holds a Cache'):
        fast.save(tmp_path / "x.pwb")
    assert os.listdir(tmp_path) == []


# Code in it ---------------------------------------------------------------------------

PROGRAM = """
import os, sys, json
sys.path[:0] = json.loads(os.environ["MODULES"])
import torch  # builds for GPUs start ldconfig when they are imported
started = []
STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system"}
sys.addaudithook(lambda event, args: started.append(event) if event in STARTS else None)
import piecewise_core as pw
from tests.integration.test_bundles import Model, check, twin
torch.manual_seed(0)
model = Model()
with torch.inference_mode():
    fast = pw.load(sys.argv[1], model)
    check(fast, twin(model))
from torch._dynamo.utils import counters
stats = fast.stats()
print(json.dumps({
    "frames": counters["stats"]["unique_graphs"], "started": started,
    "compilations": stats.compilations, "hits": stats.cache_hits, "graphs": stats.graphs,
    "our library came along": "piecewise_dict_guard" in sys.modules,
}))
"""


@pytest.mark.inductor
def test_in_a_fresh_process_without_compiler_it_starts_no_process_and_no_dynamo(
    tmp_path, fresh_processes
):
    path, report = saved(tmp_path, compiler="inductor")
    assert report.left_out == ()
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    path.rename(moved)
    done = fresh_processes.run(
        textwrap.dedent(PROGRAM),
        str(moved),
        env={
            "PATH": "",
            "HOME": str(tmp_path),
            "PIECEWISE_CACHE_MODE": "off",
            "PIECEWISE_CACHE_DIR": str(tmp_path / "none yet"),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "MODULES": json.dumps([ROOT, *(p for p in sys.path if p)]),
        },
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found.pop("hits") <= report.pieces
    assert found.pop("our library came along")
    assert found == {"frames": 0, "started": [], "compilations": 0, "graphs": 0}
    left = [p for p in (tmp_path / "none yet").rglob("*") if p.is_file()]
    assert left == [], "what a bundle brings is for this process alone"


@pytest.mark.inductor
def test_a_bundle_has_what_a_compiler_learned_since_the_store_was_written(tmp_path, monkeypatch):
    """As that of a GPU, which brings the kernels that capturing needed."""
    from source_platform import SourceCompiler, SourcePlatform

    class Learns(SourceCompiler):
        learned = b""

        def load(self, handle):
            loaded = super().load(handle)
            return type(loaded)(loaded.run, lambda: handle + self.learned)

    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "store"))
    model = nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1)).eval()
    settings = pw.Config(dynamic={0: {0: pw.Dim("rows", 1, 64)}}, splitting_ops=(SOFTMAX,))

    def made():
        compiler = Learns()
        fast = pw.compile(model, settings, SourcePlatform(compiler))
        torch.testing.assert_close(fast(x), model(x))
        return fast, compiler

    x = torch.randn(3, 8)
    made()
    fast, compiler = made()
    assert compiler.loaded
    assert not compiler.compiled
    compiler.learned = b"\n# tuned"
    fast.save(tmp_path / "model.pwb")
    again = Learns()
    loaded = pw.load(tmp_path / "model.pwb", model, platform=SourcePlatform(again))
    torch.testing.assert_close(loaded(x), model(x))
    assert again.loaded
    assert all(code.endswith(b"# tuned") for code in again.loaded)


def test_captured_sizes_are_captured_again_from_loaded_code(tmp_path):
    model = Model()
    path, _ = saved(tmp_path, model, compiler="inductor", capture_sizes=(4, 64))
    fast = pw.load(path, twin(model))
    fast.warmup(progress=False)
    fast.seal()
    check(fast, twin(model), sizes=(4, 64, 4, 5))
    stats = fast.stats()
    assert stats.calls["replayed"] == 3
    assert stats.compilations == stats.graphs == 0


def partial(scale, weight):
    return functools.partial(
        lambda x, scale, weight: (x * scale) @ weight, weight=weight, scale=scale
    )


def test_a_partial_function_of_a_lambda_is_bound_to_its_like(tmp_path):
    rows = pw.Dim("rows", 0, 8)
    fast = pw.compile(
        partial(2.0, torch.eye(4)), pw.Config(dynamic={0: {0: rows}}, compiler="eager")
    )
    x = torch.randn(3, 4)
    fast(x)
    fast.save(tmp_path / "partial.pwb")
    weight = torch.randn(4, 4)
    loaded = pw.load(tmp_path / "partial.pwb", partial(2.0, weight))
    torch.testing.assert_close(loaded(x), x * 2 @ weight)
    with pytest.raises(BundleMismatch, match="function is partial"):
        pw.load(tmp_path / "partial.pwb", partial(3.0, weight))
