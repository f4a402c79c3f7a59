"""A compiled module is its model: same state, hooks, kind and place in a larger model."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import (
    PiecewiseError,
    TraceFailed,
    UnsupportedModule,
    UnsupportedSideEffect,
)

ROWS = pw.Dim("rows", 0, 64)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Model(nn.Module):
    """Doubles what two layers make of its input."""

    factor = 2

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.register_buffer("shift", torch.randn(8))
        self.config = {"width": 8}

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Run the layers."""
        return self.second(self.first(x).relu()) * self.factor * scale + self.shift

    def width(self) -> int:
        return self.config["width"]

    @property
    def device(self) -> torch.device:
        return self.shift.device


def compiled(model, dynamic=None, **config):
    settings = {"dynamic": dynamic or {0: {0: ROWS}}, "compiler": "eager", **config}
    return pw.compile(model, pw.Config(**settings), "cpu")


def assert_serves(fast, model, *args, sizes=(3, 0, 1, 9), **kwargs) -> None:
    for size in sizes:
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x, *args, **kwargs), model(x, *args, **kwargs))


# One state, two faces -----------------------------------------------------------------------


def test_a_compiled_module_is_of_its_models_kind_with_its_signature_and_documentation():
    model = Model()
    fast = compiled(model)
    assert isinstance(fast, Model)
    assert inspect.signature(fast.forward) == inspect.signature(model.forward)
    assert fast.forward.__doc__ == "Run the layers."
    assert type(fast).__doc__ == Model.__doc__
    assert type(fast).__name__ == "Model"
    assert isinstance(fast, pw.CompiledModule)
    assert not isinstance(model, pw.CompiledModule)


def test_state_has_the_same_keys_and_the_same_tensors():
    model = Model()
    fast = compiled(model)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [n for n, _ in fast.named_modules()] == [n for n, _ in model.named_modules()]
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(fast.buffers(), model.buffers(), strict=True))


def test_attributes_methods_and_properties_are_the_models_both_ways():
    model = Model()
    fast = compiled(model)
    assert fast.width() == 8
    assert fast.config is model.config
    assert fast.device == torch.device("cpu")
    fast.note = "set on the compiled one"
    assert model.note == "set on the compiled one"
    model.config = {"width": 9}
    assert fast.width() == 9
    del model.note
    assert not hasattr(fast, "note")


def test_its_representation_shows_the_layers():
    fast = compiled(Model())
    assert repr(fast) == repr(fast._pw_original)
    assert "(first): Linear(in_features=8, out_features=8, bias=True)" in repr(fast)


def test_its_class_makes_models_that_are_not_compiled():
    model = Model()
    fast = compiled(model)
    other = type(fast)()
    other.load_state_dict(fast.state_dict())
    assert type(other) is Model
    assert_serves(other, model)


def test_its_class_is_found_under_the_models_own_name():
    kind = type(compiled(Model()))
    assert (kind.__name__, kind.__qualname__) == (Model.__name__, Model.__qualname__)
    assert kind.__module__ == Model.__module__
    assert getattr(sys.modules[kind.__module__], kind.__qualname__) is Model


def test_a_compiled_hugging_face_model_is_saved_under_its_models_name(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=60, num_hidden_layers=1, **sizes)
    model = transformers.BertModel(config).eval()
    fast = compiled(model, {"input_ids": {1: pw.Dim("length", min=1, max=16)}})
    fast.save_pretrained(tmp_path)
    assert model.config.architectures in (None, ["BertModel"])
    again = type(fast).from_pretrained(tmp_path)
    assert type(again) is transformers.BertModel
    assert again.config.architectures == ["BertModel"]
    ids = torch.randint(0, 60, (2, 5))
    torch.testing.assert_close(
        fast(input_ids=ids).last_hidden_state, again(input_ids=ids).last_hidden_state
    )


def test_a_submodule_registered_on_either_face_is_on_both():
    model = Model()
    fast = compiled(model)
    fast.extra = nn.Linear(2, 2)
    assert model.extra is fast.extra
    assert "extra.weight" in fast.state_dict()


def test_the_original_still_runs_as_written():
    model = Model()
    fast = compiled(model)
    assert_serves(fast, model)
    calls = sum(fast.stats().calls.values())
    model(torch.randn(3, 8))
    assert sum(fast.stats().calls.values()) == calls


def test_moving_and_freezing_either_face_moves_and_freezes_both():
    model = Model()
    fast = compiled(model)
    assert fast.double() is fast
    assert model.first.weight.dtype is torch.float64
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in fast.parameters())
    assert fast.eval() is fast
    assert not model.training


# Inside a larger model ------------------------------------------------------------------------


class Parent(nn.Module):
    """Uses a model as a part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.part = part
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.part(self.embed(x), scale=0.5))


def test_a_submodule_compiled_in_place_serves_its_parent():
    parent = Parent(Model())
    reference = copy.deepcopy(parent)
    parent.part = compiled(parent.part)
    assert list(parent.state_dict()) == list(reference.state_dict())
    for size in (3, 0, 1, 9):
        x = torch.randn(size, 4)
        torch.testing.assert_close(parent(x), reference(x))
    assert sum(parent.part.stats().calls.values()) == 4


def test_a_parent_moved_or_loaded_takes_its_compiled_part_along():
    parent = Parent(Model())
    parent.part = compiled(parent.part)
    parent(torch.randn(3, 4))
    reference = Parent(Model()).double()
    parent.double()
    parent.load_state_dict(reference.state_dict(), assign=True)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(parent(x), reference(x))


def test_several_submodules_of_one_parent_can_be_compiled():
    parent = nn.ModuleList([Model() for _ in range(3)])
    for place, part in enumerate(parent):
        parent[place] = compiled(part)
    x = torch.randn(5, 8)
    for part in parent:
        torch.testing.assert_close(part(x), part._pw_original(x))


def test_a_model_with_a_compiled_part_is_refused_naming_the_part():
    parent = Parent(Model())
    parent.part = compiled(parent.part)
    with pytest.raises(UnsupportedModule, match='its part "part" is compiled already'):
        compiled(parent)


def test_a_part_compiled_after_its_whole_is_refused_at_the_next_trace():
    parent = Parent(Model())
    fast = compiled(parent)
    parent.part = compiled(parent.part)
    with pytest.raises(TraceFailed, match="compile the whole or the part"):
        fast(torch.randn(3, 4))


def test_torch_compile_around_a_compiled_part_leaves_the_part_to_piecewise():
    parent = Parent(Model())
    reference = copy.deepcopy(parent)
    parent.part = compiled(parent.part)
    outer = torch.compile(parent, backend="eager")
    for size in (3, 5, 5):
        x = torch.randn(size, 4)
        torch.testing.assert_close(outer(x), reference(x))
    assert sum(parent.part.stats().calls.values()) == 3
    torch._dynamo.reset()


# Hooks ----------------------------------------------------------------------------------------


def test_hooks_on_the_root_run_around_the_compiled_call():
    model = Model()
    fast = compiled(model)
    seen: list[str] = []

    def before(module, args, kwargs):
        seen.append("before")
        return (args[0] + 1,), {**kwargs, "scale": 3.0}

    def after(module, args, kwargs, output):
        seen.append("after")
        return output * 10

    fast.register_forward_pre_hook(before, with_kwargs=True)
    fast.register_forward_hook(after, with_kwargs=True)
    x = torch.randn(3, 8)
    expected = Model.forward(model, x + 1, scale=3.0) * 10
    torch.testing.assert_close(fast(x, scale=3.0), expected)
    assert seen == ["before", "after"]
    torch.testing.assert_close(model(x, scale=3.0), expected)


def test_a_root_hook_that_is_removed_no_longer_runs():
    model = Model()
    fast = compiled(model)
    x = torch.randn(3, 8)
    plain = fast(x)
    handle = model.register_forward_hook(lambda module, args, output: output + 1)
    torch.testing.assert_close(fast(x), plain + 1)
    handle.remove()
    torch.testing.assert_close(fast(x), plain)


def test_hooks_on_submodules_that_compute_are_traced_in():
    model = Model()
    model.first.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.second.register_forward_hook(lambda module, args, output: output - 1)
    fast = compiled(model)
    assert_serves(fast, model)
    assert not torch.equal(fast(torch.ones(3, 8)), Model.forward(Model(), torch.ones(3, 8)))


def test_a_hook_on_a_submodule_that_keeps_what_it_sees_is_refused():
    model = Model()
    kept: list[torch.Tensor] = []
    model.first.register_forward_hook(lambda module, args, output: kept.append(output))
    fast = compiled(model)
    with pytest.raises(PiecewiseError, match="Python objects that outlive the call"):
        fast(torch.randn(3, 8))
    assert not kept


def test_a_hook_added_to_a_submodule_after_the_first_call_is_noticed():
    model = Model()
    fast = compiled(model)
    assert_serves(fast, model)
    handle = model.first.register_forward_hook(lambda module, args, output: output * 3)
    assert_serves(fast, model)
    handle.remove()
    assert_serves(fast, model)


def test_a_forward_that_is_set_on_the_module_later_is_called():
    model = Model()
    fast = compiled(model)
    assert_serves(fast, model)
    model.forward = lambda x: x + 1
    x = torch.randn(3, 8)
    assert torch.equal(fast(x), x + 1)
    del model.forward
    assert_serves(fast, model)


def test_hooks_of_every_module_run_on_the_compiled_one_too():
    fast = compiled(Model())
    x, seen = torch.randn(3, 8), []
    fast(x)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(module)
    )
    try:
        fast(x)
    finally:
        handle.remove()
    assert fast in seen


@pytest.mark.parametrize("first", [True, False], ids=["before a call", "after one"])
def test_a_hook_of_every_module_that_changes_results_does_so_inside_too(first):
    model, fast = Model(), compiled(Model())
    model.load_state_dict(fast.state_dict())
    x = torch.randn(3, 8)
    if not first:
        torch.testing.assert_close(fast(x), model(x))
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: output * 2 if isinstance(output, torch.Tensor) else output
    )
    try:
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x))
    finally:
        handle.remove()
    torch.testing.assert_close(fast(x), model(x))


def test_a_hook_of_every_module_that_changes_python_objects_is_refused_and_never_left_out():
    """The call after the change runs as written, since it may fill a memo; the next is traced."""
    fast, x, seen = compiled(Model()), torch.randn(3, 8), []
    fast(x)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.append(type(module))
    )
    try:
        fast(x)
        inside = len(seen)
        assert inside > 1
        with pytest.raises(UnsupportedSideEffect):
            fast(x)
    finally:
        handle.remove()
    fast(x)
    assert len(seen) == inside


# Shared and copied state ------------------------------------------------------------------------


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8, bias=False)
        self.outer = nn.Linear(8, 8, bias=False)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.outer(self.inner(x).relu())


def test_tied_weights_stay_tied():
    model = Tied()
    fast = compiled(model)
    assert_serves(fast, model)
    assert fast.outer.weight is fast.inner.weight
    assert len(list(fast.parameters())) == 1
    fast.inner.weight.mul_(0.5)
    assert_serves(fast, model)


def test_one_submodule_used_twice_is_served():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.again = self.layer

        def forward(self, x):
            return self.again(self.layer(x))

    model = Twice()
    fast = compiled(model)
    assert_serves(fast, model)
    model.again = nn.Linear(8, 8)
    assert_serves(fast, model)


@pytest.mark.parametrize("used", [False, True])
def test_a_deep_copy_is_compiled_too_and_shares_nothing(used):
    model = Model()
    fast = compiled(model)
    if used:
        assert_serves(fast, model)
    twin = copy.deepcopy(fast)
    assert isinstance(twin, Model)
    assert type(twin) is not Model
    assert twin.stats() == pw.Stats()
    x = torch.randn(3, 8)
    torch.testing.assert_close(twin(x), fast(x))
    twin.first.weight.zero_()
    assert_serves(fast, model)
    assert not torch.equal(twin(x), fast(x))


def test_a_shallow_copy_is_compiled_too_and_shares_the_parameters():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    fast = pw.compile(model, pw.Config(dynamic={"input": {0: ROWS}}, compiler="eager"), "cpu")
    x = torch.randn(3, 8)
    twin = copy.copy(fast)
    torch.testing.assert_close(twin(x), fast(x))
    model[0].weight.mul_(2)
    torch.testing.assert_close(twin(x), model(x))
    assert twin.stats().graphs == 1


def test_a_deep_copy_of_a_loaded_module_runs_its_own_weights(tmp_path):
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()

    fast = pw.compile(model(), pw.Config(dynamic={"input": {0: ROWS}}, compiler="eager"), "cpu")
    x = torch.randn(3, 8)
    fast(x)
    fast.save(tmp_path / "bundle")
    loaded = pw.load(tmp_path / "bundle", model())
    twin = copy.deepcopy(loaded)
    before = loaded(x)
    twin[0].weight.mul_(3)
    torch.testing.assert_close(twin(x), nn.Sequential(*twin)(x))
    torch.testing.assert_close(loaded(x), before)


def test_a_deep_copy_of_a_parent_copies_its_compiled_part():
    parent = Parent(Model())
    parent.part = compiled(parent.part)
    twin = copy.deepcopy(parent)
    x = torch.randn(3, 4)
    torch.testing.assert_close(twin(x), parent(x))
    assert isinstance(twin.part, pw.CompiledModule)
    assert twin.part.first.weight is not parent.part.first.weight


def test_pickling_is_refused_and_the_original_and_its_state_still_pickle(tmp_path):
    model = Model()
    fast = compiled(model)
    assert_serves(fast, model)
    with pytest.raises(PiecewiseError, match=r"a compiled Model cannot be pickled"):
        pickle.dumps(fast)
    with pytest.raises(PiecewiseError, match=r"a compiled Model cannot be pickled"):
        torch.save(Parent(fast), tmp_path / "parent.pt")
    pickle.loads(pickle.dumps(model))
    torch.save(fast.state_dict(), tmp_path / "state.pt")
    fresh = Model()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert_serves(fast, fresh)


# What cannot be compiled in place --------------------------------------------------------------


@pytest.mark.parametrize("front", [pw.compile, pw.record])
def test_an_exported_program_is_refused_and_its_module_is_served(front):
    model, rows = nn.Linear(4, 4), torch.export.Dim("rows", min=2, max=16)
    exported = torch.export.export(model, (torch.randn(3, 4),), dynamic_shapes=({0: rows},))
    with pytest.raises(UnsupportedModule, match=r"compile its \.module\(\)"):
        front(exported)
    config = pw.Config(dynamic={"input": {0: pw.Dim("rows", 2, 16)}}, compiler="eager")
    fast, x = pw.compile(exported.module(), config, "cpu"), torch.randn(5, 4)
    torch.testing.assert_close(fast(x), model(x))


def test_a_script_module_is_refused():
    class Scripted(torch.jit.ScriptModule):
        pass

    with pytest.raises(UnsupportedModule, match="compile the Python model"):
        compiled(Scripted())


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda m: compiled(m), "compiled already"),
        (lambda m: torch.compile(m, backend="eager"), "_orig_mod"),
        (lambda m: nn.DataParallel(m), r"compile its \.module"),
    ],
    ids=["compiled", "torch.compile", "data parallel"],
)
def test_a_wrapped_model_is_refused_saying_what_to_compile(wrap, said):
    with pytest.raises(UnsupportedModule, match=said):
        compiled(wrap(Model()))


def test_a_model_whose_forward_was_replaced_is_refused():
    model = Model()
    model.forward = lambda x: x
    with pytest.raises(UnsupportedModule, match="its forward was replaced on the instance"):
        compiled(model)


def test_a_model_compiled_in_place_by_torch_is_refused():
    model = Model()
    model.compile(backend="eager")
    with pytest.raises(UnsupportedModule, match=r"its \.compile\(\) was called"):
        compiled(model)


def test_a_tensor_subclass_with_its_own_dispatch_is_refused_by_name():
    class Marked(torch.Tensor):
        pass

    model = Model()
    model.shift = torch.randn(8).as_subclass(Marked)
    with pytest.raises(UnsupportedModule, match=r"Marked.*convert it to plain tensors"):
        compiled(model)(torch.randn(3, 8))


def test_a_parameter_subclass_without_dispatch_of_its_own_is_a_parameter():
    class Loaded(nn.Parameter):
        def load(self, value):
            self.copy_(value)

    model = Model()
    model.first.weight = Loaded(torch.randn(8, 8))
    fast = compiled(model)
    assert_serves(fast, model)
    model.first.weight.load(torch.ones(8, 8))
    assert_serves(fast, model)


def test_lazy_layers_take_their_width_from_the_first_call():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU())
    fast = compiled(model)
    assert_serves(fast, model)
    assert model[0].weight.shape == (8, 8)
