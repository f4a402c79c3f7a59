"""Findings are listed, and each script installs what it pins, where it removes it again."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

FINDINGS = Path(__file__).parents[2] / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))


def test_the_readme_lists_every_script_and_no_other():
    linked = re.findall(r"\]\((\w+\.sh)\)", (FINDINGS / "README.md").read_text(encoding="utf-8"))
    assert sorted(linked) == [script.name for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_stands_alone(script):
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    made, removed = lines.index("dir=$(mktemp -d)"), lines.index("trap 'rm -rf \"$dir\"' EXIT")
    assert removed == made + 1
    (install,) = (line for line in lines if " -m pip install " in line)
    pins = re.findall(r"'([^']*)'", install)
    assert pins
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", pin) for pin in pins)
    assert "://" not in text
    assert "piecewise" not in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_is_expected_seen_and_to_be_done(script):
    text = script.read_text(encoding="utf-8")
    top = text[: text.index("set -euo")]
    marks = ["# Expected: ", "# Seen in ", "# What to do: ", "# Output"]
    assert [m for m in marks if m in top] == marks
    assert "\nassert " in text
