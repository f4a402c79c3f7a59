"""The reference names everything a user can name: settings, counters, errors, hooks, commands.

Pages are written in lines that a reviewer can read side by side.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

_FENCED = re.compile(r"^ *(`{3,}|~{3,})[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)


def code_in(markdown: str) -> str:
    """What ``markdown`` sets as code; a name in running text may be just an English word."""
    fenced = [block.group(2) for block in _FENCED.finditer(markdown)]
    inline = [span.group(2) for span in _INLINE.finditer(_FENCED.sub("", markdown))]
    return "\n".join([*fenced, *inline])


def unmentioned(names: Iterable[str], code: str) -> list[str]:
    """Those of ``names`` that do not stand in ``code`` as whole words."""
    return sorted(n for n in names if not re.search(rf"(?<!\w){re.escape(n)}(?!\w)", code))


def public(module: str, name: str) -> Any:
    """``module.name`` of piecewise_core; fails saying which is missing."""
    try:
        return getattr(importlib.import_module(f"piecewise_core.{module}"), name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"piecewise_core.{module}.{name} is not there: {error}")


@pytest.fixture(scope="module")
def reference() -> str:
    pages = sorted(REFERENCE.glob("*.md"))
    assert pages, f"{REFERENCE.parent.name}/{REFERENCE.name} has no pages"
    return "\n".join(code_in(page.read_text(encoding="utf-8")) for page in pages)


def check(names: Iterable[str], reference: str) -> None:
    listed = list(names)
    assert listed, "found nothing to look for"
    missing = unmentioned(listed, reference)
    assert not missing, f"not in docs/reference, as code: {', '.join(missing)}"


def test_every_config_field_is_in_the_reference(reference):
    check((field.name for field in fields(public("config", "Config"))), reference)


def test_every_counter_is_in_the_reference(reference):
    check((field.name for field in fields(public("counters", "Stats"))), reference)


def test_every_error_is_in_the_reference(reference):
    check(public("errors", "__all__"), reference)


def test_every_hook_and_its_arguments_are_in_the_reference(reference):
    hookspecs = importlib.import_module("piecewise_core.hookspecs")
    hooks = {n: f for n, f in vars(hookspecs).items() if hasattr(f, f"{hookspecs.PROJECT}_spec")}
    arguments = {p for hook in hooks.values() for p in inspect.signature(hook).parameters}
    check([*hooks, *arguments], reference)


CONTRACT = ("CompilerAdaptor", "DeviceRuntime", "GraphDriver", "Platform", "Rewrite")
EXTRAS = ("CompilerExtras", "RuntimeExtras", "GraphExtras", "PlatformExtras")
VALUES = ("BudgetContext", "Capabilities", "CompiledGraph", "PlatformInfo", "Probe", "ReplayCall")


def signature(method: Any) -> str:
    """``name(its, arguments)`` as the page writes it, but for types."""
    shown = []
    for p in list(inspect.signature(method).parameters.values())[1:]:
        if p.kind is p.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown.append(p.name)
    return f"{method.__name__}({', '.join(shown)})"


def test_every_method_of_the_contract_is_on_the_plugins_page_with_its_arguments():
    code = code_in((REFERENCE / "plugins.md").read_text(encoding="utf-8"))
    untyped = re.sub(r"(\w): \w+(?=[,)])", r"\1", code)
    found = [
        method
        for name in (*CONTRACT, *EXTRAS)
        for method_name, method in vars(public("protocols", name)).items()
        if inspect.isfunction(method) and not method_name.startswith("_")
    ]
    assert len(found) > 30
    missing = [signature(m) for m in found if signature(m) not in untyped]
    assert not missing, f"not in docs/reference/plugins.md, as code: {', '.join(missing)}"


def test_every_attribute_value_and_type_of_the_contract_is_on_the_plugins_page():
    code = code_in((REFERENCE / "plugins.md").read_text(encoding="utf-8"))
    names = [*CONTRACT, *VALUES, "AbstractPiecewiseBackend", "API_VERSION", "runs_captures"]
    names += [n for name in CONTRACT for n in inspect.get_annotations(public("protocols", name))]
    names += [f.name for value in VALUES for f in fields(public("protocols", value))]
    names += ["piecewise_backend", "device_type"]
    missing = unmentioned(names, code)
    assert not missing, f"not in docs/reference/plugins.md, as code: {', '.join(missing)}"


def test_every_extra_says_what_core_does_without_it():
    for name in EXTRAS:
        for method_name, method in vars(public("protocols", name)).items():
            if inspect.isfunction(method) and not method_name.startswith("_"):
                assert "Without" in (method.__doc__ or ""), f"{name}.{method_name}"


def test_every_building_block_is_on_the_plugins_page():
    code = code_in((REFERENCE / "plugins.md").read_text(encoding="utf-8"))
    assert (
        unmentioned(importlib.import_module("piecewise_core.building_blocks").__all__, code) == []
    )


def test_every_public_name_is_in_the_reference(reference):
    core = importlib.import_module("piecewise_core")
    check((name for name in core.__all__ if not name.startswith("__")), reference)


def test_every_command_is_in_the_reference(reference):
    main = public("cli.main", "main")
    assert isinstance(main, click.Group), "piecewise_core.cli.main.main is not a click group"
    check((f"piecewise {name}" for name in main.commands), reference)


def test_a_name_in_running_text_or_inside_another_name_is_not_a_mention():
    text = "The check of `check_cheap` and ``a `tick` in`` it."
    page = f"{text}\n```toml\ninputs = 1\n```\n~~~\nq\n~~~\n"
    code = code_in(page)
    assert unmentioned(["check", "check_cheap", "tick", "inputs", "q", "The"], code) == [
        "The",
        "check",
    ]


PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "platforms/*/README.md", "findings/README.md")
    for page in REFERENCE.parents[1].glob(pattern)
    if page.name != "CHANGELOG.md"
)
WIDEST = 120


def too_long(markdown: str) -> list[str]:
    """Lines of prose beyond WIDEST. A row of a table is one line, and output is as it is."""
    prose = _FENCED.sub("", markdown).splitlines()
    return [line for line in prose if len(line) > WIDEST and not line.startswith("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_line_of_prose_has_at_most_120_characters(page):
    assert too_long(page.read_text(encoding="utf-8")) == []


def test_only_tables_and_blocks_may_be_wider():
    wide = "a " * 70
    assert too_long(f"{wide}\n| {wide} |\n```text\n{wide}\n```\n") == [wide]
