"""Forks of random graphs: lanes depend on nothing of each other, and the order stays an order."""

from __future__ import annotations

import itertools
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piecewise_core.graph.forks import find_forks
from piecewise_core.graph.segments import segments
from piecewise_core.graph.windows import Group, windows

LARGE = 1 << 20
WEIGHT = torch.zeros(64, 64)


def lane_of(groups):
    """The window and lane of each group that is in one."""
    found = {}
    for number, window in enumerate(windows(groups)):
        found |= {group: (number, lane) for group, lane in window.lanes.items()}
    return found


@st.composite
def chains(draw):
    groups = []
    for place in range(draw(st.integers(0, 14))):
        before = draw(st.frozensets(st.integers(0, place - 1), max_size=3)) if place else ()
        weight = draw(st.sampled_from([0, LARGE, 2 * LARGE, 9 * LARGE]))
        groups.append(Group(frozenset(before), weight, draw(st.integers(0, 3))))
    return groups


@given(chains())
@settings(max_examples=150)
def test_lanes_are_apart_and_windows_lie_one_behind_the_other(groups):
    found = windows(groups)
    for one, other in itertools.pairwise(found):
        assert one.last < other.first
    lanes = lane_of(groups)
    for window in found:
        assert set(window.lanes) <= set(range(window.first, window.last + 1))
        weights = [0, 0]
        for group, lane in window.lanes.items():
            weights[lane] += groups[group].weight
        assert min(weights) * 16 >= sum(weights) > 0
    for group, (number, lane) in lanes.items():
        for other in groups[group].before & lanes.keys():
            assert lanes[other][0] < number or lanes[other] == (number, lane)


def test_two_chains_that_stand_one_behind_the_other_are_one_fork():
    """Growing a fork from its first nodes would find the heads of the first chain alone."""
    chain = []
    for tower in range(2):
        base = 4 * tower
        chain += [Group(frozenset(), LARGE, tower), Group(frozenset(), LARGE, tower + 2)]
        chain += [Group(frozenset({base, base + 1}), LARGE), Group(frozenset({base + 2}), LARGE)]
    chain.append(Group(frozenset({3, 7})))
    (window,) = windows(chain)
    assert window.lanes == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 1}


def test_products_of_one_input_alone_are_left_together():
    heads = [Group(frozenset(), LARGE, "x") for _ in range(3)]
    assert not windows([*heads, Group(frozenset({0, 1, 2}))])
    others = [Group(frozenset(), LARGE, name) for name in "xy"]
    assert lane_of(others) == {0: (0, 0), 1: (0, 1)}


def test_a_part_that_is_next_to_nothing_is_no_lane():
    assert not windows([Group(frozenset(), 40 * LARGE, "x"), Group(frozenset(), LARGE, "y")])


@st.composite
def graphs(draw):
    """A graph of products, sums and writes, and its weights."""
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("w")
    x.meta["example_value"], weight.meta["example_value"] = torch.zeros(2, 64), WEIGHT
    made = [x]
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["product", "product", "biased", "sum", "alone", "write"]))
        given = [draw(st.sampled_from(made)) for _ in range(2)]
        if kind == "product":
            node = graph.call_function(torch.nn.functional.linear, (given[0], weight))
        elif kind == "biased":
            args = (given[0], weight, weight)
            node = graph.call_function(torch.nn.functional.conv1d, args)
        elif kind == "sum":
            node = graph.call_function(operator.add, (given[0], given[1]))
        elif kind == "alone":
            node = graph.call_method("sin", (given[0],))
        else:
            node = graph.call_method("add_", (given[0], 1))
        of = given[0].meta["example_value"]
        node.meta["example_value"] = of if kind == "write" else torch.zeros(2, 64)
        made.append(node)
    graph.output((made[-1],))
    return graph, weight


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_what_is_moved_still_comes_behind_what_it_needs(made):
    graph, weight = made
    found = find_forks(graph, [weight], "cpu")
    place = {node: i for i, node in enumerate(found.order)}
    assert sorted(place, key=lambda n: n.name) == sorted(
        (n for n in graph.nodes if n.op.startswith("call")), key=lambda n: n.name
    )
    writes = [n for n in graph.nodes if n.target == "add_"]
    assert not set(writes) & found.lanes.keys()
    for node in place:
        for used in node.all_input_nodes:
            if used not in place:
                continue
            assert place[used] < place[node]
            if used in found.lanes and node in found.lanes:
                fork, lane = found.lanes[node]
                assert found.lanes[used][0] < fork or found.lanes[used] == (fork, lane)
    for write in writes:  # nothing passes a write
        before = [n for n in graph.nodes if n in place]
        at = before.index(write)
        assert {place[n] for n in before[:at]} == set(range(at))
    runs = segments(graph, lambda node: node.target == "sin", found.order, found.lanes)
    assert [n for run in runs for n in run.nodes] == list(found.order)
    for run in runs:
        assert {found.lanes.get(n) for n in run.nodes} == {run.lane}


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_what_lies_on_another_device_is_in_no_fork(device):
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("w")
    x.meta["example_value"], weight.meta["example_value"] = torch.zeros(2, 64), WEIGHT
    nodes = []
    for value in (x, graph.call_method("sin", (x,))):
        value.meta["example_value"] = torch.zeros(2, 64)
        nodes.append(graph.call_function(torch.nn.functional.linear, (value, weight)))
        nodes[-1].meta["example_value"] = torch.zeros(2, 64)
    graph.output(tuple(nodes))
    assert find_forks(graph, [weight], "cpu").lanes
    assert not find_forks(graph, [weight], device).lanes


class Drawing:
    """A graph in the making, of values of 2 x 64; ``w``: its weights."""

    def __init__(self):
        self.graph = torch.fx.Graph()
        self.w = self.given("w", WEIGHT)

    def given(self, name, value):
        node = self.graph.placeholder(name)
        node.meta["example_value"] = value
        return node

    def __call__(self, target, *args):
        make = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        node = make(target, args)
        node.meta["example_value"] = torch.zeros(2, 64)
        return node

    def linear(self, x):
        return self(torch.nn.functional.linear, x, self.w)

    def lanes(self, *results):
        self.graph.output(results)
        return find_forks(self.graph, [self.w], "cpu").lanes


def test_what_fuses_across_the_end_of_a_lane_is_in_none():
    """A block of a DiT: its shift is of the condition, beside its products."""
    draw = Drawing()
    x = draw.given("x", torch.zeros(2, 64))
    first, second = draw.linear(x), draw.linear(x)
    ahead = draw("sin", first)
    head = draw(operator.add, ahead, second)  # one kernel with what is ahead
    one = draw.linear(head)
    inner = draw("relu", one)
    two = draw.linear(inner)
    tail = draw("tanh", two)  # one kernel with the sum behind
    view = draw("view", tail, 2, 64)
    beside = draw.linear(second)
    scale = draw(operator.mul, beside, 2)
    lanes = draw.lanes(draw("exp", draw(operator.add, view, scale)))
    assert lanes == {one: (0, 0), inner: (0, 0), two: (0, 0), beside: (0, 1)}


def test_what_fuses_with_nothing_outside_stays_in_its_lane():
    draw = Drawing()
    x, y = draw.given("x", torch.zeros(2, 64)), draw.given("y", torch.zeros(2, 64))
    a = draw("sin", draw.linear(draw("cos", x)))
    b = draw("sin", draw.linear(draw("cos", y)))
    joined = draw(torch.matmul, a, b)
    assert {a, b} <= draw.lanes(joined).keys()


@pytest.mark.parametrize("bias", [True, False])
def test_no_lane_ends_in_a_convolution_with_a_bias(bias):
    """Inductor adds it behind, in a kernel with what follows."""
    draw = Drawing()
    x, y = draw.given("x", torch.zeros(2, 64)), draw.given("y", torch.zeros(2, 64))
    given = (draw.w, draw.given("b", torch.zeros(64)) if bias else None)
    made = draw(torch.nn.functional.conv1d, x, *given)
    other = draw.linear(y)
    lanes = draw.lanes(draw(operator.add, made, other))
    assert lanes.keys() == (set() if bias else {made, other})


def test_what_fuses_from_one_fork_to_the_next_is_between_them():
    draw = Drawing()
    x, y = draw.given("x", torch.zeros(2, 64)), draw.given("y", torch.zeros(2, 64))
    products, between = [], []
    for _ in range(3):
        wide = draw.linear(draw("relu", draw.linear(x)))
        products += [wide, beside := draw.linear(y)]
        between += [norm := draw("sigmoid", wide), x := draw(operator.mul, norm, beside)]
    draw.linear(x)
    lanes = draw.lanes(x)
    assert {lanes[n] for n in products} == {(fork, lane) for fork in range(3) for lane in (0, 1)}
    assert not lanes.keys() & set(between)
