from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from piecewise_core.errors import (
    ApiVersionMismatch,
    NoPlatform,
    PlatformConflict,
    PlatformError,
    PluginError,
    ProbeFailed,
    ProbeInitialisedDevice,
)
from piecewise_core.plugins import select


def made_by(selected) -> str:
    return selected.platform.made_by


def status_of(selected, name):
    (candidate,) = [c for c in selected.considered if c.name == name]
    return candidate.status


# Order ----------------------------------------------------------------------------


def test_an_argument_beats_the_variable_which_beats_the_order(site):
    site.platform("acme-one", "one", available=False)
    site.platform("acme-two", "two")
    site.platform("piecewise-cpu", "cpu")

    assert made_by(select(environ={})) == "two"
    assert made_by(select(environ={"PIECEWISE_PLATFORM": "cpu"})) == "cpu"
    assert made_by(select("two", environ={"PIECEWISE_PLATFORM": "cpu"})) == "two"


def test_the_variable_is_read_from_the_process_by_default(site, monkeypatch):
    site.platform("acme", "acme")
    site.platform("piecewise-cpu", "cpu")
    monkeypatch.setenv("PIECEWISE_PLATFORM", "cpu")

    selected = select()
    assert made_by(selected) == "cpu"
    assert selected.reason == "PIECEWISE_PLATFORM=cpu"


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_is_an_unset_one(site, empty):
    site.platform("acme", "acme")
    assert made_by(select(environ={"PIECEWISE_PLATFORM": empty})) == "acme"


def test_out_of_tree_beats_built_in_accelerator_beats_cpu(site):
    site.platform("piecewise-cpu", "cpu", "cpu")
    assert made_by(select()) == "cpu"
    site.platform("piecewise-cuda", "cuda", "cuda")
    assert made_by(select()) == "cuda"
    site.platform("acme", "acme", "acme")
    assert made_by(select()) == "acme"


def test_a_built_in_distribution_is_known_however_its_name_is_written(site):
    site.platform("Piecewise_CPU", "cpu", "cpu")
    site.platform("acme", "acme", "cpu")
    assert made_by(select()) == "acme"


def test_what_is_not_available_is_passed_over_with_its_reason(site):
    site.platform("acme", "acme", available=False, why="no board in slot 3")
    site.platform("piecewise-cpu", "cpu")

    selected = select()
    assert made_by(selected) == "cpu"
    assert [(c.name, c.status) for c in selected.considered] == [
        ("cpu", "active"),
        ("acme", "skipped"),
    ]
    assert selected.considered[1].reason == "no board in slot 3"


def test_of_fifty_plugins_only_the_one_that_is_named_is_imported(site):
    for number in range(49):
        site.install(f"acme-{number}", entry=f"p{number}", source="raise OSError")
    wanted = site.platform("acme-wanted", "wanted")

    selected = select("wanted")
    assert made_by(selected) == "wanted"
    assert site.imported() == [wanted]
    assert len(selected.considered) == 50


def test_a_lower_tier_is_not_imported_once_one_fits(site):
    acme = site.platform("acme", "acme")
    site.platform("piecewise-cuda", "cuda", "cuda")
    site.platform("piecewise-cpu", "cpu")

    selected = select()
    assert site.imported() == [acme]
    assert status_of(selected, "cuda") == status_of(selected, "cpu") == "skipped"


def test_a_platform_whose_entry_point_has_another_name_is_found_too(site):
    site.platform("acme", "acme", entry="something-else")
    assert made_by(select("acme")) == "acme"


# Devices --------------------------------------------------------------------------


def test_only_platforms_of_the_device_fit(site):
    site.platform("acme", "acme", "acme")
    site.platform("piecewise-cpu", "cpu", "cpu")

    selected = select(device_type="cpu")
    assert made_by(selected) == "cpu"
    assert status_of(selected, "acme") == "skipped"


def test_there_is_no_silent_fall_to_the_cpu(site):
    site.platform("piecewise-cpu", "cpu", "cpu")
    site.platform("piecewise-cuda", "cuda", "cuda", available=False, why="driver 470 is too old")

    with pytest.raises(NoPlatform) as caught:
        select(device_type="cuda")
    message = str(caught.value)
    assert "device 'cuda'" in message
    assert "driver 470 is too old" in message
    assert "cpu (piecewise-cpu 1.0, device cpu): skipped: serves device cpu, not cuda" in message


@pytest.mark.parametrize(
    ("device", "advice"),
    [
        (None, "pip install piecewise-cpu"),
        ("cuda", "pip install piecewise-cuda"),
        ("xpu", "install a plugin for xpu"),
    ],
)
def test_without_plugins_the_error_says_what_to_install(site, device, advice):
    with pytest.raises(NoPlatform, match=advice) as caught:
        select(device_type=device)
    assert "no piecewise plugin is installed" in str(caught.value)


def test_a_named_platform_of_another_device_is_refused(site):
    site.platform("piecewise-cpu", "cpu", "cpu")
    with pytest.raises(NoPlatform, match=r"PIECEWISE_PLATFORM=cpu: .*'cpu'.*is on 'cuda'"):
        select(device_type="cuda", environ={"PIECEWISE_PLATFORM": "cpu"})


# Conflicts ------------------------------------------------------------------------


@pytest.mark.parametrize("device", [None, "acme"])
def test_two_available_platforms_are_a_conflict_that_names_both(site, device):
    site.platform("acme-one", "one", "acme", version="1.1")
    site.platform("acme-two", "two", "acme", version="2.2")

    with pytest.raises(PlatformConflict) as caught:
        select(device_type=device)
    message = str(caught.value)
    assert "'one' of acme-one 1.1 and 'two' of acme-two 2.2" in message
    assert "PIECEWISE_PLATFORM" in message
    assert "platform=" in message
    assert made_by(select("two", device)) == "two"


def test_two_platforms_of_which_one_is_available_are_no_conflict(site):
    site.platform("acme-one", "one", "acme", available=False)
    site.platform("acme-two", "two", "acme")
    assert made_by(select()) == "two"


def test_two_plugins_with_one_name_are_a_conflict_decided_by_distribution(site):
    site.platform("acme-old", "acme", version="1.1")
    site.platform("acme-new", "acme", version="2.2")

    with pytest.raises(PlatformConflict, match=r"acme-new 2\.2 and 'acme' of acme-old 1\.1") as err:
        select("acme")
    assert "acme@acme-new" in str(err.value)
    selected = select(environ={"PIECEWISE_PLATFORM": "acme@Acme_Old"})
    assert selected.considered[0].origin.version == "1.1"


def test_a_broken_plugin_claims_the_name_of_its_entry_point(site):
    site.platform("acme-old", "acme")
    site.install("acme-new", entry="acme", source="import missing_driver")

    with pytest.raises(PlatformConflict, match=r"acme-new 1\.0 and 'acme' of acme-old 1\.0"):
        select("acme")


# What was asked for and is broken -------------------------------------------------

BROKEN = [
    (PluginError, {"create": "raise OSError('bad firmware')"}, "bad firmware"),
    (PluginError, {"create": "return SimpleNamespace(device=None)"}, "graphs is missing"),
    (PluginError, {"api": "(1,)"}, "api_version="),
    (ApiVersionMismatch, {"api": (1, 7)}, "1.7"),
    (ApiVersionMismatch, {"api": (0, 9)}, "0.9"),
    (ProbeFailed, {"probe": "1 / 0"}, "ZeroDivisionError"),
    (NoPlatform, {"available": False, "why": "no board"}, "not available.*no board"),
]


@pytest.mark.parametrize(("error", "fault", "said"), BROKEN)
def test_a_broken_choice_is_its_own_error_with_distribution_version_and_reason(
    site, error, fault, said
):
    site.platform("acme-plugin", "acme", version="3.2", **fault)
    site.platform("piecewise-cpu", "cpu")

    with pytest.raises(PlatformError, match=rf"(?s)acme-plugin 3\.2.*{said}") as caught:
        select("acme")
    assert type(caught.value) is error


def test_a_choice_that_cannot_be_imported_is_a_plugin_error(site):
    site.install("acme-plugin", "3.2", entry="acme", source="import missing_driver")
    with pytest.raises(PluginError, match=r"acme-plugin 3\.2: .*missing_driver"):
        select("acme")


def test_a_probe_that_initialises_the_device_is_an_error_when_asked_for(site):
    touch = (
        "import sys; from types import SimpleNamespace as N; "
        "sys.modules['torch'] = N(acme=N(is_initialized=lambda: True))"
    )
    site.platform("acme-plugin", "acme", "acme", version="3.2", probe=touch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", SimpleNamespace())
        with pytest.raises(ProbeInitialisedDevice, match=r"acme-plugin 3\.2: .*initialised"):
            select("acme")


def test_an_unknown_name_lists_what_there_is(site):
    site.platform("piecewise-cpu", "cpu")
    site.install("acme", "3.2", entry="acme", source="import missing_driver")

    with pytest.raises(NoPlatform) as caught:
        select("cuda")
    message = str(caught.value)
    assert "platform='cuda'" in message
    assert "pip install piecewise-cuda" in message
    assert "cpu (piecewise-cpu 1.0" in message
    assert "missing_driver" in message


def test_an_unknown_distribution_is_not_found(site):
    site.platform("acme", "acme")
    with pytest.raises(NoPlatform, match="acme@zeta"):
        select("acme@zeta")


# What was not asked for and is broken ---------------------------------------------


@pytest.mark.parametrize(("error", "fault", "said"), BROKEN[:-1])
def test_a_broken_plugin_that_nobody_asked_for_is_logged_and_kept_in_the_books(
    site, caplog, error, fault, said
):
    site.platform("acme-plugin", "acme", version="3.2", **fault)
    site.platform("piecewise-cpu", "cpu")

    with caplog.at_level(logging.WARNING, logger="piecewise_core"):
        selected = select()
    assert made_by(selected) == "cpu"
    (logged,) = caplog.records
    assert "acme-plugin 3.2" in logged.getMessage()
    assert status_of(selected, "acme") == "failed"
    (candidate,) = [c for c in selected.considered if c.name == "acme"]
    assert type(candidate.error) is error


def test_a_broken_plugin_does_not_stop_an_explicit_choice_and_is_not_even_loaded(site, caplog):
    site.install("acme", entry="acme", source="raise OSError")
    site.platform("piecewise-cpu", "cpu")

    assert made_by(select("cpu")) == "cpu"
    assert not caplog.records


# Objects --------------------------------------------------------------------------


def test_a_platform_object_is_used_as_it_is(site, platform):
    selected = select(platform, device_type="acme")
    assert selected.platform is platform
    assert selected.info.device_type == "acme"
    assert selected.info.create() is platform


def test_a_platform_object_may_name_itself_and_its_device(site, platform):
    platform.name, platform.device_type = "sim", "acme"
    assert select(platform).info.name == "sim"
    with pytest.raises(NoPlatform, match=r"serves device 'acme'.*on 'cuda'"):
        select(platform, device_type="cuda")


def test_a_platform_object_is_held_to_the_contract(site, platform):
    platform.device.synchronize = None
    with pytest.raises(PluginError, match=r"platform= argument: .*\n.*synchronize"):
        select(platform)
