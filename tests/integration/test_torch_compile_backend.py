"""``torch.compile(model, backend="piecewise")``: torch's front door, our pieces and ranges."""

from __future__ import annotations

import contextlib
import textwrap

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

import piecewise_core as pw
from piecewise_core.errors import GradNeeded

SDPA = "torch.nn.functional.scaled_dot_product_attention"


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


class Attention(torch.nn.Module):
    """Two attention layers of equal shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 24) for _ in range(2))

    def forward(self, x):  # x: [batch, length, 8]
        for layer in self.layers:
            q, k, v = layer(x).chunk(3, dim=-1)
            x = x + torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    ).eval()


def through(fn, *, dynamic: bool | None = True, **options):
    """``fn`` compiled by torch with our backend and the eager compiler."""
    options.setdefault("compiler", "eager")
    return torch.compile(fn, backend="piecewise", dynamic=dynamic, options=options)


class Counted:
    """What the process counters counted since this was made."""

    def __init__(self) -> None:
        self._before = pw.counters.stats()

    def __getattr__(self, name: str):
        return getattr(pw.counters.stats(), name) - getattr(self._before, name)

    @property
    def calls(self) -> dict[str, int]:
        now = pw.counters.stats().calls
        return {k: n - self._before.calls[k] for k, n in now.items() if n > self._before.calls[k]}


def refused(fn, *inputs, **options) -> str:
    """What the backend says when it refuses the options, or the model."""
    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(fn, backend="piecewise", dynamic=True, options=options)(*inputs)
    return str(caught.value)


# Found by torch ---------------------------------------------------------------------


def test_a_fresh_process_needs_no_import_of_ours(fresh_processes):
    script = """
        import sys, torch
        assert "piecewise_core" not in sys.modules
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU()).eval()
        fast = torch.compile(model, backend="piecewise", dynamic=True, options={
            "compiler": "eager", "compile_ranges_endpoints": (32,), "platform": "cpu",
        })
        with torch.inference_mode():
            for rows in (5, 40, 1, 0):
                x = torch.randn(rows, 8)
                torch.testing.assert_close(fast(x), model(x))
        print(dict(sys.modules["piecewise_core"].counters.calls))
    """
    done = fresh_processes.run(textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    assert "'general': 1" in done.stdout
    assert "'compiled_range': 3" in done.stdout


# Sizes ------------------------------------------------------------------------------


def test_every_size_gives_the_same_numbers_with_sizes_0_and_1_among_them():
    model = mlp()
    fast = through(model)
    for rows in (5, 3, 1, 0, 64, 1, 2, 0):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), model(x))


def test_one_dim_takes_plain_endpoints_and_sizes():
    model, counted = mlp(), Counted()
    fast = through(model, compile_ranges_endpoints=(8, 32), compile_sizes=(16,))
    for rows in (5, 8, 9, 16, 33, 500):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), model(x))
    assert counted.calls == {"general": 1, "compiled_range": 4, "compiled_size": 1}
    assert counted.graphs == 1


def test_two_dims_take_endpoints_by_the_inputs_that_carry_them():
    model, counted = Attention().eval(), Counted()
    fast = through(
        model,
        splitting_ops=(SDPA,),
        compile_ranges_endpoints={"x[1]": (4, 16)},
        compile_sizes=[(2, 8)],
        compile_mode="warmup",
    )
    for shape in ((2, 3), (3, 5), (2, 8), (7, 17), (30, 2)):
        x = torch.randn(*shape, 8)
        torch.testing.assert_close(fast(x), model(x))
    assert counted.calls == {"compiled_range": 4, "compiled_size": 1}
    assert (counted.pieces, counted.compilable_pieces, counted.unique_pieces) == (5, 3, 3)
    assert counted.compilations == 3 * 4


def test_marked_bounds_are_the_bounds_of_the_ranges():
    model, counted = mlp(), Counted()
    fast = through(model, dynamic=None, compile_sizes=(64, 4096), compile_mode="warmup")
    x = torch.randn(64, 8)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=100)
    torch.testing.assert_close(fast(x), model(x))
    assert counted.calls == {"compiled_size": 1}
    assert counted.compilations == 2  # 4096 lies outside the bounds that Dynamo guards


def test_a_static_graph_has_one_target_and_takes_no_sizes():
    model, counted = mlp(), Counted()
    fast = through(model, dynamic=False, compile_ranges_endpoints=(8,), compile_sizes=(16,))
    for _ in range(2):
        x = torch.randn(5, 8)
        torch.testing.assert_close(fast(x), model(x))
    assert counted.calls == {"compiled_range": 1, "replayed": 1}
    assert (counted.graphs, counted.compilations) == (1, 1)


def test_a_size_that_becomes_dynamic_at_the_second_call_gets_its_ranges_then():
    model, counted = mlp(), Counted()
    fast = through(model, dynamic=None, compile_ranges_endpoints=(8,), compile_mode="warmup")
    for rows in (4, 5, 6, 20):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), model(x))
    assert counted.graphs == 2
    assert counted.compilations == 1 + 2


def test_an_int_argument_is_a_dim_and_may_be_negative():
    def fn(x, scale):
        return (x * scale).relu()

    counted = Counted()
    fast = through(fn)
    for scale in (3, -3, 0, 1, 7):
        x = torch.randn(4, 3)
        torch.testing.assert_close(fast(x, scale), fn(x, scale))
    assert counted.calls["eager"] == 1  # no range holds a negative size: it runs as written


def test_a_python_float_is_a_constant_that_is_guarded():
    def fn(x, scale):
        return (x * scale).softmax(-1) / x.shape[0] ** 0.5

    counted = Counted()
    fast = through(fn)
    for scale, rows in ((0.5, 4), (0.5, 5), (0.7, 4), (0.5, 6)):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(fast(x, scale), fn(x, scale))
    assert counted.graphs == 2


def same_bits(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    for a, b in zip(got, want, strict=True):
        parts = [torch.view_as_real(t) if t.is_complex() else t for t in (a, b)]
        assert torch.equal(*map(torch.signbit, parts)) or bool(parts[0].isnan().any())


@pytest.mark.parametrize("dynamic", [True, None])
def test_zeros_of_either_sign_nan_and_inf_are_numbers_of_their_own(dynamic):
    def fn(x, scale, other):
        return x * scale, x * (-scale * 2), x * (scale + other), x / (other or scale)

    fast, x = through(fn, dynamic=dynamic), torch.ones(4, 3)
    nan, inf = float("nan"), float("inf")
    for scale, other in (
        (0.0, 1.0),
        (-0.0, 1.0),
        (0.0, -0.0),
        (-0.0, -0.0),
        (nan, 0.5),
        (2.5, inf),
    ):
        same_bits(fast(x, scale, other), fn(x, scale, other))


def test_a_zero_in_an_attribute_a_tuple_or_a_complex_number_keeps_its_sign():
    model = torch.nn.Identity()

    def fn(x, pair):
        return x * model.scale, x * pair[0], torch.stack([x, x + pair[1]])

    fast, x = through(fn), torch.ones(3, 2, dtype=torch.complex64)
    for a, b in ((0.0, 0j), (-0.0, 0j), (-0.0, -0j), (0.0, complex(-0.0, 0.0))):
        model.scale = a
        same_bits(fast(x, (-a, b)), fn(x, (-a, b)))


def test_a_torch_function_mode_acts_once():
    class Adding(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            return result + 1 if func is torch.sin else result

    def fn(x):
        return torch.sin(x).cos() + torch.ones(3)

    fast, x = through(fn), torch.randn(4, 3)
    for around in (Adding(), torch.device("cpu"), contextlib.nullcontext(), Adding()):
        with around:
            torch.testing.assert_close(fast(x), fn(x))


def test_a_float_attribute_of_a_module_is_a_constant():
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4)).eval()
    fast = through(model)
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))
    model[1].eps = 0.5
    torch.testing.assert_close(fast(x), model(x))


def test_unbounded_dims_have_no_maximum_to_capture():
    model, counted = mlp(), Counted()
    fast = through(model, capture_sizes=(9,), compile_sizes="capture_sizes", compile_mode="warmup")
    x = torch.randn(9, 8)
    torch.testing.assert_close(fast(x), model(x))
    assert counted.compilations == 2


# Models -----------------------------------------------------------------------------


def test_inputs_written_in_place_are_written():
    def fn(x, y):
        x.add_(1)
        return x * y

    fast = through(fn)
    x, y = torch.zeros(5, 3), torch.ones(5, 3)
    torch.testing.assert_close(fast(x, y), torch.ones(5, 3))
    torch.testing.assert_close(x, torch.ones(5, 3))


def test_one_graph_on_each_side_of_a_graph_break():
    def fn(x):
        x = x.relu()
        torch._dynamo.graph_break()
        return x + 1

    counted = Counted()
    fast = through(fn)
    x = torch.randn(5, 3)
    torch.testing.assert_close(fast(x), fn(x))
    assert counted.graphs == 2


def test_a_parameter_that_changes_is_seen():
    model = mlp()
    fast = through(model)
    x = torch.randn(5, 8)
    fast(x)
    model[0].weight.copy_(torch.zeros_like(model[0].weight))
    torch.testing.assert_close(fast(x), model(x))


def test_background_mode_compiles_what_the_eager_compiler_cannot_send_out_at_once():
    model, counted = mlp(), Counted()
    fast = through(model, compile_mode="background", compile_ranges_endpoints=(8,))
    for rows in (4, 9, 5):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), model(x))
    assert counted.calls == {"compiled_range": 3}


@pytest.mark.inductor
def test_inductor_compiles_equal_layers_once_per_range():
    model, counted = Attention().eval(), Counted()
    fast = torch.compile(
        model, backend="piecewise", dynamic=True, options={"splitting_ops": [SDPA]}
    )
    for shape in ((2, 3), (5, 7), (1, 4), (3, 40)):
        x = torch.randn(*shape, 8)
        torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-5)
    assert sum(counted.calls.values()) == 4


# Refusals ---------------------------------------------------------------------------


def test_an_unknown_option_is_refused_with_the_nearest_name():
    said = refused(mlp(), torch.randn(5, 8), splitting_op=("aten::add",))
    assert "ConfigError" in said
    assert "did you mean 'splitting_ops'?" in said


def test_a_wrong_value_is_refused_naming_the_field():
    said = refused(mlp(), torch.randn(5, 8), compile_mode="backgrund")
    assert "Config.compile_mode: 'backgrund'" in said
    assert "did you mean 'background'?" in said


def test_an_environment_variable_counts_and_is_named_when_refused(monkeypatch):
    monkeypatch.setenv("PIECEWISE_COMPILE_MODE", "sometimes")
    said = refused(mlp(), torch.randn(5, 8))
    assert "PIECEWISE_COMPILE_MODE='sometimes'" in said


def test_dims_are_torch_compile_s_to_say():
    said = refused(mlp(), torch.randn(5, 8), dynamic={"x": {0: pw.Dim("rows", max=9)}})
    assert "mark_dynamic" in said


def test_plain_endpoints_with_two_dims_are_refused_naming_the_dims():
    said = refused(Attention(), torch.randn(2, 5, 8), compile_ranges_endpoints=(8,))
    assert "there are 2: 'x[0]', 'x[1]'" in said
    said = refused(Attention(), torch.randn(2, 5, 8), compile_ranges_endpoints={"y[1]": (8,)})
    assert "'y[1]' is not the name of a dim ('x[0]', 'x[1]')" in said


def test_an_unknown_splitting_op_is_refused_with_the_nearest_names():
    name = "torch.nn.functional.scaled_dot_product_atention"
    said = refused(Attention(), torch.randn(2, 5, 8), splitting_ops=(name,))
    assert "UnknownSplittingOp" in said
    assert f"did you mean {SDPA}" in said


def test_a_splitting_op_that_is_not_in_the_graph_is_refused_naming_candidates():
    said = refused(Attention(), torch.randn(2, 5, 8), splitting_ops=("aten::conv2d",))
    assert "NothingToSplit" in said
    assert f"{SDPA} (x2)" in said


def test_an_unknown_platform_is_refused():
    said = refused(mlp(), torch.randn(5, 8), platform="cupid")
    assert "NoPlatform" in said
    assert "cupid" in said


def test_a_call_that_needs_gradients_is_refused_and_the_next_one_without_is_served():
    model = mlp()
    fast = through(model)
    x = torch.ones(5, 8)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        pytest.raises(GradNeeded, match="inference_mode"),
    ):
        fast(torch.ones(5, 8))
    torch.testing.assert_close(fast(x), model(x))
    with torch.inference_mode(False), torch.no_grad():
        x = torch.ones(7, 8)
        torch.testing.assert_close(fast(x), model(x))


def test_a_graph_that_turns_gradients_off_by_itself_is_served_with_gradients_enabled():
    with torch.inference_mode(False), torch.enable_grad():
        model = mlp()
        taken = through(lambda x: model(x).argmax(-1))
        without = through(torch.no_grad()(model.forward))
        for rows in (5, 5, 5, 3, 3):
            x = torch.randn(rows, 8)
            got = without(x)
            assert not got.requires_grad
            torch.testing.assert_close(got, model(x).detach())
            torch.testing.assert_close(taken(x), model(x).argmax(-1))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("rows", [1, 3])
def test_a_graph_with_quantized_tensors_runs_as_written(rows):
    torch._dynamo.reset()

    def fn(x):
        return torch.quantize_per_tensor(x * 2, 0.1, 0, torch.quint8).dequantize() + 1

    fast = torch.compile(fn, backend="piecewise")
    x = torch.randn(rows, 4)
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(fast(x), fn(x))


def test_a_graph_that_takes_nested_tensors_runs_as_written(caplog):
    fn = through(lambda x: x.sin() * 2)
    for rows in ((2, 3), (4, 1, 5)):
        parts = [torch.randn(n, 4) for n in rows]
        x = torch.nested.nested_tensor(parts, layout=torch.jagged)
        torch.testing.assert_close(fn(x).values(), x.values().sin() * 2)
    assert "takes nested tensors runs as written" in caplog.text


def test_a_splitting_op_that_cannot_run_on_made_up_sizes_prints_nothing(capfd):
    fn = through(lambda x: x.sin().view(-1, 2, 3).cos(), splitting_ops=("aten::view",))
    for rows in (3, 5):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(fn(x), x.sin().view(-1, 2, 3).cos())
    assert "Traceback" not in "".join(capfd.readouterr())
