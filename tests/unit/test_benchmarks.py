"""The static-graph benchmark runs from end to end where there is no GPU; nothing is timed here."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
from fresh_process import FreshProcesses

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "static_graphs.py"
WITHOUT_TRANSFORMERS = ("toy-8", "executables-8", "capture", "endurance", "staging", "dit")
WITH_TRANSFORMERS = ("llama-2", "encoder")


def run(processes: FreshProcesses, *arguments: str, **environment: str) -> list[str]:
    """The lines that the script prints; all but the last are for people."""
    # A process of a case takes seconds of imports; more threads than cores only slow it down.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = processes.run_file(SCRIPT, *arguments, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def load_benchmark(monkeypatch):
    """A benchmark's module, by name, as it is imported when it is run."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module


CASES = """
import sys
sys.path.insert(0, sys.argv[1])
from static_graphs import main
for name in sys.argv[2:]:
    main(["--simulated", "--quick", "--case", name])
"""


def simulated(processes: FreshProcesses, *cases: str) -> dict[str, dict]:
    """Each case as its process runs it, here in one process for all."""
    done = processes.run(CASES, str(SCRIPT.parent), *cases, timeout=500)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {
        name: json.loads(line.removeprefix("RESULT "))
        for name, line in zip(cases, told, strict=True)
    }


@pytest.mark.long
def test_every_case_without_transformers_runs_on_the_simulated_device(
    fresh_processes,
):
    found = simulated(fresh_processes, *WITHOUT_TRANSFORMERS)
    toy = found["toy-8"]
    assert set(toy["microseconds"]) == {
        "eager", "recorded", "piecewise", "floor", "full", "one replay",
    }  # fmt: skip
    assert toy["graphs"] == 3
    assert max(toy["max_error"].values()) < 1e-5
    assert [t["target"] for t in toy["targets"]] == [0.85, 1.05, 1.0, 15, 20, 1.02, 0.45]
    assert {t["verdict"] for t in toy["targets"]} == {"not judged"}
    assert found["capture"]["graphs"] == 9
    taken = found["executables-8"]["taken"]
    assert [taken[way]["executables"] for way in ("shared", "own")] == [3, 9]
    assert found["executables-8"]["wrong"] == []
    assert {"trace and compile", "capture"} <= set(found["capture"]["phase_seconds"])
    assert {"rehearsal run", "recording", "steps", "whole capture"} <= set(
        found["capture"]["split_seconds"]
    )
    assert len(found["capture"]["seconds_by_size"]) == 3
    assert found["staging"].get("copied_right", True)
    assert len(found["endurance"]["gained"]) == 2
    calls = found["dit"]["calls"]
    assert calls.keys() == {"recorded", "piecewise", "full"}
    assert all(each == {"replayed": sum(each.values())} for each in calls.values())
    assert max(found["dit"]["max_error"].values()) < 1e-4


@pytest.mark.long
@pytest.mark.slow
def test_every_case_with_transformers_runs_on_the_simulated_device(fresh_processes):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    found = simulated(fresh_processes, *WITH_TRANSFORMERS)
    llama = found["llama-2"]
    assert set(llama["tokens_per_second"]) == {"eager", "recorded", "piecewise", "full"}
    assert set(llama["same_tokens_as_eager"].values()) == {1.0}
    assert llama["replayed"] > 0
    assert max(found["encoder"]["max_error"].values()) < 1e-4


MODELS = """
import sys
sys.path.insert(0, sys.argv[1])
from models import main
main(["--simulated", "--quick", "--case", sys.argv[2]])
"""


@pytest.mark.long
def test_a_real_model_is_measured_in_every_way_and_judged(fresh_processes):
    done = fresh_processes.run(MODELS, str(SCRIPT.parent), "dit-2", timeout=300)
    assert done.returncode == 0, done.stderr
    *_, last = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found = json.loads(last.removeprefix("RESULT "))
    assert set(found["ways"]) == {
        "eager", "recorded", "piecewise", "full", "full, not cut", "full, streams", "door"
    }  # fmt: skip
    for way, row in found["ways"].items():
        assert row["us"]["2 x 4"]["wall"] > 0, way
        assert row["error"]["2 x 4"] < 1e-5, way


def test_a_way_that_is_further_off_than_eager_is_not_the_best(load_benchmark):
    judged = load_benchmark("models").judged
    size = {"4": {"wall": 10.0, "host": 1.0}}
    row = {"cold_seconds": 1.0, "driver_bytes": 0}
    ways = {
        "eager": {**row, "us": size, "error": {"4": 0.01}},
        "reduce-overhead": {**row, "us": size, "error": {"4": 0.01}},
        "full": {**row, "us": {"4": {"wall": 5.0, "host": 1.0}}, "error": {"4": 0.5}},
        "piecewise": {**row, "us": {"4": {"wall": 8.0, "host": 1.0}}, "error": {"4": 0.012}},
        "door": {"failed": "TypeError: no"},
    }
    found = judged({"ways": ways, "limit_us": {"4": 4.0}})
    assert found["base"] == "reduce-overhead"
    assert found["best_over_base"] == {"4": 0.8}
    assert ways["full"]["right"] == {"4": False}
    assert ways["piecewise"]["share"] == {"4": 0.5}


def test_cases_are_chosen_by_name_or_group(fresh_processes):
    listed = run(fresh_processes, "--list")
    assert [n for n in listed if n.startswith("llama-")] == [f"llama-{n}" for n in (1, 8, 32, 64)]
    assert {"toy-64", "executables-64", *WITHOUT_TRANSFORMERS[2:], "encoder"} <= set(listed)


def test_a_case_that_fails_is_told_and_costs_no_other(fresh_processes):
    *shown, last = run(
        fresh_processes, "--simulated", "--only", "toy", "staging", PIECEWISE_GRAPH_MODE="sideways"
    )
    whole = json.loads(last)
    assert whole["simulated"] is True
    found = whole["cases"]
    assert tuple(found) == ("toy-8", "staging")
    assert found["toy-8"]["crashed"] == "exited with 1"
    assert "sideways" in "".join(found["toy-8"]["stderr"])
    assert any("sideways" in line for line in shown)
    assert "crashed" not in found["staging"]


def test_without_a_device_the_benchmark_says_that_it_measured_nothing(fresh_processes):
    assert run(fresh_processes, CUDA_VISIBLE_DEVICES="") == ['{"skipped": "no CUDA device"}']


LIBRARIES = """
import sys
sys.path.insert(0, sys.argv[1])
from libraries import main
main(["--simulated", "--quick", "--case", sys.argv[2], "--ways", *sys.argv[3:]])
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "way", "library"),
    [
        ("generate", "compile_config", "transformers"),
        pytest.param("sd", "backend", "diffusers", marks=pytest.mark.slow),
    ],
)
def test_a_library_s_own_loop_is_run_compared_and_timed(fresh_processes, case, way, library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    done = fresh_processes.run(LIBRARIES, str(SCRIPT.parent), case, way, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, last = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found = json.loads(last.removeprefix("RESULT "))
    assert set(found["ways"]) == {"eager", way}
    for row in found["ways"].values():
        assert row["per_second"] > 0
        assert row["error"] < 1e-5
        assert row.get("same_tokens", 1) == 1
    assert "replayed" in found["ways"][way]["facts"][0]


def test_a_loop_s_rate_counts_only_where_it_is_right(load_benchmark):
    library = load_benchmark("_library_case")
    row = {"error": 0.01, "seconds": [4.0, 5.0, 6.0]}
    ways = {
        "eager": row,
        "theirs": {**row, "seconds": [2.0, 2.0, 2.0], "evidence": {"problem": "skipped"}},
        "near": {"error": 0.014, "seconds": [1.0, 1.0, 2.0]},
        "far": {"error": 0.02, "seconds": [0.1, 0.1, 0.1]},
        "broken": {"failed": "TypeError: no"},
    }
    aims = {"theirs": 1.2, "eager": 6.0}
    found = library.judge({"ways": ways, "aims": aims, "unit": "tokens"})
    near = found["ways"]["near"]
    assert near["over"]["eager"] == {"ratio": 5.0, "least": 3.0, "most": 5.0}
    assert (near["right"], found["ways"]["far"]["right"]) == (True, False)
    told = {each.name: each for each in library.targets(found)}
    assert told["near: tokens/s over theirs's"].verdict == "met"
    assert told["near: tokens/s over theirs's"].note.endswith("skipped")
    assert told["near: tokens/s over eager's"].verdict == "missed"
    assert told["far: tokens/s over eager's"].verdict == "not measured"
    assert told["broken: tokens/s over eager's"].note == "TypeError: no"


ESTIMATE = """
import sys
sys.path.insert(0, sys.argv[1])
from estimate import main
main(["--simulated", "--quick", "--pair", sys.argv[2]])
"""


def test_an_estimate_is_compared_with_what_the_capture_took(fresh_processes, load_benchmark):
    pair = "toy-64 piecewise, 7 sizes"
    done = fresh_processes.run(ESTIMATE, str(SCRIPT.parent), pair, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    judged = load_benchmark("estimate").judged(json.loads(last.removeprefix("RESULT ")))
    assert (judged["sizes"], judged["measured"], judged["graphs"]) == (7, 7, 21)
    assert judged["counted_within"]
    assert judged["lost"] is None


def test_an_estimate_is_judged_by_what_the_device_lost(load_benchmark):
    estimate, mib = load_benchmark("estimate"), 1 << 20
    row = {"bytes": 96 * mib, "error_bytes": 3 * mib, "device_bytes": 98 * mib, "graphs": 3}
    row |= {"counted": 100 * mib, "lost": 100 * mib}
    found = estimate.judged(row)
    assert (found["error"], found["within"]) == (0.02, True)
    assert (found["counted_error"], found["counted_within"]) == (0.04, False)
    none = estimate.judged({**row, "graphs": 0})
    total = estimate.summed_up({"a": found, "b": none}, simulated=False)
    assert (total["worst"], total["pairs_told"], total["met"]) == ("a", 1, False)
    assert estimate.summed_up({"a": found}, simulated=False)["met"] is True
    assert len(load_benchmark("_estimate_pairs").pairs()) == 20


def test_work_per_call_is_compared_with_the_traced_graph(fresh_processes):
    for _ in range(2):  # what the first one kept is nothing to the second
        done = fresh_processes.run(DISPATCH, str(SCRIPT.parent))
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"look_up_1_range", "look_up_1000_ranges"} <= found.keys()


DISPATCH = """
import sys
sys.path.insert(0, sys.argv[1])
from dispatch import main
sys.argv[1:] = ["--quick"]
main()
"""
