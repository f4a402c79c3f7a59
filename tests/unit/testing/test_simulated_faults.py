from __future__ import annotations

import threading

import pytest
import torch

from piecewise_core.protocols import BudgetContext


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@torch.library.custom_op("piecewise_tests::own_noise", mutates_args=())
def own_noise(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand(x.shape)


def usable(bench) -> bool:
    """Whether the bench captures and replays as if nothing had happened."""
    x = torch.ones(3)
    graph, out = bench.capture(lambda: x + 1)
    bench.driver.replay(graph)
    return out.tolist() == [2, 2, 2] and torch._C._len_torch_dispatch_stack() == 0


def advice_for(bench, fn) -> str:
    """What ``explain`` says of the error that capturing ``fn`` gives; the bench stays usable."""
    with pytest.raises(RuntimeError) as caught:
        bench.capture(fn)
    assert not bench.driver.is_capturing()
    assert usable(bench)
    return bench.driver.explain(caught.value)


# What a capture does not permit ------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: x.index_put_((x > 0,), x.sum()),
        lambda x: torch.equal(x, x),
        lambda x: torch.allclose(x, x),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.bincount(x.long()),
    ],
)
def test_what_waits_for_the_device_is_refused_with_advice(bench, wait):
    x = torch.ones(4)
    assert "add it to splitting_ops" in advice_for(bench, lambda: wait(x + 1))


@pytest.mark.parametrize(
    "works",
    [
        lambda x: x[torch.zeros(2, dtype=torch.long)],
        lambda x: x[:2][None, ..., -1],
        lambda x: torch.where(x > 0, x, 0),
        lambda x: x.repeat_interleave(2),
        lambda x: x.masked_fill(x > 0, 1),
        lambda x: x.clone().__setitem__(x > 0, 3.0),
        lambda x: x.to("cpu"),
    ],
)
def test_what_does_not_wait_is_permitted(bench, works):
    x, index = torch.ones(4), torch.zeros(2, dtype=torch.long)
    graph, _ = bench.capture(lambda: works(x + 1))
    bench.driver.replay(graph)
    assert index is not None


def test_an_error_spoils_the_capture_even_if_it_is_swallowed(bench):
    x = torch.ones(4)

    def run():
        with pytest.raises(RuntimeError):
            x.sum().item()
        return x + 1

    with pytest.raises(RuntimeError, match="invalidated by an earlier error"):
        bench.capture(run)
    assert usable(bench)


def test_synchronize_and_empty_cache_are_refused_in_a_capture(bench):
    assert "wait" in advice_for(bench, bench.device.synchronize)
    assert "before a capture" in advice_for(bench, bench.device.empty_cache)
    bench.device.synchronize()
    bench.device.empty_cache()


def test_work_on_a_stream_that_was_not_joined_is_refused(bench):
    def run():
        with bench.device.stream(bench.device.new_stream()):
            return torch.ones(3) + 1

    assert "not joined" in advice_for(bench, run)


def test_a_capture_or_replay_inside_a_capture_is_refused(bench):
    x = torch.ones(3)
    graph, _ = bench.capture(lambda: x + 1)
    assert "one plan at a time" in advice_for(bench, lambda: bench.driver.replay(graph))
    again = bench.driver.new_graph()
    begin = bench.driver.capture_begin
    assert "one plan at a time" in advice_for(bench, lambda: begin(again, bench.pool, bench.stream))


def test_another_thread_can_neither_capture_nor_end_the_capture(bench):
    errors = []

    def elsewhere(fn, *args):
        def run():
            try:
                with bench.device.stream(bench.stream):
                    fn(*args)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    def run():
        elsewhere(bench.driver.capture_end, graph)
        assert bench.driver.is_capturing()

    graph = bench.driver.new_graph()
    bench.capture(run, graph)
    assert "another thread" in errors[0]
    assert usable(bench)


def test_capture_begin_wants_the_current_stream_and_an_empty_graph(bench):
    graph = bench.driver.new_graph()
    with pytest.raises(RuntimeError, match="which is not current"):
        bench.driver.capture_begin(graph, bench.pool, bench.stream)
    x = torch.ones(3)
    graph, _ = bench.capture(lambda: x + 1)
    with pytest.raises(RuntimeError, match="a graph that is captured"):
        bench.capture(lambda: x + 2, graph)


def test_a_graph_that_holds_nothing_is_neither_replayed_nor_ended(bench):
    graph = bench.driver.new_graph()
    with pytest.raises(RuntimeError, match="holds nothing"):
        bench.driver.replay(graph)
    with pytest.raises(RuntimeError, match="not capturing"):
        bench.driver.capture_end(graph)
    bench.driver.abort_capture(graph)


def test_capturing_is_told_of_the_stream_and_thread(bench):
    told = []

    def run():
        told.append(bench.driver.is_capturing())
        with bench.device.stream(bench.device.new_stream()):
            told.append(bench.driver.is_capturing())

    bench.capture(run)
    assert told == [True, False]
    assert not bench.driver.is_capturing()


def test_streams_nest_and_come_back(bench):
    device = bench.device
    first = device.current_stream()
    with device.stream(bench.stream):
        assert device.current_stream() is bench.stream
        with device.stream(device.new_stream()) as inner:
            assert device.current_stream() is inner
        assert device.current_stream() is bench.stream
    assert device.current_stream() is first


# Knobs -------------------------------------------------------------------------------


def test_memory_runs_out_in_the_middle_and_what_was_captured_still_serves(make_bench):
    bench = make_bench(memory_bytes=4096)
    x, large = torch.ones(64), torch.ones(600)
    graph, out = bench.capture(lambda: x * 3)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        bench.capture(lambda: [large + i for i in range(4)])
    assert "fewer or smaller sizes" in bench.driver.explain(caught.value)
    bench.driver.replay(graph)
    assert out.tolist() == [3] * 64
    assert usable(bench)
    free, total = bench.device.memory_info()
    assert total == 4096
    assert free == 4096 - bench.driver.pool_bytes(bench.pool)


def test_graph_handles_run_out_and_come_back(make_bench):
    bench = make_bench(max_graphs=2)
    x = torch.ones(3)
    context = BudgetContext(graphs_per_size=1, sizes=((3,),), captured=0)
    assert bench.driver.resource_budget(context) == 2
    graphs = [bench.capture(lambda: x + 1)[0] for _ in range(2)]
    assert bench.driver.resource_budget(context) == 0
    with pytest.raises(RuntimeError, match="no graph handle is free") as caught:
        bench.capture(lambda: x + 1)
    assert "capture_sizes" in bench.driver.explain(caught.value)
    bench.driver.reset(graphs.pop())
    assert bench.driver.resource_budget(context) == 1
    assert usable(bench)
    bench.driver.tells_budget = False
    assert bench.driver.resource_budget(context) is None


def test_without_max_graphs_there_is_no_budget(bench):
    assert bench.driver.resource_budget(BudgetContext(1, (), 0)) is None


def test_the_nth_capture_fails_and_no_other(make_bench):
    bench = make_bench(fail_capture_at=2)
    x = torch.ones(3)
    first, out = bench.capture(lambda: x + 1)
    with pytest.raises(RuntimeError, match="fail_capture_at"):
        bench.capture(lambda: x + 2)
    assert usable(bench)
    bench.driver.replay(first)
    assert out.tolist() == [2, 2, 2]


def test_a_dropped_operator_is_silently_left_out(make_bench):
    x = torch.ones(3)
    bench = make_bench(drop_op="aten.add.Tensor")
    graph, out = bench.capture(lambda: x + 1)
    bench.driver.replay(graph)
    assert out.isnan().all()
    graph, out = bench.capture(lambda: (x * 2).add_(5))
    bench.driver.replay(graph)
    assert out.tolist() == [7, 7, 7]


def test_a_composite_operator_can_be_dropped_whole(make_bench):
    bench = make_bench(drop_op="aten.linear.default")
    layer, x = torch.nn.Linear(3, 3), torch.ones(1, 3)
    graph, out = bench.capture(lambda: layer(x))
    bench.driver.replay(graph)
    assert out.isnan().all()


def test_the_optional_methods_are_absent_when_turned_off(make_bench):
    driver = make_bench(weak_refs=False, generators=False).driver
    assert not hasattr(driver, "weak_ref")
    assert not hasattr(driver, "register_generator")


# Random numbers ------------------------------------------------------------------------


def draws(bench, fn, graph=None) -> list[list[float]]:
    graph, out = bench.capture(fn, graph)
    found = []
    for _ in range(3):
        bench.driver.replay(graph)
        found.append(out.tolist())
    return found


@pytest.mark.parametrize("fn", [lambda x: torch.rand(4), own_noise])
def test_replays_draw_the_numbers_that_eager_calls_would(bench, fn):
    zeros = torch.zeros(4)
    torch.manual_seed(3)
    got = draws(bench, lambda: fn(zeros))
    torch.manual_seed(3)
    assert got == [torch.rand(4).tolist() for _ in range(3)]
    assert got[0] != got[1]


def test_without_generators_replays_draw_the_same_numbers_and_advance_nothing(make_bench):
    bench = make_bench(generators=False)
    torch.manual_seed(3)
    got = draws(bench, lambda: torch.rand(4))
    assert got[0] == got[1] == got[2] == torch.rand(4).tolist()


def test_a_generator_of_ones_own_must_be_registered(bench):
    own = torch.Generator().manual_seed(5)

    def draw():
        return torch.rand(4, generator=own)

    assert "default generator" in advice_for(bench, draw)
    graph = bench.driver.new_graph()
    bench.driver.register_generator(graph, own)
    got = draws(bench, draw, graph)
    own.manual_seed(5)
    assert got == [draw().tolist() for _ in range(3)]


# What else it tells ----------------------------------------------------------------------


def test_the_unsafe_operators_exist_and_are_refused(bench):
    for name in bench.driver.unsafe_ops():
        namespace, op = name.split("::")
        assert hasattr(getattr(torch.ops, namespace), op), name


def test_explain_looks_through_causes_and_knows_nothing_of_others(bench):
    x = torch.ones(3)

    def run():
        try:
            x.sum().item()
        except RuntimeError as error:
            raise ValueError("wrapped") from error

    with pytest.raises(ValueError, match="wrapped") as caught:
        bench.capture(run)
    assert "splitting_ops" in bench.driver.explain(caught.value)
    assert bench.driver.explain(KeyError("x")) is None


def test_a_dump_names_the_operators_in_order(bench, tmp_path):
    x = torch.ones(3)
    graph, _ = bench.capture(lambda: (x + 1).relu())
    bench.driver.dump(graph, str(tmp_path / "graph.txt"))
    text = (tmp_path / "graph.txt").read_text()
    assert text.index("aten.add.Tensor(float32[3]") < text.index("aten.relu.default")


def test_every_graph_costs_the_driver_something(bench):
    x = torch.ones(3)
    graphs = [bench.capture(lambda: x + 1)[0] for _ in range(3)]
    assert bench.driver.driver_bytes(bench.pool) == 3 * 4096
    bench.driver.reset(graphs[0])
    assert bench.driver.driver_bytes(bench.pool) == 2 * 4096


def test_the_replayer_replays(bench):
    x = torch.ones(3)
    graph, out = bench.capture(lambda: x + 1)
    bench.driver.replayer(graph)()
    assert out.tolist() == [2, 2, 2]
