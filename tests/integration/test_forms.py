"""Several forms of calls of one model: prefill and decode, mask or None, options (FAULTS 46)."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import ConfigError, InputMismatch, PiecewiseError, Sealed, SizeBranch
from piecewise_core.testing import SimulatedPlatform

ROWS = pw.Dim("rows", min=0, max=16)
DYNAMIC = {"x": {0: ROWS}, "mask": {0: ROWS}, "cache": {0: ROWS}}
SIZES = (4, 8, 3, 1, 0, 16)

PLACES = pytest.mark.parametrize("place", ["uncaptured", "cpu plans", "simulated"])


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


class Layer(nn.Module):
    """Takes a mask or none, a cache or none, and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.scale = 2.0

    def forward(self, x, mask=None, *, cache=None, double=False):
        out = self.linear(x).relu() * self.scale
        if mask is not None:
            out = out.masked_fill(mask[:, None] == 0, -1.0)
        if cache is not None:
            out = out + cache
        return out * 2 if double else out


def made(place, model=None, *, platform=None, **changes):
    settings = {"dynamic": DYNAMIC, "compiler": "eager", **changes}
    if place != "uncaptured":
        settings = {"capture_sizes": (4, 8), "capture_max": False, **settings}
    if place == "simulated":
        platform = platform or SimulatedPlatform()
    return pw.compile(model or Layer().eval(), pw.Config(**settings), platform or "cpu")


def calls(n):
    """One call of each form."""
    x, mask, cache = torch.randn(n, 6), torch.randint(0, 2, (n,)), torch.randn(n, 6)
    return {
        "prefill": ((x,), {}),
        "masked": ((x, mask), {}),
        "decode": ((x,), {"cache": cache}),
        "all": ((x, mask), {"cache": cache, "double": True}),
        "int32 mask": ((x, mask.int()), {}),
    }


def original(fast):
    return fast._pw_original


def check(fast, n, names=None):
    for name, (args, kwargs) in calls(n).items():
        if names is None or name in names:
            torch.testing.assert_close(fast(*args, **kwargs), original(fast)(*args, **kwargs))


# Served -----------------------------------------------------------------------------------


@PLACES
def test_each_form_is_traced_once_and_served_at_every_size(place):
    fast = made(place)
    for _ in range(2):
        for n in SIZES:
            check(fast, n)
    stats = fast.stats()
    assert (stats.graphs, len(fast.explain().forms)) == (5, 5)
    if place != "uncaptured":
        assert stats.captures == 10
        assert stats.calls["replayed"] == 20


@PLACES
def test_none_and_a_tensor_take_turns(place):
    fast = made(place)
    x, mask = torch.randn(4, 6), torch.tensor([1, 0, 1, 0])
    for given in (None, mask, mask, None, None, mask):
        torch.testing.assert_close(fast(x, given), original(fast)(x, given))
    assert fast.stats().graphs == 2


def test_what_python_binds_alike_is_one_form():
    fast = made("uncaptured")
    x, mask = torch.randn(4, 6), torch.ones(4)
    for args, kwargs in [((x, mask), {}), ((x,), {"mask": mask}), ((), {"mask": mask, "x": x})]:
        torch.testing.assert_close(fast(*args, **kwargs), original(fast)(*args, **kwargs))
    fast(x, None, double=False)
    fast(x)
    assert fast.stats().graphs == 2


@pytest.mark.parametrize(
    "inputs",
    [
        [torch.ones(3, 6), torch.ones(3, 6).double(), torch.ones(3, 6).half()],
        [torch.ones(3, 6), torch.ones(3, 6, 2), torch.ones(3)],
        [[torch.ones(3)], [torch.ones(3)] * 2, (torch.ones(3),)],
        [{"a": torch.ones(3)}, {"b": torch.ones(3)}, {"b": torch.ones(3), "a": torch.ones(3)}],
        [1, 2.5, True, "text", None, (1, 2)],
    ],
    ids=["dtypes", "ranks", "sequences", "keys", "constants"],
)
def test_other_kinds_of_one_argument_are_forms(inputs):
    def describe(given):
        if isinstance(given, torch.Tensor):
            return given.sum() + given.dim()
        if isinstance(given, dict):
            return sum(("ab".index(k) + 2) * v.sum() for k, v in given.items())
        if isinstance(given, (list, tuple)) and isinstance(given[0], torch.Tensor):
            return sum(t.sum() for t in given) * (2 if isinstance(given, list) else 3)
        return len(str(given))

    def model(x, given):
        return x * 2 + describe(given)

    fast = made("uncaptured", model, dynamic={"x": {0: ROWS}})
    for _ in range(2):
        for given in inputs:
            x = torch.randn(5, 6)
            torch.testing.assert_close(fast(x, given), model(x, given), check_dtype=True)
    assert fast.stats().graphs == len(inputs)


@PLACES
def test_results_of_one_form_are_inputs_of_another(place):
    fast = made(place)
    state = wanted = torch.randn(4, 6)
    for step in range(6):
        kwargs = {"cache": state} if step % 2 else {}
        expected = {"cache": wanted} if step % 2 else {}
        state, wanted = fast(state, **kwargs), original(fast)(wanted, **expected)
        torch.testing.assert_close(state, wanted)


@PLACES
def test_writes_to_an_input_reach_the_caller_in_each_form(place):
    def model(x, mask=None):
        x.add_(1)
        return x * 2 if mask is None else x * mask[:, None]

    fast = made(place, model, dynamic={"x": {0: ROWS}, "mask": {0: ROWS}})
    for n in (4, 3, 4):
        for mask in (None, torch.ones(n)):
            x, y = torch.zeros(n, 6), torch.zeros(n, 6)
            torch.testing.assert_close(fast(x, mask), model(y, mask))
            assert torch.equal(x, y)


@PLACES
def test_dims_named_in_one_form_only_are_no_obstacle_to_another(place):
    """A cache is a dict of tensors in one form and None, or nothing at all, in another."""

    def model(x, *rest, cache=None, **more):
        out = x * 2
        if cache is not None:
            out = out + cache["keys"] + cache["values"][0]
        for other in (*rest, *more.values()):
            out = out + other
        return out

    names = ("x", "cache.keys", "cache.values.0", "rest.0", "more.late")
    fast = made(place, model, dynamic={name: {0: ROWS} for name in names})
    for n in (4, 3, 8):
        x, y = torch.randn(n, 6), torch.randn(n, 6)
        cache = {"keys": torch.randn(n, 6), "values": [torch.randn(n, 6)]}
        for args, kwargs in [
            ((x, y), {"cache": cache, "late": y}),
            ((x,), {"cache": cache}),
            ((x,), {"cache": None}),
            ((x,), {}),
            ((x, y), {}),
            ((x,), {"late": y}),
        ]:
            torch.testing.assert_close(fast(*args, **kwargs), model(*args, **kwargs))
    assert fast.stats().graphs == 5


def test_a_decorated_model_may_be_called_without_what_dims_are_named_in():
    def anyhow(fn):
        @functools.wraps(fn)
        def inner(*args, **kwargs):
            return fn(*args, **kwargs)

        return inner

    @anyhow
    def model(x, cache=None):
        return x * 2 if cache is None else x + cache["keys"]

    fast = made("uncaptured", model, dynamic={"x": {0: ROWS}, "cache.keys": {0: ROWS}})
    x = torch.randn(3, 6)
    for kwargs in ({}, {"cache": {"keys": x}}, {"cache": None}, {}):
        torch.testing.assert_close(fast(x, **kwargs), model(x, **kwargs))


def test_a_name_in_dynamic_that_no_call_had_is_a_slip():
    fast = made("uncaptured", lambda x, **more: x + 1, dynamic={"x": {0: ROWS}, "lat": {0: ROWS}})
    fast(torch.ones(2, 6), late=torch.ones(2, 6))
    with pytest.raises(InputMismatch, match=r'name it in Config.dynamic: {"more.late"'):
        fast(torch.ones(3, 6), late=torch.ones(3, 6))


def test_another_layout_is_copied_whatever_the_number_of_forms():
    fast = made("simulated")
    check(fast, 4)
    x = torch.randn(6, 4).t()
    for kwargs in ({}, {"cache": torch.randn(4, 6)}, {"mask": torch.ones(4).int()}):
        torch.testing.assert_close(fast(x, **kwargs), original(fast)(x, **kwargs))
    assert fast.stats().restrided == 3
    assert fast.stats().graphs == 5


def test_padded_calls_of_every_form_are_right():
    fast = made("simulated", padding="capture_sizes")
    for n in (3, 5, 8, 2, 7):
        check(fast, n)
    assert fast.stats().padded_rows > 0


def test_with_checks_off_forms_are_told_apart_by_all_but_tensor_facts():
    fast = made("simulated", check="off")
    for n in (4, 3):
        check(fast, n, ("prefill", "masked", "decode", "all"))


# The model changes ------------------------------------------------------------------------


@PLACES
def test_a_written_attribute_retraces_every_form(place):
    fast = made(place)
    for scale in (2.0, 3.0, 3.0, 5.0):
        original(fast).scale = scale
        for n in (4, 3):
            check(fast, n)
    assert len(fast.explain().forms) == 5


@PLACES
def test_a_replaced_weight_is_seen_in_every_form(place):
    fast = made(place)
    check(fast, 4)
    original(fast).linear.weight = nn.Parameter(torch.randn(6, 6))
    check(fast, 4)
    original(fast).linear.weight.data.mul_(2)
    check(fast, 4)


def test_a_converted_model_forgets_the_forms_that_it_has_outgrown():
    model = Layer().eval()
    fast = made("simulated", model)
    check(fast, 4)
    model.double()
    x = torch.randn(4, 6).double()
    for _ in range(2):
        torch.testing.assert_close(fast(x), model(x))
        torch.testing.assert_close(fast(x, cache=x), model(x, cache=x))
    assert len(fast.explain().forms) == 2


def test_retrace_drops_all_forms_traces():
    fast = made("simulated")
    check(fast, 4)
    fast.retrace()
    assert not fast.explain().captured
    check(fast, 4)
    assert (fast.stats().graphs, fast.stats().retraces) == (10, 1)


# Graph memory -----------------------------------------------------------------------------


def test_all_forms_share_one_pool(monkeypatch):
    platform = SimulatedPlatform()
    pools, make = [], platform.graphs.new_pool
    monkeypatch.setattr(platform.graphs, "new_pool", lambda: pools.append(make()) or pools[-1])
    fast = made("simulated", platform=platform)
    for n in (4, 8):
        check(fast, n)
    assert len(pools) == 1
    assert fast.stats().pool_bytes > 0


def test_the_memory_limit_is_over_all_forms():
    one = made("simulated")
    check(one, 4, ["prefill"])
    each = one.stats().pool_bytes + one.stats().driver_bytes
    fast = made("simulated", memory_limit=3 * each)
    for n in (4, 8, 4):
        check(fast, n)
    stats = fast.stats()
    assert stats.pool_bytes + stats.driver_bytes <= 3 * each
    explained = fast.explain()
    assert 0 < len(explained.captured) < 10
    assert any("memory_limit" in note and note.startswith("form ") for note in explained.dropped)


def test_graph_handles_are_counted_over_all_forms():
    fast = made("simulated", platform=SimulatedPlatform(max_graphs=3))
    for call in calls(4).values():
        fast._pw_session.start(*call[0], **call[1])
    report = fast.warmup(progress=False)
    assert len(report.captured) == 3
    assert len(report.dropped) == 7
    for n in (4, 8):
        check(fast, n)


def test_release_and_restore_are_of_all_forms():
    fast = made("simulated")
    for n in (4, 8):
        check(fast, n)
    fast.release()
    assert (fast.explain().captured, fast.stats().pool_bytes) == ((), 0)
    check(fast, 4)
    fast.restore()
    assert len(fast.explain().captured) == 10
    check(fast, 4)


def test_graphs_of_each_form_are_written_to_a_folder_of_their_own(tmp_path):
    fast = made("simulated")
    check(fast, 4, ("prefill", "masked"))
    files = fast.dump_graphs(tmp_path)
    assert sorted(f.parent.name for f in files) == ["form-0", "form-1"]


def test_a_form_whose_capture_fails_is_served_without_graphs():
    fast = made("simulated", platform=SimulatedPlatform(fail_capture_at=2))
    for n in (4, 4):
        check(fast, n)
    assert len(fast.explain().dropped) == 1


# Ahead of calls ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["uncaptured", "simulated"])
def test_examples_of_each_form_before_seal_leave_nothing_to_trace(place):
    fast = made(place)
    for args, kwargs in calls(2).values():
        fast.warmup(*args, progress=False, **kwargs)
    fast.seal()
    graphs = fast.stats().graphs
    for n in SIZES:
        check(fast, n)
    assert fast.stats().graphs == graphs == 5
    with pytest.raises(Sealed, match=r'"double" is True.*another form.*warmup\(\)'):
        fast(torch.randn(4, 6), double=True)
    check(fast, 4)


def test_seal_that_warns_serves_another_form(caplog):
    fast = made("uncaptured")
    check(fast, 4, ["prefill"])
    fast.seal("warn")
    check(fast, 4)
    assert "another form" in caplog.text


def test_the_first_call_of_each_form_warms_it_up():
    fast = made("simulated", compile_mode="warmup")
    check(fast, 3, ("prefill", "masked"))
    assert len(fast.explain().captured) == 4


def test_a_bundle_holds_all_forms(tmp_path):
    fast = made("simulated")
    check(fast, 4)
    fast.save(tmp_path / "model.pwb")
    again = pw.load(tmp_path / "model.pwb", original(fast), platform=SimulatedPlatform())
    for n in SIZES:
        check(again, n)
    assert (again.stats().graphs, len(again.explain().forms)) == (0, 5)


def test_kept_traces_of_all_forms_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    first = made("uncaptured", cache_dir=tmp_path)
    check(first, 4)
    again = made("uncaptured", cache_dir=tmp_path)
    check(again, 4)
    assert (first.stats().graphs, again.stats().graphs) == (5, 0)


# Found and reported ---------------------------------------------------------------------------


def test_explain_lists_forms_and_their_regions():
    fast = made("uncaptured")
    check(fast, 4, ("prefill", "all"))
    explained = fast.explain(verbose=True)
    assert explained.forms == (
        "x: float32 [rows, 6], mask=None, cache=None, double=False",
        "x: float32 [rows, 6], mask: int64 [rows], cache: float32 [rows, 6], double=True",
    )
    assert [region.form for region in explained.regions] == [0, 1]
    assert f"form 1: {explained.forms[1]}" in str(explained)


def test_one_form_too_many_is_refused_and_all_are_listed():
    fast = made("uncaptured", max_forms=2)
    check(fast, 4, ("prefill", "masked"))
    with pytest.raises(InputMismatch) as refused:
        fast(torch.randn(4, 6), double=True)
    for part in ('"double" is True', "max_forms", "0: x: float32", "1: x: float32", "mask=None"):
        assert part in str(refused.value)
    check(fast, 4, ("prefill", "masked"))


def test_a_number_that_changes_from_call_to_call_is_said_to_be_data():
    fast = made("uncaptured", lambda x, position: x + position, dynamic={"x": {0: ROWS}})
    for position in range(8):
        fast(torch.ones(2, 2), position)
    with pytest.raises(InputMismatch, match=r'(?s)differ in argument "position".*as a tensor'):
        fast(torch.ones(2, 2), 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.ones(1, 7), "size of dim 1 expected 6, got 7"),
        (torch.ones(1, 6, device="meta"), "device expected cpu, got meta"),
        ([1.0] * 500, "got list"),
        ("a" * 500, "got str of length 500"),
        (object(), "object"),
    ],
    ids=["size", "device", "numbers", "text", "object"],
)
def test_what_is_a_slip_in_all_likelihood_is_no_form(given, said):
    fast = made("uncaptured", lambda x, y: x + y, dynamic={"x": {0: ROWS}})
    x = torch.ones(4, 6)
    fast(x, torch.ones(1, 6))
    with pytest.raises(InputMismatch) as refused:
        fast(x, given)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 500
    assert len(fast.explain().forms) == 1


def test_a_form_that_cannot_be_traced_leaves_the_others_and_no_form_behind():
    def model(x, branch=False):
        return x * 2 if not branch or x.shape[0] > 3 else x * 3

    fast = made("simulated", model, dynamic={"x": {0: ROWS}}, regions="declared")
    x = torch.ones(4, 6)
    fast(x)
    for _ in range(10):
        with pytest.raises(SizeBranch, match=r'(?s)"branch" is True.*traced by themselves'):
            fast(x, branch=True)
        torch.testing.assert_close(fast(x), x * 2)
    assert len(fast.explain().forms) == 1


def test_a_form_whose_calls_the_model_itself_refuses_is_refused_naming_the_difference():
    fast = made("simulated", lambda x, y: x @ y, dynamic={"x": {0: ROWS}})
    x = torch.ones(4, 6)
    for _ in range(2):
        fast(x, torch.ones(6, 2))
        with pytest.raises(InputMismatch, match='"y": dtype expected'):
            fast(x, torch.ones(6, 2).double())
    assert len(fast.explain().forms) == 1


def test_a_call_that_python_would_not_bind_is_refused_whatever_the_forms():
    fast = made("uncaptured")
    check(fast, 4)
    for args, kwargs in (((), {}), ((1, 2, 3), {}), ((torch.ones(2, 6),), {"nonsense": 1})):
        with pytest.raises(InputMismatch, match="the signature is"):
            fast(*args, **kwargs)


def test_max_forms_is_at_least_one():
    with pytest.raises(pw.errors.ConfigError, match=r"Config\.max_forms"):
        pw.Config(max_forms=0)


@pytest.mark.parametrize(
    ("args", "kwargs", "served"),
    [
        ((torch.ones(4, 6), torch.ones(4)), {}, True),
        ((torch.ones(4, 6),), {"flag": True}, True),
        ((torch.ones(4, 6).double(),), {}, True),
        ((torch.ones(4, 7),), {}, False),
        ((torch.ones(4, 6), [1] * 200), {}, False),
    ],
    ids=["mask", "flag", "dtype", "size", "data"],
)
def test_a_recorded_function_has_forms_by_the_same_rules(args, kwargs, served):
    def fn(x, mask=None, flag=False):
        return x * 2

    config = pw.Config(dynamic={"x": {0: ROWS}}, capture_sizes=(4,))
    fast = pw.record(fn, config, SimulatedPlatform())
    fast(torch.ones(4, 6))
    if served:
        torch.testing.assert_close(fast(*args, **kwargs), fn(*args, **kwargs))
    else:
        with pytest.raises(InputMismatch):
            fast(*args, **kwargs)
    torch.testing.assert_close(fast(torch.ones(3, 6)), torch.full((3, 6), 2.0))


# Trust ------------------------------------------------------------------------------------


def test_every_form_is_verified_and_bisected():
    fast = made("simulated", check="verify", verify_rate=1.0)
    for _ in range(2):
        check(fast, 4)
    assert (fast.stats().verified, fast.stats().wrong) == (10, 0)
    args, kwargs = calls(4)["all"]
    assert fast.bisect(*args, **kwargs).differs is False


def test_a_target_that_is_wrong_in_one_form_leaves_the_other_forms_targets():
    platform = SimulatedPlatform(drop_op="aten::add")
    fast = made("simulated", platform=platform, check="verify", verify_rate=1.0)
    for n in (4, 4, 8):
        check(fast, n, ("prefill", "decode"))
    assert fast.stats().calls["replayed"] > 0


@pytest.mark.parametrize("place", ["cpu plans", "simulated"])
def test_threads_that_call_in_forms_of_their_own_get_their_own_results(place):
    fast = made(place, clone_outputs=True)
    failed: list[BaseException] = []

    def work(name):
        try:
            with torch.inference_mode():
                for n in (4, 8, 3) * 5:
                    check(fast, n, [name])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("prefill", "masked", "all")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert fast.stats().graphs == 3


def test_another_thread_does_not_overwrite_results_of_another_form():
    fast = made("simulated")
    x, cache = torch.randn(4, 6), torch.randn(4, 6)
    held = fast(x)
    kept = held.clone()

    def elsewhere():
        with torch.inference_mode():
            got.append(fast(x, cache=cache))

    got: list[torch.Tensor] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    torch.testing.assert_close(held, kept)
    torch.testing.assert_close(got[0], original(fast)(x, cache=cache))


# What Config.dynamic names, and only some forms have --------------------------------------------


def of_a_dict(x, extra):
    return x * extra["a"] if "a" in extra else x * 2


def of_keywords(x, **more):
    return x * more["a"] if "a" in more else x * 2


def of_a_list(x, *extra):
    return x * extra[0] if extra else x * 2


def of_a_number(x, extra):
    return x * extra


NAMED_LATER = [
    (
        of_a_dict,
        "extra.a",
        lambda n: [((), {"extra": {}}), ((), {"extra": {"a": torch.randn(n, 6)}})],
    ),
    (of_keywords, "a", lambda n: [((), {}), ((), {"a": torch.randn(n, 6)})]),
    (of_a_list, 1, lambda n: [((), {}), ((torch.randn(n, 6),), {})]),
    (of_a_number, "extra", lambda n: [((2.0,), {}), ((torch.randn(n, 6),), {})]),
]


@pytest.mark.parametrize("captured", [(), (4, 8)], ids=["compiled", "captured"])
@pytest.mark.parametrize(("model", "name", "forms"), NAMED_LATER)
def test_a_name_that_only_a_later_form_has_is_of_use_when_that_comes(model, name, forms, captured):
    config = {"dynamic": {"x": {0: ROWS}, name: {0: ROWS}}, "capture_sizes": captured}
    fast = made("uncaptured", model, platform=SimulatedPlatform(), **config, capture_max=False)
    for n in (4, 3, 8, 0, 4):
        x = torch.randn(n, 6)
        for args, kwargs in forms(n):
            torch.testing.assert_close(fast(x, *args, **kwargs), model(x, *args, **kwargs))
    assert fast.stats().calls["eager"] == 0


def test_a_name_that_no_call_can_have_is_refused_at_the_first():
    fast = made("uncaptured", of_a_number, dynamic={"x": {0: ROWS}, "extras": {0: ROWS}})
    with pytest.raises(ConfigError, match="names 'extras'"):
        fast(torch.randn(3, 6), 2.0)


def test_a_misspelt_name_is_told_at_the_next_size_of_the_argument_that_was_meant():
    fast = made("uncaptured", of_a_dict, dynamic={"x": {0: ROWS}, "extra.b": {0: ROWS}})
    fast(torch.randn(4, 6), {"a": torch.randn(1, 6)})  # one row serves every size of x
    with pytest.raises(PiecewiseError, match=r"extra\.a"):
        fast(torch.randn(4, 6), {"a": torch.randn(4, 6)})


@pytest.mark.parametrize("first", [0, 1], ids=["without it first", "with it first"])
@pytest.mark.parametrize("place", ["uncaptured", "simulated"])
def test_a_form_may_be_without_a_dim_of_another(place, first):
    def model(x, context=None):
        return x * 2 if context is None else x + context.sum()

    width = pw.Dim("width", min=3, max=16, multiple_of=2)
    config = {"dynamic": {"x": {0: ROWS}, "context": {0: width}}}
    if place == "simulated":
        config["capture_sizes"] = [(4, 4), (8, 6)]
    fast = made(place, model, **config)
    for n in (4, 3, 8, 1, 8, 4):
        x, context = torch.randn(n, 6), torch.randn(4 if n < 8 else 6, 6)
        pair = [((x,), {}), ((x, context), {})]
        for args, _ in (pair, pair[::-1])[first]:
            torch.testing.assert_close(fast(*args), model(*args))
    assert fast.stats().calls["eager"] == 0
