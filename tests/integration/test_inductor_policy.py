"""Inductor's ``cudagraph_policy``: what it asks, answered without a GPU."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

import piecewise_core as pw
from piecewise_core.integrations.inductor import policy
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.torch_compat.inductor import cudagraph_policy_class

pytestmark = pytest.mark.skipif(
    cudagraph_policy_class() is None, reason="this torch has no cudagraph_policy"
)


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def boxed(fn):
    """As Inductor's code is called: with one list, which it empties."""

    def model(inputs):
        given = list(inputs)
        inputs.clear()
        return fn(*given)

    return model


class Asked:
    """A policy on a simulated device, and one function under it."""

    def __init__(self, fn, example, static=(), mutated=(), platform=None, **options):
        self.platform = platform or SimulatedPlatform()
        self.policy = policy(self.platform, **options)
        self.run = self.policy.cudagraphify(
            boxed(fn),
            example,
            static,
            device_index=0,
            stack_traces=[],
            is_backward=False,
            is_inference=True,
            constants=(),
            placeholders=(),
            mutated_input_idxs=tuple(mutated),
        )

    def __call__(self, *inputs):
        return self.run(list(inputs))

    @property
    def captures(self):
        return self.policy.stats().captures

    @property
    def replayed(self):
        return self.policy.stats().calls["replayed"]


def same(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def product(weight, x):
    return (x @ weight, x.sum())


def test_it_is_torchs_kind_of_policy():
    made = policy(SimulatedPlatform())
    assert isinstance(made, cudagraph_policy_class())
    output = object()
    assert made.wrap_output(output) is output
    with torch._inductor.config.patch(cudagraph_policy=made):
        assert torch._inductor.config.cudagraph_policy is made


def test_shapes_are_captured_at_their_second_call_and_results_are_the_callers_own():
    weight = torch.randn(4, 4)
    asked = Asked(product, [weight, torch.randn(3, 4)], static=(0,))
    inputs = [torch.randn(n, 4) for n in (3, 5, 3, 5, 3, 5)]
    results = [asked(weight, x) for x in inputs]
    for got, x in zip(results, inputs, strict=True):
        same(tuple(got), product(weight, x))
    assert (asked.captures, asked.replayed) == (2, 4)


def test_static_inputs_elsewhere_are_captured_anew_and_graphs_of_gone_ones_are_freed():
    first = torch.randn(4, 4)
    asked = Asked(product, [first, torch.randn(3, 4)], static=(0,), capture="first")
    x = torch.randn(3, 4)
    same(tuple(asked(first, x)), product(first, x))
    second = torch.randn(4, 4)
    for weight in (second, first, second):
        same(tuple(asked(weight, x)), product(weight, x))
    assert (asked.captures, asked.platform.graphs.live_graphs) == (2, 2)
    del first, weight
    gc.collect()
    assert asked.platform.graphs.live_graphs == 1


def test_numbers_among_the_inputs_are_told_apart():
    asked = Asked(lambda n, x: (x * n,), [3, torch.randn(3)])
    for n in (3, 4, 3, 4, 3, 4):
        x = torch.randn(3)
        same(asked(n, x)[0], x * n)
    assert asked.captures == 2


@pytest.mark.parametrize("size", [8, 300_000])
@pytest.mark.parametrize("static", [(), (0,)])
def test_writes_reach_the_callers_memory_once_a_call(size, static):
    def add(x, y):
        x.add_(y)
        return (x[:2], x.sum())

    asked = Asked(add, [torch.zeros(size), torch.ones(1)], static=static, mutated=(0,))
    x = torch.zeros(size)
    for turn in range(1, 5):
        part, total = asked(x, torch.ones(1))
        assert part.data_ptr() == x.data_ptr()
        same(total, torch.tensor(float(turn * size)))
    assert asked.replayed == 3


def test_an_input_that_is_not_aligned_is_served_right():
    asked = Asked(lambda x: (x * 2,), [torch.zeros(8)])
    for _ in range(3):
        x = torch.randn(9)[1:]
        same(asked(x)[0], x * 2)


def test_what_cannot_be_captured_is_served_without_and_told():
    asked = Asked(
        lambda x: (x * 2,), [torch.zeros(8)], platform=SimulatedPlatform(fail_capture_at=1)
    )
    for _ in range(4):
        x = torch.randn(8)
        same(asked(x)[0], x * 2)
    assert asked.replayed == 0
    assert len(asked.policy.uncaptured()) == 1


def test_a_training_graph_is_left_alone():
    made, model = policy(SimulatedPlatform()), boxed(lambda x: (x,))
    assert made.cudagraphify(model, [], (), device_index=0, is_inference=False) is model
    assert made.cudagraphify(model, [], (), device_index=0, is_backward=True) is model


def test_code_that_inductor_parted_is_captured_part_by_part():
    fns = [boxed(lambda x, w: (x @ w,)), boxed(lambda y: (y + 1,))]
    wrapped = list(fns)

    def apply(wrappers):
        wrapped[:] = [wrap(fn) for wrap, fn in zip(wrappers, fns, strict=True)]

    made = policy(SimulatedPlatform())
    parts = [SimpleNamespace(input_index_mapping=m) for m in ([1, 0], [None])]
    code = SimpleNamespace(
        partition_maps=parts,
        recursively_apply_fns=apply,
        fx_kwargs={"is_inference": True, "static_input_idxs": [0]},
        mutated_input_idxs=(),
        device_idxs={0},
        disabled_cudagraphs_reason=None,
    )
    assert made.should_wrap(code) is False
    weight = torch.randn(4, 4)
    for _ in range(3):
        x = torch.randn(3, 4)
        (y,) = wrapped[0]([x, weight])
        (z,) = wrapped[1]([y.sin()])
        same(z, (x @ weight).sin() + 1)
    assert (made.stats().captures, made.stats().calls["replayed"]) == (2, 4)


def test_code_in_one_part_without_partitions_is_captured_as_a_whole():
    code = SimpleNamespace(partition_maps=None, recursively_apply_fns=None)
    assert policy(SimulatedPlatform()).should_wrap(code) is True


def test_a_memory_limit_frees_what_was_used_longest_ago():
    asked = Asked(lambda x: (x * 2,), [torch.zeros(8)], memory_limit=1, capture="first")
    for size in (8, 16, 8, 16):
        x = torch.randn(size)
        same(asked(x)[0], x * 2)
    assert asked.platform.graphs.live_graphs <= 1


def test_options_that_are_not_the_policys_are_refused_with_those_that_are():
    with pytest.raises(pw.errors.ConfigError, match="capture, check, memory_limit"):
        policy(SimulatedPlatform(), splitting_ops=("aten::add",))
    with pytest.raises(pw.errors.ConfigError, match="'first', 'lazy'"):
        policy(SimulatedPlatform(), capture="later")


def test_graphs_go_with_inductors_code():
    asked = Asked(lambda x: (x * 2,), [torch.zeros(8)], capture="first")
    asked(torch.randn(8))
    assert asked.platform.graphs.live_graphs == 1
    del asked.run
    assert asked.platform.graphs.live_graphs == 0
