"""Plugins that want something unusual, each a wheel found through its entry point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PROJECTS = Path(__file__).parent / "projects"


@pytest.fixture(scope="module")
def found(environment, fresh_processes) -> dict:
    """What ``cases.py`` found out, by case."""
    script = Path(__file__).with_name("cases.py")
    done = environment.forked(fresh_processes, script, cwd=environment.path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("handles", "L2"),
        ("registers", "L2"),
        ("bare-graphs", "L2"),
        ("own-compiler", "L1"),
        ("own-backend", "L0"),
    ],
)
def test_each_reaches_its_level_of_the_kit(environment, tmp_path, name, level):
    arguments = ("conformance", name, "--level", level)
    environment.run("-m", "piecewise_core.cli.main", *arguments, cwd=tmp_path, BOARDS=name)


def test_every_project_is_installed_and_found_by_its_entry_point(found):
    assert {str(p.name) for p in PROJECTS.iterdir()} == {
        module.removeprefix("piecewise_")
        for module in found["entries"]["found"].values()
        if not module.startswith(("piecewise_cuda", "piecewise_rocm"))
    }
    assert found["entries"]["found"]["piecewise-handles 1.0"] == "piecewise_handles"


def test_a_device_with_a_hundred_handles_captures_what_fits_and_serves_all(found):
    case = found["handles"]
    assert case["distribution"] == "piecewise-handles 1.0"
    assert len(case["captured"]) == 50
    assert {1, 60} <= set(case["captured"])
    assert case["captures"] == 100
    assert len(case["dropped"]) == 10
    assert "the device has room for 100 more graphs" in case["dropped"][0]
    assert case["right"] == 60


def test_handles_that_run_out_in_mid_capture_leave_what_is_there(found):
    case = found["handles_silent"]
    assert len(case["captured"]) == 50
    assert case["captured"] == list(range(11, 61))
    assert len(case["dropped"]) == 10
    assert all("no graph handle is free (100 exist)" in text for text in case["dropped"])
    assert all("piecewise-handles 1.0: GraphDriver" in text for text in case["dropped"])
    assert case["right"] == 60


def test_values_that_the_host_updates_are_the_call_s_own_at_every_replay(found):
    assert found["registers"] == {"right": 5, "replayed": 5, "padded": 20}


def test_graphs_without_weak_references_generators_or_statistics_serve(found):
    case = found["bare_graphs"]
    assert case["right"] == case["right_without"] == 8
    assert case["replayed"] == 2
    assert case["captures"] == 4
    assert case["bytes"] == [0, 0]
    assert case["fresh_numbers"]
    assert case["dump"].startswith("CaptureFailed: this platform's graphs cannot be written out")


def test_a_platform_without_graphs_compiles_with_its_own_compiler(found):
    case = found["own_compiler"]
    assert case["compiler"] == "own-compiler"
    assert case["right"] == case["right_again"] == 8
    # Two pieces, for two ranges and for the first call.
    assert case["compilations"] == case["compiled"] == case["loaded"] == 6
    assert case["compiled_again"] == 0
    assert case["graphs"].startswith('ConfigError: graph_mode="piecewise" needs static graphs')


def test_two_that_claim_one_device_are_told_apart_by_the_user_alone(found):
    case = found["rivals"]
    for text in (case["by_device"], case["by_shared_name"]):
        assert text.startswith("PlatformConflict: ")
        assert "piecewise-rival-one 2.0" in text
        assert "piecewise-rival-two 2.1" in text
    assert "rival@piecewise-rival-one" in case["by_shared_name"]
    assert case["by_own_name"] == "rival-one"
    assert case["by_distribution"] == "rival-two"


def test_a_compiler_from_a_plugin_brings_its_pass_along(found):
    case = found["doubling"]
    assert case["right"] == case["plain"] == 2
    assert len(case["seen"]) == 2
    assert not any("mul" in target for targets in case["seen"] for target in targets)
    assert any("add" in target for target in case["seen"][1])


def test_a_platform_s_own_backend_runs_its_pieces_at_every_call(found):
    case = found["own_backend"]
    assert case["right"] == 3
    assert case["diary"] == [[place, 2, rows] for rows in (2, 3, 8) for place in (0, 1)]
