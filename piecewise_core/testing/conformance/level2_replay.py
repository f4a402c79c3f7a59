"""L2, first part: a replay does what was captured, with what memory holds then."""

from __future__ import annotations

import torch

from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows
from piecewise_core.testing.conformance.verdicts import NotClaimed

__all__ = ["AGAIN", "BASIC", "FRESH", "GRAPHS", "ORDERED", "REPLAYER", "STAYS", "Replays"]

GRAPHS = ("Platform.graphs",)
BASIC = "test_a_replay_equals_the_uncaptured_run"
STAYS = "test_the_current_stream_stays"
FRESH = "test_a_replay_reads_its_inputs_anew"
AGAIN = "test_every_replay_writes_the_same_addresses"
ORDERED = "test_a_replay_is_in_the_order_of_its_stream"
REPLAYER = "test_a_replayer_replays_its_own_graph"

_REPLAY = "GraphDriver.replay"


class Replays(Conformance):
    """What a replay computes, and from what."""

    @conformance("L2", _REPLAY, claims=GRAPHS)
    def test_a_replay_equals_the_uncaptured_run(self, case: Case) -> None:
        """A replay computes bit for bit what the same operators compute uncaptured."""
        x = rows(case, 4)

        def run() -> torch.Tensor:
            return ((x * 3 + 1).relu() - x).sin()

        expected = run()
        graph, out = case.capture(run)
        case.replay(graph)
        case.equal(
            out,
            expected,
            "captured sin(relu(x * 3 + 1) - x), replayed once, and read the captured result",
            "record every operator between capture_begin and capture_end, in order",
            exact=True,
        )

    @conformance("L2", "GraphDriver.capture_end", claims=GRAPHS, relies_on=(BASIC,))
    def test_the_current_stream_stays(self, case: Case) -> None:
        """capture_begin, capture_end and replay leave the current stream as it is."""
        x, device, driver = rows(case, 4), case.device, case.driver
        graph, seen = case.new_graph(), []
        with case.ready():
            driver.capture_begin(graph, case.pool, case.stream)
            seen.append(device.current_stream() == case.stream)
            x * 2
            driver.capture_end(graph)
            seen.append(device.current_stream() == case.stream)
            case.announce(graph)
            driver.replay(graph)
            seen.append(device.current_stream() == case.stream)
        case.require(
            all(seen),
            "looked at current_stream() behind capture_begin, capture_end and replay",
            "the stream that was made current before, three times",
            seen,
            "restore the current stream where the driver changes it",
        )

    @conformance("L2", _REPLAY, claims=GRAPHS, relies_on=(BASIC,))
    def test_a_replay_reads_its_inputs_anew(self, case: Case) -> None:
        """A replay computes from what its inputs hold then, not from what they held before."""
        x, y = rows(case, 4), rows(case, 4, start=5.0)
        graph, out = case.capture(lambda: x * 2 + 1)
        x.copy_(y)
        case.replay(graph)
        case.equal(
            out,
            y * 2 + 1,
            "captured x * 2 + 1, wrote other values into x, replayed",
            "let the graph refer to the memory of x; copy nothing at capture",
            exact=True,
        )

    @conformance("L2", _REPLAY, claims=GRAPHS, relies_on=(FRESH,))
    def test_every_replay_writes_the_same_addresses(self, case: Case) -> None:
        """Results lie where the capture put them, at the second replay as at the first."""
        x = rows(case, 4)
        graph, out = case.capture(lambda: x * 2 + 1)
        address = out.data_ptr()
        for start in (1.0, 2.0):
            x.copy_(rows(case, 4, start=start))
            case.replay(graph)
        moved = "" if out.data_ptr() == address else " (and the tensor moved)"
        case.equal(
            out,
            rows(case, 4, start=2.0) * 2 + 1,
            f"captured x * 2 + 1, then wrote to x and replayed, twice{moved}",
            "write results to the captured addresses at every replay",
            exact=True,
        )

    @conformance("L2", _REPLAY, claims=GRAPHS, relies_on=(FRESH,))
    def test_a_replay_is_in_the_order_of_its_stream(self, case: Case) -> None:
        """Work before and behind a replay on the current stream happens before and behind it."""
        x, y = rows(case, 4), rows(case, 4, start=3.0)
        graph, out = case.capture(lambda: x * 2 + 1)
        with case.device.stream(case.stream):
            x.copy_(y)
            case.announce(graph)
            case.driver.replay(graph)
            after = out + 1
        case.equal(
            after,
            y * 2 + 1 + 1,
            "on one stream and without waiting: wrote to x, replayed x * 2 + 1, added 1 to that",
            "launch the replay on the stream that is current when replay() is called",
            exact=True,
        )

    @conformance("L2", _REPLAY, claims=GRAPHS, relies_on=(BASIC,))
    def test_a_replay_happens_once(self, case: Case) -> None:
        """One replay does what was captured once: a sum in place grows by one term."""
        x, total = rows(case, 4), case.zeros(4, 8)
        graph, _ = case.capture(lambda: total.add_(x))
        total.zero_()
        case.replay(graph)
        case.equal(
            total,
            x,
            "captured total.add_(x), zeroed total, replayed once",
            "run each recorded operator once per replay",
            exact=True,
        )

    @conformance("L2", "GraphDriver.capture_end", claims=GRAPHS, relies_on=(BASIC,))
    def test_what_comes_behind_a_capture_is_not_in_it(self, case: Case) -> None:
        """Operators behind capture_end run at once, and no replay repeats them."""
        x, count = rows(case, 4), case.zeros(2)
        graph, _ = case.capture(lambda: x * 2)
        count.add_(1)
        case.replay(graph)
        case.equal(
            count,
            case.zeros(2) + 1,
            "captured x * 2, then ran count.add_(1) uncaptured, then replayed",
            "stop to record in capture_end",
            exact=True,
        )

    @conformance("L2", _REPLAY, claims=GRAPHS, relies_on=(FRESH, STAYS))
    def test_graphs_read_what_others_wrote(self, case: Case) -> None:
        """A graph reads the results of the one before it, in the same pool."""
        x = rows(case, 4)
        with case.ready():
            first, y = case.capture(lambda: x + 1)
            second, z = case.capture(lambda: y * 2)
        x.copy_(rows(case, 4, start=4.0))
        case.replay(first)
        case.replay(second)
        case.equal(
            z,
            (x + 1) * 2,
            "captured y = x + 1 and then z = y * 2 as two graphs of one pool, replayed both",
            "keep the memory of y for as long as its tensor and its graph live",
            exact=True,
        )

    @conformance("L2", _REPLAY, claims=GRAPHS, relies_on=(BASIC,))
    def test_an_empty_graph_replays(self, case: Case) -> None:
        """A capture in which nothing happened is a graph that does nothing."""
        graph, _ = case.capture(lambda: None)
        case.replay(graph)

    @conformance("L2", "GraphDriver.capture_begin", claims=GRAPHS, relies_on=(BASIC,))
    def test_a_capture_runs_nothing(self, case: Case) -> None:
        """A capture writes to no memory, unless the driver says runs_captures = True."""
        if getattr(case.driver, "runs_captures", False):
            raise NotClaimed("the driver says runs_captures = True: a capture may run")
        x, total = rows(case, 4), case.zeros(4, 8)
        case.capture(lambda: total.add_(x))
        case.equal(
            total,
            case.zeros(4, 8),
            "captured total.add_(x) and read total before any replay",
            "set runs_captures = True on the driver, if captures run what they record",
            exact=True,
        )

    @conformance(
        "L2", "GraphDriver.replayer", claims=("GraphDriver.replayer",), relies_on=(FRESH, STAYS)
    )
    def test_a_replayer_replays_its_own_graph(self, case: Case) -> None:
        """What replayer(graph) gives replays that graph, however many are captured later."""
        x = rows(case, 4)
        with case.ready():
            first, out = case.capture(lambda: x + 1)
            replay = case.driver.replayer(first)
            other, _ = case.capture(lambda: x * 5)
            case.driver.replayer(other)
        x.copy_(rows(case, 4, start=6.0))
        case.announce(first)
        replay()
        case.equal(
            out,
            x + 1,
            "made a replayer of x + 1, captured another graph, wrote to x, called the replayer",
            "bind the graph that replayer() was called with",
            exact=True,
        )
