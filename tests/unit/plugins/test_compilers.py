from __future__ import annotations

import pytest

from piecewise_core.errors import ConfigError, PlatformConflict, PluginError
from piecewise_core.plugins import find_compiler

COMPILERS = """
from piecewise_core.hookspecs import hookimpl

class Compiler:
    name = {name!r}
    def compile(self, graph, example_inputs, *, key, config): ...
    def hash_factors(self): return {{}}

def make():
    {make}
    return Compiler()

@hookimpl
def piecewise_compilers():
    return {{{name!r}: make}}
"""


def install_compiler(site, distribution, name, *, entry=None, make="pass", **kwargs):
    source = COMPILERS.format(name=name, make=make)
    return site.install(distribution, entry=entry or name, source=source, **kwargs)


def test_a_compiler_is_found_by_name_and_only_its_plugin_is_imported(site):
    wanted = install_compiler(site, "acme", "acmec")
    site.install("other", entry="other", source="raise OSError")

    assert find_compiler("acmec").name == "acmec"
    assert site.imported() == [wanted]


def test_a_compiler_may_come_from_a_plugin_of_another_name(site, caplog):
    install_compiler(site, "acme", "acmec", entry="acme")
    site.install("other", "2.0", entry="other", source="raise OSError('gone')")

    assert find_compiler("acmec").name == "acmec"
    assert "other 2.0" in caplog.text


def test_an_unknown_compiler_is_an_error_with_the_nearest_name_and_what_could_not_be_asked(site):
    install_compiler(site, "acme", "acmec", entry="acme")
    site.install("other", "2.0", entry="other", source="raise OSError('gone')")

    with pytest.raises(ConfigError) as caught:
        find_compiler("acmecc", known=("inductor", "eager"))
    message = str(caught.value)
    assert "did you mean 'acmec'?" in message
    assert "acmec, eager, inductor" in message
    assert "other 2.0" in message


def test_two_compilers_of_one_name_are_a_conflict(site):
    install_compiler(site, "acme-one", "acmec", version="1.1")
    install_compiler(site, "acme-two", "acmec", version="2.2")
    with pytest.raises(PlatformConflict, match=r"acme-one 1\.1 and acme-two 2\.2"):
        find_compiler("acmec")


def test_a_compiler_that_cannot_be_made_is_named(site):
    install_compiler(site, "acme", "acmec", make="1 / 0", version="3.2")
    with pytest.raises(PluginError, match=r"acme 3\.2: .*acmec.*ZeroDivisionError"):
        find_compiler("acmec")


def test_what_is_made_is_held_to_the_contract(site):
    install_compiler(site, "acme", "acmec", make="return object()", version="3.2")
    with pytest.raises(PluginError, match=r"(?s)acme 3\.2: .*compile\(.*is missing"):
        find_compiler("acmec")


@pytest.mark.parametrize("brought", ["[('acmec', make)]", "{'acmec': 3}", "{3: make}"])
def test_a_malformed_answer_is_named(site, brought, caplog):
    source = COMPILERS.format(name="acmec", make="pass")
    source = source.replace("return {'acmec': make}", f"return {brought}")
    site.install("acme", "3.2", entry="acme", source=source)
    with pytest.raises(ConfigError, match=r"acme 3\.2: its hook piecewise_compilers failed"):
        find_compiler("acmec")


@pytest.mark.parametrize("name", ["eager", "inductor"])
def test_a_compiler_of_core_s_own_name_is_refused_since_it_would_never_be_used(site, name):
    install_compiler(site, "acme", name, entry="acme", version="3.2")
    with pytest.raises(ConfigError, match=rf"acme 3\.2: .*'{name}' is a compiler of core's own"):
        find_compiler("acmec")
