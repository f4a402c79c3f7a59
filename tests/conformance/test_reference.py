"""The kit's page names every test, outcome, option and key; committed reports are of this kit."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from piecewise_core.cli.conformance import conformance
from piecewise_core.testing import PlatformConformance
from piecewise_core.testing.conformance.marks import LEVELS
from piecewise_core.testing.conformance.report import SCHEMA, TestResult
from piecewise_core.testing.conformance.verdicts import OUTCOMES

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGE = (REFERENCE / "conformance.md").read_text(encoding="utf-8")
REPORTS = sorted((REFERENCE / "conformance").glob("*.json"))
SPECS = PlatformConformance.specs()


@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_a_test_of_the_kit_is_in_the_reference_with_its_property_and_what_it_needs(spec):
    (row,) = re.findall(rf"^\| `{spec.name}` \| [^|]* \| [^|]* \|.*\|$", PAGE, re.MULTILINE)
    assert spec.property in row
    assert f"`{spec.blames}`" in row
    for claim in set(spec.claims) - {"Platform.graphs"}:
        assert f"`{claim}`" in row
    heading = PAGE[: PAGE.index(row)].rindex("### ")
    assert PAGE[heading:].startswith(f"### {spec.level}")


def test_the_reference_has_no_test_that_the_kit_has_not():
    named = set(re.findall(r"^\| `(test_\w+)` \|", PAGE, re.MULTILINE))
    assert named == set(SPECS)


def test_outcomes_options_and_keys_are_in_the_reference():
    options = [option for parameter in conformance.params for option in parameter.opts]
    keys = [f.name for f in fields(TestResult)]
    for name in (*OUTCOMES, *keys):
        assert f"`{name}`" in PAGE, name
    for option in options:
        assert option == "name" or f"`{option} " in PAGE, option


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_a_committed_report_is_one_of_this_kit(file):
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["schema"] == SCHEMA
    assert sorted(test["name"] for test in report["tests"]) == sorted(SPECS)
    assert report["level"]["asked"] == LEVELS[-1]
    assert not {"failed", "blocked"} & set(report["counts"])
    assert f"[{file.name}](conformance/{file.name})" in PAGE
    reached = report["level"]["reached"]
    assert re.search(rf"\({re.escape(f'conformance/{file.name}')}\) \| {reached} met", PAGE)


def test_cpu_rocm_and_the_simulated_device_have_reports():
    assert {"cpu", "rocm", "simulated"} <= {file.stem for file in REPORTS}
