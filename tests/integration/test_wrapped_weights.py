"""Weights that wrap other tensors, as quantised ones do: served by the plain tensors inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_map

import piecewise_core as pw
from piecewise_core.errors import StoreError, TraceFailed, UnsupportedModule, UnsupportedOutput
from piecewise_core.testing import SimulatedPlatform


class Scaled(torch.Tensor):
    """Whole numbers, a scale for each row, and a gain that its class knows."""

    @staticmethod
    def __new__(cls, whole, scale, gain=1.0):
        made = torch.Tensor._make_wrapper_subclass
        return made(cls, whole.shape, dtype=scale.dtype, device=whole.device)

    def __init__(self, whole, scale, gain=1.0):
        self.whole, self.scale, self.gain = whole, scale, gain

    def __tensor_flatten__(self):
        return ["whole", "scale"], {"gain": self.gain}

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["whole"], inner["scale"], context["gain"])

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].whole, args[0].scale, args[0].gain)
        if func is torch.ops.aten.t.default and args[0].scale.shape == (1, 1):
            return cls(args[0].whole.t(), args[0].scale, args[0].gain)

        def plain(value):
            return value.whole * value.scale * value.gain if isinstance(value, cls) else value

        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))


def scaled(seed=0, gain=1.0, rows=8, scales=8):
    made = torch.Generator().manual_seed(seed)
    whole = torch.randint(-9, 9, (rows, 8), dtype=torch.int8, generator=made)
    return Scaled(whole, torch.rand(scales, 1, generator=made), gain)


def weight(*args, **kwargs):
    return nn.Parameter(scaled(*args, **kwargs), requires_grad=False)


def model(*args, **kwargs):
    made = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    made[0].weight = weight(*args, **kwargs)
    return made


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def compiled(of, name="input", platform=None, serve=pw.compile, **more):
    config = {"dynamic": {name: {0: pw.Dim("rows", max=16)}}, "compiler": "eager", **more}
    return serve(of, pw.Config(**config), platform=platform)


def captured(of, name="input", serve=pw.compile):
    sizes = {"capture_sizes": [3, 8], "capture_max": False}
    return compiled(of, name, SimulatedPlatform(), serve, **sizes)


def assert_serves(fast, original, rows=(3, 1, 8, 5, 3)):
    for size in rows:
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), original(x))


def replaced(m):
    m[0].weight = weight(1)


def inner_replaced(m):
    m[0].weight.whole = scaled(2).whole


def inner_written(m):
    m[0].weight.scale.mul_(3)


def context_changed(m):
    m[0].weight.gain = 2.5


def swapped(m):
    torch.utils.swap_tensors(m[0].weight, weight(3, 0.5))


def made_plain(m):
    m[0].weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)


CHANGES = [inner_written, inner_replaced, replaced, context_changed, swapped, made_plain]
WAYS = {
    "compiled": compiled,
    "captured": captured,
    "recorded": lambda m: captured(m, serve=pw.record),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_wrapped_weight_is_served_and_what_changes_of_it_is_noticed(way):
    made = model()
    fast = WAYS[way](made)
    assert_serves(fast, made)
    assert (fast.stats().calls["replayed"] > 0) == (way != "compiled")
    for change in CHANGES:
        change(made)
        assert_serves(fast, made, (3, 3, 5))


class Cache:
    """Made anew for each call."""

    def __init__(self):
        self.rows = torch.zeros(4, 8)


class Filling(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = model()

    def forward(self, x, cache):
        cache.rows.add_(x)
        return self.layers(cache.rows)


def about_the_same(m):
    was = m[0].weight
    m[0].weight = nn.Parameter(Scaled(was.whole, was.scale, 4.0), requires_grad=False)


@pytest.mark.parametrize("change", [*CHANGES, about_the_same], ids=lambda change: change.__name__)
def test_what_changes_of_a_wrapped_weight_is_noticed_as_another_object_comes(change):
    made = Filling()
    fast = pw.compile(made, pw.Config(compiler="eager", graph_mode="none"), "cpu")
    for moment in range(4):
        if moment == 2:
            change(made.layers)
        x = torch.randn(4, 8)
        torch.testing.assert_close(fast(x, Cache()), made(x, Cache()))


class InSlots(Scaled):
    """One whose tensors no dict holds, as a DTensor's."""

    __slots__ = ("scale", "whole")


def test_a_tensor_in_a_slot_is_served_and_noticed_when_another_takes_its_place():
    original = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    made = scaled()
    original[0].weight = nn.Parameter(InSlots(made.whole, made.scale), requires_grad=False)
    fast = compiled(original)
    assert_serves(fast, original)
    original[0].weight.whole = original[0].weight.whole + 1
    assert_serves(fast, original)
    original[0].weight.whole += 1
    assert_serves(fast, original)


def test_another_weight_of_the_kind_traced_needs_no_other_trace():
    made = model()
    fast = compiled(made)
    assert_serves(fast, made)
    graphs = fast.stats().graphs
    for change in (replaced, inner_replaced, inner_written):
        change(made)
        assert_serves(fast, made, (3,))
        assert fast.stats().graphs == graphs
    context_changed(made)
    assert_serves(fast, made, (3,))
    assert fast.stats().graphs > graphs


def test_the_model_keeps_its_weights_and_their_names():
    made = model()
    was, names = made[0].weight, list(made.state_dict())
    fast = compiled(made)
    assert_serves(fast, made)
    assert made[0].weight is was
    assert type(was) is Scaled
    assert list(fast.state_dict()) == names
    other = model(4)
    fast.load_state_dict(other.state_dict(), assign=True)
    assert_serves(fast, other)


class Uses(nn.Module):
    """A model with its weights in ``places``, and a forward that is given."""

    def __init__(self, forward, **places):
        super().__init__()
        self._forward = forward
        for name, value in places.items():
            setattr(self, name, value)

    def forward(self, x):
        return self._forward(self, x)


def halves(m, x):
    a, b = m.w.chunk(2)
    return torch.cat([x @ a.t(), x @ b.t()], -1).relu()


def in_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = functional.linear(x, m.w)
        z = y @ y.t()
    return z.float().sum(-1, keepdim=True) + y.float()


def written_behind(m, x):
    y = functional.linear(x, m.w)
    y.view(-1, 4).add_(1)
    return y * 2


USES = {
    "in a list": Uses(
        lambda m, x: functional.linear(x @ m.ws[0].t(), m.ws[1]), ws=[weight(1), weight(2)]
    ),
    "tied": Uses(lambda m, x: functional.linear(x @ m.a.t(), m.b), a=weight(1), b=None),
    "embedding": Uses(
        lambda m, x: functional.embedding(x.abs().long() % 8, m.w).sum(1), w=weight()
    ),
    "in parts": Uses(halves, w=weight()),
    "its tensor": Uses(lambda m, x: x @ m.w.whole.float() * m.w.gain, w=weight()),
    "transposed": Uses(lambda m, x: x @ m.w.t(), w=weight(scales=1)),
    "autocast": Uses(in_autocast, w=weight()),
    "written": Uses(written_behind, w=weight()),
    "size": Uses(lambda m, x: functional.linear(x * m.w.shape[0], m.w), w=weight()),
    "cast": Uses(lambda m, x: functional.linear(x.double(), m.w.double()).float(), w=weight()),
    "joined": Uses(lambda m, x: torch.cat([x, m.w[:2] * 1]), w=weight()),
}
USES["tied"].b = USES["tied"].a


@pytest.mark.parametrize("use", USES)
def test_whatever_a_forward_does_with_a_wrapped_weight_is_served(use):
    made = USES[use].eval()
    fast = captured(made, "x")
    assert_serves(fast, made)
    for held in [*made.parameters(), *getattr(made, "ws", [])]:
        held.whole = held.whole + 1
        assert_serves(fast, made, (3, 5))
        held.gain += 1
        assert_serves(fast, made, (3, 5))


GLOBAL = scaled(5)


class Store:
    weight = None


STORE = Store()
STORE.weight = scaled(6)


class Globally(nn.Module):
    def forward(self, x):
        return functional.linear(functional.linear(x, GLOBAL), STORE.weight)


@pytest.mark.parametrize("serve", [pw.compile, pw.record])
def test_a_wrapped_weight_in_a_global_or_an_object_is_looked_after(serve, monkeypatch):
    made = Globally().eval()
    fast = captured(made, "x", serve)
    assert_serves(fast, made)
    monkeypatch.setitem(globals(), "GLOBAL", scaled(7))
    assert_serves(fast, made)
    monkeypatch.setattr(STORE, "weight", scaled(8))
    assert_serves(fast, made)
    STORE.weight.scale = STORE.weight.scale * 2
    assert_serves(fast, made)
    STORE.weight.gain = 3.0
    assert_serves(fast, made)


PLAIN = torch.ones(8)


class PlainGlobal(nn.Module):
    def forward(self, x):
        return x * PLAIN


@pytest.mark.parametrize("serve", [pw.compile, pw.record])
def test_a_tensor_that_takes_the_place_of_a_global_one_is_noticed(serve, monkeypatch):
    made = PlainGlobal().eval()
    fast = captured(made, "x", serve)
    assert_serves(fast, made)
    monkeypatch.setitem(globals(), "PLAIN", torch.full((8,), 3.0))
    assert_serves(fast, made)


def test_padded_calls_get_their_own_rows():
    made = model()
    sizes = {"capture_sizes": [8], "capture_max": False}
    fast = compiled(made, platform=SimulatedPlatform(), **sizes)
    assert_serves(fast, made, (8, 8, 5, 5, 3, 1, 8))
    assert fast.stats().calls["replayed"] >= 2


@pytest.mark.inductor
def test_a_wrapped_weight_is_served_by_inductor_and_static_plans_of_the_cpu():
    made = model()
    fast = compiled(made, compiler="inductor", capture_sizes=[3, 8])
    assert_serves(fast, made)
    assert fast.stats().calls["replayed"] >= 2
    replaced(made)
    assert_serves(fast, made)


@pytest.mark.parametrize(
    "options",
    [
        {"compiler": "eager"},
        {"compiler": "eager", "capture_sizes": (3, 5)},
        pytest.param({}, marks=pytest.mark.inductor),
    ],
)
def test_a_wrapped_weight_is_served_through_torch_compile(options):
    made = model()
    fast = torch.compile(made, backend="piecewise", options=options, dynamic=True)
    for change in (lambda m: None, replaced, inner_replaced, context_changed):
        change(made)
        assert_serves(fast, made, (3, 5))


def test_at_torch_compiles_door_a_wrapper_may_be_the_result(caplog):
    def doubled(x, w):
        return x @ w.t() * 2, w.detach()

    fast = torch.compile(doubled, backend="piecewise", options={"compiler": "eager"}, dynamic=True)
    held, x = scaled(), torch.randn(3, 8)
    got, kept = fast(x, held)
    assert torch.equal(got, doubled(x, held)[0])
    assert type(kept) is Scaled
    assert torch.equal(kept.whole, held.whole)
    assert "a graph runs as written: the result holds a Scaled" in caplog.text


def test_verification_finds_nothing_wrong():
    made = model()
    fast = compiled(made, check="verify", verify_rate=1.0)
    assert_serves(fast, made)
    assert fast.stats().wrong == 0


def test_a_bundle_is_refused_with_the_name_of_the_weight(tmp_path):
    made = model()
    fast = compiled(made)
    assert_serves(fast, made)
    with pytest.raises(StoreError, match=r'"0\.weight", a Scaled that wraps other tensors'):
        fast.save(tmp_path / "bundle.pwb")


def test_a_wrapped_weight_that_needs_gradients_is_refused_where_they_are_on():
    made = model()
    made.requires_grad_(False)
    made[0].weight.requires_grad_(True)
    fast = compiled(made)
    assert_serves(fast, made)
    with torch.enable_grad(), pytest.raises(pw.errors.GradNeeded):
        fast(torch.randn(3, 8))


def test_a_result_that_is_a_wrapper_is_refused():
    made = Uses(lambda m, x: (x * 2, m.w.t()), w=weight(scales=1)).eval()
    with pytest.raises(UnsupportedOutput, match="the result holds a Scaled"):
        compiled(made, "x")(torch.randn(3, 8))


class Slotted(Scaled):
    """One that does not keep what it holds under the names that it gives."""

    def __init__(self, whole, scale, gain=1.0):
        self._inside, self.gain = (whole, scale), gain

    whole = property(lambda self: self._inside[0])
    scale = property(lambda self: self._inside[1])


def test_a_wrapper_whose_tensors_cannot_be_looked_after_is_refused_by_name():
    made = model()
    whole = scaled()
    held = Slotted(whole.whole, whole.scale)
    made[0].weight = nn.Parameter(held, requires_grad=False)
    with pytest.raises(UnsupportedModule, match=r'"0\.weight" is a Slotted.*"whole", which'):
        compiled(made)(torch.randn(3, 8))


def test_a_nested_tensor_is_refused_by_name():
    made = Uses(lambda m, x: x + m.parts.sum(), parts=None)
    made.parts = torch.nested.nested_tensor(
        [torch.ones(2, 8), torch.ones(3, 8)], layout=torch.jagged
    )
    with pytest.raises(pw.errors.PiecewiseError, match=r"(?s)NestedTensor"):
        compiled(made, "x")(torch.randn(3, 8))


class Growing(Scaled):
    """One whose operators put another tensor into it."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.linear.default or func is torch.ops.aten.t.default:
            wrapper = next(a for a in args if isinstance(a, cls))
            wrapper.scale = wrapper.scale + 1
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_an_operator_that_puts_other_tensors_into_a_wrapper_is_refused():
    made = model()
    whole = scaled()
    made[0].weight = nn.Parameter(Growing(whole.whole, whole.scale), requires_grad=False)
    with pytest.raises(TraceFailed, match=r"linear.* of a Growing.*puts another tensor into"):
        compiled(made)(torch.randn(3, 8))
