"""FAULTS 26 to 29: what a call is given, and what an operator gives back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.errors import (
    GradNeeded,
    InputMismatch,
    OpContractBroken,
    TraceFailed,
    UnsupportedOutput,
)
from piecewise_core.protocols import Capabilities
from piecewise_core.testing import SimulatedPlatform

LIBRARY = "faults_calls"
ROWS = pw.Dim("rows", 0, 64)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def compiled(model, dynamic=None, platform="cpu", **config):
    settings = {"dynamic": dynamic or {0: {0: ROWS}}, "compiler": "eager", **config}
    return pw.compile(model, pw.Config(**settings), platform)


# 26: fake kernels that lie ---------------------------------------------------------------


def lying(name: str, real, fake):
    """An operator whose fake kernel promises ``fake(x)`` and that returns ``real(x)``."""
    op = torch.library.custom_op(f"{LIBRARY}::{name}", real, mutates_args=(), schema=SCHEMA)
    op.register_fake(fake)
    return op


SCHEMA = "(Tensor x) -> Tensor"

wrong_rows = lying("wrong_rows", lambda x: x[1:] * 2, lambda x: torch.empty_like(x))
wrong_dtype = lying("wrong_dtype", lambda x: x.double(), lambda x: torch.empty_like(x))
wrong_rank = lying("wrong_rank", lambda x: x[None] * 2, lambda x: torch.empty_like(x))
wrong_strides = lying(
    "wrong_strides", lambda x: (x * 2).t().contiguous().t(), lambda x: x.new_empty(x.shape)
)
honest = lying("honest", lambda x: (x * 2).t().contiguous().t(), lambda x: torch.empty_like(x).t()
               .contiguous().t())  # fmt: skip


class Between(nn.Module):
    """An operator with a layer on each side."""

    def __init__(self, op) -> None:
        super().__init__()
        self.op = op
        self.before = nn.Linear(8, 8)
        self.after = nn.Linear(8, 8)

    def forward(self, x):
        return self.after(self.op(self.before(x)))


@pytest.mark.parametrize(
    ("op", "name", "promised", "returned"),
    [
        (wrong_rows, "wrong_rows", "(5, 8)", "(4, 8)"),
        (wrong_dtype, "wrong_dtype", "torch.float32", "torch.float64"),
        (wrong_rank, "wrong_rank", "(5, 8)", "(1, 5, 8)"),
    ],
)
@pytest.mark.parametrize("endpoints", [(), (8,)])
def test_a_fake_kernel_that_lies_is_found_at_the_first_call(
    op, name, promised, returned, endpoints
):
    """FAULTS 26."""
    model = Between(op)
    fast = compiled(
        model, splitting_ops=(f"{LIBRARY}::{name}",), compile_ranges_endpoints=endpoints
    )
    with pytest.raises(OpContractBroken) as caught:
        fast(torch.randn(5, 8))
    message = str(caught.value)
    assert f"{LIBRARY}::{name} (piece 1" in message
    assert "test_faults_calls.py" in message
    assert "register_fake" in message
    before, _, after = message.partition("where its fake kernel promises")
    assert returned in before
    assert promised in after


def test_a_fake_kernel_that_lies_about_strides_is_served_right():
    """FAULTS 26 and 43."""
    model = Between(wrong_strides)
    fast = compiled(model, splitting_ops=(f"{LIBRARY}::wrong_strides",))
    for size in (5, 1, 2, 0):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))


def test_a_fake_kernel_that_lies_is_found_at_the_first_call_after_warm_up():
    """FAULTS 26."""
    fast = compiled(
        Between(wrong_dtype),
        splitting_ops=(f"{LIBRARY}::wrong_dtype",),
        compile_ranges_endpoints=(8,),
    )
    fast.warmup(torch.randn(2, 8), progress=False)
    for size in (5, 20):
        with pytest.raises(OpContractBroken, match="wrong_dtype"):
            fast(torch.randn(size, 8))


def test_an_honest_fake_kernel_with_foreign_strides_passes():
    """FAULTS 26."""
    model = Between(honest)
    fast = compiled(model, splitting_ops=(f"{LIBRARY}::honest",))
    for size in (5, 0, 1, 2):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))


def test_check_off_trusts_fake_kernels():
    """FAULTS 26."""
    model = Between(honest)
    fast = compiled(model, splitting_ops=(f"{LIBRARY}::honest",), check="off")
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))


# 27: misaligned inputs ------------------------------------------------------------------


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


class RecordingCompiler(EagerCompiler):
    """Runs pieces as written, noting where the tensors that they are given begin."""

    name = "recording"

    def __init__(self) -> None:
        self.addresses: list[int] = []

    def compile(self, graph, example_inputs, *, key, config):
        compiled = super().compile(graph, example_inputs, key=key, config=config)

        def run(*args):
            self.addresses += [a.data_ptr() for a in args if isinstance(a, torch.Tensor)]
            return compiled.run(*args)

        return type(compiled)(run)


def platform(alignment: int) -> SimpleNamespace:
    return SimpleNamespace(
        device=Runtime(),
        graphs=None,
        compiler=RecordingCompiler(),
        capabilities=Capabilities(alignment=alignment),
    )


def at_offset(rows: int, *, aligned: bool) -> torch.Tensor:
    """Rows of 8 floats whose data does, or does not, start at a multiple of 64 bytes."""
    memory = torch.randn(rows * 8 + 32)
    start = (-memory.data_ptr() % 64) // 4 + (0 if aligned else 1)
    return memory[start : start + rows * 8].view(rows, 8)


def test_a_misaligned_input_is_copied_to_an_aligned_buffer_and_counted():
    """FAULTS 27."""
    place = platform(alignment=64)
    fast = compiled(lambda x: x * 2, platform=place, compiler=None)
    for aligned, restrided in ((True, 0), (False, 1), (True, 1), (False, 2)):
        x = at_offset(5, aligned=aligned)
        torch.testing.assert_close(fast(x), x * 2)
        assert fast.stats().restrided == restrided
    assert place.compiler.addresses
    assert all(a % 64 == 0 for a in place.compiler.addresses)


def test_a_platform_without_an_alignment_takes_any_address():
    """FAULTS 27."""
    fast = compiled(lambda x: x * 2, platform=platform(alignment=1), compiler=None)
    x = at_offset(5, aligned=False)
    torch.testing.assert_close(fast(x), x * 2)
    assert fast.stats().restrided == 0


def test_a_misaligned_input_that_is_written_to_is_refused_naming_it():
    """FAULTS 27."""
    fast = compiled(lambda x: x.add_(1), platform=platform(alignment=64), compiler=None)
    fast(at_offset(5, aligned=True))
    with pytest.raises(InputMismatch, match=r'"x".*64 bytes.*writes to it'):
        fast(at_offset(5, aligned=False))


def test_a_first_misaligned_input_that_is_written_to_is_refused_too():
    """FAULTS 27."""
    fast = compiled(lambda x: x.add_(1), platform=platform(alignment=64), compiler=None)
    x = at_offset(5, aligned=False)
    before = x.clone()
    with pytest.raises(InputMismatch, match=r'"x".*writes to it'):
        fast(x)
    assert torch.equal(x, before)


# 28: the wrong tensor ---------------------------------------------------------------------


class TwoInputs(nn.Module):
    """Two tensors and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, mask=None, *, scale: float = 1.0):
        out = self.layer(x) * scale
        return out if mask is None else out * mask


def two_inputs(**config):
    fast = compiled(TwoInputs(), {"x": {0: ROWS}, "mask": {0: ROWS}}, **config)
    fast(torch.randn(5, 8), torch.randn(5, 8))
    return fast


GOOD = (torch.ones(5, 8), torch.ones(5, 8))


@pytest.mark.parametrize(
    ("mask", "argument", "said"),
    [
        (torch.ones(5, 8, device="meta"), "mask", ("device", "cpu", "meta")),
        (torch.ones(5), "mask", ("rank", "2", "1")),
        (torch.ones(5, 1, 9), "mask", ("rank", "2", "3")),
        (torch.ones(5, 9), "mask", ("dim 1", "8", "9", "Config.dynamic")),
        (1.0, "mask", ("tensor", "1.0")),
        (torch.ones(5, 8).to_sparse(), "mask", ("layout", "sparse")),
        (
            torch.nested.as_nested_tensor([torch.ones(2, 8)], layout=torch.jagged),
            "mask",
            ("NestedTensor",),
        ),
    ],
    ids=[
        *("device", "rank below", "rank above", "fixed dim", "number", "sparse", "jagged"),
    ],
)
def test_a_wrong_tensor_is_refused_naming_argument_expected_and_got(mask, argument, said):
    """FAULTS 28."""
    fast = two_inputs()
    with pytest.raises(InputMismatch) as caught:
        fast(GOOD[0], mask)
    for part in (f'argument "{argument}"', *said):
        assert part in str(caught.value)
    assert fast(*GOOD).shape == (5, 8)
    assert sum(fast.stats().calls.values()) == 2


def test_a_tensor_that_the_layers_do_not_take_is_refused_naming_it():
    """FAULTS 28: the model itself says something of two matrices."""
    fast = two_inputs()
    with pytest.raises(InputMismatch, match='"x": dtype expected'):
        fast(GOOD[0].double(), GOOD[1])
    assert fast(*GOOD).shape == (5, 8)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "'x'"),
        ((*GOOD, 1.0), {}, "positional argument"),
        (GOOD, {"scal": 2.0}, "'scal'"),
        ((GOOD[0],), {"x": GOOD[0]}, "'x'"),
    ],
    ids=["missing", "too many", "unknown keyword", "given twice"],
)
def test_a_wrong_argument_count_is_refused_naming_the_argument(args, kwargs, said):
    """FAULTS 28."""
    first = compiled(TwoInputs(), {"x": {0: ROWS}})
    for fast in (first, two_inputs()):
        with pytest.raises(InputMismatch) as caught:
            fast(*args, **kwargs)
        assert said in str(caught.value)
        assert "(x, mask=None, *, scale: float = 1.0)" in str(caught.value).replace("'", "")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_nested_tensor_is_refused_at_the_first_call_and_later():
    """FAULTS 28."""
    nested = torch.nested.nested_tensor([torch.ones(2, 8)], layout=torch.strided)
    with pytest.raises(InputMismatch, match=r"nested tensor; pass a padded one"):
        compiled(nn.ReLU(), {0: {0: ROWS}})(nested)
    with pytest.raises(InputMismatch, match=r'"mask": layout expected torch.strided, got a nested'):
        two_inputs()(GOOD[0], nested)


def test_one_constant_too_many_is_refused_naming_argument_and_both_values():
    """FAULTS 28."""
    fast = two_inputs(max_forms=1)
    with pytest.raises(InputMismatch) as caught:
        fast(*GOOD, scale=2.0)
    assert 'argument "scale" is 2.0; traced with the constant 1.0' in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(8, 5).t(),
        lambda: torch.randn(5, 16)[:, ::2],
        lambda: torch.randn(10, 8)[::2],
        lambda: torch.randn(5, 16)[:, :8],
        lambda: torch.randn(1, 8).expand(5, 8),
    ],
    ids=["transposed", "strided columns", "strided rows", "sliced", "expanded"],
)
def test_foreign_strides_are_copied_to_the_traced_layout_and_counted(make):
    """FAULTS 28."""
    fast = two_inputs()
    model = TwoInputs()
    model.load_state_dict(fast.state_dict())
    x, mask = make(), torch.randn(5, 8)
    torch.testing.assert_close(fast(x, mask), model(x, mask))
    assert fast.stats().restrided == 1
    torch.testing.assert_close(fast(x, x), model(x, x))
    assert fast.stats().restrided == 3


def test_a_program_traced_for_transposed_tensors_copies_contiguous_ones():
    """FAULTS 28."""
    fast = compiled(lambda x: x.t().reshape(-1) * 2)
    for make, restrided in (
        (lambda n: torch.randn(8, n).t(), 0),
        (lambda n: torch.randn(n, 8), 1),
    ):
        x = make(5)
        torch.testing.assert_close(fast(x), x.t().reshape(-1) * 2)
        assert fast.stats().restrided == restrided


def test_foreign_strides_of_an_input_that_is_written_to_are_refused_naming_it():
    """FAULTS 28."""
    fast = compiled(lambda x: x.mul_(2).sum())
    fast(torch.randn(5, 8))
    x = torch.randn(8, 5).t()
    before = x.clone()
    with pytest.raises(InputMismatch, match=r'"x" has strides \(1, 5\).*writes to it'):
        fast(x)
    assert torch.equal(x, before)


def test_foreign_strides_with_static_inputs_are_refused_naming_the_setting():
    """FAULTS 28."""
    fast = two_inputs(inputs="static")
    with pytest.raises(InputMismatch, match=r'"x" has strides \(1, 5\).*inputs="copy"'):
        fast(torch.randn(8, 5).t(), GOOD[1])


def test_one_row_has_no_foreign_strides():
    """FAULTS 28: the stride of a dim of one index addresses nothing."""
    fast = two_inputs()
    x = torch.randn(1, 16)[:, :8]
    fast(x, torch.ones(1, 8))
    assert fast.stats().restrided == 0


def test_a_parameter_is_as_good_an_input_as_a_tensor():
    """FAULTS 28."""
    fast = two_inputs()
    x = nn.Parameter(torch.randn(5, 8))
    torch.testing.assert_close(fast(x, GOOD[1]), fast(x.detach(), GOOD[1]))
    assert fast.stats().restrided == 0


# 29: gradients ---------------------------------------------------------------------------


def test_a_call_with_gradients_enabled_is_refused_naming_what_to_enter():
    """FAULTS 29."""
    model = TwoInputs()
    fast = compiled(model)
    for _ in range(2):
        with torch.enable_grad(), pytest.raises(GradNeeded) as caught:
            fast(torch.randn(5, 8))
        for part in ("a parameter requires", "torch.inference_mode()", "torch.no_grad()"):
            assert part in str(caught.value)
        fast(torch.randn(5, 8))


def test_an_input_that_requires_gradients_is_refused_naming_it():
    """FAULTS 29."""
    fast = compiled(lambda x: x * 2)
    with torch.enable_grad(), pytest.raises(GradNeeded, match="an input requires"):
        fast(torch.randn(5, 8, requires_grad=True))


def test_gradients_enabled_and_nothing_that_requires_them_is_no_error():
    """FAULTS 29."""
    model = TwoInputs().requires_grad_(False)
    fast = compiled(model)
    with torch.enable_grad():
        out = fast(torch.randn(5, 8))
    assert not out.requires_grad


def test_parameters_that_come_to_require_gradients_are_noticed():
    """FAULTS 29."""
    model = TwoInputs().requires_grad_(False)
    fast = compiled(model)
    with torch.enable_grad():
        fast(torch.randn(5, 8))
        model.layer.weight.requires_grad_(True)
        with pytest.raises(GradNeeded, match="a parameter"):
            fast(torch.randn(5, 8))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_both_ways_to_switch_gradients_off_serve_one_traced_model(mode):
    """FAULTS 29."""
    model = TwoInputs()
    fast = compiled(model)
    x = torch.randn(5, 8)
    for enter in (mode, torch.no_grad, torch.inference_mode):
        with enter():
            torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().graphs == 1


def test_autocast_around_a_call_is_refused_naming_where_to_enter_it():
    """FAULTS 28: the dtype that a traced program computes in is fixed."""
    fast = compiled(TwoInputs())
    fast(torch.randn(5, 8))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputMismatch, match=r"torch\.autocast.*inside the model's forward"),
    ):
        fast(torch.randn(5, 8))


# 62: messages -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("few", "many"),
    [([1.0], [2.5] * 5_000), ("a", "b" * 50_000), ({"k": "s"}, {"k": "s" * 9_000})],
    ids=["numbers", "text", "text in a dict"],
)
def test_an_error_shows_a_beginning_of_an_argument_and_never_all_of_it(few, many):
    """FAULTS 62."""
    fast = compiled(lambda x, given: x + len(given))
    fast(torch.ones(4, 8), few)
    with pytest.raises(InputMismatch, match="given") as caught:
        fast(torch.ones(4, 8), many)
    assert len(str(caught.value)) < 1_000


def test_a_keyword_that_is_somebody_s_text_is_not_repeated_whole():
    """FAULTS 62."""
    fast = compiled(lambda x: x + 1)
    with pytest.raises(InputMismatch, match="unexpected keyword") as caught:
        fast(torch.ones(4, 8), **{"a secret " * 1000: 1})
    assert len(str(caught.value)) < 1_000


def test_what_a_model_says_of_its_input_is_not_repeated_whole():
    """FAULTS 62."""

    def refuses(x, given):
        raise ValueError(f"no such thing: {given}")

    with pytest.raises(TraceFailed, match="no such thing") as caught:
        compiled(refuses)(torch.ones(4, 8), "a secret " * 1000)
    assert len(str(caught.value)) < 5_000


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_are_refused_by_name():
    def quantized(x):
        return torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)

    x = torch.randn(4, 8)
    with pytest.raises(InputMismatch, match='"x" is a quantized tensor'):
        compiled(lambda x: x.dequantize())(quantized(x))
    with pytest.raises(TraceFailed, match=r"makes a quantized tensor at .*test_faults_calls.py:"):
        compiled(quantized)(x)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_recorded_function_that_returns_a_quantized_tensor_runs_as_written(caplog):
    def quantized(x):
        return torch.quantize_per_tensor(x * 2, 0.1, 0, torch.quint8)

    config = pw.Config(dynamic={"x": {0: ROWS}}, capture_sizes=(4,))
    fast = pw.record(quantized, config, platform=SimulatedPlatform())
    for _ in range(3):
        x = torch.randn(4, 8)
        assert torch.equal(fast(x).int_repr(), quantized(x).int_repr())
    assert "a result is a quantized tensor" in caplog.text


@pytest.mark.parametrize("record", [False, True])
def test_results_may_have_tuples_as_keys(record):
    """Edge types of graph networks are."""

    def fn(x):
        return {("user", "likes", "item"): x + 1, ("rows", x.shape[0]): x * 2, (): x - 1}

    config = pw.Config(dynamic={"x": {0: ROWS}}, capture_sizes=(4,), compiler="eager")
    fast = (pw.record if record else pw.compile)(fn, config, platform=SimulatedPlatform())
    for rows in (3, 4, 4, 0, 5):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), fn(x))


def test_a_key_that_is_no_plain_value_is_refused_by_its_type():
    with pytest.raises(UnsupportedOutput, match=r"a key of type .*; keys must be"):
        compiled(lambda x: {x + 1: x})(torch.randn(4, 8))
