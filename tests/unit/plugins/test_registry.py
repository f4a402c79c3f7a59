from __future__ import annotations

import sys

import pytest

from piecewise_core.errors import PluginError
from piecewise_core.plugins.discovery import discover
from piecewise_core.plugins.registry import load

GOOD = """
from piecewise_core.hookspecs import hookimpl
@hookimpl
def piecewise_passes():
    return [print]
"""


def only_entry():
    (entry,) = discover()
    return entry


def test_a_plugin_that_cannot_be_imported_is_named_with_its_version_and_cause(site):
    site.install("acme", "3.2", entry="acme", source="import acme_driver_that_is_not_there")

    with pytest.raises(PluginError, match=r"acme 3\.2: .*acme_driver_that_is_not_there") as caught:
        load(only_entry())
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_plugin_that_exits_on_import_does_not_take_the_process_along(site):
    site.install("acme", entry="acme", source="raise SystemExit(3)")

    with pytest.raises(PluginError, match="SystemExit"):
        load(only_entry())


def test_a_misspelt_hook_is_an_error_with_the_nearest_name(site):
    source = GOOD.replace("piecewise_passes", "piecewise_platfroms")
    site.install("acme", "3.2", entry="acme", source=source)

    with pytest.raises(PluginError, match=r"acme 3\.2.*piecewise_platfroms.*piecewise_platforms"):
        load(only_entry())


def test_a_hook_unlike_any_other_lists_all_hooks(site):
    site.install("acme", entry="acme", source=GOOD.replace("piecewise_passes", "zzz"))

    with pytest.raises(PluginError, match=r"piecewise_platforms, .*piecewise_passes"):
        load(only_entry())


def test_a_hook_with_arguments_of_its_own_is_an_error(site):
    site.install("acme", entry="acme", source=GOOD.replace("passes()", "passes(device)"))

    with pytest.raises(PluginError, match=r"(?s)acme 1\.0.*device"):
        load(only_entry())


def test_a_module_that_forgot_the_marker_is_an_error(site):
    site.install("acme", entry="acme", source=GOOD.replace("@hookimpl", ""))

    with pytest.raises(PluginError, match=r"implements no hook.*hookimpl"):
        load(only_entry())


@pytest.mark.parametrize("first", ["", "yield print\n    "])
def test_a_hook_that_raises_is_named_even_half_way_through_a_generator(site, first):
    body = first + "raise OSError('no fan')"
    site.install("acme", "3.2", entry="acme", source=GOOD.replace("return [print]", body))
    plugin = load(only_entry())

    with pytest.raises(PluginError, match=r"acme 3\.2: .*piecewise_passes.*OSError: no fan"):
        plugin.call("piecewise_passes", list)


def test_a_hook_that_is_not_implemented_brings_nothing(site):
    site.install("acme", entry="acme", source=GOOD)
    plugin = load(only_entry())

    assert plugin.call("piecewise_passes", list) == [print]
    assert plugin.call("piecewise_platforms", list) is None


def test_an_entry_point_may_name_an_object_in_a_module(site):
    source = GOOD + "class Box: pass\nbox = Box()\nbox.plugin = sys.modules[__name__]\n"
    module = site.install("acme", entry="acme", source="import sys\n" + source)
    points = site.directory / "acme-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[piecewise]\nacme = {module}:box.plugin\n")

    assert load(only_entry()).call("piecewise_passes", list) == [print]


def test_an_entry_point_that_names_nothing_is_an_error(site):
    module = site.install("acme", entry="acme", source=GOOD)
    points = site.directory / "acme-1.0.dist-info" / "entry_points.txt"
    points.write_text(f"[piecewise]\nacme = {module}:box\n")

    with pytest.raises(PluginError, match="AttributeError"):
        load(only_entry())


def test_a_broken_plugin_leaves_nothing_behind_for_the_next(site):
    site.install("broken", entry="broken", source=GOOD + "1 / 0")
    site.install("good", entry="good", source=GOOD)
    broken, good = discover()

    with pytest.raises(PluginError):
        load(broken)
    assert "broken_plugin" not in sys.modules
    assert load(good).call("piecewise_passes", list) == [print]
    assert load(good).call("piecewise_passes", list) == [print]
