from __future__ import annotations

import sys

import pytest

from piecewise_core.plugins import all_passes, discover
from piecewise_core.plugins.peek import may_implement

NONE = """
from piecewise_core.hookspecs import hookimpl
@hookimpl
def piecewise_platforms():
    "Brings piecewise_passes no more than it brings tea."
    return []
"""


def peeked(site, source):
    module = site.install("acme", entry="acme", source=source)
    (entry,) = discover()
    answer = may_implement(entry, "piecewise_passes")
    assert module not in sys.modules
    return answer


def test_a_module_whose_code_never_names_the_hook_cannot_implement_it(site):
    assert not peeked(site, NONE)


@pytest.mark.parametrize(
    "source",
    [
        "@hookimpl\ndef piecewise_passes(): return []",
        "piecewise_passes = hookimpl(lambda: [])",
        "from acme.passes import piecewise_passes",
        "import acme.passes as piecewise_passes",
        "class Plugin:\n    def piecewise_passes(self): return []",
        "@hookimpl(specname='piecewise_passes')\ndef mine(): return []",
        "from acme.passes import *",
        "globals()['piecewise' + '_passes'] = None",
        "import sys\nsetattr(sys.modules[__name__], 'piecewise_' + 'passes', None)",
        "if True:\n    for piecewise_passes in ():\n        pass",
    ],
)
def test_whatever_could_make_the_hook_an_attribute_counts(site, source):
    assert peeked(site, source)


@pytest.mark.parametrize("source", ["def piecewise_pases(): ...", "piecewise_passess = 1"])
def test_a_misspelt_hook_counts_so_that_it_is_refused_by_name(site, source):
    assert peeked(site, source)


@pytest.mark.parametrize("source", ["def broken(:", "\x00"])
def test_a_module_that_cannot_be_read_counts_so_that_its_error_is_told(site, source):
    assert peeked(site, source)


def test_a_module_that_is_not_there_counts(site):
    site.install("acme", entry="acme", source=NONE)
    (site.directory / "acme_plugin.py").unlink()
    assert may_implement(*discover(), "piecewise_passes")


def test_a_module_in_a_package_is_found_without_importing_the_package(site):
    site.install("acme", entry="acme", source=NONE)
    package = site.directory / "acme_pkg" / "sub"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "plugin.py").write_text(NONE)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    points = site.directory / "acme-1.0.dist-info" / "entry_points.txt"
    points.write_text("[piecewise]\nacme = acme_pkg.sub.plugin\n")
    (entry,) = discover()
    assert not may_implement(entry, "piecewise_passes")
    points.write_text("[piecewise]\nacme = acme_pkg.sub.plugin:thing\n")
    (entry,) = discover()
    assert may_implement(entry, "piecewise_passes")
    (package / "__init__.py").unlink()
    points.write_text("[piecewise]\nacme = acme_pkg.sub.plugin\n")
    (entry,) = discover()
    may_implement(entry, "piecewise_passes")  # a namespace package cannot always be looked into
    assert "acme_pkg" not in sys.modules


def test_only_plugins_that_may_have_passes_are_imported_for_them(site):
    for number in range(5):
        site.install(f"acme-{number}", entry=f"a{number}", source=NONE)
    module = site.install("zeta", entry="z", source=NONE.replace("platforms()", "passes()"))
    assert all_passes() == ()
    assert site.imported() == [module]
