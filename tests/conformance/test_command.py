"""``piecewise conformance``: exit codes, report, table, JUnit, refusals before anything runs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from io import StringIO

import pytest
from click.testing import CliRunner
from mutants.plugins import installed
from rich.console import Console

from piecewise_core.cli.main import main
from piecewise_core.testing import PlatformConformance, SimulatedPlatform
from piecewise_core.testing.conformance.report import TestResult, make_report
from piecewise_core.testing.conformance.subject import find_subject
from piecewise_core.testing.conformance.table import render

SPECS = PlatformConformance.specs()


def conformance(*args):
    return CliRunner().invoke(main, ["conformance", *map(str, args)])


def result(level, outcome, name="test_x"):
    return TestResult(name, level, "Something holds.", outcome, "for a reason", 0.5)


def report(asked, *tests):
    return make_report(find_subject(SimulatedPlatform), asked, tests)


# Exit codes and files -------------------------------------------------------------------------


def test_a_level_that_is_met_exits_with_0_and_writes_its_files(tmp_path):
    files = tmp_path / "report.json", tmp_path / "junit.xml"
    with installed():
        done = conformance("mutant", "--level", "l0", "--report", files[0], "--junit", files[1])
    assert done.exit_code == 0, done.output
    assert "Met. level reached: L0 (asked for L0)" in done.output
    found = json.loads(files[0].read_text())
    assert set(found) == {
        "schema", "platform", "versions", "device", "date", "level", "met", "counts", "tests",
    }  # fmt: skip
    assert found["schema"] == 1
    assert found["platform"]["distribution"] == "piecewise-mutant"
    assert found["level"] == {"asked": "L0", "reached": "L0"}
    assert found["met"] is True
    assert found["device"] == {"available": False, "reason": "no such board", "facts": {}}
    assert set(found["tests"][0]) == {
        "name", "level", "property", "outcome", "reason", "seconds", "overridden",
    }  # fmt: skip
    assert sum(found["counts"].values()) == len(found["tests"])
    suite = ElementTree.parse(files[1]).getroot()[0]
    assert int(suite.attrib["tests"]) == len(found["tests"])


def test_a_level_that_is_not_met_exits_with_1_and_tells_why():
    with installed(top="print('hello')"):
        done = conformance("mutant", "--level", "L0")
    assert done.exit_code == 1
    assert "Not met. level reached: none (asked for L0)" in done.output
    assert "nothing on stdout or stderr" in done.output


def test_missing_hardware_exits_with_3():
    with installed():
        done = conformance("mutant", "--level", "L2")
    assert done.exit_code == 3
    assert "Untried for want of hardware. level reached: L0 (asked for L2)" in done.output


def test_expected_failures_are_taken_from_the_file(tmp_path):
    file = tmp_path / "xfails.txt"
    file.write_text("test_importing_it_prints_nothing # a banner that the firmware wants\n")
    with installed(top="print('hello')"):
        done = conformance("mutant", "--level", "L0", "--xfail", file)
    assert done.exit_code == 0
    assert "1 expected failure" in done.output


# Refusals -------------------------------------------------------------------------------------


def test_an_unknown_platform_is_told_the_nearest_name():
    done = conformance("cuba")
    assert done.exit_code == 2
    assert "did you mean 'cuda'?" in done.output


def test_an_unknown_level_is_told_the_levels():
    done = conformance("cpu", "--level", "L4")
    assert done.exit_code == 2
    assert "'L0', 'L1', 'L2', 'L3'" in done.output.upper()


@pytest.mark.parametrize("option", ["--report", "--junit"])
def test_a_file_that_cannot_be_written_is_found_before_anything_runs(tmp_path, option):
    with installed(top="raise SystemError('was imported')"):
        done = conformance("mutant", option, tmp_path / "missing" / "file")
    assert done.exit_code == 2
    assert "cannot write" in done.output
    assert "was imported" not in done.output


def test_a_directory_is_no_report(tmp_path):
    assert conformance("cpu", "--report", tmp_path).exit_code == 2


def test_looking_whether_a_report_can_be_written_leaves_no_file(tmp_path):
    conformance("cuba", "--report", tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_that_does_not_load_exits_with_2():
    with installed(module="gone_for_good"):
        done = conformance("mutant")
    assert done.exit_code == 2
    assert "piecewise-mutant 1.0: importing its entry point" in done.output


def test_mistakes_in_the_xfail_file_exit_with_2(tmp_path):
    file = tmp_path / "xfails.txt"
    file.write_text("test_padding_never_leak # why\n")
    with installed():
        done = conformance("mutant", "--xfail", file)
    assert done.exit_code == 2
    assert "did you mean test_padding_never_leaks?" in done.output


# Levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "outcomes", "reached", "code"),
    [
        ("L1", {"L0": "passed", "L1": "passed"}, "L1", 0),
        ("L1", {"L0": "passed", "L1": "expected failure"}, "L0", 1),
        ("L1", {"L0": "passed", "L1": "failed"}, "L0", 1),
        ("L1", {"L0": "failed", "L1": "passed"}, None, 1),
        ("L1", {"L0": "passed", "L1": "blocked"}, "L0", 1),
        ("L1", {"L0": "passed", "L1": "no hardware"}, "L0", 3),
        ("L1", {"L0": "failed", "L1": "no hardware"}, None, 1),
        ("L2", {"L0": "passed", "L1": "passed", "L2": "not claimed"}, "L1", 1),
    ],
)
def test_the_level_reached_is_the_highest_that_is_met_with_all_below(
    asked, outcomes, reached, code
):
    found = report(asked, *(result(level, outcome) for level, outcome in outcomes.items()))
    assert (found.reached, found.exit_code) == (reached, code)


def test_not_claimed_and_expected_failures_let_a_level_be_met():
    outcomes = ("passed", "not claimed", "expected failure")
    assert report("L0", *(result("L0", outcome) for outcome in outcomes)).reached == "L0"


def test_seconds_are_told_and_never_judged():
    slow = replace(result("L0", "passed"), seconds=1e6)
    found = report("L0", slow)
    assert found.exit_code == 0
    assert json.loads(found.to_json())["tests"][0]["seconds"] == 1e6


def test_a_report_names_neither_directories_nor_the_host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platform.node", lambda: "a-host-of-ours")
    reason = f"in {tmp_path}/x.py on a-host-of-ours, by {__file__}"
    text = report("L0", replace(result("L0", "failed"), reason=reason)).to_json()
    assert "<directory>/x.py on <host>, by <source>/tests" in text


def test_the_table_shows_failures_in_full_and_square_brackets_as_they_are():
    failed = replace(result("L0", "failed", "test_y"), reason="did: [bold] x")
    out = StringIO()
    render(report("L0", result("L0", "passed"), failed), Console(file=out, width=100))
    text = out.getvalue()
    assert "did: [bold] x" in text
    assert "simulated (given as an object given), " not in text
    assert "Not met. level reached: none" in text


def test_every_line_of_the_table_fits_80_columns_and_untried_tests_are_one_line():
    *others, longest = sorted(SPECS, key=len)
    tests = [
        *(result("L0", "passed", name) for name in others),
        replace(result("L1", "expected failure", longest), reason="a reason " * 30),
        *(replace(result("L2", "not claimed", f"test_{n}"), reason="no graphs") for n in range(25)),
        replace(result("L2", "not claimed", "test_z"), reason="no weak_ref"),
    ]
    out = StringIO()
    render(report("L0", *tests), Console(file=out, width=500))
    _, _, lines = out.getvalue().partition("\n\n")
    assert max(map(len, lines.splitlines())) <= 80
    assert "L2  not claimed       25 tests\n" in lines
    assert lines.count("no graphs") == 1
    assert "L2  not claimed       test_z\n" in lines
    assert f"L1  expected failure  {longest}\n" in lines
    assert [n for n in others if f"L0  passed            {n}\n" not in lines] == []


# Compilers ------------------------------------------------------------------------------------

COMPILERS = """
class Kept:
    name = "kept"
    def compile(self, graph, example_inputs, *, key, config):
        return CompiledGraph(graph.forward)
    def hash_factors(self):
        return {}

class Fixing(Kept):
    def compile(self, graph, example_inputs, *, key, config):
        [int(v) for v in example_inputs if type(v).__name__ == "SymInt"]
        return CompiledGraph(graph.forward)

@hookimpl
def piecewise_compilers():
    return {"kept": Kept, "fixing": Fixing, "broken": lambda: 1 / 0}
"""


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("kept", 0, "Met. level reached: L1 (asked for L1)"),
        ("fixing", 1, "test_code_for_a_range_serves_the_range"),
        ("broken", 2, "making compiler 'broken' (hook piecewise_compilers) failed"),
        ("kapt", 2, "did you mean 'kept'?"),
        ("mutants.answers:RelaysChunks", 1, "test_chunked_results_lie_as_eager_s"),
        ("mutants.answers:Nothing", 2, "importing compiler 'mutants.answers:Nothing' failed"),
    ],
)
def test_a_compiler_is_tested_by_itself(tmp_path, name, code, says):
    file = tmp_path / "report.json"
    with installed(top=COMPILERS):
        done = conformance("--compiler", name, "--report", file)
    assert done.exit_code == code, done.output
    assert says in done.output
    if code < 2 and ":" not in name:
        assert "(piecewise-mutant 1.0), device cpu" in done.output
        assert json.loads(file.read_text())["platform"]["distribution"] == "piecewise-mutant"


def test_a_platform_or_a_compiler_is_named_not_both_and_not_neither():
    for arguments in ((), ("cpu", "--compiler", "eager")):
        done = conformance(*arguments)
        assert done.exit_code == 2
        assert "name one platform, or one compiler" in done.output
