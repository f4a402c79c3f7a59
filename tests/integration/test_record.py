"""Static graphs of callables that no tracer could read: ``pw.record`` on the simulated device."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import (
    AddressChanged,
    ConfigError,
    GradNeeded,
    InputMismatch,
    NotTraced,
    OpContractBroken,
    OutOfRange,
    PiecewiseError,
    Sealed,
)
from piecewise_core.testing import SimulatedPlatform

N = pw.Dim("n", 1, 16)
SIZES = (1, 4, 8, 16)


@torch.library.custom_op("pwrecord::attend", mutates_args=())
def attend(x: torch.Tensor) -> torch.Tensor:
    CALLS.append(x.shape[0])
    return torch.softmax(x, -1)


@attend.register_fake
def _(x):
    return torch.empty_like(x)


CALLS: list[int] = []


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    CALLS.clear()
    with torch.inference_mode():
        yield


def recorded(fn, platform=None, **config):
    settings = {"dynamic": {"x": {0: N}}, "capture_sizes": SIZES, **config}
    return pw.record(fn, pw.Config(**settings), platform=platform or SimulatedPlatform())


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def same(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@dataclasses.dataclass
class Node:
    """A structure that Dynamo would have to guard on, or refuse."""

    weight: torch.Tensor
    children: list[Node] = dataclasses.field(default_factory=list)

    def run(self, x):
        x = (x @ self.weight).tanh()
        for child in sorted(self.children, key=lambda c: float(len(c.children))):
            x = x + child.run(x)
        return x


def tree():
    leaf = [Node(torch.randn(8, 8)) for _ in range(3)]
    return Node(torch.randn(8, 8), [Node(torch.randn(8, 8), leaf[:2]), leaf[2]])


# What it records --------------------------------------------------------------------------------


def test_a_walk_over_python_objects_with_side_effects_is_replayed(capsys):
    root, log = tree(), []

    def fn(x):
        log.append(x.shape[0])
        print("walking")
        with open(__file__, encoding="utf-8") as source:
            source.readline()
        return {"y": root.run(x), "rows": x.shape[0], "name": "tree"}

    fast = recorded(fn, capture_sizes=(4, 16))
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.captured == ((16,), (4,))
    seen = len(log)
    for size in (4, 16, 4):
        x = torch.randn(size, 8)
        got = fast(x)
        close(got["y"], root.run(x))
        assert (got["rows"], got["name"]) == (size, "tree")
    assert len(log) == seen
    assert "walking" in capsys.readouterr().out
    assert fast.stats().calls["replayed"] == 3


@pytest.mark.parametrize(
    ("split", "fn"),
    [
        ("torch.softmax", lambda x: torch.softmax(x.sin(), -1).cos() + 1),
        ("torch.nn.functional.softmax", lambda x: nn.functional.softmax(x.sin(), -1).cos()),
        ("pwrecord::attend", lambda x: torch.ops.pwrecord.attend(x.sin()).cos()),
        ("pwrecord::attend", lambda x: attend(attend(x.sin())).cos()),
        ("pwrecord::attend", lambda x: attend(x) + 1),
        ("pwrecord::attend", lambda x: attend(x.sin())),
        ("aten::_softmax", lambda x: x.sin().softmax(-1).cos()),
        ("torch.Tensor.cumsum", lambda x: x.sin().cumsum(-1).cos()),
    ],
)
def test_a_capture_ends_at_torch_functions_methods_and_operators(split, fn):
    fast = recorded(fn, splitting_ops=(split,), capture_sizes=(4, 16))
    fast.warmup(torch.randn(3, 8), progress=False)
    for size in (4, 16, 4):
        x = torch.randn(size, 8)
        close(fast(x), fn(x))
    assert fast.stats().calls["replayed"] == 3


def test_graphs_are_one_more_than_the_splitting_ops_between_them():
    fast = recorded(
        lambda x: attend(attend(x.sin()).cos()).tan(),
        splitting_ops=("pwrecord::attend",),
        capture_sizes=(4, 16),
    )
    fast.warmup(torch.randn(3, 8), progress=False)
    assert fast.stats().captures == 6


def test_splitting_ops_run_at_every_replay():
    fast = recorded(
        lambda x: attend(x.sin()).cos(), splitting_ops=("pwrecord::attend",), capture_sizes=(4, 16)
    )
    fast.warmup(torch.randn(3, 8), progress=False)
    CALLS.clear()
    for _ in range(3):
        fast(torch.randn(4, 8))
    assert CALLS == [4, 4, 4]


def test_a_splitting_function_that_writes_is_undone_after_capture_and_done_once_a_call():
    state = torch.zeros(16, 8)

    def fn(x):
        y = x.sin()
        state[: x.shape[0]].add_(y)
        y.index_copy_(0, torch.arange(x.shape[0]), state[: x.shape[0]])
        return y * 2

    for split in ("torch.Tensor.index_copy_", "torch.Tensor.add_"):
        state.zero_()
        fast = recorded(fn, splitting_ops=(split,), capture_sizes=(4, 16))
        fast.warmup(torch.randn(3, 8), progress=False)
        same(state, torch.zeros(16, 8))
        wanted = torch.zeros(16, 8)
        for size in (4, 16, 3, 4):
            x = torch.randn(size, 8)
            wanted[:size] += x.sin()
            close(fast(x), wanted[:size] * 2)
            close(state, wanted)
        assert fast.stats().calls["replayed"] == 3


class Decoder(nn.Module):
    """One token a step; keeps keys and values in buffers that Python code indexes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 32)
        self.register_buffer("keys", torch.zeros(4, 80, 16))
        self.register_buffer("values", torch.zeros(4, 80, 16))

    def forward(self, tokens, position):
        rows = tokens.shape[0]
        x = self.embed(tokens)
        q, k, v = self.q(x), self.k(x), self.v(x)
        self.keys[:rows].index_copy_(1, position, k[:, None])
        self.values[:rows].index_copy_(1, position, v[:, None])
        mask = torch.arange(80) <= position
        scores = (self.keys[:rows] @ q[:, :, None]).squeeze(-1).masked_fill(~mask, -1e9)
        weights = torch.softmax(scores, -1)
        x = x + (weights[:, None] @ self.values[:rows]).squeeze(1)
        return self.out(x)


def test_greedy_tokens_over_64_steps_are_those_of_eager():
    model = Decoder().eval()
    reference = copy.deepcopy(model)
    fast = recorded(
        model,
        dynamic={"tokens": {0: pw.Dim("batch", 1, 4)}},
        capture_sizes=(2, 4),
        splitting_ops=("torch.softmax",),
    )
    fast.warmup(torch.zeros(2, dtype=torch.long), torch.zeros(1, dtype=torch.long), progress=False)
    ours = theirs = torch.tensor([3, 7])
    for step in range(64):
        position = torch.tensor([step])
        logits, wanted = fast(ours, position), reference(theirs, position)
        same(logits, wanted)
        ours, theirs = logits.argmax(-1), wanted.argmax(-1)
    same(model.keys, reference.keys)
    assert fast.stats().calls["replayed"] == 64


# Sizes ------------------------------------------------------------------------------------------


def test_a_lazy_capture_is_at_the_second_call_of_its_size():
    def double(x):
        return x * 2

    config = pw.Config(dynamic={"x": {0: N}}, capture_sizes=(4,), capture_max=False, capture="lazy")
    recorded = pw.record(double, config, platform=SimulatedPlatform())
    for expected in (0, 1, 1):
        x = torch.randn(4, 3)
        torch.testing.assert_close(recorded(x), x * 2)
        assert recorded.stats().captures == expected
    assert recorded.stats().calls["replayed"] == 2


def test_uncaptured_sizes_run_as_they_are():
    fast = recorded(lambda x: x.sin() + x.shape[0], capture_sizes=(4, 16))
    for size in (4, 3, 16, 5):
        x = torch.randn(size, 8)
        close(fast(x), x.sin() + size)
    calls = fast.stats().calls
    assert (calls["replayed"], calls["eager"], sum(calls.values())) == (2, 2, 4)


def test_sizes_out_of_bounds_are_refused_or_run_as_they_are():
    x = torch.randn(17, 8)
    with pytest.raises(OutOfRange, match="out_of_range"):
        recorded(torch.sin, dynamic={0: {0: N}})(x)
    close(recorded(lambda x: x.sin(), out_of_range="eager")(x), x.sin())


def test_padded_calls_are_cut_back_and_sizes_in_results_are_right():
    def fn(x):
        return {"y": x.sin() * 2, "rows": x.shape[0], "pair": (x.cos().t(), [x])}

    fast = recorded(fn, padding="capture_sizes")
    fast.warmup(torch.randn(3, 8), progress=False)
    fast(torch.full((8, 8), float("nan")))
    for _ in range(2):
        for size in (3, 5, 7, 8, 11):
            x = torch.randn(size, 8)
            got, wanted = fast(x), fn(x)
            assert got["rows"] == size
            close(got["y"], wanted["y"])
            close(got["pair"][0], wanted["pair"][0])
            assert got["pair"][1][0] is x
    stats = fast.stats()
    assert (stats.calls["eager"], stats.calls["replayed"]) == (4, 7)
    assert stats.padded_rows == 1 + 3 + 1 + 5


def test_rows_that_are_not_at_the_end_are_not_padded():
    fast = recorded(lambda x: torch.cat([x.sin(), x]), padding="capture_sizes")
    for _ in range(2):
        x = torch.randn(3, 8)
        close(fast(x), torch.cat([x.sin(), x]))
    assert fast.stats().calls["replayed"] == 0


def test_rows_that_see_each_other_are_found_out_and_run_as_they_are(caplog):
    def fn(x):
        return x.mean(0), torch.arange(x.shape[0]) - x.shape[0]

    fast = recorded(fn, padding="capture_sizes")
    for size in (5, 5, 3, 8):
        x = torch.randn(size, 8)
        close(fast(x), fn(x))
    assert caplog.text.count("without padding from now on") == 1
    assert fast.stats().calls["replayed"] == 1


def test_calls_that_draw_numbers_for_each_row_are_not_padded(caplog):
    fast = recorded(lambda x: x * 2 + torch.rand_like(x), padding="capture_sizes")
    for _ in range(2):
        fast(torch.randn(5, 8))
    assert fast.stats().calls["replayed"] == 0
    assert "aten::rand_like at " in caplog.text
    assert "test_record.py:" in caplog.text


def test_what_writes_to_the_users_memory_is_not_padded():
    state = torch.zeros(16, 8)

    def fn(x):
        state[: x.shape[0]].add_(1)
        return x + state[: x.shape[0]]

    fast = recorded(fn, padding="capture_sizes")
    for count in range(1, 4):
        x = torch.randn(3, 8)
        close(fast(x), x + count)
    same(state[3:], torch.zeros(13, 8))
    assert fast.stats().calls["replayed"] == 0


# Objects passed in --------------------------------------------------------------------------------


class Cache:
    """Held by identity; the rows so far, and how many times a call wrote them."""

    def __init__(self):
        self.rows, self.writes = torch.zeros(16, 8), torch.zeros(())

    def write(self, x):
        self.rows[: x.shape[0]].add_(x)
        self.writes.add_(1)
        return self.rows[: x.shape[0]].sin()


@dataclasses.dataclass
class Shelf:
    """A dataclass in an argument is an object too, whatever tensors it has."""

    rows: torch.Tensor


@dataclasses.dataclass
class Answer:
    out: torch.Tensor
    cache: object = None


def test_an_object_passed_in_is_returned_itself():
    cache = Cache()

    def fn(x, cache, scale=2):
        return Answer(cache.write(x) * scale, cache), [cache, scale]

    fast = recorded(fn, capture_sizes=(4, 16))
    fast.warmup(torch.randn(4, 8), cache, progress=False)
    for size in (4, 16, 5):
        x, held = torch.randn(size, 8), copy.deepcopy(cache)
        (answer, pair), (wanted, _) = fast(x, cache), fn(x, held)
        close(answer.out, wanted.out)
        assert type(answer) is Answer
        assert answer.cache is pair[0] is cache
        assert pair[1] == 2
        close(cache.rows, held.rows)
        assert cache.writes.item() == held.writes.item()
    assert fast.stats().calls["replayed"] == 2
    x, other, held = torch.randn(4, 8), Cache(), Cache()
    (answer, _), (wanted, _) = fast(x, other), fn(x, held)
    close(answer.out, wanted.out)
    assert answer.cache is other
    close(other.rows, held.rows)


def test_the_tensors_of_an_object_passed_in_are_never_copied_or_cut():
    shelf = Shelf(torch.randn(3, 16))
    fast = recorded(
        lambda x, shelf: Answer(x + 1, {"it": shelf}),
        padding="capture_sizes",
        clone_outputs=True,
    )
    rows = shelf.rows
    for _ in range(2):
        for size in (3, 4, 16):
            x = torch.randn(size, 8)
            answer = fast(x, shelf)
            close(answer.out, x + 1)
            assert answer.cache["it"] is shelf
            assert shelf.rows is rows
    assert fast.stats().calls["replayed"] == 5


def test_a_static_cache_in_a_model_output_is_returned_itself():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    cache, plain = (transformers.StaticCache(config, max_cache_len=16) for _ in range(2))
    for each in (cache, plain):
        each.early_initialization(1, 1, 8, torch.float32, torch.device("cpu"))

    def step(ids, at, cache):
        places = at.unsqueeze(0)
        return model(ids, past_key_values=cache, position_ids=places, use_cache=True)

    fast = pw.record(step, pw.Config(graph_mode="piecewise"), platform=SimulatedPlatform())
    for place in range(5):
        ids, at = torch.randint(0, 32, (1, 1)), torch.tensor([place])
        got, wanted = fast(ids, at, cache), step(ids, at, plain)
        assert type(got) is type(wanted)
        close(got.logits, wanted.logits)
        assert got.past_key_values is cache
    assert fast.stats().calls["replayed"] == 5


# One size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"capture_sizes": ((),)},
        {"capture_sizes": ((),), "graph_mode": "piecewise", "padding": "capture_sizes"},
        {"graph_mode": "piecewise"},
    ],
)
def test_a_call_without_dims_is_captured_once(asked):
    fast = recorded(lambda x: (x.sin(), x.shape[0]), dynamic={}, **{"capture_sizes": (), **asked})
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert report.captured == ((),)
    for _ in range(3):
        x = torch.randn(3, 8)
        out, rows = fast(x)
        close(out, x.sin())
        assert rows == 3
    assert fast.stats().calls["replayed"] == 3
    assert fast.explain().captured == ((),)
    fast.release()
    close(fast(x)[0], x.sin())
    fast.restore()
    close(fast(x)[0], x.sin())
    assert fast.stats().calls["replayed"] == 4


# Values that Python reads -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("item", lambda x: x + x.sum().item()),
        ("tolist", lambda x: x + x[0].tolist()[0]),
        ("numpy", lambda x: x + torch.from_numpy(x.numpy())),
        ("__bool__", lambda x: x if x.sum() > 0 else -x),
        ("__float__", lambda x: x * float(x.sum())),
    ],
)
def test_a_value_read_by_python_drops_the_size_and_names_the_line(name, fn):
    fast = recorded(fn, capture_sizes=(4,))
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert len(report.dropped) == 2
    for why in report.dropped:
        assert name in why
        assert "test_record.py:" in why
        assert "splitting op" in why
    x = torch.randn(4, 8)
    close(fast(x), fn(x))
    assert fast.stats().calls == {**fast.stats().calls, "eager": 1, "replayed": 0}


# Memory of the user -------------------------------------------------------------------------------


def test_buffers_are_unchanged_by_warmup_and_written_once_a_call():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("cache", torch.randn(16, 8))

        def forward(self, x):
            self.count += 1
            self.cache[: x.shape[0]].mul_(0.5).add_(x)
            return self.cache[: x.shape[0]].sin()

    model = Counting()
    reference = copy.deepcopy(model)
    fast = recorded(model)
    fast.warmup(torch.randn(3, 8), progress=False)
    same(model.cache, reference.cache)
    for size in (4, 1, 3, 16, 4):
        x = torch.randn(size, 8)
        close(fast(x), reference(x))
        close(model.cache, reference.cache)
        same(model.count, reference.count)
    assert fast.stats().calls["replayed"] == 4


def test_writes_into_the_callers_own_tensor_are_visible():
    def fn(x, out):
        out.add_(x.sin())
        return out * 2

    fast = recorded(fn, dynamic={"x": {0: N}, "out": {0: N}}, capture_sizes=(4, 16))
    for size in (4, 4, 16, 3, 4):
        x, out = torch.randn(size, 8), torch.randn(size, 8)
        wanted = out + x.sin()
        close(fast(x, out), wanted * 2)
        close(out, wanted)
    assert fast.stats().calls["replayed"] == 4
    with pytest.raises(InputMismatch, match="out"):
        fast(torch.randn(4, 8), torch.randn(8, 4).t())


def test_tensors_from_outside_are_held():
    holder = {"w": torch.randn(8, 8)}
    keep = holder["w"].clone()

    def fn(x):
        return x @ holder["w"] if "w" in holder else x

    unchecked = recorded(fn, capture_sizes=(4, 16), check="off")
    checked = recorded(fn, capture_sizes=(4, 16))
    for fast in (unchecked, checked):
        fast.warmup(torch.randn(3, 8), progress=False)
    del holder["w"]
    x = torch.randn(4, 8)
    close(unchecked(x), x @ keep)
    close(checked(x), x)  # what it reads was seen to change


@pytest.mark.parametrize("swap", ["replace", "data"])
def test_replaced_parameters_run_uncaptured_until_restored(swap):
    model = nn.Linear(8, 8)
    fast = recorded(model, dynamic={"input": {0: N}}, capture_sizes=(4, 16))
    fast.warmup(torch.randn(3, 8), progress=False)
    x = torch.randn(4, 8)
    close(fast(x), model(x))
    if swap == "replace":
        model.weight = nn.Parameter(torch.randn(8, 8))
    else:
        model.weight.data = torch.randn(8, 8)
    close(fast(x), model(x))
    assert (fast.stats().calls["eager"], fast.stats().pool_bytes) == (1, 0)
    fast.restore()
    close(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 2


def test_release_gives_memory_back_and_rounds_hold_the_same():
    platform = SimulatedPlatform()
    root = tree()
    fast = recorded(root.run, platform=platform)
    first = fast.warmup(torch.randn(3, 8), progress=False).graph_bytes
    for _ in range(5):
        fast.release()
        assert platform.device.memory_stats()["reserved_bytes"] == 0
        x = torch.randn(4, 8)
        close(fast(x), root.run(x))
        assert fast.restore().warmup(progress=False).graph_bytes == first
        close(fast(x), root.run(x))
    assert fast.stats().calls["replayed"] == 5


def test_outputs_are_overwritten_by_the_next_replay_unless_cloned():
    for clone in (False, True):
        fast = recorded(lambda x: x.sin(), capture_sizes=(4, 16), clone_outputs=clone)
        kept = fast(torch.randn(4, 8))
        before = kept.clone()
        fast(torch.randn(4, 8))
        assert torch.equal(kept, before) is clone


def test_static_inputs_are_checked_by_address():
    fast = recorded(lambda x: x.sin(), capture_sizes=(4, 16), inputs="static")
    assert fast.warmup(torch.randn(3, 8), progress=False).captured == ()
    x = torch.randn(4, 8)
    for _ in range(3):
        close(fast(x), x.sin())
        x.normal_()
    with pytest.raises(AddressChanged, match='"x"'):
        fast(torch.randn(4, 8))
    assert fast.stats().calls["replayed"] == 3


def test_random_numbers_advance_at_every_replay_and_are_those_of_eager():
    def fn(x):
        return x + torch.rand_like(x)

    for generators, sizes in ((True, 4), (False, 4)):
        fast = recorded(
            fn, platform=SimulatedPlatform(generators=generators), capture_sizes=(sizes, 16)
        )
        torch.manual_seed(5)
        fast.warmup(torch.randn(3, 8), progress=False)
        x = torch.randn(4, 8)
        torch.manual_seed(6)
        got = [fast(x).clone() for _ in range(3)]
        torch.manual_seed(6)
        for each in got:
            same(each, fn(x))
        assert fast.stats().calls["replayed"] == 3


# Books ------------------------------------------------------------------------------------------


def test_the_report_and_explain_say_what_is_captured():
    fast = recorded(lambda x: x.sin(), capture_sizes=(4, 16))
    report = fast.warmup(torch.randn(3, 8), progress=False)
    assert isinstance(report, pw.WarmupReport)
    assert "2 sizes captured" in str(report)
    facts = fast.explain()
    assert "captured: (4,), (16,)" in str(facts)
    assert json.loads(facts.to_json())["captured"] == [[4], [16]]


def test_warmup_without_examples_says_what_to_do():
    with pytest.raises(NotTraced, match="example"):
        recorded(lambda x: x).warmup()


def test_after_seal_a_capture_is_an_error():
    fast = recorded(lambda x: x.sin(), capture_sizes=(4, 16))
    fast(torch.randn(16, 8))
    fast.seal()
    fast(torch.randn(16, 8))
    with pytest.raises(Sealed, match=r"\(4,\)"):
        fast(torch.randn(4, 8))


def test_gradients_are_refused():
    fast = recorded(nn.Linear(8, 8), dynamic={"input": {0: N}})
    with torch.inference_mode(False), torch.enable_grad(), pytest.raises(GradNeeded):
        fast(torch.randn(4, 8))


def test_a_platform_without_graphs_is_refused():
    platform = SimulatedPlatform()
    platform.graphs = None
    with pytest.raises(ConfigError, match="static graphs"):
        recorded(torch.sin, platform=platform)


# What outlives a run, or is not the run's -----------------------------------------------------


class Lazy(nn.Module):
    """Makes a table when first called, and a larger one when that is too short."""

    def __init__(self) -> None:
        super().__init__()
        self.table: torch.Tensor | None = None

    def forward(self, x):
        if self.table is None or len(self.table) < len(x):
            self.table = torch.arange(float(len(x))).unsqueeze(-1).sin()
        return attend(x * 2) + self.table[: len(x)]


def test_a_table_made_in_a_run_is_held_and_a_new_one_noticed():
    model = Lazy()
    fast = recorded(model, splitting_ops=("pwrecord::attend",))
    for size in (4, 4, 16, 4, 16):
        x = torch.randn(size, 8)
        same(fast(x), Lazy()(x))
    fast.restore()
    before = fast.stats().calls["replayed"]
    for size in (16, 4):
        x = torch.randn(size, 8)
        same(fast(x), Lazy()(x))
    assert fast.stats().calls["replayed"] == before + 2


def test_intermediates_share_memory_within_a_size():
    def fn(x):
        for _ in range(30):
            x = x.sin()
        return x

    fast = recorded(fn, dynamic={"x": {0: pw.Dim("n", 1, 256)}}, capture_sizes=(256,))
    fast.warmup(torch.randn(2, 64), progress=False)
    assert fast.stats().pool_bytes <= 4 * 256 * 64 * 4


class Weighted(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
        self.where = where

    def forward(self, x):
        if self.where == "returned":
            return x * 2, self.weight
        return torch.matmul(x * 2, self.weight) + 1  # read by a splitting op and nothing else


@pytest.mark.parametrize("where", ["returned", "split"])
def test_a_weight_is_watched_wherever_it_is_read(where):
    model = Weighted(where)
    fast = recorded(model, splitting_ops=("torch.matmul",))
    x = torch.randn(4, 8)
    same(fast(x), model(x))
    same(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 2
    model.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)
    same(fast(x), model(x))
    assert fast.stats().calls["eager"] == 1


class Plain:
    """No module: a tensor in an attribute."""

    def __init__(self) -> None:
        self.weight = torch.randn(8, 8)

    def __call__(self, x):
        return (x @ self.weight).sin()


def test_a_tensor_of_any_object_is_watched():
    model = Plain()
    fast = recorded(model)
    x = torch.randn(4, 8)
    for _ in range(3):
        same(fast(x), model(x))
    assert fast.stats().calls["replayed"] == 3
    model.weight = torch.randn(8, 8)
    same(fast(x), model(x))
    assert fast.stats().calls["eager"] == 1


def test_a_tensor_in_a_closure_is_watched():
    weight = torch.randn(8, 8)
    fast = recorded(lambda x: x @ weight)
    x = torch.randn(4, 8)
    same(fast(x), x @ weight)
    weight = torch.randn(8, 8)
    same(fast(x), x @ weight)
    assert fast.stats().calls["eager"] == 1


# Operators that do not do the same again --------------------------------------------------------


@torch.library.custom_op("pwrecord::chosen", mutates_args=())
def chosen(x: torch.Tensor) -> torch.Tensor:
    return x[x[:, 0] > 0].clone()


@torch.library.custom_op("pwrecord::many", mutates_args=())
def many(x: torch.Tensor) -> int:
    return int((x[:, 0] > 0).sum())


@pytest.mark.parametrize(
    ("op", "text"),
    [
        (chosen, r"shape \(1, 8\), and a tensor of shape \(3, 8\) when"),
        (many, "returned 1, and 3 when"),
    ],
)
def test_a_result_that_depends_on_values_is_refused_at_the_call_never_read_as_it_was(op, text):
    fast = recorded(lambda x: op(x * 2) + x.new_ones(()), splitting_ops=("pwrecord::chosen",))
    if op is many:
        fast = recorded(lambda x: x * op(x * 2), splitting_ops=("pwrecord::many",))
    x = torch.ones(4, 8)
    x[3] = -1
    wanted = x * 3 if op is many else torch.full((3, 8), 3.0)
    same(fast(x), wanted)
    x[1:] = -1
    with pytest.raises(OpContractBroken, match=text):
        fast(x)
    x[:3] = 1
    same(fast(x), x * 3 if op is many else torch.full((3, 8), 3.0))


@torch.library.custom_op("pwrecord::found", mutates_args=())
def found(x: torch.Tensor, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x * 2, *(row[row > 0].clone() for row in rows)]


@found.register_fake
def _(x, rows):
    size = torch.library.get_ctx().new_dynamic_size
    return [torch.empty_like(x), *(row.new_empty(size()) for row in rows)]


@pytest.mark.parametrize("device", ["simulated", "cpu"])
def test_an_operator_whose_fake_kernel_says_that_values_decide_its_sizes_is_not_captured(device):
    def fn(x):
        return torch.ops.pwrecord.found(x, rows=[x[0], x[1] + 1])

    fast = recorded(fn, platform=SimulatedPlatform() if device == "simulated" else device)
    for _ in range(4):
        x = torch.randn(4, 8)
        for got, want in zip(fast(x), fn(x), strict=True):
            same(got, want)
    assert fast.stats().calls["replayed"] == 0
    assert "pwrecord.found" in str(fast.explain())


@pytest.mark.parametrize("kind", ["module", "method", "function"])
def test_a_deep_copy_of_a_recorded_function_has_state_and_graphs_of_its_own(kind):
    model = nn.Linear(8, 8).requires_grad_(False)
    original = {"module": model, "method": model.forward, "function": lambda x: model(x)}[kind]
    fast = recorded(original, dynamic={0: {0: N}})
    x = torch.randn(4, 8)
    same(fast(x), model(x))
    copied = copy.deepcopy(fast)
    want = model(x) if kind == "function" else model(x) * 2  # Python copies no function
    for parameter in copied._module.parameters() if kind == "module" else ():
        parameter.mul_(2)
    if kind == "method":
        copied._fn.__self__.weight.mul_(2)
        copied._fn.__self__.bias.mul_(2)
    for _ in range(3):
        close(copied(x), want)
        same(fast(x), model(x))
    assert copied.stats().calls["replayed"] == 3
    assert fast.stats().calls["replayed"] == 4


def test_pickling_a_recorded_function_says_what_to_do():
    with pytest.raises(PiecewiseError, match="pickle the original and record it again"):
        pickle.dumps(recorded(torch.sin, dynamic={0: {0: N}}))


def test_a_function_that_alternates_is_not_captured():
    class Alternating:
        calls = 0

        def __call__(self, x):
            self.calls += 1
            return attend(x) if self.calls % 2 else x * 2

    fast = recorded(Alternating(), splitting_ops=("pwrecord::attend",))
    x = torch.randn(4, 8)
    fast(x)
    assert "second run" in str(fast.explain())
    assert fast.stats().calls["replayed"] == 0


def test_code_that_asks_whether_it_is_captured_is_refused_with_that_reason():
    """As attention masks of transformers do on a GPU."""
    platform = SimulatedPlatform()

    def masked(x):
        y = x * 2
        return y + torch.arange(8) if platform.graphs.is_capturing() else y

    config = pw.Config(dynamic={0: {0: N}}, capture_sizes=(4,))
    fast = pw.record(masked, config, platform=platform)
    x = torch.randn(4, 8)
    for _ in range(3):
        same(fast(x), x * 2)
    assert "asks whether a graph is being captured" in " ".join(str(fast.explain()).split())
    assert fast.stats().calls["replayed"] == 0


# What is in force around it ---------------------------------------------------------------------


def test_autocast_inside_is_in_force_at_replays_too():
    weight = torch.randn(8, 8)

    def fn(x):
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.matmul(x * 2, weight)
        return y.float() + 1

    fast = recorded(fn, splitting_ops=("torch.matmul",))
    for _ in range(3):
        x = torch.randn(4, 8)
        same(fast(x), fn(x))
    assert fast.stats().calls["replayed"] == 3


def test_autocast_outside_is_refused():
    fast = recorded(lambda x: x @ x.T)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputMismatch, match="autocast"):
        fast(torch.randn(4, 8))


# Models inside that are compiled themselves -----------------------------------------------------


@pytest.mark.parametrize("graphs", [(), (4,)], ids=["plain", "captured"])
def test_a_compiled_model_inside_runs_as_written_so_that_its_kernels_are_recorded(graphs):
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU()).eval()
    config = pw.Config(
        dynamic={"input": {0: N}}, capture_sizes=graphs, capture_max=False, compiler="eager"
    )
    inner = pw.compile(model, config, platform=SimulatedPlatform())
    for _ in range(2):
        inner(torch.randn(4, 8))
    before = inner.stats().calls
    fast = recorded(lambda x: inner(x) + 1)
    for _ in range(3):
        x = torch.randn(4, 8)
        same(fast(x), model(x) + 1)
    assert fast.stats().calls["replayed"] == 3
    after = inner.stats().calls
    assert after["eager"] - before["eager"] == 2  # warm-up and capture
    assert sum(after.values()) - sum(before.values()) == 2


def test_a_recorded_function_inside_is_recorded_with_the_rest():
    inner = recorded(lambda x: x.sin())
    outer = recorded(lambda x: inner(x) + 1)
    inner(torch.randn(4, 8))
    for _ in range(3):
        x = torch.randn(4, 8)
        same(outer(x), x.sin() + 1)
    assert outer.stats().calls["replayed"] == 3


def test_a_module_of_torch_compile_inside_is_watched_as_any_other():
    model = nn.Linear(8, 8)
    inner = torch.compile(model, backend="eager")
    inner(torch.randn(4, 8))  # what Dynamo notes at its first call, it notes in Python
    fast = recorded(lambda x: inner(x) + 1)
    for _ in range(3):
        x = torch.randn(4, 8)
        same(fast(x), model(x) + 1)
    assert fast.stats().calls["replayed"] == 3
    model.weight = nn.Parameter(torch.randn(8, 8))
    same(fast(x), model(x) + 1)


# Threads ----------------------------------------------------------------------------------------


def test_two_threads_share_one_function():
    root = tree()
    fast, wrong = recorded(root.run), []
    fast.warmup(torch.randn(2, 8), progress=False)

    def work():
        with torch.inference_mode():
            for _ in range(30):
                x = torch.randn(4, 8)
                got = fast(x)
                time.sleep(1e-4)  # lets the other thread replay before this one looks
                if not torch.equal(got, root.run(x)):
                    wrong.append(x)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert fast.stats().calls["replayed"] >= 30


def test_strict_checks_tell_of_an_output_that_is_kept(caplog):
    fast = recorded(lambda x: x.sin(), check="strict")
    with caplog.at_level("WARNING"):
        kept = [fast(torch.randn(4, 8)) for _ in range(4)]
    assert caplog.text.count("still held") == 1
    assert len(kept) == 4


# Seals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["copy", "static"])
def test_what_was_captured_before_a_seal_may_be_captured_again(inputs):
    fast = recorded(lambda x: x.sin(), inputs=inputs)
    x = torch.randn(4, 8)
    fast.warmup(x, progress=False)
    fast(x)
    fast.seal()
    fast.release()
    same(fast(x), x.sin())
    fast.restore()
    same(fast(x), x.sin())
    assert fast.stats().calls["replayed"] == 2
    if inputs == "static":
        with pytest.raises(Sealed):
            fast(torch.randn(8, 8))


# Code that reads values unless it is traced -------------------------------------------------


@torch.library.custom_op("record_forms::halved", mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


@pytest.mark.parametrize("split", [(), ("record_forms::halved",)])
def test_a_value_that_code_reads_only_where_it_is_not_traced_is_not_read(split):
    def fn(x, mask, log):
        out = halved(x) + 1
        log.add_(1)
        if torch.compiler.is_compiling() or not mask.all():
            out = out.masked_fill(mask[:, None] == 0, -1.0)
        return halved(out)

    dynamic = {"x": {0: N}, "mask": {0: N}}
    fast = recorded(fn, dynamic=dynamic, capture_sizes=(4,), splitting_ops=split)
    log, theirs = torch.zeros(2), torch.zeros(2)
    for mask in (torch.ones(4), torch.tensor([1.0, 0, 1, 0]), torch.ones(4)):
        x = torch.randn(4, 8)
        close(fast(x, mask, log), fn(x, mask, theirs))
        close(log, theirs)
    assert fast.stats().calls["replayed"] == 3
    assert not torch.compiler.is_compiling()


def test_a_value_that_is_read_either_way_is_told_of_with_its_place():
    def fn(x):
        return x * (2 if x.sum() > 0 else 3)

    fast = recorded(fn, capture_sizes=(4,))
    close(fast(torch.ones(4, 8)), torch.full((4, 8), 2.0))
    assert fast.stats().calls["eager"] == 1
    (why,) = fast.explain().dropped.values()
    assert "is read by Python at" in why
    assert "test_record.py" in why


def test_of_two_reads_the_one_that_has_no_other_way_is_told_of():
    def fn(x):
        if torch.compiler.is_compiling() or x.any():
            x = x + 1
        return x * x.sum().item()

    fast = recorded(fn, capture_sizes=(4,))
    close(fast(torch.ones(4, 8)), torch.full((4, 8), 128.0))
    (why,) = fast.explain().dropped.values()
    assert "x.sum().item()" in why
    assert "x.any()" not in why
