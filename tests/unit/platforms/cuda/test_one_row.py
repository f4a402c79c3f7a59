"""Products of one row become launches of our kernel; each result goes to whoever read it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

pytest.importorskip("triton")

from piecewise_core.errors import CompilerUnavailable
from piecewise_core.torch_compat.storages import storage_key
from piecewise_cuda.one_row import one_row_kernels, rows_to_kernels
from piecewise_cuda.row_kernel import MOST, rows_times_weights

F = nn.functional
INNER, OUTPUTS = 1024, 512
ATEN = torch.ops.aten
LONG = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.STATIC, DimDynamic.DYNAMIC])


class AsWritten(torch.fx.Interpreter):
    """Runs the operator as it is meant."""

    def call_function(self, target, args, kwargs):
        if target is not rows_times_weights:
            return super().call_function(target, args, kwargs)
        row, weights, added = args
        assert row.shape == (1, weights[0].shape[1])
        assert row.is_contiguous()
        assert len(weights) <= MOST
        assert len(weights) == len(added)
        sums = [row.float() @ weight.float().t() for weight in weights]
        for total, more in zip(sums, added, strict=True):
            if more is not None:
                assert more.shape == total.shape
                total += more.float()
        return [total.to(row.dtype) for total in sums]


def plain(x, w, v, b):
    return F.linear(x, w)


def with_bias(x, w, v, b):
    return F.linear(x, w, b)


def two(x, w, v, b):
    return F.linear(x, w), F.linear(x, v, b)


def four(x, w, v, b):
    return [F.linear(x, w), F.linear(x, v, b), F.linear(x, w, b), F.linear(x, v)]


def residual(x, w, v, b):
    y = x[..., :OUTPUTS].sin()
    return y + F.linear(x, w)


def residual_read_again(x, w, v, b):
    y = x[..., :OUTPUTS].sin()
    z = F.linear(x, w) + y
    return z, z * y


def product_read_twice(x, w, v, b):
    p = F.linear(x, w)
    return p + x[..., :OUTPUTS].sin(), p.cos()


def number_added(x, w, v, b):
    return F.linear(x, w) + 2


def added_to_itself(x, w, v, b):
    p = F.linear(x, w)
    return p + p


def scaled_residual(x, w, v, b):
    return torch.add(x[..., :OUTPUTS].sin(), F.linear(x, w), alpha=2)


def broadcast(x, w, v, b):
    return F.linear(x, w) + b[:1]


def broadcast_itself(x, w, v, b):
    return F.linear(x, w) + torch.stack([b, b])


def residual_of_another_dtype(x, w, v, b):
    return F.linear(x, w) + b.double()


def sum_of_two(x, w, v, b):
    return F.linear(x, w) + F.linear(x, v), F.linear(x, v) + F.linear(x.sin(), w)


def first_added_to_behind_the_use_of_the_second(x, w, v, b):
    p = F.linear(x, w)
    q = F.linear(x, v).sin()
    return p + b, q


def one_after_the_other(x, w, v, b):
    return F.linear(torch.cat([F.linear(x, w), F.linear(x, v)], -1), w)


def given_residual_added_late(x, w, v, b):
    late = F.linear(x, w).reshape(-1)
    soon = F.linear(x, v).sin()
    return soon, late + b, F.linear(x, v) + b[None]


def row_of_a_product(x, w, v, b):
    square = torch.cat([w, v])
    y = F.linear(F.linear(x, square), square)
    return F.linear(F.linear(y, square), w)


def residuals_of_residuals(x, w, v, b):
    y = x + F.linear(x, torch.cat([w, v]))
    z = y + F.linear(y.tanh(), torch.cat([v, w]))
    return z, z + F.linear(z, torch.cat([v, v])), y + 1


def weight_written_between(x, w, v, b):
    first = F.linear(x, v)
    v = v.clone()
    second = F.linear(x, v)
    v.mul_(2)
    return first, second, F.linear(x, v)


def row_written_between(x, w, v, b):
    x = x.clone()
    first = F.linear(x, w)
    x.add_(1)
    return first, F.linear(x, v)


def residual_behind_a_write(x, w, v, b):
    x = x.clone()
    p = F.linear(x, w)
    x.add_(1)
    return p + x[..., :OUTPUTS].sin()


def computed_weight(x, w, v, b):
    return F.linear(x, w * 2), F.linear(x, v)


def kept_the_other_way(x, w, v, b):
    return x @ w.t().contiguous().t().contiguous().t()


def strided_row(x, w, v, b):
    return F.linear(torch.stack([x, x], -1)[..., 0], w)


def of_a_split(x, w, v, b):
    parts = torch.cat([x, x * 2]).flatten().split(INNER)
    return [F.linear(part[None], w) for part in parts[:2]]


KERNELS = {
    plain: 1,
    with_bias: 1,
    two: 1,
    four: 2,
    residual: 1,
    residual_read_again: 1,
    product_read_twice: 1,
    number_added: 1,
    added_to_itself: 1,
    scaled_residual: 1,
    broadcast: 1,
    broadcast_itself: 1,
    residual_of_another_dtype: 1,
    sum_of_two: 4,
    first_added_to_behind_the_use_of_the_second: 1,
    one_after_the_other: 2,
    given_residual_added_late: 2,
    row_of_a_product: 4,
    residuals_of_residuals: 3,
    weight_written_between: 3,
    row_written_between: 2,
    residual_behind_a_write: 1,
    computed_weight: 2,
    kept_the_other_way: 1,
    strided_row: 0,
    of_a_split: 2,
}


def memory(node):
    return storage_key(node.meta["val"].untyped_storage())


def listed(results):
    return [results] if isinstance(results, torch.Tensor) else list(results)


def given(dtype, shape=(1, 1, INNER)):
    torch.manual_seed(0)
    sizes = shape, (OUTPUTS, INNER), (OUTPUTS, INNER), (OUTPUTS,)
    return [(torch.randn(s, dtype=torch.float64) / 8).to(dtype) for s in sizes]


@pytest.mark.parametrize("shape", [(1, 1, INNER), (1, INNER), (INNER,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fn", KERNELS)
def test_each_product_is_launched_and_gives_what_it_gave(monkeypatch, fn, dtype, shape):
    monkeypatch.setattr("piecewise_cuda.one_row._LEAST_BYTES", 1)
    inputs = given(dtype, shape)
    traced = make_fx(fn, tracing_mode="fake")(*inputs)
    launches = rows_to_kernels(traced.graph, "cpu")
    if len(shape) > 1:
        assert launches == KERNELS[fn]
        left = [n for n in traced.graph.nodes if n.target in (ATEN.mm.default, ATEN.addmm.default)]
        assert len(left) == (fn is strided_row)
    traced.graph.lint()
    for node in traced.graph.nodes:
        assert node.op in ("placeholder", "output", "get_attr") or "val" in node.meta
        if node.target is ATEN.view.default:
            assert memory(node) == memory(node.args[0])
    with torch.no_grad():
        exact = fn(*(each.double() for each in inputs))
        found, eager = AsWritten(traced).run(*inputs), fn(*inputs)
    for one, other, right in zip(*map(listed, (found, eager, exact)), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        off, unit = (one - right).abs().max(), torch.finfo(dtype).eps * right.abs().max()
        assert off <= 2 * (other - right).abs().max() + unit


@pytest.mark.parametrize(
    ("rows", "dtype", "inner"),
    [(2, torch.bfloat16, INNER), (1, torch.float64, INNER), (1, torch.bfloat16, 256)],
)
def test_other_products_are_left_alone(rows, dtype, inner):
    def fn(x, w):
        return F.linear(x, w)

    sizes = (rows, inner), (OUTPUTS, inner)
    traced = make_fx(fn, tracing_mode="fake")(*(torch.randn(s).to(dtype) for s in sizes))
    assert rows_to_kernels(traced.graph, "cpu") == 0


def test_a_size_that_may_be_one_is_left_alone():
    inputs = given(torch.bfloat16, (3, INNER))
    traced = make_fx(plain, tracing_mode="symbolic")(*inputs)
    assert rows_to_kernels(traced.graph, "cpu") == 0


def test_symbols_are_asked_nothing(monkeypatch):
    monkeypatch.setattr("piecewise_cuda.one_row._LEAST_BYTES", 1)

    def fn(x, w, y):
        return F.linear(x, w).view(2, -1) + y[:, : OUTPUTS // 2]

    mode, y = FakeTensorMode(shape_env=ShapeEnv()), torch.randn(2, 777)
    y = mode.from_tensor(y, symbolic_context=LONG, source=ConstantSource("y"))
    with mode:
        traced = make_fx(fn)(torch.randn(1, INNER), torch.randn(OUTPUTS, INNER), y)
    known = len(mode.shape_env.guards)
    assert rows_to_kernels(traced.graph, "cpu") == 1
    assert len(mode.shape_env.guards) == known


def test_without_triton_the_compiler_is_unavailable(monkeypatch):
    monkeypatch.setattr("piecewise_cuda.one_row._LEAST_BYTES", 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    traced = make_fx(plain, tracing_mode="fake")(*given(torch.float32))
    with pytest.raises(CompilerUnavailable, match="pip install triton"):
        rows_to_kernels(traced.graph, "cpu")


def test_a_piece_of_the_cpu_is_left_alone():
    traced = make_fx(plain, tracing_mode="fake")(*given(torch.float32))
    one_row_kernels().apply(traced, lambda node: False)
    assert [n for n in traced.graph.nodes if n.target is ATEN.mm.default]


INTERPRETED = textwrap.dedent(
    """
    import torch, triton
    from piecewise_cuda import row_kernel

    torch.manual_seed(0)
    plain = torch.library.wrap_triton
    torch.library.wrap_triton = lambda kernel: kernel
    worst = 0.0
    for inner in (512, 1024, 1500, 4500):
        for outputs in ((16,), (21, 7), (6, 32, 9)):
            for dtype in (torch.float32, torch.float16):
                row = torch.randn(1, inner).to(dtype)
                weights = [torch.randn(n, inner + 8).to(dtype)[:, :inner] for n in outputs]
                added = [torch.randn(1, n).to(dtype) for n in outputs]
                added[-1] = None
                outs = row_kernel._launched(row, weights, added)
                for out, weight, more in zip(outs, weights, added, strict=True):
                    want = row.double() @ weight.double().t()
                    want = want if more is None else want + more.double()
                    assert out.dtype is dtype and out.shape == want.shape
                    eps = torch.finfo(dtype).eps * inner**0.5 * 4
                    off = (out.double() - want).abs() / want.abs().clamp(8)
                    worst = max(worst, float(off.max()) / eps)
    print("worst", worst)
    assert 0 < worst < 1
    """
)


FUNCTIONAL = textwrap.dedent(
    """
    import torch, triton
    from functorch.compile import aot_function
    from piecewise_cuda.row_kernel import rows_times_weights
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

    class Seen(Exception):
        pass

    def stop(graph, inputs):
        raise Seen(len(graph.graph.output_node().args[0]))

    triton.runtime.driver.set_active(Driver())
    row, weights = torch.randn(1, 512), [torch.randn(512, 512) for _ in range(3)]
    for many in (1, 2, 3):
        def fn(row, added, *weights):
            return rows_times_weights(row, weights, [added, *[None] * (many - 1)])
        try:
            with torch.no_grad():
                aot_function(fn, stop)(row, row + 1, *weights[:many])
        except Seen as seen:
            assert seen.args == (many,), seen
    """
)


def test_compilers_see_that_nothing_that_is_given_is_written_to(fresh_processes):
    """Where torch cannot tell, it takes every weight for written to."""
    done = fresh_processes.run(FUNCTIONAL)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_kernel_sums_every_output_of_every_weight():
    # An interpreter of its own: Triton decides when it is imported whether it interprets.
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
