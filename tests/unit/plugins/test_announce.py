from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecewise_core.errors import ApiVersionMismatch, PluginError
from piecewise_core.plugins.announce import announced, check_api_version, check_info
from piecewise_core.plugins.discovery import PluginEntry, discover
from piecewise_core.plugins.registry import load
from piecewise_core.protocols import API_VERSION, PlatformInfo

ORIGIN = PluginEntry("acme-plugin", "acme", "3.2", "acme")
GOOD = PlatformInfo("acme", "acme", (1, 0), lambda: None, lambda: None)

HOOK = """
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo
@hookimpl
def piecewise_platforms():
    return {infos}
"""


def announced_by(site, infos):
    site.install("acme", "3.2", entry="acme", source=HOOK.format(infos=infos))
    (entry,) = discover()
    return announced(load(entry))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Acme"),
        ("name", ""),
        ("name", "acme one"),
        ("name", None),
        ("device_type", "cuda:0"),
        ("device_type", 3),
        ("api_version", "1.0"),
        ("api_version", (1,)),
        ("api_version", (True, False)),
        ("api_version", (1, -1)),
        ("probe", "available"),
        ("create", None),
    ],
)
def test_a_malformed_field_is_named_with_its_value(field, value):
    with pytest.raises(PluginError, match=rf"acme-plugin 3\.2: .*{field}=") as caught:
        check_info(replace(GOOD, **{field: value}), ORIGIN)
    assert repr(value) in str(caught.value)


def test_every_malformed_field_is_named_at_once():
    with pytest.raises(PluginError, match=r"name=.*device_type=.*create="):
        check_info(replace(GOOD, name=1, device_type=2, create=3), ORIGIN)


def test_a_well_formed_info_passes():
    check_info(replace(GOOD, name="acme-2_b", device_type="privateuseone"), ORIGIN)


@pytest.mark.parametrize("infos", ["[{'name': 'acme'}]", "'acme'", "[None]"])
def test_a_hook_must_give_infos(site, infos):
    with pytest.raises(PluginError, match=r"acme 3\.2: .*PlatformInfo"):
        announced_by(site, infos)


def test_a_hook_must_give_an_iterable(site):
    with pytest.raises(PluginError, match="iterable of PlatformInfo, got 7"):
        announced_by(site, "7")


def test_an_empty_hook_brings_no_platform(site):
    assert announced_by(site, "[]") == ()


def test_one_name_twice_in_a_plugin_is_refused(site):
    info = "PlatformInfo('acme', 'acme', (1, 0), print, print)"
    with pytest.raises(PluginError, match="'acme' 2 times"):
        announced_by(site, f"[{info}, {info}]")


@given(st.integers(0, 3), st.integers(0, 3))
def test_core_serves_its_own_major_and_no_newer_minor(major, minor):
    info = replace(GOOD, api_version=(major, minor))
    if major == API_VERSION[0] and minor <= API_VERSION[1]:
        check_api_version(info, ORIGIN)
        return
    with pytest.raises(ApiVersionMismatch) as caught:
        check_api_version(info, ORIGIN)
    message = str(caught.value)
    assert "acme-plugin 3.2" in message
    assert f"{major}.{minor}" in message
    older = (major, minor) < API_VERSION
    assert message.endswith("update acme-plugin" if older else "update piecewise-core")
