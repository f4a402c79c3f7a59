"""How compiled things are called: functions, methods, decorators, arguments in, results out."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

import piecewise_core as pw
from piecewise_core.errors import ConfigError, InputMismatch, NotTraced
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", 0, 64)
CONFIG = pw.Config(dynamic={"x": {0: ROWS}}, compiler="eager")
SIZES = (3, 0, 1, 9)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def compiled(fn, dynamic=None, **config):
    settings = {"dynamic": dynamic or {"x": {0: ROWS}}, "compiler": "eager", **config}
    return pw.compile(fn, pw.Config(**settings), "cpu")


# Functions ----------------------------------------------------------------------------------


def scaled(x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
    """Scale ``x``."""
    return x * scale + x.shape[0]


def test_a_compiled_function_looks_like_the_function():
    fast = pw.compile(scaled, CONFIG, "cpu")
    assert isinstance(fast, pw.CompiledFunction)
    assert (fast.__name__, fast.__doc__) == ("scaled", "Scale ``x``.")
    assert inspect.signature(fast) == inspect.signature(scaled)
    for size in SIZES:
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), scaled(x))


def test_it_is_a_decorator_with_and_without_arguments():
    @pw.compile
    def plain(x):
        return x * 2

    @pw.compile(config=CONFIG, platform="cpu")
    def varying(x):
        return x * 2

    x = torch.randn(3, 8)
    torch.testing.assert_close(varying(x), x * 2)
    torch.testing.assert_close(varying(x[:1]), x[:1] * 2)
    assert varying.__name__ == "varying"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIECEWISE_COMPILER", "eager")

        @pw.compile(platform="cpu")
        def bare(x):
            return x * 2

        torch.testing.assert_close(bare(x), x * 2)
    assert isinstance(plain, pw.CompiledFunction)


def test_a_decorated_module_class_instance_is_a_module():
    model = pw.compile(config=pw.Config(compiler="eager"), platform="cpu")(nn.Linear(8, 8))
    assert isinstance(model, nn.Linear)
    assert model(torch.randn(3, 8)).shape == (3, 8)


class Encoder:
    """Not a module: its compiled methods close over one."""

    def __init__(self, width: int) -> None:
        self.layer = nn.Linear(8, width)

    @pw.compile(config=CONFIG, platform="cpu")
    def encode(self, x, *, double: bool = False):
        """Encode ``x``."""
        out = self.layer(x)
        return out * 2 if double else out

    @pw.compile(config=CONFIG, platform="cpu")
    def plain(self, x):
        return x + 1

    @staticmethod
    @pw.compile(config=CONFIG, platform="cpu")
    def shifted(x):
        return x + 1


def test_a_compiled_method_serves_each_instance_with_its_own_traces():
    narrow, wide = Encoder(4), Encoder(16)
    for encoder in (narrow, wide, narrow):
        for size in SIZES:
            x = torch.randn(size, 8)
            torch.testing.assert_close(encoder.encode(x), encoder.layer(x))
    assert narrow.encode.stats().graphs == 1
    assert sum(narrow.encode.stats().calls.values()) == 8
    assert sum(wide.encode.stats().calls.values()) == 4
    assert narrow.encode.__doc__ == "Encode ``x``."
    assert list(inspect.signature(narrow.encode).parameters) == ["x", "double"]


def test_a_compiled_method_notices_its_modules_parameters():
    encoder = Encoder(4)
    x = torch.randn(3, 8)
    encoder.encode(x)
    encoder.layer.weight = nn.Parameter(torch.ones(4, 8))
    torch.testing.assert_close(encoder.encode(x), encoder.layer(x))
    encoder.layer = nn.Linear(8, 4)
    torch.testing.assert_close(encoder.encode(x), encoder.layer(x))


def test_a_compiled_method_can_be_called_through_its_class():
    encoder = Encoder(4)
    x = torch.randn(3, 8)
    torch.testing.assert_close(Encoder.plain(encoder, x), x + 1)
    torch.testing.assert_close(Encoder.shifted(x), x + 1)
    torch.testing.assert_close(encoder.shifted(x), x + 1)


class Shapes:
    scale = 3.0

    @classmethod
    @pw.compile(config=CONFIG, platform="cpu")
    def scaled(cls, x):
        return x * cls.scale

    @staticmethod
    @pw.compile(config=CONFIG, platform="cpu")
    def doubled(x):
        return x * 2


class Larger(Shapes):
    scale = 5.0


def test_class_methods_and_static_methods_are_compiled_each_class_for_itself():
    for size in SIZES:
        x = torch.randn(size, 8)
        for at in (Shapes, Shapes(), Larger, Larger()):
            torch.testing.assert_close(at.scaled(x), x * at.scale)
            torch.testing.assert_close(at.doubled(x), x * 2)


def test_a_coroutine_function_is_refused_saying_what_to_compile():
    async def wait(x):
        return x

    with pytest.raises(ConfigError, match=r"the coroutine function wait.*that it calls"):
        pw.compile(wait)


def test_a_class_method_object_is_refused_saying_how_to_order_the_decorators():
    with pytest.raises(ConfigError, match=r"@classmethod goes above @pw\.compile"):
        pw.compile(classmethod(lambda cls, x: x))


def test_a_shallow_copy_of_a_compiled_function_runs_the_same_function():
    fast = compiled(scaled)
    x = torch.randn(3, 8)
    torch.testing.assert_close(copy.copy(fast)(x), fast(x))


def test_an_instance_with_a_compiled_method_is_freed():
    encoder = Encoder(4)
    encoder.encode(torch.randn(3, 8))
    gone = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert gone() is None


def test_a_method_of_a_module_other_than_forward_is_compiled():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        @pw.compile(config=CONFIG, platform="cpu")
        def encode(self, x):
            return self.layer(x).relu()

        def forward(self, x):
            return self.encode(x) + 1

    model = Model()
    for size in SIZES:
        x = torch.randn(size, 8)
        torch.testing.assert_close(model(x), model.layer(x).relu() + 1)
    assert model.encode.stats().graphs == 1
    twin = copy.deepcopy(model)
    twin.layer.weight.zero_()
    assert not torch.equal(twin(torch.ones(2, 8)), model(torch.ones(2, 8)))


def test_partials_and_callable_objects_are_compiled():
    class Adds:
        def __init__(self, amount: float) -> None:
            self.amount = amount

        def __call__(self, x):
            return x + self.amount

    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled(functools.partial(scaled, scale=3.0))(x), x * 3 + 3)
    torch.testing.assert_close(compiled(Adds(2.0))(x), x + 2)


def test_a_deep_copy_of_a_compiled_function_runs_the_same_function():
    fast = pw.compile(scaled, CONFIG, "cpu")
    x = torch.randn(3, 8)
    fast(x)
    twin = copy.deepcopy(fast)
    torch.testing.assert_close(twin(x), fast(x))
    assert twin.stats().graphs == 1
    assert sum(twin.stats().calls.values()) == 1


def test_instances_that_are_equal_have_compiled_methods_of_their_own():
    @dataclass
    class Scales:
        amount: float

        @pw.compile(config=CONFIG, platform="cpu")
        def run(self, x):
            return x * self.amount

    x = torch.randn(3, 8)
    one, same, other = Scales(2.0), Scales(2.0), Scales(3.0)
    torch.testing.assert_close(one.run(x), x * 2)
    torch.testing.assert_close(other.run(x), x * 3)
    assert one.run is not same.run
    assert one.run is one.run


def test_an_instance_with_a_used_compiled_method_can_be_copied_and_pickled():
    encoder = Encoder(4)
    x = torch.randn(3, 8)
    expected = encoder.encode(x)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        torch.testing.assert_close(twin.encode(x), expected)
        twin.layer.weight.zero_()
        assert not torch.equal(twin.encode(x), expected)
    torch.testing.assert_close(encoder.encode(x), expected)


def test_an_instance_with_slots_is_refused_saying_what_to_compile():
    class Slotted:
        __slots__ = ()

        @pw.compile(config=CONFIG, platform="cpu")
        def run(self, x):
            return x

    with pytest.raises(ConfigError, match="Slotted has __slots__"):
        Slotted().run(torch.randn(3, 8))


@pytest.mark.parametrize("thing", [3, "model", object()])
def test_what_cannot_be_called_cannot_be_compiled(thing):
    with pytest.raises(ConfigError, match="cannot compile a"):
        pw.compile(thing, CONFIG, "cpu")


def test_a_config_that_is_no_config_is_refused_saying_how_to_write_one():
    with pytest.raises(ConfigError, match=r"config is a dict; pass pw\.Config\("):
        pw.compile(scaled, {"dynamic": {}}, "cpu")


# Arguments ----------------------------------------------------------------------------------


def everything(a, /, b, *rest, x, flag=False, name="n", **more):
    out = a + b + x * (2 if flag else 1) + len(name)
    for other in rest:
        out = out + other
    for key in sorted(more):
        out = out - more[key]
    return out


def test_every_kind_of_parameter_is_bound_as_python_binds_it():
    dynamic = {0: {0: ROWS}, "b": {0: ROWS}, 2: {0: ROWS}, 3: {0: ROWS}, "x": {0: ROWS},
               "more.y": {0: ROWS}}  # fmt: skip
    fast = compiled(everything, dynamic)
    for size in SIZES:
        a, b, c, d, x, y = torch.randn(6, size, 8)
        expected = everything(a, b, c, d, x=x, y=y, flag=True)
        torch.testing.assert_close(fast(a, b, c, d, flag=True, y=y, x=x), expected)
    # A form of its own: one tensor less in "rest".
    expected = everything(a, b, c, x=x, y=y, flag=True)
    torch.testing.assert_close(fast(a, b, c, x=x, y=y, flag=True), expected)
    expected = everything(a, b, c, d, x=x, y=y)
    torch.testing.assert_close(fast(a, b, c, d, x=x, y=y), expected)


def test_an_argument_may_be_given_by_place_or_by_name():
    fast = pw.compile(scaled, CONFIG, "cpu")
    x = torch.randn(3, 8)
    for call in (
        lambda: fast(x),
        lambda: fast(x=x),
        lambda: fast(x, 2.0),
        lambda: fast(scale=2.0, x=x),
    ):
        torch.testing.assert_close(call(), x * 2 + 3)
    assert fast.stats().graphs == 1


def test_dims_are_named_inside_nested_arguments():
    def fn(features, pairs):
        return features["ids"].sum(1) + pairs[1][0] * features["scale"]

    dynamic = {"features.ids": {0: ROWS, 1: pw.Dim("length", 0, 16)}, "pairs.1.0": {0: ROWS}}
    fast = compiled(fn, dynamic)
    for rows, length in ((3, 4), (1, 1), (0, 2), (9, 16)):
        features = {"ids": torch.randn(rows, length), "scale": 2.0}
        pairs = [None, (torch.randn(rows),)]
        torch.testing.assert_close(fast(features, pairs), fn(features, pairs))


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        ({"y": {0: ROWS}}, r"""names 'y'.*its tensors are "x\""""),
        ({"scale": {0: ROWS}}, r'dim "rows" of Config.dynamic is in none of the tensors'),
        ({"x": {2: ROWS}}, r'names dim 2 \("rows"\), and the tensor has 2 dims'),
        ({5: {0: ROWS}}, r"names argument 5, and the signature has 2"),
    ],
)
def test_a_dynamic_entry_that_fits_no_argument_is_refused_listing_what_there_is(dynamic, said):
    with pytest.raises(ConfigError, match=said):
        compiled(scaled, dynamic)(torch.randn(3, 8))


def test_dims_counted_from_the_end_are_the_same_dims():
    fast = compiled(scaled, {"x": {-2: ROWS}})
    for size in SIZES:
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), scaled(x))


def test_without_dynamic_dims_every_size_is_fixed_and_another_is_refused():
    fast = pw.compile(scaled, pw.Config(compiler="eager"), "cpu")
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x), scaled(x))
    with pytest.raises(InputMismatch, match=r"size of dim 0 expected 3, got 4.*Config\.dynamic"):
        fast(torch.randn(4, 8))


def test_warm_up_without_examples_and_without_a_call_names_both_remedies():
    fast = pw.compile(scaled, CONFIG, "cpu")
    with pytest.raises(NotTraced, match=r"pass example arguments.*or call the model once"):
        fast.warmup()
    fast(torch.randn(3, 8))
    assert fast.warmup(progress=False).regions == 1


def test_a_function_of_no_arguments_warms_up_without_examples():
    weight = nn.Linear(4, 4)

    def fn():
        return weight.weight * 2

    fast = pw.compile(fn, pw.Config(compiler="eager"), "cpu")
    fast.warmup(progress=False)
    torch.testing.assert_close(fast(), weight.weight * 2)


def test_scalars_and_tensors_without_dims_are_inputs():
    fast = compiled(lambda x, t: x * t)
    for value in (2.0, 3.0):
        x = torch.randn(3, 8)
        torch.testing.assert_close(fast(x, torch.tensor(value)), x * value)


def test_one_tensor_given_twice_is_read_twice():
    fast = compiled(lambda x, y: x * 2 + y, {"x": {0: ROWS}, "y": {0: ROWS}})
    for size in SIZES:
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x, x), x * 3)
        torch.testing.assert_close(fast(x, x + 1), x * 3 + 1)


def test_one_tensor_given_twice_and_written_to_is_as_in_eager():
    def fn(x, y):
        x.add_(1)
        return y * 2

    fast = compiled(fn, {"x": {0: ROWS}, "y": {0: ROWS}})
    apart = torch.randn(3, 8), torch.randn(3, 8)
    torch.testing.assert_close(fast(*apart), apart[1] * 2)
    mine = torch.randn(3, 8)
    theirs = mine.clone()
    torch.testing.assert_close(fast(mine, mine), fn(theirs, theirs))
    torch.testing.assert_close(mine, theirs)


# Results ------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: torch.Tensor
    right: object


@dataclass
class Answer:
    value: torch.Tensor
    rows: int
    note: str = "none"


@dataclass
class Wrapped(ModelOutput):
    """An output of the user's own kind."""

    hidden: torch.Tensor | None = None
    extra: tuple[torch.Tensor, ...] | None = None


def results(x):
    return {
        "tensor": x * 2,
        "list": [x + 1, None, (x - 1, "text", 3, 2.5, True, torch.float32)],
        "pair": Pair(x * 3, {"deep": x * 4}),
        "answer": Answer(x * 5, x.shape[0]),
        "ordered": OrderedDict(b=x * 6, a=x * 7),
        "shape": x.shape,
        "size": x.numel() // 8,
        "wrapped": Wrapped(hidden=x * 8, extra=(x, x * 9)),
    }


def test_results_have_the_containers_and_values_of_eager_at_every_size():
    fast = compiled(results)
    for size in SIZES:
        x = torch.randn(size, 8)
        got, expected = fast(x), results(x)
        assert list(got) == list(expected)
        for key, value in expected.items():
            assert type(got[key]) is type(value)
        torch.testing.assert_close(got["tensor"], expected["tensor"])
        assert got["list"][1] is None
        assert got["list"][2][1:] == ("text", 3, 2.5, True, torch.float32)
        torch.testing.assert_close(got["pair"].right["deep"], x * 4)
        assert (got["answer"].rows, got["answer"].note) == (size, "none")
        assert list(got["ordered"]) == ["b", "a"]
        assert got["shape"] == (size, 8)
        assert got["size"] == size
        assert list(got["wrapped"]) == ["hidden", "extra"]
        assert got["wrapped"].extra[0] is x


def test_a_model_output_is_indexed_and_unpacked_as_ever():
    def fn(x):
        return BaseModelOutputWithPooling(last_hidden_state=x * 2, pooler_output=x.sum(0))

    fast = compiled(fn)
    for size in SIZES:
        x = torch.randn(size, 8)
        got = fast(x)
        assert isinstance(got, BaseModelOutputWithPooling)
        torch.testing.assert_close(got[0], x * 2)
        torch.testing.assert_close(got["pooler_output"], got.pooler_output)
        hidden, pooled = got.to_tuple()
        assert hidden is got.last_hidden_state
        assert pooled.shape == (8,)
        assert got.attentions is None


def test_inputs_are_returned_as_they_are_parameters_too():
    layer = nn.Linear(8, 8)

    def fn(x, y, keep):
        return x, [y, layer.weight], keep, layer(x)

    fast = compiled(fn, {"x": {0: ROWS}, "y": {0: ROWS}})
    x, y, keep = torch.randn(3, 8), torch.randn(8, 3).t(), object()
    got = fast(x, y, keep)
    assert got[0] is x
    assert got[1][0] is y
    assert got[1][1] is layer.weight
    assert got[2] is keep
    assert fast(x, y, keep)[1][0] is y


def test_an_input_copied_to_the_traced_layout_is_still_returned_as_given():
    fast = compiled(lambda x: (x, x + 1))
    fast(torch.randn(3, 8))
    x = torch.randn(8, 3).t()
    got = fast(x)
    assert got[0] is x
    torch.testing.assert_close(got[1], x + 1)
    assert fast.stats().restrided == 1


def test_a_view_of_an_input_is_a_view_of_it():
    fast = compiled(lambda x: x[:, :2])
    x = torch.randn(3, 8)
    got = fast(x)
    x.zero_()
    assert not got.any()


def test_a_result_does_not_change_at_the_next_call():
    fast = compiled(lambda x: x * 2)
    first = fast(torch.ones(3, 8))
    kept = first.clone()
    fast(torch.zeros(3, 8))
    assert torch.equal(first, kept)


def test_none_alone_is_a_result():
    assert compiled(lambda x: None)(torch.randn(3, 8)) is None


def test_one_value_returned_twice_is_one_value_twice():
    fast = compiled(lambda x: (lambda y: (y, {"again": y}))(x * 2))
    got = fast(torch.randn(3, 8))
    assert got[0] is got[1]["again"]


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return {
            "turned": x.T,
            "there and back": x.T.T,
            "data": x.data,
            "sizes": (x.T.shape, x.mT.size(1)),
            "weight": self.weight.T,
        }


def test_attributes_of_inputs_that_are_tensors_are_returned_as_views_of_them():
    model = Attributes()
    fast = compiled(model)
    for rows in SIZES:
        x = torch.randn(rows, 8)
        got, expected = fast(x), model(x)
        assert got["sizes"] == expected["sizes"]
        for name in ("turned", "there and back", "data", "weight"):
            assert got[name].stride() == expected[name].stride()
            assert got[name].data_ptr() == expected[name].data_ptr()
            torch.testing.assert_close(got[name], expected[name])


def test_the_imaginary_part_of_an_input_is_returned_as_a_view_of_it():
    fast = compiled(lambda x: (x.real, x.imag))
    x = torch.randn(3, 8, dtype=torch.complex64)
    real, imaginary = fast(x)
    x.mul_(2)
    torch.testing.assert_close(real, x.real)
    torch.testing.assert_close(imaginary, x.imag)


@torch.library.custom_op("pwcalling::table", mutates_args=())
def table(index: torch.Tensor) -> torch.Tensor:
    if index.dtype is not torch.int64:
        raise TypeError(f"index must be int64, not {index.dtype}")
    return index * 2.0


@table.register_fake
def _(index):
    return index.new_empty(index.shape, dtype=torch.float32)


def test_a_first_call_that_fails_as_it_runs_does_not_fix_the_form_of_calls():
    fast = pw.compile(
        lambda x: table(x) + 1,
        pw.Config(dynamic={"x": {0: pw.Dim("n", 1, 8)}}, compiler="eager"),
        "cpu",
    )
    with torch.inference_mode():
        for _ in range(2):
            with pytest.raises(TypeError, match="int64"):
                fast(torch.ones(3, dtype=torch.int32))
        for n in (3, 5):
            assert fast(torch.ones(n, dtype=torch.int64)).tolist() == [3.0] * n
        with pytest.raises(pw.errors.InputMismatch, match="dtype expected"):
            fast(torch.ones(3, dtype=torch.int32))


def test_two_compiled_methods_of_one_function_are_each_traced_once_and_keep_to_their_config():
    def step(self, x):
        return x * self.factor

    class Server:
        prefill = pw.compile(step, pw.Config(compiler="eager"), "cpu")
        decode = pw.compile(step, pw.Config(compiler="eager", dynamic={"x": {0: ROWS}}), "cpu")

        def __init__(self, factor):
            self.factor = factor

    one, x = Server(2.0), torch.ones(3)
    other = copy.copy(one)
    other.factor = 5.0
    for server in (one, other, one, copy.copy(other)):
        for _ in range(2):
            assert server.prefill(x).tolist() == [server.factor] * 3
            assert server.decode(x).tolist() == [server.factor] * 3
        assert server.prefill.stats().graphs == server.decode.stats().graphs == 1
    assert one.decode(torch.ones(4)).tolist() == [2.0] * 4
    shallow = copy.copy(one)
    shallow.factor = 7.0
    assert shallow.prefill(x).tolist() == [7.0] * 3


class WritesAndReturns(torch.nn.Module):
    """Returns what it wrote to, as methods that write give it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sums", torch.zeros(6))

    def forward(self, x, y):
        part = x[1:].mul_(2)
        torch.add(x, 1, out=y)
        return x.relu_().add_(1), {"rows": [self.sums.add_(x.sum(0)), part]}, torch.sin(y, out=y)


@pytest.mark.parametrize("captured", [(), (4,)], ids=["plain", "captured"])
@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_what_a_write_returns_is_the_tensor_that_it_wrote_to(device, captured):
    model, plain = WritesAndReturns(), WritesAndReturns()
    rows = {0: pw.Dim("rows", min=0, max=16)}
    config = pw.Config(
        dynamic={"x": rows, "y": rows},
        capture_sizes=captured,
        capture_max=False,
        compiler="eager",
    )
    fast = pw.compile(model, config, SimulatedPlatform() if device == "simulated" else device)
    with torch.inference_mode():
        for size in (4, 4, 7, 1, 4):
            x, y = torch.randn(size, 6), torch.randn(size, 6)
            own = x.clone(), y.clone()
            got, want = fast(x, y), plain(*own)
            torch.testing.assert_close(got, want, rtol=0, atol=0)
            torch.testing.assert_close((x, y), own, rtol=0, atol=0)
            assert got[0] is x
            assert got[1]["rows"][0] is model.sums
            assert got[2] is y


@pytest.mark.parametrize("captured", [(), (4,)], ids=["plain", "captured"])
def test_data_of_a_tensor_may_be_set_in_inference_mode(captured):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.zeros(6))

        def forward(self, x):
            self.state.data = self.state * 0.5 + x.sum(0)
            return x + self.state

    model, plain = Model(), Model()
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", min=0, max=16)}},
        capture_sizes=captured,
        capture_max=False,
        compiler="eager",
    )
    fast = pw.compile(model, config, SimulatedPlatform())
    with torch.inference_mode():
        for size in (4, 4, 3, 4):
            x = torch.randn(size, 6)
            torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=0)
            torch.testing.assert_close(model.state, plain.state, rtol=0, atol=0)
