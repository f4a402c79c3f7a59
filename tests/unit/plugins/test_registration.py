from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from piecewise_core.errors import NoPlatform, PlatformConflict, PluginError
from piecewise_core.plugins import registered, select
from piecewise_core.protocols import PlatformInfo, Probe


@pytest.fixture
def info(platform):
    return PlatformInfo("mine", "cpu", (1, 0), lambda: Probe(True, "fine"), lambda: platform)


def test_a_platform_is_selectable_inside_the_block_and_not_after(site, info, platform):
    with registered(info):
        assert select("mine").platform is platform
        assert select().platform is platform
    with pytest.raises(NoPlatform):
        select("mine")


def test_it_comes_ahead_of_installed_plugins_which_are_not_imported(site, info):
    site.platform("acme", "acme")
    with registered(info):
        assert select().info is info
    assert site.imported() == []


def test_it_hides_an_installed_platform_of_its_name(site, info, platform):
    site.platform("acme", "mine")
    with registered(info):
        assert select("mine").platform is platform
    assert select("mine").platform.made_by == "mine"


def test_an_error_inside_the_block_ends_the_registration(site, info):
    with pytest.raises(KeyError), registered(info):
        raise KeyError
    with pytest.raises(NoPlatform):
        select("mine")


def test_blocks_nest(site, info):
    with registered(info), registered(replace(info, name="yours")):
        assert select("mine").info.name == "mine"
        assert select("yours").info.name == "yours"


def test_two_that_fit_equally_well_are_a_conflict(site, info):
    conflict = pytest.raises(PlatformConflict, match="'mine' of this process and 'yours'")
    with registered(info), registered(replace(info, name="yours")), conflict:
        select()


def test_one_name_cannot_be_registered_twice(info):
    with registered(info), pytest.raises(PlatformConflict, match="'mine'"), registered(info):
        pass


def test_a_malformed_info_is_refused_at_once(info):
    with pytest.raises(PluginError, match="name="), registered(replace(info, name="Mine!")):
        pass


def test_another_thread_does_not_see_it(site, info):
    seen = []

    def look():
        try:
            seen.append(select("mine"))
        except NoPlatform as exc:
            seen.append(type(exc))

    with registered(info):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [NoPlatform]
