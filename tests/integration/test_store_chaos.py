"""Many processes on one store: each piece is compiled once, and whoever is killed harms nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import store_chaos
from click.testing import CliRunner

from piecewise_core.cli.main import main


def run(folder: Path, *options: str) -> dict[str, Any]:
    """The summary of one run, which is printed too."""
    command = [sys.executable, str(store_chaos.__file__), str(folder), *options]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(summary)
    assert summary["failed"] == 0, done.stderr
    assert summary["damaged"] == []
    assert summary["quarantined"] == 0
    verified = CliRunner().invoke(main, ["cache", "verify", "--json", "--dir", str(folder)])
    assert json.loads(verified.stdout) == {
        "checked": summary["entries"], "damaged": {}, "refused": {}
    }  # fmt: skip
    assert verified.exit_code == 0
    return summary


def test_sixteen_processes_on_one_cold_store_compile_each_piece_once_in_all(tmp_path):
    summary = run(tmp_path / "cache", "--processes", "16", "--rounds", "2")
    # Two ranges of three pieces, one of which both rounds have.
    assert summary["pieces"] == summary["distinct"] == summary["compilations"] == 10
    assert summary["finished"] == 32


def with_kills(folder: Path, processes: int, rounds: int) -> None:
    summary = run(folder, "--kill", "--processes", str(processes), "--rounds", str(rounds))
    # What was being compiled by one that was killed is compiled again; nothing else is.
    assert summary["pieces"] == summary["distinct"] == 2 + 4 * rounds
    assert summary["compilations"] <= summary["distinct"] + summary["killed"]
    assert summary["finished"] + summary["killed"] == processes * rounds
    assert summary["killed"] > 0


def test_processes_killed_at_random_leave_a_store_that_serves(tmp_path):
    with_kills(tmp_path / "cache", processes=6, rounds=3)


@pytest.mark.slow
def test_sixteen_processes_in_twenty_rounds_killed_at_random_leave_a_store_that_serves(tmp_path):
    with_kills(tmp_path / "cache", processes=16, rounds=20)
