"""piecewise plan: what it prints, and what it refuses."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import piecewise_core as pw
from piecewise_core.cli.main import main


@pytest.fixture
def traffic(tmp_path):
    file = tmp_path / "traffic.csv"
    file.write_text("".join(f"{size},{size % 5 + 1}\n" for size in range(1, 101)))
    return str(file)


def run(*args: str):
    return CliRunner().invoke(main, ["plan", *args])


def test_the_table_is_that_of_pw_plan(traffic):
    found = run(traffic, "--graphs", "8")
    assert found.exit_code == 0
    assert found.output.strip() == str(pw.plan(traffic, max_graphs=8))


def test_json_memory_and_columns(traffic, tmp_path):
    told = ("--graph-bytes", "1MiB", "--row-bytes", "1000", "--json")
    found = json.loads(run(traffic, "--memory", "4.5MiB", *told).output)
    assert len(found["sizes"]) == 4
    log = tmp_path / "log.csv"
    log.write_text("at,tokens\nmonday,5\ntuesday,7\n")
    assert json.loads(run(str(log), "--column", "tokens", "--json").output)["sizes"] == [5, 7]


def test_sizes_in_use_are_compared(traffic):
    found = run(traffic, "--sizes", "50,100")
    assert found.exit_code == 0
    assert "the sizes in use pad" in found.output


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--graphs", "0"), 1, "has no room for one size"),
        (("--memory", "1k"), 1, "not known what a graph takes"),
        (("--memory", "much"), 2, "is no number of bytes"),
        (("--memory", "1k", "--graph-bytes", "2k"), 1, "no room for one size"),
        (("--padding", "-1"), 1, "max_padding=-1.0"),
        (("--column", "nothing"), 1, "its columns have no names"),
        (("--sizes", "a,b"), 1, "are no sizes"),
        (("--sizes", "4x8"), 1, "has 2 dims"),
    ],
)
def test_mistakes_end_in_one_line(traffic, args, code, says):
    found = run(traffic, *args)
    assert found.exit_code == code
    assert says in found.output
    assert "Traceback" not in found.output


def test_a_missing_file_is_named():
    found = run("nowhere.csv")
    assert found.exit_code == 1
    assert "nowhere.csv cannot be read" in found.output


def test_help_says_what_a_file_may_be():
    found = run("--help")
    assert found.exit_code == 0
    assert "JSON or CSV" in found.output
