"""The class that vendors subclass: platforms, overrides, expected failures, what failures tell."""

from __future__ import annotations

import gc
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mutants.answers import Kept
from mutants.plugins import installed
from mutants.replays import Stale
from mutants.table import MUTANTS, with_what_it_relies_on

from piecewise_core.errors import ConfigError, NoPlatform, PlatformConflict, PluginError
from piecewise_core.protocols import PlatformInfo, Probe
from piecewise_core.testing import PlatformConformance, SimulatedPlatform, overrides
from piecewise_core.testing.conformance.compilers import CompilerUnderTest
from piecewise_core.testing.conformance.level1 import INSIDE
from piecewise_core.testing.conformance.running import RunBroken, run_suite, suite_for
from piecewise_core.testing.conformance.subject import find_subject
from piecewise_core.testing.conformance.verdicts import Violation, failure_text
from piecewise_core.testing.conformance.xfail import read_xfails

FRESH = "test_a_replay_reads_its_inputs_anew"
KEPT = "test_kept_code_serves_a_second_model"
OVERRIDES = "test_overrides_have_reasons"


def run(suite, *names):
    """The results of tests ``names`` of ``suite``, by name."""
    gc.collect()
    gc.freeze()
    found = run_suite(suite, chosen=lambda spec: not names or spec.name in names)
    return {result.name: result for result in found}


def stale():
    """A device whose replays read stale input."""
    platform = SimulatedPlatform()
    shared = platform.graphs._device
    platform.graphs = Stale(shared)
    return platform


# Platforms ------------------------------------------------------------------------------------


class Alone:
    """A piece's backend of a vendor's own: no ``runnable``, so it is called at every call."""

    def __init__(self, graph, *given, **kwargs):
        *_, self.index, _count, self.places, self.general, self.owner = given

    def __call__(self, *args):
        found = self.owner.table.find(*(args[place] for place in self.places))
        if found == self.owner.table.miss:
            return self.general()(*args)
        return self.owner.compile_piece(self.index, self.owner.targets[found].box)(*args)


def test_a_class_that_dispatches_by_itself_has_its_general_graph_made_too():
    platform = SimulatedPlatform()
    platform.graphs = None
    platform.piecewise_backend = Alone
    name = "test_one_compilation_per_distinct_piece_and_range"
    assert run(suite_for(platform, level="L1"), name)[name].outcome == "passed"


def test_the_package_of_the_kit_is_light():
    code = "import sys, piecewise_core.testing\nprint({'torch', 'pytest'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_name_that_the_package_does_not_have_is_an_attribute_error():
    import piecewise_core.testing as package

    with pytest.raises(AttributeError, match="'PlatformConformence'"):
        package.PlatformConformence  # noqa: B018


@pytest.mark.parametrize("platform", [SimulatedPlatform, SimulatedPlatform(), stale])
def test_a_platform_may_be_a_class_an_object_or_a_function(platform):
    assert find_subject(platform).name == "simulated"


def test_a_factory_makes_a_platform_for_each_test_and_an_object_stays_one():
    subject = find_subject(SimulatedPlatform)
    assert subject.make() is not subject.make()
    subject = find_subject(SimulatedPlatform())
    assert subject.make() is subject.make()


def test_a_misspelt_platform_is_told_the_nearest_name():
    with pytest.raises(NoPlatform, match="did you mean 'rocm'"):
        find_subject("rokm")
    with pytest.raises(NoPlatform, match="is no platform"):
        find_subject(7)


def test_a_function_that_makes_no_platform_is_told_with_its_name():
    def broken():
        raise OSError("no board")

    with pytest.raises(PluginError, match=r"broken\(\), given as the platform, raised OSError"):
        find_subject(broken)
    result = run(suite_for(broken))["test_the_platform_is_found"]
    assert result.outcome == "failed"
    assert "no board" in result.reason


def test_a_platform_that_no_plugin_announces_is_named_by_its_module():
    assert find_subject("piecewise_core.testing:SimulatedPlatform").fresh
    for place in ("piecewise_core.testing:SimulatedPlatfrom", "no_such_module:Platform"):
        with pytest.raises(PluginError, match=place):
            find_subject(place)


def test_a_name_that_two_plugins_have_is_told_with_both():
    with installed(name="rocm", entry="rocm"):
        with pytest.raises(PlatformConflict, match=r"piecewise-mutant 1\.0 and piecewise-rocm"):
            find_subject("rocm")
        assert find_subject("rocm@piecewise-mutant").origin.distribution == "piecewise-mutant"


def test_a_plugin_that_cannot_be_loaded_is_an_error_with_its_name():
    with installed(module="gone_for_good"), pytest.raises(PluginError, match="piecewise-mutant"):
        find_subject("mutant")


def test_without_hardware_all_but_the_contract_is_no_hardware():
    info = PlatformInfo(
        "absent", "cpu", (1, 0), lambda: Probe(False, "no such board"), SimulatedPlatform
    )
    results = run(suite_for(info)).values()
    above = {r.outcome for r in results if r.level != "L0"}
    assert above == {"no hardware"}
    assert {r.reason for r in results if r.level != "L0"} == {"no such board"}
    assert not [r for r in results if r.outcome in ("failed", "blocked")]


def test_a_platform_that_departs_from_the_protocols_fails_and_blocks_the_rest():
    def broken():
        platform = SimulatedPlatform()
        platform.graphs = SimpleNamespace(new_pool=lambda: None)
        return platform

    results = run(suite_for(broken))
    failed = [r for r in results.values() if r.outcome == "failed"]
    assert [r.name for r in failed] == ["test_what_create_gives_keeps_the_protocols"]
    assert "GraphDriver.capture_begin(graph, pool, stream) is missing" in failed[0].reason
    assert {r.outcome for r in results.values() if r.level != "L0"} == {"blocked"}


def test_levels_above_the_one_asked_for_are_left_out():
    assert {r.level for r in run(suite_for(SimulatedPlatform, level="L0")).values()} == {"L0"}
    with pytest.raises(ValueError, match="L7"):
        suite_for(SimulatedPlatform, level="L7")


# Overrides ------------------------------------------------------------------------------------


def test_a_replaced_test_without_a_reason_fails():
    class Suite(PlatformConformance):
        platform = SimulatedPlatform

        def test_size_zero_is_as_eager(self):
            pass

        test_size_one_is_as_eager = None

    class Grandchild(Suite):
        pass

    for suite in (Suite, Grandchild):
        result = run(suite, OVERRIDES)[OVERRIDES]
        assert result.outcome == "failed"
        assert "test_size_zero_is_as_eager, test_size_one_is_as_eager" in result.reason
        assert "@overrides" in result.reason


def test_a_replaced_test_with_a_reason_runs_in_place_and_is_reported():
    seen = []

    class Suite(PlatformConformance):
        platform = SimulatedPlatform

        @overrides("the board has no empty launches")
        def test_size_zero_is_as_eager(self):
            seen.append("alone")

        @overrides("the board rounds")
        def test_size_one_is_as_eager(self, case):
            seen.append(case.device_type)

    name = "test_size_zero_is_as_eager"
    results = run(Suite, OVERRIDES, name, "test_size_one_is_as_eager")
    assert {r.outcome for r in results.values()} == {"passed"}
    assert results[name].overridden == "the board has no empty launches"
    assert results[name].level == "L1"
    assert seen == ["alone", "cpu"]


def test_a_replaced_test_may_be_listed_as_an_expected_failure_instead(tmp_path):
    (tmp_path / "xfails.txt").write_text("test_size_zero_is_as_eager # no empty launches\n")

    class Suite(PlatformConformance):
        platform = SimulatedPlatform
        xfails = tmp_path / "xfails.txt"

        def test_size_zero_is_as_eager(self):
            pass

    assert run(Suite, OVERRIDES)[OVERRIDES].outcome == "passed"


@pytest.mark.parametrize("reason", ["", "  ", None])
def test_overrides_wants_a_sentence(reason):
    with pytest.raises(ValueError, match="a sentence that says why"):
        overrides(reason)


# Expected failures ----------------------------------------------------------------------------


def with_xfails(tmp_path, platform, text):
    file = tmp_path / "xfails.txt"
    file.write_text(text, encoding="utf-8")
    return suite_for(platform, xfails=file)


def test_an_expected_failure_is_none_and_blocks_what_relies_on_it(tmp_path):
    text = f"# our board\n\n{FRESH}  # firmware 8 copies inputs\n"
    relies = "test_every_replay_writes_the_same_addresses"
    results = run(with_xfails(tmp_path, stale, text), *with_what_it_relies_on(relies))
    assert results[FRESH].outcome == "expected failure"
    assert results[FRESH].reason == "firmware 8 copies inputs"
    assert results[relies].outcome == "blocked"


def test_an_expected_failure_that_passes_is_a_failure(tmp_path):
    results = run(with_xfails(tmp_path, SimulatedPlatform, f"{FRESH} # fixed long ago\n"), FRESH)
    assert results[FRESH].outcome == "failed"
    assert "passes" in results[FRESH].reason
    assert "remove that line" in results[FRESH].reason


def test_an_expected_failure_that_is_not_claimed_is_a_failure(tmp_path):
    name = "test_graphs_are_right_behind_before_replay"
    results = run(with_xfails(tmp_path, SimulatedPlatform, f"{name} # later\n"), name)
    assert results[name].outcome == "failed"
    assert "is not claimed" in results[name].reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("test_size_zero # why", r"xfails.txt:1: .* did you mean test_size_zero_is_as_eager"),
        ("# so\n\nnonsense#why", r"xfails.txt:3: the kit has no test 'nonsense'"),
        ("test_padding_never_leaks\n", r":1: test_padding_never_leaks has no reason"),
        ("test_padding_never_leaks # a\n" * 2, r":2: .* is listed twice"),
        (b"\xff\xfe", "cannot read"),
        (None, "cannot read"),
    ],
)
def test_mistakes_in_the_file_are_told_with_their_line(tmp_path, text, said):
    file = tmp_path / "xfails.txt"
    if isinstance(text, str):
        file.write_text(text)
    elif text is not None:
        file.write_bytes(text)
    with pytest.raises(ConfigError, match=said):
        read_xfails(file, PlatformConformance.specs())


def test_a_relative_file_lies_beside_the_suite():
    class Suite(PlatformConformance):
        platform = "cpu"
        xfails = "xfails.txt"

    assert str(Suite.xfail_path()).endswith("/tests/conformance/xfails.txt")


# Failures and the run -------------------------------------------------------------------------


def test_every_failure_explains_itself():
    ours = [m for m in MUTANTS if m.what in ("stale input", "a second reset that fails")]
    assert len(ours) == 2
    for mutant in ours:
        with mutant.platform() as platform:
            results = run(suite_for(platform), *with_what_it_relies_on(mutant.fails)).values()
            (result,) = [r for r in results if r.outcome == "failed"]
        for word in ("breaks the contract", "property:", "did:", "expected:", "got:", "change:"):
            assert word in result.reason
    assert "GraphDriver.reset breaks the contract" in result.reason
    assert "the graph was freed already" in result.reason
    assert "trace:" in result.reason


def test_the_user_s_pytest_settings_do_not_reach_the_run(monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    assert run(suite_for(SimulatedPlatform, level="L0"))[OVERRIDES].outcome == "passed"


def test_what_its_caller_froze_stays_frozen():
    gc.freeze()
    before = gc.get_freeze_count()
    run(suite_for(SimulatedPlatform, level="L0"), OVERRIDES)
    assert gc.get_freeze_count() >= before


def test_an_interrupt_is_told_as_such():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(RunBroken, match="INTERRUPTED"):
        run_suite(suite_for(interrupted, level="L0"))


def test_where_create_fails_one_test_fails_and_all_that_need_the_platform_are_blocked():
    with installed(available="True", create="raise OSError('the board is on fire')"):
        results = run(suite_for("mutant", level="L1")).values()
    failed = [r for r in results if r.outcome == "failed"]
    assert [r.name for r in failed] == ["test_what_create_gives_keeps_the_protocols"]
    assert "the board is on fire" in failed[0].reason
    assert "piecewise-mutant 1.0" in failed[0].reason
    blocked = {r.name for r in results if r.outcome == "blocked"}
    assert "test_the_probe_initialises_no_device" in blocked
    assert {r.outcome for r in results if r.level == "L1"} == {"blocked"}


def test_a_failure_shows_the_plugin_s_frames_and_its_message_whole(tmp_path, monkeypatch):
    source = """
class Deep:
    name = "deep"
    def hash_factors(self): return {}
    def compile(self, graph, example_inputs, *, key, config):
        return lowered_by_the_vendor(graph, 9)
def lowered_by_the_vendor(graph, depth):
    if depth:
        return lowered_by_the_vendor(graph, depth - 1)
    import torch
    torch.fx.Interpreter(graph).run()
"""
    (tmp_path / "deep_vendor.py").write_text(source + "# " + "x" * 10)
    monkeypatch.syspath_prepend(tmp_path)
    (failed,) = run(suite_for(CompilerUnderTest("deep_vendor:Deep")), INSIDE).values()
    assert failed.outcome == "failed"
    assert failed.reason.count("in lowered_by_the_vendor") == 10
    long = Violation("did", "expected", "x" * 5000, "change")
    assert "x" * 5000 in failure_text("property", "blames", long)


# The store ------------------------------------------------------------------------------------


def test_a_second_run_gives_what_the_first_gave_whatever_the_user_s_store_holds(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")  # of the user's models, not of the kit's

    def persisting():
        platform = SimulatedPlatform()
        platform.compiler = Kept()
        return platform

    names = ("test_one_compilation_per_distinct_piece_and_range", KEPT)
    for _ in range(2):
        results = run(suite_for(persisting, level="L1"), *names)
        assert {n: (r.outcome, r.reason) for n, r in results.items()} == dict.fromkeys(
            names, ("passed", "")
        )
    assert not (tmp_path / "store").exists()
