"""Every mutant fails the one test that is named for it; devices that keep the contract pass."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from mutants.base import device
from mutants.drivers import Timing
from mutants.replays import Updated
from mutants.streams import Deferring, Queues, ReplaysInOrder
from mutants.table import MUTANTS, as_markdown, results_of, with_what_it_relies_on

from piecewise_core.testing.conformance.marks import LEVELS
from piecewise_core.testing.conformance.suite import PlatformConformance

SPECS = PlatformConformance.specs()

OTHER_DRIVERS = [
    device("with a hundred handles", "", max_graphs=64),
    device("without weak references and generators", "", weak_refs=False, generators=False),
    device("whose graphs share nothing", "", shares=False),
    device("whose captures are of one stream", "", forks=False),
    device("that is told of every call", "", driver=Updated),
]
"""Correct devices that are as the first of CORRECT but for their graphs."""

SIMULATED = device("with every method", "")
"""The platform that test_platforms.py puts through the whole kit."""

CORRECT = [
    SIMULATED,
    *OTHER_DRIVERS,
    device(
        "with streams that are ordered", "", driver=ReplaysInOrder, runtime=Deferring, parent=Queues
    ),
    device(
        "that times work and says what it is",
        "",
        driver=ReplaysInOrder,
        runtime=Timing,
        parent=Queues,
    ),
]

UNCHANGED = {
    # Core's own promises, which no mutant of the simulated device can break; and torch's streams,
    # whose order the tests of wait_stream look at.
    "test_overrides_have_reasons",
    "test_a_size_out_of_bounds_is_refused",
    "test_a_size_above_the_bounds_runs_eagerly",
    "test_streams_that_are_forked_and_joined_are_in_the_graph",
    "test_a_stream_that_is_not_joined_is_an_error",
}


def failures(results):
    return [f"{r.name}: {r.reason}" for r in results if r.outcome == "failed"]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.what)
def test_a_mutant_fails_its_test(mutant):
    results = results_of(mutant, with_what_it_relies_on(mutant.fails))
    assert [r.name for r in results if r.outcome == "failed"] == [mutant.fails], failures(results)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.what)
def test_a_mutant_fails_no_other_test(mutant):
    results = results_of(mutant)
    assert [r.name for r in results if r.outcome == "failed"] == [mutant.fails], failures(results)


def passes(correct, only=None):
    results = results_of(correct, only)
    assert not [r for r in results if r.outcome not in ("passed", "not claimed")]
    return Counter(r.outcome for r in results)["passed"]


@pytest.mark.parametrize(
    "correct",
    [
        pytest.param(c, marks=[pytest.mark.slow] * (c in [SIMULATED, *OTHER_DRIVERS]))
        for c in CORRECT
    ],
    ids=lambda m: m.what,
)
def test_a_device_that_keeps_the_contract_passes_everything(correct):
    assert passes(correct) > 50


@pytest.mark.parametrize("correct", OTHER_DRIVERS, ids=lambda m: m.what)
def test_a_device_that_keeps_the_contract_passes_all_that_asks_its_driver(correct):
    """L1 is of models that are not captured: there these are the first device again."""
    above = [name for name, spec in SPECS.items() if spec.level in ("L2", "L3")]
    assert passes(correct, with_what_it_relies_on(*above)) > 40


def test_every_test_of_the_kit_has_a_mutant_or_a_reason_why_not():
    noticed = {mutant.fails for mutant in MUTANTS}
    assert noticed | UNCHANGED == set(SPECS)
    assert not noticed & UNCHANGED


def test_what_a_test_relies_on_comes_before_it():
    order = list(SPECS)
    for name, spec in SPECS.items():
        for other in spec.relies_on:
            assert order.index(other) < order.index(name), f"{name} relies on {other}"
    assert [s.level for s in SPECS.values()] == sorted(s.level for s in SPECS.values())
    assert {s.level for s in SPECS.values()} == set(LEVELS)


def test_the_reference_has_the_table_of_mutants():
    page = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"
    assert as_markdown(MUTANTS) in page.read_text(encoding="utf-8")
