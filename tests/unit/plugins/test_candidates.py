from __future__ import annotations

from piecewise_core.plugins import registered, survey
from piecewise_core.protocols import PlatformInfo, Probe


def test_a_survey_shows_every_plugin_with_its_state_and_raises_nothing(site, platform):
    site.platform("good", "good")
    site.platform("absent", "absent", available=False, why="no board")
    site.platform("old", "old", api=(0, 1))
    site.platform("crashes", "crashes", probe="1 / 0")
    site.install("broken", "2.0", entry="broken", source="import missing_driver")
    mine = PlatformInfo("mine", "cpu", (1, 0), lambda: Probe(True, "fine"), lambda: platform)

    with registered(mine):
        found = {c.name: (c.status, type(c.error).__name__) for c in survey()}
    assert found == {
        "mine": ("found", "NoneType"),
        "good": ("found", "NoneType"),
        "absent": ("skipped", "NoneType"),
        "old": ("failed", "ApiVersionMismatch"),
        "crashes": ("failed", "ProbeFailed"),
        "broken": ("failed", "PluginError"),
    }


def test_a_survey_makes_no_platform(site):
    site.platform("good", "good", create="raise AssertionError('made')")
    (candidate,) = survey()
    assert candidate.status == "found"
    assert str(candidate) == "good (good 1.0, device cpu): found: it is there"
