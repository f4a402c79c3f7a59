"""L2, second part: random numbers, and methods that few drivers have."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from piecewise_core.errors import PiecewiseError
from piecewise_core.testing.conformance.base import Conformance
from piecewise_core.testing.conformance.case import Case
from piecewise_core.testing.conformance.level1_runtime import RNG
from piecewise_core.testing.conformance.level2_replay import AGAIN, BASIC
from piecewise_core.testing.conformance.marks import conformance
from piecewise_core.testing.conformance.models import rows

__all__ = ["CONTEXT", "Extras"]

CONTEXT = "test_the_capture_context_lets_errors_out"
DRAWS = "test_replays_draw_new_random_numbers"


class Extras(Conformance):
    """Generators, capture_context, dump."""

    # Random numbers --------------------------------------------------------------------

    @conformance(
        "L2",
        "GraphDriver.register_generator",
        claims=("GraphDriver.register_generator", "DeviceRuntime.rng"),
        relies_on=(AGAIN, RNG),
    )
    def test_replays_draw_new_random_numbers(self, case: Case) -> None:
        """With its generator registered, a graph draws other numbers at every replay."""
        draw = _Drawing(case)
        first, second = draw(), draw()
        case.require(
            not torch.equal(first, second),
            "registered the generator of rng(), captured torch.rand, replayed twice",
            "two different draws",
            f"{first.tolist()} both times",
            "advance the registered generator with every replay, or leave the method out",
        )

    @conformance(
        "L2",
        "GraphDriver.register_generator",
        claims=("GraphDriver.register_generator", "DeviceRuntime.rng"),
        relies_on=(DRAWS,),
    )
    def test_a_seed_repeats_what_replays_draw(self, case: Case) -> None:
        """Seeding the generator anew makes replays draw the same numbers again."""
        draw = _Drawing(case)
        draw.generator.manual_seed(11)
        first = draw()
        draw.generator.manual_seed(11)
        case.equal(
            draw(),
            first,
            "seeded the registered generator with 11 and replayed torch.rand, twice",
            "let replays draw from the registered generator's state, not from one of their own",
            exact=True,
        )

    # Other methods ---------------------------------------------------------------------

    @conformance("L2", "GraphDriver.capture_context", claims=("GraphDriver.capture_context",))
    def test_the_capture_context_lets_errors_out(self, case: Case) -> None:
        """An error inside capture_context() comes out of it, and it can be entered again."""
        came = False
        try:
            with case.device.stream(case.stream), case.driver.capture_context():
                raise KeyError("on purpose")
        except KeyError:
            came = True
        with case.device.stream(case.stream), case.driver.capture_context():
            pass
        case.require(
            came,
            "raised KeyError inside of capture_context()",
            "the KeyError behind it",
            "nothing was raised",
            "do not return True from __exit__; with @contextmanager, clean up in finally",
        )

    @conformance("L2", "GraphDriver.dump", claims=("GraphDriver.dump",), relies_on=(BASIC,))
    def test_a_dump_is_a_file_or_a_reason(self, case: Case) -> None:
        """A dumped graph is a file that is not empty, or an error that says what is needed."""
        x = rows(case, 4)
        graph, _ = case.capture(lambda: x + 1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "graph.txt")
            try:
                case.driver.dump(graph, path)
            except PiecewiseError as error:
                said = len(str(error.__cause__ or error).split())
                good, got = said > 3, f"{error.__cause__ or error!r}"
            else:
                good = path.exists() and path.stat().st_size > 0
                got = f"{path.stat().st_size} bytes" if path.exists() else "no file"
        case.require(
            good,
            "dumped a graph of x + 1 to a file that did not exist",
            "a file with something in it, or an error of some words",
            got,
            "write to the path that is given, or leave dump() out",
        )


class _Drawing:
    """A captured torch.rand, drawn from by calling this."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.generator = case.device.rng()
        torch.rand(16, device=case.device_type)  # first calls load kernels
        self.graph = case.new_graph()
        case.driver.register_generator(self.graph, self.generator)
        _, self.out = case.capture(lambda: torch.rand(16, device=case.device_type), self.graph)

    def __call__(self) -> torch.Tensor:
        self.case.replay(self.graph)
        return self.out.cpu().clone()
