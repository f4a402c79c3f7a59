"""The generated source of plans: no name of a program is taken for one of ours."""

from __future__ import annotations

import enum

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import ConfigError
from piecewise_core.runtime.planlines import Line, freeing
from piecewise_core.testing import SimulatedPlatform

LIBRARY = torch.library.Library("pw_plansource", "FRAGMENT")
ROWS = {"x": {0: pw.Dim("rows", min=1, max=16)}}
OURS = (
    "t",
    "b",
    "s0",
    "v_x",
    "v_scaled",
    "_k1",
    "_piece0",
    "torch",
    "math",
    "run",
    "fn",
    "t0",
    "objects",
    "o",
    "entry",
)


def define(schema, kernel, fake):
    name = LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CPU")
    torch.library.register_fake(f"pw_plansource::{name}", fake, lib=LIBRARY)


NUMBERS = ", ".join(f"float {name}=1.0" for name in OURS)
define(
    f"scaled(Tensor x, *, {NUMBERS}) -> Tensor",
    lambda x, **given: x * sum(given.values()),
    lambda x, **given: torch.empty_like(x),
)
define(
    "named(Tensor x, str layer, str[] more) -> Tensor",
    lambda x, layer, more: x * len(layer) + len(more),
    lambda x, layer, more: torch.empty_like(x),
)
define(
    "nested(Tensor x) -> (Tensor, Tensor[], Tensor[])",
    lambda x: (x + 1, [x * 2], [x * 3, x * 4]),
    lambda x: (torch.empty_like(x), [torch.empty_like(x)], [torch.empty_like(x) for _ in "ab"]),
)
define("one(Tensor x) -> Tensor[]", lambda x: [x * 2], lambda x: [torch.empty_like(x)])
define("none(Tensor x) -> Tensor[]", lambda x: [], lambda x: [])
define("silent(Tensor(a!) x) -> ()", lambda x: [x.mul_(2), None][1], lambda x: None)
define(
    "joined(Tensor[] xs, int[] k, Tensor? mask=None, bool flag=False) -> Tensor",
    lambda xs, k, mask=None, flag=False: sum(xs) * sum(k) + (0 if mask is None else mask),
    lambda xs, k, mask=None, flag=False: torch.empty_like(xs[0]),
)
define(
    "typed(Tensor x, ScalarType kind, Device? place=None, Scalar by=1) -> Tensor",
    lambda x, kind, place=None, by=1: (x * by).to(kind),
    lambda x, kind, place=None, by=1: torch.empty_like(x, dtype=kind),
)
define("plain(Tensor x) -> Tensor", lambda x: x.sin(), torch.empty_like)
ops = torch.ops.pw_plansource


def cut(op, model, capture=False, **changes):
    """``model`` cut at ``op``; captured at 4 rows on a simulated device where asked for."""
    settings = {"dynamic": ROWS, "splitting_ops": (op,), "compiler": "eager", **changes}
    settings |= {"capture_sizes": (4,) if capture else (), "capture_max": False}
    return pw.compile(model, pw.Config(**settings), platform=SimulatedPlatform())


def serves(model, op, capture):
    """Whether three captured or uncaptured calls, and one of another size, give what eager does."""
    with torch.inference_mode():
        fast = cut(op, model, capture)
        for rows in (4, 4, 4, 5):
            x = torch.randn(rows, 3)
            torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == (3 if capture else 0)


def keywords(x):
    return ops.scaled(x + 1, **{name: float(place) for place, name in enumerate(OURS)}) - 1


def strings(x):
    return ops.named(x + 1, "v_x.0 = s0; del v_x # 'quoted\" \\", ["v_scaled", "t[0]", ""]) - 1


def nested_unpacked(x):
    first, (second,), (third, fourth) = ops.nested(x * 2)
    return first + second, {"third": third, "fourth": (fourth - 1,)}


def nested_handed_on(x):
    first, second, third = ops.nested(x * 2)
    return ops.joined([*second, *third], [1, 2]) + first


def nested_partly_used(x):
    _, _, (_, fourth) = ops.nested(x * 2)
    return fourth - 1


def one(x):
    (y,) = ops.one(x + 1)
    return y - 1


def one_as_it_is(x):
    return ops.one(x + 1)


def no_tensors(x):
    y = x + 1
    return y * 2 + len(ops.none(y))


def nothing(x):
    y = x * 2
    ops.silent(y)
    return y + 1


def optional_given(x):
    return ops.joined([x + 1, x * 2], [3, 4], mask=x * 5, flag=True) - 1


def optional_left_out(x):
    return ops.joined([x + 1], [3], None) - 1


def torch_values(x):
    return ops.typed(x + 1, torch.float64, place=torch.device("cpu"), by=2.5) + 1


def named_tuple(x):
    found = torch.max(x * 2, 1)
    return found.values + 1, found.indices


def checkpointed(x):
    body = lambda x: ops.one(x + 1)[0] * 2  # noqa: E731
    return torch.utils.checkpoint.checkpoint(body, x * 2, use_reentrant=False) * 2


def conditional(x):
    return (
        torch.cond(x.sum() > 0, lambda x: ops.plain(x) + 1, lambda x: ops.one(x)[0] - 1, (x * 2,))
        * 2
    )


def mapped(x):
    return torch.vmap(lambda row: torch.softmax(row, 0) * 2)(x * 2) + 1


KINDS = [
    (keywords, "scaled"), (strings, "named"), (nested_unpacked, "nested"),
    (nested_handed_on, "nested"), (nested_partly_used, "nested"), (one, "one"),
    (one_as_it_is, "one"), (no_tensors, "none"), (nothing, "silent"), (optional_given, "joined"),
    (optional_left_out, "joined"), (torch_values, "typed"), (named_tuple, "torch.max"),
    (checkpointed, "one"), (conditional, "plain"), (mapped, "torch.softmax"),
]  # fmt: skip


@pytest.mark.parametrize("capture", [False, True], ids=["uncaptured", "captured"])
@pytest.mark.parametrize(("model", "op"), KINDS, ids=[model.__name__ for model, _ in KINDS])
def test_a_splitting_op_may_take_and_return_anything(model, op, capture):
    """FAULTS 48, 49."""
    serves(model, op if "." in op else f"pw_plansource::{op}", capture)


def test_a_named_tuple_that_a_splitting_op_returns_outlives_the_process(tmp_path, monkeypatch):
    """FAULTS 49: from the compile store."""
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    for _ in range(2):
        serves(named_tuple, "torch.max", capture=True)


def test_an_error_inside_vmap_closes_what_vmap_opened():
    """FAULTS 49."""

    def model(x):
        return torch.vmap(lambda row: torch.softmax(row, 0) / row[0])(x * 2) + 1

    with torch.inference_mode():
        fast = cut("torch.softmax", model)
        x = torch.randn(4, 3)
        torch.testing.assert_close(fast(x), model(x))
        (unit,) = [
            u for u in fast._pw_session.regions[0].code._names.values() if hasattr(u, "outputs")
        ]
        with pytest.raises(TypeError):
            unit(4, None)
        assert torch._C._functorch.maybe_current_level() is None
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize(
    "name", [*OURS, "a_x", "_a", "self_", "args", "bind", "raw", "len", "type"]
)
def test_an_argument_of_a_model_may_have_any_name(name):
    """FAULTS 48."""
    namespace = {}
    result = f"{{'{name}': {name} + other['{name}'], 'n': {name}.shape[0]}}"
    exec(f"def model({name}, *, other={{}}):\n return {result}", namespace)
    model = namespace["model"]
    with torch.inference_mode():
        fast = pw.compile(
            model,
            pw.Config(
                dynamic={
                    name: {0: pw.Dim("rows", 1, 16)},
                    f"other.{name}": {0: pw.Dim("rows", 1, 16)},
                },
                compiler="eager",
            ),
            platform="cpu",
        )
        for rows in (3, 5):
            x = torch.randn(rows, 2)
            torch.testing.assert_close(fast(x, other={name: x}), model(x, other={name: x}))
            torch.testing.assert_close(
                fast(**{name: x, "other": {name: x}}), model(x, other={name: x})
            )


def test_a_parameter_with_a_name_of_generated_code_is_refused_by_its_name():
    """FAULTS 48."""

    def model(_pw_s0):
        return _pw_s0 + 1

    with pytest.raises(ConfigError, match='"_pw_s0"'):
        pw.compile(model, pw.Config(compiler="eager"), platform="cpu")(torch.ones(2))


class Key(enum.IntEnum):
    FIRST = 1


class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = {Key.FIRST: torch.nn.Linear(2, 2), "v_x": torch.nn.Linear(2, 2)}

    def forward(self, x):
        return self.table[Key.FIRST](x) + self.table["v_x"](x)


def test_a_dict_of_modules_may_have_an_enum_among_its_keys():
    """FAULTS 48."""
    model = Table().requires_grad_(False)
    with torch.inference_mode():
        fast, x = pw.compile(model, pw.Config(compiler="eager"), platform="cpu"), torch.randn(3, 2)
        for _ in range(2):
            torch.testing.assert_close(fast(x), model(x))
        model.table[Key.FIRST] = torch.nn.Linear(2, 2).requires_grad_(False)
        torch.testing.assert_close(fast(x), model(x))


def test_a_value_is_let_go_behind_its_last_use():
    lines = [
        Line("v_a = f('v_b')", frozenset({"v_a"})),
        Line("with k():"),
        Line("v_b = g(v_a, v_c=1)", frozenset({"v_a", "v_b"}), depth=1),
        Line("v_unused = h()", frozenset({"v_unused"}), depth=1),
        Line("return (v_b, )", frozenset({"v_b"})),
    ]
    assert freeing(lines) == [
        "v_a = f('v_b')",
        "with k():",
        " v_b = g(v_a, v_c=1)",
        " del v_a",
        " v_unused = h()",
        " del v_unused",
        "return (v_b, )",
    ]
